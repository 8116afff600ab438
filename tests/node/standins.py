"""Peers that misbehave in one chosen way, on loopback: real listeners, real protocols."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from config.settings import Peer
from dicom.network.commitment import COMMITMENT_INSTANCE
from node.archive import LOOPBACK


@dataclass
class Answers:
    """What a stand-in does with the next objects, and what it was given."""

    status: int = 0
    """To a C-STORE, or of a STOW-RS failure (0: it says nothing of the object)."""
    http: int = 200
    lists: bool = True
    """Does it list what it was given, whatever it answered?"""
    dies: bool = False
    """It takes the object in and breaks the connection before it answers."""
    holds: threading.Event | None = None
    """Over the web: its answers to what it was given wait for this."""
    given: list[str] = field(default_factory=list)


@contextmanager
def dimse_peer(
    answers: Answers, services: Sequence[str] = (), handlers: Sequence[Any] = ()
) -> Iterator[Peer]:
    """C-STORE and C-FIND; a C-STORE is answered with `answers.status`."""

    def on_store(event: evt.Event) -> int:
        answers.given.append(str(event.request.AffectedSOPInstanceUID))
        if answers.dies:
            event.assoc.abort()
        return answers.status

    def on_find(event: evt.Event) -> Iterator[tuple[int, Any]]:
        for uid in answers.given if answers.lists else []:
            found = event.identifier
            found.SOPInstanceUID = uid
            yield 0xFF00, found

    entity = AE(ae_title="STANDIN")
    entity.add_supported_context(Comprehensive3DSRStorage)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(Verification)
    for service in services:
        entity.add_supported_context(service)
    server = entity.start_server(
        (LOOPBACK, 0),
        block=False,
        evt_handlers=[(evt.EVT_C_STORE, on_store), (evt.EVT_C_FIND, on_find), *handlers],
    )
    try:
        port = server.server_address[1]
        yield Peer(name="standin", ae_title="STANDIN", host=LOOPBACK, port=port)
    finally:
        server.shutdown()


@contextmanager
def web_peer(answers: Answers) -> Iterator[Peer]:
    """Both web protocols: `/dicom-web` answers QIDO-RS and STOW-RS, the root an Orthanc's REST."""
    with http_server(lambda request: _answer(request, answers)) as url:
        yield Peer(name="standin", dicomweb_url=f"{url}/dicom-web", orthanc_url=url)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes
    connection: Any
    headers: dict[str, str]


Reply = tuple[int, str, bytes]
"""Status, Content-Type, content."""


@contextmanager
def http_server(answer: Callable[[Request], Reply]) -> Iterator[str]:
    class _OneRequest(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            headers = dict(self.headers.items())
            request = Request(self.command, self.path, body, self.connection, headers)
            status, kind, content = answer(request)
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), _OneRequest)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(request: Request, answers: Answers) -> Reply:
    if request.path == "/tools/lookup":
        there = answers.lists and request.body.decode() in answers.given
        return 200, "application/json", json.dumps([{"Type": "Instance"}] if there else []).encode()
    if request.method == "GET":
        listed = [_uid_item("00080018", uid) for uid in (answers.given if answers.lists else [])]
        return 200, "application/dicom+json", json.dumps(listed).encode()
    (uid,) = set(re.findall(rb"\x02\x00\x03\x00UI..([0-9.]+)", request.body))
    answers.given.append(uid.decode())
    if answers.holds is not None:
        answers.holds.wait(60)
    if answers.dies:
        return 0, "", b""
    if request.path == "/instances":
        content = b"" if answers.http != 200 else b'{"Status": "Success"}'
        return answers.http, "application/json", content
    return answers.http, "application/dicom+json", _store_response(uid.decode(), answers)


def _store_response(uid: str, answers: Answers) -> bytes:
    if not answers.status:
        return b""
    item = _uid_item("00081155", uid) | {"00081197": {"vr": "US", "Value": [answers.status]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


def _uid_item(tag: str, uid: str) -> dict[str, Any]:
    return {tag: {"vr": "UI", "Value": [uid]}}


@dataclass
class Committing:
    """How the stand-in of `committing_peer` behaves with Storage Commitment."""

    reports: str = "on-the-association"
    """Or `on-a-new-one`, or `when-told` (`report`), or `refuses` to be asked."""
    node_port: int = 0
    failure_reason: int = 0
    """Other than 0: it reports every object as failed, for that reason."""
    answers: Answers = field(default_factory=Answers)
    asked: list[tuple[str, list[Dataset]]] = field(default_factory=list)
    """Transaction UID and references of every request."""
    statuses: list[int] = field(default_factory=list)
    """What its reports were answered with."""

    def report(self, transaction: int = -1, failure_reason: int | None = None) -> int:
        """Report over an association of its own, as SCP of it."""
        entity = AE(ae_title="STANDIN")
        association = entity.associate(
            LOOPBACK,
            self.node_port,
            contexts=[build_context(StorageCommitmentPushModel)],
            ae_title="FLAIRNODE",
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        assert association.is_established
        try:
            return self.send(association, transaction, failure_reason)
        finally:
            association.release()

    def send(
        self, association: Association, transaction: int = -1, failure_reason: int | None = None
    ) -> int:
        uid, references = self.asked[transaction]
        reason = self.failure_reason if failure_reason is None else failure_reason
        information = Dataset()
        information.TransactionUID = uid
        for reference in references:
            if reason:
                reference.FailureReason = reason
            elif "FailureReason" in reference:
                del reference.FailureReason
        name = "FailedSOPSequence" if reason else "ReferencedSOPSequence"
        setattr(information, name, references)
        status, _ = association.send_n_event_report(
            information, 2 if reason else 1, StorageCommitmentPushModel, COMMITMENT_INSTANCE
        )
        self.statuses.append(status.Status)
        return int(status.Status)


@contextmanager
def committing_peer(behaves: Committing) -> Iterator[Peer]:
    """C-STORE, C-FIND and Storage Commitment."""

    def on_action(event: evt.Event) -> tuple[int, None]:
        if behaves.reports == "refuses":
            return 0x0110, None
        request = event.action_information
        behaves.asked.append((str(request.TransactionUID), list(request.ReferencedSOPSequence)))
        number = len(behaves.asked) - 1
        if behaves.reports == "on-the-association":
            threading.Thread(target=behaves.send, args=(event.assoc, number)).start()
        elif behaves.reports == "on-a-new-one":
            threading.Thread(target=behaves.report, args=(number,)).start()
        return 0x0000, None

    handlers = [(evt.EVT_N_ACTION, on_action)]
    with dimse_peer(behaves.answers, [StorageCommitmentPushModel], handlers) as peer:
        yield peer
