"""`flairnode cohort fetch`: a cohort out of an Orthanc, for `train prepare` and `validate run`.

    DIR/cohort.csv               the manifest that both read; paths start here
    DIR/cases/CASE/flair/        the FLAIR that the node would choose
    DIR/cases/CASE/reader1.dcm   the Segmentation that a reader drew on it; reader2.dcm: of a second
    DIR/rows/SESSION.json        what became of each study; it stays until this file is removed,
                                 but for a study that was not there, or not given
    DIR/studies.csv              which Study Instance UID a session is; it stays at the site

Patients and sessions are called by keyed hashes of the site's key, so the same patient has the same
pseudonym in every cohort of the site, and nobody without the key can guess whose it is. In the
files names, numbers, addresses and private attributes are removed. UIDs, dates and the face in the
pixels remain: this is a cohort to be kept at the site, not one to be given away.

Only Orthanc is asked (its search, and its files as they are stored); a study that lies under two
patients is refused, as everywhere in the node.
"""

from __future__ import annotations

import argparse
import csv
import getpass
import io
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from config.loader import load_settings
from config.settings import Settings
from dicom.attributes import items, text
from dicom.errors import Outcome, StudyError
from dicom.identity import MANUFACTURER, is_own_result
from dicom.network.orthanc_source import OrthancSource, SeriesHead
from dicom.network.scu import PeerError, PeerUnreachableError
from dicom.series import Series, read_study
from node.audit import Audit, AuditEvent
from node.cli import EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_ARGUMENTS
from node.durable import write_durably
from node.remotes import OrthancRemote
from node.sitekey import site_key, tag
from node.spool import is_uid
from pipeline.selection import choose

FETCHED, REFUSED, FAILED = "fetched", "refused", "failed"
STUDY_MISSING = "study-missing"
PARALLEL = 4
MOST_READERS = 2
COLUMNS = (
    "patient",
    "session",
    "image",
    "mask",
    "mask_rater2",
    "scanner",
    "field_strength_t",
    "sex",
    "age",
)
REMOVED = (
    "AccessionNumber",
    "AdmissionID",
    "CountryOfResidence",
    "DeviceSerialNumber",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "InstitutionName",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "MedicalRecordLocator",
    "MilitaryRank",
    "Occupation",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "PatientAddress",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientComments",
    "PatientInsurancePlanCodeSequence",
    "PatientReligiousPreference",
    "PatientTelephoneNumbers",
    "ReferencedPatientSequence",
    "RegionOfResidence",
    "RequestAttributesSequence",
    "StationName",
    "StudyID",
)
"""What may name a person or a place; beside every attribute of a person's name and private ones."""
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9]*)=([^,]+)")


class CohortStudyError(StudyError):
    """A study gives no case; the code says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Row:
    """What became of one study. Nothing here is of a person."""

    session: str
    state: str
    reason: str = ""
    explanation: str = ""
    patient: str = ""
    image: str = ""
    masks: list[str] = field(default_factory=list)
    """Of the readers, by the time of their Segmentations."""
    known: dict[str, str] = field(default_factory=dict)
    """Further columns of the manifest."""
    note: str = ""


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the group."""
    group = subparsers.add_parser(
        "cohort", help="gather a cohort", description="Gather a cohort from an archive."
    )
    commands = group.add_subparsers(title="commands", dest="cohort_command", required=True)
    fetch = commands.add_parser(
        "fetch",
        help="fetch FLAIR and readers' Segmentations of many studies from an Orthanc",
        description="Fetches the FLAIR that the node would choose, and the Segmentations that "
        "readers drew on it, of each study; writes DIR/cohort.csv with pseudonyms, which "
        "`flairnode train prepare` and `flairnode validate run --cohort` read. Goes on where it "
        "was stopped. Exit 0 when every study gave a case, else 3.",
    )
    fetch.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    fetch.add_argument("--source", help="name of the peer; not needed if only one is an Orthanc")
    fetch.add_argument(
        "--studies",
        required=True,
        metavar="FILE_OR_QUERY",
        help="a file with a Study Instance UID in each line, or what to look for: "
        "StudyDate=20250101-20251231,StudyDescription=*MS*",
    )
    fetch.add_argument("--output", type=Path, required=True, metavar="DIR")
    fetch.add_argument("--json", action="store_true", help="one JSON object on stdout")
    fetch.set_defaults(run=run_fetch)


