"""Where the folds of a run are, for a person: bars on a terminal, lines everywhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from training.fold_log import FoldProgress


def duration(seconds: float | None) -> str:
    """`2 d 3 h`, `1 h 5 min`, `40 s`: two units at most."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    parts = [
        f"{whole // size % limit} {unit}"
        for size, limit, unit in (
            (86400, 10**9, "d"),
            (3600, 24, "h"),
            (60, 60, "min"),
            (1, 60, "s"),
        )
        if whole // size % limit
    ]
    return " ".join(parts[:2]) or "0 s"


def in_words(now: FoldProgress) -> str:
    """One line."""
    words = [f"fold {now.fold}: {now.state}"]
    if now.epochs:
        words.append(f"epoch {now.epoch}/{now.epochs}")
    if now.val_dice is not None:
        words.append(f"validation Dice {now.val_dice:.3f} (drawn batches, smoothed)")
    if now.plateau_since is not None:
        words.append(f"nothing better since epoch {now.plateau_since + 1}")
    if now.state == "training" and now.seconds_left is not None:
        words.append(f"{duration(now.seconds_left)} left")
    if now.reason:
        words.append(f"{now.reason}: {now.explanation}")
    return ", ".join(words)


class Display:
    """Told of every progress, from several threads."""

    def __init__(self, folds: tuple[int, ...], bars: Progress | None) -> None:
        self._bars = bars
        self._lock = threading.Lock()
        self._last: dict[int, str] = {}
        self._tasks: dict[int, TaskID] = {}
        if bars is not None:
            self._tasks = {
                fold: bars.add_task(f"fold {fold}", total=1.0, words="waiting") for fold in folds
            }

    def __call__(self, now: FoldProgress) -> None:
        """Show it."""
        with self._lock:
            if self._bars is not None and now.fold in self._tasks:
                done = now.epoch + now.iteration / max(now.iterations, 1)
                self._bars.update(
                    self._tasks[now.fold],
                    completed=min(done / now.epochs, 1.0) if now.epochs else 0.0,
                    words=in_words(now).partition(": ")[2],
                )
                return
            # A line per finished epoch and per change of state.
            key = f"{now.state} {now.epoch} {now.reason}"
            if now.state != "waiting" and self._last.get(now.fold) != key:
                self._last[now.fold] = key
                sys.stderr.write(f"{in_words(now)}\n")
                sys.stderr.flush()


@contextmanager
def display(folds: tuple[int, ...]) -> Iterator[Display]:
    """Bars while it lasts, where stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Display(folds, None)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[words]}"),
        console=console,
    ) as bars:
        yield Display(folds, bars)
