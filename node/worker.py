"""A worker process: one device, one warm model, one case at a time.

It knows orders and result folders, not the ledger. It may be killed at any moment: by its parent's
death, by a limit, by the kernel for its memory, or by the case itself. Attempts are noted before a
case begins, so that a case that kills its worker three times is ended instead of tried for ever,
while one that was running when the whole node was stopped is not blamed. A case beyond its time or
its memory ends the worker as well, but leaves word why: once more in a new one, then it has failed.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import structlog

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import Outcome, StudyError
from node.durable import sync_directory
from node.engine import Engine, IdentityTakenError
from node.limits import (
    EXIT_MEMORY_LIMIT,
    EXIT_TIME_LIMIT,
    MEMORY_LIMIT,
    TIME_LIMIT,
    LimitWatch,
)
from node.logs import configure_logging
from node.outcome import JobOutcome, Order, ResultFile, ResultsFolder
from node.pause import PauseSwitch
from node.sitekey import site_key
from node.workflow import ANALYSIS, POISON, WORKFLOW_VERSION, Analysis

if TYPE_CHECKING:
    from node.analysis import AnalysisOutcome

log = structlog.get_logger(__name__)

DEATHS_ALLOWED = 3
"""A case that ended its worker so often is ended itself."""
MODEL_CHANGED = "model-changed"
INTERNAL_ERROR = "internal-error"


DEVICE_UNAVAILABLE = "device-unavailable"
OVERRUNS_ALLOWED = 2
"""Of time or memory: the second time cannot be blamed on a worker that was old, or on the host."""
PAUSE_LOOK_S = 0.5
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
DISK_ERRORS = NO_ROOM | {errno.EIO, errno.EROFS}
DISK_ATTEMPTS = 14  # with their pauses about five minutes
FIRST_DISK_PAUSE_S = 0.5
LONGEST_DISK_PAUSE_S = 30.0
EXIT_PARENT_GONE = 0
EXIT_IDENTITY_TAKEN = 75  # EX_TEMPFAIL: the predecessor is still ending
EXIT_NO_MODEL = 78  # EX_CONFIG
EXIT_DEVICE_WORN = 75  # EX_TEMPFAIL: a new process may find the device well
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Analyser:
    """A model, warm and ready."""

    pack_digest: str
    research: bool
    analyse: Callable[..., AnalysisOutcome]
    """The files of one series, and the folder that the objects are written into; where there is
    one, the report that this one replaces, as `predecessor`."""
    tell_why: Callable[[Sequence[Path], Path, str, str], AnalysisOutcome]
    """The same, with the reason and the explanation of a refusal that a note is made of."""
    worn: Callable[[], bool] = lambda: False
    """Did the device fail in this process, so that a new one should take the next case?"""


def load_pipeline(settings: Settings) -> Analyser:
    """The configured model, every file checked against its digest, warm.

    Raises:
        ModelPackError: The pack is missing, changed or of a kind that cannot be run.
        BrainToolMissingError: The configured skull strip is not there.
    """
    # torch: seconds
    from node.analysis import analyse_series, kinds_to_make, tell_why
    from pipeline.brain_tools import require_extractor
    from pipeline.model_pack import find_pack, load_pack
    from pipeline.steady import SteadyEnsemble

    extract = require_extractor(settings.pipeline).extract
    pack = load_pack(find_pack(settings.pipeline.model, folders=[settings.node.packs_dir]))
    ensemble = SteadyEnsemble.load(pack, settings.pipeline)
    kinds = kinds_to_make(settings)
    return Analyser(
        pack_digest=pack.digest,
        research=pack.manifest.status == "research",
        analyse=lambda paths, output, **replaced: analyse_series(
            paths,
            ensemble,
            pack,
            output,
            kinds=kinds,
            extract=extract,
            preview=settings.web.enabled,
            **replaced,
        ),
        tell_why=lambda paths, output, reason, explanation: tell_why(
            paths, pack, output, reason, explanation
        ),
        worn=lambda: ensemble.worn,
    )


_OVERRUN = "!"


class Attempts:
    """`<job>.attempts`: a line for each time a worker began the case.

    A line names the order's workflow and the run of the node it happened in. The last attempt of an
    earlier run is not counted: the node was stopped then, and the worker with it. An attempt that
    overran a limit is followed by a line with `!` and the reason.
    """

    def __init__(self, path: Path, workflow_id: str, run: str) -> None:
        self._path = path
        self._workflow_id = workflow_id
        self._run = run

    def deaths(self) -> int:
        """How often the case ended its worker while the node went on."""
        per_run: dict[str, int] = {}
        for line in self._lines():
            workflow_id, _, run = line.partition(" ")
            if workflow_id == self._workflow_id and not run.startswith(_OVERRUN):
                per_run[run] = per_run.get(run, 0) + 1
        return sum(count if run == self._run else count - 1 for run, count in per_run.items())

    def overruns(self) -> list[str]:
        """The reason of each time that the case went beyond a limit, whichever run it was in."""
        words = [line.partition(" ") for line in self._lines()]
        return [
            what.removeprefix(_OVERRUN)
            for workflow_id, _, what in words
            if workflow_id == self._workflow_id and what.startswith(_OVERRUN)
        ]

    def begin(self) -> None:
        """Note an attempt, durably, before it begins."""
        self._append(self._run)

    def overran(self, reason: str) -> None:
        """Note, durably, why the worker is about to end."""
        self._append(f"{_OVERRUN}{reason}")

    def _append(self, what: str) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, f"{self._workflow_id} {what}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(self._path.parent)

    def take_back(self) -> None:
        """The attempt was ended from outside, in order."""
        lines = self._lines()[:-1]
        part = self._path.with_suffix(".taken-back")
        part.write_text("".join(f"{line}\n" for line in lines))
        part.replace(self._path)

    def clear(self) -> None:
        """The case is done."""
        self._path.unlink(missing_ok=True)

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text().splitlines()
        except FileNotFoundError:
            return []


class Worker:
    """Runs orders, one at a time."""

    def __init__(self, settings: Settings, analyser: Analyser, run: str) -> None:
        """Get ready.

        Args:
            settings: Of the site.
            analyser: The warm model.
            run: Identifies this run of the node; all workers of one service share it.
        """
        self._results = ResultsFolder(settings.node.data_dir)
        self._time_limit_s = settings.pipeline.time_limit_s
        self._memory_limit_mb = settings.pipeline.memory_limit_mb
        self._pause = PauseSwitch(settings.node.data_dir)
        self._analyser = analyser
        self._run = run
        self._current: Attempts | None = None
        self._begun: str | None = None
        self._lock = threading.Lock()

    def analyse(self, job_id: str) -> Outcome:
        """Carry out an order. A result that is there is kept; a crash leaves nothing half done."""
        self._wait_while_paused()
        order = self._results.read_order(job_id)
        known = self._results.read(job_id)
        # An analysed result is never built twice. Any other end is looked at again only when an
        # operator asked for it, which makes another workflow id.
        if known is not None and (
            known.outcome is Outcome.ANALYSED or known.workflow_id == order.workflow_id
        ):
            return known.outcome
        attempts = Attempts(self._results.attempts(job_id), order.workflow_id, self._run)
        outcome, report = self._attempt(job_id, order, attempts)
        self._results.finish(job_id, outcome, order, report)
        with self._lock:
            self._current = self._begun = None
            attempts.clear()
        log.info("case.analysed", job=job_id, state=outcome.outcome.value, reason=outcome.reason)
        if self._analyser.worn():
            # The result is on disk: whoever takes the order up again finds it there.
            log.error("worker.device-worn", job=job_id)
            os._exit(EXIT_DEVICE_WORN)
        return outcome.outcome

    def _wait_while_paused(self) -> None:
        """Paused: the case waits here, unbegun, however long."""
        while self._pause.is_on():
            time.sleep(PAUSE_LOOK_S)

    def leave(self) -> None:
        """The process ends in order: the case under way is not to be blamed for it."""
        with self._lock:
            if self._current is not None:
                self._current.take_back()

    def _attempt(
        self, job_id: str, order: Order, attempts: Attempts
    ) -> tuple[JobOutcome, Mapping[str, Any] | None]:
        part = self._results.begin(job_id)
        overruns = attempts.overruns()
        if len(overruns) >= OVERRUNS_ALLOWED:
            reason = overruns[-1]
            explanation = f"{self._limit_in_words(reason)}, in each of {len(overruns)} attempts"
            return self._ended(order, Outcome.FAILED, reason, explanation), None
        if attempts.deaths() >= DEATHS_ALLOWED:
            explanation = f"the case ended its worker {DEATHS_ALLOWED} times"
            return self._ended(order, Outcome.FAILED, POISON, explanation), None
        refusal: Mapping[str, str] | None = order.job.get("refusal")
        if refusal is None and order.job["pack_digest"] != self._analyser.pack_digest:
            explanation = (
                "this node runs another model now; `flairnode jobs retry` with the Series Instance "
                "UID analyses the series with it"
            )
            return self._ended(order, Outcome.HELD, MODEL_CHANGED, explanation), None
        with self._lock:
            if self._begun != job_id:  # else the disk failed under this attempt, which goes on
                attempts.begin()
            self._current, self._begun = attempts, job_id
        watch = LimitWatch(
            self._time_limit_s,
            self._memory_limit_mb,
            lambda reason: self._end_for(reason, job_id, attempts),
        )
        watch.start()
        try:
            if refusal is None:
                replaced = {} if order.predecessor is None else {"predecessor": order.predecessor}
                finished = self._analyser.analyse(self._paths(order), part, **replaced)
            else:
                finished = self._analyser.tell_why(
                    self._paths(order), part, refusal["reason"], refusal["explanation"]
                )
        except StudyError as error:
            self._results.begin(job_id)  # nothing of a refused or failed analysis is kept
            return self._ended(order, error.outcome, error.reason, str(error)), None
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            log.exception("case.failed", job=job_id)
            self._results.begin(job_id)
            return self._failed(order, error), None
        except Exception as error:  # the one place: this case fails, the next goes on
            if _is_out_of_memory(error):
                self._end_for(MEMORY_LIMIT, job_id, attempts)
            log.exception("case.failed", job=job_id)
            self._results.begin(job_id)
            return self._failed(order, error), None
        finally:
            watch.cancel()
        if why := finished.report.get("no_note"):
            log.warning("note.not-made", job=job_id, reason=finished.reason, why=why)
        return self._as_outcome(order, finished), _with_names(finished.report)

    def _paths(self, order: Order) -> list[Path]:
        return [self._results.data_dir / name for name in order.files]

    def _end_for(self, reason: str, job_id: str, attempts: Attempts) -> None:
        """Beyond a limit: no thread can be ended from outside; the process can."""
        log.error(
            "case.out-of-time" if reason == TIME_LIMIT else "case.out-of-memory",
            job=job_id,
            reason=reason,
            limit_s=self._time_limit_s,
            memory_mb=self._memory_limit_mb,
        )
        with suppress(OSError):  # a full disk must not keep it from ending
            attempts.overran(reason)
        os._exit(EXIT_TIME_LIMIT if reason == TIME_LIMIT else EXIT_MEMORY_LIMIT)

    def _limit_in_words(self, reason: str) -> str:
        if reason == TIME_LIMIT:
            return f"it took longer than pipeline.time_limit_s ({self._time_limit_s:g} s)"
        limit = f"pipeline.memory_limit_mb ({self._memory_limit_mb} MB)"
        return f"it needed more memory than {limit}"

    def _failed(self, order: Order, error: Exception) -> JobOutcome:
        # The message of an unexpected error may quote a patient's data: its type must do.
        return self._ended(order, Outcome.FAILED, INTERNAL_ERROR, type(error).__name__)

    def _ended(self, order: Order, outcome: Outcome, reason: str, explanation: str) -> JobOutcome:
        research = self._analyser.research
        return JobOutcome(outcome, reason, explanation, order.workflow_id, research, ())

    def _as_outcome(self, order: Order, finished: AnalysisOutcome) -> JobOutcome:
        return JobOutcome(
            outcome=finished.outcome,
            reason=finished.reason,
            explanation=finished.explanation,
            workflow_id=order.workflow_id,
            research=self._analyser.research,
            objects=tuple(
                ResultFile(one.kind, one.sop_instance_uid, one.path) for one in finished.outputs
            ),
        )


def _is_out_of_memory(error: Exception) -> bool:
    """Of the host. What a GPU lacks, `pipeline.steady` has dealt with by now."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)  # torch's
    )


