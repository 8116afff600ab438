"""What the page asks of the ledger: pages of studies, counts, ages. It only reads.

A connection of its own, opened for reading: a page that asks for much never makes a sender wait.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from node.ledger.records import ENDS, SeriesState
from node.ledger.tables import marks, moment

Tag = Callable[[str], str]
"""Keyed hash of an identifier: what a study is called outside the archive."""


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One study in a list: how far it came, by the series that matters most."""

    tag: str
    study_instance_uid: str
    series: int
    instances: int
    state: SeriesState
    """Of the series with a job, else of the one furthest from an end that is nobody's business."""
    reason: str
    calling_ae_title: str
    last_received_at: datetime


@dataclass(frozen=True, slots=True)
class StudyPage:
    """A part of the list."""

    lines: tuple[StudyLine, ...]
    total: int
    """Studies that the search finds."""
    first: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Jobs of one state."""

    state: SeriesState
    count: int
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A series that came to an end."""

    state: SeriesState
    reason: str
    tag: str
    """Of its study."""


# The series that a study is judged by: what runs, then what a person must look at, then results.
_WEIGHT = """CASE state
    WHEN 'running' THEN 0 WHEN 'delivering' THEN 1 WHEN 'queued' THEN 2 WHEN 'receiving' THEN 3
    WHEN 'failed' THEN 4 WHEN 'held' THEN 5 WHEN 'not_analysed' THEN 6 WHEN 'delivered' THEN 7
    ELSE 8 END"""
# SQLite takes the bare columns of a group from the row that holds its minimum.
_LINES = f"""
    SELECT study_instance_uid, MIN({_WEIGHT}), state, reason, calling_ae_title,
        COUNT(*) AS series,
        (SELECT MAX(last_received_at) FROM series AS own
            WHERE own.study_instance_uid = series.study_instance_uid) AS last_received_at,
        (SELECT COUNT(*) FROM instances JOIN series AS own USING (series_instance_uid)
            WHERE own.study_instance_uid = series.study_instance_uid) AS instances
    FROM series WHERE {{which}} GROUP BY study_instance_uid"""  # noqa: S608  # our own words
_CHANGED = """study_instance_uid IN (
    SELECT study_instance_uid FROM outcomes JOIN series USING (series_instance_uid)
        WHERE number > ?
    UNION SELECT study_instance_uid FROM instances WHERE rowid > ?)"""


