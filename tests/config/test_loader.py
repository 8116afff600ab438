"""Settings: one file, variables on top, unknown keys refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.loader import SettingsError, load_settings
from config.settings import Settings

EXAMPLE = Path(__file__).resolve().parents[2] / "config" / "site.example.toml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example_loads_and_its_destination_is_marked_research() -> None:
    settings = load_settings(EXAMPLE)
    assert settings.peer("archive").port == 4242
    assert [(d.peer, d.research) for d in settings.destinations] == [("archive", True)]


def test_without_a_file_the_defaults_hold_and_listen_on_loopback() -> None:
    assert load_settings(None) == Settings()
    assert load_settings(None).node.bind_host == "127.0.0.1"


def test_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"node\.aetitle: unknown key"):
        load_settings(written(tmp_path, '[node]\naetitle = "X"\n'))


def test_a_destination_without_a_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no peer is named 'pacs'"):
        load_settings(written(tmp_path, '[[destinations]]\npeer = "pacs"\n'))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[sources]]\npeer = "pacs"\n', "no peer is named 'pacs'"),
        (
            '[[peers]]\nname = "pacs"\nae_title = "P"\nhost = "h"\nport = 104\n'
            '[[sources]]\npeer = "pacs"\n',
            "peer 'pacs' has no orthanc_url",
        ),
        (
            '[[peers]]\nname = "pacs"\northanc_url = "http://h"\n'
            '[[sources]]\npeer = "pacs"\n[[sources]]\npeer = "pacs"\n',
            "sources: peers are doubled",
        ),
    ],
)
def test_a_source_that_cannot_be_followed_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load_settings(written(tmp_path, text))


def test_a_variable_overrides_one_key_and_leaves_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAIRNODE_NODE__PORT", "11200")
    settings = load_settings(written(tmp_path, '[node]\nae_title = "SITE"\nport = 104\n'))
    assert (settings.node.ae_title, settings.node.port) == ("SITE", 11200)


@pytest.mark.parametrize("text", ["[node", "[node]\nport = 0\n", "[node]\nae_title = ''\n"])
def test_what_cannot_be_right_is_refused_with_the_file_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"site\.toml"):
        load_settings(written(tmp_path, text))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path / "none.toml")
