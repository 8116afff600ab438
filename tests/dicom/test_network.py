from __future__ import annotations

import ipaddress
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find
from pynetdicom.sop_class import Verification

from config.settings import ListenerLimits, Peer
from dicom.network.scp import (
    OUT_OF_RESOURCES,
    SUCCESS,
    Admission,
    ReceivedObject,
    Refusal,
    StorageServer,
)
from dicom.network.scu import (
    PeerRefusedError,
    PeerUnreachableError,
    echo,
    find_instances,
    store,
)
from node.archive import free_port

Make = Callable[..., Any]
LOOPBACK = ipaddress.ip_network("127.0.0.1/32")
ADMISSION = Admission("FLAIRNODE", frozenset({"PACS"}), (LOOPBACK,))


class Listener:
    """A storage server that remembers what came and whom it refused."""

    def __init__(self, admission: Admission = ADMISSION, **limits: Any) -> None:  # noqa: ANN401
        self.received: list[ReceivedObject] = []
        self.refused: list[Refusal] = []
        self.status = SUCCESS
        self.server = StorageServer(
            "127.0.0.1",
            0,
            admission,
            self.take,
            self.refused.append,
            limits=ListenerLimits(**limits),
        )
        self.peer = Peer(name="node", ae_title="FLAIRNODE", host="127.0.0.1", port=self.server.port)

    def take(self, received: ReceivedObject) -> int:
        self.received.append(received)
        return self.status


@pytest.fixture
def make_listener() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(admission: Admission = ADMISSION, **limits: Any) -> Listener:  # noqa: ANN401
        listener = Listener(admission, **limits)
        listener.server.start()
        made.append(listener)
        return listener

    yield make
    for listener in made:
        listener.server.stop()


@pytest.fixture
def listener(make_listener: Callable[..., Listener]) -> Listener:
    return make_listener()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- the listener ---------------------------------------------------------------------------------


def test_an_echo_is_answered(listener: Listener) -> None:
    echo(listener.peer, calling_ae_title="PACS")
    assert listener.refused == []


def test_an_object_arrives_as_the_bytes_that_were_sent(
    listener: Listener, make_flair_series: Make
) -> None:
    (path, *_) = make_flair_series().paths
    (result,) = store(listener.peer, [path], calling_ae_title="PACS")
    assert result.stored
    (received,) = listener.received
    assert path.read_bytes().endswith(received.dataset)
    assert received.sop_instance_uid == dcmread(path).SOPInstanceUID == result.sop_instance_uid
    assert received.sop_class_uid == MRImageStorage
    assert received.transfer_syntax_uid == ExplicitVRLittleEndian
    assert (received.calling_ae_title, received.address) == ("PACS", "127.0.0.1")


def test_a_compressed_object_is_not_decoded_on_the_way(
    listener: Listener, make_flair_series: Make
) -> None:
    (path, *_) = make_flair_series(transfer_syntax_uid=JPEG2000Lossless).paths
    assert store(listener.peer, [path], calling_ae_title="PACS")[0].stored
    assert listener.received[0].transfer_syntax_uid == JPEG2000Lossless
    assert path.read_bytes().endswith(listener.received[0].dataset)


def test_a_private_kind_of_object_is_taken(
    listener: Listener, make_flair_series: Make, tmp_path: Path
) -> None:
    dataset = dcmread(make_flair_series().paths[0])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    dataset.save_as(tmp_path / "csa.dcm")
    assert store(listener.peer, [tmp_path / "csa.dcm"], calling_ae_title="PACS")[0].stored
    assert listener.received[0].sop_class_uid == "1.3.12.2.1107.5.9.1"


@pytest.mark.parametrize(
    ("called", "calling", "reason"),
    [
        ("FLAIRNODE", "STRANGER", "calling-ae-title"),
        ("OTHERNODE", "PACS", "called-ae-title"),
        ("OTHERNODE", "STRANGER", "called-ae-title"),
    ],
)
def test_a_wrong_ae_title_is_rejected_with_its_reason(
    listener: Listener, called: str, calling: str, reason: str
) -> None:
    peer = listener.peer.model_copy(update={"ae_title": called})
    with pytest.raises(PeerRefusedError, match="rejected the association"):
        echo(peer, calling_ae_title=calling)
    assert listener.refused == [Refusal(reason, "127.0.0.1", calling, called)]


