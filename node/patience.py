"""When a result that a destination did not take is sent again, and when that is given up.

Pauses grow to a longest one, each a fifth longer or shorter by chance. They are measured by the
monotonic clock: one that jumps neither hastens an attempt nor ends the patience. What the ledger
remembers over a restart is how often it was tried and how long the node waited, running; a restart
makes everything due at once, and an hour in which the node was off is no hour of waiting.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from config.settings import DeliverySettings
from node.ledger import Ledger, Waited

JITTER = 0.2
UNDER_WAY_S = 600.0
"""An attempt that was handed on and never came back is made once more after so long."""


@dataclass(slots=True)
class _Plan:
    since_s: float
    """When this pause began."""
    due_s: float


class Patience:
    """The pauses of all results that wait. Safe from several threads."""

    def __init__(
        self,
        settings: DeliverySettings,
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is planned: whatever waits is due.

        Args:
            settings: The pauses.
            ledger: Where the waiting is remembered.
            clock: Seconds; one that only goes forward.
        """
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._plans: dict[tuple[str, str], _Plan] = {}
        self._lock = threading.Lock()

    def plan(self, job_id: str, peer: str, *, endless: bool = False) -> bool:
        """An attempt failed: begin the next pause. True when it is time to give up.

        Args:
            job_id: Whose result.
            peer: Where it is not.
            endless: It is there, and only a report is waited for: that ends otherwise.
        """
        now = self._clock()
        before = self._ledger.waited(job_id, peer) or Waited(0, 0.0)
        with self._lock:
            planned = self._plans.get((job_id, peer))
            waited_s = before.waited_s
            if planned is not None and before.rounds:
                waited_s += now - planned.since_s
            give_up = not endless and waited_s >= self._settings.give_up_after_h * 3600
            if not give_up:
                pause_s = self.pause_s(before.rounds)
                self._plans[job_id, peer] = _Plan(now, now + pause_s)
        if give_up:
            self.forget(job_id, peer)
        else:
            self._ledger.record_wait(job_id, peer, Waited(before.rounds + 1, waited_s))
        return give_up

    def pause_s(self, rounds: int) -> float:
        """The pause after so many of them."""
        plan = self._settings
        longest = plan.retry_held_every_s
        # An exponent that grows for three days would overflow.
        exponent = min(plan.attempts - 1 + rounds, 64)
        pause_s = min(plan.first_pause_s * plan.backoff**exponent, longest)
        return pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # no secret

    def under_way(self, job_id: str, peer: str) -> None:
        """An attempt is being made; it is not due until that is over."""
        now = self._clock()
        with self._lock:
            planned = self._plans.get((job_id, peer))
            since_s = now if planned is None else planned.since_s
            self._plans[job_id, peer] = _Plan(since_s, now + UNDER_WAY_S)

    def is_due(self, job_id: str, peer: str) -> bool:
        """Is its pause over? What has none is due."""
        with self._lock:
            planned = self._plans.get((job_id, peer))
        return planned is None or self._clock() >= planned.due_s

    def due(self) -> list[tuple[str, str]]:
        """(job id, peer) of every pause that is over."""
        now = self._clock()
        with self._lock:
            return [key for key, planned in self._plans.items() if now >= planned.due_s]

    def knows(self, job_id: str) -> bool:
        """Does anything of that job wait here for its time?"""
        with self._lock:
            return any(known == job_id for known, _ in self._plans)

    def hurry(self, peer: str) -> None:
        """End every pause for a peer."""
        now = self._clock()
        with self._lock:
            for (_, one), planned in self._plans.items():
                if one == peer:
                    planned.due_s = now

    def forget(self, job_id: str, peer: str) -> None:
        """It arrived, or nobody waits for it any more."""
        with self._lock:
            known = self._plans.pop((job_id, peer), None)
        if known is not None or self._ledger.waited(job_id, peer) is not None:
            self._ledger.end_wait(job_id, peer)
