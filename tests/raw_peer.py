"""A sender that says exactly what it is told to, byte by byte: hostile, slow, or only fast.

pynetdicom writes the association request; every byte after it is ours.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from pathlib import Path
from typing import Any, Self

from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # filled at import

ECHO_CONTEXT, STORE_CONTEXT = 1, 3
ACCEPTED, REJECTED, DATA, RELEASED, ABORTED = 0x02, 0x03, 0x04, 0x06, 0x07
SENT_PDU_BYTES = 16_384  # what DCMTK and Orthanc take


def association_request(
    calling: str = "SENDER",
    called: str = "FLAIRNODE",
    syntax: str = ExplicitVRLittleEndian,
    sop_class: str = MRImageStorage,
) -> bytes:
    """An A-ASSOCIATE-RQ for C-ECHO and for one kind of object."""
    asked: Any = A_ASSOCIATE()
    asked.application_context_name = UID("1.2.840.10008.3.1.1.1")
    asked.calling_ae_title, asked.called_ae_title = calling, called
    contexts = [build_context(Verification), build_context(sop_class, syntax)]
    for context, number in zip(contexts, (ECHO_CONTEXT, STORE_CONTEXT), strict=True):
        context.context_id = number
    asked.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16_384
    implementation.implementation_class_uid = UID("1.2.3.4")
    asked.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(asked)
    return bytes(pdu.encode())


def pdu(kind: int, body: bytes) -> bytes:
    """Any PDU."""
    return struct.pack(">BxL", kind, len(body)) + body


def fragment(context_id: int, control: int, data: bytes) -> bytes:
    """A presentation data value; bit 0 of control: a command, bit 1: the last of it."""
    return struct.pack(">LBB", len(data) + 2, context_id, control) + data


def command(**values: bytes) -> bytes:
    """A command set from `e0100=b"..."`."""
    rest = b"".join(
        struct.pack("<HHL", 0, int(name[1:], 16), len(value)) + value
        for name, value in sorted(values.items())
    )
    return struct.pack("<HHLL", 0, 0, 4, len(rest)) + rest


def padded(uid: str) -> bytes:
    """A UID of even length."""
    return uid.encode() + b"\0" * (len(uid) % 2)


def echo_request() -> bytes:
    """A C-ECHO-RQ in one PDU."""
    said = command(e0002=padded(Verification), e0100=b"\x30\0", e0110=b"\1\0", e0800=b"\1\1")
    return pdu(DATA, fragment(ECHO_CONTEXT, 0b11, said))


def store_request(sop_class: str, sop_instance: str, dataset: bytes) -> list[bytes]:
    """A C-STORE-RQ in as many PDUs as it needs."""
    said = command(
        e0002=padded(sop_class),
        e0100=b"\1\0",
        e0110=b"\1\0",
        e0700=b"\0\0",
        e0800=b"\0\0",
        e1000=padded(sop_instance),
    )
    room = SENT_PDU_BYTES - 6
    pdus = [pdu(DATA, fragment(STORE_CONTEXT, 0b11, said))]
    for start in range(0, max(1, len(dataset)), room):
        last = start + room >= len(dataset)
        piece = dataset[start : start + room]
        pdus.append(pdu(DATA, fragment(STORE_CONTEXT, 0b10 if last else 0, piece)))
    return pdus


def dataset_of(path: Path) -> tuple[str, str, bytes]:
    """SOP Class, SOP Instance and the encoded dataset of a file."""
    content = path.read_bytes()
    meta = dcmread(path, stop_before_pixels=True).file_meta
    start = 144 + int.from_bytes(content[140:144], "little")
    return str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), content[start:]


class RawPeer:
    """A TCP connection to a listener; a context manager."""

    def __init__(
        self, port: int, *, timeout_s: float = 20.0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def receive(self) -> tuple[int, bytes]:
        """The next PDU; type 0 when the connection has ended."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxL", head)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            try:
                piece = self.socket.recv(count - len(content))
            except ConnectionError:
                return content
            if not piece:
                return content
            content += piece
        return content

    def associate(self, **request: str) -> int:
        """Ask for an association; the type of the answer."""
        self.send(association_request(**request))
        return self.receive()[0]

    def status(self) -> int | None:
        """Status of the next answer; None if the association ended instead."""
        kind, body = self.receive()
        if kind != DATA:
            return None
        at = body.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
        return int.from_bytes(body[at : at + 2], "little")

    def echo(self) -> int | None:
        self.send(echo_request())
        return self.status()

    def store(self, sop_class: str, sop_instance: str, dataset: bytes) -> tuple[int | None, float]:
        """Status, and seconds from the last byte sent to the answer."""
        for one in store_request(sop_class, sop_instance, dataset):
            self.send(one)
        begin = time.perf_counter()
        return self.status(), time.perf_counter() - begin

    def release(self) -> int:
        """Release; the type of the answer."""
        self.send(pdu(0x05, bytes(4)))
        return self.receive()[0]
