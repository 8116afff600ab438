"""What is remembered of the peers that studies are fetched from: `data_dir/sources.sqlite`.

How far a change feed was read, which series are still to be looked at, what could not be taken,
and what an operator asked for. All of it can be lost: what a source holds is compared with the
ledger at each start. Several processes use the file: the service, `flairnode fetch` and
`flairnode check`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

import structlog

from dicom.network.orthanc_source import System
from node.durable_tables import DurableTables

log = structlog.get_logger(__name__)

SOURCES_FILE = "sources.sqlite"
SCHEMA_VERSION = 1


class RequestState(StrEnum):
    """Where a study stands that an operator asked for."""

    ASKED = "asked"
    FETCHED = "fetched"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far we are with one source."""

    name: str
    """Of the peer."""
    orthanc: str
    """Its own name, AE title and database version: which Orthanc it was when we last looked."""
    version: str
    first_seen: str
    cursor: int
    """Number of the last change that was read; -1: none yet."""
    anchor: str
    """That change itself. Another one under its number is of another database. "": not known."""
    reconciled_at: str
    """By Orthanc's clock, the begin of the last comparison that came to its end; "" if none."""
    looked_at: str
    trouble: str
    """Why the last look failed; "" if it did not."""
    trouble_since: str


@dataclass(frozen=True, slots=True)
class SourceSeries:
    """A series that a source was seen to list."""

    source: str
    remote_id: str
    """Orthanc's id; the Series Instance UID for DICOMweb."""
    series_instance_uid: str
    study_instance_uid: str
    open: bool
    """Still to be compared with what is here, and fetched."""
    again: bool
    """Fetch also what is here: the source lists the series under another patient identity."""
    listed: int
    missing: int
    """Instances listed and not here, when we last looked."""
    stamp: str
    """Of the series at the source when nothing was missing; "" before."""
    noted_at: str


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """A study that an operator asked for."""

    number: int
    study_instance_uid: str
    source: str
    state: RequestState
    reason: str
    explanation: str
    listed: int
    """Instances of MR series at the source."""
    fetched: int
    passed_over: int
    """Series of other modalities."""
    asked_at: str


_SCHEMA = f"""
CREATE TABLE sources (
    name TEXT PRIMARY KEY,
    orthanc TEXT NOT NULL DEFAULT '',
    version TEXT NOT NULL DEFAULT '',
    first_seen TEXT NOT NULL,
    cursor INTEGER NOT NULL DEFAULT -1,
    anchor TEXT NOT NULL DEFAULT '',
    reconciled_at TEXT NOT NULL DEFAULT '',
    looked_at TEXT NOT NULL DEFAULT '',
    trouble TEXT NOT NULL DEFAULT '',
    trouble_since TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE series (
    source TEXT NOT NULL,
    remote_id TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    open INTEGER NOT NULL,
    again INTEGER NOT NULL,
    listed INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0,
    stamp TEXT NOT NULL DEFAULT '',
    noted_at TEXT NOT NULL,
    PRIMARY KEY (source, remote_id)
) STRICT;
CREATE INDEX series_by_study ON series (study_instance_uid);
CREATE INDEX series_by_uid ON series (series_instance_uid);
CREATE INDEX series_open ON series (source, open, noted_at);
CREATE TABLE refusals (
    source TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    reason TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (source, sop_instance_uid)
) STRICT;
CREATE INDEX refusals_by_series ON refusals (series_instance_uid);
CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    study_instance_uid TEXT NOT NULL,
    source TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    explanation TEXT NOT NULL DEFAULT '',
    listed INTEGER NOT NULL DEFAULT 0,
    fetched INTEGER NOT NULL DEFAULT 0,
    passed_over INTEGER NOT NULL DEFAULT 0,
    asked_at TEXT NOT NULL
) STRICT;
PRAGMA user_version = {SCHEMA_VERSION};
"""


@dataclass(frozen=True, slots=True)
class Noted:
    """A series to be looked at."""

    remote_id: str
    series_instance_uid: str
    study_instance_uid: str