def _with_names(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with file names for paths: the folder it was written in is renamed."""
    outputs = [{**one, "path": Path(one["path"]).name} for one in report.get("outputs", ())]
    return {**report, "outputs": outputs}


def waiting_for_the_disk(
    analyse: Callable[[str], Outcome], pause: Callable[[float], None] = time.sleep
) -> Callable[[str], Outcome]:
    """`analyse`, tried again while the disk is full or broken: that is no fault of the case.

    Until there is room, however long. A disk that cannot be read or written may be one bad sector
    under this case alone: then it is given up after some minutes, and the others go on.
    """

    def analyse_or_wait(job_id: str) -> Outcome:
        for number in count():
            try:
                return analyse(job_id)
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                if error.errno not in NO_ROOM and number >= DISK_ATTEMPTS:
                    raise
                waits_s = min(LONGEST_DISK_PAUSE_S, FIRST_DISK_PAUSE_S * 2.0**number)
                log.exception("case.disk-failed", job=job_id, waited_s=waits_s)
                pause(waits_s)
        raise AssertionError("it counts for ever")

    return analyse_or_wait


# --- the process -------------------------------------------------------------------------------


def run_worker(
    settings: Settings,
    index: int,
    *,
    load: Callable[[Settings], Analyser] = load_pipeline,
    run: str | None = None,
) -> int:
    """Take analyses from the queue until SIGTERM; the exit status.

    Args:
        settings: Of the site.
        index: Number of the worker on this host; with the host's name it is the executor's id.
        load: Makes the analyser; tests hand in a small one.
        run: Of the service that started us. None: this machine's run, since its last boot.
    """
    executor_id = worker_id(settings, index)
    configure_logging(site_key(settings.node.data_dir))
    ended = threading.Event()

    def _end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    began = time.monotonic()
    try:
        analyser = load(settings)
    except StudyError as error:
        log.error("worker.no-model", reason=error.reason, why=str(error))  # noqa: TRY400  # said in full
        return EXIT_NO_MODEL
    _limit_memory(settings)
    worker = Worker(settings, analyser, run or _boot_id())
    Analysis(waiting_for_the_disk(worker.analyse))
    try:
        engine = Engine(settings, executor_id, WORKFLOW_VERSION)
    except IdentityTakenError as error:
        log.error("worker.identity-taken", why=str(error))  # noqa: TRY400  # said in full
        return EXIT_IDENTITY_TAKEN
    if not ended.is_set():
        engine.launch([ANALYSIS])
        log.info(
            "worker.ready",
            index=index,
            pid=os.getpid(),
            duration_s=round(time.monotonic() - began, 2),
        )
    ended.wait()
    worker.leave()
    log.info("worker.ended", index=index, pid=os.getpid())
    # Threads of a case under way cannot be ended; what is on disk is whole at any moment.
    sys.stderr.flush()
    os._exit(0)


def worker_id(settings: Settings, index: int) -> str:
    """The executor id of a worker. On PostgreSQL several hosts share the database."""
    if settings.engine.database_url is None:
        return f"worker-{index}"
    return f"{os.uname().nodename}-worker-{index}"


def die_with(parent: int) -> None:
    """Be killed when the thread that started us ends, and end now if it is gone already.

    Linux ties the signal to the thread that forked, so the service starts workers from its main
    thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(EXIT_PARENT_GONE)


def _limit_memory(settings: Settings) -> None:
    """An allocation beyond the limit fails inside the process instead of taking the host along.

    RLIMIT_DATA counts what is private and writable, and the programs we start inherit it. CUDA maps
    far more host memory than it uses, so on a GPU only what is resident counts (`node.limits`).
    """
    limit_mb = settings.pipeline.memory_limit_mb
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    if limit_mb == 0 or on_gpu:
        return
    limit = limit_mb * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m node.worker`: how the service starts a worker."""
    parser = argparse.ArgumentParser(prog="node.worker")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--run", required=True)
    arguments = parser.parse_args(argv)
    die_with(arguments.parent)
    return run_worker(load_settings(arguments.config), arguments.index, run=arguments.run)


if __name__ == "__main__":
    sys.exit(main())
