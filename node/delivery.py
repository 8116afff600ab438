"""One attempt to bring a result to one destination: look, send what is missing, look again.

How a peer is asked and given is its courier's business: C-FIND and C-STORE, QIDO-RS and STOW-RS,
or an Orthanc's REST API. What an attempt comes to is told in one place for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from pydicom import dcmread

from config.settings import Destination, Peer
from config.settings import Protocol as Spoken
from dicom.attributes import text
from dicom.errors import StudyError
from dicom.network.dicomweb import DicomWebClient
from dicom.network.orthanc import OrthancInbox
from dicom.network.scu import (
    PeerError,
    PeerRefusedError,
    PeerUnreachableError,
    StoreResult,
    echo,
    find_instances,
    store,
)
from dicom.sent_copy import Wishes, sent_copy
from node.outcome import ResultFile

# PS3.4 B.2.3 and PS3.7 C: the peer may take the same object later. Any other refusal is of the
# object itself (A9xx, Cxxx) or of us (0122, 0124), and stays.
_PASSING = (0x0110, *range(0xA700, 0xA800))


class ObjectState(StrEnum):
    """Where one object of a result stands at one destination."""

    COMMITTED = "committed"
    """The destination took responsibility for it (Storage Commitment)."""
    CONFIRMED = "confirmed"
    """The destination lists it."""
    UNCONFIRMED = "unconfirmed"
    """Stored there by its own word; the destination is configured `confirm = "none"`."""
    AWAITED = "awaiting-commitment"
    """There; the destination has not said yet that it takes responsibility."""
    TRYING = "trying"
    """Not there. More attempts follow."""
    UNREACHABLE = "unreachable"
    """Not there. It is tried again after a pause, or once the destination answers again."""
    UNDELIVERABLE = "undeliverable"
    """Not there, and given up (`delivery.give_up_after_h`); a person has to retry it."""
    REFUSED = "refused"
    """Not there. The destination will not have it; a person has to look."""


ARRIVED = frozenset({ObjectState.COMMITTED, ObjectState.CONFIRMED, ObjectState.UNCONFIRMED})
SETTLED = frozenset({*ARRIVED, ObjectState.REFUSED})
"""Nothing more is done about it by itself."""
UNDER_WAY = frozenset({ObjectState.TRYING, ObjectState.AWAITED})


@dataclass(frozen=True, slots=True)
class Delivered:
    """What an attempt came to."""

    states: Mapping[str, ObjectState]
    """By SOP Instance UID, for every object that the destination is to have."""
    message: str
    """Why not everything arrived; names no patient. "" when it did."""
    coerced: frozenset[str] = field(default_factory=frozenset)
    """SOP Instance UIDs that were stored with a warning: an element changed or dropped."""

    @property
    def arrived(self) -> bool:
        """Is every object there?"""
        return ARRIVED.issuperset(self.states.values())

    @property
    def worth_another_attempt(self) -> bool:
        """Is something missing that waiting can bring?"""
        return not UNDER_WAY.isdisjoint(self.states.values())


def wanted(objects: Iterable[ResultFile], destination: Destination) -> tuple[ResultFile, ...]:
    """The objects of a result that this destination takes."""
    return tuple(one for one in objects if one.kind in destination.kinds)


# --- couriers ------------------------------------------------------------------------------------


class Courier(Protocol):
    """One way to speak with one peer."""

    def look(self, objects: Sequence[ResultFile]) -> frozenset[str]:
        """SOP Instance UIDs that the peer says it holds, these among them if it does."""

    def send(self, objects: Sequence[ResultFile]) -> tuple[StoreResult, ...]:
        """One result per object, in order."""

    def knock(self) -> None:
        """Nothing, if the peer answers and knows us."""


@dataclass(frozen=True, slots=True)
class _Dimse:
    peer: Peer
    ae_title: str
    timeout_s: float

    def look(self, objects: Sequence[ResultFile]) -> frozenset[str]:
        return frozenset[str]().union(
            *(
                find_instances(
                    self.peer,
                    study,
                    series,
                    calling_ae_title=self.ae_title,
                    timeout_s=self.timeout_s,
                )
                for study, series in _by_series(objects)
            )
        )

    def send(self, objects: Sequence[ResultFile]) -> tuple[StoreResult, ...]:
        return store(
            self.peer,
            [one.path for one in objects],
            calling_ae_title=self.ae_title,
            timeout_s=self.timeout_s,
        )

    def knock(self) -> None:
        echo(self.peer, calling_ae_title=self.ae_title, timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class _Web:
    peer: Peer
    timeout_s: float

    def look(self, objects: Sequence[ResultFile]) -> frozenset[str]:
        with DicomWebClient(self.peer, timeout_s=self.timeout_s) as client:
            return frozenset(
                text(found, "SOPInstanceUID")
                for study, series in _by_series(objects)
                for found in client.search_instances(study, series)
            )

    def send(self, objects: Sequence[ResultFile]) -> tuple[StoreResult, ...]:
        with DicomWebClient(self.peer, timeout_s=self.timeout_s) as client:
            return client.store([one.path for one in objects])

    def knock(self) -> None:
        with DicomWebClient(self.peer, timeout_s=self.timeout_s) as client:
            client.ping()


@dataclass(frozen=True, slots=True)
class _Orthanc:
    peer: Peer
    timeout_s: float

    def look(self, objects: Sequence[ResultFile]) -> frozenset[str]:
        with OrthancInbox(self.peer, timeout_s=self.timeout_s) as inbox:
            return frozenset(
                one.sop_instance_uid for one in objects if inbox.holds(one.sop_instance_uid)
            )

    def send(self, objects: Sequence[ResultFile]) -> tuple[StoreResult, ...]:
        results: list[StoreResult] = []
        with OrthancInbox(self.peer, timeout_s=self.timeout_s) as inbox:
            for one in objects:
                try:
                    results.append(inbox.store(one.path))
                except PeerUnreachableError as error:
                    if not results:
                        raise
                    results.append(StoreResult(one.path, one.sop_instance_uid, None, str(error)))
        return tuple(results)

    def knock(self) -> None:
        with OrthancInbox(self.peer, timeout_s=self.timeout_s) as inbox:
            inbox.ping()


def courier(protocol: Spoken, peer: Peer, *, ae_title: str, timeout_s: float) -> Courier:
    """Who speaks that protocol with that peer."""
    match protocol:
        case "stow-rs":
            return _Web(peer, timeout_s)
        case "orthanc-rest":
            return _Orthanc(peer, timeout_s)
    return _Dimse(peer, ae_title, timeout_s)


# --- an attempt ----------------------------------------------------------------------------------


def deliver(
    objects: Sequence[ResultFile],
    destination: Destination,
    peer: Peer,
    *,
    ae_title: str,
    timeout_s: float,
    again: frozenset[str] = frozenset(),
) -> Delivered:
    """Bring every object to the destination; an object that is there is not sent again.

    Repeating it is harmless: unless `confirm = "none"` it looks first, and either way the UIDs are
    those of the files, built once.

    Args:
        objects: Of the result, as they were built.
        destination: What it takes and how.
        peer: Whom to speak with.
        ae_title: Ours.
        timeout_s: For a connection, and for each silence of the peer.
        again: SOP Instance UIDs to send even if they are listed: it lists them, and could not
            take responsibility for them.
    """
    speaks = courier(destination.protocol, peer, ae_title=ae_title, timeout_s=timeout_s)
    objects, unfit = outgoing(objects, destination)
    refused = dict.fromkeys(unfit, ObjectState.REFUSED)
    try:
        there = _look(speaks, objects, destination)
        missing = [
            one
            for one in objects
            if one.sop_instance_uid in again or one.sop_instance_uid not in (there or ())
        ]
        results = speaks.send(missing)
        if missing and there is not None:
            there = _look(speaks, objects, destination)
    except PeerError as error:
        state = _state_of(error)
        return Delivered(refused | {one.sop_instance_uid: state for one in objects}, str(error))
    answers = {answer.sop_instance_uid: answer for answer in results}
    states = {
        one.sop_instance_uid: _state_after(answers.get(one.sop_instance_uid), one, there)
        for one in objects
    }
    coerced = frozenset(uid for uid, answer in answers.items() if answer.coerced)
    why = next(iter(unfit.values()), "") or _why(states, answers, peer)
    return Delivered(refused | states, why, coerced)


def outgoing(
    objects: Sequence[ResultFile], destination: Destination
) -> tuple[list[ResultFile], Mapping[str, str]]:
    """The files to send there, and why some cannot be, by SOP Instance UID.

    The bytes that were built, unless the destination wants them listed otherwise: then copies in
    a folder beside them. They are made anew at each attempt, and always come out the same.
    """
    if not destination.changes_something:
        return list(objects), {}
    files: list[ResultFile] = []
    unfit: dict[str, str] = {}
    for one in objects:
        folder = one.path.parent / f"sent-{destination.peer}"
        folder.mkdir(mode=0o700, exist_ok=True)
        copy = folder / one.path.name
        try:
            copy.write_bytes(sent_copy(one.path.read_bytes(), _wishes(one, destination)))
        except StudyError as error:
            unfit[one.sop_instance_uid] = f"{destination.peer}: {error}"
        else:
            files.append(replace(one, path=copy))
    return files, unfit


def _wishes(one: ResultFile, destination: Destination) -> Wishes:
    numbers = {str(kind): number for kind, number in destination.series_numbers.items()}
    return Wishes(
        series_number=numbers.get(one.kind),
        series_number_offset=destination.series_number_offset,
        series_description=destination.series_description,
        specific_character_set=destination.specific_character_set,
    )


def _look(
    speaks: Courier, objects: Sequence[ResultFile], destination: Destination
) -> frozenset[str] | None:
    """What is there; None where nobody asks, or where the peer answers no query but commits."""
    if destination.confirm == "none":
        return None
    if destination.confirm == "query":
        return speaks.look(objects)
    with suppress(PeerRefusedError):
        return speaks.look(objects)
    return None


def _by_series(objects: Sequence[ResultFile]) -> Mapping[tuple[str, str], list[ResultFile]]:
    by_series: defaultdict[tuple[str, str], list[ResultFile]] = defaultdict(list)
    for one in objects:
        header = dcmread(one.path, specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
        key = (text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID"))
        by_series[key].append(one)
    return by_series


def _state_of(error: PeerError) -> ObjectState:
    # A rejected association or a wrong password (no status) is put right at the peer: then it
    # answers again, and the timer brings the result by itself.
    status = getattr(error, "status", None)
    passing = status is None or status in _PASSING
    return ObjectState.TRYING if passing else ObjectState.REFUSED


def _state_after(
    answer: StoreResult | None, one: ResultFile, there: frozenset[str] | None
) -> ObjectState:
    if answer is None or (there is not None and one.sop_instance_uid in there):
        return ObjectState.CONFIRMED  # whatever is not there was sent, and has an answer
    if answer.stored:
        # Stored by its own word and yet not listed: the index of the peer may be behind.
        return ObjectState.UNCONFIRMED if there is None else ObjectState.TRYING
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