class SourceBook(DurableTables):
    """The tables of the sources. Every write is durable on return."""

    def __init__(self, data_dir: Path) -> None:
        """Open or create the tables. A damaged or foreign file is put aside: nothing is lost.

        Raises:
            sqlite3.OperationalError: The folder is not ours, or the disk is full.
        """
        try:
            super().__init__(data_dir / SOURCES_FILE)
        except sqlite3.OperationalError:
            raise  # locked or unreadable, not damaged
        except sqlite3.DatabaseError:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
            for suffix in ("", "-wal", "-shm"):
                old = data_dir / f"{SOURCES_FILE}{suffix}"
                if old.exists():
                    old.rename(data_dir / f"sources.{stamp}.damaged.sqlite{suffix}")
            log.exception("sources.damaged")
            self._open()

    def _prepare(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"{SOURCES_FILE} has schema {version}")

    # --- a source ----------------------------------------------------------------------------

    def standing(self, name: str) -> Standing | None:
        """How far we are with a source; None: it was never reached."""
        rows = self._rows("SELECT * FROM sources WHERE name = ?", (name,))
        return Standing(**dict(rows[0])) if rows else None

    def meet(self, name: str, system: System) -> bool:
        """Remember which Orthanc answers; False: it is another one than before."""
        orthanc = f"{system.name} {system.ae_title} database {system.database_version}"
        known = self.standing(name)
        if known is not None and (known.orthanc, known.version) == (orthanc, system.version):
            return True
        with self._transaction() as db:
            _remember_source(db, name)
            db.execute(
                "UPDATE sources SET orthanc = ?, version = ? WHERE name = ?",
                (orthanc, system.version, name),
            )
        return known is None or known.orthanc in ("", orthanc)

    def looked(self, name: str, trouble: str = "") -> None:
        """Remember that a source was looked at, and what went wrong, if anything did."""
        now = _now()
        with self._transaction() as db:
            _remember_source(db, name)
            db.execute(
                "UPDATE sources SET trouble_since = CASE WHEN ? = '' THEN ''"
                " WHEN trouble = '' THEN ? ELSE trouble_since END, trouble = ?,"
                " looked_at = CASE WHEN ? = '' THEN ? ELSE looked_at END WHERE name = ?",
                (trouble, now, trouble, trouble, now, name),
            )

    def advance(self, name: str, cursor: int, anchor: str, noted: Sequence[Noted] = ()) -> None:
        """The feed was read so far, and these series are to be looked at: both or neither."""
        with self._transaction() as db:
            _remember_source(db, name)
            for one in noted:
                _note(db, name, one)
            db.execute(
                "UPDATE sources SET cursor = ?, anchor = ? WHERE name = ?", (cursor, anchor, name)
            )

    def reconciled(self, name: str, began_at: str, keep_days: float) -> None:
        """A comparison came to its end; series that were not seen for long are forgotten."""
        before = (datetime.now(UTC) - timedelta(days=keep_days)).isoformat()
        with self._transaction() as db:
            _remember_source(db, name)
            db.execute("UPDATE sources SET reconciled_at = ? WHERE name = ?", (began_at, name))
            db.execute(
                "DELETE FROM series WHERE source = ? AND open = 0 AND noted_at < ?", (name, before)
            )
            db.execute("DELETE FROM refusals WHERE source = ? AND at < ?", (name, before))

    # --- its series --------------------------------------------------------------------------

    def note(self, name: str, noted: Sequence[Noted]) -> None:
        """These series are to be looked at."""
        if noted:
            with self._transaction() as db:
                for one in noted:
                    _note(db, name, one)

    def open_series(self, name: str, limit: int) -> list[SourceSeries]:
        """Series to be looked at, the latest first: a long comparison must not delay new ones."""
        rows = self._rows(
            "SELECT * FROM series WHERE source = ? AND open = 1"
            " ORDER BY noted_at DESC, remote_id LIMIT ?",
            (name, limit),
        )
        return [_series(row) for row in rows]

    def count_open(self, name: str) -> int:
        """How many series are to be looked at."""
        rows = self._rows(
            "SELECT COUNT(*) AS count FROM series WHERE source = ? AND open = 1", (name,)
        )
        return int(rows[0]["count"])

    def series(self, name: str, remote_id: str) -> SourceSeries | None:
        """One series of a source, or None."""
        rows = self._rows(
            "SELECT * FROM series WHERE source = ? AND remote_id = ?", (name, remote_id)
        )
        return _series(rows[0]) if rows else None

    def series_of_study(self, study_instance_uid: str) -> list[SourceSeries]:
        """Series of a study at every source."""
        return [
            _series(row)
            for row in self._rows(
                "SELECT * FROM series WHERE study_instance_uid = ?", (study_instance_uid,)
            )
        ]

    def sources_of(self, series_instance_uid: str) -> list[str]:
        """Names of the sources that were seen to list a series."""
        rows = self._rows(
            "SELECT DISTINCT source FROM series WHERE series_instance_uid = ? ORDER BY 1",
            (series_instance_uid,),
        )
        return [str(row["source"]) for row in rows]

    def compared(self, series: SourceSeries, *, listed: int, missing: int) -> None:
        """What the source lists of a series, before it is fetched."""
        if (series.listed, series.missing) == (listed, missing):
            return
        with self._transaction() as db:
            db.execute(
                "UPDATE series SET listed = ?, missing = ? WHERE source = ? AND remote_id = ?",
                (listed, missing, series.source, series.remote_id),
            )

    def settle(self, series: SourceSeries, *, listed: int, stamp: str) -> None:
        """Nothing of a series is missing here, and nothing more is expected for now.

        A series that was noted again in the meantime stays open.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE series SET open = 0, again = 0, listed = ?, missing = 0, stamp = ?"
                " WHERE source = ? AND remote_id = ? AND noted_at = ?",
                (listed, stamp, series.source, series.remote_id, series.noted_at),
            )

    # --- what could not be taken -------------------------------------------------------------

    def refuse(self, source: str, sop_instance_uid: str, series_uid: str, reason: str) -> None:
        """An instance that cannot be kept; it is not asked for again."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?, ?)",
                (source, sop_instance_uid, series_uid, reason, _now()),
            )

    def refusals(self, source: str, series_instance_uid: str) -> dict[str, str]:
        """Reasons by SOP Instance UID."""
        rows = self._rows(
            "SELECT sop_instance_uid, reason FROM refusals"
            " WHERE source = ? AND series_instance_uid = ?",
            (source, series_instance_uid),
        )
        return {str(row["sop_instance_uid"]): str(row["reason"]) for row in rows}

    def forgive(self, source: str, series_instance_uid: str) -> None:
        """Ask once more for what was refused of a series."""
        if self.refusals(source, series_instance_uid):
            with self._transaction() as db:
                db.execute(
                    "DELETE FROM refusals WHERE source = ? AND series_instance_uid = ?",
                    (source, series_instance_uid),
                )

    # --- what an operator asks for -----------------------------------------------------------

    def ask(self, study_instance_uid: str, source: str) -> FetchRequest:
        """Ask for a study; one that is asked for already is not asked for twice."""
        with self._transaction() as db:
            known = db.execute(
                "SELECT * FROM requests WHERE study_instance_uid = ? AND source = ? AND state = ?",
                (study_instance_uid, source, RequestState.ASKED),
            ).fetchone()
            if known is not None:
                return _request(known)
            number = db.execute(
                "INSERT INTO requests (study_instance_uid, source, state, asked_at)"
                " VALUES (?, ?, ?, ?)",
                (study_instance_uid, source, RequestState.ASKED, _now()),
            ).lastrowid
            row = db.execute("SELECT * FROM requests WHERE number = ?", (number,)).fetchone()
            return _request(row)

    def request(self, number: int) -> FetchRequest:
        """One request.

        Raises:
            LookupError: There is none of that number.
        """
        rows = self._rows("SELECT * FROM requests WHERE number = ?", (number,))
        if not rows:
            raise LookupError(f"no request {number}")
        return _request(rows[0])

    def asked(self) -> list[FetchRequest]:
        """What is asked for and not fetched yet, oldest first."""
        query = "SELECT * FROM requests WHERE state = ? ORDER BY number"
        return [_request(row) for row in self._rows(query, (RequestState.ASKED,))]

    def answer(self, request: FetchRequest) -> None:
        """Write down where a request stands."""
        with self._transaction() as db:
            db.execute(
                "UPDATE requests SET state = ?, reason = ?, explanation = ?, listed = ?,"
                " fetched = ?, passed_over = ? WHERE number = ?",
                (
                    request.state,
                    request.reason,
                    request.explanation,
                    request.listed,
                    request.fetched,
                    request.passed_over,
                    request.number,
                ),
            )


