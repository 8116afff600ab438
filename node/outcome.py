"""What passes between service and worker on disk: the order of a job, and its result folder.

`results/<job_id>.order.json` says which files to analyse. `results/<job_id>/` holds the objects and
`outcome.json`; it appears by a rename, so whoever sees it sees all of it. Of a result that
retention removes, `history/<job_id>.json` keeps the few numbers that months are compared by
(`flairnode validate drift`): no UID, and nothing of a person.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread

from dicom.attributes import text
from dicom.errors import Outcome
from dicom.reference import DocumentReference
from node.durable import PART_SUFFIX, sync_directory, write_durably

OUTCOME_FILE = "outcome.json"
HISTORY = "history"
"""Beside `results`."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker needs to know of a job. It never opens the ledger: it may be another host."""

    workflow_id: str
    """Tells an operator's retry from the same work done again after a crash."""
    job: Mapping[str, Any]
    """The ledger's record of the job; goes into `outcome.json`, to rebuild a lost ledger from. With
    a `refusal` (reason, explanation) there is nothing to analyse: a note is to be made of it."""
    files: tuple[str, ...]
    """The instances of the job's revision, relative to `data_dir`."""
    predecessor: DocumentReference | None = None
    """The report of an earlier job of the series that a destination holds: to be named."""


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One object of a result."""

    kind: str
    sop_instance_uid: str
    path: Path


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How the analysis of a job ended."""

    outcome: Outcome
    reason: str
    explanation: str
    workflow_id: str
    """Of the order that led to it."""
    research: bool
    """The model is a research model: its results go to research destinations alone."""
    objects: tuple[ResultFile, ...]