def run_fetch(arguments: argparse.Namespace) -> int:
    """Fetch what is not here yet, write the manifest, and say what came of each study."""
    settings = load_settings(arguments.config)
    name, wrong = _source(settings, arguments.source)
    query: Mapping[str, str] = {}
    listed: list[str] = []
    if not wrong:
        listed, query, wrong = _asked(arguments.studies)
    if wrong:
        print(f"flairnode cohort fetch: {wrong}", file=sys.stderr)
        return EXIT_WRONG_ARGUMENTS
    source = OrthancSource(settings.peer(name))
    try:
        uids = listed or source.find_studies(query)
        _note(settings, name, len(uids))
        gatherer = Gatherer(source, settings, arguments.output)
        rows = gatherer.gather(uids)
    except PeerUnreachableError as error:
        print(
            f"flairnode cohort fetch: {error}; what is fetched stays: give the command again",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    finally:
        source.close()
    _tell(rows, as_json=arguments.json)
    return EXIT_DONE if rows and all(row.state == FETCHED for row in rows) else EXIT_REFUSED


def _source(settings: Settings, name: str | None) -> tuple[str, str]:
    names = [peer.name for peer in settings.peers if peer.orthanc_url is not None]
    if name is None and len(names) == 1:
        return names[0], ""
    if name in names:
        return str(name), ""
    return "", f"name an Orthanc with --source; peers with an orthanc_url: {', '.join(names)}"


def _asked(studies: str) -> tuple[list[str], dict[str, str], str]:
    """Study Instance UIDs, or a query, and what is wrong with either."""
    path = Path(studies)
    if path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        uids = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        for number, line in enumerate(uids, 1):
            if not is_uid(line):
                return [], {}, f"entry {number} of the file is no Study Instance UID"
        return uids, {}, "" if uids else "the file names no study"
    found = _QUERY.findall(studies)
    if ",".join(f"{key}={value}" for key, value in found) != studies:
        return [], {}, "--studies is neither a file nor KEYWORD=VALUE,KEYWORD=VALUE"
    return [], dict(found), ""


def _note(settings: Settings, source: str, count: int) -> None:
    data_dir = settings.node.data_dir
    Audit(data_dir / "audit", site_key(data_dir)).append(
        AuditEvent.OPERATOR,
        what="cohort fetch",
        user=getpass.getuser(),
        source=source,
        studies=str(count),
    )


class Gatherer:
    """Brings studies of one Orthanc into one folder."""

    def __init__(self, source: OrthancSource, settings: Settings, output: Path) -> None:
        self._source = source
        self._remote = OrthancRemote(source)
        self._settings = settings
        self._key = site_key(settings.node.data_dir)
        self._output = output

    def gather(self, study_instance_uids: Sequence[str]) -> list[Row]:
        """A row for each study, in their order; the manifest is written after each.

        Raises:
            PeerUnreachableError: The Orthanc fell silent.
        """
        for folder in (self._output, self._output / "cases", self._output / "rows"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sessions = {uid: f"S{tag(self._key, uid)}" for uid in study_instance_uids}
        write_durably(self._output / "studies.csv", _table(("session", "study"), _turned(sessions)))
        path, rows = self._output / "cohort.csv", []
        before = _lines_of(path)
        for number, (uid, session) in enumerate(sessions.items(), 1):
            row = self._kept(session)
            if row is None:
                row = self._row(uid, session)
                write_durably(
                    self._output / "rows" / f"{session}.json", json.dumps(_plain(row)).encode()
                )
            rows.append(row)
            write_durably(path, manifest(rows, before))
            print(f"{number}/{len(sessions)} {_line(row)}", file=sys.stderr)
        return rows

    def _kept(self, session: str) -> Row | None:
        try:
            row = Row(**json.loads((self._output / "rows" / f"{session}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        here = all((self._output / path).exists() for path in [row.image, *row.masks] if path)
        again = row.state == FAILED or row.reason == STUDY_MISSING
        return None if again or not here else row

    def _row(self, uid: str, session: str) -> Row:
        part = self._output / "cases" / f".{session}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        try:
            return self._fetch(uid, session, part)
        except CohortStudyError as error:
            return Row(session, REFUSED, error.code, str(error))
        except StudyError as error:
            return Row(session, REFUSED, error.reason, str(error))
        except PeerUnreachableError:
            raise
        except PeerError as error:
            return Row(session, FAILED, error.reason, str(error))
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _fetch(self, uid: str, session: str, part: Path) -> Row:
        heads = self._heads(uid)
        images = [head for head in heads if not self._remote.refusal(head)]
        if not images:
            raise CohortStudyError("no-mr", f"none of {len(heads)} series is of MR images")
        self._bring(images, part / "mr")
        flair = self._flair(part / "mr")
        patient = self._pseudonym(flair.header)
        drawn = [head for head in heads if head.modality == "SEG"]
        self._bring([one for one in drawn if one.manufacturer != MANUFACTURER], part / "seg")
        masks = _of_readers(part / "seg", flair)
        case = part / "case"
        (case / "flair").mkdir(parents=True, mode=0o700)
        for number, instance in enumerate(flair.instances, 1):
            _write(case / "flair" / f"{number:04}.dcm", dcmread(instance.path), patient)
        kept = masks if len(masks) <= MOST_READERS else []
        for number, mask in enumerate(kept, 1):
            _write(case / f"reader{number}.dcm", mask, patient)
        name = f"{patient}_{session}"
        place = self._output / "cases" / name
        shutil.rmtree(place, ignore_errors=True)
        case.rename(place)
        row = Row(
            session,
            FETCHED,
            patient=patient,
            image=f"cases/{name}/flair",
            masks=[f"cases/{name}/reader{number}.dcm" for number in range(1, len(kept) + 1)],
            known=_known(flair.header),
        )
        if not masks:
            row.note = "no Segmentation of a reader refers to the FLAIR: put a mask in cohort.csv"
        elif not kept:
            row.note = f"{len(masks)} Segmentations refer to the FLAIR, and nothing says which two"
        return row

    def _heads(self, uid: str) -> list[SeriesHead]:
        ids = self._source.study_ids(uid)
        if not ids:
            raise CohortStudyError(STUDY_MISSING, "the Orthanc holds no such study")
        if len(ids) > 1:
            raise CohortStudyError("two-patients", f"the study lies under {len(ids)} patients")
        return self._source.series_of(ids[0])

    def _bring(self, heads: Iterable[SeriesHead], folder: Path) -> None:
        """The files of these series, as the Orthanc stores them."""
        folder.mkdir(mode=0o700)
        wanted = [
            (f"{index:03}-{number:05}.dcm", instance)
            for index, head in enumerate(heads)
            for number, instance in enumerate(head.instances)
        ]

        def bring(one: tuple[str, str]) -> None:
            name, instance = one
            try:
                with self._source.file(instance) as pieces, (folder / name).open("wb") as file:
                    for piece in pieces:
                        file.write(piece)
            except LookupError as error:
                raise CohortStudyError(
                    "deleted-at-source", "an image was deleted there while it was fetched"
                ) from error

        with ThreadPoolExecutor(PARALLEL, "cohort") as pool:
            for _ in pool.map(bring, wanted):
                pass

    def _flair(self, folder: Path) -> Series:
        """The series that the node would analyse; its reason where it would analyse none."""
        study = read_study(folder)
        selection = choose(study, self._settings.selection)
        if selection.selected is not None:
            return next(s for s in study.series if s.series_instance_uid == selection.selected)
        refused = [one for one in selection.decisions if one.outcome is Outcome.NOT_ANALYSED]
        if refused:
            best = max(refused, key=lambda one: one.score)
            raise CohortStudyError(best.reason, best.explanation)
        raise CohortStudyError(
            "no-flair", f"none of the {len(study.series)} MR series is a FLAIR of the head"
        )

    def _pseudonym(self, header: Dataset) -> str:
        patient_id = text(header, "PatientID")
        if not patient_id:
            raise CohortStudyError("no-patient-id", "without a Patient ID nobody knows whose it is")
        return f"P{tag(self._key, patient_id + '^' + text(header, 'IssuerOfPatientID'))}"


def _of_readers(folder: Path, flair: Series) -> list[Dataset]:
    """Segmentations of others that refer to the FLAIR, the earliest first."""
    found = []
    for path in sorted(folder.iterdir()):
        seg = dcmread(path)
        if text(seg, "SOPClassUID") != SegmentationStorage or is_own_result(seg):
            continue
        referred = {
            text(one, "SeriesInstanceUID") for one in items(seg, "ReferencedSeriesSequence")
        }
        if flair.series_instance_uid in referred:
            found.append(seg)
    return sorted(
        found,
        key=lambda seg: (
            text(seg, "ContentDate") + text(seg, "ContentTime"),
            text(seg, "SOPInstanceUID"),
        ),
    )


def _known(header: Dataset) -> dict[str, str]:
    """What the header says of scanner and patient, as a manifest has it."""
    maker = (text(header, name) for name in ("Manufacturer", "ManufacturerModelName"))
    sex, age = text(header, "PatientSex"), re.fullmatch(r"0*(\d{1,3})Y", text(header, "PatientAge"))
    known = {
        "scanner": " ".join(filter(None, maker)),
        "field_strength_t": text(header, "MagneticFieldStrength"),
        "sex": sex if sex in ("F", "M", "O") else "",
        "age": age[1] if age and int(age[1]) <= 120 else "",
    }
    return {name: value for name, value in known.items() if value}


def _write(path: Path, dataset: Dataset, pseudonym: str) -> None:
    """A file without what may name a person or a place."""
    without_names(dataset, pseudonym)
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    write_durably(path, content.getvalue())


def without_names(dataset: Dataset, pseudonym: str) -> None:
    """Remove names, numbers, places and private attributes; pixels and UIDs stay."""
    dataset.remove_private_tags()
    _blank(dataset)
    dataset.PatientName = dataset.PatientID = pseudonym
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "flairnode cohort fetch: names and numbers; not dates, UIDs"


def _blank(dataset: Dataset) -> None:
    for element in list(dataset):
        if element.VR == "PN" or element.keyword in REMOVED:
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                _blank(item)


# --- what is written and said ----------------------------------------------------------------


def manifest(rows: Iterable[Row], before: Mapping[str, Mapping[str, str]]) -> bytes:
    """`cohort.csv`: a line for each case; what a person has filled in stays.

    Args:
        rows: Of every study.
        before: Lines of the manifest that is there, by session.
    """
    lines = []
    for row in rows:
        if row.image:
            first, second = (*row.masks, "", "")[:2]
            ours = {"patient": row.patient, "session": row.session, "image": row.image}
            ours |= {"mask": first, "mask_rater2": second, **row.known}
            filled = {name: value for name, value in ours.items() if value}
            lines.append({**before.get(row.session, {}), **filled})
    columns = list(dict.fromkeys((*COLUMNS, *(name for line in lines for name in line))))
    return _table(columns, [[line.get(name, "") for name in columns] for line in lines])


def _lines_of(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    table = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
    return {
        line["session"]: {name: value or "" for name, value in line.items() if name}
        for line in table
        if line.get("session")
    }


def _turned(sessions: Mapping[str, str]) -> list[list[str]]:
    return [[session, uid] for uid, session in sessions.items()]


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> bytes:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return written.getvalue().encode()


def _plain(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__}


def _line(row: Row) -> str:
    if row.state == FETCHED:
        readers = f"{len(row.masks)} reader{'' if len(row.masks) == 1 else 's'}"
        return f"{row.session}: {row.patient}, {readers}{'; ' if row.note else ''}{row.note}"
    return f"{row.session}: {row.state}: {row.reason}: {row.explanation}"


def _tell(rows: Sequence[Row], *, as_json: bool) -> None:
    fetched = [row for row in rows if row.state == FETCHED]
    with_mask = sum(bool(row.masks) for row in fetched)
    if as_json:
        told = {"studies": len(rows), "fetched": len(fetched), "with_mask": with_mask}
        print(json.dumps({**told, "rows": [_plain(replace(row)) for row in rows]}))
        return
    patients = len({row.patient for row in fetched})
    print(
        f"{len(fetched)} of {len(rows)} studies fetched, of {patients} patients; {with_mask} with "
        "a reader's Segmentation"
    )
    for row in rows:
        if row.state != FETCHED or row.note:
            print(f"  {_line(row)}")
