"""Storage Commitment, Push Model: a peer is asked to take responsibility, and reports later.

The request (N-ACTION) is answered at once; the report (N-EVENT-REPORT) comes when the peer is done:
on the same association while it is open, or on one that the peer opens to our listener, seconds or
hours later. A transaction UID holds the two together.

Source:
    PS3.4 annex J; PS3.7 10.1.1 (N-EVENT-REPORT), 10.1.4 (N-ACTION).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import build_context, evt
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # filled at import
    StorageCommitmentPushModel,
)

from config.settings import Peer
from dicom.attributes import number, text
from dicom.network.scu import (
    SUCCESS,
    PeerRefusedError,
    PeerUnreachableError,
    association_with,
)

COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The well-known SOP Instance of the push model (PS3.4 J.3.5)."""
REQUEST = 1  # action type
PROCESSING_FAILURE = 0x0110
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What a peer says of the objects of one request."""

    transaction_uid: str
    committed: frozenset[str]
    """SOP Instance UIDs that it is responsible for now."""
    failed: Mapping[str, int]
    """SOP Instance UIDs that it is not, with the Failure Reason (PS3.3 C.14.1.1)."""


def request_commitment(
    peer: Peer,
    transaction_uid: str,
    objects: Sequence[tuple[str, str]],
    *,
    calling_ae_title: str,
    timeout_s: float,
    on_report: Callable[[CommitmentReport], int],
    linger_s: float,
    reported: Callable[[], bool],
) -> None:
    """Ask a peer to commit to objects that it was sent.

    Args:
        peer: Over DIMSE.
        transaction_uid: New; the report names it.
        objects: SOP Class UID and SOP Instance UID of each.
        calling_ae_title: Ours; most peers find by it where to report to.
        timeout_s: For a connection and for each answer.
        on_report: Called in another thread if the report comes on this very association; its
            answer is the status.
        linger_s: How long the association stays open for that.
        reported: Has the report come, on whatever way? Then nothing is waited for.

    Raises:
        PeerUnreachableError: No connection or no answer: it may have taken the request.
        PeerRefusedError: The peer offers no Storage Commitment, or refuses this one.
    """
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = [_reference(*one) for one in objects]
    context = build_context(StorageCommitmentPushModel)
    here = _ReportHere(on_report)
    handlers: list[tuple[evt.EventType, Callable[..., Any]]] = [
        (evt.EVT_N_EVENT_REPORT, here.answer),
        (evt.EVT_PDU_SENT, here.sent),
    ]
    with association_with(peer, [context], calling_ae_title, timeout_s, handlers) as association:
        status, _ = association.send_n_action(
            request, REQUEST, StorageCommitmentPushModel, COMMITMENT_INSTANCE
        )
        answered = status.get("Status")
        if answered is None:
            raise PeerUnreachableError(f"{peer.name} did not answer the request of commitment")
        if answered != SUCCESS:
            message = f"{peer.name} refused the request of commitment with 0x{answered:04X}"
            raise PeerRefusedError(message, int(answered))
        deadline = time.monotonic() + linger_s
        while association.is_established and not reported() and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        here.finish(timeout_s)


class _ReportHere:
    """A report on the association of the request, which must not end before it is answered.

    pynetdicom releases an association under the feet of an answer that is being made, and its
    state machine breaks.
    """

    def __init__(self, on_report: Callable[[CommitmentReport], int]) -> None:
        self._on_report = on_report
        self._begun, self._made, self._sent = (threading.Event() for _ in range(3))

    def answer(self, event: evt.Event) -> tuple[int, Dataset | None]:
        self._begun.set()
        answer = answer_report(event, self._on_report)
        self._made.set()
        return answer

    def sent(self, _: evt.Event) -> None:
        if self._made.is_set():
            self._sent.set()

    def finish(self, timeout_s: float) -> None:
        if self._begun.is_set():
            self._sent.wait(timeout_s)


def report_context() -> PresentationContext:
    """For our listener: whoever reports proposes itself as SCP of the association it opens."""
    context = build_context(StorageCommitmentPushModel)
    context.scu_role = False
    context.scp_role = True
    return context


def answer_report(
    event: evt.Event, on_report: Callable[[CommitmentReport], int]
) -> tuple[int, Dataset | None]:
    """Status of an N-EVENT-REPORT: what `on_report` makes of it, or that nothing could be made."""
    try:
        information = event.event_information
    except Exception:  # noqa: BLE001  # whatever a peer sent, it gets an answer
        return PROCESSING_FAILURE, None
    return answer_information(information, on_report), None


def answer_information(information: Dataset, on_report: Callable[[CommitmentReport], int]) -> int:
    """The same, once what was reported is decoded."""
    try:
        report = _report(information)
    except Exception:  # noqa: BLE001  # whatever a peer sent, it gets an answer
        return PROCESSING_FAILURE
    return on_report(report)


def _report(information: Dataset) -> CommitmentReport:
    def uids(keyword: str) -> dict[str, int]:
        return {
            text(one, "ReferencedSOPInstanceUID"): int(
                number(one, "FailureReason") or PROCESSING_FAILURE
            )
            for one in information.get(keyword) or ()
        }

    failed = uids("FailedSOPSequence")
    committed = frozenset(uids("ReferencedSOPSequence")) - failed.keys()
    return CommitmentReport(text(information, "TransactionUID"), committed, failed)


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    reference: Any = Dataset()
    reference.ReferencedSOPClassUID = sop_class_uid
    reference.ReferencedSOPInstanceUID = sop_instance_uid
    item: Dataset = reference
    return item
