"""Fixtures every room uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real MS data, which are not part of the repository (README, "Test data")."""
    folder = Path(os.environ.get("FLAIRNODE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"no test data at {folder}: set FLAIRNODE_TEST_DATA")
    return folder
