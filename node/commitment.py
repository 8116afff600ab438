"""Storage Commitment as a part of delivery: who was asked for what, and what became of it.

A request is entered in the ledger before it is made, so that its report finds its objects whenever
it comes and whichever run of the node it comes to. An object is delivered once its destination is
responsible for it; where no report comes in time, the destination's own list decides, and the job
says so.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from config.settings import Destination, Peer, Settings
from dicom.network.commitment import CommitmentReport, request_commitment
from dicom.network.scu import PeerError, file_meta
from node.delivery import ARRIVED, Delivered, ObjectState
from node.ledger import Commitment, Ledger, Word
from node.outcome import ResultFile

log = structlog.get_logger(__name__)

LINGER_S = 2.0
"""For a report on the association of the request. Peers that report so do it at once."""
_STAYS = (0x0119, 0x0122)
"""PS3.3 C.14.1.1: class and instance conflict, class not supported. Another attempt changes
nothing. The others (processing failure, no such object, no resources, doubled transaction) pass."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What a report meant."""

    job_id: str
    destination: str
    states: Mapping[str, ObjectState]
    """By SOP Instance UID; `TRYING` for one to be sent again."""


class Commitments:
    """Asks, and takes reports in."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger

    def lost(self, job_id: str, destination: Destination) -> frozenset[str]:
        """What the destination could not commit to: to be sent again, even if it is listed."""
        if destination.confirm != "commitment":
            return frozenset()
        stand = self._ledger.commitments(job_id, destination.peer)
        return frozenset(uid for uid, one in stand.items() if one.word is Word.FAILED)

    def follow(
        self,
        job_id: str,
        objects: Sequence[ResultFile],
        destination: Destination,
        peer: Peer,
        delivered: Delivered,
        again: frozenset[str],
    ) -> Delivered:
        """An attempt's outcome once more, with what the destination is responsible for.

        Args:
            job_id: Whose objects they are.
            objects: Of the attempt.
            destination: And its settings.
            peer: The same.
            delivered: What the attempt came to.
            again: What `lost` said before it: these were sent once more, and may be asked for.
        """
        if destination.confirm != "commitment":
            return delivered
        arrived = [one for one in objects if delivered.states[one.sop_instance_uid] in ARRIVED]
        stand = self._ledger.commitments(job_id, peer.name)
        ask = [
            one
            for one in arrived
            if self._to_be_asked(stand.get(one.sop_instance_uid), one.sop_instance_uid in again)
        ]
        why = self._ask(job_id, ask, peer) if ask else ""
        stand = self._ledger.commitments(job_id, peer.name)
        states = dict(delivered.states)
        for one in arrived:
            uid = one.sop_instance_uid
            states[uid] = self._state(stand[uid], states[uid])
        if not why and ObjectState.AWAITED in states.values():
            why = f"{peer.name} has not reported commitment yet"
        lost = [
            f"0x{stand[o.sop_instance_uid].failure_reason:04X}"
            for o in arrived
            if stand[o.sop_instance_uid].word is Word.FAILED
        ]
        if lost:
            why = f"{peer.name} could not commit: {', '.join(sorted(set(lost)))}"
        return replace(delivered, states=states, message=delivered.message or why)

    def take(self, report: CommitmentReport) -> Reported | None:
        """Enter a report; None where nobody asked."""
        found = self._ledger.record_commitment(
            report.transaction_uid, report.committed, report.failed
        )
        if found is None:
            log.warning("commitment.unknown", objects=len(report.committed) + len(report.failed))
            return None
        job_id, destination = found
        stand = self._ledger.commitments(job_id, destination)
        named = {*report.committed, *report.failed} & stand.keys()
        states = {uid: self._state(stand[uid], ObjectState.AWAITED) for uid in named}
        for uid, state in states.items():
            self._ledger.record_delivery(job_id, destination, uid, state)
        log.info(
            "commitment.reported",
            job=job_id,
            peer=destination,
            objects=len(report.committed),
            reason=", ".join(sorted({f"0x{code:04X}" for code in report.failed.values()})),
        )
        return Reported(job_id, destination, states)

    def _to_be_asked(self, stands: Commitment | None, sent_again: bool) -> bool:
        if stands is None:
            return True
        if stands.word is Word.FAILED:
            return sent_again  # else the failure came during this attempt: the next one sends it
        return stands.word is Word.NOT_TAKEN and not self._too_long_ago(stands)

    def _too_long_ago(self, stands: Commitment) -> bool:
        # By the wall clock, since it outlives a restart. A clock that jumps costs nothing but the
        # difference between a commitment and a list.
        return time.time() - stands.since.timestamp() > self._settings.delivery.commitment_timeout_s

    def _state(self, stands: Commitment, without: ObjectState) -> ObjectState:
        match stands.word:
            case Word.COMMITTED:
                return ObjectState.COMMITTED
            case Word.FAILED:
                stays = stands.failure_reason in _STAYS
                return ObjectState.REFUSED if stays else ObjectState.TRYING
        return without if self._too_long_ago(stands) else ObjectState.AWAITED

    def _ask(self, job_id: str, objects: Sequence[ResultFile], peer: Peer) -> str:
        """One request for all; why it was not taken, or ""."""
        transaction_uid = f"2.25.{uuid.uuid4().int}"  # nobody can guess it, and report for a peer
        uids = {one.sop_instance_uid for one in objects}
        self._ledger.ask_for_commitment(transaction_uid, job_id, peer.name, uids)

        def heard() -> bool:
            stand = self._ledger.commitments(job_id, peer.name)
            return all(stand[uid].word in (Word.COMMITTED, Word.FAILED) for uid in uids)

        def on_report(report: CommitmentReport) -> int:
            self.take(report)
            return 0

        try:
            request_commitment(
                peer,
                transaction_uid,
                [(file_meta(one.path)[0], one.sop_instance_uid) for one in objects],
                calling_ae_title=self._settings.node.ae_title,
                timeout_s=self._settings.delivery.timeout_s,
                on_report=on_report,
                linger_s=LINGER_S,
                reported=heard,
            )
        except PeerError as error:
            self._ledger.commitment_not_taken(transaction_uid)
            log.warning("commitment.not-taken", job=job_id, peer=peer.name, why=str(error))
            return str(error)
        return ""