def _remember_source(db: sqlite3.Connection, name: str) -> None:
    db.execute("INSERT OR IGNORE INTO sources (name, first_seen) VALUES (?, ?)", (name, _now()))


def _note(db: sqlite3.Connection, name: str, one: Noted) -> None:
    # The same series under another id of Orthanc's: its Patient ID is another one. What lies there
    # is fetched although it is here, so that the intake compares the two and holds the series.
    twin = db.execute(
        "SELECT 1 FROM series WHERE source = ? AND series_instance_uid = ? AND remote_id <> ?",
        (name, one.series_instance_uid, one.remote_id),
    ).fetchone()
    db.execute(
        "INSERT INTO series (source, remote_id, series_instance_uid, study_instance_uid, open,"
        " again, noted_at) VALUES (?, ?, ?, ?, 1, ?, ?)"
        " ON CONFLICT DO UPDATE SET open = 1, noted_at = excluded.noted_at",
        (
            name,
            one.remote_id,
            one.series_instance_uid,
            one.study_instance_uid,
            int(twin is not None),
            _now(),
        ),
    )


def _series(row: sqlite3.Row) -> SourceSeries:
    return SourceSeries(
        source=row["source"],
        remote_id=row["remote_id"],
        series_instance_uid=row["series_instance_uid"],
        study_instance_uid=row["study_instance_uid"],
        open=bool(row["open"]),
        again=bool(row["again"]),
        listed=row["listed"],
        missing=row["missing"],
        stamp=row["stamp"],
        noted_at=row["noted_at"],
    )


def _request(row: sqlite3.Row) -> FetchRequest:
    return FetchRequest(
        number=row["number"],
        study_instance_uid=row["study_instance_uid"],
        source=row["source"],
        state=RequestState(row["state"]),
        reason=row["reason"],
        explanation=row["explanation"],
        listed=row["listed"],
        fetched=row["fetched"],
        passed_over=row["passed_over"],
        asked_at=row["asked_at"],
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
