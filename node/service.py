"""The service process: listener, ledger, engine, timers, and the workers it starts.

It holds no pixels and no torch. Workers are processes of their own: they are started from the main
thread (their death signal is tied to it), started again when they die, and die with it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import structlog

from config.settings import Settings
from dicom.errors import StudyError
from dicom.network.scp import StorageServer
from dicom.network.tls import TlsFilesError, listening_context
from node.audit import Audit
from node.daily import SelfTests
from node.disk import room
from node.durable import PRIVATE, SERVICE_LOCK
from node.engine import (
    ENGINE_FILE,
    Engine,
    FileIdentity,
    IdentityTakenError,
    set_damaged_aside,
)
from node.follow import FollowedSources
from node.intake import Intake, admission
from node.ledger import Ledger, SeriesState
from node.ledger.overview import Overview
from node.lifecycle import note_start, note_stop
from node.limits import EXIT_MEMORY_LIMIT, EXIT_TIME_LIMIT
from node.logs import configure_logging
from node.notices import Notices
from node.outcome import ResultsFolder
from node.rebuild import open_ledger
from node.rejections import Rejections
from node.sitekey import site_key, tag
from node.spool import Spool
from node.timers import Timers
from node.web.app import Surroundings
from node.web.server import WebServer
from node.workflow import ANALYSIS, SERIES, WORKFLOW_VERSION, Casework, delivery_queue
from pipeline.model_pack import find_pack, load_pack

log = structlog.get_logger(__name__)

EXIT_CANNOT_START = 1
TICK_S = 0.2
NOTICES_LOOK_S = 15.0
SELF_TEST_LOOK_S = 60.0
DEATHS_TO_TELL = 3
FIRST_RESTART_PAUSE_S = 0.25
LONGEST_RESTART_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0
"""A worker that lived so long was well: its next restart is at once again."""
STOP_WORKERS_S = 5.0
WORKER_COMMAND = (sys.executable, "-m", "node.worker")


@dataclass(slots=True)
class WorkerSlot:
    """One worker that is to run."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths_in_a_row: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class Workers:
    """Keeps N worker processes alive. Call it from the main thread only."""

    count: int
    config: Path
    command: Sequence[str] = WORKER_COMMAND
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of this service; workers tell by it whether a case outlived them or the whole node."""
    slots: list[WorkerSlot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = [WorkerSlot(index) for index in range(self.count)]

    def tick(self) -> None:
        """Start what is not running and may."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.process is not None and slot.process.poll() is not None:
                self._died(slot, slot.process, now)
            if slot.process is None and now >= slot.not_before:
                self._start(slot, now)

    def report(self) -> list[dict[str, Any]]:
        """Of each worker: whether it runs, for how long, and how often it died in a row."""
        now = time.monotonic()
        return [
            {
                "index": slot.index,
                "running": slot.process is not None and slot.process.poll() is None,
                "since_s": now - slot.started_at,
                "deaths_in_a_row": slot.deaths_in_a_row,
            }
            for slot in self.slots
        ]

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that stays."""
        running = [slot.process for slot in self.slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_WORKERS_S
        for process in running:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, slot: WorkerSlot, now: float) -> None:
        arguments = (
            *("--config", str(self.config)),
            *("--index", str(slot.index)),
            *("--parent", str(os.getpid())),
            *("--run", self.run),
        )
        # The worker asks for its death signal itself; `setpriv` (util-linux) does so before Python
        # has even begun to import.
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL"] if setpriv is not None else []
        slot.process = subprocess.Popen(  # noqa: S603  # our own program, no shell
            [*guard, *self.command, *arguments], stdin=subprocess.DEVNULL
        )
        slot.started_at = now
        log.info("worker.started", index=slot.index, pid=slot.process.pid)

    def _died(self, slot: WorkerSlot, process: subprocess.Popen[bytes], now: float) -> None:
        lived_s = now - slot.started_at
        # A case beyond its limits ended it on purpose: nothing is wrong with the worker.
        on_purpose = process.returncode in (EXIT_TIME_LIMIT, EXIT_MEMORY_LIMIT)
        well = on_purpose or lived_s > STEADY_AFTER_S
        slot.deaths_in_a_row = 1 if well else slot.deaths_in_a_row + 1
        pause_s = min(
            LONGEST_RESTART_PAUSE_S, FIRST_RESTART_PAUSE_S * 2.0 ** (slot.deaths_in_a_row - 1)
        )
        slot.not_before = now + pause_s
        log.warning(
            "worker.died",
            index=slot.index,
            pid=process.pid,
            exit_code=process.returncode,
            duration_s=round(lived_s, 1),
            waited_s=pause_s,
        )
        slot.process = None


@dataclass(slots=True)
class Node:
    """Everything the service process holds, in the order it is started; stopped in reverse."""

    ledger: Ledger
    audit: Audit
    engine: Engine
    timers: Timers
    listener: StorageServer
    workers: Workers
    web: WebServer | None = None

    @classmethod
    def start(cls, settings: Settings, workers: Workers, model_digest: str, config: Path) -> Self:
        """Take up what is owed, then open the door.

        Raises:
            IdentityTakenError: Another service runs on this data directory.
            OSError: The port is taken, or the directory is not ours.
        """
        data_dir = settings.node.data_dir
        ledger = open_ledger(data_dir)
        results = ResultsFolder(data_dir)
        set_damaged_aside(data_dir / ENGINE_FILE)
        engine = Engine(settings, service_id(settings), WORKFLOW_VERSION)
        audit = Audit(data_dir / "audit", site_key(data_dir))
        note_start(audit, ledger, settings)
        casework = Casework(settings, ledger, results, engine, audit=audit)
        rejections = Rejections(settings, ledger, engine)
        spool = Spool(data_dir / "spool")
        intake = Intake(
            settings,
            ledger,
            spool,
            audit,
            pack_digest=model_digest,
            settings_digest=settings_digest(settings),
            enqueue=casework.submit,
        )
        intake.sources = sources = FollowedSources(settings, ledger, spool, intake, audit)
        node, tls = settings.node, settings.security.tls
        listener = StorageServer(
            node.bind_host,
            node.port,
            admission(settings),
            intake.on_store,
            intake.on_refusal,
            casework.take_report,
            limits=settings.security.limits,
            tls=None if tls is None else listening_context(tls),
            plain_port=None if tls is None else tls.plain_port,
        )
        deliveries = [delivery_queue(destination) for destination in settings.destinations]
        engine.launch([SERIES, *deliveries], know=[ANALYSIS])
        casework.reclaim({f"worker-{slot.index}" for slot in workers.slots})
        intake.reconcile()
        workers.tick()
        timers = Timers(
            settings, ledger, results, engine, casework, intake, sources, rejections, audit
        )
        tests = SelfTests(
            settings, config, model_digest, busy=lambda: bool(ledger.jobs(SeriesState.RUNNING))
        )
        web = None
        if settings.web.enabled:
            surroundings = Surroundings(
                settings,
                config,
                ledger,
                audit,
                lambda: dict(timers.answering),
                workers.report,
                intake.use_selection,
                tests,
            )
            web = WebServer(settings.web, surroundings)
        notices = Notices(
            settings,
            Overview(ledger.path, partial(tag, site_key(data_dir))),
            lambda: what_is_wrong(settings, timers.answering, workers.report(), tests.fault()),
        )
        timers.also(notices.look, NOTICES_LOOK_S)
        if settings.node.daily_self_test:
            timers.also(tests.look, SELF_TEST_LOOK_S)
        timers.start()
        listener.start()
        if web is not None:
            web.start()
        log.info("service.ready", pid=os.getpid(), port=listener.port)
        return cls(ledger, audit, engine, timers, listener, workers, web)

    def stop(self) -> None:
        """Close the door, end the workers. Work under way goes on at the next start."""
        log.info("service.stopping", pid=os.getpid())
        if self.web is not None:
            self.web.stop()
        self.listener.stop()
        self.timers.stop()
        self.workers.stop()
        note_stop(self.audit, self.ledger)
        log.info("service.ended", pid=os.getpid())


def what_is_wrong(
    settings: Settings,
    answering: Mapping[str, bool],
    workers: Sequence[Mapping[str, Any]],
    self_test_fault: str = "",
) -> dict[str, str]:
    """What people are told when it begins and when it ends (`node.notices`)."""
    wrong = {
        f"peer:{peer}": f"peer {peer} does not answer"
        for peer, answers in sorted(answering.items())
        if not answers
    }
    disk = room(settings.node)
    if disk.below_reserve:
        wrong["disk:reserve"] = disk.text
    wrong |= {
        f"failed:worker-{worker['index']}": f"worker {worker['index']} died again and again"
        for worker in workers
        if worker["deaths_in_a_row"] >= DEATHS_TO_TELL
    }
    if self_test_fault:
        wrong["self-test:head"] = f"self-test: {self_test_fault}"
    return wrong


def service_id(settings: Settings) -> str:
    """The executor id of the service. On PostgreSQL several nodes may share the database."""
    if settings.engine.database_url is None:
        return "service"
    return f"{os.uname().nodename}-service"


def settings_digest(settings: Settings) -> str:
    """Of the settings that change a result beside the model (`config.settings`, "(result)")."""
    pipeline = settings.pipeline
    said = f"mirroring={pipeline.mirroring}"
    if pipeline.brain != "surface-refine":
        tool = pipeline.brain_tool
        said += f";brain={pipeline.brain};fraction={tool.fraction:g};device={tool.device}"
        said += f";weights={tool.weights}"
    return hashlib.sha256(said.encode()).hexdigest()


def pack_digest(settings: Settings) -> str:
    """Of the configured pack, every file of it checked.

    Raises:
        ModelPackError: The pack is missing or changed.
    """
    pack = find_pack(settings.pipeline.model, folders=[settings.node.packs_dir])
    return load_pack(pack).digest


def _require_brain_tool(settings: Settings) -> None:
    """A configured skull strip that is missing would fail every case: the node does not start."""
    if settings.pipeline.brain == "surface-refine":
        return
    from pipeline.brain_tools import require_extractor  # the service needs it for nothing else

    require_extractor(settings.pipeline)


def serve(
    settings: Settings,
    config: Path,
    *,
    worker_command: Sequence[str] = WORKER_COMMAND,
    model_digest: Callable[[Settings], str] = pack_digest,
    standby: bool = False,
) -> int:
    """Run the node until SIGTERM or SIGINT.

    Args:
        settings: What `config` says.
        config: The site's file; workers read it themselves.
        worker_command: How a worker is started; tests start one with a small analyser.
        model_digest: Digest of the model that workers run.
        standby: Another service may run on these data: wait for its end, and take its place.

    Returns:
        0 when ended while it waited, 1 when the node cannot start. Otherwise it does not return:
        the process ends with status 0, since threads of work under way cannot be ended and need
        not be.
    """
    os.umask(PRIVATE)  # workers and decoders inherit it
    ended = threading.Event()

    def _end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    data_dir = settings.node.data_dir
    workers = Workers(settings.engine.workers, config, worker_command)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        configure_logging(site_key(data_dir))
        _require_brain_tool(settings)
        if standby:
            log.info("service.standby", pid=os.getpid())
        identity = _only_service(data_dir, standby, ended)
        if identity is None:
            return 0
        node = Node.start(settings, workers, model_digest(settings), config)
    except IdentityTakenError as error:
        return _cannot_start("service.identity-taken", error)
    except StudyError as error:
        return _cannot_start("service.no-model", error)
    except TlsFilesError as error:
        return _cannot_start("service.no-tls", error)
    except OSError as error:  # the port is taken, the directory is not ours, the disk is full
        return _cannot_start("service.cannot-start", error)
    while not ended.wait(TICK_S):
        node.workers.tick()
    node.stop()
    identity.release()
    sys.stderr.flush()
    os._exit(0)


def _only_service(data_dir: Path, standby: bool, ended: threading.Event) -> FileIdentity | None:
    """Proof that no other service runs on these data; None when told to end while one did.

    Raises:
        IdentityTakenError: Another one does, and nobody said to wait for it.
    """
    while True:
        try:
            return FileIdentity(
                data_dir / SERVICE_LOCK,
                wait_s=2.0,  # a predecessor that was killed may still be ending
                taken=f"a flairnode service runs on {data_dir} already",
            )
        except IdentityTakenError:
            if not standby:
                raise
        if ended.is_set():
            return None


def _cannot_start(event: str, error: Exception) -> int:
    log.error(event, why=str(error))
    sys.stderr.write(f"flairnode serve: {error}\n")
    return EXIT_CANNOT_START
