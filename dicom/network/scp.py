"""The listener: who may send, what is taken, and how fast.

It also takes what peers report of Storage Commitment, from those who may send. What becomes of an
object is not decided here. Each C-STORE is handed on as the bytes that were sent, and its answer
is the status that comes back.

One thread waits for connections and one serves each of them. Connections that have not asked for
an association are counted apart from associations, and those of one address apart from those of
others: whoever connects and says nothing takes no place of a sender.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Self

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
from pynetdicom import (
    PYNETDICOM_IMPLEMENTATION_UID,
    PYNETDICOM_IMPLEMENTATION_VERSION,
    build_context,
)
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.service_class import ServiceClass, StorageServiceClass
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # filled at import
    StorageCommitmentPushModel,
    Verification,
    uid_to_service_class,
)

from config.settings import ListenerLimits
from dicom.network.commitment import (
    PROCESSING_FAILURE,
    CommitmentReport,
    answer_information,
    report_context,
)
from dicom.network.wire import (
    ABORT,
    ASSOCIATE_RQ,
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    INVALID_PARAMETER,
    LINGER_S,
    LONGEST_COMMAND_BYTES,
    N_EVENT_REPORT_RQ,
    NOT_SPECIFIED,
    P_DATA,
    RELEASE_ANSWER,
    RELEASE_RQ,
    UNEXPECTED_PDU,
    Command,
    Connection,
    Fragment,
    WireError,
    abort,
    answer,
    fragments,
    read_command,
    reason_of_tls,
    reject,
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

UNRECOGNISED_OPERATION = 0x0211  # PS3.7 C.5.25
STOP_TIMEOUT_S = 5.0
_LISTEN_BACKLOG = 128  # the kernel keeps so many for us when a crowd comes at once
_LOOK_EVERY_S = 0.5  # whether the listener is to stop
_NO_HANDLES_PAUSE_S = 0.1  # the process is out of file descriptors: some will come free
_MB = 1 << 20

# Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4).
_CALLING_NOT_RECOGNISED = (1, 1, 3)
_CALLED_NOT_RECOGNISED = (1, 1, 7)
_LIMIT_EXCEEDED = (2, 3, 2)

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
STOPPING = "stopping"
_QUIET_ENDS = frozenset({"closed", "aborted", STOPPING})
"""A peer that goes away, or says that it will, and our own end: nobody was refused."""


@dataclass(frozen=True, slots=True)
class ReceivedObject:
    """A C-STORE request as it arrived."""

    sop_class_uid: str
    sop_instance_uid: str
    """Both as the command announces them; whether the dataset agrees is yet to be seen."""
    transfer_syntax_uid: str
    dataset: bytes | bytearray
    """Encoded, without file meta information."""
    calling_ae_title: str
    address: str
    sha256: str = ""
    """Of the dataset, reckoned while it came in; "": nobody has."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody who was turned away, or whose connection was ended."""

    reason: str
    """`address`, `calling-ae-title`, `called-ae-title`, `wrong-address` (of that AE title),
    `too-many-associations`, `too-many-associations-of-address`, `idle`, `too-slow`,
    `tls-not-spoken`, `tls` (`why` says more), `object-too-large`, or one of `WireError`."""
    address: str
    calling_ae_title: str = ""
    called_ae_title: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may send. An empty list admits nobody."""

    ae_title: str
    calling_ae_titles: frozenset[str]
    networks: Networks
    require_called_ae_title: bool = True
    networks_of: Mapping[str, Networks] = field(default_factory=dict)
    """Where an AE title may come from, instead of `networks`."""

    def admits_address(self, address: str) -> bool:
        """Is the address in any of the networks?"""
        everywhere = [self.networks, *self.networks_of.values()]
        return any(_within(address, networks) for networks in everywhere)

    def admits_from(self, calling_ae_title: str, address: str) -> bool:
        """May this AE title come from this address?"""
        return _within(address, self.networks_of.get(calling_ae_title, self.networks))


def _within(address: str, networks: Networks) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in networks)


class _Memory:
    """What all objects that are being received may take together."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self._left += count


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
        *,
        limits: ListenerLimits | None = None,
        tls: ssl.SSLContext | None = None,
        plain_port: int | None = None,
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
            limits: What senders may take; None for the defaults.
            tls: The port speaks TLS alone (`dicom.network.tls.listening_context`).
            plain_port: With `tls`, another port that speaks none.

        Raises:
            OSError: The port is taken, or not ours to take.
        """
        self._admission = admission
        self._on_store = on_store
        self._on_refusal = on_refusal
        self._on_commitment = on_commitment
        self._limits = limits or ListenerLimits()
        self._memory = _Memory(self._limits.receiving_mb * _MB)
        self._lock = threading.Lock()
        self._served: dict[Connection, _Served] = {}
        self._stopping = threading.Event()
        self._doors = [(_listening(host, port), tls)]
        if plain_port is not None:
            try:
                self._doors.append((_listening(host, plain_port), None))
            except OSError:
                self._doors[0][0].close()
                raise
        self._ports = [int(door.getsockname()[1]) for door, _ in self._doors]
        self._threads = [
            threading.Thread(target=self._accept, args=door, name="listener", daemon=True)
            for door in self._doors
        ]

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._ports[0]

    @property
    def plain_port(self) -> int:
        """The port without TLS."""
        return self._ports[-1]

    @property
    def associations(self) -> int:
        """How many associations are open."""
        with self._lock:
            return sum(one.established for one in self._served.values())

    def start(self) -> None:
        """Begin to accept."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Accept nobody any more, let associations end for a moment, then abort them."""
        self._stopping.set()
        for door, _ in self._doors:
            with suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in accept
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        for door, _ in self._doors:
            door.close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.associations and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            left = [*self._served.values()]
        for one in left:
            one.end()
        deadline = time.monotonic() + 2 * LINGER_S
        while self._served and time.monotonic() < deadline:
            time.sleep(0.02)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- connections -------------------------------------------------------------------------

    def _accept(self, door: socket.socket, tls: ssl.SSLContext | None) -> None:
        while not self._stopping.is_set():
            try:
                connected, place = door.accept()
            except TimeoutError:
                continue
            except OSError:  # out of file descriptors, a connection that is gone, or our own end
                if not self._stopping.wait(_NO_HANDLES_PAUSE_S):
                    self._make_room()
                continue
            try:
                self._take_on(connected, str(place[0]), tls)
            except Exception:  # one connection must not end the listener
                log.exception("a connection could not be taken on")
                connected.close()

    def _take_on(self, connected: socket.socket, address: str, tls: ssl.SSLContext | None) -> None:
        if not self._admission.admits_address(address):
            connected.close()
            self._on_refusal(Refusal("address", address))
            return
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection = Connection(connected, self._limits.longest_pdu_bytes)
        served = _Served(self, connection, address, tls)
        with self._lock:
            self._served[connection] = served
            surplus = self._surplus(address)
        if surplus is not None:
            surplus.end("idle")
        threading.Thread(target=served.run, name="association", daemon=True).start()

    def _surplus(self, address: str) -> _Served | None:
        """The oldest connection that has to make room for a new one. Under the lock."""
        pending = [one for one in self._served.values() if not one.asked and not one.ended]
        counts = Counter(one.address for one in pending)
        if counts[address] > self._limits.connections_per_address:
            greedy = address
        elif len(pending) > self._limits.connections:
            greedy = counts.most_common(1)[0][0]
        else:
            return None
        return next(one for one in pending if one.address == greedy)

    def _make_room(self) -> None:
        with self._lock:
            oldest = next((one for one in self._served.values() if not one.asked), None)
        if oldest is not None:
            oldest.end("idle")

    def _gone(self, served: _Served) -> None:
        with self._lock:
            self._served.pop(served.connection, None)

    def _establish(
        self, served: _Served, calling: str, called: str
    ) -> tuple[str, tuple[int, int, int]] | None:
        """Count it as an association, or say why not."""
        admission, limits = self._admission, self._limits
        if admission.require_called_ae_title and called != admission.ae_title.strip():
            return "called-ae-title", _CALLED_NOT_RECOGNISED
        if calling not in admission.calling_ae_titles:
            return "calling-ae-title", _CALLING_NOT_RECOGNISED
        if not admission.admits_from(calling, served.address):
            return "wrong-address", _CALLING_NOT_RECOGNISED
        with self._lock:
            counts = Counter(one.address for one in self._served.values() if one.established)
            if counts.total() >= limits.associations:
                return "too-many-associations", _LIMIT_EXCEEDED
            if counts[served.address] >= limits.associations_per_address:
                return "too-many-associations-of-address", _LIMIT_EXCEEDED
            served.established = True
        return None


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.create_server(
        (host, port),
        family=family,
        backlog=_LISTEN_BACKLOG,
        # `::` takes IPv4 as well; `Admission` knows its mapped addresses.
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
    door.settimeout(_LOOK_EVERY_S)
    return door


class _Served:
    """One connection, from its first byte to its end, in a thread of its own."""

    def __init__(
        self,
        server: StorageServer,
        connection: Connection,
        address: str,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.connection = connection
        self.address = address
        self.asked = False
        """Has it asked for an association?"""
        self.established = False
        self.ended = ""
        """Why we ended it from outside."""
        self._server = server
        self._limits = server._limits  # two halves of one thing
        self._tls = tls
        self._calling = self._called = ""
        self._contexts: dict[int, PresentationContext] = {}
        self._peer_takes_bytes = 0

    def end(self, reason: str = STOPPING) -> None:
        """From another thread: whatever it waits for does not come any more."""
        self.ended = reason
        self.connection.hang_up()

    def run(self) -> None:
        """Serve it to its end; every end but an ordinary one is told."""
        try:
            if self._request():
                self._serve()
        except WireError as error:
            code = NOT_SPECIFIED if self.ended == STOPPING and self.established else error.abort
            if code is not None:
                with suppress(WireError):
                    self.connection.send(abort(code), self._limits.pdu_timeout_s)
            reason = self.ended or error.reason
            if reason not in _QUIET_ENDS:
                self._refused(reason)
        except Exception:  # whatever a peer sent, the listener goes on
            log.exception("an association broke off")
            self._refused("internal-error")
        finally:
            self.established = False  # its place is free, while its last answer is being read
            self.connection.close()
            self._server._gone(self)

    def _refused(self, reason: str, why: str = "") -> None:
        self._server._on_refusal(Refusal(reason, self.address, self._calling, self._called, why))

    # --- asking for an association -----------------------------------------------------------

    def _request(self) -> bool:
        """Take an A-ASSOCIATE-RQ, and answer it; is there an association now?"""
        deadline = time.monotonic() + self._limits.request_timeout_s
        if self._tls is not None and not self._shake_hands(self._tls):
            return False
        left_s = max(0.01, deadline - time.monotonic())
        kind, body = self.connection.read(left_s, left_s)
        if kind != ASSOCIATE_RQ:
            raise WireError("pdu-unexpected", UNEXPECTED_PDU)
        asked = _request_in(body)
        self.asked = True
        self._calling, self._called = (
            _ae_title(asked.calling_ae_title),
            _ae_title(asked.called_ae_title),
        )
        rejection = self._server._establish(self, self._calling, self._called)
        if rejection is not None:
            reason, said = rejection
            self._refused(reason)
            self.connection.send(reject(*said), self._limits.request_timeout_s)
            return False
        self.connection.send(self._accept(asked), self._limits.request_timeout_s)
        return True

    def _shake_hands(self, tls: ssl.SSLContext) -> bool:
        plain = self.connection.socket
        try:
            plain.settimeout(self._limits.request_timeout_s)
            first = plain.recv(1, socket.MSG_PEEK)
            if first and first[0] == ASSOCIATE_RQ:
                self._refused("tls-not-spoken")
                self.connection.send(abort(UNEXPECTED_PDU), self._limits.request_timeout_s)
                return False
            secure = tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            self.connection.socket = secure
            secure.settimeout(self._limits.request_timeout_s)
            secure.do_handshake()
        except TimeoutError:
            raise WireError("idle") from None
        except ssl.SSLError as error:
            self._refused("tls", reason_of_tls(error))
            return False
        except (OSError, ValueError):
            raise WireError("closed") from None
        return True

    def _accept(self, asked: A_ASSOCIATE) -> bytes:
        """An A-ASSOCIATE-AC; which contexts it accepts is remembered."""
        proposed = asked.presentation_context_definition_list
        takes_reports = self._server._on_commitment is not None
        supported = [
            build_context(Verification),
            *([report_context()] if takes_reports else []),
            *_storage_contexts({str(context.abstract_syntax) for context in proposed}),
        ]
        items = asked.user_information
        roles = {
            item.sop_class_uid: (item.scu_role, item.scp_role)
            for item in items
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation) and item.sop_class_uid
        }
        for item in items:
            if isinstance(item, MaximumLengthNotification):
                self._peer_takes_bytes = item.maximum_length_received
        results, answered_roles = negotiate_as_acceptor(proposed, supported, roles)
        self._contexts = {
            int(context.context_id): context
            for context in results
            if context.result == 0 and context.context_id is not None
        }
        length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
        length.maximum_length_received = self._limits.longest_pdu_bytes
        implementation.implementation_class_uid = PYNETDICOM_IMPLEMENTATION_UID
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
        accepted: Any = A_ASSOCIATE()
        accepted.application_context_name = asked.application_context_name
        accepted.calling_ae_title = asked.calling_ae_title
        accepted.called_ae_title = asked.called_ae_title
        accepted.result, accepted.result_source = 0, 1
        accepted.presentation_context_definition_results_list = results
        accepted.user_information = [length, implementation, version, *answered_roles]
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(accepted)
        return bytes(pdu.encode())

    # --- messages ----------------------------------------------------------------------------

    def _serve(self) -> None:
        """Take messages until the association is released, aborted, or falls silent."""
        message = _Message(self._server._memory, self._limits)
        try:
            while True:
                wait_s = self._limits.idle_timeout_s
                if message.begun_at:
                    left_s = message.begun_at + self._limits.object_timeout_s - time.monotonic()
                    if left_s <= 0:
                        raise WireError("too-slow", INVALID_PARAMETER)
                    wait_s = min(wait_s, left_s)
                try:
                    kind, body = self.connection.read(wait_s, self._limits.pdu_timeout_s)
                except WireError as error:
                    if error.reason == "idle" and message.begun_at:  # in the midst of an object
                        raise WireError("too-slow", INVALID_PARAMETER) from None
                    raise
                if kind == P_DATA:
                    for fragment in fragments(body):
                        if message.add(fragment):
                            self._answer(message)
                            message.clear()
                elif kind == RELEASE_RQ:
                    self.connection.send(RELEASE_ANSWER, self._limits.pdu_timeout_s)
                    return
                elif kind == ABORT:
                    raise WireError("aborted")
                else:
                    raise WireError("pdu-unexpected", UNEXPECTED_PDU)
        finally:
            message.clear()

    def _answer(self, message: _Message) -> None:
        asked = message.command
        context = self._contexts.get(message.context_id)
        if asked is None or context is None:
            raise WireError("pdu-unexpected", INVALID_PARAMETER)
        if asked.field == C_CANCEL_RQ:
            return
        status = self._status(asked, message, context)
        self.connection.send(
            answer(message.context_id, asked, status, self._peer_takes_bytes),
            self._limits.pdu_timeout_s,
        )

    def _status(self, asked: Command, message: _Message, context: PresentationContext) -> int:
        syntax = context.abstract_syntax
        if asked.field == C_ECHO_RQ and syntax == Verification:
            return SUCCESS
        if asked.field == N_EVENT_REPORT_RQ and syntax == StorageCommitmentPushModel:
            return self._take_report(message, context)
        if asked.field != C_STORE_RQ or syntax in (Verification, StorageCommitmentPushModel):
            return UNRECOGNISED_OPERATION
        if not asked.has_dataset:
            return CANNOT_UNDERSTAND
        if message.refusal:
            self._refused("object-too-large" if message.refusal != OUT_OF_RESOURCES else "memory")
            return message.refusal
        received = ReceivedObject(
            sop_class_uid=asked.sop_class_uid,
            sop_instance_uid=asked.sop_instance_uid,
            transfer_syntax_uid=str(context.transfer_syntax[0]),
            dataset=message.dataset,
            calling_ae_title=self._calling,
            address=self.address,
            sha256=message.digest.hexdigest(),
        )
        try:
            return self._server._on_store(received)
        except Exception:  # our own fault: this object is not taken, and the next one may be
            log.exception("an object could not be taken")
            return PROCESSING_FAILURE

    def _take_report(self, message: _Message, context: PresentationContext) -> int:
        on_commitment = self._server._on_commitment
        if on_commitment is None or message.refusal:
            return PROCESSING_FAILURE
        syntax = context.transfer_syntax[0]
        try:
            information = decode(
                BytesIO(message.dataset),
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                syntax.is_deflated,
            )
        except Exception:  # noqa: BLE001  # a parser on hostile bytes raises anything
            return PROCESSING_FAILURE
        return answer_information(information, on_commitment)


class _Message:
    """A message as it comes in, piece by piece: a command, and its dataset if it has one."""

    def __init__(self, memory: _Memory, limits: ListenerLimits) -> None:
        self._memory = memory
        self._largest = limits.largest_object_mb * _MB
        self._encoded = bytearray()
        self._taken = 0
        self._began: float = 0.0
        self.context_id = 0
        self.command: Command | None = None
        self.dataset = bytearray()
        self.digest = hashlib.sha256()
        """Of the dataset: reckoned while the sender makes ready the next piece."""
        self.refusal = 0
        """Status to answer with, though the rest of the dataset is still to be waited for."""

    @property
    def begun_at(self) -> float:
        """When its first piece came; 0 between two messages."""
        return self._began

    def clear(self) -> None:
        """Make ready for the next one."""
        self._memory.give_back(self._taken)
        self._encoded, self.dataset = bytearray(), bytearray()
        self.digest = hashlib.sha256()
        self._taken, self._began, self.refusal, self.command = 0, 0.0, 0, None

    def add(self, fragment: Fragment) -> bool:
        """Take a piece; is the message whole?

        Raises:
            WireError: The piece has no place here.
        """
        self._began = self._began or time.monotonic()
        if self.command is None:
            if not fragment.is_command or (
                self._encoded and fragment.context_id != self.context_id
            ):
                raise WireError("pdu-unexpected", INVALID_PARAMETER)
            self.context_id = fragment.context_id
            if len(self._encoded) + len(fragment.data) > LONGEST_COMMAND_BYTES:
                raise WireError("pdu-malformed", INVALID_PARAMETER)
            self._encoded += fragment.data
            if not fragment.is_last:
                return False
            self.command = read_command(self._encoded)
            return not self.command.has_dataset
        if fragment.is_command or fragment.context_id != self.context_id:
            raise WireError("pdu-unexpected", INVALID_PARAMETER)
        self._keep(fragment.data)
        return fragment.is_last

    def _keep(self, piece: memoryview) -> None:
        if self.refusal:
            return
        size = len(self.dataset) + len(piece)
        if size > self._largest:
            self._drop(CANNOT_UNDERSTAND)
        elif not self._memory.take(len(piece)):
            self._drop(OUT_OF_RESOURCES)
        else:
            self._taken += len(piece)
            self.dataset += piece
            self.digest.update(piece)

    def _drop(self, status: int) -> None:
        self.refusal = status
        self.dataset = bytearray()
        self._memory.give_back(self._taken)
        self._taken = 0


def _request_in(body: memoryview) -> Any:  # noqa: ANN401  # pynetdicom's primitive, untyped
    """An A-ASSOCIATE-RQ as pynetdicom reads it."""
    pdu = A_ASSOCIATE_RQ()
    try:
        pdu.decode(b"\1\0" + len(body).to_bytes(4, "big") + body)
        asked = pdu.to_primitive()
        proposed = asked.presentation_context_definition_list
    except Exception as error:  # a parser on hostile bytes raises anything
        raise WireError("pdu-malformed", INVALID_PARAMETER) from error
    if not proposed:
        raise WireError("pdu-malformed", INVALID_PARAMETER)
    return asked


def _ae_title(sent: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in str(sent)).strip()[:16]


def _storage_contexts(sop_classes: set[str]) -> list[PresentationContext]:
    """Contexts for those of the proposed SOP Classes that are storage, known to us or not.

    A study holds private and retired objects too. Each is to get its row and its reason, so they
    are taken rather than refused; other services than storage are not.
    """
    contexts = []
    for uid in sorted(sop_classes):
        service = uid_to_service_class(uid)
        unknown = service is ServiceClass and UID(uid).is_valid
        if service is StorageServiceClass or unknown:
            contexts.append(build_context(uid, list(TRANSFER_SYNTAXES)))
    return contexts
