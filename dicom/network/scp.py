"""The listener: who may send, what is taken, and how fast.

It also takes what peers report of Storage Commitment, from those who may send. What becomes of an
object is not decided here. Each C-STORE is handed on as the bytes that were
sent, and its answer is the status that comes back.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import ServiceClass, StorageServiceClass
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # filled at import
    Verification,
    register_uid,
    uid_to_service_class,
)
from pynetdicom.transport import AssociationServer

from dicom.network.commitment import (
    PROCESSING_FAILURE,
    CommitmentReport,
    answer_report,
    report_context,
)

log = logging.getLogger(__name__)

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700  # PS3.4 B.2.3: the sender may try again later
DOES_NOT_MATCH = 0xA900  # the dataset is not what the command announced
CANNOT_UNDERSTAND = 0xC000  # no use in sending it again

TRANSFER_SYNTAXES: tuple[str, ...] = (
    # First what needs no decoding: the first one that the sender offers is taken.
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    JPEG2000,
    HTJ2K,
)
"""What the installed decoders read. A sender that offers only another one is told so."""

MAXIMUM_ASSOCIATIONS = 64
MAXIMUM_PENDING = 64  # connections that have not asked for an association yet
ACSE_TIMEOUT_S = 10.0  # for the request after connecting; a port scan never sends one
STALLED_AFTER_S = 60  # in the middle of a PDU
IDLE_AFTER_S = 300.0  # between two messages: scanners keep an association open while they acquire
MAXIMUM_PDU_LENGTH = 131_072  # DCMTK's largest; fewer and larger PDUs cost less than many small
STOP_TIMEOUT_S = 5.0

# Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4).
_CALLING_NOT_RECOGNISED = (1, 1, 3)
_CALLED_NOT_RECOGNISED = (1, 1, 7)
_LIMIT_EXCEEDED = (2, 3, 2)


@dataclass(frozen=True, slots=True)
class ReceivedObject:
    """A C-STORE request as it arrived."""

    sop_class_uid: str
    sop_instance_uid: str
    """Both as the command announces them; whether the dataset agrees is yet to be seen."""
    transfer_syntax_uid: str
    dataset: bytes
    """Encoded, without file meta information."""
    calling_ae_title: str
    address: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody who was turned away."""

    reason: str
    """`address`, `calling-ae-title`, `called-ae-title`, `too-many-associations`, `idle`."""
    address: str
    calling_ae_title: str = ""
    called_ae_title: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may send. An empty list admits nobody."""

    ae_title: str
    calling_ae_titles: frozenset[str]
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    require_called_ae_title: bool = True

    def admits_address(self, address: str) -> bool:
        """Is the address in one of the networks?"""
        found = ipaddress.ip_address(address)
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self.networks)


class StorageServer:
    """C-ECHO and C-STORE for every kind of object a study may hold; a context manager."""

    def __init__(
        self,
        host: str,
        port: int,
        admission: Admission,
        on_store: Callable[[ReceivedObject], int],
        on_refusal: Callable[[Refusal], None],
        on_commitment: Callable[[CommitmentReport], int] | None = None,
    ) -> None:
        """Bind the port.

        Args:
            host: Address to listen on.
            port: 0 takes a free one; `port` then tells which.
            admission: Who may send.
            on_store: Called in the thread of the association; its answer is the status.
            on_refusal: Called for everybody who is turned away.
            on_commitment: Called in the thread of the association for a report of Storage
                Commitment; its answer is the status. None: nobody is asked for one.

        Raises:
            OSError: The port is taken, or not ours to take.
        """
        self._admission = admission
        self._on_store = on_store
        self._on_refusal = on_refusal
        self._on_commitment = on_commitment
        entity = AE(ae_title=admission.ae_title)
        entity.acse_timeout = ACSE_TIMEOUT_S
        entity.network_timeout = IDLE_AFTER_S
        entity.maximum_pdu_size = MAXIMUM_PDU_LENGTH
        # Counts idle connections too; `_admit` has limits of its own, which do not.
        entity.maximum_associations = 10 * (MAXIMUM_ASSOCIATIONS + MAXIMUM_PENDING)
        server = entity.make_server(
            (host, port),
            contexts=[build_context(Verification)],
            evt_handlers=[
                (evt.EVT_REQUESTED, self._admit),
                (evt.EVT_CONN_OPEN, self._connected),
                (evt.EVT_CONN_CLOSE, self._disconnected),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_N_EVENT_REPORT, self._take_report),
            ],
            server_class=_Listener,
        )
        self._server = cast(_Listener, server)
        self._server.admits = self._admits_connection
        self._pending: OrderedDict[Association, float] = OrderedDict()
        self._pending_lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    @property
    def associations(self) -> int:
        """How many associations are open."""
        return sum(one.is_established for one in self._server.active_associations)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """Accept nobody any more, let associations end for a moment, then abort them."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (left := self._server.active_associations) and time.monotonic() < deadline:
            if not any(one.is_established for one in left):
                break
            time.sleep(0.05)
        for association in self._server.active_associations:
            association.abort()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _admits_connection(self, address: str) -> bool:
        if self._admission.admits_address(address):
            return True
        self._on_refusal(Refusal("address", address))
        return False

    def _connected(self, event: evt.Event) -> None:
        with self._pending_lock:
            self._pending[event.assoc] = time.monotonic()
            too_many = len(self._pending) > MAXIMUM_PENDING
            oldest = self._pending.popitem(last=False)[0] if too_many else None
        if oldest is not None:
            # Whoever connects and says nothing must not keep others out.
            self._on_refusal(Refusal("idle", oldest.requestor.address))
            cast(Any, oldest.dul.socket).close()

    def _disconnected(self, event: evt.Event) -> None:
        with self._pending_lock:
            self._pending.pop(event.assoc, None)

    def _admit(self, event: evt.Event) -> None:
        association = event.assoc
        with self._pending_lock:
            self._pending.pop(association, None)
        request: Any = association.requestor.primitive
        calling = str(request.calling_ae_title).strip()
        called = str(request.called_ae_title).strip()
        rejection = self._rejection(calling, called)
        if rejection is not None:
            reason, answer = rejection
            self._on_refusal(Refusal(reason, association.requestor.address, calling, called))
            association.acse.send_reject(*answer)
            association.kill()
            return
        proposed = request.presentation_context_definition_list
        association.acceptor.supported_contexts = [
            build_context(Verification),
            *([report_context()] if self._on_commitment is not None else []),
            *_storage_contexts({str(context.abstract_syntax) for context in proposed}),
        ]

    def _rejection(self, calling: str, called: str) -> tuple[str, tuple[int, int, int]] | None:
        if self._admission.require_called_ae_title and called != self._admission.ae_title.strip():
            return "called-ae-title", _CALLED_NOT_RECOGNISED
        if calling not in self._admission.calling_ae_titles:
            return "calling-ae-title", _CALLING_NOT_RECOGNISED
        if self.associations >= MAXIMUM_ASSOCIATIONS:
            return "too-many-associations", _LIMIT_EXCEEDED
        return None

    def _take_report(self, event: evt.Event) -> tuple[int, Dataset | None]:
        if self._on_commitment is None:
            return PROCESSING_FAILURE, None
        return answer_report(event, self._on_commitment)

    def _store(self, event: evt.Event) -> int:
        request: Any = event.request
        return self._on_store(
            ReceivedObject(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                dataset=request.DataSet.getvalue(),
                calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
                address=event.assoc.requestor.address,
            )
        )


