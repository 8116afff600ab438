"""Delivered means committed: requests, reports on every way, failures, and no report at all."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.settings import (
    DeliverySettings,
    Destination,
    EngineSettings,
    NodeSettings,
    Settings,
)
from dicom.network.commitment import CommitmentReport
from dicom.network.scp import Admission, StorageServer
from node import commitment
from node.commitment import Commitments
from node.delivery import ObjectState
from node.engine import Engine
from node.ledger import Job, Ledger, SeriesState
from node.outcome import ResultsFolder
from node.workflow import (
    ANALYSIS,
    SERIES,
    WORKFLOW_VERSION,
    Analysis,
    Casework,
    delivery_queue,
)
from tests.node.registry import forget_services
from tests.node.standins import Committing, committing_peer
from tests.node.test_workflow import Bench

pytestmark = pytest.mark.timeout(240)

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def standin() -> Committing:
    return Committing()


@pytest.fixture(scope="module")
def whole_bench(tmp_path_factory: pytest.TempPathFactory, standin: Committing) -> Iterator[Bench]:
    forget_services()
    folder = tmp_path_factory.mktemp("commitment")
    with committing_peer(standin) as peer:
        settings = Settings(
            node=NodeSettings(data_dir=folder),
            peers=(peer,),
            destinations=(Destination(peer="standin", research=True, confirm="commitment"),),
            delivery=DeliverySettings(attempts=3, first_pause_s=0.05, timeout_s=10.0),
            engine=EngineSettings(poll_s=0.05),
        )
        ledger = Ledger(folder / "intake.sqlite")
        results = ResultsFolder(folder)
        engine = Engine(settings, "commitment-bench", WORKFLOW_VERSION)
        bench: Bench
        casework = Casework(
            settings, ledger, results, engine, Analysis(lambda job_id: bench.analyse(job_id))
        )
        bench = Bench(settings, ledger, results, engine, casework, {})
        engine.launch([SERIES, ANALYSIS, *map(delivery_queue, settings.destinations)])
        loopback = ipaddress.ip_network(f"{LOOPBACK}/32")
        with StorageServer(
            LOOPBACK,
            0,
            Admission("FLAIRNODE", frozenset({"STANDIN"}), (loopback,)),
            lambda _: 0xC000,
            lambda _: None,
            casework.take_report,
        ) as listener:
            standin.node_port = listener.port
            yield bench
        engine.destroy()
        ledger.close()


@pytest.fixture
def bench(
    whole_bench: Bench, standin: Committing, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    monkeypatch.setattr(commitment, "LINGER_S", 0.5)
    standin.reports, standin.failure_reason = "on-the-association", 0
    standin.asked.clear()
    standin.statuses.clear()
    standin.answers.given.clear()
    yield whole_bench
    for job in whole_bench.ledger.jobs(SeriesState.DELIVERING):
        whole_bench.ledger.set_state(job.job_id, SeriesState.FAILED, "the test is over")


def patient(bench: Bench, monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> None:
    """Waits so long for a report before the peer's list decides."""
    plan = bench.settings.delivery.model_copy(update={"commitment_timeout_s": timeout_s})
    changed = bench.settings.model_copy(update={"delivery": plan})
    monkeypatch.setattr(bench.casework, "_settings", changed)
    monkeypatch.setattr(bench.casework, "_commitments", Commitments(changed, bench.ledger))


def states(bench: Bench, job: Job) -> set[str]:
    return {one.state for one in bench.ledger.deliveries(job.job_id)}


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def submitted(bench: Bench, series: str) -> Job:
    job = bench.receive(series)
    bench.casework.submit(job)
    return job


@pytest.mark.parametrize("way", ["on-the-association", "on-a-new-one"])
def test_delivered_means_committed(bench: Bench, standin: Committing, way: str) -> None:
    standin.reports = way
    job = submitted(bench, f"1.7.1.{len(way)}")
    ended = bench.wait(job, SeriesState.DELIVERED)
    assert states(bench, job) == {"committed"}
    assert ended.explanation == ""
    assert standin.statuses == [0]
    assert len(standin.asked) == len(standin.answers.given) == 1


