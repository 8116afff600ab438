"""kill -9 at random moments: everything that was acknowledged ends once, and once only."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
from kills import Kills, balance
from node_process import PATIENCE_S, NodeProcess, Sent

from node.archive import Orthanc
from node.ledger import SeriesState

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(5 * PATIENCE_S)]

SEED = 20240102
ROUNDS = 6
PATIENTS = 6
HEAD_MM = (6.5, 4.0, 5.0)


def test_nothing_is_lost_and_nothing_doubled_over_kills_of_service_and_worker(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    make_flair_series: Callable[..., Sent],
) -> None:
    archive = make_archive("orthanc")
    node = make_node(archives={"pacs": archive}, sections={"pipeline": {"time_limit_s": 60.0}})
    node.start()
    node.fault("slow", "0.3")
    flairs = [
        make_flair_series(spacing_mm=HEAD_MM, patient_id=f"PATIENT{number}")
        for number in range(PATIENTS)
    ]
    sender = threading.Thread(target=send_until_acknowledged, args=(node, flairs))
    sender.start()
    plan = random.Random(SEED)  # noqa: S311  # to be repeated, not to be secret
    kills = Kills(node, plan, longest_pause_s=2.5)
    for _ in range(ROUNDS):
        kills.round()
    sender.join()
    for flair in flairs:
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    found = balance(node, archive)
    assert found.faults(sent=sum(len(list(flair.folder.iterdir())) for flair in flairs)) == []
    assert found.in_archive == 2 * PATIENTS
    assert kills.done["service"] >= 1
    assert kills.done["worker"] >= 1
    assert not list((node.data_dir / "results").glob("*.part"))


def send_until_acknowledged(node: NodeProcess, flairs: list[Sent]) -> None:
    """As a PACS does: a study whose association broke is sent again as a whole, later."""
    deadline = time.monotonic() + PATIENCE_S
    for flair in flairs:
        while node.send(flair.folder).returncode != 0 and time.monotonic() < deadline:
            time.sleep(0.2)