def _storage_contexts(sop_classes: set[str]) -> list[PresentationContext]:
    """Contexts for those of the proposed SOP Classes that are storage, known to us or not.

    A study holds private and retired objects too. Each is to get its row and its reason, so they
    are taken rather than refused; other services than storage are not.
    """
    contexts = []
    for uid in sorted(sop_classes):
        service = uid_to_service_class(uid)
        if service is ServiceClass and UID(uid).is_valid:
            register_uid(uid, "Storage_" + uid.replace(".", "_"), StorageServiceClass)
            service = StorageServiceClass
        if service is StorageServiceClass:
            contexts.append(build_context(uid, list(TRANSFER_SYNTAXES)))
    return contexts


class _PromptSocket(socket.socket):
    """Acknowledges at once what it receives.

    DCMTK and others send a dataset in several small writes under Nagle's algorithm: the last one
    waits for the acknowledgement of the one before, which Linux delays by about 40 ms when the
    receiver has nothing to say. The kernel forgets the option, so it is set at every read.
    """

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


class _Listener(AssociationServer):
    """Sockets that answer promptly, do not hang for ever, and come from where they may."""

    request_queue_size = 128
    admits: Callable[[str], bool]

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        accepted, address = super().get_request()
        if sys.platform == "linux" and type(accepted) is socket.socket:
            accepted = _PromptSocket(fileno=accepted.detach())
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Not settimeout: that would cost a second system call at every read.
        limit = struct.pack("ll", STALLED_AFTER_S, 0)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return accepted, address

    def verify_request(self, request: object, client_address: Sequence[object]) -> bool:
        return self.admits(str(client_address[0]))

    def handle_error(self, request: object, client_address: object) -> None:
        log.error("a connection could not be taken on: %s", sys.exc_info()[0])

    def shutdown(self) -> None:
        # Not AssociationServer's, which looks for the server in a list of the entity's own.
        super(AssociationServer, self).shutdown()
