"""The upper layer as our listener speaks it: PDUs on a socket, and a limit on everything.

pynetdicom's acceptor allocates what a peer announces, waits for it without a deadline, looks every
millisecond whether something has come, and gives each connection two threads. Here one thread
waits in the kernel, a PDU is measured before it is read, and each wait has an end. What the bytes
of an association request mean is still pynetdicom's to say (`dicom.network.scp`).

Source:
    PS3.8 9.3 (PDUs), PS3.7 6.3.1 and E.1 (command sets).
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

ASSOCIATE_RQ, ASSOCIATE_RJ, P_DATA = 0x01, 0x03, 0x04
RELEASE_RQ, RELEASE_RP, ABORT = 0x05, 0x06, 0x07
_KNOWN = frozenset(range(ASSOCIATE_RQ, ABORT + 1))
_HEAD_BYTES = 6
_TLS_HANDSHAKE = 0x16  # RFC 8446 5.1: content type of a ClientHello

# Reasons of an A-ABORT by the provider (PS3.8 9.3.8).
NOT_SPECIFIED, UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 1, 2, 6

LINGER_S = 1.0  # for the last answer to be read, before the connection is closed under it
_FIRST_BUFFER_BYTES = 4096  # a connection that never says anything costs no more

# Command fields (PS3.7 E.1); an answer is the request's with the highest bit set.
C_STORE_RQ, C_ECHO_RQ, N_EVENT_REPORT_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0100, 0x0FFF
ANSWER = 0x8000
_NO_DATASET = 0x0101
LONGEST_COMMAND_BYTES = 16_384  # a real one has some two hundred bytes


class WireError(Exception):
    """A peer did what ends its connection. The message names no patient."""

    def __init__(self, reason: str, abort: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        """`closed`, `idle`, `too-slow`, `pdu-too-long`, `pdu-unknown`, `pdu-unexpected`,
        `pdu-malformed`, `tls-on-plain-port`."""
        self.abort = abort
        """Reason of the A-ABORT that tells it; None: it needs not be told, or cannot be."""


class Connection:
    """PDUs from and to one peer. Used by one thread; `hang_up` by any."""

    def __init__(self, connected: socket.socket, longest_pdu_bytes: int) -> None:
        self.socket = connected
        self._longest = longest_pdu_bytes
        self._buffer = memoryview(bytearray(_FIRST_BUFFER_BYTES))
        self._filled = 0
        self._used = 0

    def read(self, wait_s: float, whole_s: float) -> tuple[int, memoryview]:
        """The next PDU: its type, and what follows its length, valid until the next call.

        Args:
            wait_s: For its first byte.
            whole_s: For the rest, from then on.

        Raises:
            WireError: None came in time, or none that may be read.
        """
        rest = self._filled - self._used
        self._buffer[:rest] = self._buffer[self._used : self._filled]
        self._filled, self._used = rest, 0
        self._fill(1, time.monotonic() + wait_s, "idle")
        deadline = time.monotonic() + whole_s
        self._fill(_HEAD_BYTES, deadline, "too-slow")
        kind, length = struct.unpack_from(">BxL", self._buffer)
        if kind not in _KNOWN:
            tls = kind == _TLS_HANDSHAKE
            raise WireError("tls-on-plain-port" if tls else "pdu-unknown", UNRECOGNISED_PDU)
        if length > self._longest:
            raise WireError("pdu-too-long", INVALID_PARAMETER)
        end = _HEAD_BYTES + length
        self._fill(end, deadline, "too-slow")
        self._used = end
        return kind, self._buffer[_HEAD_BYTES:end]

    def _fill(self, count: int, deadline: float, too_late: str) -> None:
        """Receive until so many bytes lie in the buffer, and the head of the next PDU at most."""
        if len(self._buffer) < count + _HEAD_BYTES:
            larger = memoryview(bytearray(count + _HEAD_BYTES))
            larger[: self._filled] = self._buffer[: self._filled]
            self._buffer = larger
        while self._filled < count:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise WireError(too_late)
            try:
                self.socket.settimeout(left_s)
                received = self.socket.recv_into(self._buffer[self._filled : count + _HEAD_BYTES])
                self._acknowledge()
            except TimeoutError:
                raise WireError(too_late) from None
            except ssl.SSLError as error:
                raise WireError(reason_of_tls(error)) from None
            except (OSError, ValueError):  # ValueError: closed by another thread
                raise WireError("closed") from None
            if not received:
                raise WireError("closed")
            self._filled += received

    def _acknowledge(self) -> None:
        """Acknowledge at once what was received.

        DCMTK and others send a dataset in several small writes under Nagle's algorithm: the last
        one waits for the acknowledgement of the one before, which Linux delays by about 40 ms when
        the receiver has nothing to say. The kernel forgets the option, so it is set at every read.
        """
        if sys.platform == "linux":
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def send(self, pdu: bytes, whole_s: float) -> None:
        """Send a PDU.

        Raises:
            WireError: The peer is gone, or does not read.
        """
        try:
            self.socket.settimeout(whole_s)
            self.socket.sendall(pdu)
        except TimeoutError:
            raise WireError("too-slow") from None
        except (OSError, ValueError):
            raise WireError("closed") from None

    def close(self) -> None:
        """Let the last answer be read, then close.

        Closing on unread bytes would reset the connection, and the peer would lose what we said.
        """
        deadline = time.monotonic() + LINGER_S
        with suppress(OSError, ValueError):
            self.socket.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left_s)
                if not self.socket.recv_into(self._buffer):
                    break
        with suppress(OSError):
            self.socket.close()

    def hang_up(self) -> None:
        """End it from another thread: whoever reads wakes up, and may still say a last word."""
        with suppress(OSError, ValueError):
            socket.socket.shutdown(self.socket, socket.SHUT_RD)  # not TLS's, which is not ours


def reason_of_tls(error: ssl.SSLError) -> str:
    """OpenSSL's own word for what went wrong: `certificate-has-expired`, `unknown-ca`."""
    said = getattr(error, "verify_message", "") or error.reason or type(error).__name__
    return "-".join(said.lower().replace("_", " ").split())[:64]


