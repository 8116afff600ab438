"""The side of keeping house: what is owed, what waits, what contradicts itself, and small facts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from node.ledger.jobs import JobTables
from node.ledger.records import (
    CANCELLED,
    CONFLICTING,
    ENDS,
    RECALLED,
    SUPERSEDED,
    InstanceRow,
    Job,
    ReceivedInstance,
    SeriesState,
    Word,
)
from node.ledger.tables import job_row, marks, move_series, utc_now

RESOLVED = "resolved-by-operator"
GOOD_ENDS = (SeriesState.DELIVERED, SeriesState.SKIPPED, SeriesState.NOT_ANALYSED)
"""Ends that no person and no peer has to do anything about, once their notes arrived."""
_MOOT = (RECALLED, SUPERSEDED, CANCELLED)


@dataclass(frozen=True, slots=True)
class Waited:
    """How long a result has been waiting for one destination."""

    rounds: int
    waited_s: float
    """While the node ran."""


@dataclass(frozen=True, slots=True)
class ConflictRow:
    """An object that came under the SOP Instance UID of another one, and is kept aside."""

    sop_instance_uid: str
    digest: str
    series_instance_uid: str
    """As the object itself says; the stored one may be of another series."""
    path: Path
    """Relative to `data_dir/spool`."""
    stored: InstanceRow
    """The one that came first."""


class UpkeepTables(JobTables):
    """Waiting deliveries, retention, conflicts, and facts that commands and service share."""

    # --- waiting for a destination -----------------------------------------------------------

    def waited(self, job_id: str, destination: str) -> Waited | None:
        """How long it waits, or None when it does not, or from now on anew."""
        rows = self._rows(
            "SELECT rounds, waited_s FROM waits WHERE job_id = ? AND destination = ?",
            (job_id, destination),
        )
        return Waited(rows[0]["rounds"], rows[0]["waited_s"]) if rows else None

    def record_wait(self, job_id: str, destination: str, waited: Waited) -> None:
        """Remember it over a restart."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO waits VALUES (?, ?, ?, ?)",
                (job_id, destination, waited.rounds, waited.waited_s),
            )

    def end_wait(self, job_id: str, destination: str) -> None:
        """It arrived, or it was given up."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM waits WHERE job_id = ? AND destination = ?", (job_id, destination)
            )

    def owe_again(self, job_id: str, destination: str, states: Sequence[str], anew: str) -> int:
        """An operator wants objects in one of these states to be sent once more; how many."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE deliveries SET state = ?, updated_at = ? WHERE job_id = ?"  # noqa: S608  # question marks
                f" AND destination = ? AND state IN ({marks(states)})",
                (anew, utc_now(), job_id, destination, *states),
            ).rowcount
            db.execute(
                "DELETE FROM waits WHERE job_id = ? AND destination = ?", (job_id, destination)
            )
            return changed

    def jobs_because(self, reason: str, limit: int = 100_000) -> list[Job]:
        """Jobs that came to an end for that reason, oldest first."""
        query = (
            f"SELECT * FROM jobs WHERE reason = ? AND state IN ({marks(tuple(ENDS))})"  # noqa: S608  # question marks
            " ORDER BY created_at LIMIT ?"
        )
        return [job_row(row) for row in self._rows(query, (reason, *ENDS, limit))]

    # --- retention ---------------------------------------------------------------------------

    def is_owed(
        self,
        job_id: str,
        destinations: Collection[str],
        settled: Collection[str],
        asked_after: datetime,
    ) -> bool:
        """May a destination, or a person, still need the files of a job?

        Args:
            job_id: The job.
            destinations: Peers that results go to; what another one lacks is no longer owed.
            settled: States of an object of which nothing more is to be done.
            asked_after: A request for commitment since then may still be answered.
        """
        job = self.job(job_id)
        if job.reason in _MOOT:
            return False
        if job.state not in GOOD_ENDS:
            return True
        peers, done = tuple(destinations), tuple(settled)
        missing = self._rows(
            "SELECT 1 FROM deliveries WHERE job_id = ?"  # noqa: S608  # question marks
            f" AND destination IN ({marks(peers)}) AND state NOT IN ({marks(done)}) LIMIT 1",
            (job_id, *peers, *done),
        )
        unanswered = self._rows(
            "SELECT 1 FROM commitments AS asked WHERE job_id = ? AND word = ?"  # noqa: S608  # question marks
            f" AND requested_at > ? AND destination IN ({marks(peers)}) AND NOT EXISTS ("
            "   SELECT 1 FROM commitments AS answer WHERE answer.job_id = asked.job_id"
            "   AND answer.destination = asked.destination AND answer.word = ?"
            "   AND answer.sop_instance_uid = asked.sop_instance_uid) LIMIT 1",
            (job_id, Word.ASKED, asked_after.isoformat(), *peers, Word.COMMITTED),
        )
        return bool(missing or unanswered)

    # --- conflicts ---------------------------------------------------------------------------

    def conflicts_of(self, series_instance_uid: str) -> list[ConflictRow]:
        """Every object that contradicts one of a series, or is of it and contradicts another."""
        rows = self._rows(
            "SELECT conflicts.* FROM conflicts JOIN instances USING (sop_instance_uid)"
            " WHERE ? IN (conflicts.series_instance_uid, instances.series_instance_uid)"
            " ORDER BY sop_instance_uid, conflicts.received_at",
            (series_instance_uid,),
        )
        return [
            ConflictRow(
                row["sop_instance_uid"],
                row["digest"],
                row["series_instance_uid"],
                Path(row["path"]),
                stored,
            )
            for row in rows
            if (stored := self.instance(row["sop_instance_uid"])) is not None
        ]

    def resolve_conflict(self, sop_instance_uid: str, received: ReceivedInstance | None) -> None:
        """End the contradiction about one instance; its series are decided again when silent.

        Args:
            sop_instance_uid: The instance.
            received: What takes the place of the stored one, already on disk under its path; None
                keeps the stored one.
        """
        with self._transaction() as db:
            now = utc_now()
            touched = {
                row["series_instance_uid"]
                for table in ("conflicts", "instances")
                for row in db.execute(
                    f"SELECT series_instance_uid FROM {table} WHERE sop_instance_uid = ?",  # noqa: S608  # our own words
                    (sop_instance_uid,),
                )
            }
            db.execute("DELETE FROM conflicts WHERE sop_instance_uid = ?", (sop_instance_uid,))
            if received is not None:
                db.execute(
                    "UPDATE instances SET digest = ?, path = ?, series_instance_uid = ?,"
                    " study_instance_uid = ?, sop_class_uid = ? WHERE sop_instance_uid = ?",
                    (
                        received.digest,
                        received.path.as_posix(),
                        received.series_instance_uid,
                        received.study_instance_uid,
                        received.sop_class_uid,
                        sop_instance_uid,
                    ),
                )
            for uid in sorted(touched):
                row = self.series(uid)
                if row is None or row.reason != CONFLICTING or self.has_conflict(uid):
                    continue
                move_series(db, now, uid, SeriesState.RECEIVING, RESOLVED, "")

    # --- facts -------------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        """What is remembered under that name."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", (name,))
        return str(rows[0]["value"]) if rows else None

    def remember_fact(self, name: str, value: str) -> None:
        """Remember it, instead of what was there."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, value, utc_now()))

    def seal_audit(self, number: int, digest: str) -> None:
        """Remember how far the audit trail goes: it cannot be cut back behind that unseen."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO audit_seals VALUES (?, ?, ?)", (number, digest, utc_now())
            )

    def audit_seals(self) -> dict[int, str]:
        """Digest by line number, for every seal."""
        return {
            row["number"]: row["digest"]
            for row in self._rows("SELECT number, digest FROM audit_seals ORDER BY number")
        }
