"""`flairnode check`: would this site work? Everything that can be wrong before the first study."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from config.loader import load_settings
from config.settings import Peer, Protocol, Settings, Source
from dicom.errors import StudyError
from dicom.network.orthanc_source import OrthancSource
from dicom.network.scu import PeerError
from dicom.network.tls import (
    TlsFilesError,
    TlsRefusedError,
    calling_context,
    certificate_ends,
    listening_context,
    shake_hands,
)
from node.cli import EXIT_DONE, EXIT_FAILED
from node.delivery import courier
from node.disk import room
from node.pause import PauseSwitch
from node.sources import SOURCES_FILE, SourceBook, Standing
from pipeline.model_pack import find_pack, load_pack

PACKAGES = ("config", "dicom", "node", "pipeline", "training")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    text: str


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    parser = subparsers.add_parser(
        "check",
        help="configuration, directories, disk, model, device, peers, self-test",
        description="Looks at everything a site needs. Exit 0 when all is well, else 1.",
    )
    parser.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    parser.add_argument("--no-self-test", action="store_true", help="leave out the analysis")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything, even when an early look fails."""
    settings = load_settings(arguments.config)
    findings = [
        Finding("configuration", True, f"{arguments.config} is valid"),
        check_packages(),
        check_directory(settings.node.data_dir),
        check_disk(settings),
        check_pause(settings),
        check_destinations(settings),
        check_model(settings),
        check_brain(settings),
        *check_tls(settings),
        *(finding for peer in settings.peers for finding in check_peer(peer, settings)),
        *(check_source(source, settings) for source in settings.sources),
    ]
    if not arguments.no_self_test:
        findings.append(check_self_test(settings))
    good = all(finding.ok for finding in findings)
    if arguments.json:
        print(json.dumps({"ok": good, "checks": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name}: {finding.text}")
    return EXIT_DONE if good else EXIT_FAILED


def check_packages() -> Finding:
    """Are `config`, `dicom` and the others ours, or does another distribution shadow them?"""
    here = Path(__file__).resolve().parent.parent
    found = {name: find_spec(name) for name in PACKAGES}
    strangers = [
        f"{name} from {spec.origin if spec else 'nowhere'}"
        for name, spec in found.items()
        if spec is None or Path(str(spec.origin)).resolve().parent.parent != here
    ]
    if strangers:
        return Finding("packages", False, "another distribution shadows " + ", ".join(strangers))
    return Finding("packages", True, f"{', '.join(PACKAGES)} are flairnode's")


def check_directory(data_dir: Path) -> Finding:
    """Can we create it, write to it durably, and lock in it?"""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=data_dir) as file:
            file.write(b"flairnode")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding("data_dir", False, f"{data_dir}: {error.strerror}")
    return Finding("data_dir", True, f"{data_dir} can be written")


def check_disk(settings: Settings) -> Finding:
    """Is there more room than the reserve?"""
    found = room(settings.node)
    return Finding("disk", not found.below_reserve, found.text)


def check_pause(settings: Settings) -> Finding:
    """Would anything be analysed?"""
    paused = PauseSwitch(settings.node.data_dir).since()
    if paused:
        return Finding("paused", False, f"analyses are paused {paused}: `flairnode jobs resume`")
    return Finding("paused", True, "no: analyses go on")


def check_destinations(settings: Settings) -> Finding:
    """Would results of this pack go anywhere at all?"""
    if not settings.destinations:
        return Finding("destinations", False, "none configured: no result would be delivered")
    try:
        research = load_pack(_pack_path(settings)).manifest.status == "research"
    except StudyError:
        research = False  # `check_model` says what is wrong with it
    names = [d.peer for d in settings.destinations if d.research or not research]
    if not names:
        return Finding(
            "destinations",
            False,
            f"pack {settings.pipeline.model} is research only, and no destination says "
            "research = true: every result would be held",
        )
    return Finding("destinations", True, ", ".join(names))


def check_model(settings: Settings) -> Finding:
    """Does every file of the pack have its digest?"""
    try:
        pack = load_pack(_pack_path(settings))
    except StudyError as error:
        return Finding("model", False, str(error))
    text = f"{pack.name} {pack.version} ({pack.manifest.status}), {pack.digest[:12]}"
    return Finding("model", True, text)


def check_brain(settings: Settings) -> Finding:
    """Is the configured skull strip there? Looks at files; the self-test runs it."""
    from pipeline.brain_tools import extractor_of

    status = extractor_of(settings.pipeline).available()
    return Finding("brain", status.ok, status.text)


def check_tls(settings: Settings) -> list[Finding]:
    """Can the listener speak TLS, and for how long yet? And does anybody speak without it?"""
    tls = settings.security.tls
    beyond = settings.node.bind_host not in ("127.0.0.1", "::1", "localhost")
    if tls is None:
        text = "the listener speaks plain DICOM: names travel readable, and anybody may pose"
        return [Finding("listener TLS", True, text)] if beyond else []
    try:
        listening_context(tls)
        finding = _lasting("listener TLS", certificate_ends(tls.certificate_file))
    except TlsFilesError as error:
        return [Finding("listener TLS", False, str(error))]
    asks = "senders must show a certificate" if tls.ca_file else "senders need no certificate"
    return [replace(finding, text=f"{finding.text}; {asks}")]


def _lasting(name: str, ends: datetime) -> Finding:
    days = (ends - datetime.now(UTC)).days
    if days < 0:
        return Finding(name, False, f"the certificate expired on {ends:%Y-%m-%d}")
    return Finding(name, True, f"the certificate lasts until {ends:%Y-%m-%d} ({days} days)")


def _handshake(peer: Peer, settings: Settings) -> Finding:
    """DICOM TLS with a peer, before anything is said over it."""
    name = f"peer {peer.name}, TLS"
    try:
        agreed = shake_hands(peer, calling_context(peer), settings.delivery.timeout_s)
    except (TlsFilesError, TlsRefusedError) as error:
        return Finding(name, False, str(error))
    except OSError as error:
        return Finding(name, False, f"no connection: {error.strerror or type(error).__name__}")
    if agreed.expires is None:
        text = "its certificate is not checked (verify_tls = false)"
        return Finding(name, True, f"{agreed.version}, {agreed.cipher}; {text}")
    finding = _lasting(name, agreed.expires)
    return replace(finding, text=f"{agreed.version}, {agreed.cipher}; {finding.text}")


def _open_secrets(peer: Peer) -> list[Finding]:
    """Files with secrets that others can read."""
    found = []
    for key in ("password_file", "token_file", "key_file"):
        file: Path | None = getattr(peer, key)
        if file is not None and file.is_file() and file.stat().st_mode & 0o077:
            text = f"{key} can be read by others: chmod 600 {file}"
            found.append(Finding(f"peer {peer.name}", False, text))
    return found


def check_peer(peer: Peer, settings: Settings) -> list[Finding]:
    """Does it answer in every way that it is configured to be spoken with?"""
    ways: list[tuple[str, Protocol, str]] = []
    if peer.speaks_dimse:
        ways.append(("C-ECHO", "c-store", f"{peer.ae_title} at {peer.host}:{peer.port}"))
    if peer.dicomweb_url is not None:
        ways.append(("QIDO-RS", "stow-rs", peer.dicomweb_url))
    if peer.orthanc_url is not None:
        ways.append(("REST /system", "orthanc-rest", peer.orthanc_url))
    secure = [_handshake(peer, settings)] if peer.tls else []
    return [*_open_secrets(peer), *secure, *(_knock(peer, settings, *way) for way in ways)]


def _knock(peer: Peer, settings: Settings, service: str, protocol: Protocol, at: str) -> Finding:
    name = f"peer {peer.name}" + ("" if protocol == "c-store" else f", {service}")
    speaks = courier(
        protocol,
        peer,
        ae_title=settings.node.ae_title,
        timeout_s=settings.delivery.timeout_s,
    )
    try:
        speaks.knock()
    except PeerError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, f"{at} answers {service}{_in_the_clear(peer, at)}")


