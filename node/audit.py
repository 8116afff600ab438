"""Who sent what, what became of it, and who was turned away: a record nobody edits unseen.

`data_dir/audit/audit.jsonl` is only appended to. Each line holds a keyed digest of itself and of
the line before, and `audit/head.json` the last one, so that a changed, removed, reordered or cut
off line is found by `verify`. The key is the site's: without it nobody can write a matching line.
It holds UIDs and AE titles, no names, and is readable by the owner alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from node.durable import write_durably

AUDIT_FILE = "audit.jsonl"
HEAD_FILE = "head.json"
_FIRST = "0" * 64
_TAIL_BYTES = 65_536  # longer than any line


class AuditEvent(StrEnum):
    """What is recorded."""

    RECEIVED = "received"
    ANALYSED = "analysed"
    SENT = "sent"
    REFUSED = "refused"
    OPERATOR = "operator"
    RECALLED = "recalled"


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether the record is whole."""

    lines: int
    fault: str
    """What is wrong, with the line number; "" if nothing is."""

    @property
    def intact(self) -> bool:
        """No line was changed, removed, added or moved."""
        return not self.fault


class Audit:
    """The folder `data_dir/audit`; several processes may append."""

    def __init__(self, folder: Path, key: bytes) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / AUDIT_FILE
        self._head = folder / HEAD_FILE
        self._key = key
        self._lock = threading.Lock()

    def append(self, event: AuditEvent, **facts: str | int | float) -> None:
        """Add a line; on disk when this returns.

        Args:
            event: What happened.
            facts: UIDs, AE titles, counts, states and reasons. Nothing that names a patient.
        """
        with self._exclusive() as file:
            previous, number = _last_line(file)
            entry: dict[str, object] = {
                "number": number + 1,
                "at": datetime.now(UTC).isoformat(),
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

    def verify(self) -> Verification:
        """Read the whole record and check every line against the one before."""
        previous, number, digests = _FIRST, 0, {0: _FIRST}
        for number, entry in enumerate(self.entries(), start=1):
            if entry is None:
                return Verification(number, f"line {number} cannot be read")
            claimed = str(entry.pop("digest", ""))
            if entry.get("number") != number or entry.get("previous") != previous:
                return Verification(number, f"line {number} does not follow the one before it")
            if not hmac.compare_digest(claimed, self._digest(entry)):
                return Verification(number, f"line {number} was changed")
            previous = digests[number] = claimed
        return Verification(number, self._fault_of_head(digests))

    def entries(self) -> Iterator[dict[str, object] | None]:
        """Every line; None for one that is no JSON object."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = None
                yield entry if isinstance(entry, dict) else None

    def _fault_of_head(self, digests: dict[int, str]) -> str:
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

    def _digest(self, entry: dict[str, object]) -> str:
        return hmac.new(self._key, _line(entry), hashlib.sha256).hexdigest()

    @contextmanager
    def _exclusive(self) -> Iterator[BinaryIO]:
        with self._lock:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
                yield file


def _line(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"


def _last_line(file: BinaryIO) -> tuple[str, int]:
    """Digest and number of the last complete line. A torn one, of a crash, is cut off."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    complete = tail[: tail.rfind(b"\n") + 1]
    if len(complete) < len(tail):
        file.truncate(start + len(complete))
        os.fsync(file.fileno())
    lines = complete.splitlines()
    if not lines:
        return _FIRST, 0
    last = json.loads(lines[-1])
    return str(last["digest"]), int(last["number"])
