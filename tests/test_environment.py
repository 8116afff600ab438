"""What must hold of the installation itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGES = ("config", "dicom", "node", "pipeline", "training")
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_name_belongs_to_flairnode_alone(package: str) -> None:
    # Another distribution's `config` or `dicom` would silently shadow ours.
    assert set(packages_distributions().get(package, ["flairnode"])) == {"flairnode"}
    found = run(f"import {package}; print({package}.__file__)").strip()
    assert Path(found).resolve().parent == REPOSITORY / package


def test_the_service_holds_no_torch() -> None:
    loaded = run("import sys, node.service; print('torch' in sys.modules)")
    assert loaded.strip() == "False"


def test_the_command_line_starts_without_torch() -> None:
    loaded = run(
        "import sys\nfrom node.cli import main\n"
        "try:\n main(['--version'])\nexcept SystemExit: pass\n"
        "import node.commands, training.commands\nprint('torch' in sys.modules)"
    )
    assert loaded.splitlines()[-1] == "False"


@pytest.mark.parametrize("module", ["pipeline.ensemble", "training.starter", "node.worker"])
def test_nothing_imports_torchvision(module: str) -> None:
    # It does not import beside a CPU build of torch (README, "torchvision").
    loaded = run(f"import sys, {module}; print([m for m in sys.modules if 'torchvision' in m])")
    assert loaded.strip() == "[]"


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY / "tests",
    ).stdout
