"""DICOMweb and Orthanc's API over https: pinned authorities, passwords and tokens from files.

Debian's Orthanc 1.10.1 crashes with `SslEnabled`: a server with TLS stands in front of a plain one,
as a hospital's reverse proxy does.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from config.settings import Peer
from dicom.network.dicomweb import DicomWebClient
from dicom.network.orthanc import OrthancInbox
from dicom.network.scu import PeerError, PeerRefusedError
from node.archive import LOOPBACK, Orthanc, find_orthanc
from tests.certificates import Authority

Make = Callable[..., Any]

pytestmark = [
    pytest.mark.pacs,
    pytest.mark.skipif(find_orthanc() is None, reason="apt-get install orthanc orthanc-dicomweb"),
]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("web") / "hospital").make()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    archive = Orthanc(tmp_path_factory.mktemp("web-orthanc") / "orthanc")
    archive.start()
    yield archive
    archive.kill()


class Gateway(ThreadingHTTPServer):
    """TLS in front of an archive; takes its password, or a bearer token of its own."""

    def __init__(self, archive: Orthanc, hospital: Authority) -> None:
        super().__init__((LOOPBACK, 0), _Forward)
        self.archive, self.tokens = archive, {"token-of-today"}
        shown = hospital.sign("gateway")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(shown.certificate, shown.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        del request, client_address  # a client that does not trust us breaks off


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_GET(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def _forward(self) -> None:
        archive = self.server.archive
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = self.headers.get("Authorization", "")
        if said.removeprefix("Bearer ") in self.server.tokens:
            token = base64.b64encode(f"{archive.user}:{archive.password}".encode()).decode()
            said = f"Basic {token}"
        kept = {
            name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers
        }
        connection = http.client.HTTPConnection(LOOPBACK, archive.http_port, timeout=30)
        connection.request(self.command, self.path, body or None, {**kept, "Authorization": said})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        if (kind := answer.getheader("Content-Type")) is not None:
            self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args


@pytest.fixture(scope="module")
def gateway(archive: Orthanc, hospital: Authority) -> Iterator[Gateway]:
    gateway = Gateway(archive, hospital)
    yield gateway
    gateway.shutdown()
    gateway.server_close()


@pytest.fixture
def peer(gateway: Gateway, archive: Orthanc, hospital: Authority, tmp_path: Path) -> Peer:
    password = tmp_path / "password"
    password.write_text(archive.password + "\n")
    return Peer(
        name="pacs",
        orthanc_url=gateway.url,
        dicomweb_url=f"{gateway.url}/dicom-web",
        user=archive.user,
        password_file=password,
        ca_file=hospital.certificate,
    )


def test_results_go_over_https_with_the_hospitals_authority_and_a_password(
    peer: Peer, archive: Orthanc, make_flair_series: Make
) -> None:
    flair = make_flair_series()
    with DicomWebClient(peer) as client:
        assert client.store(flair.paths[:2])[0].stored
        assert len(client.search_instances(flair.study_instance_uid)) == 2
    with OrthancInbox(peer) as inbox:
        assert inbox.store(flair.paths[2]).stored
        assert inbox.holds(flair.sop_instance_uids[2])
    assert len(archive.sop_instance_uids()) == 3


def test_a_server_of_another_authority_is_not_spoken_with(peer: Peer, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger").make()
    for trusted in (stranger.certificate, None):  # pinned to another, and the system's own
        wrong = peer.model_copy(update={"ca_file": trusted})
        with DicomWebClient(wrong) as client, pytest.raises(PeerRefusedError, match="TLS"):
            client.ping()
        with OrthancInbox(wrong) as inbox, pytest.raises(PeerRefusedError, match="TLS"):
            inbox.ping()


def test_a_wrong_password_is_refused_and_named_nowhere(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("open-sesame")
    wrong = peer.model_copy(update={"password_file": tmp_path / "wrong"})
    with DicomWebClient(wrong) as client, pytest.raises(PeerRefusedError) as caught:
        client.ping()
    assert "401" in str(caught.value)
    assert "open-sesame" not in str(caught.value)


def test_a_bearer_token_is_read_anew_at_each_request(
    gateway: Gateway, hospital: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("token-of-yesterday\n")
    peer = Peer(
        name="pacs",
        dicomweb_url=f"{gateway.url}/dicom-web",
        token_file=file,
        ca_file=hospital.certificate,
    )
    with DicomWebClient(peer) as client:
        with pytest.raises(PeerRefusedError, match="401"):
            client.ping()
        file.write_text("token-of-today\n")
        client.ping()
        gateway.tokens.clear()
        with pytest.raises(PeerRefusedError):
            client.ping()
    file.write_text("two\nlines")
    with pytest.raises(PeerError, match="holds no token"):
        DicomWebClient(peer)
    assert "token-of" not in json.dumps(peer.model_dump(mode="json"))
