"""The side of the workflow: jobs, deliveries, and the operator."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from dicom.errors import Outcome
from dicom.reference import DocumentReference
from node.ledger.records import (
    CANCELLED,
    CONFLICTING,
    ENDS,
    LATER_FLAIR,
    OTHER_FLAIR,
    RECALLED,
    Commitment,
    Delivery,
    Job,
    RetryRefusedError,
    SeriesRow,
    SeriesState,
    Transition,
    UnknownJobError,
    Word,
    series_revision,
)
from node.ledger.series import SeriesTables
from node.ledger.tables import job_row, marks, moment, move_series, remember, utc_now


class JobTables(SeriesTables):
    """What is owed, where it stands, and what an operator did about it."""

    # --- working -----------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        """One job.

        Raises:
            UnknownJobError: There is none of that id.
        """
        rows = self._rows("SELECT * FROM jobs WHERE job_id = ?", (job_id,))
        if not rows:
            raise UnknownJobError(f"no job {job_id}")
        return job_row(rows[0])

    def jobs(
        self, state: SeriesState | Sequence[SeriesState] | None = None, limit: int = 1000
    ) -> list[Job]:
        """Jobs, oldest first."""
        if state is None:
            where, parameters = "1", []
        else:
            parameters = [state] if isinstance(state, SeriesState) else list(state)
            where = f"state IN ({marks(parameters)})"
        query = f"SELECT * FROM jobs WHERE {where} ORDER BY created_at LIMIT ?"  # noqa: S608
        return [job_row(row) for row in self._rows(query, (*parameters, limit))]

    def jobs_of(self, series_instance_uid: str) -> list[Job]:
        """Every job of a series, oldest first: one per revision, pack and settings."""
        query = "SELECT * FROM jobs WHERE series_instance_uid = ? ORDER BY created_at"
        return [job_row(row) for row in self._rows(query, (series_instance_uid,))]

    def jobs_named(self, beginning: str) -> list[Job]:
        """Jobs whose id begins so."""
        query = "SELECT * FROM jobs WHERE substr(job_id, 1, ?) = ? ORDER BY created_at"
        return [job_row(row) for row in self._rows(query, (len(beginning), beginning))]

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
        """Have instances arrived that the job does not hold, a conflict, or other pixels for one?

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
        if self._rows(query, (job.series_instance_uid, job_id))[0]["more"]:
            return True
        # After a conflict was resolved an instance may hold other pixels than the job's.
        held = {
            row["sop_instance_uid"]: row["digest"]
            for row in self._rows(
                "SELECT sop_instance_uid, digest FROM job_instances"
                " JOIN instances USING (sop_instance_uid) WHERE job_id = ?",
                (job_id,),
            )
        }
        return series_revision(job.series_instance_uid, held) != job.revision

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
        now = utc_now()
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
            move_series(db, now, uid, state, reason, explanation, job.job_id)
        else:
            remember(db, now, uid, job.job_id, state, reason, explanation)

    def record_delivery(
        self, job_id: str, destination: str, sop_instance_uid: str, state: str
    ) -> None:
        """Remember where one object of a result stands at one destination."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET state = excluded.state,"
                " updated_at = excluded.updated_at",
                (job_id, destination, sop_instance_uid, state, utc_now()),
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
        self, state: SeriesState, delivery_states: Sequence[str], reason: str | None = None
    ) -> list[tuple[str, str]]:
        """(destination, job id) of jobs in a state, with an object in one of these at it.

        Args:
            state: Of the job.
            delivery_states: Of the object.
            reason: Of the job; None for any.
        """
        return [
            (row["destination"], row["job_id"])
            for row in self._rows(
                "SELECT DISTINCT destination, job_id FROM deliveries JOIN jobs USING (job_id)"  # noqa: S608  # question marks
                f" WHERE jobs.state = ? AND deliveries.state IN ({marks(delivery_states)})"
                " AND (? IS NULL OR jobs.reason = ?) ORDER BY jobs.created_at, destination",
                (state, *delivery_states, reason, reason),
            )
        ]

    # --- storage commitment ------------------------------------------------------------------

    def ask_for_commitment(
        self, transaction_uid: str, job_id: str, destination: str, sop_instance_uids: Iterable[str]
    ) -> None:
        """Remember a request before it is made: its report may come to a restarted node."""
        with self._transaction() as db:
            now = utc_now()
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
            now = utc_now()
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
            since = before.since if before and begun else moment(row["requested_at"])
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
            db.execute("DELETE FROM waits WHERE job_id = ?", (job_id,))  # patience begins anew
            # What is not at a destination is on its way there again, and says nothing of the end.
            db.execute(
                "UPDATE deliveries SET state = 'trying', updated_at = ? WHERE job_id = ?"
                " AND state IN ('unreachable', 'undeliverable', 'refused')",
                (utc_now(), job_id),
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
            move_series(
                db,
                utc_now(),
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
        return [job_row(row) for row in self._rows(query, (len(beginning), beginning))]

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
            self._create_job(db, utc_now(), row, row.counts, (pack_digest, settings_digest))
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
                (note_uid, destination, state, utc_now()),
            )

    def rejections(self) -> dict[tuple[str, str], tuple[str, datetime]]:
        """State and time of every note at every destination, by note and destination."""
        return {
            (row["note_uid"], row["destination"]): (row["state"], moment(row["updated_at"]))
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
