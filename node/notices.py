"""Telling people: by web hook and e-mail, together and seldom, and without naming anybody.

What happened is read from the ledger's history, behind a mark that is moved only when a message was
taken: a mail server that is down delays a notice and loses none. Conditions (disk, peers, silence,
self-test) are told when they begin and when they end.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Protocol

import requests
import structlog
from jinja2.sandbox import SandboxedEnvironment

from config.settings import NotifySettings, Settings
from node.durable import write_durably
from node.ledger import SeriesState
from node.ledger.overview import Ended, Overview

log = structlog.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("notices.txt")
MARK_FILE = "notices.json"
MOST_TAGS = 10
SEND_TIMEOUT_S = 20.0
LONGEST_PAUSE_S = 3600.0
_KINDS = {
    SeriesState.DELIVERED: "delivered",
    SeriesState.FAILED: "failed",
    SeriesState.HELD: "held",
    SeriesState.NOT_ANALYSED: "not-analysed",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One line of a message."""

    kind: str
    text: str
    count: int = 1
    tags: tuple[str, ...] = ()
    """Pseudonyms of the studies, the first of them."""


class Channel(Protocol):
    """A way to reach people."""

    name: str

    def send(self, subject: str, text: str, content: Mapping[str, Any]) -> None:
        """Hand a message over.

        Raises:
            OSError: It was not taken; it is tried again.
        """


@dataclass(slots=True)
class WebHook:
    """A JSON message by POST."""

    settings: NotifySettings
    name: str = "webhook"

    def send(self, subject: str, text: str, content: Mapping[str, Any]) -> None:
        """As `Channel.send`."""
        body = json.dumps({"subject": subject, "text": text, **content}).encode()
        headers = {"Content-Type": "application/json"}
        if self.settings.webhook_secret_file is not None:
            key = self.settings.webhook_secret_file.read_bytes().strip()
            headers["X-Flairnode-Signature"] = (
                f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
            )
        # requests' errors are OSErrors.
        requests.post(
            str(self.settings.webhook_url),
            data=body,
            headers=headers,
            timeout=SEND_TIMEOUT_S,
            allow_redirects=False,
        ).raise_for_status()


@dataclass(slots=True)
class Mail:
    """A plain text message by SMTP."""

    settings: NotifySettings
    name: str = "mail"

    def send(self, subject: str, text: str, content: Mapping[str, Any]) -> None:
        """As `Channel.send`."""
        message = EmailMessage()
        message["Subject"] = subject
        message["From"] = self.settings.mail_from
        message["To"] = ", ".join(self.settings.mail_to)
        message.set_content(text)
        try:
            with self._server() as server:
                if self.settings.smtp_user and self.settings.smtp_password_file is not None:
                    password = self.settings.smtp_password_file.read_text(encoding="utf-8")
                    server.login(self.settings.smtp_user, password.strip())
                server.send_message(message)
        except smtplib.SMTPException as error:
            raise OSError(f"the mail server refused: {type(error).__name__}") from error

    def _server(self) -> smtplib.SMTP:
        one, context = self.settings, ssl.create_default_context()
        if one.smtp_security == "tls":
            return smtplib.SMTP_SSL(
                one.smtp_host, one.smtp_port, timeout=SEND_TIMEOUT_S, context=context
            )
        server = smtplib.SMTP(one.smtp_host, one.smtp_port, timeout=SEND_TIMEOUT_S)
        if one.smtp_security == "starttls":
            server.starttls(context=context)
        return server


def channels_of(settings: NotifySettings) -> list[Channel]:
    """Those that are configured."""
    found: list[Channel] = []
    if settings.webhook_url is not None:
        found.append(WebHook(settings))
    if settings.mail_to:
        found.append(Mail(settings))
    return found


