"""Folds on the devices of this machine, or wherever a launcher puts them.

A launcher decides which process trains which fold on which device, and when. What a fold is, and
how far it has come, stands in the run folder: a process that dies is started again and goes on from
its last checkpoint, on this host or on another that shares the folder.

`LocalLauncher` needs nothing. Others come from the entry-point group `flairnode.launchers`: a value
is called with the path of the site's settings and the index of this process on its host, and gives
a `Launcher`.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, Protocol

from dicom.errors import StudyError
from training.fold import EXIT_DONE, EXIT_TAKEN, FoldTakenError, fold_folder
from training.fold_log import FoldProgress, read_progress, write_progress

GROUP = "flairnode.launchers"
RESTARTS = 3
"""Of one fold without a finished epoch in between; after that it is not the machine."""
LOOK_EVERY_S = 0.3
STOP_PATIENCE_S = 20.0  # a batch on a CPU takes seconds
TAIL_LINES = 40


class TrainFold(Protocol):
    """Trains a fold in a process of its own, and comes back when that has come to an end."""

    def __call__(self, run: Path, fold: int, device: str) -> FoldProgress:
        """The end: done, failed with its reason, or stopped because we were asked to."""


class Launcher(Protocol):
    """Spreads folds over devices."""

    def launch(
        self,
        run: Path,
        folds: Sequence[int],
        train: TrainFold,
        devices: Sequence[str],
        stop: threading.Event,
    ) -> None:
        """Have every fold trained; back when each has come to an end, or `stop` is set."""

    def work(self, train: TrainFold, devices: Sequence[str], stop: threading.Event) -> None:
        """Train folds that others launched, until `stop` is set."""


class UnknownLauncherError(StudyError):
    """No launcher of that name is installed."""

    reason: ClassVar[str] = "unknown-launcher"


class LocalLauncher:
    """One fold per device at a time, on this machine."""

    def launch(
        self,
        run: Path,
        folds: Sequence[int],
        train: TrainFold,
        devices: Sequence[str],
        stop: threading.Event,
    ) -> None:
        """A thread per device, which waits for the process of its fold."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for fold in folds:
            waiting.put(fold)

        def serve(device: str) -> None:
            while not stop.is_set():
                try:
                    fold = waiting.get_nowait()
                except queue.Empty:
                    return
                train(run, fold, device)

        threads = [
            threading.Thread(target=serve, args=(device,), name=f"folds-{device}-{number}")
            for number, device in enumerate(devices)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(LOOK_EVERY_S)
        except BaseException:
            stop.set()
            for thread in threads:
                thread.join(2 * STOP_PATIENCE_S)
            raise

    def work(self, train: TrainFold, devices: Sequence[str], stop: threading.Event) -> None:
        """Nobody launches folds for another process here.

        Raises:
            UnknownLauncherError: Always.
        """
        raise UnknownLauncherError("local folds are trained by `flairnode train run` itself")


def find_launcher(name: str, config: Path | None, index: int = 0) -> Launcher:
    """`local`, or one that another room offers.

    Raises:
        UnknownLauncherError: There is none of that name.
    """
    if name == "local":
        return LocalLauncher()
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in offered:
        known = ", ".join(["local", *sorted(offered)])
        raise UnknownLauncherError(f"no launcher {name!r}: there is {known}")
    make: Callable[[Path | None, int], Launcher] = offered[name].load()
    return make(config, index)


@dataclass(frozen=True, slots=True)
class FoldProcesses:
    """`TrainFold` with processes: watched, and started again when they die."""

    stop: threading.Event
    threads: int = 1
    """Of a fold on a CPU."""
    workers: int = 0
    """Processes of a fold that draw its batches ahead."""
    watch: Callable[[FoldProgress], None] = field(default=lambda _: None)
    """Told where a fold is, several times a second."""

    def __call__(self, run: Path, fold: int, device: str) -> FoldProgress:
        """Train a fold to its end."""
        folder = fold_folder(run, fold)
        folder.mkdir(parents=True, exist_ok=True)
        died, reached = 0, read_progress(folder, fold).epoch
        while True:
            before = read_progress(folder, fold)
            if before.state in ("failed", "stopped"):
                write_progress(folder, replace(before, state="waiting", reason="", explanation=""))
            status, tail = self._one_process(run, fold, device)
            end = read_progress(folder, fold)
            if status == EXIT_DONE or end.state == "failed":
                self.watch(end)
                return end
            if status == EXIT_TAKEN:
                # Its progress is that of the process that trains it: left alone.
                taken = replace(
                    end,
                    state="failed",
                    reason=FoldTakenError.reason,
                    explanation=f"another process trains fold {fold} of this run at the moment",
                )
                self.watch(taken)
                return taken
            if self.stop.is_set():
                return self._ended(folder, replace(end, state="stopped"))
            died = 1 if end.epoch > reached else died + 1
            reached = max(reached, end.epoch)
            if died > RESTARTS:
                return self._ended(
                    folder,
                    replace(
                        end,
                        state="failed",
                        reason="process-died",
                        explanation=_how_it_died(status, died, tail),
                    ),
                )

    def _one_process(self, run: Path, fold: int, device: str) -> tuple[int, list[str]]:
        """(exit status, last lines of what it said)."""
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        with subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
            self.command(run, fold, device),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches us, and we tell it
        ) as process:
            stream = process.stderr
            if stream is None:  # asked for above
                raise RuntimeError("no stderr")
            reader = threading.Thread(target=lambda: tail.extend(stream), daemon=True)
            reader.start()
            while process.poll() is None:
                self.watch(read_progress(fold_folder(run, fold), fold))
                if self.stop.wait(LOOK_EVERY_S):
                    process.terminate()
                    try:
                        process.wait(STOP_PATIENCE_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
                    break
            status = process.wait()
            reader.join(2.0)
        return status, list(tail)

    def command(self, run: Path, fold: int, device: str) -> list[str]:
        """Of the process."""
        options: Mapping[str, object] = {
            "--run": run,
            "--fold": fold,
            "--device": device,
            "--threads": self.threads,
            "--workers": self.workers,
            "--parent": os.getpid(),
        }
        words = [str(word) for pair in options.items() for word in pair]
        return [sys.executable, "-m", "training.fold", *words]

    def _ended(self, folder: Path, end: FoldProgress) -> FoldProgress:
        write_progress(folder, end)
        self.watch(end)
        return end


def _how_it_died(status: int, times: int, tail: Sequence[str]) -> str:
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    last = next((line.strip() for line in reversed(tail) if line.strip()), "it said nothing")
    hint = (
        "; the kernel kills so when memory runs out: a smaller --batch-size may help"
        if status == -9
        else ""
    )
    return f"its process ended {times} times in the same epoch, at last {how}{hint}: {last}"
