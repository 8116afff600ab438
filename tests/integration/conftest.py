"""A real archive and a whole node for the integration tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.archive import Orthanc, find_orthanc

# The helpers beside this file are shared with `kill_rounds.py`, which runs by itself.
sys.path.insert(0, str(Path(__file__).parent))

from listening import Node
from node_process import NodeProcess

SENDER = "SENDER"
"""AE title that tests send with; every archive here accepts it and `FLAIRNODE`."""


@pytest.fixture
def make_archive(tmp_path: Path) -> Iterator[Callable[[str], Orthanc]]:
    """Starts fresh, empty Orthancs on loopback that FLAIRNODE and SENDER may speak with."""
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    started: list[Orthanc] = []

    def make(name: str = "orthanc") -> Orthanc:
        archive = Orthanc(
            tmp_path / name,
            # The ports matter only where Orthanc is to send: `allow` names the right one then.
            modalities={"flairnode": ("FLAIRNODE", 1), "sender": (SENDER, 1)},
        )
        archive.start()
        started.append(archive)
        return archive

    yield make
    for archive in started:
        archive.kill()  # its storage is thrown away; an orderly end takes Orthanc 3 s


@pytest.fixture
def orthanc(make_archive: Callable[[str], Orthanc]) -> Orthanc:
    """A fresh, empty Orthanc on loopback that FLAIRNODE and SENDER may speak with."""
    return make_archive("orthanc")


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Makes nodes with a stand-in for the network; ends them after the test."""
    made: list[NodeProcess] = []

    def make(name: str = "node", **options: Any) -> NodeProcess:  # noqa: ANN401  # NodeProcess'
        node = NodeProcess(tmp_path / name, **options)
        made.append(node)
        return node

    yield make
    for node in made:
        node.end()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A listener with an intake behind it; the test moves its clock."""
    made = Node(tmp_path / "data")
    with made.server:
        yield made
    made.ledger.close()
