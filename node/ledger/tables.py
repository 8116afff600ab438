"""The tables of the ledger, the connection to them, and how a row is read."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from node.durable_tables import DurableTables
from node.ledger.records import (
    Counts,
    InstanceRow,
    Job,
    LedgerVersionError,
    SeriesDecision,
    SeriesRow,
    SeriesState,
)

SCHEMA_VERSION = 1

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
) STRICT;
CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (state);
CREATE TABLE IF NOT EXISTS waits (
    job_id TEXT NOT NULL REFERENCES jobs,
    destination TEXT NOT NULL,
    rounds INTEGER NOT NULL,
    waited_s REAL NOT NULL,
    PRIMARY KEY (job_id, destination)
) STRICT;
CREATE TABLE IF NOT EXISTS returned (
    series_instance_uid TEXT PRIMARY KEY REFERENCES series,
    at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit_seals (
    number INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT
"""


class Tables(DurableTables):
    """The database file of the ledger."""

    def __init__(self, path: Path) -> None:
        """Open or create the tables.

        Raises:
            sqlite3.DatabaseError: The file is damaged (`node.rebuild` makes it anew).
            LedgerVersionError: It is of another version of flairnode.
        """
        self.spool = path.parent / "spool"
        super().__init__(path)

    def _prepare(self, db: sqlite3.Connection) -> None:
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


def utc_now() -> str:
    """The moment, as the tables hold it."""
    return datetime.now(UTC).isoformat()


def moment(stored: str) -> datetime:
    """As it is stored."""
    return datetime.fromisoformat(stored)


def marks(values: Sequence[object]) -> str:
    """Question marks for the values of an IN (...)."""
    return ",".join("?" * len(values))


def remember_refusal(db: sqlite3.Connection, job_id: str, reason: str, explanation: str) -> None:
    """Note that a job is only to tell why."""
    db.execute("INSERT INTO refusals VALUES (?, ?, ?)", (job_id, reason, explanation))


def move_series(
    db: sqlite3.Connection,
    now: str,
    series_instance_uid: str,
    state: SeriesState,
    reason: str,
    explanation: str,
    job_id: str = "",
) -> None:
    """Bring a series to a state, and its history with it."""
    db.execute(
        "UPDATE series SET state = ?, reason = ?, explanation = ? WHERE series_instance_uid = ?",
        (state, reason, explanation, series_instance_uid),
    )
    remember(db, now, series_instance_uid, job_id, state, reason, explanation)


def remember(
    db: sqlite3.Connection,
    now: str,
    series_instance_uid: str,
    job_id: str,
    state: SeriesState,
    reason: str,
    explanation: str,
) -> None:
    """Add a line to the history of a series."""
    db.execute(
        "INSERT INTO outcomes (at, series_instance_uid, job_id, state, reason, explanation)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (now, series_instance_uid, job_id, state, reason, explanation),
    )


def note_decision(
    db: sqlite3.Connection, now: str, row: SeriesRow, decision: SeriesDecision
) -> None:
    """Keep what was decided of a series, and by which rule."""
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


def instance_row(row: sqlite3.Row) -> InstanceRow:
    """An instance as recorded."""
    return InstanceRow(
        sop_instance_uid=row["sop_instance_uid"],
        series_instance_uid=row["series_instance_uid"],
        study_instance_uid=row["study_instance_uid"],
        sop_class_uid=row["sop_class_uid"],
        digest=row["digest"],
        path=Path(row["path"]),
        received_at=datetime.fromisoformat(row["received_at"]),
    )


def series_row(row: sqlite3.Row) -> SeriesRow:
    """A series with its end and why."""
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


def job_row(row: sqlite3.Row) -> Job:
    """A job as it stands."""
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
