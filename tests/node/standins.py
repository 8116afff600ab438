"""Peers that misbehave in one chosen way, on loopback: real listeners, real protocols."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from config.settings import Peer
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
    given: list[str] = field(default_factory=list)


@contextmanager
def dimse_peer(answers: Answers) -> Iterator[Peer]:
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
    server = entity.start_server(
        (LOOPBACK, 0),
        block=False,
        evt_handlers=[(evt.EVT_C_STORE, on_store), (evt.EVT_C_FIND, on_find)],
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
