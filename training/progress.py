"""How far a run is and how long it will take: a bar on a terminal, a line per case elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from dicom.errors import Outcome
from training.validate import OnRow, Row


class Lines:
    """A line for each case: its number, how it ended, and the time that is left."""

    def __init__(
        self, total: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._stream = stream
        self._clock = clock
        self._begun = clock()
        self._done = self._measured = 0

    def __call__(self, row: Row, *, kept: bool) -> None:
        """Told of each case when its row is there."""
        self._done += 1
        self._measured += not kept
        left = self._left_s()
        time_left = f"; {in_time(left)} left" if left is not None else ""
        self._stream.write(f"{self._done}/{self._total} {told_of(row, kept=kept)}{time_left}\n")
        self._stream.flush()

    def _left_s(self) -> float | None:
        """By the pace of the cases that were measured: those that were kept took no time."""
        if not self._measured or self._done == self._total:
            return None
        return (self._clock() - self._begun) / self._measured * (self._total - self._done)


def told_of(row: Row, *, kept: bool) -> str:
    """How a case ended."""
    end = row["outcome"]
    if end != Outcome.ANALYSED:
        end = f"{end}: {row['reason']}: {row['explanation']}"
    return f"{row['case']}: {end}{' (from an earlier run)' if kept else ''}"


def in_time(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


@contextmanager
def progress(total: int, stream: TextIO | None = None) -> Iterator[OnRow]:
    """What `training.validate.run` is to tell of each case; on standard error by default."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(total, stream)
        return
    from rich.console import Console  # only a terminal needs it
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("cases"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(file=stream),
    )
    with bar:
        task = bar.add_task("cases", total=total)

        def on_row(row: Row, *, kept: bool) -> None:
            if row["outcome"] != Outcome.ANALYSED:
                bar.console.print(told_of(row, kept=kept), markup=False, highlight=False)
            bar.advance(task)

        yield on_row
