"""Who was turned away, noted so that no flood of refusals fills the disk.

The first refusal of a kind is written at once. What follows within five minutes is counted, and
told as one line with its count. Of kinds beyond a few, as of somebody who makes up AE titles, only
the count is kept: at most some thirty lines in five minutes, whatever knocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from dicom.network.scp import Refusal

PERIOD_S = 300.0
KINDS = 16
"""Told apart in one period."""
OTHERS = "many"
"""Reason of the line that counts all other kinds together."""


class Refusals:
    """Notes refusals; safe from several threads."""

    def __init__(
        self,
        write: Callable[[Mapping[str, str | int]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `write` takes the facts of one line; `clock` tells seconds."""
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0
        self._counts: dict[Refusal, int] = {}
        self._others = 0

    def note(self, refusal: Refusal) -> None:
        """Write it down, or count it."""
        with self._lock:
            lines = self._told()
            if refusal in self._counts:
                self._counts[refusal] += 1
            elif len(self._counts) < KINDS:
                self._counts[refusal] = 0
                lines.append(_facts(refusal))
            else:
                self._others += 1
        for line in lines:
            self._write(line)

    def flush(self) -> None:
        """Tell the counts of a period that is over."""
        with self._lock:
            lines = self._told()
        for line in lines:
            self._write(line)

    def _told(self) -> list[dict[str, str | int]]:
        if self._clock() < self._until:
            return []
        lines = [
            {**_facts(refusal), "count": count} for refusal, count in self._counts.items() if count
        ]
        if self._others:
            lines.append({"reason": OTHERS, "count": self._others})
        self._counts, self._others = {}, 0
        self._until = self._clock() + PERIOD_S
        return lines


def _facts(refusal: Refusal) -> dict[str, str | int]:
    facts: dict[str, str | int] = {
        "reason": refusal.reason,
        "address": refusal.address,
        "calling_ae_title": refusal.calling_ae_title,
        "called_ae_title": refusal.called_ae_title,
    }
    if refusal.why:
        facts["why"] = refusal.why
    return facts
