from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from node.audit import AUDIT_FILE, HEAD_FILE, Audit, AuditEvent
from node.sitekey import site_key, tag

KEY = b"k" * 32


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    made = Audit(tmp_path, KEY)
    for number in range(5):
        made.append(AuditEvent.RECEIVED, series=f"1.2.{number}", instances=number)
    return made


def test_a_record_that_nobody_touched_is_intact(audit: Audit) -> None:
    found = audit.verify()
    assert (found.lines, found.fault, found.intact) == (5, "", True)


def test_an_empty_record_is_intact(tmp_path: Path) -> None:
    assert Audit(tmp_path, KEY).verify().intact


def _change(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"instances":2', b'"instances":9'), *lines[3:]]


def _forge(lines: list[bytes]) -> list[bytes]:
    entry = json.loads(lines[-1]) | {"number": 6, "previous": json.loads(lines[-1])["digest"]}
    return [*lines, json.dumps(entry).encode()]


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (_change, "line 3 was changed"),
        (lambda lines: [*lines[:1], *lines[2:]], "line 2 does not follow"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 does not follow"),
        (lambda lines: lines[:-1], "lines are missing at the end: 4 of 5"),
        (lambda _: [], "lines are missing at the end: 0 of 5"),
        (_forge, "line 6 was changed"),
        (lambda lines: [*lines, b"not json"], "line 6 cannot be read"),
    ],
    ids=["changed", "removed", "moved", "cut-off", "emptied", "forged", "garbage"],
)
def test_tampering_is_found(
    audit: Audit, tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]], fault: str
) -> None:
    file = tmp_path / AUDIT_FILE
    file.write_bytes(b"".join(line + b"\n" for line in tamper(file.read_bytes().splitlines())))
    assert audit.verify().fault.startswith(fault)


def test_a_changed_or_missing_head_is_found(audit: Audit, tmp_path: Path) -> None:
    head = tmp_path / HEAD_FILE
    content = json.loads(head.read_bytes())
    head.write_text(json.dumps(content | {"number": 4}))
    assert audit.verify().fault == "head.json was changed"
    head.unlink()
    assert audit.verify().fault == "head.json is missing"


def test_without_the_key_nobody_writes_a_matching_line(audit: Audit, tmp_path: Path) -> None:
    Audit(tmp_path, b"x" * 32).append(AuditEvent.SENT, series="1.2.9")
    assert audit.verify().fault == "line 6 was changed"


def test_a_crash_before_the_head_is_no_tampering(audit: Audit, tmp_path: Path) -> None:
    before = (tmp_path / HEAD_FILE).read_bytes()
    audit.append(AuditEvent.SENT, series="1.2.9")
    (tmp_path / HEAD_FILE).write_bytes(before)
    assert audit.verify().intact


def test_a_line_torn_by_a_crash_is_cut_off_by_the_next_one(audit: Audit, tmp_path: Path) -> None:
    with (tmp_path / AUDIT_FILE).open("ab") as file:
        file.write(b'{"number":6,"at":"20')
    audit.append(AuditEvent.SENT, series="1.2.9")
    found = audit.verify()
    assert (found.lines, found.intact) == (6, True)


def test_several_writers_make_one_chain(audit: Audit, tmp_path: Path) -> None:
    def write() -> None:
        other = Audit(tmp_path, KEY)
        for _ in range(4):
            other.append(AuditEvent.SENT)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = audit.verify()
    assert (found.lines, found.intact) == (21, True)


def test_the_record_is_private(audit: Audit, tmp_path: Path) -> None:
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_site_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    key = site_key(tmp_path / "data")
    assert len(key) == 32
    assert site_key(tmp_path / "data") == key
    assert (tmp_path / "data" / "site.key").stat().st_mode & 0o777 == 0o600
    assert tag(key, "1.2.3") == tag(key, "1.2.3") != tag(key, "1.2.4")


def test_a_damaged_site_key_is_an_error_not_a_new_key(tmp_path: Path) -> None:
    (tmp_path / "site.key").write_bytes(b"short")
    with pytest.raises(ValueError, match="backup"):
        site_key(tmp_path)


# --- months, seals -------------------------------------------------------------------------------


class Calendar:
    def __init__(self, now: str) -> None:
        self.now = datetime.fromisoformat(now)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def months(tmp_path: Path) -> Audit:
    """Two lines of November, two of December, one of January."""
    calendar = Calendar("2026-11-30T23:59:59+00:00")
    made = Audit(tmp_path, KEY, calendar)
    for now in ("2026-11-30", "2026-11-30", "2026-12-01", "2026-12-31", "2027-01-01"):
        calendar.now = datetime.fromisoformat(f"{now}T12:00:00+00:00")
        made.append(AuditEvent.SENT, series="1.2.3")
    return made


def test_a_month_that_is_over_is_put_by_and_the_chain_goes_on(months: Audit) -> None:
    assert [path.name for path in months.files()] == [
        "audit-2026-11.jsonl",
        "audit-2026-12.jsonl",
        "audit.jsonl",
    ]
    assert [entry["number"] for entry in months.entries() if entry] == [1, 2, 3, 4, 5]
    found = months.verify()
    assert (found.lines, found.intact) == (5, True)
    assert all(path.stat().st_mode & 0o077 == 0 for path in months.files())


def test_a_changed_line_of_a_past_month_is_named_with_its_file(
    months: Audit, tmp_path: Path
) -> None:
    file = tmp_path / "audit-2026-12.jsonl"
    file.write_bytes(file.read_bytes().replace(b"12-31", b"12-30"))
    found = months.verify()
    assert (found.fault, found.file, found.line_in_file) == (
        "line 4 was changed",
        "audit-2026-12.jsonl",
        2,
    )


@pytest.mark.parametrize(
    ("month", "fault"), [("11", "line 1 does not follow"), ("12", "line 3 does not follow")]
)
def test_a_missing_month_is_found(months: Audit, tmp_path: Path, month: str, fault: str) -> None:
    (tmp_path / f"audit-2026-{month}.jsonl").unlink()
    assert months.verify().fault.startswith(fault)


def test_a_clock_that_is_set_back_begins_no_month_twice(tmp_path: Path) -> None:
    calendar = Calendar("2026-12-01T00:00:00+00:00")
    audit = Audit(tmp_path, KEY, calendar)
    for now in ("2026-11-30", "2026-12-01", "2026-11-30", "2026-12-02"):
        calendar.now = datetime.fromisoformat(f"{now}T12:00:00+00:00")
        audit.append(AuditEvent.SENT)
    assert [path.name for path in audit.files()] == ["audit-2026-11.jsonl", "audit.jsonl"]
    assert audit.verify().intact


def test_an_older_copy_of_record_and_head_is_found_by_the_seal(
    audit: Audit, tmp_path: Path
) -> None:
    """Both files are put back as they were: neither the chain nor the head can tell."""
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    audit.append(AuditEvent.REFUSED, address="10.0.0.9")
    number, digest = audit.head()
    for path, content in before.items():
        path.write_bytes(content)
    assert audit.verify().intact
    assert audit.verify({5: audit.head()[1]}).intact
    found = audit.verify({number: digest})
    assert found.fault == "lines are missing at the end: 5, sealed were 6"
    audit.append(AuditEvent.SENT, series="1.2.9")  # written over since then
    assert audit.verify({number: digest}).fault == "line 6 is not the one that was sealed"
