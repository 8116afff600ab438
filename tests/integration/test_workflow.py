"""A whole node between DCMTK and a real Orthanc; only the network is a stand-in."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_process import PATIENCE_S, STANDIN, NodeProcess, Sent, alive

from node.archive import Orthanc, find_orthanc
from node.ledger import SeriesState
from node.outcome import ResultsFolder

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(2 * PATIENCE_S)]

HEAD_MM = (6.5, 4.0, 5.0)  # 48 x 36 pixels of 4 x 5 mm make a field of view of a head
NAME = "Nobody^Knows"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("archive")
    archive = Orthanc(folder / "orthanc", modalities={"flairnode": ("FLAIRNODE", 1)})
    archive.start()
    yield archive
    archive.kill()


@pytest.fixture(scope="module")
def node(archive: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One node for all tests of this file that do not stop it."""
    # Polled as a site does it by default: one test looks at what an idle service costs.
    sections = {"engine": {"poll_s": 0.25}}
    node = NodeProcess(tmp_path_factory.mktemp("node") / "site", {"pacs": archive}, sections)
    node.start()
    yield node
    node.end()


@pytest.fixture
def send_flair(make_flair_series: Callable[..., Sent]) -> Callable[..., Sent]:
    """Sends a FLAIR series of a patient of its own to a node."""

    def send(node: NodeProcess, patient_id: str, fault: str = "") -> Sent:
        flair = make_flair_series(spacing_mm=HEAD_MM, patient_id=patient_id, patient_name=NAME)
        if fault:
            node.fault(f"{fault}.{flair.series_instance_uid}")
        sent = node.send(flair.folder)
        assert sent.returncode == 0, sent.stderr
        return flair

    return send


def objects_of(node: NodeProcess, series_instance_uid: str) -> list[str]:
    """SOP Instance UIDs of the result of a series."""
    with node.ledger() as ledger:
        row = ledger.series(series_instance_uid)
    assert row is not None
    result = ResultsFolder(node.data_dir).read(row.job_id)
    return [] if result is None else sorted(one.sop_instance_uid for one in result.objects)


def end_of(node: NodeProcess, series_instance_uid: str) -> tuple[str, str]:
    with node.ledger() as ledger:
        row = ledger.series(series_instance_uid)
    assert row is not None
    return row.state.value, row.reason


def test_a_study_that_is_sent_ends_delivered(
    node: NodeProcess,
    archive: Orthanc,
    send_flair: Callable[..., Sent],
) -> None:
    flair = send_flair(node, "DELIVERED")
    node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    objects = objects_of(node, flair.series_instance_uid)
    assert len(objects) == 2
    assert set(objects) <= set(archive.sop_instance_uids())
    with node.ledger() as ledger:
        states = [one.state.value for one in ledger.history(flair.series_instance_uid)]
        assert ledger.oracle().balanced
    assert [s for s in states if s != "running"] == [
        "receiving",
        "queued",
        "delivering",
        "delivered",
    ]


def test_sending_it_again_adds_nothing(
    node: NodeProcess, archive: Orthanc, send_flair: Callable[..., Sent]
) -> None:
    flair = send_flair(node, "AGAIN")
    node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    stored, before = archive.stored_count(), sorted(archive.sop_instance_uids())
    assert node.send(flair.folder).returncode == 0
    time.sleep(2.5)  # longer than the quiet period and a sweep
    assert end_of(node, flair.series_instance_uid) == ("delivered", "")
    assert sorted(archive.sop_instance_uids()) == before
    assert archive.stored_count() == stored
    with node.ledger() as ledger:
        assert len(ledger.jobs_of(flair.series_instance_uid)) == 1


def test_a_refusal_is_an_end_with_its_reason_and_nothing_but_a_note_is_sent(
    node: NodeProcess, archive: Orthanc, send_flair: Callable[..., Sent]
) -> None:
    stored = archive.stored_count()
    flair = send_flair(node, "REFUSED", fault="refuse")
    node.wait_for_state(flair.series_instance_uid, SeriesState.NOT_ANALYSED)
    assert end_of(node, flair.series_instance_uid) == ("not_analysed", "blank-image")
    assert archive.stored_count() == stored + 1


def test_an_unexpected_error_ends_failed_and_quotes_no_patient(
    node: NodeProcess, send_flair: Callable[..., Sent]
) -> None:
    flair = send_flair(node, "RAISES", fault="raise")
    node.wait_for_state(flair.series_instance_uid, SeriesState.FAILED)
    assert end_of(node, flair.series_instance_uid) == ("failed", "internal-error")
    with node.ledger() as ledger:
        row = ledger.series(flair.series_instance_uid)
    assert row is not None
    assert row.explanation == "RuntimeError"
    assert NAME not in node.log_file.read_text()


def test_a_case_that_kills_its_worker_three_times_ends_poison_and_the_next_goes_on(
    node: NodeProcess, send_flair: Callable[..., Sent]
) -> None:
    poison = send_flair(node, "POISON", fault="kill")
    node.wait_for_state(poison.series_instance_uid, SeriesState.FAILED)
    assert end_of(node, poison.series_instance_uid) == ("failed", "poison")
    healthy = send_flair(node, "HEALTHY")
    node.wait_for_state(healthy.series_instance_uid, SeriesState.DELIVERED)
    deaths = [event for event in node.events() if event["event"] == "worker.died"]
    assert [event["exit_code"] for event in deaths] == [-9, -9, -9]