def _in_the_clear(peer: Peer, at: str) -> str:
    """What an administrator should know of a connection that works."""
    parts = urlsplit(at)
    if parts.scheme == "https":
        return "" if peer.verify_tls else "; its certificate is not checked (verify_tls = false)"
    here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    secret = "password" if peer.user else "token" if peer.token_file else ""
    if parts.scheme == "http" and secret and not here:
        return f"; its {secret} travels unencrypted (http)"
    return ""


def check_source(source: Source, settings: Settings) -> Finding:
    """Does the Orthanc that is followed answer, and how far is the service with it?"""
    name = f"source {source.peer}"
    try:
        orthanc = OrthancSource(settings.peer(source.peer))
        try:
            system, last = orthanc.system(), orthanc.last_change().last
        finally:
            orthanc.close()
    except PeerError as error:
        return Finding(name, False, str(error))
    text = f"Orthanc {system.version} ({system.name}), change {last}"
    if not (settings.node.data_dir / SOURCES_FILE).is_file():
        return Finding(name, True, f"{text}; not followed yet")
    with SourceBook(settings.node.data_dir) as book:
        standing, waiting = book.standing(source.peer), book.count_open(source.peer)
    if standing is None:
        return Finding(name, True, f"{text}; not followed yet")
    text += f"; {_how_far(source, standing, last)}; {waiting} series to look at"
    if standing.looked_at:
        text += f"; last looked at {standing.looked_at[:19]} UTC"
    if standing.trouble:
        since = standing.trouble_since[:19]
        return Finding(
            name, False, f"{text}; the service is in trouble since {since} UTC: {standing.trouble}"
        )
    return Finding(name, True, text)


def _how_far(source: Source, standing: Standing, last: int) -> str:
    if not source.follow:
        return f"compared {standing.reconciled_at or 'never'}, change feed not followed"
    if standing.cursor < 0:
        return "nothing read yet"
    if standing.cursor > last:
        return f"read up to {standing.cursor}: it was emptied or replaced, and is compared anew"
    return f"read up to {standing.cursor}"


def check_self_test(settings: Settings) -> Finding:
    """One synthetic head with known lesions through the whole pipeline."""
    return _timed("self-test", lambda: _self_test(settings))


def _self_test(settings: Settings) -> str:
    from node.analysis import load_segmenter  # torch
    from node.selftest import run_self_test
    from pipeline.brain_tools import require_extractor

    extract = require_extractor(settings.pipeline).extract
    ensemble, pack = load_segmenter(settings.pipeline, (settings.node.packs_dir,))
    result = run_self_test(ensemble, pack, extract)
    return (
        f"on {ensemble.device}: {result.lesion_count} lesions found, {result.volume_ml:.1f} ml "
        f"of {result.truth_ml:.1f} ml placed, Dice {result.dice:.2f}"
    )


def _timed(name: str, look: Callable[[], str]) -> Finding:
    started = time.perf_counter()
    try:
        text = look()
    except StudyError as error:
        return Finding(name, False, f"{error.reason}: {error}")
    return Finding(name, True, f"{text}, {time.perf_counter() - started:.0f} s")


def _pack_path(settings: Settings) -> Path:
    return find_pack(settings.pipeline.model, folders=(settings.node.packs_dir,))
