"""`flairnode recall`: every result of a model, withdrawn where it was sent, and made anew.

A model turns out to be wrong after its results are in the PACS. Then an administrator has to know
which studies, get the objects out of the radiologist's sight, and have the series analysed with the
model that replaced it. The command writes what is owed; the service, running or started later,
brings it to its destinations.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import StudyError
from dicom.identity import identity_digest
from dicom.rejection import REJECTION_SERIES_NUMBER, TITLES, build_rejection_note
from dicom.seg import Equipment, ObjectIdentity
from dicom.uids import result_uid
from node.audit import Audit, AuditEvent
from node.cli import EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_ARGUMENTS
from node.delivery import ObjectState
from node.ledger import (
    RECALLED,
    UNFINISHED,
    Job,
    Ledger,
    RetryRefusedError,
    SeriesState,
    UnknownJobError,
)
from node.outcome import ResultFile, ResultsFolder
from node.rejections import Note, RecallsFolder
from node.sitekey import site_key
from pipeline.model_pack import find_pack, load_pack
from pipeline.results import RESEARCH_BANNER

_SHORTEST_DIGEST = 6


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    parser = subparsers.add_parser(
        "recall",
        help="every result of a model: list, reject, analyse again",
        description="Lists every result that was made with a model. With --reject, a rejection "
        "note (IHE IOCM) per study goes to every destination that holds objects of it; with "
        "--reanalyse, the series are queued with the model that is configured now.",
    )
    parser.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    parser.add_argument("--model", required=True, help="SHA-256 of the pack, or its beginning")
    parser.add_argument("--reject", action="store_true", help="withdraw what was sent")
    parser.add_argument(
        "--reason",
        choices=sorted(TITLES),
        default="patient-safety",
        help="of the rejection (default patient-safety: a viewer must not show the objects)",
    )
    parser.add_argument("--reanalyse", action="store_true", help="queue the series again")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List, and do what was asked for; exit 3 when some of it could not be done."""
    settings = load_settings(arguments.config)
    try:
        recall = Recall.begin(settings, arguments.model)
    except UnknownJobError as error:
        print(f"flairnode recall: {error.args[0]}", file=sys.stderr)
        return EXIT_WRONG_ARGUMENTS
    with recall.ledger:
        told: dict[str, Any] = {}
        if arguments.reject or arguments.reanalyse:
            recall.withdraw(arguments.reason)
        if arguments.reject:
            told["not_rejected"] = recall.reject(arguments.reason)
        if arguments.reanalyse:
            told["reanalysed"], told["not_reanalysed"] = recall.analyse_again()
        told = recall.as_json() | told
    if arguments.json:
        print(json.dumps(told))
    else:
        _print(told)
    left = told.get("not_rejected") or told.get("not_reanalysed")
    return EXIT_REFUSED if left else EXIT_DONE


@dataclass(frozen=True, slots=True)
class _Sent:
    """One object of a recalled result that a destination holds or may hold."""

    job: Job
    kind: str
    path: Path
    header: Dataset