class Notices:
    """What is to be told, and to whom it was told already."""

    def __init__(
        self,
        settings: Settings,
        overview: Overview,
        conditions: Callable[[], Mapping[str, str]],
        channels: Iterable[Channel] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is sent before `look`.

        Args:
            settings: Of the site.
            overview: Of the ledger.
            conditions: What is wrong now, `kind:name` -> a sentence; an absent one is well.
            channels: Instead of those of the settings.
            clock: Of the pauses between messages; no wall clock, which jumps.
        """
        self._settings = settings.notify
        self._node = settings.node.ae_title
        self._overview = overview
        self._conditions = conditions
        self._channels = list(channels_of(self._settings) if channels is None else channels)
        self._clock = clock
        self._path = settings.node.data_dir / MARK_FILE
        self._marks = self._read()
        self._not_before: dict[str, float] = {}
        self._failures: Counter[str] = Counter()

    def look(self) -> None:
        """Tell each channel what it has not been told, unless it was told something just now."""
        for channel in self._channels:
            if self._clock() >= self._not_before.get(channel.name, 0.0):
                self._tell(channel)

    def _tell(self, channel: Channel) -> None:
        mark = self._marks.get(channel.name)
        last, ended = self._overview.ended_since(int(mark["number"]) if mark else 0)
        told = set(mark["conditions"]) if mark else set()
        now = {
            key: text
            for key, text in {**self._conditions(), **self._silence()}.items()
            if key.partition(":")[0] in self._settings.kinds
        }
        if mark is None:
            ended = []  # a channel that is new is not told the past
        notices = [
            *self._of_series(ended),
            *(Notice(key.partition(":")[0], text) for key, text in now.items() if key not in told),
            *(
                Notice(key.partition(":")[0], f"{key.replace(':', ' ')}: well again")
                for key in sorted(told - set(now))
            ),
        ]
        if notices and not self._sent(channel, notices):
            return
        self._marks[channel.name] = {"number": last, "conditions": sorted(now)}
        if notices or mark is None or mark["number"] != last:
            write_durably(self._path, json.dumps(self._marks).encode())

    def _sent(self, channel: Channel, notices: list[Notice]) -> bool:
        summary = ", ".join(
            f"{sum(one.count for one in notices if one.kind == kind)} {kind}"
            for kind in dict.fromkeys(one.kind for one in notices)
        )
        template = (self._settings.template_file or TEMPLATE).read_text(encoding="utf-8")
        facts = {
            "node": self._node,
            "summary": summary,
            "notices": notices,
            "link": self._settings.link,
        }
        text = SandboxedEnvironment().from_string(template).render(facts)
        content = {
            "node": self._node,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "notices": [asdict(one) for one in notices],
        }
        try:
            channel.send(f"[{self._node}] {summary}", text, content)
        except OSError as error:
            self._failures[channel.name] += 1
            pause_s = min(
                LONGEST_PAUSE_S,
                self._settings.at_most_every_s * 2.0 ** (self._failures[channel.name] - 1),
            )
            log.warning("notice.not-sent", why=type(error).__name__, waited_s=pause_s)
        else:
            self._failures[channel.name] = 0
            pause_s = self._settings.at_most_every_s
            log.info("notice.sent", count=len(notices))
        self._not_before[channel.name] = self._clock() + pause_s
        return not self._failures[channel.name]

    def _of_series(self, ended: Iterable[Ended]) -> list[Notice]:
        grouped: dict[tuple[str, str], list[str]] = {}
        for one in ended:
            kind = _KINDS.get(one.state, "")
            if kind in self._settings.kinds:
                grouped.setdefault((kind, one.reason), []).append(one.tag)
        return [
            Notice(
                kind,
                f"{kind}{f', {reason}' if reason else ''}",
                len(tags),
                tuple(dict.fromkeys(tags))[:MOST_TAGS],
            )
            for (kind, reason), tags in grouped.items()
        ]

    def _silence(self) -> dict[str, str]:
        last = self._overview.last_received_at()
        if last is None:
            return {}
        hours = (datetime.now(UTC) - last).total_seconds() / 3600.0
        if hours < self._settings.silent_hours:
            return {}
        return {"silence:intake": f"nothing was received for {self._settings.silent_hours:g} hours"}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            marks: dict[str, dict[str, Any]] = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return marks