def test_a_late_report_ends_the_wait(bench: Bench, standin: Committing) -> None:
    standin.reports = "when-told"
    job = submitted(bench, "1.7.2")
    until(lambda: states(bench, job) == {"awaiting-commitment"})
    assert bench.ledger.job(job.job_id).state is SeriesState.DELIVERING
    assert standin.report() == 0
    bench.wait(job, SeriesState.DELIVERED)
    assert states(bench, job) == {"committed"}
    assert len(standin.asked) == 1, "a second request would only ask the peer to work twice"


def test_without_a_report_in_time_its_list_decides_and_the_job_says_so(
    bench: Bench, standin: Committing, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(bench, monkeypatch, 0.3)
    standin.reports = "when-told"
    job = submitted(bench, "1.7.3")
    ended = bench.wait(job, SeriesState.DELIVERED)
    assert states(bench, job) == {"confirmed"}
    assert ended.explanation == "no report of commitment, confirmed by query: standin"
    standin.report()
    until(lambda: states(bench, job) == {"committed"})
    assert bench.ledger.job(job.job_id).explanation == ""


def test_a_peer_that_will_not_be_asked_is_confirmed_by_its_list(
    bench: Bench, standin: Committing, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(bench, monkeypatch, 0.01)
    standin.reports = "refuses"
    ended = bench.wait(submitted(bench, "1.7.4"), SeriesState.DELIVERED)
    assert "no report of commitment" in ended.explanation


def test_what_it_could_not_commit_to_is_sent_again(bench: Bench, standin: Committing) -> None:
    """No such object instance, although it lists it: once more, and asked once more."""
    standin.failure_reason = 0x0112
    standin.reports = "when-told"
    job = submitted(bench, "1.7.5")
    until(lambda: states(bench, job) == {"awaiting-commitment"})
    standin.reports, standin.failure_reason = "on-the-association", 0
    standin.report(failure_reason=0x0112)
    bench.wait(job, SeriesState.DELIVERED)
    assert states(bench, job) == {"committed"}
    assert len(standin.asked) == 2
    assert standin.answers.given == standin.answers.given[:1] * 2


def test_a_failure_after_delivery_takes_the_delivery_back(
    bench: Bench, standin: Committing, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(bench, monkeypatch, 0.3)
    standin.reports = "when-told"
    job = submitted(bench, "1.7.6")
    bench.wait(job, SeriesState.DELIVERED)
    standin.reports = "on-the-association"
    standin.report(failure_reason=0x0213)
    until(lambda: len(standin.asked) == 2)
    bench.wait(job, SeriesState.DELIVERED)
    until(lambda: states(bench, job) == {"committed"})


def test_a_class_it_never_commits_to_is_held_for_a_person(
    bench: Bench, standin: Committing
) -> None:
    standin.failure_reason = 0x0122
    ended = bench.wait(submitted(bench, "1.7.7"), SeriesState.HELD)
    assert ended.reason == "destination-refused"


def test_a_report_finds_its_objects_after_a_restart(
    bench: Bench, standin: Committing, tmp_path: Path
) -> None:
    standin.reports = "when-told"
    job = submitted(bench, "1.7.8")
    until(lambda: states(bench, job) == {"awaiting-commitment"})
    ((transaction_uid, references),) = standin.asked
    uid = str(references[0].ReferencedSOPInstanceUID)
    with Ledger(bench.ledger.path) as reopened:
        report = CommitmentReport(transaction_uid, frozenset({uid, "1.2.3"}), {})
        reported = Commitments(bench.settings, reopened).take(report)
    assert reported is not None
    assert (reported.job_id, reported.destination) == (job.job_id, "standin")
    assert reported.states == {uid: ObjectState.COMMITTED}, "and nothing that nobody asked for"


def test_a_report_that_nobody_asked_for_changes_nothing(bench: Bench, standin: Committing) -> None:
    standin.reports = "when-told"
    job = submitted(bench, "1.7.9")
    until(lambda: states(bench, job) == {"awaiting-commitment"})
    transaction_uid, references = standin.asked[0]
    standin.asked.append(("1.2.3", references))
    assert standin.report() == 0
    assert states(bench, job) == {"awaiting-commitment"}
    standin.asked[0] = (transaction_uid, references)
    standin.report(transaction=0)
    bench.wait(job, SeriesState.DELIVERED)
