"""What the node owes for a series: received -> delivered, in durable steps.

    series      (service)   prepare -> analysis, on a worker -> conclude -> one delivery each
    analysis    (worker)    the pixels: volume, brain, lesions, objects
    delivery    (service)   look, send what is missing, look again; settle; after a pause, once more

A FLAIR that is refused goes the same way, and what is delivered is the note that says why; its end
is `not_analysed`, wherever that note is.

Every step may run twice, after a crash, and is written so that twice is once. The ledger says what
is owed and where it stands; the engine only drives, and `Casework.resume` makes its work anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog
from dbos import (
    DBOS,
    DBOSConfiguredInstance,
    PortableWorkflowError,
    SetEnqueueOptions,
    SetWorkflowID,
)
from dbos import error as dbos_error

from config.settings import Destination, Settings
from dicom.errors import Outcome
from dicom.network.commitment import CommitmentReport
from dicom.network.scp import SUCCESS
from dicom.reference import DocumentReference
from node.audit import Audit, AuditEvent
from node.commitment import Commitments
from node.delivery import ARRIVED, Delivered, ObjectState, deliver, wanted
from node.engine import ACTIVE, Engine, WorkQueue
from node.ledger import ENDS, UNFINISHED, Job, Ledger, SeriesState, UnknownJobError
from node.outcome import JobOutcome, Order, ResultFile, ResultsFolder
from node.patience import Patience
from node.pause import PauseSwitch

log = structlog.get_logger(__name__)

WORKFLOW_VERSION = "flairnode-2"
"""Raised when the steps of a workflow change, and only then: a workflow begun under one version is
run by no other (tests/node/test_workflow.py holds the steps of each version)."""

SERIES = WorkQueue("series", worker_concurrency=16)
"""Most of a series' time is waiting for its analysis; 16 threads that wait cost nothing."""
ANALYSIS = WorkQueue("analysis", worker_concurrency=1)
"""One case at a time on one device."""
ROUTINE = 10
"""Priority of what comes by itself; lower runs first, and leaves room for urgent work."""
REPEATED = 20
"""Of a delivery that failed before: a new result does not stand behind a hundred of those."""
ENGINE_ATTEMPTS = 30
"""The worker counts its own deaths at a case (`node.worker`). This is DBOS' count, which takes
restarts of the whole node for deaths as well: the last resort, not the rule."""

DONE, AGAIN, REFUSED, VOID = "done", "again", "refused", "void"
OPEN_ENDS = (SeriesState.HELD, SeriesState.NOT_ANALYSED)
"""Ends at which something may still be owed to a destination: a result, or a note of the reason.
A note that cannot be delivered changes nothing about the end of its series."""
NO_DESTINATION = "no-destination"
NO_RESEARCH_DESTINATION = "no-destination-for-research"
UNREACHABLE = "destination-unreachable"
REFUSED_BY_DESTINATION = "destination-refused"
UNDELIVERABLE = "undeliverable"
SUPERSEDED = "superseded"
POISON = "poison"


def delivery_queue(destination: Destination) -> WorkQueue:
    """The queue of one destination: a dead one blocks only itself."""
    return WorkQueue(f"delivery-{destination.peer}", worker_concurrency=4)


@DBOS.dbos_class()
class Analysis(DBOSConfiguredInstance):
    """The part of a case that runs on a worker. In the service it can only be enqueued."""

    def __init__(self, analyse: Callable[[str], Outcome] | None = None) -> None:
        super().__init__("analysis")
        self._analyse = analyse

    @DBOS.workflow(name="analysis", max_recovery_attempts=ENGINE_ATTEMPTS)
    def run(self, job_id: str) -> str:
        """Analyse a job; the result is on disk when this returns."""
        return self.analyse(job_id)

    @DBOS.step(name="analyse")
    def analyse(self, job_id: str) -> str:
        """How it ended; the rest is in the result folder."""
        if self._analyse is None:
            raise RuntimeError("this process holds no pixels: analyses run on workers")
        return self._analyse(job_id).value