def reject(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return struct.pack(">BxLxBBB", ASSOCIATE_RJ, 4, result, source, reason)


def abort(reason: int) -> bytes:
    """An A-ABORT by the provider (PS3.8 9.3.8)."""
    return struct.pack(">BxLxxBB", ABORT, 4, 2, reason)


RELEASE_ANSWER = struct.pack(">BxLxxxx", RELEASE_RP, 4)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A presentation data value: a piece of a message (PS3.8 9.3.5.1, E.2)."""

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


def fragments(body: memoryview) -> Iterator[Fragment]:
    """The pieces in a P-DATA-TF.

    Raises:
        WireError: They do not fill it exactly.
    """
    at = 0
    while at < len(body):
        if len(body) - at < 6:
            raise WireError("pdu-malformed", INVALID_PARAMETER)
        length, context_id, control = struct.unpack_from(">LBB", body, at)
        end = at + 4 + length
        if length < 2 or end > len(body):
            raise WireError("pdu-malformed", INVALID_PARAMETER)
        yield Fragment(context_id, bool(control & 1), bool(control & 2), body[at + 6 : end])
        at = end


@dataclass(frozen=True, slots=True)
class Command:
    """What a message asks for."""

    field: int
    message_id: int
    has_dataset: bool
    sop_class_uid: str
    sop_instance_uid: str
    event_type: int


def read_command(encoded: bytes | bytearray) -> Command:
    """A command set: implicit VR little endian, group 0000 alone (PS3.7 6.3.1).

    Raises:
        WireError: It is none, or lacks what every command has.
    """
    malformed = WireError("pdu-malformed", INVALID_PARAMETER)
    values: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if len(encoded) - at < 8:
            raise malformed
        group, element, length = struct.unpack_from("<HHL", encoded, at)
        at += 8
        if group != 0 or length > len(encoded) - at:
            raise malformed
        values[element] = bytes(encoded[at : at + length])
        at += length

    def number(element: int, absent: int | None = None) -> int:
        value = values.get(element)
        if value is None or len(value) != 2:
            if absent is None or value is not None:
                raise malformed
            return absent
        return int.from_bytes(value, "little")

    def uid(element: int) -> str:
        value = values.get(element, b"").rstrip(b"\0 ")
        if len(value) > 64 or any(one not in b"0123456789." for one in value):
            raise malformed
        return value.decode("ascii")

    return Command(
        field=number(0x0100),
        message_id=number(0x0110, 0),
        has_dataset=number(0x0800) != _NO_DATASET,
        sop_class_uid=uid(0x0002),
        sop_instance_uid=uid(0x1000),
        event_type=number(0x1002, 0),
    )


def answer(context_id: int, asked: Command, status: int, longest_pdu_bytes: int) -> bytes:
    """The answer to a request, in as many PDUs as the peer wants (0: it sets no limit)."""
    elements = [
        (0x0002, _uid(asked.sop_class_uid)),
        (0x0100, struct.pack("<H", asked.field | ANSWER)),
        (0x0120, struct.pack("<H", asked.message_id)),
        (0x0800, struct.pack("<H", _NO_DATASET)),
        (0x0900, struct.pack("<H", status)),
        (0x1000, _uid(asked.sop_instance_uid)),
    ]
    if asked.field == N_EVENT_REPORT_RQ:
        elements.append((0x1002, struct.pack("<H", asked.event_type)))
    rest = b"".join(
        struct.pack("<HHL", 0, element, len(value)) + value for element, value in elements if value
    )
    encoded = struct.pack("<HHLL", 0, 0, 4, len(rest)) + rest
    room = len(encoded) if longest_pdu_bytes == 0 else max(1, longest_pdu_bytes - 6)
    pdus = []
    for start in range(0, len(encoded), room):
        piece = encoded[start : start + room]
        last = start + room >= len(encoded)
        value = struct.pack(">LBB", len(piece) + 2, context_id, 0b11 if last else 0b01) + piece
        pdus.append(struct.pack(">BxL", P_DATA, len(value)) + value)
    return b"".join(pdus)


def _uid(value: str) -> bytes:
    encoded = value.encode("ascii")
    return encoded + b"\0" * (len(encoded) % 2)
