"""What a bad line or a stranger at Orthanc's address is told as; the rest is tested with an Orthanc
in tests/integration/test_follow.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from config.settings import Peer
from dicom.network.orthanc_source import OrthancSource
from dicom.network.scu import PeerError, PeerRefusedError, PeerUnreachableError

ANSWERS = {
    "/system": b'{"Name": "x"}',
    "/tools/now": b"<html>",
    "/studies": b"no json",
    "/instances/1/file": b"x" * 1000,
}


class Stranger(BaseHTTPRequestHandler):
    """Promises twice as much as it sends."""

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        if place == "/changes":
            self.send_response(503)
            self.end_headers()
            return
        if place not in ANSWERS:
            self.send_response(404)
            self.end_headers()
            return
        content = ANSWERS[place]
        length = len(content) * (2 if place.endswith("file") else 1)
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[OrthancSource]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        source = OrthancSource(Peer(name="pacs", orthanc_url=url))
        yield source
        source.close()
        server.shutdown()
        thread.join()


def test_a_transfer_that_breaks_off_is_no_file(stranger: OrthancSource) -> None:
    with pytest.raises(PeerUnreachableError), stranger.file("1") as pieces:
        list(pieces)


def test_an_instance_that_is_gone_is_told_from_a_peer_that_refuses(
    stranger: OrthancSource,
) -> None:
    with pytest.raises(LookupError), stranger.file("2") as pieces:
        list(pieces)


def test_a_stranger_at_the_address_is_told(stranger: OrthancSource) -> None:
    for ask in (stranger.system, lambda: stranger.studies(0, 1)):
        with pytest.raises(PeerError, match="is it an Orthanc"):
            ask()


def test_a_proxy_that_waits_for_orthanc_is_no_answer(stranger: OrthancSource) -> None:
    with pytest.raises(PeerUnreachableError, match="HTTP 503"):
        stranger.changes(0, 1)


def test_a_series_that_is_gone_is_none(stranger: OrthancSource) -> None:
    assert stranger.series("x") is None
    assert stranger.instances_of("x") == {}
    assert stranger.parent_series("x") is None
    with pytest.raises(PeerRefusedError):
        stranger.study_ids("1.2")
