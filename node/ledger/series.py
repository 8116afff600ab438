"""The side of the intake: instances, series, the end of a study, and the jobs it gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from dicom.errors import Outcome
from node.ledger.records import (
    CONFLICTING,
    LATER_FLAIR,
    MISSING_FILES,
    OTHER_FLAIR,
    RECALLED,
    SUPERSEDED,
    UNFINISHED,
    Counts,
    InstanceRow,
    Job,
    ReceivedInstance,
    Recorded,
    SeriesDecision,
    SeriesRow,
    SeriesState,
    StoredDecision,
    StudyRow,
    job_identity,
    note_digest,
    series_revision,
)
from node.ledger.tables import (
    Tables,
    instance_row,
    job_row,
    marks,
    move_series,
    note_decision,
    remember,
    remember_refusal,
    series_row,
    utc_now,
)

# A series with a job in one of these has, or will have, a result that a reader sees.
_HAS_RESULT = frozenset({*UNFINISHED, SeriesState.DELIVERED, SeriesState.HELD})


class SeriesTables(Tables):
    """What was received, and what is decided about it."""

    # --- receiving ---------------------------------------------------------------------------

    def record(self, instance: ReceivedInstance) -> Recorded:
        """Enter an instance that is already durable on disk.

        A new instance of a closed series opens that series again: it becomes a new revision once
        the study is quiet. Only a conflict stays closed, since more slices do not solve it.
        The file is the promise: a row that a power cut takes is made again from it at the next
        start (`node.intake.record_spool`).
        """
        with self._transaction_of_a_file() as db:
            known = db.execute(
                "SELECT digest FROM instances WHERE sop_instance_uid = ?",
                (instance.sop_instance_uid,),
            ).fetchone()
            if known is not None:
                same = known["digest"] == instance.digest
                return Recorded.DUPLICATE if same else Recorded.CONFLICT
            now = utc_now()
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
            remember(db, now, uid, "", SeriesState.RECEIVING, "", "")
            return
        db.execute(
            "UPDATE series SET last_received_at = ? WHERE series_instance_uid = ?", (now, uid)
        )
        if row["state"] != SeriesState.RECEIVING and row["reason"] != CONFLICTING:
            move_series(db, now, uid, SeriesState.RECEIVING, "late-instance", "")

    def record_conflict(self, instance: ReceivedInstance) -> None:
        """Hold the series whose SOP Instance UID came twice with different content.

        Args:
            instance: The later one; its path is where it was kept aside.
        """
        with self._transaction() as db:
            now = utc_now()
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
                    move_series(db, now, uid, SeriesState.HELD, CONFLICTING, explanation)

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
        return instance_row(rows[0]) if rows else None

    def instances_of(self, series_instance_uid: str) -> list[InstanceRow]:
        """All instances of a series, by SOP Instance UID."""
        return [
            instance_row(row)
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
            series_row(row)
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
            now = utc_now()
            db.execute(
                "INSERT OR REPLACE INTO returned SELECT series_instance_uid, ? FROM series"
                " WHERE series_instance_uid = ? AND discarded_at IS NOT NULL",
                (now, series_instance_uid),
            )
            if row is not None and row.reason == MISSING_FILES:
                state = SeriesState.RECEIVING
                move_series(db, now, series_instance_uid, state, "files-came-back", "")

    def look_again(self, series_instance_uid: str, held_for: Collection[str], why: str) -> bool:
        """Decide a series once more if it is held for one of these reasons; was it?"""
        with self._transaction() as db:
            row = self.series(series_instance_uid)
            if row is None or row.state is not SeriesState.HELD or row.reason not in held_for:
                return False
            move_series(db, utc_now(), series_instance_uid, SeriesState.RECEIVING, why, "")
            return True

    def discardable(self, ended_before: datetime) -> list[SeriesRow]:
        """Series at a good end that received nothing, and changed nothing, since then.

        Delivered, skipped or not analysed, the longest ended first; also those whose images were
        discarded before and were sent again since. Whether anything of them is still owed to a
        destination, `owes_something` says.
        """
        states = (SeriesState.DELIVERED, SeriesState.SKIPPED, SeriesState.NOT_ANALYSED)
        before = ended_before.isoformat()
        return self._series(
            "state IN (?, ?, ?) AND last_received_at < ? AND (discarded_at IS NULL"
            "   OR (SELECT at FROM returned"
            "     WHERE returned.series_instance_uid = series.series_instance_uid) < ?)"
            " AND (SELECT MAX(at) FROM outcomes"
            "   WHERE outcomes.series_instance_uid = series.series_instance_uid) < ?",
            (*states, before, before, before),
            "last_received_at",
        )

    def discarded(self) -> list[SeriesRow]:
        """Series whose files were to be deleted, and to which nothing has happened since."""
        return self._series(
            "discarded_at IS NOT NULL AND series_instance_uid NOT IN"
            " (SELECT series_instance_uid FROM returned) AND discarded_at >="
            " (SELECT MAX(at) FROM outcomes"
            "   WHERE outcomes.series_instance_uid = series.series_instance_uid)",
            (),
        )

    def mark_discarded(self, series_instance_uid: str) -> None:
        """Remember that the files of a series are to be deleted. Its rows stay."""
        with self._transaction() as db:
            db.execute(
                "UPDATE series SET discarded_at = ? WHERE series_instance_uid = ?",
                (utc_now(), series_instance_uid),
            )
            db.execute("DELETE FROM returned WHERE series_instance_uid = ?", (series_instance_uid,))

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
            now = utc_now()
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
                job_row(row)
                for row in db.execute(
                    "SELECT * FROM jobs WHERE study_instance_uid = ?"  # noqa: S608  # question marks
                    f" AND state IN ({marks(UNFINISHED)}) ORDER BY created_at",
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
        note_decision(db, now, row, decision)
        db.execute(
            "UPDATE series SET score = ?, counts = ? WHERE series_instance_uid = ?",
            (decision.score, decision.counts, uid),
        )
        # The series that a reader has a result of is analysed again when slices of it come late,
        # even if a better one arrived in the meantime.
        again = uid == incumbent and decision.reason == OTHER_FLAIR
        if not (decision.chosen or again or (row.forced and decision.reason == OTHER_FLAIR)):
            state = SeriesState(decision.outcome)
            move_series(db, now, uid, state, decision.reason, decision.explanation)
        elif incumbent not in (None, uid) and not row.forced:
            explanation = (
                "another FLAIR of this study has a result; `flairnode jobs retry` with this "
                "Series Instance UID analyses this one as well"
            )
            move_series(db, now, uid, SeriesState.HELD, LATER_FLAIR, explanation)
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
                remember_refusal(db, job_id, reason, explanation)
        else:  # the same instances as before: the same job, wherever it stands
            state, reason = SeriesState(known["state"]), known["reason"]
            explanation = known["explanation"]
            if reason == SUPERSEDED:  # by a conflict that was resolved in its favour
                state, reason, explanation = SeriesState.QUEUED, "resolved-by-operator", ""
                db.execute(
                    "UPDATE jobs SET state = ?, reason = ?, explanation = '', updated_at = ?,"
                    " retries = retries + 1, workflow_id = job_id || '.' || (retries + 1)"
                    " WHERE job_id = ?",
                    (state, reason, now, job_id),
                )
        db.execute(
            "UPDATE series SET job_id = ?, forced = 0 WHERE series_instance_uid = ?", (job_id, uid)
        )
        move_series(db, now, uid, state, reason, explanation, job_id)

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
            now = utc_now()
            self._insert_job(db, job, sop_instance_uids)
            if refusal is not None:
                remember_refusal(db, job.job_id, refusal["reason"], refusal["explanation"])
            db.execute(
                "UPDATE series SET job_id = ? WHERE series_instance_uid = ?",
                (job.job_id, job.series_instance_uid),
            )
            remember(
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
