"""One attempt to bring a result to one destination: look, send what is missing, look again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydicom import dcmread

from config.settings import Destination, Peer
from dicom.attributes import text
from dicom.network.scu import (
    PeerError,
    StoreResult,
    find_instances,
    store,
)
from node.outcome import ResultFile

# PS3.4 B.2.3 and PS3.7 C: the peer may take the same object later. Any other refusal is of the
# object itself (A9xx, Cxxx) or of us (0122, 0124), and stays.
_PASSING = (0x0110, *range(0xA700, 0xA800))


class ObjectState(StrEnum):
    """Where one object of a result stands at one destination."""

    CONFIRMED = "confirmed"
    """A C-FIND lists it there."""
    UNCONFIRMED = "unconfirmed"
    """Stored there by its own word; the destination is configured `confirm = "none"`."""
    TRYING = "trying"
    """Not there. More attempts follow."""
    UNREACHABLE = "unreachable"
    """Not there, and all attempts used. Waits for the destination to answer a C-ECHO again."""
    REFUSED = "refused"
    """Not there. The destination will not have it; a person has to look."""


ARRIVED = frozenset({ObjectState.CONFIRMED, ObjectState.UNCONFIRMED})


@dataclass(frozen=True, slots=True)
class Delivered:
    """What an attempt came to."""

    states: Mapping[str, ObjectState]
    """By SOP Instance UID, for every object that the destination is to have."""
    message: str
    """Why not everything arrived; names no patient. "" when it did."""

    @property
    def arrived(self) -> bool:
        """Is every object there?"""
        return ARRIVED.issuperset(self.states.values())

    @property
    def worth_another_attempt(self) -> bool:
        """Is something missing that waiting can bring?"""
        return ObjectState.TRYING in self.states.values()


def wanted(objects: Iterable[ResultFile], destination: Destination) -> tuple[ResultFile, ...]:
    """The objects of a result that this destination takes."""
    return tuple(one for one in objects if one.kind in destination.kinds)


def deliver(
    objects: Sequence[ResultFile],
    destination: Destination,
    peer: Peer,
    *,
    ae_title: str,
    timeout_s: float,
) -> Delivered:
    """Bring every object to the destination; an object that is there is not sent again.

    Repeating it is harmless: with `confirm = "query"` it looks first, and either way the UIDs are
    those of the files, built once.
    """
    states: dict[str, ObjectState] = {}
    query = destination.confirm == "query"
    try:
        there = _listed(objects, peer, ae_title, timeout_s) if query else frozenset[str]()
        missing = [one for one in objects if one.sop_instance_uid not in there]
        results = store(
            peer, [one.path for one in missing], calling_ae_title=ae_title, timeout_s=timeout_s
        )
        if query and results:
            there = _listed(objects, peer, ae_title, timeout_s)
    except PeerError as error:
        state = _state_of(error)
        return Delivered({one.sop_instance_uid: state for one in objects}, str(error))
    answers = {answer.sop_instance_uid: answer for answer in results}
    for one in objects:
        uid = one.sop_instance_uid
        if uid in there:
            states[uid] = ObjectState.CONFIRMED
        else:
            states[uid] = _state_after(answers[uid], query=query)
    return Delivered(states, _why(states, answers, peer))


def _listed(
    objects: Sequence[ResultFile], peer: Peer, ae_title: str, timeout_s: float
) -> frozenset[str]:
    by_series: defaultdict[tuple[str, str], list[ResultFile]] = defaultdict(list)
    for one in objects:
        header = dcmread(one.path, specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
        key = (text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID"))
        by_series[key].append(one)
    return frozenset[str]().union(
        *(
            find_instances(peer, study, series, calling_ae_title=ae_title, timeout_s=timeout_s)
            for study, series in by_series
        )
    )


def _state_of(error: PeerError) -> ObjectState:
    # A rejected association (no status) is put right at the peer: then a C-ECHO succeeds, and the
    # timer brings the result by itself.
    status = getattr(error, "status", None)
    passing = status is None or status in _PASSING
    return ObjectState.TRYING if passing else ObjectState.REFUSED


def _state_after(answer: StoreResult, *, query: bool) -> ObjectState:
    if answer.stored:
        # Stored by its own word and yet not listed: the index of the peer may be behind.
        return ObjectState.TRYING if query else ObjectState.UNCONFIRMED
    if not answer.accepted:
        return ObjectState.REFUSED
    passing = answer.status is None or answer.status in _PASSING
    return ObjectState.TRYING if passing else ObjectState.REFUSED


def _why(states: Mapping[str, ObjectState], answers: Mapping[str, StoreResult], peer: Peer) -> str:
    for uid, state in states.items():
        if state not in ARRIVED:
            answer = answers[uid]
            if answer.stored:
                return f"{peer.name} took an object and does not list it"
            return f"{peer.name}: {answer.message}"
    return ""
