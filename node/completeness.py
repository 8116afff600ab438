"""Is a study all there? DICOM has no end-of-study message, so three things are asked.

Silence, by a monotonic clock; the geometry and the counts that the headers state
(`dicom.volume.stack_grid`, used by the selection); and a peer that can be queried for how many
instances it holds. What no peer confirmed is marked so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from config.settings import Settings
from dicom.errors import IncompleteSeriesError, Outcome
from dicom.network.scu import PeerError, count_series_instances, find_instances
from node.ledger import OTHER_FLAIR, Counts, SeriesDecision, SeriesRow

log = structlog.get_logger(__name__)

INCOMPLETE = "incomplete"
SOURCE_UNREACHABLE = "source-unreachable"
DELETED_AT_SOURCE = "deleted-at-source"
TO_COME = "series-to-come"
QUERY_TIMEOUT_S = 10.0  # all studies wait while one is asked for

# A skipped series would be judged otherwise with more slices only for one of these reasons.
_DEPENDS_ON_SLICES = frozenset({OTHER_FLAIR, IncompleteSeriesError.reason})


class QuietClock:
    """How long each study has been silent. Wall clocks jump; this one does not.

    It starts anew with the process: after a restart every study is given one more quiet period.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._incomplete_since: dict[str, float] = {}
        self._lock = threading.Lock()

    def touch(self, study_instance_uid: str) -> None:
        """Something of the study arrived, or it is to be given another quiet period."""
        with self._lock:
            self._last[study_instance_uid] = self._clock()

    def silence_s(self, study_instance_uid: str) -> float:
        """Seconds since the last touch; the first question counts as one."""
        with self._lock:
            now = self._clock()
            return now - self._last.setdefault(study_instance_uid, now)

    def incomplete_s(self, study_instance_uid: str) -> float:
        """Seconds since the study was first found incomplete, which the first question makes it."""
        with self._lock:
            now = self._clock()
            return now - self._incomplete_since.setdefault(study_instance_uid, now)

    def forget(self, study_instance_uid: str) -> None:
        """The study is closed."""
        with self._lock:
            self._last.pop(study_instance_uid, None)
            self._incomplete_since.pop(study_instance_uid, None)


@dataclass(frozen=True, slots=True)
class PeerHolding:
    """How many instances of each series a peer says it holds; None: it could not be asked."""

    by_series: Mapping[str, int] | None

    def counts(self, series: SeriesRow) -> Counts:
        """Confirmed when the peer holds exactly what we hold."""
        found = (self.by_series or {}).get(series.series_instance_uid)
        return Counts.CONFIRMED if found == series.instances else Counts.UNCONFIRMED

    def has_more(self, series: SeriesRow) -> bool:
        """Does the peer hold instances that have not come to us?"""
        return (self.by_series or {}).get(series.series_instance_uid, 0) > series.instances


NOT_ASKED = PeerHolding(None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the source of a series says of the instances that we hold of it."""

    counts: Counts = Counts.UNCONFIRMED
    reason: str = ""
    """Why the series cannot be analysed as it is; "" if it can."""
    explanation: str = ""
    waits: bool = False
    """It may heal: held for the reason only after the longest wait."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What the sources of a study say, by series; a series that is not theirs is not here."""

    verdicts: Mapping[str, Verdict]
    to_come: int = 0
    """Series that a source lists and of which nothing was fetched yet."""

    @property
    def waits(self) -> bool:
        """Is the study to be given another quiet period?"""
        return bool(self.reasons_to_wait)

    @property
    def reasons_to_wait(self) -> tuple[str, ...]:
        """Each once."""
        reasons = {verdict.reason for verdict in self.verdicts.values() if verdict.waits}
        if self.to_come:
            reasons.add(TO_COME)
        return tuple(sorted(reasons))


NOTHING_LISTED = Listing({})


class Sources(Protocol):
    """The peers that studies are fetched from (`node.follow.FollowedSources`)."""

    def listing(self, study_instance_uid: str, series: Sequence[SeriesRow]) -> Listing:
        """Ask the sources of a study about these series of it."""

    def origin(self, series: SeriesRow) -> str:
        """The peers that a series was, or is to be, fetched from; "" if it was only sent."""


def query_peer(settings: Settings, study_instance_uid: str, wanted: Sequence[str]) -> PeerHolding:
    """Ask the configured peer how many instances of the wanted series it holds.

    A peer that cannot be reached or refuses is logged and confirms nothing; the study goes on.
    """
    name = settings.completeness.query_peer
    if name is None or not wanted:
        return NOT_ASKED
    peer, caller = settings.peer(name), settings.node.ae_title
    try:
        told = count_series_instances(
            peer, study_instance_uid, calling_ae_title=caller, timeout_s=QUERY_TIMEOUT_S
        )
        by_series = {}
        for uid in wanted:
            count = told.get(uid, 0)
            if count is None:  # NumberOfSeriesRelatedInstances is optional (PS3.4 C.6.1.1.4)
                count = len(
                    find_instances(
                        peer,
                        study_instance_uid,
                        uid,
                        calling_ae_title=caller,
                        timeout_s=QUERY_TIMEOUT_S,
                    )
                )
            by_series[uid] = count
    except PeerError as error:
        log.warning("completeness.unconfirmed", peer=name, reason=error.reason, why=str(error))
        return NOT_ASKED
    return PeerHolding(by_series)


def depends_on_slices(decision: SeriesDecision) -> bool:
    """Could more slices change what becomes of the series?

    A localizer stays one however many images it has. A FLAIR, chosen or refused, does not.
    """
    return (
        decision.chosen
        or decision.outcome is Outcome.NOT_ANALYSED
        or decision.reason in _DEPENDS_ON_SLICES
    )