def test_an_empty_list_admits_nobody(make_listener: Callable[..., Listener]) -> None:
    listener = make_listener(replace(ADMISSION, calling_ae_titles=frozenset()))
    with pytest.raises(PeerRefusedError):
        echo(listener.peer, calling_ae_title="PACS")


def test_a_foreign_address_is_turned_away_before_it_says_a_word(
    make_listener: Callable[..., Listener],
) -> None:
    listener = make_listener(replace(ADMISSION, networks=(ipaddress.ip_network("192.0.2.0/24"),)))
    with pytest.raises(PeerUnreachableError):
        echo(listener.peer, calling_ae_title="PACS", timeout_s=5)
    assert listener.refused == [Refusal("address", "127.0.0.1")]


def test_a_mapped_address_counts_as_the_address_it_maps() -> None:
    assert ADMISSION.admits_address("::ffff:127.0.0.1")
    assert not ADMISSION.admits_address("::ffff:192.0.2.1")
    assert not ADMISSION.admits_address("::1")


def test_other_services_than_storage_are_not_offered(listener: Listener) -> None:
    with pytest.raises(PeerRefusedError):
        find_instances(listener.peer, "1.2", "1.2.3", calling_ae_title="PACS")


def test_sixteen_associations_at_once_are_served(
    listener: Listener, make_flair_series: Make
) -> None:
    paths = make_flair_series(slices=16, rows=16, columns=12).paths
    gate = threading.Barrier(16)
    stored: list[bool] = []

    def send(path: Path) -> None:
        gate.wait()
        (result,) = store(listener.peer, [path], calling_ae_title="PACS")
        stored.append(result.stored)

    threads = [threading.Thread(target=send, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored == [True] * 16
    assert len({one.sop_instance_uid for one in listener.received}) == 16


def test_idle_connections_keep_nobody_out(make_listener: Callable[..., Listener]) -> None:
    listener = make_listener(connections=8)
    idle = [socket.create_connection(("127.0.0.1", listener.server.port)) for _ in range(12)]
    try:
        wait_until(lambda: len(listener.refused) >= 4)
        echo(listener.peer, calling_ae_title="PACS")
        assert {one.reason for one in listener.refused} == {"idle"}
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("associations", "too-many-associations"),
        ("associations_per_address", "too-many-associations-of-address"),
    ],
)
def test_more_associations_than_the_limit_are_told_to_come_back(
    make_listener: Callable[..., Listener], limit: str, reason: str
) -> None:
    listener = make_listener(**{limit: 1})
    entity = AE(ae_title="PACS")
    open_one = entity.associate(
        "127.0.0.1", listener.server.port, [build_context(Verification)], ae_title="FLAIRNODE"
    )
    assert open_one.is_established
    with pytest.raises(PeerRefusedError):
        echo(listener.peer, calling_ae_title="PACS")
    assert listener.refused[-1].reason == reason
    open_one.release()
    wait_until(lambda: listener.server.associations == 0)
    echo(listener.peer, calling_ae_title="PACS")


def test_what_is_sent_is_acknowledged_at_once(
    listener: Listener, make_flair_series: Make, tmp_path: Path
) -> None:
    """Fifty objects of several PDUs each: with delayed acknowledgements 40 ms for each of them."""
    paths = make_flair_series(slices=25, rows=256, columns=256).paths
    command = ["/usr/bin/storescu", "-aet", "PACS", "-aec", "FLAIRNODE", "127.0.0.1"]
    begin = time.monotonic()
    subprocess.run(
        [*command, str(listener.server.port), *map(str, paths), *map(str, paths)],
        check=True,
        env={name: value for name, value in os.environ.items() if name != "TCP_NODELAY"},
    )
    assert len(listener.received) == 50
    assert time.monotonic() - begin < 0.75 * 50 * 0.040


