"""`flairnode model`: exit status, JSON and words."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from dicom.errors import Outcome
from node import models
from node.cli import EXIT_DONE
from pipeline.model_pack import ModelPackError, ModelPackNotFoundError, load_pack
from tests.pipeline.tiny_pack import make_pack


@pytest.fixture
def site(tmp_path: Path) -> Path:
    config = tmp_path / "site.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "data"}"\n')
    return config


@pytest.fixture
def pack_path(tmp_path: Path) -> Path:
    make_pack(tmp_path / "delivered", folds=(0, 1))
    return tmp_path / "delivered"


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    models.register(parser.add_subparsers())
    arguments = parser.parse_args(["model", *words])
    status: int = arguments.run(arguments)
    return status


def printed(capsys: pytest.CaptureFixture[str]) -> Any:  # noqa: ANN401  # JSON
    return json.loads(capsys.readouterr().out)


def test_an_installed_pack_is_listed_shown_and_verified(
    site: Path, pack_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = load_pack(pack_path).digest
    installed = str(tmp_path / "data" / "packs" / "tiny-1.0")
    short = {
        "name": "tiny",
        "version": "1.0",
        "status": "research",
        "digest": digest,
        "path": installed,
    }

    assert call("install", str(pack_path), "--config", str(site), "--json") == EXIT_DONE
    assert printed(capsys) == short | {"ok": True}

    assert call("list", "--config", str(site), "--json") == EXIT_DONE
    listed = printed(capsys)["packs"]
    assert short | {"where": "installed", "in_use": False} in listed

    assert call("show", "tiny", "--config", str(site), "--json") == EXIT_DONE
    assert printed(capsys)["manifest"]["limits"] == ["Useless."]

    assert call("verify", "tiny-1.0", "--config", str(site), "--json") == EXIT_DONE
    assert printed(capsys) == short | {"ok": True}


def test_the_pack_in_use_is_marked(
    site: Path, pack_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.write_text(site.read_text() + '[pipeline]\nmodel = "tiny"\n')
    call("install", str(pack_path), "--config", str(site))
    capsys.readouterr()
    call("list", "--config", str(site), "--json")
    assert [pack["name"] for pack in printed(capsys)["packs"] if pack["in_use"]] == ["tiny"]


def test_the_words_say_what_a_pack_is_not_for(
    site: Path, pack_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("show", str(pack_path), "--config", str(site))
    text = capsys.readouterr().out
    assert "tiny 1.0 (research)" in text
    assert "Useless." in text
    assert "differ by seed, not by patients" in text


def test_a_changed_pack_does_not_verify(site: Path, pack_path: Path) -> None:
    (pack_path / "card.md").write_text("better")
    with pytest.raises(ModelPackError, match=r"card\.md") as error:
        call("verify", str(pack_path), "--config", str(site))
    assert error.value.outcome is Outcome.FAILED


def test_a_pack_nobody_has_is_a_coded_error(site: Path) -> None:
    with pytest.raises(ModelPackNotFoundError):
        call("show", "no-such-pack", "--config", str(site))


def test_importing_nnunet_results_is_refused_in_plain_words(site: Path, tmp_path: Path) -> None:
    with pytest.raises(models.ImportNotSupportedError, match="later") as error:
        call("import", str(tmp_path), "--config", str(site))
    assert error.value.reason == "not-supported-yet"
    assert error.value.outcome is Outcome.FAILED
