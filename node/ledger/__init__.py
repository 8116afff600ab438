"""What was received, what became of it, and what is still owed: the node's own tables.

The ledger is authoritative. The engine's database only drives work; both can be made again from the
spool and from `outcome.json` beside each result (`node.rebuild`). Nothing here names a patient.
"""

from __future__ import annotations

from node.ledger.records import (
    CANCELLED,
    CONFLICTING,
    ENDS,
    LATER_FLAIR,
    MISSING_FILES,
    MIXED_PATIENT,
    OTHER_FLAIR,
    RECALLED,
    REVISION_LENGTH,
    SUPERSEDED,
    UNFINISHED,
    Commitment,
    Counts,
    Delivery,
    InstanceRow,
    Job,
    LedgerVersionError,
    Oracle,
    ReceivedInstance,
    Recorded,
    RetryRefusedError,
    SeriesDecision,
    SeriesRow,
    SeriesState,
    StoredDecision,
    StudyRow,
    Transition,
    UnknownJobError,
    Word,
    job_identity,
    note_digest,
    series_revision,
)
from node.ledger.tables import SCHEMA_VERSION
from node.ledger.upkeep import GOOD_ENDS, ConflictRow, UpkeepTables, Waited

__all__ = [
    "CANCELLED",
    "CONFLICTING",
    "ENDS",
    "GOOD_ENDS",
    "LATER_FLAIR",
    "MISSING_FILES",
    "MIXED_PATIENT",
    "OTHER_FLAIR",
    "RECALLED",
    "REVISION_LENGTH",
    "SCHEMA_VERSION",
    "SUPERSEDED",
    "UNFINISHED",
    "Commitment",
    "ConflictRow",
    "Counts",
    "Delivery",
    "InstanceRow",
    "Job",
    "Ledger",
    "LedgerVersionError",
    "Oracle",
    "ReceivedInstance",
    "Recorded",
    "RetryRefusedError",
    "SeriesDecision",
    "SeriesRow",
    "SeriesState",
    "StoredDecision",
    "StudyRow",
    "Transition",
    "UnknownJobError",
    "Waited",
    "Word",
    "job_identity",
    "note_digest",
    "series_revision",
]


class Ledger(UpkeepTables):
    """`data_dir/intake.sqlite`: safe from several threads, and from several processes.

    One connection behind one lock: SQLite has a single writer anyway, and associations come and go
    with their threads. Every write is one IMMEDIATE transaction, durable when the call returns
    (write-ahead log, `synchronous=FULL`); but for `record`, whose file in the spool is.
    """

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