class ResultsFolder:
    """`data_dir/results`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.folder = data_dir / "results"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def of(self, job_id: str) -> Path:
        """The folder of a job's result."""
        return self.folder / job_id

    def write_order(self, job_id: str, order: Order) -> None:
        """Say what is to be analysed; the same order once more changes nothing."""
        content = {
            "workflow_id": order.workflow_id,
            "job": dict(order.job),
            "files": list(order.files),
            "predecessor": None if order.predecessor is None else asdict(order.predecessor),
        }
        write_durably(self._order(job_id), json.dumps(content, indent=1).encode())

    def read_order(self, job_id: str) -> Order:
        """What is to be analysed."""
        content = json.loads(self._order(job_id).read_bytes())
        named = content.get("predecessor")
        return Order(
            content["workflow_id"],
            content["job"],
            tuple(content["files"]),
            None if named is None else DocumentReference(**named),
        )

    def read(self, job_id: str) -> JobOutcome | None:
        """How the analysis ended, or None while there is no result."""
        folder = self.of(job_id)
        try:
            content = json.loads((folder / OUTCOME_FILE).read_bytes())
        except FileNotFoundError:
            return None
        return JobOutcome(
            outcome=Outcome(content["outcome"]),
            reason=content["reason"],
            explanation=content["explanation"],
            workflow_id=content["workflow_id"],
            research=content["research"],
            objects=tuple(
                ResultFile(one["kind"], one["sop_instance_uid"], folder / one["file"])
                for one in content["objects"]
            ),
        )

    def documents(self, job_id: str) -> list[tuple[str, DocumentReference]]:
        """Kind and reference of every object of a result; none where there is none, or no more."""
        result = self.read(job_id)
        if result is None:
            return []
        return [(one.kind, _reference(one.path)) for one in result.objects if one.path.is_file()]

    def report(self, job_id: str) -> Mapping[str, Any]:
        """What the analysis told beside its objects; empty where it told nothing."""
        try:
            content = json.loads((self.of(job_id) / OUTCOME_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        found = content.get("report")
        return found if isinstance(found, dict) else {}

    def mark_recalled(self, job_id: str) -> None:
        """Leave word beside the result that it is withdrawn: a rebuilt ledger must not send it.

        Not in its folder, which a worker may be about to write.
        """
        write_durably(self._recalled(job_id), b"")

    def is_recalled(self, job_id: str) -> bool:
        """Was its result withdrawn?"""
        return self._recalled(job_id).exists()

    def begin(self, job_id: str) -> Path:
        """An empty folder to build a result in; what a crash left there is thrown away."""
        part = self._part(job_id)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        return part

    def finish(self, job_id: str, outcome: JobOutcome, order: Order, report: Any) -> None:  # noqa: ANN401  # JSON
        """Complete the folder that `begin` gave with its `outcome.json`, and let it appear."""
        part, folder = self._part(job_id), self.of(job_id)
        content = {
            "job": dict(order.job),
            "workflow_id": outcome.workflow_id,
            "outcome": outcome.outcome.value,
            "reason": outcome.reason,
            "explanation": outcome.explanation,
            "research": outcome.research,
            "objects": [
                {"kind": o.kind, "sop_instance_uid": o.sop_instance_uid, "file": o.path.name}
                for o in outcome.objects
            ],
            "report": report,
        }
        for path in part.iterdir():
            _make_durable(path)
        write_durably(part / OUTCOME_FILE, json.dumps(content, indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)  # of a failed attempt before an operator's retry
        part.rename(folder)
        sync_directory(self.folder)

    def has_anything(self, job_id: str) -> bool:
        """Is there a result, or what is left of one?"""
        return self.of(job_id).exists() or self._order(job_id).exists()

    def remove(self, job_id: str) -> None:
        """Delete the result and the order of a job, but for what months are compared by."""
        self._remember(job_id)
        shutil.rmtree(self.of(job_id), ignore_errors=True)
        self._order(job_id).unlink(missing_ok=True)
        self.attempts(job_id).unlink(missing_ok=True)
        self._recalled(job_id).unlink(missing_ok=True)

    def attempts(self, job_id: str) -> Path:
        """Where the worker notes its attempts at a job."""
        return self.folder / f"{job_id}.attempts"

    def relative(self, paths: Sequence[Path]) -> tuple[str, ...]:
        """Paths below `data_dir` as an order names them."""
        return tuple(path.relative_to(self.data_dir).as_posix() for path in paths)

    def _recalled(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.recalled"

    def _order(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.order.json"

    def _remember(self, job_id: str) -> None:
        try:
            content = json.loads((self.of(job_id) / OUTCOME_FILE).read_bytes())
            kept = _history(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # nothing that could be compared
        folder = self.data_dir / HISTORY
        with suppress(OSError):  # a full disk is why room is made: the result has to go
            folder.mkdir(mode=0o700, exist_ok=True)
            write_durably(folder / f"{job_id}.json", json.dumps(kept).encode())

    def _part(self, job_id: str) -> Path:
        return self.folder / f"{job_id}{PART_SUFFIX}"


def _reference(path: Path) -> DocumentReference:
    header = dcmread(
        path,
        stop_before_pixels=True,
        specific_tags=["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"],
    )
    return DocumentReference(
        text(header, "StudyInstanceUID"),
        text(header, "SeriesInstanceUID"),
        text(header, "SOPClassUID"),
        text(header, "SOPInstanceUID"),
    )


def _history(content: Mapping[str, Any]) -> dict[str, Any]:
    """The form of `outcome.json`, without objects, lesions, messages and UIDs."""
    job, report = content["job"], content.get("report") or {}
    findings, quality = report.get("findings"), report.get("quality")
    return {
        "job": {
            "created_at": job["created_at"],
            # Tells a second result of a series from the first, and cannot be turned back.
            "series_sha256": hashlib.sha256(job["series_instance_uid"].encode()).hexdigest(),
            "pack_digest": job["pack_digest"],
        },
        "outcome": content["outcome"],
        "reason": content["reason"],
        "report": {
            "findings": findings
            and {name: findings[name] for name in ("lesion_count", "total_volume_ml")},
            "quality": quality
            and {
                "verdict": quality["verdict"],
                "flags": [{"code": flag["code"]} for flag in quality["flags"]],
            },
            "acquisition": report.get("acquisition"),
        },
    }


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
