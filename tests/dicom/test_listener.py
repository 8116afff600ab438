"""Peers that mean harm, or are merely broken, against a listener that has others to serve."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from config.settings import ListenerLimits
from dicom.network.scp import (
    CANNOT_UNDERSTAND,
    OUT_OF_RESOURCES,
    SUCCESS,
    UNRECOGNISED_OPERATION,
    Admission,
    ReceivedObject,
    Refusal,
    StorageServer,
)
from dicom.network.wire import WireError, read_command
from tests.raw_peer import (
    ABORTED,
    ACCEPTED,
    DATA,
    ECHO_CONTEXT,
    REJECTED,
    RELEASED,
    STORE_CONTEXT,
    RawPeer,
    association_request,
    command,
    dataset_of,
    echo_request,
    fragment,
    padded,
    pdu,
    store_request,
)

Make = Callable[..., Any]
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
MR = "1.2.840.10008.5.1.4.1.1.4"


class Door:
    """A listener that remembers what came and whom it refused."""

    def __init__(self, **limits: Any) -> None:  # noqa: ANN401
        self.received: list[ReceivedObject] = []
        self.refused: list[Refusal] = []
        self.hold = threading.Event()
        self.hold.set()
        self.server = StorageServer(
            "127.0.0.1",
            0,
            Admission("FLAIRNODE", frozenset({"SENDER"}), LOOPBACK),
            self.take,
            self.refused.append,
            limits=ListenerLimits(**limits),
        )
        self.port = self.server.port

    def take(self, received: ReceivedObject) -> int:
        self.hold.wait(20)
        self.received.append(received)
        return SUCCESS

    @property
    def reasons(self) -> list[str]:
        return [one.reason for one in self.refused]

    def serves(self) -> bool:
        """Does a real sender get through, and soon?"""
        with RawPeer(self.port, timeout_s=15) as peer:
            return peer.associate() == ACCEPTED and peer.echo() == 0 and peer.release() == RELEASED

    def wait_for(self, reason: str, count: int = 1) -> None:
        deadline = time.monotonic() + 20
        while self.reasons.count(reason) < count:
            assert time.monotonic() < deadline, f"{reason}: waited in vain, {self.reasons}"
            time.sleep(0.02)


@pytest.fixture
def make_door() -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def make(**limits: Any) -> Door:  # noqa: ANN401
        door = Door(**limits)
        door.server.start()
        made.append(door)
        return door

    yield make
    for door in made:
        door.server.stop()


def open_handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def is_cut_off(peer: RawPeer, pieces: Iterable[bytes]) -> bool:
    """Send piece after piece, slowly; does the listener end it?"""
    try:
        for piece in pieces:
            peer.send(piece)
            time.sleep(0.05)
    except OSError:
        return True
    return False


# --- who says nothing, or says it slowly ----------------------------------------------------------


def test_a_flood_of_silent_connections_takes_the_place_of_nobody(
    make_door: Callable[..., Door],
) -> None:
    door = make_door(connections_per_address=8)
    idle = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(60)]
    assert door.serves()
    assert set(door.reasons) == {"idle"}
    for one in idle:
        one.close()


def test_the_connections_of_one_address_push_out_their_own(
    make_door: Callable[..., Door],
) -> None:
    door = make_door(connections=10, connections_per_address=6)
    waiting = socket.create_connection(("127.0.0.1", door.port), source_address=("127.0.0.9", 0))
    flood = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(30)]
    door.wait_for("idle", 24)
    assert {one.address for one in door.refused} == {"127.0.0.1"}
    waiting.sendall(association_request())
    assert waiting.recv(1)[0] == ACCEPTED
    for one in (*flood, waiting):
        one.close()


def test_whoever_connects_has_little_time_to_ask(make_door: Callable[..., Door]) -> None:
    door = make_door(request_timeout_s=0.3)
    begin = time.monotonic()
    with RawPeer(door.port) as silent:
        assert silent.receive()[0] == 0
    assert time.monotonic() - begin < 10
    assert door.reasons == ["idle"]


def test_one_byte_at_a_time_is_too_slow(make_door: Callable[..., Door]) -> None:
    door = make_door(request_timeout_s=0.5, pdu_timeout_s=0.5)
    with RawPeer(door.port) as peer:  # a request that never comes to its end
        assert is_cut_off(peer, (bytes([byte]) for byte in association_request() * 4))
    with RawPeer(door.port) as peer:  # and a dataset
        assert peer.associate() == ACCEPTED
        (said, body) = store_request(MR, "1.2.3", bytes(1000))
        peer.send(said)
        assert is_cut_off(peer, (bytes([byte]) for byte in body))
    assert door.reasons == ["too-slow", "too-slow"]
    assert door.serves()


def test_an_object_in_ever_new_small_pieces_comes_to_an_end(
    make_door: Callable[..., Door],
) -> None:
    door = make_door(object_timeout_s=0.5)
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        peer.send(store_request(MR, "1.2.3", bytes(8))[0])
        assert is_cut_off(peer, [pdu(DATA, fragment(STORE_CONTEXT, 0, bytes(2)))] * 200)
    assert door.reasons == ["too-slow"]


def test_an_association_that_falls_silent_is_ended(make_door: Callable[..., Door]) -> None:
    door = make_door(idle_timeout_s=0.3)
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        assert peer.receive()[0] == 0
        door.wait_for("idle")
        assert door.server.associations == 0


# --- who says too much, or nonsense ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack(">BxL", 0x01, 0xFFFF_FFFF), "pdu-too-long"),
        (struct.pack(">BxL", 0x04, 8), "pdu-unexpected"),
        (b"GET / HTTP/1.1\r\n\r\n", "pdu-unknown"),
        (b"\x16\x03\x01\x02\x00\x01", "tls-on-plain-port"),
        (pdu(0x01, bytes(4)), "pdu-malformed"),
        (pdu(0x01, association_request()[6:80]), "pdu-malformed"),
    ],
    ids=["4 GB", "data first", "http", "tls", "too short", "cut off"],
)
def test_what_is_no_request_ends_the_connection_with_its_reason(
    make_door: Callable[..., Door], sent: bytes, reason: str
) -> None:
    door = make_door(request_timeout_s=1)
    with RawPeer(door.port) as peer:
        peer.send(sent + bytes(8) * (reason == "pdu-unexpected"))
        assert peer.receive()[0] in (ABORTED, 0)
    door.wait_for(reason)
    assert door.serves()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack(">BxL", DATA, 131_073), "pdu-too-long"),
        (pdu(DATA, struct.pack(">LBB", 0xFFFF_FFFF, 1, 3)), "pdu-malformed"),
        (pdu(DATA, struct.pack(">LBB", 1, 1, 3)), "pdu-malformed"),
        (pdu(DATA, b"\0\0\0"), "pdu-malformed"),
        (pdu(DATA, fragment(ECHO_CONTEXT, 0b10, b"dataset first")), "pdu-unexpected"),
        (pdu(DATA, fragment(99, 0b11, echo_request()[12:])), "pdu-unexpected"),
        (pdu(DATA, fragment(1, 0b11, b"")), "pdu-malformed"),
        (pdu(DATA, fragment(1, 0b01, bytes(20_000))), "pdu-malformed"),
        (association_request(), "pdu-unexpected"),
        (pdu(0x06, bytes(4)), "pdu-unexpected"),
    ],
    ids=[
        "longer than we take",
        "value beyond its pdu",
        "value without a header",
        "three bytes",
        "dataset before command",
        "a context that was not accepted",
        "empty command",
        "endless command",
        "asks again",
        "release answered unasked",
    ],
)
def test_nonsense_on_an_association_aborts_it_with_its_reason(
    make_door: Callable[..., Door], sent: bytes, reason: str
) -> None:
    door = make_door()
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        peer.send(sent)
        assert peer.receive()[0] == ABORTED
    door.wait_for(reason)
    assert door.received == []
    assert door.serves()


def test_an_abort_in_the_middle_of_an_object_leaves_nothing(make_door: Callable[..., Door]) -> None:
    door = make_door()
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        said, first, *_ = store_request(MR, "1.2.3", bytes(100_000))
        peer.send(said + first + pdu(0x07, bytes(4)))
        assert peer.receive()[0] == 0
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        peer.send(said + first[:500])
    assert door.serves()
    assert door.received == []
    assert door.refused == []  # going away is everybody's right


def test_an_unknown_operation_is_answered_not_aborted(make_door: Callable[..., Door]) -> None:
    find = command(e0002=padded(MR), e0100=b"\x20\0", e0110=b"\1\0", e0800=b"\1\1")
    door = make_door()
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        peer.send(pdu(DATA, fragment(STORE_CONTEXT, 0b11, find)))
        assert peer.status() == UNRECOGNISED_OPERATION
        assert peer.echo() == SUCCESS


@pytest.mark.parametrize("element", ["e0100", "e0800"])
def test_a_command_without_what_every_command_has_is_none(element: str) -> None:
    values = {"e0002": padded(MR), "e0100": b"\x30\0", "e0110": b"\1\0", "e0800": b"\1\1"}
    del values[element]
    with pytest.raises(WireError, match="pdu-malformed"):
        read_command(command(**values))


def test_a_command_set_may_come_in_pieces(make_door: Callable[..., Door]) -> None:
    encoded = echo_request()[12:]
    door = make_door()
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        for start in range(0, len(encoded), 10):
            last = start + 10 >= len(encoded)
            piece = encoded[start : start + 10]
            peer.send(pdu(DATA, fragment(ECHO_CONTEXT, 0b11 if last else 0b01, piece)))
        assert peer.status() == SUCCESS


# --- who takes too much ---------------------------------------------------------------------------


def test_an_object_beyond_the_largest_is_refused_and_the_next_one_taken(
    make_door: Callable[..., Door],
) -> None:
    door = make_door(largest_object_mb=1)
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        assert peer.store(MR, "1.2.3", bytes((1 << 20) + 2))[0] == CANNOT_UNDERSTAND
        assert peer.store(MR, "1.2.4", bytes(1 << 20))[0] == SUCCESS
    assert door.reasons == ["object-too-large"]
    assert [len(one.dataset) for one in door.received] == [1 << 20]


def test_senders_share_the_memory_of_reception_and_come_back_later(
    make_door: Callable[..., Door],
) -> None:
    door = make_door(receiving_mb=1)
    door.hold.clear()
    with RawPeer(door.port) as first, RawPeer(door.port) as second, ThreadPoolExecutor(1) as pool:
        assert (first.associate(), second.associate()) == (ACCEPTED, ACCEPTED)
        kept = pool.submit(first.store, MR, "1.2.3", bytes(700_000))
        time.sleep(0.5)  # it lies here, and is not answered yet
        assert second.store(MR, "1.2.4", bytes(700_000))[0] == OUT_OF_RESOURCES
        door.hold.set()
        assert kept.result()[0] == SUCCESS
        assert second.store(MR, "1.2.4", bytes(700_000))[0] == SUCCESS


def test_sixty_four_associations_at_once_each_bring_their_image(
    make_door: Callable[..., Door], make_flair_series: Make
) -> None:
    door = make_door()
    sop_class, _, dataset = dataset_of(make_flair_series().paths[0])
    everybody = threading.Barrier(64)

    def send(number: int) -> int | None:
        with RawPeer(door.port, timeout_s=60) as peer:
            accepted = peer.associate()
            everybody.wait(60)  # all of them are open now
            assert accepted == ACCEPTED
            status, _ = peer.store(sop_class, f"1.2.{number}", dataset)
            assert peer.release() == RELEASED
            return status

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(send, range(64))) == [SUCCESS] * 64
    assert len({one.sop_instance_uid for one in door.received}) == 64


def test_three_hundred_associations_leave_no_thread_and_no_handle(
    make_door: Callable[..., Door],
) -> None:
    door = make_door()
    assert door.serves()
    threads, handles = threading.active_count(), open_handles()
    for _ in range(300):
        assert door.serves()
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= threads
    assert open_handles() <= handles + 1
    assert door.refused == []


# --- from where -----------------------------------------------------------------------------------


def test_an_ae_title_from_another_address_than_its_own_is_refused() -> None:
    refused: list[Refusal] = []
    admission = Admission(
        "FLAIRNODE",
        frozenset({"PACS", "SCANNER"}),
        (ipaddress.ip_network("127.0.0.1/32"),),
        networks_of={"SCANNER": (ipaddress.ip_network("127.0.0.8/29"),)},
    )
    with StorageServer("127.0.0.1", 0, admission, lambda _: 0, refused.append) as server:

        def ask(calling: str, source: str) -> int:
            address = ("127.0.0.1", server.port)
            with socket.create_connection(address, 10, (source, 0)) as one:
                one.sendall(association_request(calling=calling))
                return (one.recv(1) or b"\0")[0]

        assert ask("SCANNER", "127.0.0.9") == ACCEPTED
        assert ask("PACS", "127.0.0.1") == ACCEPTED
        assert ask("SCANNER", "127.0.0.1") == REJECTED
        assert ask("PACS", "127.0.0.9") == REJECTED
    assert [(one.reason, one.calling_ae_title, one.address) for one in refused] == [
        ("wrong-address", "SCANNER", "127.0.0.1"),
        ("wrong-address", "PACS", "127.0.0.9"),
    ]


def test_an_unlisted_address_is_closed_without_a_thread_of_its_own(
    make_door: Callable[..., Door],
) -> None:
    door = make_door()
    door.server._admission = Admission("FLAIRNODE", frozenset({"SENDER"}), ())
    before = threading.active_count()
    for _ in range(20):
        with RawPeer(door.port) as peer:
            assert peer.receive()[0] == 0
    assert threading.active_count() <= before
    assert set(door.reasons) == {"address"}


def test_files_of_a_real_object_pass_byte_for_byte(
    make_door: Callable[..., Door], make_flair_series: Make
) -> None:
    door = make_door()
    path: Path = make_flair_series(slices=3, rows=512, columns=384).paths[0]
    with RawPeer(door.port) as peer:
        assert peer.associate() == ACCEPTED
        assert peer.store(*dataset_of(path))[0] == SUCCESS
    assert door.received[0].dataset == dataset_of(path)[2]
