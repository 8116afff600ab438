"""What was received, what became of it, and what is still owed: the node's own tables.

The ledger is authoritative. The engine's database only drives work; both can be made again from the
spool and from `outcome.json` beside each result (`node.rebuild`). Nothing here names a patient.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

from dicom.errors import Outcome
from dicom.reference import DocumentReference

SCHEMA_VERSION = 1
REVISION_LENGTH = 20  # hex digits: 80 bits tell every set of instances of a site apart
BUSY_TIMEOUT_MS = 30_000  # a worker or a command line may hold the write lock for a moment


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
# A series with a job in one of these has, or will have, a result that a reader sees.
_HAS_RESULT = frozenset({*UNFINISHED, SeriesState.DELIVERED, SeriesState.HELD})

CANCELLED = "cancelled-by-operator"
CONFLICTING = "conflicting-instance"
LATER_FLAIR = "later-flair"
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


_SCHEMA = f"""
CREATE TABLE series (
    series_instance_uid TEXT PRIMARY KEY,
    study_instance_uid TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    explanation TEXT NOT NULL DEFAULT '',
    score REAL,
    counts TEXT NOT NULL DEFAULT 'unconfirmed',
    job_id TEXT NOT NULL DEFAULT '',
    forced INTEGER NOT NULL DEFAULT 0,
    calling_ae_title TEXT NOT NULL DEFAULT '',
    first_received_at TEXT NOT NULL,
    last_received_at TEXT NOT NULL,
    discarded_at TEXT
) STRICT;
CREATE INDEX series_by_study ON series (study_instance_uid);
CREATE INDEX series_by_state ON series (state);
CREATE TABLE instances (
    sop_instance_uid TEXT PRIMARY KEY,
    series_instance_uid TEXT NOT NULL REFERENCES series,
    study_instance_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    digest TEXT NOT NULL,
    path TEXT NOT NULL,
    received_at TEXT NOT NULL
) STRICT;
CREATE INDEX instances_by_series ON instances (series_instance_uid);
CREATE TABLE conflicts (
    sop_instance_uid TEXT NOT NULL,
    digest TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    path TEXT NOT NULL,
    received_at TEXT NOT NULL,
    PRIMARY KEY (sop_instance_uid, digest)
) STRICT;
CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL UNIQUE,
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL REFERENCES series,
    revision TEXT NOT NULL,
    pack_digest TEXT NOT NULL,
    settings_digest TEXT NOT NULL,
    predecessor TEXT,
    counts TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    explanation TEXT NOT NULL DEFAULT '',
    retries INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state);
CREATE INDEX jobs_by_series ON jobs (series_instance_uid);
CREATE TABLE job_instances (
    job_id TEXT NOT NULL REFERENCES jobs,
    sop_instance_uid TEXT NOT NULL REFERENCES instances,
    PRIMARY KEY (job_id, sop_instance_uid)
) STRICT;
CREATE TABLE outcomes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    job_id TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    explanation TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX outcomes_by_series ON outcomes (series_instance_uid);
CREATE TABLE deliveries (
    job_id TEXT NOT NULL REFERENCES jobs,
    destination TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    state TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (job_id, destination, sop_instance_uid)
) STRICT;
PRAGMA user_version = {SCHEMA_VERSION};
"""
# Jobs that only tell why a series is not analysed. A table that an older ledger of this version
# lacks is added to it; nothing else in it changes.
_REFUSALS = """
CREATE TABLE IF NOT EXISTS refusals (
    job_id TEXT PRIMARY KEY REFERENCES jobs,
    reason TEXT NOT NULL,
    explanation TEXT NOT NULL
) STRICT
"""

# Beside the schema, not in it: a ledger of an earlier flairnode gets the table when it is opened,
# and one that goes back to it is not disturbed.
_DECISIONS = """
CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    chosen INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    rule TEXT NOT NULL,
    explanation TEXT NOT NULL,
    change TEXT NOT NULL,
    score REAL,
    rules_digest TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS decisions_by_series ON decisions (series_instance_uid);
