"""One fold in a process of its own: `flairnode train fold`, and what `train run` starts.

    RUN/dataset/...           nnU-Net's preprocessed dataset (`training.dataset`)
    RUN/plans.json            copies: RUN is a results folder as nnU-Net's predictor reads it
    RUN/dataset.json
    RUN/fold_K/lock           held by the process that trains fold K
    RUN/fold_K/...            checkpoints, log.csv, progress.json

A fold is trained by one process at a time: the lock is the kernel's, and falls with the process.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import ClassVar

from dicom.errors import Outcome, StudyError
from training.fold_log import FoldProgress, read_progress, write_progress
from training.whole_files import write_text

LOCK = "lock"
LOCK_WAIT_S = 20.0
"""A process that was killed a moment ago may still be ending, on this host or another."""
EXIT_DONE, EXIT_FAILED, EXIT_TAKEN, EXIT_STOPPED = 0, 1, 75, 143
_PR_SET_PDEATHSIG = 1


class FoldTakenError(StudyError):
    """Another process trains this fold at the moment."""

    retry = True
    reason: ClassVar[str] = "fold-taken"
    outcome: ClassVar[Outcome] = Outcome.FAILED


class NoSuchFoldError(StudyError):
    """The splits have no fold of that number."""

    reason: ClassVar[str] = "no-such-fold"


class StoppedError(BaseException):
    """We were asked to end. Nothing catches it on the way, as with a keyboard's interrupt."""


def fold_folder(run: Path, fold: int) -> Path:
    """Where a fold is kept."""
    return run / f"fold_{fold}"


@contextmanager
def locked(folder: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock of a fold.

    Raises:
        FoldTakenError: Another process holds it for longer than `wait_s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise FoldTakenError(
                        f"another process trains {folder.name} at the moment"
                    ) from None
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def train_fold(
    run: Path,
    fold: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    workers: int = 0,
    report: Callable[[FoldProgress], None] | None = None,
) -> str:
    """Train fold K of a run to its end in this process; the digest of its weights.

    Raises:
        StudyError: It cannot be trained; `progress.json` says the same.
    """
    folder = fold_folder(run, fold)
    with locked(folder):
        try:
            return _trained(run, fold, device, threads, workers, report)
        except StoppedError:
            write_progress(folder, replace(read_progress(folder, fold), state="stopped"))
            raise
        except StudyError as error:
            write_progress(
                folder,
                replace(
                    read_progress(folder, fold),
                    state="failed",
                    reason=error.reason,
                    explanation=str(error),
                ),
            )
            raise


def _trained(
    run: Path,
    fold: int,
    device: str,
    threads: int,
    workers: int,
    report: Callable[[FoldProgress], None] | None,
) -> str:
    from training.dataset import open_dataset
    from training.nnunet_trainer import Compute, FoldTrainer

    dataset = open_dataset(run)
    if not 0 <= fold < len(dataset.splits):
        raise NoSuchFoldError(f"fold {fold}: the dataset has {len(dataset.splits)} folds")
    for name, content in (("plans.json", dataset.plans), ("dataset.json", dataset.dataset_json)):
        if not (run / name).is_file():
            write_text(run / name, json.dumps(content, indent=2) + "\n")
    trainer = FoldTrainer.of(
        dataset, run, fold, Compute(device=device, threads=threads, workers=workers)
    )
    return trainer.train(report)


def main(argv: Sequence[str] | None = None) -> int:
    """The process that `train run` starts for a fold."""
    parser = argparse.ArgumentParser(prog="training.fold")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args(argv)
    die_with(arguments.parent)
    signal.signal(signal.SIGTERM, _stop)
    try:
        train_fold(
            arguments.run,
            arguments.fold,
            device=arguments.device,
            threads=arguments.threads,
            workers=arguments.workers,
        )
    except StoppedError:
        return EXIT_STOPPED
    except FoldTakenError:
        return EXIT_TAKEN
    except StudyError as error:
        sys.stderr.write(f"fold {arguments.fold}: {error.reason}: {error}\n")
        return EXIT_FAILED
    return EXIT_DONE


def die_with(parent: int) -> None:
    """Be killed when the thread that started us ends, and end now if it is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(EXIT_STOPPED)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise StoppedError


if __name__ == "__main__":
    sys.exit(main())
