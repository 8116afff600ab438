"""DICOM TLS with DCMTK on the other side, both ways, and everybody who must be turned away."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.settings import DeliverySettings, ListenerLimits, Peer, Settings, TlsSettings
from dicom.network.scp import SUCCESS, Admission, ReceivedObject, Refusal, StorageServer
from dicom.network.scu import PeerError, PeerRefusedError, PeerUnreachableError, echo, store
from dicom.network.tls import TlsFilesError, listening_context
from node.archive import free_port
from node.check import check_peer, check_tls
from tests.certificates import Authority, Certificate
from tests.raw_peer import ACCEPTED, RawPeer

Make = Callable[..., Any]
STORESCU, STORESCP, ECHOSCU = "/usr/bin/storescu", "/usr/bin/storescp", "/usr/bin/echoscu"
ADMISSION = Admission("FLAIRNODE", frozenset({"PACS"}), (ipaddress.ip_network("127.0.0.0/8"),))

pytestmark = [
    pytest.mark.skipif(not Path(STORESCU).exists(), reason="apt-get install dcmtk"),
    # pynetdicom leaves the socket of a failed connection to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated"),
]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "hospital").make()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "stranger").make()


@pytest.fixture(scope="module")
def ours(hospital: Authority) -> Certificate:
    return hospital.sign("node")


@pytest.fixture(scope="module")
def pacs(hospital: Authority) -> Certificate:
    return hospital.sign("pacs")


class Secured:
    """A listener that speaks TLS."""

    def __init__(self, tls: TlsSettings) -> None:
        self.received: list[ReceivedObject] = []
        self.refused: list[Refusal] = []
        self.server = StorageServer(
            "127.0.0.1",
            0,
            ADMISSION,
            self.take,
            self.refused.append,
            limits=ListenerLimits(request_timeout_s=5),
            tls=listening_context(tls),
            plain_port=None if tls.plain_port is None else 0,
        )

    def take(self, received: ReceivedObject) -> int:
        self.received.append(received)
        return SUCCESS

    def send(self, path: Path, *options: str | Path) -> int:
        """From DCMTK's storescu; its exit status."""
        command = [STORESCU, "-aet", "PACS", "-aec", "FLAIRNODE", *options]
        command += ["127.0.0.1", str(self.server.port), str(path)]
        return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode

    def refusal(self) -> Refusal:
        deadline = time.monotonic() + 20
        while not self.refused:
            assert time.monotonic() < deadline, "nobody was refused"
            time.sleep(0.02)
        return self.refused[0]


@pytest.fixture
def secured(hospital: Authority, ours: Certificate) -> Iterator[Secured]:
    tls = TlsSettings(
        certificate_file=ours.certificate, key_file=ours.key, ca_file=hospital.certificate
    )
    made = Secured(tls)
    with made.server:
        yield made


def with_tls(shown: Certificate, trusted: Authority) -> tuple[str | Path, ...]:
    return ("+tls", shown.key, shown.certificate, "+cf", trusted.certificate)


# --- the listener ---------------------------------------------------------------------------------


def test_storescu_sends_over_mutual_tls(
    secured: Secured, hospital: Authority, pacs: Certificate, make_flair_series: Make
) -> None:
    path = make_flair_series(slices=3, rows=256, columns=256).paths[0]
    assert secured.send(path, *with_tls(pacs, hospital)) == 0
    (received,) = secured.received
    assert path.read_bytes().endswith(received.dataset)


def test_a_plain_sender_on_the_port_of_tls_is_refused_and_told_of(
    secured: Secured, make_flair_series: Make
) -> None:
    assert secured.send(make_flair_series().paths[0]) != 0
    assert secured.refusal().reason == "tls-not-spoken"
    assert secured.received == []