"""

# Tables that came later and that an older flairnode leaves alone: no new schema version.
_ADDED = """
CREATE TABLE IF NOT EXISTS commitments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    transaction_uid TEXT NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs,
    destination TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    word TEXT NOT NULL,
    failure_reason INTEGER NOT NULL DEFAULT 0,
    requested_at TEXT NOT NULL,
    reported_at TEXT NOT NULL DEFAULT '',
    UNIQUE (transaction_uid, sop_instance_uid)
) STRICT;
CREATE INDEX IF NOT EXISTS commitments_by_job ON commitments (job_id, destination);
CREATE TABLE IF NOT EXISTS objects (
    job_id TEXT NOT NULL REFERENCES jobs,
    kind TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    PRIMARY KEY (job_id, sop_instance_uid)
) STRICT;
CREATE TABLE IF NOT EXISTS rejections (
    note_uid TEXT NOT NULL,
    destination TEXT NOT NULL,
    state TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (note_uid, destination)
) STRICT
"""


class Ledger:
    """`data_dir/intake.sqlite`: safe from several threads, and from several processes.

    One connection behind one lock: SQLite has a single writer anyway, and associations come and go
    with their threads. Every write is one IMMEDIATE transaction, durable when the call returns
    (write-ahead log, `synchronous=FULL`).
    """

    def __init__(self, path: Path) -> None:
        """Open or create the tables.

        Raises:
            sqlite3.DatabaseError: The file is damaged (`node.rebuild` makes it anew).
            LedgerVersionError: It is of another version of flairnode.
        """
        self.path = path
        self.spool = path.parent / "spool"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
            elif version != SCHEMA_VERSION:
                raise LedgerVersionError(
                    f"{self.path.name} has schema {version}; this flairnode knows {SCHEMA_VERSION}"
                )
            db.execute(_REFUSALS)
            for statement in (*_DECISIONS.split(";"), *_ADDED.split(";")):
                db.execute(statement)

    def close(self) -> None:
        """Close the connection; the ledger is of no use afterwards."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, query: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    # --- receiving ---------------------------------------------------------------------------

    def record(self, instance: ReceivedInstance) -> Recorded:
        """Enter an instance that is already durable on disk.

        A new instance of a closed series opens that series again: it becomes a new revision once
        the study is quiet. Only a conflict stays closed, since more slices do not solve it.
        """
        with self._transaction() as db:
            known = db.execute(
                "SELECT digest FROM instances WHERE sop_instance_uid = ?",
                (instance.sop_instance_uid,),
            ).fetchone()
            if known is not None:
                same = known["digest"] == instance.digest
                return Recorded.DUPLICATE if same else Recorded.CONFLICT
            now = _now()
            self._open_series(db, instance, now)
            db.execute(
                "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    instance.sop_instance_uid,
                    instance.series_instance_uid,
                    instance.study_instance_uid,
                    instance.sop_class_uid,
                    instance.digest,
                    instance.path.as_posix(),
                    now,
                ),
            )
            return Recorded.NEW

    def _open_series(self, db: sqlite3.Connection, instance: ReceivedInstance, now: str) -> None:
        uid = instance.series_instance_uid
        row = db.execute(
            "SELECT state, reason FROM series WHERE series_instance_uid = ?", (uid,)
        ).fetchone()
        if row is None:
            db.execute(
                "INSERT INTO series (series_instance_uid, study_instance_uid, state,"
                " calling_ae_title, first_received_at, last_received_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    uid,
                    instance.study_instance_uid,
                    SeriesState.RECEIVING,
                    instance.calling_ae_title,
                    now,
                    now,
                ),
            )
            _remember(db, now, uid, "", SeriesState.RECEIVING, "", "")
            return
        db.execute(
            "UPDATE series SET last_received_at = ? WHERE series_instance_uid = ?", (now, uid)
        )
        if row["state"] != SeriesState.RECEIVING and row["reason"] != CONFLICTING:
            _move_series(db, now, uid, SeriesState.RECEIVING, "late-instance", "")

    def record_conflict(self, instance: ReceivedInstance) -> None:
        """Hold the series whose SOP Instance UID came twice with different content.

        Args:
            instance: The later one; its path is where it was kept aside.
        """
        with self._transaction() as db:
            now = _now()
            db.execute(
                "INSERT OR IGNORE INTO conflicts VALUES (?, ?, ?, ?, ?)",
                (
                    instance.sop_instance_uid,
                    instance.digest,
                    instance.series_instance_uid,
                    instance.path.as_posix(),
                    now,
                ),
            )
            first = db.execute(
                "SELECT series_instance_uid FROM instances WHERE sop_instance_uid = ?",
                (instance.sop_instance_uid,),
            ).fetchone()
            if first["series_instance_uid"] != instance.series_instance_uid:
                self._open_series(db, instance, now)
            for uid in {first["series_instance_uid"], instance.series_instance_uid}:
                row = db.execute(
                    "SELECT reason FROM series WHERE series_instance_uid = ?", (uid,)
                ).fetchone()
                if row["reason"] != CONFLICTING:
                    explanation = (
                        "one SOP Instance UID arrived twice with different content; "
                        "the later one is kept in spool/conflicts"
                    )
                    _move_series(db, now, uid, SeriesState.HELD, CONFLICTING, explanation)

    def has_conflict(self, series_instance_uid: str) -> bool:
        """Did an instance of this series arrive twice with different content?"""
        return bool(
            self._rows(
                "SELECT 1 FROM conflicts LEFT JOIN instances USING (sop_instance_uid)"
                " WHERE ? IN (conflicts.series_instance_uid, instances.series_instance_uid)"
                " LIMIT 1",
                (series_instance_uid,),
            )
        )

    def instance(self, sop_instance_uid: str) -> InstanceRow | None:
        """The recorded instance, or None."""
        rows = self._rows("SELECT * FROM instances WHERE sop_instance_uid = ?", (sop_instance_uid,))
        return _instance(rows[0]) if rows else None

    def instances_of(self, series_instance_uid: str) -> list[InstanceRow]:
        """All instances of a series, by SOP Instance UID."""
        return [
            _instance(row)
            for row in self._rows(
                "SELECT * FROM instances WHERE series_instance_uid = ? ORDER BY sop_instance_uid",
                (series_instance_uid,),
            )
        ]

    def receiving_studies(self) -> list[StudyRow]:
        """Studies with at least one series that still waits for its decision."""
        return [
            StudyRow(row["study_instance_uid"], row["receiving"], row["instances"])
            for row in self._rows(
                "SELECT study_instance_uid, COUNT(*) AS receiving, ("
                "   SELECT COUNT(*) FROM instances"
                "   WHERE instances.study_instance_uid = series.study_instance_uid) AS instances"
                " FROM series WHERE state = ? GROUP BY study_instance_uid"
                " ORDER BY MIN(first_received_at), study_instance_uid",
                (SeriesState.RECEIVING,),
            )
        ]

    def series_of(self, study_instance_uid: str) -> list[SeriesRow]:
        """Every series of a study, by arrival."""
        return self._series("study_instance_uid = ?", (study_instance_uid,))

    def series(self, series_instance_uid: str) -> SeriesRow | None:
        """One series, or None."""
        found = self._series("series.series_instance_uid = ?", (series_instance_uid,))
        return found[0] if found else None

    def all_series(self, state: SeriesState | None = None, limit: int = 1000) -> list[SeriesRow]:
        """Series of every study, the latest to receive something first."""
        where, parameters = ("1", ()) if state is None else ("state = ?", (state,))
        return self._series(where, parameters, f"last_received_at DESC LIMIT {int(limit)}")

    def _series(
        self, where: str, parameters: Sequence[object], order: str = "first_received_at"
    ) -> list[SeriesRow]:
        return [
            _series(row)
            for row in self._rows(
                "SELECT series.*, (SELECT COUNT(*) FROM instances"  # noqa: S608  # our own words
                "   WHERE instances.series_instance_uid = series.series_instance_uid"
                " ) AS instances, COALESCE((SELECT revision FROM jobs"
                "   WHERE jobs.job_id = series.job_id), '') AS revision"
                f" FROM series WHERE {where} ORDER BY {order}",
                parameters,
            )
        ]

    def quick_check(self) -> bool:
        """Is the database file sound?"""
        return [tuple(row) for row in self._rows("PRAGMA quick_check")] == [("ok",)]

    def sop_instance_uids(self) -> set[str]:
        """Of every recorded instance."""
        return {
            row["sop_instance_uid"] for row in self._rows("SELECT sop_instance_uid FROM instances")
        }

    def files_came_back(self, series_instance_uid: str) -> None:
        """Files of a series were sent again: if it waits for them, it is decided once more."""
        with self._transaction() as db:
            row = self.series(series_instance_uid)
            if row is not None and row.reason == MISSING_FILES:
                state, now = SeriesState.RECEIVING, _now()
                _move_series(db, now, series_instance_uid, state, "files-came-back", "")

    def look_again(self, series_instance_uid: str, held_for: Collection[str], why: str) -> bool:
        """Decide a series once more if it is held for one of these reasons; was it?"""
        with self._transaction() as db:
            row = self.series(series_instance_uid)
            if row is None or row.state is not SeriesState.HELD or row.reason not in held_for:
                return False
            _move_series(db, _now(), series_instance_uid, SeriesState.RECEIVING, why, "")
            return True

    def discardable(self, ended_before: datetime) -> list[SeriesRow]:
        """Delivered or skipped series that received nothing, and changed nothing, since then."""
        states = (SeriesState.DELIVERED, SeriesState.SKIPPED)
        return self._series(
            "state IN (?, ?) AND discarded_at IS NULL AND last_received_at < ?"
            " AND (SELECT MAX(at) FROM outcomes"
            "   WHERE outcomes.series_instance_uid = series.series_instance_uid) < ?",
            (*states, ended_before.isoformat(), ended_before.isoformat()),
        )

    def mark_discarded(self, series_instance_uid: str) -> None:
        """Remember that the files of a series are to be deleted. Its rows stay."""
        with self._transaction() as db:
            db.execute(
                "UPDATE series SET discarded_at = ? WHERE series_instance_uid = ?",
                (_now(), series_instance_uid),
            )

    # --- deciding ----------------------------------------------------------------------------

    def close_study(
        self,
        study_instance_uid: str,
        decisions: Iterable[SeriesDecision],
        pack_digest: str,
        settings_digest: str,
        seen: Mapping[str, int] | None = None,
        *,
        tell_why: bool = False,
    ) -> list[Job]:
        """Give every series in `RECEIVING` its end or its job, all in one transaction.

        Series that came to an end before keep it. A chosen series whose study already has a result
        of another series is held `later-flair`, unless an operator asked for it.

        With `seen`, the number of instances by series that the decisions rest on, a study that
        received more in the meantime stays as it is.

        With `tell_why` every FLAIR that is refused here gets a job as well: to make a note of the
        reason, and to deliver it. Every one, since each is a series that a reader may open and
        wonder about. But none where another FLAIR of the study is analysed, or was: then something
        did come, and which series it rests on it says itself.

        Returns:
            The unfinished jobs of this study, to be enqueued; enqueueing twice is harmless.
        """
        with self._transaction() as db:
            now = _now()
            series = {row.series_instance_uid: row for row in self.series_of(study_instance_uid)}
            if seen is not None and any(
                row.instances != seen.get(uid)
                for uid, row in series.items()
                if row.state is SeriesState.RECEIVING
            ):
                return []
            by_uid = {decision.series_instance_uid: decision for decision in decisions}
            incumbent = _incumbent(db, study_instance_uid)
            tell_why = tell_why and not any(one.chosen for one in by_uid.values())
            for uid, row in series.items():
                if row.state is not SeriesState.RECEIVING or uid not in by_uid:
                    continue
                decision, digests = by_uid[uid], (pack_digest, settings_digest)
                refused = decision.outcome is Outcome.NOT_ANALYSED and not decision.chosen
                if tell_why and refused and incumbent in (None, uid):
                    self._create_note_job(db, now, row, decision, pack_digest)
                else:
                    self._decide(db, now, row, decision, incumbent, digests)
            return [
                _job(row)
                for row in db.execute(
                    "SELECT * FROM jobs WHERE study_instance_uid = ?"  # noqa: S608  # question marks
                    f" AND state IN ({_marks(UNFINISHED)}) ORDER BY created_at",
                    (study_instance_uid, *UNFINISHED),
                )
            ]

    def _decide(
        self,
        db: sqlite3.Connection,
        now: str,
        row: SeriesRow,
        decision: SeriesDecision,
        incumbent: str | None,
        digests: tuple[str, str],
    ) -> None:
        uid = row.series_instance_uid
        _note_decision(db, now, row, decision)
        db.execute(
            "UPDATE series SET score = ?, counts = ? WHERE series_instance_uid = ?",
            (decision.score, decision.counts, uid),
        )
        # The series that a reader has a result of is analysed again when slices of it come late,
        # even if a better one arrived in the meantime.
        again = uid == incumbent and decision.reason == OTHER_FLAIR
        if not (decision.chosen or again or (row.forced and decision.reason == OTHER_FLAIR)):
            state = SeriesState(decision.outcome)
            _move_series(db, now, uid, state, decision.reason, decision.explanation)
        elif incumbent not in (None, uid) and not row.forced:
            explanation = (
                "another FLAIR of this study has a result; `flairnode jobs retry` with this "
                "Series Instance UID analyses this one as well"
            )
            _move_series(db, now, uid, SeriesState.HELD, LATER_FLAIR, explanation)
        else:
            self._create_job(db, now, row, decision.counts, digests)

    def _create_note_job(
        self,
        db: sqlite3.Connection,
        now: str,
        row: SeriesRow,
        decision: SeriesDecision,
        pack_digest: str,
    ) -> None:
        db.execute(
            "UPDATE series SET score = ?, counts = ? WHERE series_instance_uid = ?",
            (decision.score, decision.counts, row.series_instance_uid),
        )
        digests = (pack_digest, note_digest(decision.reason))
        self._create_job(db, now, row, decision.counts, digests, refused=decision)

    def _create_job(
        self,
        db: sqlite3.Connection,
        now: str,
        row: SeriesRow,
        counts: Counts,
        digests: tuple[str, str],
        refused: SeriesDecision | None = None,
    ) -> None:
        uid = row.series_instance_uid
        held = {
            found["sop_instance_uid"]: found["digest"]
            for found in db.execute(
                "SELECT sop_instance_uid, digest FROM instances WHERE series_instance_uid = ?",
                (uid,),
            )
        }
        revision = series_revision(uid, held)
        job_id = job_identity(revision, *digests)
        known = db.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if known is None:
            state, reason, explanation = SeriesState.QUEUED, "", ""
            if refused is not None:
                reason, explanation = refused.reason, refused.explanation
            self._insert_job(
                db,
                Job(
                    job_id=job_id,
                    workflow_id=job_id,
                    study_instance_uid=row.study_instance_uid,
                    series_instance_uid=uid,
                    revision=revision,
                    pack_digest=digests[0],
                    settings_digest=digests[1],
                    predecessor=row.job_id or None,
                    counts=counts,
                    state=state,
                    reason=reason,
                    explanation=explanation,
                    created_at=datetime.fromisoformat(now),
                    updated_at=datetime.fromisoformat(now),
                ),
                held,
            )
            if refused is not None:
                _remember_refusal(db, job_id, reason, explanation)
        else:  # the same instances as before: the same job, wherever it stands
            state, reason = SeriesState(known["state"]), known["reason"]
            explanation = known["explanation"]
        db.execute(
            "UPDATE series SET job_id = ?, forced = 0 WHERE series_instance_uid = ?", (job_id, uid)
        )
        _move_series(db, now, uid, state, reason, explanation, job_id)

    @staticmethod
    def _insert_job(db: sqlite3.Connection, job: Job, sop_instance_uids: Iterable[str]) -> None:
        db.execute(
            "INSERT INTO jobs (job_id, workflow_id, study_instance_uid, series_instance_uid,"
            " revision, pack_digest, settings_digest, predecessor, counts, state, reason,"
            " explanation, created_at, updated_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                job.job_id,
                job.workflow_id,
                job.study_instance_uid,
                job.series_instance_uid,
                job.revision,
                job.pack_digest,
                job.settings_digest,
                job.predecessor,
                job.counts,
                job.state,
                job.reason,
                job.explanation,
                job.created_at.isoformat(),
                job.updated_at.isoformat(),
            ),
        )
        db.executemany(
            "INSERT INTO job_instances VALUES (?, ?)",
            [(job.job_id, uid) for uid in sop_instance_uids],
        )

    def restore_job(
        self,
        job: Job,
        sop_instance_uids: Iterable[str],
        refusal: Mapping[str, str] | None = None,
    ) -> None:
        """Enter a job that an `outcome.json` remembers: only to rebuild a lost ledger."""
        with self._transaction() as db:
            now = _now()
            self._insert_job(db, job, sop_instance_uids)
            if refusal is not None:
                _remember_refusal(db, job.job_id, refusal["reason"], refusal["explanation"])
            db.execute(
                "UPDATE series SET job_id = ? WHERE series_instance_uid = ?",
                (job.job_id, job.series_instance_uid),
            )
            _remember(
                db, now, job.series_instance_uid, job.job_id, job.state, "rebuilt", job.explanation
            )

    def decisions_of(self, series_instance_uid: str) -> list[StoredDecision]:
        """Every decision on a series, the latest first."""
        return [
            StoredDecision(
                at=datetime.fromisoformat(row["at"]),
                study_instance_uid=row["study_instance_uid"],
                series_instance_uid=row["series_instance_uid"],
                chosen=bool(row["chosen"]),
                outcome=Outcome(row["outcome"]),
                reason=row["reason"],
                rule=row["rule"],
                explanation=row["explanation"],
                change=row["change"],
                score=row["score"],
                rules_digest=row["rules_digest"],
            )
            for row in self._rows(
                "SELECT * FROM decisions WHERE series_instance_uid = ? ORDER BY number DESC",
                (series_instance_uid,),
            )
        ]

    # --- working -----------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        """One job.

        Raises:
            UnknownJobError: There is none of that id.
        """
        rows = self._rows("SELECT * FROM jobs WHERE job_id = ?", (job_id,))
        if not rows:
            raise UnknownJobError(f"no job {job_id}")
        return _job(rows[0])

    def jobs(
        self, state: SeriesState | Sequence[SeriesState] | None = None, limit: int = 1000
    ) -> list[Job]:
        """Jobs, oldest first."""
        if state is None:
            where, parameters = "1", []
        else:
            parameters = [state] if isinstance(state, SeriesState) else list(state)
            where = f"state IN ({_marks(parameters)})"
        query = f"SELECT * FROM jobs WHERE {where} ORDER BY created_at LIMIT ?"  # noqa: S608
        return [_job(row) for row in self._rows(query, (*parameters, limit))]

    def jobs_of(self, series_instance_uid: str) -> list[Job]:
        """Every job of a series, oldest first: one per revision, pack and settings."""
        query = "SELECT * FROM jobs WHERE series_instance_uid = ? ORDER BY created_at"
        return [_job(row) for row in self._rows(query, (series_instance_uid,))]

    def jobs_named(self, beginning: str) -> list[Job]:
        """Jobs whose id begins so."""
        query = "SELECT * FROM jobs WHERE substr(job_id, 1, ?) = ? ORDER BY created_at"
        return [_job(row) for row in self._rows(query, (len(beginning), beginning))]

    def paths_of(self, job_id: str) -> list[Path]:
        """Absolute paths of exactly the instances of the job's revision.

        Instances that arrived after the study was closed are not among them.
        """
        return [
            self.spool / row["path"]
            for row in self._rows(
                "SELECT path FROM job_instances JOIN instances USING (sop_instance_uid)"
                " WHERE job_id = ? ORDER BY sop_instance_uid",
                (job_id,),
            )
        ]

    def sop_instances_of(self, job_id: str) -> list[str]:
        """SOP Instance UIDs of the job's revision."""
        query = "SELECT sop_instance_uid FROM job_instances WHERE job_id = ? ORDER BY 1"
        return [row["sop_instance_uid"] for row in self._rows(query, (job_id,))]

    def job_record(self, job_id: str) -> dict[str, object]:
        """What `outcome.json` holds under `job`, so that a lost ledger can be made again."""
        job = self.job(job_id)
        return {
            "job_id": job.job_id,
            "study_instance_uid": job.study_instance_uid,
            "series_instance_uid": job.series_instance_uid,
            "revision": job.revision,
            "pack_digest": job.pack_digest,
            "settings_digest": job.settings_digest,
            "predecessor": job.predecessor,
            "counts": job.counts.value,
            "created_at": job.created_at.isoformat(),
            "sop_instance_uids": self.sop_instances_of(job_id),
            "refusal": self.refusal_of(job_id),
        }

    def refusal_of(self, job_id: str) -> dict[str, str] | None:
        """Reason and explanation that a job is to make a note of; None for one that analyses."""
        rows = self._rows("SELECT * FROM refusals WHERE job_id = ?", (job_id,))
        if not rows:
            return None
        return {"reason": rows[0]["reason"], "explanation": rows[0]["explanation"]}

    def is_superseded(self, job_id: str) -> bool:
        """Have instances arrived that the job does not hold, or a conflict?

        A result of such a job must not be sent: it would describe a stack known to be incomplete.
        The engine ends it `skipped`, reason `superseded`; the next revision has its own job.
        """
        job = self.job(job_id)
        if self.has_conflict(job.series_instance_uid):
            return True
        query = (
            "SELECT COUNT(*) AS more FROM instances WHERE series_instance_uid = ?"
            " AND sop_instance_uid NOT IN"
            " (SELECT sop_instance_uid FROM job_instances WHERE job_id = ?)"
        )
        return bool(self._rows(query, (job.series_instance_uid, job_id))[0]["more"])

    def set_state(
        self, job_id: str, state: SeriesState | Outcome, reason: str = "", explanation: str = ""
    ) -> Job:
        """Move a job on, and its series with it unless late slices opened that one again.

        Setting the same state twice changes nothing. A job that an operator cancelled or recalled
        stays so.

        Returns:
            The job as it stands now.

        Raises:
            UnknownJobError: There is none of that id.
        """
        wanted = (SeriesState(state), reason, explanation)
        with self._transaction() as db:
            job = self.job(job_id)
            if (
                job.reason in (CANCELLED, RECALLED)
                or (job.state, job.reason, job.explanation) == wanted
            ):
                return job
            self._move_job(db, job, *wanted)
            return self.job(job_id)

    @staticmethod
    def _move_job(
        db: sqlite3.Connection, job: Job, state: SeriesState, reason: str, explanation: str
    ) -> None:
        now = _now()
        db.execute(
            "UPDATE jobs SET state = ?, reason = ?, explanation = ?, updated_at = ?"
            " WHERE job_id = ?",
            (state, reason, explanation, now, job.job_id),
        )
        current = db.execute(
            "SELECT 1 FROM series WHERE series_instance_uid = ? AND job_id = ? AND state <> ?"
            " AND reason <> ?",
            (job.series_instance_uid, job.job_id, SeriesState.RECEIVING, CONFLICTING),
        ).fetchone()
        uid = job.series_instance_uid
        if current is not None:
            _move_series(db, now, uid, state, reason, explanation, job.job_id)
        else:
            _remember(db, now, uid, job.job_id, state, reason, explanation)

    def record_delivery(
        self, job_id: str, destination: str, sop_instance_uid: str, state: str
    ) -> None:
        """Remember where one object of a result stands at one destination."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET state = excluded.state,"
                " updated_at = excluded.updated_at",
                (job_id, destination, sop_instance_uid, state, _now()),
            )

    def deliveries(self, job_id: str) -> list[Delivery]:
        """Every object of a job at every destination."""
        return [
            Delivery(
                row["job_id"],
                row["destination"],
                row["sop_instance_uid"],
                row["state"],
                datetime.fromisoformat(row["updated_at"]),
            )
            for row in self._rows(
                "SELECT * FROM deliveries WHERE job_id = ? ORDER BY destination, sop_instance_uid",
                (job_id,),
            )
        ]

    def undelivered(
        self, state: SeriesState, delivery_states: Sequence[str]
    ) -> list[tuple[str, str]]:
        """(destination, job id) of jobs in a state, with an object in one of these at it."""
        return [
            (row["destination"], row["job_id"])
            for row in self._rows(
                "SELECT DISTINCT destination, job_id FROM deliveries JOIN jobs USING (job_id)"  # noqa: S608  # question marks
                f" WHERE jobs.state = ? AND deliveries.state IN ({_marks(delivery_states)})"
                " ORDER BY job_id, destination",
                (state, *delivery_states),
            )
        ]

    # --- storage commitment ------------------------------------------------------------------

    def ask_for_commitment(
        self, transaction_uid: str, job_id: str, destination: str, sop_instance_uids: Iterable[str]
    ) -> None:
        """Remember a request before it is made: its report may come to a restarted node."""
        with self._transaction() as db:
            now = _now()
            db.executemany(
                "INSERT INTO commitments (transaction_uid, job_id, destination, sop_instance_uid,"
                " word, requested_at) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (transaction_uid, job_id, destination, uid, Word.ASKED, now)
                    for uid in sop_instance_uids
                ],
            )

    def commitment_not_taken(self, transaction_uid: str) -> None:
        """The peer did not take the request; a report that comes all the same is still known."""
        with self._transaction() as db:
            db.execute(
                "UPDATE commitments SET word = ? WHERE transaction_uid = ? AND word = ?",
                (Word.NOT_TAKEN, transaction_uid, Word.ASKED),
            )

    def record_commitment(
        self, transaction_uid: str, committed: Iterable[str], failed: Mapping[str, int]
    ) -> tuple[str, str] | None:
        """Enter a report; the same report once more changes nothing.

        Returns:
            Job and destination, or None where nobody asked for this transaction.
        """
        words = [(Word.COMMITTED, 0, uid) for uid in committed]
        words += [(Word.FAILED, reason, uid) for uid, reason in failed.items()]
        with self._transaction() as db:
            asked = db.execute(
                "SELECT job_id, destination FROM commitments WHERE transaction_uid = ?",
                (transaction_uid,),
            ).fetchone()
            if asked is None:
                return None
            now = _now()
            db.executemany(
                "UPDATE commitments SET word = ?, failure_reason = ?, reported_at = ?"
                " WHERE transaction_uid = ? AND sop_instance_uid = ?",
                [(word, reason, now, transaction_uid, uid) for word, reason, uid in words],
            )
            return str(asked["job_id"]), str(asked["destination"])

    def commitments(self, job_id: str, destination: str) -> dict[str, Commitment]:
        """By SOP Instance UID, for every object that commitment was ever asked for."""
        found: dict[str, Commitment] = {}
        for row in self._rows(
            "SELECT * FROM commitments WHERE job_id = ? AND destination = ? ORDER BY number",
            (job_id, destination),
        ):
            uid, word = row["sop_instance_uid"], Word(row["word"])
            before = found.get(uid)
            begun = before is not None and before.word is not Word.FAILED
            since = before.since if before and begun else _moment(row["requested_at"])
            if before and begun and before.word is Word.COMMITTED and word is not Word.FAILED:
                word = Word.COMMITTED  # a request that crossed the report of an earlier one
            found[uid] = Commitment(word, row["failure_reason"], since)
        return found

    # --- the operator ------------------------------------------------------------------------

    def retry(self, job_id: str) -> Job:
        """Queue an ended job once more, under a new workflow id; the sweep of the service sees it.

        Raises:
            UnknownJobError: There is none of that id.
            RetryRefusedError: It has not ended, or it was delivered, or its input has changed.
        """
        with self._transaction() as db:
            job = self.job(job_id)
            if job.state not in ENDS:
                raise RetryRefusedError(f"job {job_id} is {job.state}: it has not ended")
            if job.reason == RECALLED:
                raise RetryRefusedError(
                    f"job {job_id} is recalled: `flairnode recall --reanalyse` makes another"
                )
            if job.state is SeriesState.DELIVERED:
                raise RetryRefusedError(f"job {job_id} is delivered: there is nothing to do")
            if self.is_superseded(job_id):
                raise RetryRefusedError(
                    f"job {job_id} is out of date: its series has other instances now"
                )
            db.execute(
                "UPDATE jobs SET retries = retries + 1,"
                " workflow_id = job_id || '.' || (retries + 1) WHERE job_id = ?",
                (job_id,),
            )
            self._move_job(db, job, SeriesState.QUEUED, "retried-by-operator", "")
            return self.job(job_id)

    def reopen_series(self, series_instance_uid: str) -> SeriesRow:
        """Decide a series once more, after another quiet period.

        A series held `later-flair` is then analysed although another one has a result. One that is
        incomplete or conflicting is only looked at again: it is held as long as it is so.

        Raises:
            UnknownJobError: There is no such series.
            RetryRefusedError: It is still receiving, or its job has not ended or is delivered.
        """
        with self._transaction() as db:
            row = self.series(series_instance_uid)
            if row is None:
                raise UnknownJobError(f"no series {series_instance_uid}")
            if row.state not in ENDS or row.state is SeriesState.DELIVERED:
                raise RetryRefusedError(f"series {series_instance_uid} is {row.state}")
            forced = row.reason in (LATER_FLAIR, OTHER_FLAIR)
            db.execute(
                "UPDATE series SET forced = ? WHERE series_instance_uid = ?",
                (int(forced), series_instance_uid),
            )
            _move_series(
                db,
                _now(),
                series_instance_uid,
                SeriesState.RECEIVING,
                "retried-by-operator",
                "",
            )
            return next(iter(self._series("series_instance_uid = ?", (series_instance_uid,))))

    def cancel(self, job_id: str, explanation: str = "") -> Job:
        """End a job that is not at an end yet; the engine leaves it alone from its next step on.

        Raises:
            UnknownJobError: There is none of that id.
            RetryRefusedError: It has ended otherwise.
        """
        with self._transaction() as db:
            job = self.job(job_id)
            if job.reason == CANCELLED:
                return job
            if job.state in ENDS and job.state is not SeriesState.HELD:
                raise RetryRefusedError(f"job {job_id} has ended: {job.state}")
            self._move_job(db, job, SeriesState.SKIPPED, CANCELLED, explanation)
            return self.job(job_id)

    # --- recall ------------------------------------------------------------------------------

    def record_objects(self, job_id: str, objects: Iterable[tuple[str, DocumentReference]]) -> None:
        """Remember what a result consists of; the files are deleted one day."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO objects VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        job_id,
                        kind,
                        one.study_instance_uid,
                        one.series_instance_uid,
                        one.sop_class_uid,
                        one.sop_instance_uid,
                    )
                    for kind, one in objects
                ],
            )

    def objects_of(self, job_id: str) -> list[tuple[str, DocumentReference]]:
        """Kind and reference of every object of a result."""
        return [
            (
                row["kind"],
                DocumentReference(
                    row["study_instance_uid"],
                    row["series_instance_uid"],
                    row["sop_class_uid"],
                    row["sop_instance_uid"],
                ),
            )
            for row in self._rows(
                "SELECT * FROM objects WHERE job_id = ? ORDER BY rowid", (job_id,)
            )
        ]

    def jobs_of_pack(self, beginning: str) -> list[Job]:
        """Jobs whose pack digest begins so, oldest first."""
        query = "SELECT * FROM jobs WHERE substr(pack_digest, 1, ?) = ? ORDER BY created_at"
        return [_job(row) for row in self._rows(query, (len(beginning), beginning))]

    def recall(self, job_id: str, explanation: str) -> Job:
        """Withdraw a job: it is not worked on any more, and its result is not sent any more.

        What was delivered stays `delivered`, reason `recalled`; what was not ends `skipped`.
        """
        with self._transaction() as db:
            job = self.job(job_id)
            if job.reason == RECALLED:
                return job
            sent = bool(self.deliveries(job_id)) or job.state is SeriesState.DELIVERED
            state = SeriesState.DELIVERED if sent else SeriesState.SKIPPED
            self._move_job(db, job, state, RECALLED, explanation)
            return self.job(job_id)

    def analyse_again(
        self, series_instance_uid: str, pack_digest: str, settings_digest: str
    ) -> Job:
        """Queue a series with another model; the job before becomes the predecessor.

        Raises:
            UnknownJobError: There is no such series.
            RetryRefusedError: It waits or is worked on, its images are deleted, or it has a job
                with that model already.
        """
        with self._transaction() as db:
            row = self.series(series_instance_uid)
            if row is None:
                raise UnknownJobError(f"no series {series_instance_uid}")
            if row.state not in ENDS:
                raise RetryRefusedError(f"series {series_instance_uid} is {row.state}")
            before = row.job_id
            missing = [path for path in self.paths_of(before) if not path.is_file()]
            if missing or not before:
                raise RetryRefusedError(
                    f"series {series_instance_uid}: its images are not here any more; send them "
                    "again, then repeat this"
                )
            self._create_job(db, _now(), row, row.counts, (pack_digest, settings_digest))
            job = self.job(self._series_job(db, series_instance_uid))
            if job.state in ENDS:
                raise RetryRefusedError(
                    f"series {series_instance_uid} was analysed with that model: job {job.job_id} "
                    f"is {job.state} {job.reason}".rstrip()
                )
            return job

    @staticmethod
    def _series_job(db: sqlite3.Connection, series_instance_uid: str) -> str:
        row = db.execute(
            "SELECT job_id FROM series WHERE series_instance_uid = ?", (series_instance_uid,)
        ).fetchone()
        return str(row["job_id"])

    def record_rejection(self, note_uid: str, destination: str, state: str) -> None:
        """Remember where a rejection note stands at one destination."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO rejections VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET state = excluded.state, updated_at = excluded.updated_at",
                (note_uid, destination, state, _now()),
            )

    def rejections(self) -> dict[tuple[str, str], tuple[str, datetime]]:
        """State and time of every note at every destination, by note and destination."""
        return {
            (row["note_uid"], row["destination"]): (row["state"], _moment(row["updated_at"]))
            for row in self._rows("SELECT * FROM rejections")
        }

    def history(self, series_instance_uid: str) -> list[Transition]:
        """Everything that happened to a series, in order."""
        return [
            Transition(
                at=datetime.fromisoformat(row["at"]),
                series_instance_uid=row["series_instance_uid"],
                job_id=row["job_id"],
                state=SeriesState(row["state"]),
                reason=row["reason"],
                explanation=row["explanation"],
            )
            for row in self._rows(
                "SELECT * FROM outcomes WHERE series_instance_uid = ? ORDER BY number",
                (series_instance_uid,),
            )
        ]

    # --- the balance -------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Instances, conflicts, studies, series by state and jobs by state, for metrics."""
        found = {
            "instances": self._count("instances"),
            "conflicts": self._count("conflicts"),
            "series": self._count("series"),
            "jobs": self._count("jobs"),
        }
        for table in ("series", "jobs"):
            for row in self._rows(
                f"SELECT state, COUNT(*) AS count FROM {table} GROUP BY state"  # noqa: S608
            ):
                found[f"{table}.{row['state']}"] = row["count"]
        return found

    def _count(self, table: str) -> int:
        rows = self._rows(f"SELECT COUNT(*) AS count FROM {table}")  # noqa: S608
        return int(rows[0]["count"])

    def oracle(self) -> Oracle:
        """Does everything that was acknowledged stand somewhere, and lie on disk?"""
        by_state = {
            SeriesState(row["state"]): int(row["count"])
            for row in self._rows(
                "SELECT state, COUNT(*) AS count FROM instances"
                " JOIN series USING (series_instance_uid) GROUP BY state"
            )
        }
        missing = tuple(
            row["sop_instance_uid"]
            for row in self._rows(
                "SELECT sop_instance_uid, path FROM instances JOIN series"
                " USING (series_instance_uid) WHERE discarded_at IS NULL"
            )
            if not (self.spool / row["path"]).is_file()
        )
        return Oracle(self._count("instances"), by_state, self._count("conflicts"), missing)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _moment(stored: str) -> datetime:
    return datetime.fromisoformat(stored)


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _incumbent(db: sqlite3.Connection, study_instance_uid: str) -> str | None:
    """The series of the study that has, or will have, a result a reader sees.

    A note is no result: neither a job that only makes one, nor a refusal on its way out
    (`DELIVERING` with a reason), which ends `not_analysed`.
    """
    rows = db.execute(
        "SELECT series_instance_uid, state, reason FROM jobs WHERE study_instance_uid = ?"
        " AND job_id NOT IN (SELECT job_id FROM refusals) ORDER BY created_at",
        (study_instance_uid,),
    ).fetchall()
    for row in rows:
        state = SeriesState(row["state"])
        note_on_its_way = state is SeriesState.DELIVERING and row["reason"]
        recalled = row["reason"] == RECALLED
        if state in _HAS_RESULT and not note_on_its_way and not recalled:
            return str(row["series_instance_uid"])
    return None


