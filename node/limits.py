"""Watches one case from inside its worker: how long it takes, how much memory it holds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.25
"""A gigabyte takes about as long to fill; what is asked for at once, RLIMIT_DATA refuses."""
TIME_LIMIT = "time-limit"
MEMORY_LIMIT = "memory-limit"
EXIT_TIME_LIMIT = 124  # as `timeout` says it
EXIT_MEMORY_LIMIT = 125
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


def resident_mb(pid: int) -> float:
    """Memory of a process that lies in RAM; 0 for one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB
    except (OSError, IndexError, ValueError):
        return 0.0


def family(pid: int) -> list[int]:
    """A process and everything it started, as far as that still runs."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in children.read_text().split())
            except OSError:
                continue
    return found


class LimitWatch(threading.Thread):
    """Says once that a limit is exceeded, with the reason; `cancel` it when the case is done."""

    def __init__(
        self, time_limit_s: float, memory_limit_mb: int, exceeded: Callable[[str], None]
    ) -> None:
        """Get ready to watch this process.

        Args:
            time_limit_s: From `start` on, by the monotonic clock.
            memory_limit_mb: Of this process, and of each program it started; 0 for none.
            exceeded: Called in this thread with `time-limit` or `memory-limit`.
        """
        super().__init__(name="limits", daemon=True)
        self._time_limit_s = time_limit_s
        self._memory_limit_mb = memory_limit_mb
        self._exceeded = exceeded
        self._done = threading.Event()

    def cancel(self) -> None:
        """The case is done."""
        self._done.set()

    def run(self) -> None:
        """Look four times a second until the case is done."""
        ends_at = time.monotonic() + self._time_limit_s
        while True:
            left_s = ends_at - time.monotonic()
            if self._done.wait(max(0.0, min(LOOK_S, left_s))):
                return
            if left_s <= LOOK_S and time.monotonic() >= ends_at:
                self._exceeded(TIME_LIMIT)
                return
            if self._memory_limit_mb and self._memory_mb() > self._memory_limit_mb:
                self._exceeded(MEMORY_LIMIT)
                return

    def _memory_mb(self) -> float:
        return max(map(resident_mb, family(os.getpid())))
