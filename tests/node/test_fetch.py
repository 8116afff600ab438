"""`flairnode fetch` without a service; with one: tests/integration/test_follow_kill.py."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from node.cli import main
from node.durable import SERVICE_LOCK
from node.fetch import service_runs
from node.sources import SourceBook

PEER = '[[peers]]\nname = "{name}"\northanc_url = "http://127.0.0.1:1"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(f'[node]\ndata_dir = "{tmp_path / "data"}"\n' + PEER.format(name="pacs"))
    return path


def test_a_request_is_kept_for_the_next_start_of_the_service(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "1.2.3", "--config", str(config), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["outcome"], told["reason"]) == ("held", "service-not-running")
    with SourceBook(tmp_path / "data") as book:
        (request,) = book.asked()
    assert (request.study_instance_uid, request.source) == ("1.2.3", "pacs")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["../x"], "no Study Instance UID"),
        (["1.2.3", "--source", "nobody"], "no peer 'nobody'"),
    ],
)
def test_wrong_arguments_are_told_and_nothing_is_asked_for(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    why: str,
) -> None:
    assert main(["fetch", *arguments, "--config", str(config)]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "data" / "sources.sqlite").exists()


def test_of_several_peers_the_followed_one_is_meant_or_one_has_to_be_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.read_text() + PEER.format(name="other")
    config.write_text(text)
    assert main(["fetch", "1.2.3", "--config", str(config)]) == 2
    assert "name one with --source: pacs, other" in capsys.readouterr().err
    config.write_text(text + '[[sources]]\npeer = "other"\n')
    assert main(["fetch", "1.2.3", "--config", str(config)]) == 3
    with SourceBook(tmp_path / "data") as book:
        assert [one.source for one in book.asked()] == ["other"]


def test_a_service_is_known_by_its_lock(tmp_path: Path) -> None:
    assert not service_runs(tmp_path)
    with (tmp_path / SERVICE_LOCK).open("w") as file:
        assert not service_runs(tmp_path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert service_runs(tmp_path)
    assert not service_runs(tmp_path)