def _remember_refusal(db: sqlite3.Connection, job_id: str, reason: str, explanation: str) -> None:
    db.execute("INSERT INTO refusals VALUES (?, ?, ?)", (job_id, reason, explanation))


def _move_series(
    db: sqlite3.Connection,
    now: str,
    series_instance_uid: str,
    state: SeriesState,
    reason: str,
    explanation: str,
    job_id: str = "",
) -> None:
    db.execute(
        "UPDATE series SET state = ?, reason = ?, explanation = ? WHERE series_instance_uid = ?",
        (state, reason, explanation, series_instance_uid),
    )
    _remember(db, now, series_instance_uid, job_id, state, reason, explanation)


def _remember(
    db: sqlite3.Connection,
    now: str,
    series_instance_uid: str,
    job_id: str,
    state: SeriesState,
    reason: str,
    explanation: str,
) -> None:
    db.execute(
        "INSERT INTO outcomes (at, series_instance_uid, job_id, state, reason, explanation)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (now, series_instance_uid, job_id, state, reason, explanation),
    )


def _note_decision(
    db: sqlite3.Connection, now: str, row: SeriesRow, decision: SeriesDecision
) -> None:
    db.execute(
        "INSERT INTO decisions (at, study_instance_uid, series_instance_uid, chosen, outcome,"
        " reason, rule, explanation, change, score, rules_digest)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            now,
            row.study_instance_uid,
            row.series_instance_uid,
            int(decision.chosen),
            decision.outcome,
            decision.reason,
            decision.rule,
            decision.explanation,
            decision.change,
            decision.score,
            decision.rules_digest,
        ),
    )


