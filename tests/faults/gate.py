"""A door between two DICOM applications that can be shut in every way a network has.

It forwards bytes between a port of its own and the application behind it, and knows just enough of
PS3.8 to stop at a chosen moment: after an association was accepted, in the middle of a PDU, before
or after the n-th answer to a C-STORE. Two programs of others talk through it, and neither knows.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from enum import Enum, auto
from typing import Self

from node.archive import LOOPBACK

_ASSOCIATE_RQ, _ASSOCIATE_AC, _ASSOCIATE_RJ, _DATA = 1, 2, 3, 4
# Implicit VR little endian, as every command set is (PS3.7 6.3.1): Command Field C-STORE-RSP.
_STORE_RESPONSE = b"\x00\x00\x00\x01\x02\x00\x00\x00\x01\x80"
_STATUS = b"\x00\x00\x00\x09\x02\x00\x00\x00"
# Transient, by the presentation layer, local limit exceeded (PS3.8 9.3.4).
_REJECTION = struct.pack(">BBIBBBB", _ASSOCIATE_RJ, 0, 4, 0, 2, 3, 2)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


class Moment(Enum):
    """Where the conversation stops; the peer that waits for more hears nothing."""

    ACCEPTED = auto()
    """Once the association was accepted."""
    BYTES = auto()
    """After so many bytes of the one who called, wherever that is."""
    BEFORE_ANSWER = auto()
    """With the n-th answer to a C-STORE on its way, which does not arrive."""
    AFTER_ANSWER = auto()
    """With the n-th answer to a C-STORE arrived, and nothing after it."""


class Gate:
    """Forwards to `target` by default; a context manager that ends with every connection cut."""

    def __init__(self, target: Callable[[], int]) -> None:
        """Take a free port.

        Args:
            target: The port behind the door, asked at every connection.
        """
        self.target = target
        """Of the next connection."""
        self._lock = threading.RLock()
        self._connections: set[socket.socket] = set()
        self._moment: tuple[Moment, int] | None = None
        self._status: int | None = None
        self._abort_after: int | None = None
        self._mode = "open"
        self._answers = 0
        self.stopped = threading.Event()
        """The moment that was waited for has come."""
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    # --- what the door does ------------------------------------------------------------------

    def open(self) -> None:
        """Forward everything, as it is."""
        with self._lock:
            self._moment = self._status = self._abort_after = None
            self._mode = "open"
            self._answers = 0
            self.stopped.clear()
        self._listen()

    def shut(self) -> None:
        """Refuse connections, and cut those there are: the machine behind is down."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # A thread that waits in accept() keeps the port open over a mere close().
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection there is."""
        with self._lock:
            connections, self._connections = self._connections, set()
        for one in connections:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def hang(self) -> None:
        """Take connections and say nothing, ever."""
        self._mode = "hang"

    def reject(self) -> None:
        """Reject every association, as one that has too many does."""
        self._mode = "reject"

    def abort_after(self, count: int) -> None:
        """Cut each connection once the caller has sent so many bytes."""
        self._abort_after = count

    def answer_with(self, status: int) -> None:
        """Replace the status of every C-STORE answer: what is behind has stored it all the same."""
        self._status = status

    def stop_at(self, moment: Moment, number: int = 1) -> None:
        """Stop the next conversation there, and set `stopped`."""
        with self._lock:
            self._moment, self._answers = (moment, number), 0
            self.stopped.clear()

    # --- forwarding --------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            if self._listener is not listener:
                caller.close()
                return
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        self._remember(caller)
        if self._mode == "hang":
            return
        if self._mode == "reject":
            with contextlib.suppress(OSError):
                caller.recv(65536)
                caller.sendall(_REJECTION)
                caller.recv(1)
            self._forget(caller)
            return
        try:
            behind = socket.create_connection((LOOPBACK, self.target()), timeout=10)
        except OSError:
            self._forget(caller)
            return
        behind.settimeout(None)
        self._remember(behind)
        for one in (caller, behind):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._answers_of, args=(behind, caller), daemon=True).start()
        self._requests_of(caller, behind)

    def _requests_of(self, caller: socket.socket, behind: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := caller.recv(16384):
                if self.stopped.is_set():
                    return  # with both ends open: nobody hears of it
                if self._abort_after is not None and sent + len(data) >= self._abort_after:
                    behind.sendall(data[: self._abort_after - sent])
                    self._reset(caller, behind)
                    return
                moment = self._moment
                if moment is not None and moment[0] is Moment.BYTES:
                    room = moment[1] - sent
                    if len(data) >= room:
                        behind.sendall(data[:room])
                        self.stopped.set()
                        return
                behind.sendall(data)
                sent += len(data)
        self._forget(caller, behind)

    def _answers_of(self, behind: socket.socket, caller: socket.socket) -> None:
        waiting = b""
        with contextlib.suppress(OSError):
            while data := behind.recv(16384):
                waiting += data
                while len(waiting) >= 6:
                    end = 6 + int.from_bytes(waiting[2:6], "big")
                    if len(waiting) < end:
                        break
                    pdu, waiting = waiting[:end], waiting[end:]
                    if not self._forward(pdu, caller):
                        return
        if not self.stopped.is_set():
            self._forget(caller, behind)

    def _forward(self, pdu: bytes, caller: socket.socket) -> bool:
        """Hand on one PDU; False when the conversation stops here."""
        moment, number = self._moment or (None, 0)
        if pdu[0] == _ASSOCIATE_AC and moment is Moment.ACCEPTED:
            self.stopped.set()
            caller.sendall(pdu)
            return False
        if pdu[0] == _DATA and _STORE_RESPONSE in pdu:
            self._answers += 1
            if self._status is not None:
                place = pdu.index(_STATUS) + len(_STATUS)
                pdu = pdu[:place] + struct.pack("<H", self._status) + pdu[place + 2 :]
            if self._answers == number and moment is Moment.BEFORE_ANSWER:
                self.stopped.set()
                return False
            if self._answers == number and moment is Moment.AFTER_ANSWER:
                self.stopped.set()  # first, so that nothing the caller says next gets through
                caller.sendall(pdu)
                return False
        caller.sendall(pdu)
        return True

    def _reset(self, *ends: socket.socket) -> None:
        for one in ends:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._forget(*ends)

    def _remember(self, one: socket.socket) -> None:
        with self._lock:
            self._connections.add(one)

    def _forget(self, *ends: socket.socket) -> None:
        with self._lock:
            self._connections.difference_update(ends)
        for one in ends:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
