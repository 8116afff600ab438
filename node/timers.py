"""When to look. What is owed stands in the ledger, so a tick that is lost or doubled is harmless.

Nothing here decides by the wall clock but alarms and retention, where an hour more or less is
nothing.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from config.settings import Settings
from dicom.network.scu import PeerError
from node.audit import Audit
from node.delivery import SETTLED, courier
from node.engine import Engine
from node.follow import FollowedSources
from node.intake import Intake
from node.ledger import GOOD_ENDS, Job, Ledger, SeriesState
from node.lifecycle import seal
from node.outcome import ResultsFolder
from node.pause import PauseSwitch
from node.rejections import Rejections
from node.workflow import Casework

log = structlog.get_logger(__name__)

RUNNING_LOOK_S = 1.0
DUE_LOOK_S = 1.0
RESUME_S = 15.0
REQUESTS_LOOK_S = 1.0
HEARTBEAT_S = 60.0
HOURLY_S = 3600.0
STUCK_FACTOR = 3.0
"""Work that takes three times as long as it may is stuck, and somebody is told."""


class Timers:
    """APScheduler in memory: no tick has to survive a restart."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        results: ResultsFolder,
        engine: Engine,
        casework: Casework,
        intake: Intake,
        sources: FollowedSources | None = None,
        rejections: Rejections | None = None,
        audit: Audit | None = None,
    ) -> None:
        """Set up; nothing ticks before `start`.

        Args:
            settings: Of the site.
            ledger: What is owed.
            results: Result folders, for retention.
            engine: For its history and its write-ahead log.
            casework: Does what is found to be owed.
            intake: Closes the studies that have become quiet.
            sources: Fetches what is new at the peers that are followed, and what is asked for.
            rejections: Brings the notes of a recall to their destinations.
            audit: Is sealed every hour.
        """
        self._settings = settings
        self._ledger = ledger
        self._results = results
        self._engine = engine
        self._casework = casework
        self._intake = intake
        self._sources = sources
        self._rejections = rejections
        self._audit = audit
        self._pause = PauseSwitch(settings.node.data_dir)
        self.answering: dict[str, bool] = {}
        """Peer -> did it answer the last C-ECHO, or its like over the web."""
        self._alarmed: set[tuple[str, SeriesState]] = set()
        # It warns of every tick that finds the one before still looking, which is harmless here.
        logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self) -> None:
        """Begin to tick."""
        quiet_s = self._settings.completeness.quiet_period_s
        for look, period_s in (
            # A study is closed at most a tenth of its quiet period, or a second, after its end.
            (self._intake.sweep, min(1.0, max(0.25, quiet_s / 10))),
            (self._casework.mark_running, RUNNING_LOOK_S),
            (self._casework.resume, RESUME_S),
            (self.deliver_due, DUE_LOOK_S),
            (self.heartbeat, HEARTBEAT_S),
            (self.alarm_stuck, HEARTBEAT_S),
            (self.expire, HOURLY_S),
            (self.make_room, HEARTBEAT_S),
            (self.seal_audit, HOURLY_S),
            (self.checkpoint, HOURLY_S),
        ):
            self._scheduler.add_job(look, "interval", seconds=period_s)
        self._look_at_sources()
        if self._rejections is not None:
            self._scheduler.add_job(self._rejections.resume, "interval", seconds=RESUME_S)
        self._scheduler.start()

    def _look_at_sources(self) -> None:
        if self._sources is None:
            return
        self._scheduler.add_job(self._sources.serve_requests, "interval", seconds=REQUESTS_LOOK_S)
        for follower in self._sources.followers:
            self._scheduler.add_job(
                follower.look,
                "interval",
                seconds=follower.source.poll_s,
                next_run_time=datetime.now(UTC),  # what came while we were away
            )

    def stop(self) -> None:
        """Tick no more; a look under way is not waited for."""
        self._scheduler.shutdown(wait=False)

    # --- what is looked at -------------------------------------------------------------------

    def deliver_due(self) -> None:
        """Send again what has waited long enough.

        To a peer that answers no C-ECHO only the oldest, in case it takes what it does not answer
        for; the others wait for their next turn, or until it answers.
        """
        for peer, jobs in self._casework.due_for().items():
            known_silent = not self.answering.get(peer, True)
            now, later = (jobs[:1], jobs[1:]) if known_silent else (jobs, [])
            for job_id in now:
                self._casework.deliver_again(job_id, peer)
            for job_id in later:
                self._casework.put_off(job_id, peer)
            log.info("delivery.retried", peer=peer, jobs=len(now), count=len(later))

    def heartbeat(self) -> None:
        """Knock at every peer that we need; one that comes back is sent what waited for it."""
        needed = {destination.peer for destination in self._settings.destinations}
        if self._settings.completeness.query_peer is not None:
            needed.add(self._settings.completeness.query_peer)
        for peer in sorted(needed):  # scanners that only send need not answer
            before = self.answering.get(peer, True)
            now = self._answers(peer)
            if before != now:
                log.warning("peer.answers" if now else "peer.silent", peer=peer)
            if now and not before:
                self._casework.hurry(peer)

    def alarm_stuck(self) -> None:
        """Say once when a job is in one state for longer than it can be."""
        stuck = {
            (job.job_id, job.state)
            for state, limit_s in self._limits_s().items()
            if state is SeriesState.DELIVERING or not self._pause.is_on()
            for job in self._ledger.jobs(state)
            if _age_s(job) > limit_s
        }
        for job_id, state in sorted(stuck - self._alarmed):
            log.error("case.stuck", job=job_id, state=state.value)
        self._alarmed = stuck

    def expire(self) -> None:
        """Delete images and results of what came to a good end long ago, and old history."""
        self._intake.discard_old()
        keep = timedelta(days=self._settings.retention.keep_days)
        self._discard_results(keep)
        self._engine.forget_finished_before((datetime.now(UTC) - keep).timestamp())

    def make_room(self) -> None:
        """While the disk is short, delete the oldest of what may go before its time."""
        if not self._intake.reserve.look():
            return
        self._intake.make_room()
        retention = self._settings.retention
        self._discard_results(timedelta(days=min(retention.least_days, retention.keep_days)))

    def _discard_results(self, age: timedelta) -> None:
        now = datetime.now(UTC)
        asked_after = now - timedelta(days=self._settings.retention.unreported_days)
        peers = [destination.peer for destination in self._settings.destinations]
        for job in self._ledger.jobs(GOOD_ENDS, limit=1_000_000):
            if job.updated_at >= now - age or not self._results.has_anything(job.job_id):
                continue
            if not self._ledger.is_owed(job.job_id, peers, SETTLED, asked_after):
                self._results.remove(job.job_id)
                log.info("results.discarded", job=job.job_id)

    def checkpoint(self) -> None:
        """Fold the write-ahead logs into their files."""
        self._engine.checkpoint()
        with closing(sqlite3.connect(self._ledger.path, timeout=30)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def seal_audit(self) -> None:
        """Write into the ledger how far the audit trail goes."""
        if self._audit is not None:
            seal(self._audit, self._ledger)

    # --- helpers -----------------------------------------------------------------------------

    def _answers(self, peer: str) -> bool:
        try:
            courier(
                self._settings.protocol_of(peer),
                self._settings.peer(peer),
                ae_title=self._settings.node.ae_title,
                timeout_s=min(10.0, self._settings.delivery.timeout_s),
            ).knock()
        except PeerError:
            self.answering[peer] = False
        else:
            self.answering[peer] = True
        return self.answering[peer]

    def _limits_s(self) -> dict[SeriesState, float]:
        plan = self._settings.delivery
        # Until all attempts failed, or a report of commitment is no longer waited for.
        pauses = sum(plan.first_pause_s * plan.backoff**n for n in range(plan.attempts - 1))
        tries = plan.attempts * plan.timeout_s
        report = plan.commitment_timeout_s + plan.retry_held_every_s
        case_s = self._settings.pipeline.time_limit_s
        return {
            # Behind others in the queue, but not for ever.
            SeriesState.QUEUED: STUCK_FACTOR * 10 * case_s,
            SeriesState.RUNNING: STUCK_FACTOR * case_s,
            SeriesState.DELIVERING: STUCK_FACTOR * (pauses + tries + report),
        }


def _age_s(job: Job) -> float:
    return time.time() - job.updated_at.timestamp()
