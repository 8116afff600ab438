"""Who sent what, what became of it, and who was turned away: a record nobody edits unseen.

`data_dir/audit/audit.jsonl` is only appended to. Each line holds a keyed digest of itself and of
the line before, and `audit/head.json` the last one, so that a changed, removed, reordered or cut
off line is found by `verify`. The key is the site's: without it nobody can write a matching line.
Whoever puts back an older record together with its older head is found by the seals in the ledger.
With a new month the file is put by as `audit-2026-11.jsonl`; numbers and digests go on in the next.
It holds UIDs and AE titles, no names, and is readable by the owner alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from node.durable import sync_directory, write_durably

AUDIT_FILE = "audit.jsonl"
HEAD_FILE = "head.json"
LOCK_FILE = "audit.lock"
_FIRST = "0" * 64
_TAIL_BYTES = 65_536  # longer than any line


class AuditEvent(StrEnum):
    """What is recorded."""

    RECEIVED = "received"
    ANALYSED = "analysed"
    SENT = "sent"
    GIVEN_UP = "given-up"
    """A destination did not take a result for so long that nobody tries any more."""
    REFUSED = "refused"
    OPERATOR = "operator"
    """Retried, cancelled, resolved, paused: `what` says it, and `user` who."""
    RECALLED = "recalled"
    STARTED = "started"
    STOPPED = "stopped"
    SETTINGS_CHANGED = "settings-changed"
    DISCARDED = "discarded"
    """Images or results were deleted because their time was over."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether the record is whole."""

    lines: int
    fault: str
    """What is wrong, with the line number; "" if nothing is."""
    file: str = ""
    """Where the fault is."""
    line_in_file: int = 0

    @property
    def intact(self) -> bool:
        """No line was changed, removed, added or moved."""
        return not self.fault


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A line as it was read."""

    file: str
    line_in_file: int
    entry: Mapping[str, object] | None
    """None for one that is no JSON object."""


class Audit:
    """The folder `data_dir/audit`; several processes may append."""

    def __init__(
        self, folder: Path, key: bytes, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._file = folder / AUDIT_FILE
        self._head = folder / HEAD_FILE
        self._key = key
        self._now = now
        self._lock = threading.Lock()

    def append(self, event: AuditEvent, **facts: str | int | float) -> None:
        """Add a line; on disk when this returns.

        Args:
            event: What happened.
            facts: UIDs, AE titles, counts, states and reasons. Nothing that names a patient.
        """
        now = self._now()
        with self._exclusive():
            self._put_by_a_past_month(now)
            with self._open() as file:
                last = _last_line(file) or self._last_of_months()
                previous, number = (str(last["digest"]), _number(last)) if last else (_FIRST, 0)
                entry: dict[str, object] = {
                    "number": number + 1,
                    "at": now.isoformat(),
                    "event": event.value,
                    **{name: facts[name] for name in sorted(facts)},
                    "previous": previous,
                }
                entry["digest"] = self._digest(entry)
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
            head = {"number": number + 1, "digest": entry["digest"]}
            head["seal"] = self._digest(head)
            write_durably(self._head, json.dumps(head).encode("ascii"))

    def head(self) -> tuple[int, str]:
        """Number and digest of the last line, for a seal; (0, "") of an empty record."""
        with self._exclusive(), self._open() as file:
            last = _last_line(file) or self._last_of_months()
            return (_number(last), str(last["digest"])) if last else (0, "")

    def verify(self, seals: Mapping[int, str] | None = None) -> Verification:
        """Read the whole record and check every line against the one before.

        Args:
            seals: What the ledger remembers: digest by line number.
        """
        previous, number, digests = _FIRST, 0, {0: _FIRST}
        with self._exclusive():  # nobody writes between the last line and the head
            for number, line in enumerate(self.lines(), start=1):
                fault, claimed = self._fault_of(line.entry, number, previous)
                if fault:
                    return Verification(number, fault, line.file, line.line_in_file)
                previous = digests[number] = claimed
            fault = self._fault_of_head(digests)
        fault = fault or _fault_of_seals(digests, seals or {})
        return Verification(number, fault, AUDIT_FILE if fault else "")

    def _fault_of(
        self, entry: Mapping[str, object] | None, number: int, previous: str
    ) -> tuple[str, str]:
        if entry is None:
            return f"line {number} cannot be read", ""
        rest = dict(entry)
        claimed = str(rest.pop("digest", ""))
        if rest.get("number") != number or rest.get("previous") != previous:
            return f"line {number} does not follow the one before it", ""
        if not hmac.compare_digest(claimed, self._digest(rest)):
            return f"line {number} was changed", ""
        return "", claimed

    def files(self) -> list[Path]:
        """Of the record, the oldest first."""
        current = [self._file] if self._file.exists() else []
        return [*self._months(), *current]

    def lines(self) -> Iterator[AuditLine]:
        """Every line of every file, in order."""
        for path in self.files():
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        entry = None
                    found = entry if isinstance(entry, dict) else None
                    yield AuditLine(path.name, number, found)

    def entries(self) -> Iterator[dict[str, object] | None]:
        """Every line; None for one that is no JSON object."""
        for line in self.lines():
            yield None if line.entry is None else dict(line.entry)

    def _months(self) -> list[Path]:
        return sorted(self._folder.glob("audit-[0-9][0-9][0-9][0-9]-[0-9][0-9].jsonl"))

    def _last_of_months(self) -> Mapping[str, object] | None:
        for path in reversed(self._months()):
            with path.open("rb") as file:
                last = _last_line(file, repair=False)
            if last is not None:
                return last
        return None

    def _put_by_a_past_month(self, now: datetime) -> None:
        """The file of a month that is over gets its name; a clock set back changes nothing."""
        if not self._file.exists():
            return
        with self._open() as file:
            last = _last_line(file)
        month = str(last["at"])[:7] if last else ""
        put_by = self._file.with_name(f"audit-{month}.jsonl")
        if month and month < f"{now:%Y-%m}" and not put_by.exists():
            self._file.rename(put_by)
            sync_directory(self._folder)

    def _fault_of_head(self, digests: Mapping[int, str]) -> str:
        """The head may lie one line back (a crash between the two writes), never ahead."""
        if not self._head.exists():
            return "" if len(digests) == 1 else f"{HEAD_FILE} is missing"
        try:
            head = json.loads(self._head.read_bytes())
            seal = str(head.pop("seal"))
            number, digest = int(head["number"]), str(head["digest"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{HEAD_FILE} cannot be read"
        if not hmac.compare_digest(seal, self._digest(head)):
            return f"{HEAD_FILE} was changed"
        if number not in digests:
            return f"lines are missing at the end: {len(digests) - 1} of {number}"
        return "" if digests[number] == digest else f"line {number} is not the one that was written"

    def _digest(self, entry: Mapping[str, object]) -> str:
        return hmac.new(self._key, _line(entry), hashlib.sha256).hexdigest()

    def _open(self) -> BinaryIO:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "r+b")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Of a file that stays: the record itself changes its name with the month.
        with self._lock:
            descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _fault_of_seals(digests: Mapping[int, str], seals: Mapping[int, str]) -> str:
    for number, digest in sorted(seals.items()):
        if number not in digests:
            return f"lines are missing at the end: {len(digests) - 1}, sealed were {number}"
        if digests[number] != digest:
            return f"line {number} is not the one that was sealed"
    return ""


def _number(entry: Mapping[str, object]) -> int:
    return int(str(entry["number"]))


def _line(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"


def _last_line(file: BinaryIO, *, repair: bool = True) -> Mapping[str, object] | None:
    """The last complete line. A torn one, of a crash, is cut off."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    complete = tail[: tail.rfind(b"\n") + 1]
    if repair and len(complete) < len(tail):
        file.truncate(start + len(complete))
        os.fsync(file.fileno())
    lines = complete.splitlines()
    if not lines:
        return None
    last: Mapping[str, object] = json.loads(lines[-1])
    return last