def test_stopping_ends_open_associations(listener: Listener) -> None:
    entity = AE(ae_title="PACS")
    association = entity.associate(
        "127.0.0.1", listener.server.port, [build_context(Verification)], ae_title="FLAIRNODE"
    )
    assert association.is_established
    listener.server.stop()
    wait_until(lambda: not association.is_established)
    with pytest.raises(PeerUnreachableError):
        echo(listener.peer, calling_ae_title="PACS", timeout_s=2)


def test_identifiers_never_reach_the_libraries_loggers(
    listener: Listener, make_flair_series: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        store(
            listener.peer,
            [make_flair_series(patient_name="Doe^Jane").paths[0]],
            calling_ae_title="PACS",
        )
        with pytest.raises(PeerRefusedError):
            find_instances(listener.peer, "1.2.3333", "1.2.4444", calling_ae_title="PACS")
    assert "Doe" not in caplog.text
    assert "1.2.3333" not in caplog.text


# --- asking and sending ---------------------------------------------------------------------------


def test_an_unreachable_peer_is_another_error_than_one_that_refuses() -> None:
    nobody = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port())
    with pytest.raises(PeerUnreachableError, match="pacs"):
        echo(nobody, calling_ae_title="FLAIRNODE", timeout_s=2)


def test_a_peer_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=silent.getsockname()[1])
        begin = time.monotonic()
        with pytest.raises(PeerUnreachableError):
            echo(peer, calling_ae_title="FLAIRNODE", timeout_s=1)
        assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("status", "stored"),
    [
        (0x0000, True),
        (0x0111, True),
        (0xB000, True),
        (0xB007, True),
        (0xA700, False),
        (0x0110, False),
        (0xC000, False),
    ],
)
def test_a_status_says_whether_the_peer_holds_the_object(
    listener: Listener, make_flair_series: Make, status: int, stored: bool
) -> None:
    listener.status = status
    (result,) = store(listener.peer, make_flair_series().paths[:1], calling_ae_title="PACS")
    assert (result.status, result.stored) == (status, stored)


def test_one_refused_object_does_not_stop_the_next(
    listener: Listener, make_flair_series: Make
) -> None:
    answers = [SUCCESS, OUT_OF_RESOURCES, SUCCESS]
    listener.server._on_store = lambda _: answers.pop(0)
    results = store(listener.peer, make_flair_series().paths[:3], calling_ae_title="PACS")
    assert [one.stored for one in results] == [True, False, True]


def test_a_kind_that_the_peer_does_not_take_is_reported_per_object(
    make_flair_series: Make, tmp_path: Path
) -> None:
    image = make_flair_series().paths[0]
    dataset = dcmread(image)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    dataset.save_as(tmp_path / "seg.dcm")
    entity = AE(ae_title="PACS")
    entity.add_supported_context(MRImageStorage, [ExplicitVRLittleEndian])
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0x0000)]
    )
    assert server is not None
    try:
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=server.server_address[1])
        first, second = store(peer, [tmp_path / "seg.dcm", image], calling_ae_title="FLAIRNODE")
    finally:
        server.shutdown()
    assert (first.stored, first.status) == (False, None)
    assert "does not take" in first.message
    assert second.stored


def test_a_file_that_is_no_dicom_is_a_mistake_of_the_caller(
    listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "x.dcm").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no DICOM file"):
        store(listener.peer, [tmp_path / "x.dcm"], calling_ae_title="PACS")


def test_instances_are_found_and_a_failed_query_is_an_error() -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.SeriesInstanceUID == "1.2.9":
            yield 0xA700, None
            return
        for number in range(3):
            answer = Dataset()
            answer.SOPInstanceUID = f"1.2.3.{number}"
            yield 0xFF00, answer

    entity = AE(ae_title="PACS")
    entity.add_supported_context(Find)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)]
    )
    assert server is not None
    try:
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=server.server_address[1])
        assert find_instances(peer, "1.2", "1.2.3", calling_ae_title="FLAIRNODE") == {
            "1.2.3.0",
            "1.2.3.1",
            "1.2.3.2",
        }
        with pytest.raises(PeerRefusedError) as refused:
            find_instances(peer, "1.2", "1.2.9", calling_ae_title="FLAIRNODE")
        assert refused.value.status == 0xA700
    finally:
        server.shutdown()