def test_tls_on_a_plain_port_is_told_of(hospital: Authority, pacs: Certificate) -> None:
    refused: list[Refusal] = []
    with StorageServer("127.0.0.1", 0, ADMISSION, lambda _: 0, refused.append) as server:
        command = [ECHOSCU, *map(str, with_tls(pacs, hospital)), "-aet", "PACS"]
        command += ["-aec", "FLAIRNODE", "127.0.0.1", str(server.port)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert done.returncode != 0
    assert [one.reason for one in refused] == ["tls-on-plain-port"]


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("expired", "certificate-has-expired"),
        ("unknown", "unable-to-get-local-issuer-certificate"),
        ("nobody", "peer-did-not-return-a-certificate"),
    ],
)
def test_a_sender_without_a_good_certificate_is_refused_with_the_reason(
    secured: Secured,
    hospital: Authority,
    stranger: Authority,
    make_flair_series: Make,
    who: str,
    why: str,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(hospital.certificate)
    if who != "nobody":
        shown = hospital.sign("expired", days=-1) if who == "expired" else stranger.sign("unknown")
        context.load_cert_chain(shown.certificate, shown.key)
        assert secured.send(make_flair_series().paths[0], *with_tls(shown, hospital)) != 0
    else:
        with (  # in TLS 1.3 the alert comes after the handshake
            pytest.raises((ssl.SSLError, OSError, AssertionError)),
            RawPeer(secured.server.port, tls=context) as peer,
        ):
            assert peer.associate(calling="PACS") == ACCEPTED
    assert (secured.refusal().reason, secured.refusal().why) == ("tls", why)
    assert secured.received == []


def test_old_tls_and_weak_suites_are_not_spoken(secured: Secured, pacs: Certificate) -> None:
    for option, value in (("maximum", ssl.TLSVersion.TLSv1_1), ("suite", "AES128-SHA")):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(pacs.certificate, pacs.key)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ALL:@SECLEVEL=0")
        if option == "maximum":
            context.maximum_version = value
        else:
            context.set_ciphers(f"{value}:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError), RawPeer(secured.server.port, tls=context):
            pass


def test_a_handshake_that_stops_halfway_keeps_nobody_out(
    secured: Secured, hospital: Authority, pacs: Certificate, make_flair_series: Make
) -> None:
    half = [socket.create_connection(("127.0.0.1", secured.server.port)) for _ in range(40)]
    for one in half:
        one.sendall(b"\x16\x03\x01")
    assert secured.send(make_flair_series().paths[0], *with_tls(pacs, hospital)) == 0
    for one in half:
        one.close()


def test_a_plain_port_may_stay_beside_it_while_senders_are_moved(
    ours: Certificate, make_flair_series: Make
) -> None:
    tls = TlsSettings(certificate_file=ours.certificate, key_file=ours.key, plain_port=104)
    made = Secured(tls)
    with made.server:
        peer = Peer(name="n", ae_title="FLAIRNODE", host="127.0.0.1", port=made.server.plain_port)
        assert store(peer, make_flair_series().paths[:1], calling_ae_title="PACS")[0].stored
        assert made.server.plain_port != made.server.port


def test_a_key_that_others_can_read_is_not_used(hospital: Authority) -> None:
    open_key = hospital.sign("open")
    open_key.key.chmod(0o640)
    with pytest.raises(TlsFilesError, match="chmod 600"):
        listening_context(TlsSettings(certificate_file=open_key.certificate, key_file=open_key.key))


# --- asking and sending ---------------------------------------------------------------------------


@pytest.fixture
def storescp(hospital: Authority, pacs: Certificate, tmp_path: Path) -> Iterator[Peer]:
    """DCMTK's, which asks for a certificate."""
    port, place = free_port(), tmp_path / "storescp"
    place.mkdir()
    command = [STORESCP, *map(str, with_tls(pacs, hospital)), "-od", str(place), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Peer(
            name="pacs",
            ae_title="PACS",
            host="127.0.0.1",
            port=port,
            tls=True,
            tls_name="localhost",
            ca_file=hospital.certificate,
        )
        process.kill()


def showing(peer: Peer, shown: Certificate, **changes: Any) -> Peer:  # noqa: ANN401
    files = {"certificate_file": shown.certificate, "key_file": shown.key}
    return peer.model_copy(update={**files, **changes})


def test_results_go_to_storescp_over_mutual_tls(
    storescp: Peer, ours: Certificate, make_flair_series: Make, tmp_path: Path
) -> None:
    peer = showing(storescp, ours)
    echo(peer, calling_ae_title="FLAIRNODE")
    results = store(peer, make_flair_series().paths[:3], calling_ae_title="FLAIRNODE")
    assert all(one.stored for one in results)
    assert len(list((tmp_path / "storescp").iterdir())) == 3


def test_a_peer_that_is_not_trusted_is_refused_with_the_reason(
    storescp: Peer, ours: Certificate, stranger: Authority
) -> None:
    wrong_authority = showing(storescp, ours, ca_file=stranger.certificate)
    with pytest.raises(PeerRefusedError, match="self-signed-certificate-in-certificate-chain"):
        echo(wrong_authority, calling_ae_title="FLAIRNODE", timeout_s=10)
    wrong_name = showing(storescp, ours, tls_name="another.example")
    with pytest.raises(PeerRefusedError, match="hostname-mismatch"):
        echo(wrong_name, calling_ae_title="FLAIRNODE", timeout_s=10)


def test_the_check_names_version_cipher_and_last_day_of_each_certificate(
    storescp: Peer, hospital: Authority, ours: Certificate
) -> None:
    settings = Settings(
        peers=(storescp,),
        security={"tls": {"certificate_file": ours.certificate, "key_file": ours.key}},
        delivery=DeliverySettings(timeout_s=10),
    )
    (listener,) = check_tls(settings)
    assert (listener.ok, "lasts until" in listener.text) == (True, True)
    handshake, answered = check_peer(settings.peer("pacs"), settings)
    assert handshake.ok, handshake.text
    assert handshake.text.startswith("TLSv1.")
    assert answered.ok
    expired = hospital.sign("old", days=-1)
    old = {"certificate_file": expired.certificate, "key_file": expired.key}
    (listener,) = check_tls(Settings(security={"tls": old}))
    assert (listener.ok, "expired on" in listener.text) == (False, True)


def test_a_tls_peer_that_is_away_is_unreachable_not_refused(hospital: Authority) -> None:
    nobody = Peer(
        name="pacs",
        ae_title="PACS",
        host="127.0.0.1",
        port=free_port(),
        tls=True,
        ca_file=hospital.certificate,
    )
    with pytest.raises(PeerUnreachableError):
        echo(nobody, calling_ae_title="FLAIRNODE", timeout_s=5)
    gone = nobody.model_copy(update={"ca_file": Path("/nowhere/ca.pem")})
    with pytest.raises(PeerError, match="nowhere"):
        echo(gone, calling_ae_title="FLAIRNODE", timeout_s=5)
