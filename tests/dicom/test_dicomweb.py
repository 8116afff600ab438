"""The DICOMweb client against servers that answer in odd ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.settings import Peer
from dicom.network.dicomweb import DicomWebClient, _Parts
from dicom.network.scu import PeerError, PeerRefusedError, PeerUnreachableError
from tests.node.standins import Reply, Request, http_server

Make = Callable[..., Any]
PEER = Peer(name="pacs", dicomweb_url="http://127.0.0.1:1")
ENCLOSED = (
    b"--mark\r\nContent-Type: application/dicom\r\n\r\nfirst\r\n--mar\r\n\r\n"
    b"--mark\r\n\r\n\r\n--mark--"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_parts_are_split_at_their_boundaries_whatever_the_chunks(size: int) -> None:
    """The second part is empty and has no header of its own; the first looks like a boundary."""
    chunks = (ENCLOSED[at : at + size] for at in range(0, len(ENCLOSED), size))
    found = [b"".join(body) for body in _Parts(chunks, b"mark", PEER)]
    assert found == [b"first\r\n--mar\r\n", b""]


@pytest.mark.parametrize("length", [3, 20, 60, len(ENCLOSED) - 3])
def test_an_answer_that_breaks_off_is_no_answer(length: int) -> None:
    parts = _Parts(iter([ENCLOSED[:length]]), b"mark", PEER)
    with pytest.raises(PeerUnreachableError, match="broke off"):
        _ = [b"".join(body) for body in parts]


def client(url: str) -> DicomWebClient:
    return DicomWebClient(Peer(name="pacs", dicomweb_url=url), timeout_s=5.0)


def study(uid: str) -> dict[str, Any]:
    return {"0020000D": {"vr": "UI", "Value": [uid]}}


def test_every_page_of_a_search_is_read() -> None:
    asked: list[str] = []

    def answer(request: Request) -> Reply:
        asked.append(request.path)
        offset = int(request.path.partition("offset=")[2])
        page = [study(f"1.2.{n}") for n in range(offset, min(offset + 1000, 1500))]
        return 200, "application/dicom+json", json.dumps(page).encode()

    with http_server(answer) as url:
        found = client(url).search_studies({"StudyDate": "20240101-20240131"})
    assert len(found) == 1500
    assert len(asked) == 2


def test_a_server_that_ignores_pages_is_asked_no_more() -> None:
    page = json.dumps([study(f"1.2.{n}") for n in range(1000)]).encode()
    with http_server(lambda _: (200, "application/dicom+json", page)) as url:
        assert len(client(url).search_studies({})) == 1000


def test_no_message_names_what_was_asked_for() -> None:
    def answer(request: Request) -> Reply:
        return (0, "", b"") if "DROPS" in request.path else (500, "text/plain", b"Doe^Jane")

    with http_server(answer) as url:
        for name, error in (("Doe^Jane", PeerRefusedError), ("DROPS^Doe", PeerUnreachableError)):
            with pytest.raises(error) as raised:
                client(url).search_studies({"PatientName": name})
            assert "Doe" not in str(raised.value)
            assert raised.value.__cause__ is None


def test_an_object_becomes_no_file_outside_its_folder(
    make_flair_series: Make, tmp_path: Path
) -> None:
    (path, *_) = make_flair_series(slices=3).paths
    content = path.read_bytes()
    uid = path.read_bytes().split(b"\x08\x00\x18\x00UI")[1][2:66]
    evil = content.replace(uid[:10], b"../../../x")
    body = b"--m\r\n\r\n" + evil + b"\r\n--m--"
    kind = "multipart/related; type=application/dicom; boundary=m"
    with (
        http_server(lambda _: (200, kind, body)) as url,
        pytest.raises(PeerError, match="without a SOP Instance UID"),
    ):
        client(url).retrieve(tmp_path / "in", "1.2.3")
    assert list((tmp_path / "in").iterdir()) == []


def test_something_else_than_dicom_is_not_kept(tmp_path: Path) -> None:
    replies: list[Reply] = [
        (200, "text/html", b"<html>log in</html>"),
        (200, "application/dicom", b"<html>log in</html>"),
    ]
    for reply in replies:
        with http_server(lambda _, reply=reply: reply) as url, pytest.raises(PeerError):  # type: ignore[misc]
            client(url).retrieve(tmp_path / "in", "1.2.3")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_redirect_is_not_followed_with_our_password() -> None:
    with (
        http_server(lambda _: (302, "text/plain", b"")) as url,
        pytest.raises(PeerRefusedError, match="HTTP 302"),
    ):
        client(url).ping()