def _instance(row: sqlite3.Row) -> InstanceRow:
    return InstanceRow(
        sop_instance_uid=row["sop_instance_uid"],
        series_instance_uid=row["series_instance_uid"],
        study_instance_uid=row["study_instance_uid"],
        sop_class_uid=row["sop_class_uid"],
        digest=row["digest"],
        path=Path(row["path"]),
        received_at=datetime.fromisoformat(row["received_at"]),
    )


def _series(row: sqlite3.Row) -> SeriesRow:
    return SeriesRow(
        series_instance_uid=row["series_instance_uid"],
        study_instance_uid=row["study_instance_uid"],
        state=SeriesState(row["state"]),
        reason=row["reason"],
        explanation=row["explanation"],
        score=row["score"],
        counts=Counts(row["counts"]),
        instances=row["instances"],
        revision=row["revision"],
        job_id=row["job_id"],
        forced=bool(row["forced"]),
        calling_ae_title=row["calling_ae_title"],
        first_received_at=datetime.fromisoformat(row["first_received_at"]),
        last_received_at=datetime.fromisoformat(row["last_received_at"]),
    )


def _job(row: sqlite3.Row) -> Job:
    return Job(
        job_id=row["job_id"],
        workflow_id=row["workflow_id"],
        study_instance_uid=row["study_instance_uid"],
        series_instance_uid=row["series_instance_uid"],
        revision=row["revision"],
        pack_digest=row["pack_digest"],
        settings_digest=row["settings_digest"],
        predecessor=row["predecessor"],
        counts=Counts(row["counts"]),
        state=SeriesState(row["state"]),
        reason=row["reason"],
        explanation=row["explanation"],
        created_at=datetime.fromisoformat(row["created_at"]),
        updated_at=datetime.fromisoformat(row["updated_at"]),
    )