class Overview:
    """The ledger at `path`, read only.

    A line for each study is kept and renewed as it changes: to judge 10,000 studies anew for every
    page would take SQLite half a second.
    """

    def __init__(self, path: Path, tag: Tag) -> None:
        self._path = path
        self._tag = tag
        self._lock = threading.Lock()
        self._lines: dict[str, StudyLine] = {}
        self._by_tag: dict[str, str] = {}
        self._seen = (-1, -1)
        """Highest number in `outcomes`, highest row of `instances`."""

    def studies(
        self,
        *,
        states: Collection[SeriesState] = (),
        tag: str = "",
        reason: str = "",
        study_instance_uids: Collection[str] | None = None,
        first: int = 0,
        count: int = 50,
    ) -> StudyPage:
        """Studies, the latest to receive something first.

        Args:
            states: Of the series that the study is judged by; empty: all.
            tag: Beginning of the tag of the study.
            reason: Of that series.
            study_instance_uids: Of these alone; None: of all.
            first: How many to leave out.
            count: How many to give.
        """
        found = [
            line
            for line in self._current()
            if (not states or line.state in states)
            and line.tag.startswith(tag)
            and (not reason or line.reason == reason)
            and (study_instance_uids is None or line.study_instance_uid in study_instance_uids)
        ]
        found.sort(key=lambda line: line.last_received_at, reverse=True)
        return StudyPage(tuple(found[first : first + count]), len(found), first)

    def study_of(self, tag: str) -> str | None:
        """The Study Instance UID behind a tag; None: there is none."""
        self._current()
        return self._by_tag.get(tag)

    def reasons(self) -> list[tuple[str, str, int]]:
        """(state, reason, series) of everything that came to an end, the most frequent first."""
        with self._connection() as db:
            return [
                (str(row["state"]), str(row["reason"]), int(row["count"]))
                for row in db.execute(
                    "SELECT state, reason, COUNT(*) AS count FROM series"
                    " GROUP BY state, reason ORDER BY count DESC"
                )
            ]

    def waiting(self) -> list[Waiting]:
        """Jobs that are not at an end, by state."""
        with self._connection() as db:
            return [
                Waiting(SeriesState(row["state"]), int(row["count"]), moment(row["oldest"]))
                for row in db.execute(
                    "SELECT state, COUNT(*) AS count, MIN(created_at) AS oldest FROM jobs"
                    " WHERE state IN ('queued', 'running', 'delivering') GROUP BY state"
                )
            ]

    def ended_since(self, number: int) -> tuple[int, list[Ended]]:
        """What came to an end after line `number` of the history, and the last line now."""
        with self._connection() as db:
            last = int(db.execute("SELECT COALESCE(MAX(number), 0) FROM outcomes").fetchone()[0])
            rows = db.execute(
                "SELECT outcomes.state, outcomes.reason, study_instance_uid FROM outcomes"  # noqa: S608
                " JOIN series USING (series_instance_uid)"
                f" WHERE number > ? AND number <= ? AND outcomes.state IN ({marks(tuple(ENDS))})"
                " ORDER BY number",
                (number, last, *(state.value for state in ENDS)),
            ).fetchall()
        return last, [
            Ended(SeriesState(row["state"]), row["reason"], self._tag(row["study_instance_uid"]))
            for row in rows
        ]

    def last_received_at(self) -> datetime | None:
        """When the last instance came; None: none did."""
        with self._connection() as db:
            latest = db.execute("SELECT MAX(last_received_at) FROM series").fetchone()[0]
        return None if latest is None else moment(latest)

    def version(self) -> str:
        """Another value whenever something has happened: what a live page compares."""
        with self._connection() as db:
            row = db.execute(
                "SELECT (SELECT MAX(number) FROM outcomes), (SELECT MAX(rowid) FROM instances),"
                " (SELECT MAX(updated_at) FROM jobs), (SELECT MAX(updated_at) FROM deliveries)"
            ).fetchone()
        return "|".join(map(str, row))

    def _line(self, row: sqlite3.Row) -> StudyLine:
        return StudyLine(
            tag=self._tag(row["study_instance_uid"]),
            study_instance_uid=row["study_instance_uid"],
            series=row["series"],
            instances=row["instances"],
            state=SeriesState(row["state"]),
            reason=row["reason"],
            calling_ae_title=row["calling_ae_title"],
            last_received_at=moment(row["last_received_at"]),
        )

    def _current(self) -> list[StudyLine]:
        """A line for each study, as the ledger stands now."""
        with self._lock, self._connection() as db:
            outcomes, instances = db.execute(
                "SELECT (SELECT COALESCE(MAX(number), 0) FROM outcomes),"
                " (SELECT COALESCE(MAX(rowid), 0) FROM instances)"
            ).fetchone()
            if outcomes < self._seen[0] or instances < self._seen[1]:  # rebuilt: another ledger
                self._lines, self._by_tag, self._seen = {}, {}, (-1, -1)
            if (outcomes, instances) != self._seen:
                everything = self._seen == (-1, -1)
                which, values = ("1", ()) if everything else (_CHANGED, self._seen)
                for row in db.execute(_LINES.format(which=which), values):
                    line = self._line(row)
                    self._lines[line.study_instance_uid] = line
                    self._by_tag[line.tag] = line.study_instance_uid
                self._seen = (outcomes, instances)
            return list(self._lines.values())

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """For one question: SQLite's connections do not pass between threads."""
        db = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        db.row_factory = sqlite3.Row
        try:
            yield db
        finally:
            db.close()
