"""One attempt at one destination: what each answer of a peer comes to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ExplicitVRLittleEndian

from config.settings import Destination, Peer
from dicom.uids import result_uid
from node.archive import LOOPBACK, free_port
from node.delivery import Delivered, ObjectState, deliver
from node.outcome import ResultFile
from tests.node.standins import Answers, dimse_peer, web_peer

Protocol = Literal["c-store", "stow-rs", "orthanc-rest"]
STANDINS: dict[str, Callable[[Answers], AbstractContextManager[Peer]]] = {
    "c-store": dimse_peer,
    "stow-rs": web_peer,
    "orthanc-rest": web_peer,
}
PROTOCOLS = list(STANDINS)


def report(folder: Path, index: int = 1) -> ResultFile:
    sr = Dataset()
    sr.SOPClassUID = Comprehensive3DSRStorage
    sr.SOPInstanceUID = result_uid("delivery", str(index))
    sr.StudyInstanceUID, sr.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    sr.file_meta = FileMetaDataset()
    sr.file_meta.MediaStorageSOPClassUID = Comprehensive3DSRStorage
    sr.file_meta.MediaStorageSOPInstanceUID = UID(sr.SOPInstanceUID)
    sr.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"{index}.dcm"
    sr.save_as(path, enforce_file_format=True)
    return ResultFile("sr", str(sr.SOPInstanceUID), path)


def attempt(
    protocol: str, answers: Answers, objects: list[ResultFile], confirm: str = "query"
) -> Delivered:
    destination = Destination.model_validate(
        {"peer": "standin", "protocol": protocol, "confirm": confirm}
    )
    with STANDINS[protocol](answers) as peer:
        return deliver(objects, destination, peer, ae_title="FLAIRNODE", timeout_s=5.0)


def only_state(delivered: Delivered) -> ObjectState:
    (state,) = delivered.states.values()
    return state


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_listed_after_sending_is_confirmed(protocol: str, tmp_path: Path) -> None:
    answers = Answers()
    assert only_state(attempt(protocol, answers, [report(tmp_path)])) is ObjectState.CONFIRMED
    assert len(answers.given) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_there_is_not_sent_again(protocol: str, tmp_path: Path) -> None:
    one = report(tmp_path)
    answers = Answers(given=[one.sop_instance_uid])
    assert attempt(protocol, answers, [one]).arrived
    assert answers.given == [one.sop_instance_uid]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_that_is_taken_and_not_listed_is_tried_again(
    protocol: str, tmp_path: Path
) -> None:
    delivered = attempt(protocol, Answers(lists=False), [report(tmp_path)])
    assert only_state(delivered) is ObjectState.TRYING
    assert delivered.message == "standin took an object and does not list it"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_a_query_its_own_word_counts_as_unconfirmed(protocol: str, tmp_path: Path) -> None:
    delivered = attempt(protocol, Answers(lists=False), [report(tmp_path)], confirm="none")
    assert only_state(delivered) is ObjectState.UNCONFIRMED


@pytest.mark.parametrize(
    ("protocol", "answers"),
    [
        ("c-store", Answers(status=0x0111)),
        ("stow-rs", Answers(http=409)),  # Karnak says so, with no word on the object
        ("stow-rs", Answers(http=409, status=0x0111)),
        ("orthanc-rest", Answers(http=409)),
    ],
)
def test_held_already_is_what_was_wanted(protocol: str, answers: Answers, tmp_path: Path) -> None:
    delivered = attempt(protocol, answers, [report(tmp_path)], confirm="none")
    assert only_state(delivered) is ObjectState.UNCONFIRMED


@pytest.mark.parametrize(
    ("protocol", "answers", "state"),
    [
        ("c-store", Answers(status=0xA700), ObjectState.TRYING),
        ("c-store", Answers(status=0x0110), ObjectState.TRYING),
        ("c-store", Answers(status=0xC000), ObjectState.REFUSED),
        ("c-store", Answers(status=0xA900), ObjectState.REFUSED),
        ("stow-rs", Answers(http=409, status=0xA700), ObjectState.TRYING),
        ("stow-rs", Answers(http=202, status=0x0110), ObjectState.TRYING),
        ("stow-rs", Answers(http=409, status=0xC000), ObjectState.REFUSED),
        ("stow-rs", Answers(http=503), ObjectState.TRYING),
        ("stow-rs", Answers(http=403), ObjectState.TRYING),  # put right at the peer
        ("orthanc-rest", Answers(http=507), ObjectState.TRYING),
        ("orthanc-rest", Answers(http=500), ObjectState.TRYING),
        ("orthanc-rest", Answers(http=400), ObjectState.REFUSED),
    ],
)
def test_a_refusal_passes_or_stays_as_its_status_says(
    protocol: str, answers: Answers, state: ObjectState, tmp_path: Path
) -> None:
    answers.lists = False
    delivered = attempt(protocol, answers, [report(tmp_path)])
    assert only_state(delivered) is state
    assert delivered.message.startswith("standin")


def test_a_warning_is_stored_and_told(tmp_path: Path) -> None:
    one = report(tmp_path)
    delivered = attempt("c-store", Answers(status=0xB000), [one], confirm="none")
    assert only_state(delivered) is ObjectState.UNCONFIRMED
    assert delivered.coerced == {one.sop_instance_uid}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_peer_that_dies_in_the_middle_of_a_store_has_one_copy_at_the_end(
    protocol: str, tmp_path: Path
) -> None:
    """It took the object, and nobody was told: the next attempt looks and sends nothing."""
    answers = Answers(dies=True)
    objects = [report(tmp_path)]
    first = attempt(protocol, answers, objects)
    assert only_state(first) in (ObjectState.TRYING, ObjectState.CONFIRMED)
    answers.dies = False
    assert only_state(attempt(protocol, answers, objects)) is ObjectState.CONFIRMED
    assert len(answers.given) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_there_is_tried_again(protocol: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    peer = Peer(
        name="gone",
        ae_title="GONE",
        host=LOOPBACK,
        port=port,
        dicomweb_url=url,
        orthanc_url=url,
    )
    destination = Destination.model_validate({"peer": "gone", "protocol": protocol})
    delivered = deliver([report(tmp_path)], destination, peer, ae_title="FLAIRNODE", timeout_s=5.0)
    assert only_state(delivered) is ObjectState.TRYING
    assert "gone" in delivered.message
    assert "cannot be reached" in delivered.message


def test_a_password_that_cannot_be_read_is_put_right_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLAIRNODE_PASSWORD_MY_PACS", raising=False)
    peer = Peer(name="my-pacs", orthanc_url="http://127.0.0.1:1", user="flairnode")
    destination = Destination(peer="my-pacs", protocol="orthanc-rest")
    delivered = deliver([report(tmp_path)], destination, peer, ae_title="US", timeout_s=5.0)
    assert only_state(delivered) is ObjectState.TRYING
    assert "FLAIRNODE_PASSWORD_MY_PACS" in delivered.message


def test_a_destination_gets_its_own_numbers_and_the_result_stays_as_it_was(tmp_path: Path) -> None:
    one = report(tmp_path)
    before = one.path.read_bytes()
    destination = Destination(
        peer="standin", protocol="orthanc-rest", series_numbers={"sr": 12}, series_number_offset=5
    )
    with web_peer(answers := Answers()) as peer:
        assert deliver([one], destination, peer, ae_title="US", timeout_s=5.0).arrived
    assert answers.given == [one.sop_instance_uid]
    assert one.path.read_bytes() == before
    sent = dcmread(tmp_path / "sent-standin" / one.path.name)
    assert (sent.SeriesNumber, sent.SOPInstanceUID) == (12, one.sop_instance_uid)


def test_an_object_that_does_not_fit_is_refused_there_and_the_others_go(tmp_path: Path) -> None:
    fits, does_not = report(tmp_path, 1), report(tmp_path, 2)
    dataset = dcmread(does_not.path)
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", "Ω^Ω"
    dataset.save_as(does_not.path)
    destination = Destination(peer="standin", specific_character_set="ISO_IR 100")
    with dimse_peer(answers := Answers()) as peer:
        delivered = deliver([fits, does_not], destination, peer, ae_title="US", timeout_s=5.0)
    assert answers.given == [fits.sop_instance_uid]
    assert delivered.states == {
        fits.sop_instance_uid: ObjectState.CONFIRMED,
        does_not.sop_instance_uid: ObjectState.REFUSED,
    }
    assert delivered.message == "standin: PatientName does not fit ISO_IR 100"
