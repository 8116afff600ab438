"""A configured skull strip that is missing: `check` says so, and the node does not start."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import PipelineSettings, Settings
from node.check import check_brain
from node.service import settings_digest


def settings(brain: str, **tool: object) -> Settings:
    return Settings(pipeline=PipelineSettings.model_validate({"brain": brain, "brain_tool": tool}))


def test_check_names_the_default() -> None:
    finding = check_brain(Settings())
    assert (finding.name, finding.ok) == ("brain", True)
    assert "surface-refine" in finding.text


@pytest.mark.parametrize(
    ("brain", "note"),
    [("fsl-bet", "non-commercial"), ("hd-bet", "licence"), ("synthstrip", "FreeSurfer")],
)
def test_check_says_what_is_missing_and_the_licence(tmp_path: Path, brain: str, note: str) -> None:
    finding = check_brain(settings(brain, command=tmp_path / "none"))
    assert not finding.ok
    assert str(tmp_path / "none") in finding.text
    assert note in finding.text


def test_the_node_does_not_start_without_the_configured_tool(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text(
        f'[node]\ndata_dir = "{tmp_path / "data"}"\nport = 1\n'
        f'[pipeline]\nbrain = "fsl-bet"\nbrain_tool = {{ command = "{tmp_path / "bet"}" }}\n'
    )
    ended = subprocess.run(
        [sys.executable, "-m", "node.cli", "serve", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "fsl-bet: no program at" in ended.stderr


def test_another_strip_makes_another_job_and_the_default_the_same_as_ever() -> None:
    usual = settings_digest(Settings())
    # Jobs of earlier ledgers keep their ids.
    assert usual == hashlib.sha256(b"mirroring=auto").hexdigest()
    others = {
        settings_digest(settings("fsl-bet")),
        settings_digest(settings("fsl-bet", fraction=0.4)),
        settings_digest(settings("hd-bet")),
        settings_digest(settings("hd-bet", device="cuda")),
    }
    assert len({usual, *others}) == 5
    assert settings_digest(settings("fsl-bet", timeout_s=5)) in others
