"""What people are told, how often, and what is never in it."""

import hashlib
import hmac
import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from config.settings import NodeSettings, NotifySettings, Settings
from node.ledger import Ledger, ReceivedInstance
from node.ledger.overview import Overview
from node.notices import Mail, Notices, WebHook

STUDY = "1.2.840.113619.2.55"


class Box:
    """A channel that keeps what it is given, or is out of order."""

    name = "box"

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, Mapping[str, Any]]] = []
        self.broken = False

    def send(self, subject: str, text: str, content: Mapping[str, Any]) -> None:
        if self.broken:
            raise ConnectionRefusedError
        self.messages.append((subject, text, content))


class Site:
    """A node's ledger, what is wrong with it, and a clock."""

    def __init__(self, data_dir: Path, **notify: Any) -> None:  # noqa: ANN401
        self.settings = Settings(
            node=NodeSettings(data_dir=data_dir), notify=NotifySettings(**notify)
        )
        self.ledger = Ledger(data_dir / "intake.sqlite")
        self.wrong: dict[str, str] = {}
        self.box = Box()
        self.now = 0.0
        self.notices = self.restarted()
        self.notices.look()  # the past is not told

    def restarted(self) -> Notices:
        overview = Overview(self.ledger.path, lambda uid: hashlib.sha256(uid.encode()).hexdigest())
        return Notices(
            self.settings, overview, lambda: self.wrong, [self.box], clock=lambda: self.now
        )

    def ends(self, number: int, state: str, reason: str) -> None:
        series = f"{STUDY}.{number}"
        self.ledger.record(
            ReceivedInstance(STUDY, series, f"{series}.1", "1.2", "d", Path("p"), "SCANNER")
        )
        with self.ledger._transaction() as db:
            db.execute(
                "INSERT INTO outcomes (at, series_instance_uid, state, reason)"
                " VALUES ('2026-01-01T00:00:00+00:00', ?, ?, ?)",
                (series, state, reason),
            )

    def look(self, after_s: float = 1000.0) -> None:
        self.now += after_s
        self.notices.look()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.ledger.close()


def test_a_hundred_held_series_are_one_message_that_names_nobody(site: Site) -> None:
    for number in range(100):
        site.ends(number, "held", "destination-unreachable")
    site.look()
    ((subject, text, content),) = site.box.messages
    assert subject == "[FLAIRNODE] 100 held"
    assert "held, destination-unreachable (100 times)" in text
    assert STUDY not in subject + text + json.dumps(content)
    assert "SCANNER" not in subject + text + json.dumps(content)


def test_nothing_is_told_twice_and_nothing_when_nothing_happened(site: Site) -> None:
    site.ends(1, "failed", "internal-error")
    site.look()
    site.look()
    assert len(site.box.messages) == 1


def test_what_happens_between_two_messages_is_told_together(site: Site) -> None:
    site.ends(1, "failed", "poison")
    site.look()
    site.ends(2, "failed", "poison")
    site.look(after_s=10.0)
    site.ends(3, "failed", "poison")
    assert len(site.box.messages) == 1
    site.look()
    assert [subject for subject, _, _ in site.box.messages] == [
        "[FLAIRNODE] 1 failed",
        "[FLAIRNODE] 2 failed",
    ]


def test_a_server_that_is_down_delays_a_notice_and_loses_none(site: Site) -> None:
    site.box.broken = True
    site.ends(1, "failed", "poison")
    site.look()
    site.ends(2, "held", "incomplete")
    site.look()
    site.box.broken = False
    site.look(after_s=4000.0)
    assert [subject for subject, _, _ in site.box.messages] == ["[FLAIRNODE] 1 failed, 1 held"]


def test_a_restart_neither_repeats_nor_forgets(site: Site) -> None:
    site.ends(1, "failed", "poison")
    site.look()
    site.ends(2, "failed", "poison")
    site.notices = site.restarted()
    site.look()
    assert len(site.box.messages) == 2


def test_a_condition_is_told_when_it_begins_and_when_it_ends(site: Site) -> None:
    site.wrong = {"peer:archive": "peer archive does not answer"}
    site.look()
    site.look()
    site.wrong = {}
    site.look()
    assert ["does not answer" in text for _, text, _ in site.box.messages] == [True, False]
    assert "peer archive: well again" in site.box.messages[1][1]


def test_only_what_was_asked_for_is_told(site: Site) -> None:
    site.ends(1, "delivered", "")
    site.ends(2, "skipped", "not-flair")
    site.look()
    assert site.box.messages == []


def test_silence_is_told_once(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path / "other", silent_hours=1e-9)
    other.ends(1, "skipped", "not-flair")
    other.look()
    other.look()
    assert [subject for subject, _, _ in other.box.messages] == ["[FLAIRNODE] 1 silence"]
    other.ledger.close()


# --- the channels, against real servers ----------------------------------------------------------


def test_a_web_hook_is_signed(tmp_path: Path) -> None:
    taken: list[tuple[str, bytes]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.headers["X-Flairnode-Signature"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:  # noqa: ANN401
            pass

    secret = tmp_path / "secret"
    secret.write_text("s3cret\n", encoding="utf-8")
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        settings = NotifySettings(
            webhook_url=f"http://127.0.0.1:{server.server_port}/hook", webhook_secret_file=secret
        )
        WebHook(settings).send("subject", "text", {"notices": []})
        thread.join()
    ((signature, body),) = taken
    assert signature == f"sha256={hmac.new(b's3cret', body, hashlib.sha256).hexdigest()}"
    assert json.loads(body)["subject"] == "subject"


def test_a_web_hook_that_refuses_is_an_error_that_is_tried_again() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        port = server.server_address[1]
    settings = NotifySettings(webhook_url=f"http://127.0.0.1:{port}/hook")
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        WebHook(settings).send("subject", "text", {})


class MailServer(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as one message takes."""

    messages: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        body: list[str] | None = None
        for raw in self.rfile:
            line = raw.decode().rstrip("\r\n")
            if body is not None:
                if line == ".":
                    self.messages.append("\n".join(body))
                    body = None
                    self.wfile.write(b"250 taken\r\n")
                else:
                    body.append(line)
            elif line.upper() == "DATA":
                body = []
                self.wfile.write(b"354 go on\r\n")
            elif line.upper() == "QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 ok\r\n")


def test_a_mail_reaches_its_server() -> None:
    messages: list[str] = []
    taking = type("Taking", (MailServer,), {"messages": messages})
    with socketserver.TCPServer(("127.0.0.1", 0), taking) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        settings = NotifySettings(
            mail_to=("pacs@hospital.example", "physics@hospital.example"),
            mail_from="flairnode@hospital.example",
            smtp_host="127.0.0.1",
            smtp_port=server.server_address[1],
            smtp_security="none",
        )
        Mail(settings).send("[NODE] 1 failed", "one failed\n", {})
        thread.join()
    (message,) = messages
    assert "Subject: [NODE] 1 failed" in message
    assert "To: pacs@hospital.example, physics@hospital.example" in message
    assert "one failed" in message


def test_mail_without_a_server_is_refused_at_load() -> None:
    with pytest.raises(ValueError, match="smtp_host"):
        NotifySettings(mail_to=("a@b.example",))
