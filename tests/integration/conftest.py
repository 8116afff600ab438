"""A real archive for the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.archive import Orthanc, find_orthanc

SENDER = "SENDER"
"""AE title that tests send with; `orthanc` accepts it and `FLAIRNODE`."""


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A fresh, empty Orthanc on loopback that FLAIRNODE and SENDER may speak with."""
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    archive = Orthanc(
        tmp_path / "orthanc",
        # Port 0 is replaced by `allow` where a test lets Orthanc send to the node.
        modalities={"flairnode": ("FLAIRNODE", 1), "sender": (SENDER, 1)},
    )
    archive.start()
    yield archive
    archive.kill()  # its storage is thrown away; an orderly end takes Orthanc 3 s
