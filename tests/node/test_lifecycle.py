"""Started, stopped, with other settings: what the trail says of the service."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.settings import EngineSettings, NodeSettings, Settings
from node import trail
from node.audit import AUDIT_FILE, HEAD_FILE, Audit, AuditEvent
from node.ledger import Ledger
from node.lifecycle import note_start, note_stop, seal
from node.sitekey import site_key


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(node=NodeSettings(data_dir=tmp_path))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        yield ledger


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return Audit(tmp_path / "audit", site_key(tmp_path))


def events(audit: Audit) -> list[dict[str, object]]:
    return [entry for entry in audit.entries() if entry]


def test_a_start_says_how_the_run_before_ended(
    audit: Audit, ledger: Ledger, settings: Settings
) -> None:
    note_start(audit, ledger, settings)
    note_stop(audit, ledger)
    note_start(audit, ledger, settings)
    note_start(audit, ledger, settings)  # killed in between
    said = [(entry["event"], entry.get("before")) for entry in events(audit)]
    assert said == [
        ("started", "first start"),
        ("stopped", None),
        ("started", "ended in order"),
        ("started", "did not end in order"),
    ]


def test_settings_that_changed_are_named_without_their_values(
    audit: Audit, ledger: Ledger, settings: Settings
) -> None:
    note_start(audit, ledger, settings)
    address = "postgresql://node:hunter2@db/engine"
    other = settings.model_copy(
        update={
            "node": settings.node.model_copy(update={"port": 104}),
            "engine": EngineSettings(database_url=address),
        }
    )
    note_start(audit, ledger, other)
    note_start(audit, ledger, other)
    (changed,) = [one for one in events(audit) if one["event"] == "settings-changed"]
    assert changed["settings"] == "engine.database_url, node.port"
    assert "hunter2" not in json.dumps(events(audit)) + str(ledger.fact("settings"))


def test_every_start_and_stop_seals_the_trail(
    audit: Audit, ledger: Ledger, settings: Settings
) -> None:
    note_start(audit, ledger, settings)
    audit.append(AuditEvent.SENT)
    note_stop(audit, ledger)
    assert list(ledger.audit_seals()) == [1, 3]
    assert audit.verify(ledger.audit_seals()).intact


# --- the command ---------------------------------------------------------------------------------


def command(tmp_path: Path, *arguments: str) -> int:
    config = tmp_path / "site.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path}"\n')
    parser = argparse.ArgumentParser()
    trail.register(parser.add_subparsers())
    parsed: Any = parser.parse_args(["audit", *arguments, "--config", str(config)])
    return int(parsed.run(parsed))


def test_verify_says_which_line(
    audit: Audit, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        audit.append(AuditEvent.SENT, objects=number)
    assert command(tmp_path, "verify") == 0
    assert capsys.readouterr().out == "whole: 4 lines in 1 files, 0 seals agree\n"
    file = tmp_path / "audit" / AUDIT_FILE
    file.write_bytes(file.read_bytes().replace(b'"objects":2', b'"objects":9'))
    assert command(tmp_path, "verify") == 1
    assert capsys.readouterr().out == "NOT WHOLE: line 3 was changed (audit.jsonl, line 3)\n"
    assert command(tmp_path, "verify", "--json") == 1
    assert json.loads(capsys.readouterr().out)["line_in_file"] == 3


def test_verify_finds_both_files_put_back_by_the_seal(
    audit: Audit, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit.append(AuditEvent.SENT)
    old = {name: (tmp_path / "audit" / name).read_bytes() for name in (AUDIT_FILE, HEAD_FILE)}
    audit.append(AuditEvent.REFUSED, address="10.0.0.9")
    seal(audit, ledger)
    for name, content in old.items():
        (tmp_path / "audit" / name).write_bytes(content)
    assert command(tmp_path, "verify") == 1
    assert "sealed were 2" in capsys.readouterr().out


def test_export_writes_one_message_a_line_and_only_later_ones_if_asked(
    audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        audit.append(AuditEvent.SENT, study="1.2.3", destination="pacs")
    assert command(tmp_path, "export", "--format", "dicom", "--after", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("<AuditMessage>") for line in lines)
    assert "1.2.3" not in "".join(lines)


def test_where_nothing_was_recorded_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "verify") == 2
    assert "has `flairnode serve` run" in capsys.readouterr().err
    assert not (tmp_path / "site.key").exists()
