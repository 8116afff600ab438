"""Cases measured by several processes, a warm model in each; a process that dies costs its case.

A process is handed one case at a time and writes the row itself, so what is finished stays whatever
becomes of the others. `concurrent.futures` cannot be used: when one of its processes is killed, all
cases under way are lost, and nobody is told which of them did it.
"""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from dicom.errors import Outcome, StudyError
from training.validate import (
    ROWS,
    Case,
    Model,
    OnRow,
    Row,
    row_path,
    settle_case,
    slim,
    write_lost,
)

Load = Callable[[], Model | None]
"""Makes the model, in the process that is to use it; it has to travel there, so no lambda."""
PATIENCE_S = 10.0  # for a process that is told to end


class WorkerError(StudyError):
    """A process ended before it could take a case."""

    retry = True
    reason = "worker-ended"
    outcome = Outcome.FAILED


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    line: Connection
    case: Case | None = None
    """Under way. None: it loads its model."""


def run_in_processes(
    cases: Sequence[Case],
    output: Path,
    load: Load,
    *,
    processes: int,
    nsd_tolerance_mm: float,
    on_row: OnRow | None = None,
) -> tuple[Row, ...]:
    """`training.validate.run`, by several processes; the same rows, in the order of the cases.

    Raises:
        WorkerError: A process ended while it loaded the model.
        StudyError: The model cannot be loaded.
    """
    (output / ROWS).mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = {}
    for case, kept in _settled(cases, output, load, processes, nsd_tolerance_mm):
        row = json.loads(row_path(output, case).read_text(encoding="utf-8"))
        if on_row is not None:
            on_row(row, kept=kept)
        rows[case.name] = slim(row)
    return tuple(rows[case.name] for case in cases)


def _settled(
    cases: Sequence[Case], output: Path, load: Load, processes: int, nsd_tolerance_mm: float
) -> Iterator[tuple[Case, bool]]:
    """Each case as its row is there, and whether it is from an earlier run."""
    waiting = deque(cases)
    workers = [_start(load, output, nsd_tolerance_mm) for _ in range(min(processes, len(waiting)))]
    try:
        while workers:
            for line in wait([worker.line for worker in workers]):
                worker = next(one for one in workers if one.line is line)
                finished = worker.case
                try:
                    said = worker.line.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    if finished is None:
                        if workers:
                            continue  # the others go on with what is waiting
                        why = _why(worker.process)
                        raise WorkerError(f"a process ended before it took a case: {why}") from None
                    write_lost(finished, output, f"the process ended: {_why(worker.process)}")
                    yield finished, False
                    if waiting:
                        workers.append(_start(load, output, nsd_tolerance_mm))
                    continue
                if isinstance(said, StudyError):
                    raise said
                worker.case = None
                if waiting:
                    worker.case = waiting.popleft()
                    worker.line.send(worker.case)
                else:
                    workers.remove(worker)
                    _end(worker)
                if finished is not None:
                    yield finished, bool(said)
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join(PATIENCE_S)


def _start(load: Load, output: Path, nsd_tolerance_mm: float) -> _Worker:
    context = get_context("spawn")  # torch does not live through a fork
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(theirs, load, output, nsd_tolerance_mm), daemon=True
    )
    process.start()
    theirs.close()  # or its end would never be noticed
    return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.line.send(None)
    worker.line.close()
    worker.process.join(PATIENCE_S)


def _why(process: BaseProcess) -> str:
    process.join(PATIENCE_S)
    code = process.exitcode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name} (memory may have run out)"
    return f"exit status {code}"


def _work(line: Connection, load: Load, output: Path, nsd_tolerance_mm: float) -> None:
    """A process: load, then measure what is handed in until nothing more is."""
    try:
        model = load()
    except StudyError as error:
        line.send(error)
        return
    line.send(False)  # ready; nothing is from an earlier run
    try:
        while (case := line.recv()) is not None:
            _, kept = settle_case(case, output, model, nsd_tolerance_mm)
            line.send(kept)
    except (EOFError, BrokenPipeError):
        return  # whoever asked is gone; what is written stays
