"""A whole node with a real Orthanc that commits, and with peers that are cut off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from node_process import NodeProcess

from node.archive import Orthanc
from node.ledger import SeriesState
from tests.node.standins import (
    Answers,
    Committing,
    committing_peer,
    web_peer,
)

pytestmark = pytest.mark.timeout(300)

Make = Callable[..., Any]


@dataclass
class InItsPlace:
    """What `NodeProcess` has to know of a peer that is no Orthanc."""

    ae_title: str
    dicom_port: int


def states(node: NodeProcess) -> set[str]:
    with node.ledger() as ledger:
        (job,) = ledger.jobs()
        return {one.state for one in ledger.deliveries(job.job_id)}


def begun(node: NodeProcess) -> bool:
    with node.ledger() as ledger:
        return len(ledger.jobs()) == 1


def test_a_real_orthanc_commits_over_an_association_of_its_own(
    orthanc: Orthanc, make_node: Callable[..., NodeProcess], make_flair_series: Make
) -> None:
    node = make_node(archives={"archive": orthanc}, destination={"confirm": "commitment"})
    orthanc.allow("flairnode", "FLAIRNODE", node.port)
    node.start()
    flair = make_flair_series(slices=10)
    assert node.send(flair.folder).returncode == 0
    node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    assert states(node) == {"committed"}
    with node.ledger() as ledger:
        (job,) = ledger.jobs()
    assert job.explanation == ""
    assert orthanc.stored_count() == 2


def test_a_report_to_a_node_that_was_killed_and_started_again_is_understood(
    make_node: Callable[..., NodeProcess], make_flair_series: Make
) -> None:
    behaves = Committing(reports="when-told")
    with committing_peer(behaves) as peer:
        node = make_node(
            archives={"archive": InItsPlace("STANDIN", peer.port)},
            destination={"confirm": "commitment"},
        )
        behaves.node_port = node.port
        node.start()
        flair = make_flair_series(slices=10)
        node.send(flair.folder)
        node.wait_until(lambda: begun(node) and states(node) == {"awaiting-commitment"})
        node.kill()
        node.start()
        assert behaves.report(transaction=0) == 0
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
        assert states(node) == {"committed"}
        assert len(behaves.answers.given) == 2, "each object was sent once"


@pytest.mark.parametrize("protocol", ["stow-rs", "orthanc-rest"])
def test_killed_between_sending_and_confirming_leaves_one_copy(
    make_node: Callable[..., NodeProcess], make_flair_series: Make, protocol: str
) -> None:
    """The peer has the first object and has not answered: then the node is killed (-9)."""
    released = threading.Event()
    answers = Answers(holds=released)
    with web_peer(answers) as peer:
        node = make_node(
            archives={"archive": InItsPlace("", 0)},
            destination={"protocol": protocol},
            peer={"host": "", "dicomweb_url": peer.dicomweb_url, "orthanc_url": peer.orthanc_url},
        )
        node.start()
        flair = make_flair_series(slices=10)
        node.send(flair.folder)
        node.wait_until(lambda: len(answers.given) == 1)
        node.kill()
        released.set()
        node.start()
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    assert len(answers.given) == 2
    assert len(set(answers.given)) == 2


def test_a_node_whose_ledger_was_lost_asks_for_commitment_anew(
    make_node: Callable[..., NodeProcess], make_flair_series: Make
) -> None:
    """What was asked for is forgotten with the ledger: a late report of it finds nobody."""
    behaves = Committing(reports="when-told")
    with committing_peer(behaves) as peer:
        node = make_node(
            archives={"archive": InItsPlace("STANDIN", peer.port)},
            destination={"confirm": "commitment"},
        )
        behaves.node_port = node.port
        node.start()
        flair = make_flair_series(slices=10)
        node.send(flair.folder)
        node.wait_until(lambda: begun(node) and states(node) == {"awaiting-commitment"})
        node.kill()
        for path in node.data_dir.glob("intake.sqlite*"):
            path.unlink()
        with (node.data_dir / "intake.sqlite").open("wb") as ledger:
            ledger.write(b"not a database, as a broken disk leaves it" * 100)
        node.start()
        node.wait_until(lambda: len(behaves.asked) == 2)
        node.wait_until(lambda: states(node) == {"awaiting-commitment"})
        assert behaves.report(transaction=0) == 0, "of the first request: taken, and of no use"
        assert states(node) == {"awaiting-commitment"}
        assert behaves.report(transaction=1) == 0
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
        assert states(node) == {"committed"}
        assert len(behaves.answers.given) == 2, "each object was sent once"
