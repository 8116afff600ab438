"""What the ledger speaks of: rows, states, reasons, and the identity of a job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from dicom.errors import Outcome

REVISION_LENGTH = 20  # hex digits: 80 bits tell every set of instances of a site apart


class SeriesState(StrEnum):
    """Where a series or a job stands: on its way, or at one of its ends."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    DELIVERING = "delivering"
    DELIVERED = Outcome.DELIVERED.value
    SKIPPED = Outcome.SKIPPED.value
    NOT_ANALYSED = Outcome.NOT_ANALYSED.value
    HELD = Outcome.HELD.value
    FAILED = Outcome.FAILED.value


ENDS = frozenset(
    {
        SeriesState.DELIVERED,
        SeriesState.SKIPPED,
        SeriesState.NOT_ANALYSED,
        SeriesState.HELD,
        SeriesState.FAILED,
    }
)
UNFINISHED = (SeriesState.QUEUED, SeriesState.RUNNING, SeriesState.DELIVERING)

CANCELLED = "cancelled-by-operator"
CONFLICTING = "conflicting-instance"
LATER_FLAIR = "later-flair"
MIXED_PATIENT = "mixed-patient"
OTHER_FLAIR = "other-flair-chosen"
SUPERSEDED = "superseded"
MISSING_FILES = "missing-files"
RECALLED = "recalled"


class Recorded(StrEnum):
    """What an arriving instance turned out to be."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


class Counts(StrEnum):
    """Whether a peer confirmed that it holds exactly the instances we hold."""

    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"


class Word(StrEnum):
    """What a destination last said of committing to an object."""

    ASKED = "asked"
    """Nothing yet."""
    NOT_TAKEN = "not-taken"
    """The request did not reach it, or it refused to be asked."""
    COMMITTED = "committed"
    FAILED = "failed"


class LedgerVersionError(Exception):
    """The tables are of another version of flairnode. They are left as they are."""


class UnknownJobError(LookupError):
    """No job of that id."""


class RetryRefusedError(ValueError):
    """The job or series is in a state that a retry cannot change. The message says which."""


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """One instance that lies on disk: written, synchronised, under its final name."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    digest: str
    """SHA-256 of the dataset as it was sent, without file meta information."""
    path: Path
    """Relative to `data_dir/spool`."""
    calling_ae_title: str = ""


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """An instance as recorded."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    digest: str
    path: Path
    """Relative to `data_dir/spool`."""
    received_at: datetime


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study that still has a series in `RECEIVING`."""

    study_instance_uid: str
    receiving_series: int
    instances: int


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """A series, with the end it came to and why."""

    series_instance_uid: str
    study_instance_uid: str
    state: SeriesState
    reason: str
    explanation: str
    score: float | None
    """Of the selection; None before it, or when the series was not scored."""
    counts: Counts
    instances: int
    revision: str
    """Of the latest job; "" without one."""
    job_id: str
    """The latest job; "" without one."""
    forced: bool
    """An operator asked for this series although another one of the study has a result."""
    calling_ae_title: str
    first_received_at: datetime
    last_received_at: datetime


@dataclass(frozen=True, slots=True)
class SeriesDecision:
    """What the selection says of one series."""

    series_instance_uid: str
    chosen: bool
    outcome: Outcome
    """The end of the series unless it is chosen."""
    reason: str
    explanation: str = ""
    score: float | None = None
    counts: Counts = Counts.UNCONFIRMED
    rule: str = ""
    """Id of the rule of the selection that decided; "" where the intake decided otherwise."""
    change: str = ""
    """What would have to be otherwise."""
    rules_digest: str = ""
    """Of the rules in force."""


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """A decision as it was made: of every series, chosen or not."""

    at: datetime
    study_instance_uid: str
    series_instance_uid: str
    chosen: bool
    outcome: Outcome
    reason: str
    rule: str
    explanation: str
    change: str
    score: float | None
    rules_digest: str


@dataclass(frozen=True, slots=True)
class Job:
    """One revision of one series, to be analysed with one pack and one set of settings."""

    job_id: str
    workflow_id: str
    """Of the engine: the job id, with a suffix after an operator's retry or a rebuilt ledger."""
    study_instance_uid: str
    series_instance_uid: str
    revision: str
    pack_digest: str
    settings_digest: str
    predecessor: str | None
    """The job of an earlier revision of the same series."""
    counts: Counts
    state: SeriesState
    reason: str
    explanation: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """One object of a result at one destination."""

    job_id: str
    destination: str
    sop_instance_uid: str
    state: str
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Commitment:
    """Where one object stands with Storage Commitment at one destination."""

    word: Word
    failure_reason: int
    since: datetime
    """Of the first request after the last failure."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of the history of a series."""

    at: datetime
    series_instance_uid: str
    job_id: str
    state: SeriesState
    reason: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Oracle:
    """Received = the sum over all states, by SOP Instance UID; anything else is a loss."""

    received: int
    by_state: Mapping[SeriesState, int]
    conflicts: int
    missing_files: tuple[str, ...]
    """SOP Instance UIDs with a row, but without their file in the spool, and not discarded."""

    @property
    def balanced(self) -> bool:
        """Every instance stands in exactly one state, and its file is there."""
        return self.received == sum(self.by_state.values()) and not self.missing_files


def series_revision(series_instance_uid: str, digests: Mapping[str, str]) -> str:
    """Identity of an exact set of instances: SOP Instance UIDs and what they hold."""
    text = "\n".join([series_instance_uid, *(f"{uid} {digests[uid]}" for uid in sorted(digests))])
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:REVISION_LENGTH]


def job_identity(revision: str, pack_digest: str, settings_digest: str) -> str:
    """The id under which a second enqueue of the same work is a no-op."""
    return f"{revision}-{pack_digest[:12]}-{settings_digest[:8]}"


def note_digest(reason: str) -> str:
    """Stands for the settings in the identity of a job that only tells why: its reason does.

    No setting changes a note beside the model, and the same instances may be refused for another
    reason later, or be analysed.
    """
    return hashlib.sha256(f"not analysed: {reason}".encode()).hexdigest()
