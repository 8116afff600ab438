"""Cases that end their worker, each in its own way, beside cases that are well; a whole node."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from node_process import PATIENCE_S, NodeProcess, Sent

from node.archive import Orthanc
from node.ledger import SeriesState

LONG_S = 4 * PATIENCE_S  # seven workers are started one after the other: 3 s each, or 30 s
pytestmark = [pytest.mark.pacs, pytest.mark.timeout(2 * LONG_S)]

HEAD_MM = (6.5, 4.0, 5.0)
LIMITS = {"time_limit_s": 6.0, "memory_limit_mb": 600}


@pytest.fixture
def send_flair(make_flair_series: Callable[..., Sent]) -> Callable[..., Sent]:
    """Sends a FLAIR series of a patient of its own to a node."""

    def send(node: NodeProcess, patient_id: str, fault: str = "") -> Sent:
        flair = make_flair_series(spacing_mm=HEAD_MM, patient_id=patient_id)
        if fault:
            node.fault(f"{fault}.{flair.series_instance_uid}")
        assert node.send(flair.folder).returncode == 0
        return flair

    return send


def end_of(node: NodeProcess, flair: Sent) -> tuple[str, str]:
    with node.ledger() as ledger:
        row = ledger.series(flair.series_instance_uid)
    assert row is not None
    return row.state.value, row.reason


def flairnode(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments, "--config", str(node.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_a_case_that_ends_its_worker_ends_with_its_reason_and_the_others_arrive(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    send_flair: Callable[..., Sent],
) -> None:
    archive = make_archive("pacs")
    node = make_node(archives={"pacs": archive}, sections={"pipeline": LIMITS})
    node.start()
    ill = {
        fault: send_flair(node, fault.upper(), fault=fault)
        for fault in ("segfault", "hang", "grow")
    }
    healthy = send_flair(node, "HEALTHY")
    node.wait_for_state(healthy.series_instance_uid, SeriesState.DELIVERED, LONG_S)
    for flair in ill.values():
        node.wait_for_state(flair.series_instance_uid, SeriesState.FAILED, LONG_S)
    assert {fault: end_of(node, flair) for fault, flair in ill.items()} == {
        "segfault": ("failed", "poison"),
        "hang": ("failed", "time-limit"),
        "grow": ("failed", "memory-limit"),
    }
    deaths = [event["exit_code"] for event in node.events() if event["event"] == "worker.died"]
    assert sorted(deaths) == [-11, -11, -11, 124, 124, 125, 125]
    assert len(archive.sop_instance_uids()) == 2
    with node.ledger() as ledger:
        assert ledger.oracle().balanced


def test_what_a_dead_destination_did_not_take_is_given_up_and_retried_by_one_command(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    send_flair: Callable[..., Sent],
) -> None:
    alive, dead = make_archive("alive"), make_archive("dead")
    patience = {"give_up_after_h": 4.0 / 3600}
    node = make_node(archives={"alive": alive, "dead": dead}, sections={"delivery": patience})
    node.start()
    dead.kill()
    flairs = [send_flair(node, f"PATIENT{number}") for number in range(3)]

    def given_up() -> bool:
        return [end_of(node, flair) for flair in flairs] == [("held", "undeliverable")] * 3

    node.wait_until(given_up)
    assert len(alive.sop_instance_uids()) == 6
    began = time.monotonic()
    dead.start()
    time.sleep(3.0)
    assert given_up(), "nobody tries any more"
    command = ("jobs", "retry", "--all", "--reason", "undeliverable", "--destination", "dead")
    done = flairnode(node, *command, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["retried"]) == 3
    for flair in flairs:
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    assert time.monotonic() - began < PATIENCE_S
    assert sorted(dead.sop_instance_uids()) == sorted(alive.sop_instance_uids())
    assert alive.stored_count() == dead.stored_count() == 6
    # And the trail tells all of it: whole after a kill, too.
    node.kill()
    verified = flairnode(node, "audit", "verify", "--json")
    told = json.loads(verified.stdout)
    assert (verified.returncode, told["intact"], told["seals"]) == (0, True, 1)
    exported = flairnode(node, "audit", "export").stdout
    events = [line.split(" ")[5] for line in exported.splitlines()]
    counts = {event: events.count(event) for event in set(events)}
    assert counts["given-up"] == counts["operator"] == counts["analysed"] // 2 == 3
    assert counts["started"] == 1
    for flair in flairs:
        assert flair.series_instance_uid not in exported


def test_while_paused_studies_are_received_and_nothing_is_analysed(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    send_flair: Callable[..., Sent],
) -> None:
    archive = make_archive("pacs")
    node = make_node(archives={"pacs": archive})
    node.start()
    assert flairnode(node, "jobs", "drain").returncode == 0
    flairs = [send_flair(node, f"PATIENT{number}") for number in range(2)]
    for flair in flairs:
        node.wait_for_state(flair.series_instance_uid, SeriesState.QUEUED)
    node.stop()
    node.start()  # the upgrade
    time.sleep(4.0)
    assert [end_of(node, flair)[0] for flair in flairs] == ["queued"] * 2
    assert archive.sop_instance_uids() == []
    assert flairnode(node, "jobs", "resume").returncode == 0
    for flair in flairs:
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    assert not list((node.data_dir / "results").glob("*.attempts"))
