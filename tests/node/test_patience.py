"""Pauses that grow, a patience that ends, and clocks that do neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import DeliverySettings
from dicom.errors import Outcome
from node.ledger import Ledger, ReceivedInstance, SeriesDecision
from node.patience import JITTER, Patience

PLAN = DeliverySettings()
HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        yield ledger


@pytest.fixture
def job(ledger: Ledger) -> str:
    path = Path("1.2", "1.2.3", "1.2.3.4.dcm")
    ledger.record(ReceivedInstance("1.2", "1.2.3", "1.2.3.4", "1.2.840", "d", path))
    decision = SeriesDecision("1.2.3", chosen=True, outcome=Outcome.ANALYSED, reason="selected")
    return ledger.close_study("1.2", [decision], "a" * 64, "b" * 64)[0].job_id


@pytest.fixture
def patience(ledger: Ledger, clock: Clock) -> Patience:
    return Patience(PLAN, ledger, clock)


def test_pauses_double_up_to_a_quarter_of_an_hour_a_fifth_more_or_less(patience: Patience) -> None:
    # Three attempts in a row came before, with pauses of 5 s and 10 s.
    for rounds, exact in enumerate([20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 900.0, 900.0]):
        pauses = [patience.pause_s(rounds) for _ in range(50)]
        assert exact * (1 - JITTER) <= min(pauses) < exact < max(pauses) <= exact * (1 + JITTER)
    assert patience.pause_s(10_000) <= 900.0 * (1 + JITTER)


def test_a_result_is_due_when_its_own_pause_is_over(
    patience: Patience, clock: Clock, job: str
) -> None:
    assert patience.is_due(job, "pacs"), "nothing is planned: it has never waited, or a restart"
    assert not patience.plan(job, "pacs")
    assert not patience.is_due(job, "pacs")
    assert patience.is_due(job, "other"), "one dead destination holds nothing back from another"
    clock.now += 20.0 * (1 + JITTER)
    assert patience.due() == [(job, "pacs")]


def wait(patience: Patience, clock: Clock, job: str, hours: float) -> int:
    """How many attempts fail in so many hours; stops when it is given up."""
    end, attempts = clock.now + hours * HOUR, 0
    while clock.now < end:
        attempts += 1
        if patience.plan(job, "pacs"):
            break
        while not patience.is_due(job, "pacs"):
            clock.now += 10.0
        patience.under_way(job, "pacs")
    return attempts


def test_a_weekend_is_outlived_and_then_it_is_given_up(
    patience: Patience, clock: Clock, job: str, ledger: Ledger
) -> None:
    began = clock.now
    attempts = wait(patience, clock, job, hours=100.0)
    assert 72.0 <= (clock.now - began) / HOUR < 72.4
    assert 250 < attempts < 350, "four an hour for three days"
    assert ledger.waited(job, "pacs") is None
    assert not patience.knows(job)


def test_the_time_when_the_node_was_off_is_no_time_of_waiting(
    patience: Patience, clock: Clock, job: str, ledger: Ledger
) -> None:
    wait(patience, clock, job, hours=50.0)
    waited = ledger.waited(job, "pacs")
    assert waited is not None
    assert waited.waited_s / HOUR == pytest.approx(50.0, abs=0.4)
    # Off for a month; the monotonic clock of the new process begins anywhere.
    clock.now = 5.0
    restarted = Patience(PLAN, ledger, clock)
    assert restarted.is_due(job, "pacs")
    assert not restarted.plan(job, "pacs")
    wait(restarted, clock, job, hours=21.0)
    assert restarted.knows(job)
    wait(restarted, clock, job, hours=2.0)
    assert not restarted.knows(job)


def test_waiting_for_a_report_is_never_given_up(patience: Patience, clock: Clock, job: str) -> None:
    patience.plan(job, "pacs", endless=True)
    clock.now += 1000 * HOUR
    assert not patience.plan(job, "pacs", endless=True)


def test_a_peer_that_answers_again_is_hurried_and_no_other(
    patience: Patience, clock: Clock, job: str
) -> None:
    patience.plan(job, "pacs")
    patience.plan(job, "other")
    patience.hurry("pacs")
    assert patience.due() == [(job, "pacs")]


def test_an_operators_retry_begins_the_patience_anew(
    patience: Patience, clock: Clock, job: str, ledger: Ledger
) -> None:
    wait(patience, clock, job, hours=71.0)
    ledger.set_state(job, Outcome.HELD, "destination-unreachable")
    ledger.retry(job)
    assert ledger.waited(job, "pacs") is None
    clock.now += 10 * HOUR
    assert not patience.plan(job, "pacs")
    waited = ledger.waited(job, "pacs")
    assert waited is not None
    assert (waited.rounds, waited.waited_s) == (1, 0.0)