def test_a_retry_by_an_operator_does_the_case_once_more(
    node: NodeProcess, archive: Orthanc, send_flair: Callable[..., Sent]
) -> None:
    flair = send_flair(node, "RETRIED", fault="raise")
    node.wait_for_state(flair.series_instance_uid, SeriesState.FAILED)
    node.fault(f"raise.{flair.series_instance_uid}").unlink()
    with node.ledger() as ledger:
        row = ledger.series(flair.series_instance_uid)
        assert row is not None
        ledger.retry(row.job_id)
    node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    objects = objects_of(node, flair.series_instance_uid)
    assert set(objects) <= set(archive.sop_instance_uids())


def test_the_service_holds_no_torch(node: NodeProcess) -> None:
    assert node.process is not None
    assert "libtorch" not in Path(f"/proc/{node.process.pid}/maps").read_text()
    code = "import node.service, sys; print('torch' in sys.modules, 'node.worker' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["False", "False"]


def test_a_second_service_on_the_same_data_refuses_to_start(node: NodeProcess) -> None:
    second = subprocess.run(
        [sys.executable, str(STANDIN), "serve", "--config", str(node.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert second.returncode == 1
    assert "a flairnode service runs on" in second.stderr
    assert "already" in second.stderr
    assert "Traceback" not in second.stderr
    assert node.process is not None
    assert node.process.poll() is None


def test_the_engine_database_holds_keys_only(node: NodeProcess) -> None:
    path = node.data_dir / "engine.sqlite"
    assert path.stat().st_mode & 0o077 == 0
    connection = sqlite3.connect(path)
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert "casework" in dump
    assert NAME not in dump
    for patient_id in ("DELIVERED", "AGAIN", "REFUSED", "RAISES", "POISON", "HEALTHY"):
        assert f'"{patient_id}"' not in dump
    assert "py_pickle" not in dump


def test_the_idle_service_uses_a_few_percent_of_one_core(node: NodeProcess) -> None:
    assert node.process is not None
    before, began = cpu_seconds(node.process.pid), time.monotonic()
    time.sleep(8.0)
    share = (cpu_seconds(node.process.pid) - before) / (time.monotonic() - began)
    assert share < 0.15  # 5 % on an idle machine; a loaded one counts more for the same work


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_sigterm_ends_service_and_worker_within_seconds_even_in_the_middle_of_a_case(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    send_flair: Callable[..., Sent],
) -> None:
    archive = make_archive("orthanc")
    node = make_node(archives={"pacs": archive})
    node.start()
    slow = node.fault("slow", "600")
    flair = send_flair(node, "SLOW")
    node.wait_for_state(flair.series_instance_uid, SeriesState.RUNNING)
    workers = node.worker_pids()
    assert len(workers) == 1
    assert node.stop() < 10.0
    assert not any(alive(pid) for pid in workers)
    slow.unlink()
    node.start()
    node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    assert len(archive.sop_instance_uids()) == 2
    # The stop was not the fault of the case.
    assert not list((node.data_dir / "results").glob("*.attempts"))


def test_a_dead_destination_is_waited_for_and_keeps_nothing_from_the_other_one(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    send_flair: Callable[..., Sent],
) -> None:
    alive, dead = make_archive("alive"), make_archive("dead")
    node = make_node(archives={"alive": alive, "dead": dead})
    node.start()
    dead.kill()
    flairs = [send_flair(node, f"PATIENT{number}") for number in range(3)]
    node.wait_until(lambda: len(alive.sop_instance_uids()) == 6)
    for flair in flairs:
        node.wait_for_state(flair.series_instance_uid, SeriesState.HELD)
        assert end_of(node, flair.series_instance_uid) == ("held", "destination-unreachable")
    dead.start()
    for flair in flairs:
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    assert sorted(dead.sop_instance_uids()) == sorted(alive.sop_instance_uids())
    assert alive.stored_count() == dead.stored_count() == 6


def test_jobs_in_every_state_survive_a_kill_of_the_service(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    send_flair: Callable[..., Sent],
) -> None:
    archive, dead = make_archive("pacs"), make_archive("dead")
    patient = {"attempts": 50, "first_pause_s": 0.5, "backoff": 1.0}
    node = make_node(archives={"pacs": archive, "dead": dead}, sections={"delivery": patient})
    node.start()
    dead.kill()
    delivering = send_flair(node, "DELIVERING")
    node.wait_until(lambda: len(archive.sop_instance_uids()) == 2)
    node.fault("slow", "600")
    running = send_flair(node, "RUNNING")
    node.wait_for_state(running.series_instance_uid, SeriesState.RUNNING)
    queued = send_flair(node, "QUEUED")
    node.wait_for_state(queued.series_instance_uid, SeriesState.QUEUED)
    receiving = send_flair(node, "RECEIVING")
    with node.ledger() as ledger:
        states = Counter(row.state.value for row in ledger.all_series())
    assert states["delivering"] == states["running"] == 1
    workers = node.worker_pids()
    node.kill()
    node.fault("slow", "0")
    dead.start()
    node.wait_until(lambda: not any(alive(pid) for pid in workers))
    node.start()
    for flair in (delivering, running, queued, receiving):
        node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    assert archive.stored_count() == dead.stored_count() == 8
    with node.ledger() as ledger:
        assert ledger.oracle().balanced
