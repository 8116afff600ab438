"""`flairnode model`: exit status, JSON and words."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from dicom.errors import Outcome
from node import models
from node.cli import EXIT_DONE, EXIT_REFUSED
from pipeline.model_pack import ModelPackError, ModelPackNotFoundError, load_pack
from tests.pipeline.hand_results import make_plans, random_state, write_results
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


@pytest.fixture
def results(tmp_path: Path) -> Path:
    plans = make_plans()
    return write_results(tmp_path / "trained", plans, {n: random_state(plans, n) for n in (0, 1)})


IMPORT = ("--name", "theirs", "--version", "2.0", "--input", "head", "--folds", "0", "1")


def test_nnunet_results_are_imported_listed_shown_and_verified(
    site: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("import", str(results), *IMPORT, "--config", str(site), "--json") == EXIT_DONE
    said = printed(capsys)
    assert said["path"] == str(tmp_path / "data" / "packs" / "theirs-2.0")
    assert (said["status"], said["ok"]) == ("research", True)

    call("list", "--config", str(site), "--json")
    assert said["digest"] in {pack["digest"] for pack in printed(capsys)["packs"]}
    call("show", "theirs", "--config", str(site))
    assert "how patients were dealt to them is not known" in capsys.readouterr().out
    assert call("verify", "theirs", "--config", str(site), "--json") == EXIT_DONE
    assert printed(capsys)["digest"] == said["digest"]


def test_what_cannot_be_imported_ends_with_3_and_a_reason(
    site: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "dataset.json").unlink()
    words = ("import", str(results), *IMPORT, "--config", str(site))
    assert call(*words, "--json") == EXIT_REFUSED
    assert printed(capsys)["reason"] == "not-nnunet-results"
    assert call(*words) == EXIT_REFUSED
    assert "not-nnunet-results" in capsys.readouterr().err
    assert not (tmp_path / "data" / "packs").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--name", "No Name"),
        ("--version", "-"),
        ("--input", "neck"),
        ("--threshold", "1"),
        ("--threshold", "nan"),
        ("--folds", "-1"),
        ("--folds", "first"),
        ("--orientation", "LLL"),
        ("--minimum-lesion-mm3", "-2"),
    ],
)
def test_wrong_words_are_wrong_arguments(results: Path, wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as error:
        call("import", str(results), *IMPORT, *wrong)
    assert error.value.code == 2