@dataclass(slots=True)
class Recall:
    """The results of one model."""

    settings: Settings
    ledger: Ledger
    results: ResultsFolder
    folder: RecallsFolder
    pack_digest: str

    @classmethod
    def begin(cls, settings: Settings, digest: str) -> Recall:
        """Find the model.

        Raises:
            UnknownJobError: The node never ran, or no result is of that model, or of several.
        """
        data_dir = settings.node.data_dir
        path = data_dir / "intake.sqlite"
        if not path.is_file():
            raise UnknownJobError(
                f"{path}: no such file; has `flairnode serve` run with this data_dir?"
            )
        if len(digest) < _SHORTEST_DIGEST:
            raise UnknownJobError(f"{digest!r} is too short to tell models apart")
        ledger = Ledger(path)
        packs = {job.pack_digest for job in ledger.jobs_of_pack(digest.lower())}
        if len(packs) != 1:
            ledger.close()
            what = f"{len(packs)} models begin" if packs else "no result is of a model that begins"
            raise UnknownJobError(f"{what} with {digest}")
        folder = RecallsFolder(data_dir)
        return cls(settings, ledger, ResultsFolder(data_dir), folder, packs.pop())

    # --- what there is -----------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Every job that has a result of this model, or may still get one.

        A note that a FLAIR was not analysed is no result: what it says stays true.
        """
        return [job for job in self.ledger.jobs_of_pack(self.pack_digest) if self._has_result(job)]

    def _has_result(self, job: Job) -> bool:
        if job.reason == RECALLED:
            return True
        note_on_its_way = job.state is SeriesState.DELIVERING and job.reason
        if note_on_its_way or self.ledger.refusal_of(job.job_id) is not None:
            return False
        may_come = job.state in (*UNFINISHED, SeriesState.DELIVERED, SeriesState.HELD)
        sent = job.state is not SeriesState.NOT_ANALYSED and self.ledger.deliveries(job.job_id)
        return bool(may_come or sent)

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of the results, and of the notes on them."""
        stand = self.ledger.rejections()
        return {
            "model": self.pack_digest,
            "still_configured": _configured(self.settings) == self.pack_digest,
            "results": [self._result(job) for job in self.jobs()],
            "rejections": [
                {
                    "sop_instance_uid": note.note_uid,
                    "reason": note.title,
                    "jobs": list(note.jobs),
                    "objects": list(note.sop_instance_uids),
                    "destinations": [
                        {
                            "destination": peer,
                            "state": stand.get((note.note_uid, peer), ("owed", None))[0],
                        }
                        for peer in note.destinations
                    ],
                }
                for note in self.folder.notes()
                if note.pack_digest == self.pack_digest
            ],
        }

    def _result(self, job: Job) -> dict[str, Any]:
        deliveries = self.ledger.deliveries(job.job_id)
        known = self.ledger.objects_of(job.job_id) or self.results.documents(job.job_id)
        return {
            "series_instance_uid": job.series_instance_uid,
            "study_instance_uid": job.study_instance_uid,
            "job_id": job.job_id,
            "state": job.state.value,
            "reason": job.reason,
            "created_at": job.created_at.isoformat(),
            "model": self.results.report(job.job_id).get("model"),
            "objects": [
                {
                    "kind": kind,
                    "sop_instance_uid": one.sop_instance_uid,
                    "series_instance_uid": one.series_instance_uid,
                    "destinations": [
                        {
                            "destination": delivery.destination,
                            "state": delivery.state,
                            "at": delivery.updated_at.isoformat(),
                        }
                        for delivery in deliveries
                        if delivery.sop_instance_uid == one.sop_instance_uid
                    ],
                }
                for kind, one in known
            ],
        }

    # --- what is done about it ---------------------------------------------------------------

    def withdraw(self, reason: str) -> None:
        """Mark every job as recalled: nothing of it is sent from now on."""
        audit = Audit(self.settings.node.data_dir / "audit", site_key(self.settings.node.data_dir))
        for job in self.jobs():
            if job.reason == RECALLED:
                continue
            self.results.mark_recalled(job.job_id)
            self.ledger.recall(job.job_id, f"the model was recalled: {reason}")
            audit.append(
                AuditEvent.RECALLED,
                user=getpass.getuser(),
                reason=reason,
                model=self.pack_digest,
                study=job.study_instance_uid,
                series=job.series_instance_uid,
                job=job.job_id,
            )

    def reject(self, reason: str) -> list[dict[str, str]]:
        """Write the notes that are owed; what no note could be made for, and why."""
        left: list[dict[str, str]] = []
        for destination, objects in self._held(left).items():
            for together in _by_study(objects):
                try:
                    note, content = self._note(together, reason, destination)
                except StudyError as error:
                    left += [
                        {"job_id": job, "destination": destination, "explanation": str(error)}
                        for job in sorted({one.job.job_id for one in together})
                    ]
                    continue
                self.folder.keep(note, content)
                state, _ = self.ledger.rejections().get((note.note_uid, destination), ("", None))
                if state == ObjectState.REFUSED:  # somebody put it right: once more
                    self.ledger.record_rejection(note.note_uid, destination, ObjectState.TRYING)
        return left

    def analyse_again(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """Queue every series of it with the model of the settings; what was, and what was not."""
        from node.service import pack_digest, settings_digest  # the engine: a second

        try:
            configured = pack_digest(self.settings)
        except StudyError as error:
            return [], [{"series_instance_uid": "", "explanation": f"no model: {error}"}]
        if configured == self.pack_digest:
            explanation = "the model in the settings is the one that is recalled"
            return [], [{"series_instance_uid": "", "explanation": explanation}]
        done, left = [], []
        for uid in dict.fromkeys(job.series_instance_uid for job in self.jobs()):
            row = self.ledger.series(uid)
            if row is None or self.ledger.job(row.job_id).pack_digest != self.pack_digest:
                continue  # another model has the last word already
            try:
                job = self.ledger.analyse_again(uid, configured, settings_digest(self.settings))
            except RetryRefusedError as error:
                left.append({"series_instance_uid": uid, "explanation": str(error)})
            else:
                done.append({"series_instance_uid": uid, "job_id": job.job_id})
        return done, left

    def _held(self, left: list[dict[str, str]]) -> Mapping[str, list[_Sent]]:
        """By destination: what it holds, or may hold since an answer was lost."""
        held: defaultdict[str, list[_Sent]] = defaultdict(list)
        peers = {one.peer for one in self.settings.destinations}
        for job in self.jobs():
            result = self.results.read(job.job_id)
            files = {one.sop_instance_uid: one for one in result.objects} if result else {}
            for delivery in self.ledger.deliveries(job.job_id):
                if delivery.state == ObjectState.REFUSED:
                    continue
                why = ""
                if delivery.destination not in peers:
                    why = "no destination of the settings any more: reject it there by hand"
                elif delivery.sop_instance_uid not in files:
                    why = "the result is not kept here any more: reject it there by hand"
                if why:
                    left.append(
                        {
                            "job_id": job.job_id,
                            "destination": delivery.destination,
                            "sop_instance_uid": delivery.sop_instance_uid,
                            "explanation": why,
                        }
                    )
                    continue
                held[delivery.destination].append(_sent(job, files[delivery.sop_instance_uid]))
        return held

    def _note(self, objects: Sequence[_Sent], reason: str, destination: str) -> tuple[Note, bytes]:
        uids = sorted(str(one.header.SOPInstanceUID) for one in objects)
        parts = ("rejection", reason, *uids)
        research = any(RESEARCH_BANNER in str(one.header.SeriesDescription) for one in objects)
        now = datetime.now(UTC)
        identity = ObjectIdentity(
            sop_instance_uid=result_uid(*parts, "instance"),
            series_instance_uid=result_uid(*parts, "series"),
            series_number=REJECTION_SERIES_NUMBER,
            series_description=f"{RESEARCH_BANNER}: rejected" if research else "Rejected results",
            date=f"{now:%Y%m%d}",
            time=f"{now:%H%M%S}",
            equipment=Equipment(
                model_name="flairnode",
                serial_number=self.pack_digest[:16],
                software_versions=(f"flairnode {version('flairnode')}",),
            ),
        )
        description = (
            f"Results of the software model {self.pack_digest[:12]} are withdrawn: the model was "
            "recalled."
        )
        content = build_rejection_note(
            [one.header for one in objects], TITLES[reason], description, identity
        )
        note = Note(
            note_uid=identity.sop_instance_uid,
            title=reason,
            pack_digest=self.pack_digest,
            jobs=tuple(sorted({one.job.job_id for one in objects})),
            sop_instance_uids=tuple(uids),
            destinations=(destination,),
            path=Path(),
        )
        return note, content


def _sent(job: Job, file: ResultFile) -> _Sent:
    return _Sent(job, file.kind, file.path, dcmread(file.path, stop_before_pixels=True))


def _by_study(objects: Sequence[_Sent]) -> list[list[_Sent]]:
    groups: defaultdict[tuple[str, str], list[_Sent]] = defaultdict(list)
    for one in objects:
        key = (str(one.header.StudyInstanceUID), identity_digest(one.header))
        groups[key].append(one)
    return [groups[key] for key in sorted(groups)]


def _configured(settings: Settings) -> str:
    try:
        pack = find_pack(settings.pipeline.model, folders=(settings.node.packs_dir,))
        return load_pack(pack).digest
    except StudyError:
        return ""


def _print(told: Mapping[str, Any]) -> None:
    print(f"model {told['model']}")
    if told["still_configured"]:
        print("It is still the model in the settings: new series are analysed with it.")
    for one in told["results"]:
        state = f"{one['state']} {one['reason']}".rstrip()
        print(f"  {one['created_at'][:19]}  {state:<22}  {one['series_instance_uid']}")
        for each in one["objects"]:
            where = ", ".join(f"{d['destination']} ({d['state']})" for d in each["destinations"])
            print(f"    {each['kind']:<10} {each['sop_instance_uid']}  {where or 'sent nowhere'}")
    for one in told["rejections"]:
        where = ", ".join(f"{d['destination']} ({d['state']})" for d in one["destinations"])
        print(f"  rejection note on {len(one['objects'])} objects, {one['reason']}: {where}")
    for one in told.get("reanalysed", ()):
        print(f"  queued again: {one['series_instance_uid']} as job {one['job_id']}")
    for name, what in (("not_rejected", "not rejected"), ("not_reanalysed", "not queued again")):
        for one in told.get(name, ()):
            which = one.get("sop_instance_uid") or one.get("series_instance_uid", "")
            print(f"  {what}: {which} {one['explanation']}")