@DBOS.dbos_class()
class Casework(DBOSConfiguredInstance):
    """Everything the service does for a series once its study is closed."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        results: ResultsFolder,
        engine: Engine,
        analysis: Analysis | None = None,
        audit: Audit | None = None,
    ) -> None:
        """Register with DBOS: one in a process, before the engine is launched.

        Args:
            settings: Of the site.
            ledger: What is owed.
            results: Orders and results on disk.
            engine: Drives.
            analysis: None where analyses run in other processes, which is to say in the service.
            audit: Where analyses and deliveries are noted; a step that runs twice notes it twice.
        """
        super().__init__("casework")
        self._settings = settings
        self._ledger = ledger
        self._results = results
        self._engine = engine
        self._analysis = analysis or Analysis()
        self._audit = audit
        self._settling = threading.Lock()
        self._commitments = Commitments(settings, ledger)
        self._patience = Patience(settings.delivery, ledger)
        self._pause = PauseSwitch(settings.node.data_dir)

    # --- the story ---------------------------------------------------------------------------

    @DBOS.workflow(name="series")
    def series(self, job_id: str, workflow_id: str) -> None:
        """Received -> results on their way to every destination, or an end with its reason."""
        if not self.prepare(job_id, workflow_id):
            return
        outcome = self._wait_for_analysis(job_id, workflow_id)
        for peer in self.conclude(job_id, outcome):
            self._start_delivery(job_id, workflow_id, peer)

    @DBOS.workflow(name="delivery")
    def delivery(self, job_id: str, peer: str, attempts: int | None = None) -> None:
        """A result to one destination: some attempts in a row, or one that was waited for.

        The long pauses are not slept here: whoever sleeps keeps a place of the queue, and four
        results that a destination will not take would keep it from all others.
        """
        plan = self._settings.delivery
        answer = self.attempt(job_id, peer)
        for number in range((attempts or plan.attempts) - 1):
            if answer != AGAIN:
                break
            self.pause(plan.first_pause_s * plan.backoff**number)
            answer = self.attempt(job_id, peer)
        self.settle(job_id, peer)

    # --- steps -------------------------------------------------------------------------------

    @DBOS.step(name="prepare")
    def prepare(self, job_id: str, workflow_id: str) -> bool:
        """Write the order for the worker; False for a job that came to an end meanwhile."""
        job = self._ledger.job(job_id)
        if job.state in ENDS or job.workflow_id != workflow_id:
            return False
        if self._ledger.is_superseded(job_id):
            self._ledger.set_state(job_id, Outcome.SKIPPED, SUPERSEDED)
            return False
        files = self._results.relative(self._ledger.paths_of(job_id))
        order = Order(workflow_id, self._ledger.job_record(job_id), files, self._replaced(job))
        self._results.write_order(job_id, order)
        return True

    @DBOS.step(name="conclude")
    def conclude(self, job_id: str, outcome: str) -> list[str]:
        """Bring the analysis into the ledger; the names of the peers that are to have results."""
        if self._ledger.job(job_id).state in ENDS:
            return []
        result = self._results.read(job_id)
        self._note(AuditEvent.ANALYSED, job_id, outcome=outcome or "failed")
        if not outcome or result is None:
            self._end(job_id, Outcome.FAILED, POISON, "the analysis ended its worker each time")
            return []
        has_note = result.outcome is Outcome.NOT_ANALYSED and bool(result.objects)
        if result.outcome is not Outcome.ANALYSED and not has_note:
            self._end(job_id, result.outcome, result.reason, result.explanation)
            return []
        if self._ledger.is_superseded(job_id):
            self._end(job_id, Outcome.SKIPPED, SUPERSEDED)
            return []
        self._ledger.record_objects(job_id, self._results.documents(job_id))
        if has_note:
            return self._send_note(job_id, result)
        destinations = self._destinations(result)
        if not destinations:
            research = result.research and bool(self._settings.destinations)
            reason = NO_RESEARCH_DESTINATION if research else NO_DESTINATION
            self._end(job_id, Outcome.HELD, reason)
            return []
        self._ledger.set_state(job_id, SeriesState.DELIVERING)
        return [destination.peer for destination in destinations]

    @DBOS.step(name="attempt")
    def attempt(self, job_id: str, peer: str) -> str:
        """One attempt at one destination, written into the ledger object by object."""
        job, result = self._ledger.job(job_id), self._results.read(job_id)
        destination = self._destination(peer)
        if result is None or destination is None or self._is_void(job):
            return VOID
        objects = wanted(result.objects, destination)
        lost = self._commitments.lost(job_id, destination)
        self._announce(job_id, peer, objects)
        delivered = deliver(
            objects,
            destination,
            self._settings.peer(peer),
            ae_title=self._settings.node.ae_title,
            timeout_s=self._settings.delivery.timeout_s,
            again=lost,
        )
        delivered = self._commitments.follow(
            job_id, objects, destination, self._settings.peer(peer), delivered, lost
        )
        for uid, state in delivered.states.items():
            self._ledger.record_delivery(job_id, peer, uid, state)
        if delivered.arrived:
            self._note(AuditEvent.SENT, job_id, destination=peer, objects=len(delivered.states))
        return _answer(job_id, peer, delivered)

    @DBOS.step(name="pause")
    def pause(self, seconds: float) -> None:
        """Between two attempts, by the monotonic clock; a restart in the middle begins it anew.

        Not DBOS' own sleep: that keeps the end of the pause as a time of day, and after a restart
        with a clock that was set back an hour the result would wait for an hour.
        """
        time.sleep(seconds)

    @DBOS.step(name="settle")
    def settle(self, job_id: str, peer: str) -> str:
        """The attempts at a peer are over: read from all deliveries where the job stands."""
        # Two deliveries that end together must not overwrite each other's view.
        with self._settling:
            self._plan_another_attempt(job_id, peer)
            job, result = self._ledger.job(job_id), self._results.read(job_id)
            if job.state in ENDS and job.state not in OPEN_ENDS:
                return job.state.value
            if self._ledger.is_superseded(job_id):
                return self._end(job_id, Outcome.SKIPPED, SUPERSEDED)
            if result is None:
                return job.state.value
            return self._settle_deliveries(job_id, result)

    # --- driving -----------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """See to it that a job is worked on. As often as one likes."""
        self._engine.enqueue(
            SERIES.name, job.workflow_id, ROUTINE, self.series, job.job_id, job.workflow_id
        )

    def resume(self) -> int:
        """Enqueue anew whatever the ledger says is owed and no workflow works on; how many.

        Heals a lost or changed engine database, an operator's retry, and a workflow that ended
        otherwise than its ledger entry.
        """
        count = 0
        unfinished = self._ledger.jobs(UNFINISHED)
        driven = {_job_of(name) for name in self._engine.active()} if unfinished else set[str]()
        for job in unfinished:
            waits = job.state is SeriesState.DELIVERING and self._patience.knows(job.job_id)
            if waits or job.job_id in driven:
                continue
            # Read after the workflows: each writes its end into the ledger before it ends.
            states = self._engine.states(job.job_id)
            owed = self._ledger.job(job.job_id).state in UNFINISHED
            if owed and not any(state in ACTIVE for state in states.values()):
                self._engine.forget(states)
                self.submit(job)
                count += 1
        return count

    def mark_running(self) -> None:
        """Show in the ledger which jobs a worker has taken."""
        if self._pause.is_on():
            return  # what a worker took since then waits at its door
        if not self._ledger.jobs(SeriesState.QUEUED, limit=1):
            return
        for workflow_id in self._engine.running(ANALYSIS.name):
            with suppress(UnknownJobError):
                job = self._ledger.job(_job_of(workflow_id))
                if job.state is SeriesState.QUEUED:
                    self._ledger.set_state(job.job_id, SeriesState.RUNNING)

    def held_for(self) -> Mapping[str, list[str]]:
        """Peer -> jobs that wait for it to answer again, the oldest first."""
        waiting: dict[str, list[str]] = {}
        not_there = (ObjectState.UNREACHABLE, ObjectState.TRYING)
        results = self._ledger.undelivered(SeriesState.HELD, not_there[:1], UNREACHABLE)
        notes = self._ledger.undelivered(SeriesState.NOT_ANALYSED, not_there)
        for peer, job_id in results:
            waiting.setdefault(peer, []).append(job_id)
        for peer, job_id in notes:
            if self._destination(peer) is not None:
                waiting.setdefault(peer, []).append(job_id)
        return waiting

    def due_for(self) -> Mapping[str, list[str]]:
        """Peer -> jobs whose pause is over: held ones, and those that wait for a commitment."""
        due: dict[str, list[str]] = {}
        for peer, waiting in self.held_for().items():
            ready = [job_id for job_id in waiting if self._patience.is_due(job_id, peer)]
            if ready:
                due[peer] = ready
        for job_id, peer in self._patience.due():
            if job_id in due.get(peer, ()):
                continue
            if self._is_open(job_id, peer):
                due.setdefault(peer, []).append(job_id)
            else:
                self._patience.forget(job_id, peer)  # it came to its end meanwhile
        return due

    def put_off(self, job_id: str, peer: str) -> None:
        """The peer does not answer at all: count that as an attempt, without making one."""
        with self._settling:
            self._plan_another_attempt(job_id, peer)
            result = self._results.read(job_id)
            if result is not None and not self._is_void(self._ledger.job(job_id)):
                self._settle_deliveries(job_id, result)

    def hurry(self, peer: str) -> None:
        """It answers again: whatever waits for it is due."""
        self._patience.hurry(peer)

    def deliver_again(self, job_id: str, peer: str) -> None:
        """Another attempt at a delivery that waited; nothing when one is under way."""
        self._patience.under_way(job_id, peer)
        workflow_id = self._ledger.job(job_id).workflow_id
        destination = self._destination(peer)
        if destination is None:
            self.settle(job_id, peer)  # the site took that destination out of its settings
            return
        name = _delivery_id(workflow_id, peer)
        if self._engine.states(name).get(name) in ACTIVE:
            return
        self._engine.forget([name])
        self._engine.enqueue(
            delivery_queue(destination).name, name, REPEATED, self.delivery, job_id, peer, 1
        )

    def take_report(self, report: CommitmentReport) -> int:
        """A destination reports what it commits to; the status to answer with.

        It may come while attempts go on, or long after: what it could not commit to is then sent
        again, and a job that was delivered is no longer.
        """
        reported = self._commitments.take(report)
        if reported is None:
            return SUCCESS  # nobody here asked; asking again would not help the peer
        job_id, peer = reported.job_id, reported.destination
        lost = [uid for uid, state in reported.states.items() if state is ObjectState.TRYING]
        name = _delivery_id(self._ledger.job(job_id).workflow_id, peer)
        going_on = self._engine.states(name).get(name) in ACTIVE
        with self._settling:
            if not going_on:
                for uid in lost:
                    self._ledger.record_delivery(job_id, peer, uid, ObjectState.UNREACHABLE)
            job, result = self._ledger.job(job_id), self._results.read(job_id)
            settled = job.state in (SeriesState.DELIVERING, *OPEN_ENDS) or (
                job.state is SeriesState.DELIVERED and not job.reason
            )
            if settled and result is not None and not self._ledger.is_superseded(job_id):
                self._settle_deliveries(job_id, result)
        if lost and not going_on and self._ledger.job(job_id).state in OPEN_ENDS:
            self.deliver_again(job_id, peer)
        return SUCCESS

    def reclaim(self, executors: set[str]) -> None:
        """At start: work that no process of this node would ever take up again."""
        others = self._engine.forget_other_versions()
        if others:
            log.warning("engine.other-version", workflows=others)
        for workflow_id in self._engine.forget_strangers(ANALYSIS.name, executors):
            job_id = _job_of(workflow_id)
            try:
                self._ledger.job(job_id)
            except UnknownJobError:
                continue
            self._engine.enqueue(ANALYSIS.name, workflow_id, ROUTINE, self._analysis.run, job_id)

    # --- helpers -----------------------------------------------------------------------------

    def _wait_for_analysis(self, job_id: str, workflow_id: str) -> str:
        """The outcome, or "" when the engine gave up on it."""
        with SetWorkflowID(f"{workflow_id}.analysis"), SetEnqueueOptions(priority=ROUTINE):
            handle = DBOS.enqueue_workflow(ANALYSIS.name, self._analysis.run, job_id)
        try:
            return handle.get_result(polling_interval_sec=self._settings.engine.poll_s)
        except (dbos_error.DBOSException, PortableWorkflowError):
            return ""  # the worker catches everything of its own: this is DBOS' last resort

    def _start_delivery(self, job_id: str, workflow_id: str, peer: str) -> None:
        destination = self._destination(peer)
        if destination is None:
            return
        name = _delivery_id(workflow_id, peer)
        with SetWorkflowID(name), SetEnqueueOptions(priority=ROUTINE):
            DBOS.enqueue_workflow(delivery_queue(destination).name, self.delivery, job_id, peer)

    def _destination(self, peer: str) -> Destination | None:
        return next((one for one in self._settings.destinations if one.peer == peer), None)

    def _destinations(self, result: JobOutcome) -> list[Destination]:
        """Promise 5: a research model's results go to nobody who has not asked for research."""
        return [one for one in self._settings.destinations if one.research or not result.research]

    def _send_note(self, job_id: str, result: JobOutcome) -> list[str]:
        """The peers that are to be told why; with nobody to tell, the end is there already."""
        peers = [
            destination.peer
            for destination in self._destinations(result)
            if wanted(result.objects, destination)
        ]
        if not peers:
            self._end(job_id, result.outcome, result.reason, result.explanation)
            return []
        self._ledger.set_state(job_id, SeriesState.DELIVERING, result.reason, result.explanation)
        return peers

    def _replaced(self, job: Job) -> DocumentReference | None:
        """The report that a new one of this series supersedes: the latest that anybody was sent."""
        earlier = job.predecessor
        while earlier is not None:
            sent = {
                one.sop_instance_uid
                for one in self._ledger.deliveries(earlier)
                if one.state in ARRIVED or one.state == ObjectState.AWAITED
            }
            known = self._ledger.objects_of(earlier) or self._results.documents(earlier)
            for kind, document in known:
                if kind == "sr" and document.sop_instance_uid in sent:
                    return document
            try:
                earlier = self._ledger.job(earlier).predecessor
            except UnknownJobError:  # lost with its images, before the ledger was rebuilt
                return None
        return None

    def _is_void(self, job: Job) -> bool:
        ended = job.state in ENDS and job.state not in OPEN_ENDS
        return ended or self._ledger.is_superseded(job.job_id)

    def _is_open(self, job_id: str, peer: str) -> bool:
        """Is an object not there, or not committed to, that somebody still works on?"""
        job = self._ledger.job(job_id)
        if job.state not in (SeriesState.DELIVERING, *OPEN_ENDS):
            return False
        still = (ObjectState.TRYING, ObjectState.UNREACHABLE, ObjectState.AWAITED)
        return any(
            one.destination == peer and one.state in still
            for one in self._ledger.deliveries(job_id)
        )

    def _plan_another_attempt(self, job_id: str, peer: str) -> None:
        """What is not at a peer waits for its next attempt, or is given up."""
        missing, awaited = [], False
        for one in self._ledger.deliveries(job_id):
            if one.destination == peer:
                awaited |= one.state == ObjectState.AWAITED
                if one.state in (ObjectState.TRYING, ObjectState.UNREACHABLE):
                    missing.append(one.sop_instance_uid)
        if self._destination(peer) is None or not (missing or awaited):
            self._patience.forget(job_id, peer)
            return
        given_up = self._patience.plan(job_id, peer, endless=not missing)
        state = ObjectState.UNDELIVERABLE if given_up else ObjectState.UNREACHABLE
        for uid in missing:
            self._ledger.record_delivery(job_id, peer, uid, state)
        if given_up:
            hours = self._settings.delivery.give_up_after_h
            log.error("delivery.given-up", job=job_id, peer=peer, waited_s=hours * 3600)
            self._note(AuditEvent.GIVEN_UP, job_id, destination=peer, objects=len(missing))

    def _settle_deliveries(self, job_id: str, result: JobOutcome) -> str:
        known = {
            (one.destination, one.sop_instance_uid): one.state
            for one in self._ledger.deliveries(job_id)
        }
        given_up: list[str] = []
        refused, unreachable, pending = [], [], False
        unconfirmed, listed = [], []
        for destination in self._destinations(result):
            states = {
                known.get((destination.peer, one.sop_instance_uid))
                for one in wanted(result.objects, destination)
            }
            if ObjectState.UNREACHABLE in states:
                unreachable.append(destination.peer)
            elif ObjectState.UNDELIVERABLE in states:
                given_up.append(destination.peer)
            elif ObjectState.REFUSED in states:
                refused.append(destination.peer)
            elif not states <= ARRIVED:
                pending = True
            elif ObjectState.UNCONFIRMED in states:
                unconfirmed.append(destination.peer)
            elif destination.confirm == "commitment" and ObjectState.CONFIRMED in states:
                listed.append(destination.peer)
        if pending:
            return self._ledger.job(job_id).state.value
        if result.outcome is Outcome.NOT_ANALYSED:
            # Wherever its note is by now. Deliveries say where, and `held_for` what is still owed.
            return self._end(job_id, result.outcome, result.reason, result.explanation)
        if unreachable:
            explanation = f"tried again once it answers: {', '.join(unreachable)}"
            return self._end(job_id, Outcome.HELD, UNREACHABLE, explanation)
        if given_up:
            hours = f"{self._settings.delivery.give_up_after_h:g} hours"
            explanation = f"given up after {hours} of trying: {', '.join(given_up)}"
            return self._end(job_id, Outcome.HELD, UNDELIVERABLE, explanation)
        if refused:
            explanation = f"will not take it: {', '.join(refused)}"
            return self._end(job_id, Outcome.HELD, REFUSED_BY_DESTINATION, explanation)
        explanation = f"not confirmed by query: {', '.join(unconfirmed)}" if unconfirmed else ""
        if listed:
            without = f"no report of commitment, confirmed by query: {', '.join(listed)}"
            explanation = f"{explanation}; {without}" if explanation else without
        return self._end(job_id, Outcome.DELIVERED, "", explanation)

    def _announce(self, job_id: str, peer: str, objects: tuple[ResultFile, ...]) -> None:
        """Say in the ledger what is about to be sent: a recall in the meantime must know of it."""
        known = {
            one.sop_instance_uid
            for one in self._ledger.deliveries(job_id)
            if one.destination == peer
        }
        for one in objects:
            if one.sop_instance_uid not in known:
                self._ledger.record_delivery(job_id, peer, one.sop_instance_uid, ObjectState.TRYING)

    def _note(self, event: AuditEvent, job_id: str, **facts: str | int) -> None:
        if self._audit is None:
            return
        job = self._ledger.job(job_id)
        with suppress(OSError):  # a full disk must not keep a result from its reader
            self._audit.append(
                event,
                job=job_id,
                study=job.study_instance_uid,
                series=job.series_instance_uid,
                **facts,
            )

    def _end(self, job_id: str, outcome: Outcome, reason: str = "", explanation: str = "") -> str:
        job = self._ledger.set_state(job_id, outcome, reason, explanation)
        log.info("case.ended", job=job_id, state=job.state.value, reason=job.reason)
        return job.state.value


def _answer(job_id: str, peer: str, delivered: Delivered) -> str:
    if delivered.coerced:
        log.warning("delivery.coerced", job=job_id, peer=peer, objects=len(delivered.coerced))
    if delivered.arrived:
        log.info("delivery.arrived", job=job_id, peer=peer, objects=len(delivered.states))
        return DONE
    log.warning("delivery.missing", job=job_id, peer=peer, why=delivered.message)
    return AGAIN if delivered.worth_another_attempt else REFUSED


def _delivery_id(workflow_id: str, peer: str) -> str:
    return f"{workflow_id}.to.{peer}"


def _job_of(workflow_id: str) -> str:
    return workflow_id.split(".", 1)[0]
