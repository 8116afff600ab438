from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom.errors import Outcome
from node.ledger import (
    CANCELLED,
    CONFLICTING,
    LATER_FLAIR,
    OTHER_FLAIR,
    SUPERSEDED,
    Counts,
    Job,
    Ledger,
    LedgerVersionError,
    ReceivedInstance,
    Recorded,
    RetryRefusedError,
    SeriesDecision,
    SeriesState,
    UnknownJobError,
    series_revision,
)

STUDY, FLAIR, OTHER = "1.2", "1.2.3", "1.2.4"
PACK, SETTINGS = "a" * 64, "b" * 64


def received(number: int, series: str = FLAIR, digest: str = "") -> ReceivedInstance:
    uid = f"{series}.{number}"
    return ReceivedInstance(
        study_instance_uid=STUDY,
        series_instance_uid=series,
        sop_instance_uid=uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        digest=digest or f"digest of {number}",
        path=Path(STUDY, series, f"{uid}.dcm"),
        calling_ae_title="PACS",
    )


def chosen(series: str = FLAIR) -> SeriesDecision:
    return SeriesDecision(
        series, chosen=True, outcome=Outcome.ANALYSED, reason="selected", score=0.9
    )


def skipped(series: str, reason: str = "localizer") -> SeriesDecision:
    return SeriesDecision(series, chosen=False, outcome=Outcome.SKIPPED, reason=reason, score=0.1)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "intake.sqlite") as opened:
        yield opened


@pytest.fixture
def job(ledger: Ledger) -> Job:
    """Two instances of a FLAIR, chosen."""
    for number in (1, 2):
        ledger.record(received(number))
    (queued,) = ledger.close_study(STUDY, [chosen()], PACK, SETTINGS)
    return queued


def state_of(ledger: Ledger, series: str = FLAIR) -> tuple[SeriesState, str]:
    row = ledger.series(series)
    assert row is not None
    return row.state, row.reason


def test_a_new_instance_opens_its_series(ledger: Ledger) -> None:
    assert ledger.record(received(1)) is Recorded.NEW
    assert [(one.study_instance_uid, one.instances) for one in ledger.receiving_studies()] == [
        (STUDY, 1)
    ]
    assert state_of(ledger) == (SeriesState.RECEIVING, "")


def test_the_same_instance_again_adds_nothing(ledger: Ledger, job: Job) -> None:
    assert ledger.record(received(1)) is Recorded.DUPLICATE
    assert ledger.counts()["instances"] == 2
    assert state_of(ledger) == (SeriesState.QUEUED, "")
    assert ledger.receiving_studies() == []


def test_the_same_uid_with_another_content_is_a_conflict(ledger: Ledger, job: Job) -> None:
    assert ledger.record(received(1, digest="other")) is Recorded.CONFLICT
    ledger.record_conflict(received(1, digest="other"))
    assert state_of(ledger) == (SeriesState.HELD, CONFLICTING)
    assert ledger.is_superseded(job.job_id)
    ledger.set_state(job.job_id, SeriesState.SKIPPED, SUPERSEDED)
    assert state_of(ledger) == (SeriesState.HELD, CONFLICTING)
    ledger.record(received(3))
    assert state_of(ledger) == (SeriesState.HELD, CONFLICTING)


def test_a_conflict_across_two_series_holds_both(ledger: Ledger) -> None:
    ledger.record(received(1))
    stray = ReceivedInstance(
        STUDY, OTHER, f"{FLAIR}.1", "1.2", "other", Path("conflicts/x.dcm"), "PACS"
    )
    assert ledger.record(stray) is Recorded.CONFLICT
    ledger.record_conflict(stray)
    assert state_of(ledger, FLAIR) == state_of(ledger, OTHER) == (SeriesState.HELD, CONFLICTING)


def test_closing_gives_every_series_its_end(ledger: Ledger) -> None:
    ledger.record(received(1))
    ledger.record(received(1, OTHER))
    (job,) = ledger.close_study(STUDY, [chosen(), skipped(OTHER)], PACK, SETTINGS)
    assert job.series_instance_uid == FLAIR
    assert state_of(ledger, FLAIR) == (SeriesState.QUEUED, "")
    assert state_of(ledger, OTHER) == (SeriesState.SKIPPED, "localizer")
    assert {row.score for row in ledger.series_of(STUDY)} == {0.9, 0.1}
    assert ledger.receiving_studies() == []


def test_a_job_holds_exactly_the_instances_of_its_close(ledger: Ledger, job: Job) -> None:
    ledger.record(received(3))
    assert [path.name for path in ledger.paths_of(job.job_id)] == ["1.2.3.1.dcm", "1.2.3.2.dcm"]
    assert ledger.paths_of(job.job_id)[0] == ledger.path.parent / "spool/1.2/1.2.3/1.2.3.1.dcm"


def test_a_late_slice_makes_a_new_revision_with_its_predecessor(ledger: Ledger, job: Job) -> None:
    assert not ledger.is_superseded(job.job_id)
    ledger.record(received(3))
    assert state_of(ledger) == (SeriesState.RECEIVING, "late-instance")
    assert ledger.is_superseded(job.job_id)
    (old, new) = ledger.close_study(STUDY, [chosen()], PACK, SETTINGS)
    assert old.job_id == job.job_id
    assert new.predecessor == job.job_id
    assert new.revision != job.revision
    assert len(ledger.paths_of(new.job_id)) == 3
    assert not ledger.is_superseded(new.job_id)


def test_the_end_of_an_old_revision_leaves_the_series_with_the_new_one(
    ledger: Ledger, job: Job
) -> None:
    ledger.record(received(3))
    ledger.set_state(job.job_id, Outcome.DELIVERED)
    assert state_of(ledger)[0] is SeriesState.RECEIVING
    (new,) = ledger.close_study(STUDY, [chosen()], PACK, SETTINGS)
    ledger.set_state(job.job_id, Outcome.SKIPPED, SUPERSEDED)
    assert state_of(ledger) == (SeriesState.QUEUED, "")
    ledger.set_state(new.job_id, Outcome.DELIVERED)
    assert state_of(ledger) == (SeriesState.DELIVERED, "")


def test_the_same_instances_give_the_same_job(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, Outcome.FAILED, "internal-error")
    ledger.reopen_series(FLAIR)
    assert ledger.close_study(STUDY, [chosen()], PACK, SETTINGS) == []
    assert len(ledger.jobs()) == 1
    assert state_of(ledger) == (SeriesState.FAILED, "internal-error")


def test_another_model_gives_another_job_of_the_same_revision(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, Outcome.FAILED, "internal-error")
    ledger.reopen_series(FLAIR)
    (other,) = ledger.close_study(STUDY, [chosen()], "c" * 64, SETTINGS)
    assert other.revision == job.revision
    assert other.job_id != job.job_id


def test_a_later_flair_is_held_until_an_operator_asks_for_it(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, Outcome.DELIVERED)
    ledger.record(received(1, OTHER))
    decisions = [chosen(OTHER), skipped(FLAIR, OTHER_FLAIR)]
    assert ledger.close_study(STUDY, decisions, PACK, SETTINGS) == []
    assert state_of(ledger, OTHER) == (SeriesState.HELD, LATER_FLAIR)
    assert state_of(ledger, FLAIR) == (SeriesState.DELIVERED, "")
    ledger.reopen_series(OTHER)
    (later,) = ledger.close_study(STUDY, decisions, PACK, SETTINGS)
    assert later.series_instance_uid == OTHER
    assert state_of(ledger, FLAIR) == (SeriesState.DELIVERED, "")


def test_a_later_flair_is_taken_when_the_first_one_gave_no_result(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, Outcome.NOT_ANALYSED, "blank-image")
    ledger.record(received(1, OTHER))
    (second,) = ledger.close_study(STUDY, [chosen(OTHER)], PACK, SETTINGS)
    assert second.series_instance_uid == OTHER


def test_late_slices_of_the_delivered_flair_are_analysed_though_a_better_one_came(
    ledger: Ledger, job: Job
) -> None:
    ledger.set_state(job.job_id, Outcome.DELIVERED)
    ledger.record(received(3))
    ledger.record(received(1, OTHER))
    decisions = [chosen(OTHER), skipped(FLAIR, OTHER_FLAIR)]
    (again,) = ledger.close_study(STUDY, decisions, PACK, SETTINGS)
    assert (again.series_instance_uid, again.predecessor) == (FLAIR, job.job_id)
    assert state_of(ledger, OTHER) == (SeriesState.HELD, LATER_FLAIR)


def test_a_state_set_twice_is_set_once(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, SeriesState.RUNNING)
    before = len(ledger.history(FLAIR))
    ledger.set_state(job.job_id, SeriesState.RUNNING)
    assert len(ledger.history(FLAIR)) == before
    assert [one.state.value for one in ledger.history(FLAIR)] == ["receiving", "queued", "running"]


def test_a_cancelled_job_stays_cancelled(ledger: Ledger, job: Job) -> None:
    ledger.cancel(job.job_id)
    after = ledger.set_state(job.job_id, SeriesState.DELIVERING)
    assert (after.state, after.reason) == (SeriesState.SKIPPED, CANCELLED)
    assert state_of(ledger) == (SeriesState.SKIPPED, CANCELLED)


def test_a_delivered_job_cannot_be_cancelled_or_retried(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, Outcome.DELIVERED)
    with pytest.raises(RetryRefusedError):
        ledger.cancel(job.job_id)
    with pytest.raises(RetryRefusedError):
        ledger.retry(job.job_id)
    with pytest.raises(RetryRefusedError):
        ledger.reopen_series(FLAIR)


def test_a_retry_has_a_workflow_of_its_own(ledger: Ledger, job: Job) -> None:
    assert job.workflow_id == job.job_id
    for number in (1, 2):
        ledger.set_state(job.job_id, Outcome.FAILED, "internal-error")
        retried = ledger.retry(job.job_id)
        assert retried.workflow_id == f"{job.job_id}.{number}"
        assert retried.state is SeriesState.QUEUED
        assert state_of(ledger)[0] is SeriesState.QUEUED


def test_a_retry_of_outdated_input_is_refused(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, Outcome.FAILED, "internal-error")
    ledger.record(received(3))
    with pytest.raises(RetryRefusedError, match="other instances"):
        ledger.retry(job.job_id)


def test_deliveries_are_kept_per_object_and_destination(ledger: Ledger, job: Job) -> None:
    ledger.record_delivery(job.job_id, "pacs", "1.9.1", "trying")
    ledger.record_delivery(job.job_id, "pacs", "1.9.1", "confirmed")
    ledger.record_delivery(job.job_id, "archive", "1.9.1", "trying")
    assert [(one.destination, one.state) for one in ledger.deliveries(job.job_id)] == [
        ("archive", "trying"),
        ("pacs", "confirmed"),
    ]


def test_the_balance_counts_every_instance_once(ledger: Ledger, job: Job) -> None:
    ledger.record(received(1, OTHER))
    for row in ledger.series_of(STUDY):
        for instance in ledger.instances_of(row.series_instance_uid):
            path = ledger.spool / instance.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    balance = ledger.oracle()
    assert balance.received == 3
    assert balance.by_state == {SeriesState.QUEUED: 2, SeriesState.RECEIVING: 1}
    assert balance.balanced
    path.unlink()
    assert ledger.oracle().missing_files == (f"{OTHER}.1",)
    assert not ledger.oracle().balanced


def test_only_old_ends_are_discardable(ledger: Ledger, job: Job) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert ledger.discardable(tomorrow) == []
    ledger.set_state(job.job_id, Outcome.DELIVERED)
    assert [row.series_instance_uid for row in ledger.discardable(tomorrow)] == [FLAIR]
    assert ledger.discardable(datetime.now(UTC) - timedelta(days=1)) == []
    ledger.mark_discarded(FLAIR)
    assert ledger.discardable(tomorrow) == []
    assert ledger.oracle().balanced


def test_counts_tell_confirmed_from_unconfirmed(ledger: Ledger) -> None:
    ledger.record(received(1))
    decision = SeriesDecision(
        FLAIR, chosen=True, outcome=Outcome.ANALYSED, reason="selected", counts=Counts.CONFIRMED
    )
    (job,) = ledger.close_study(STUDY, [decision], PACK, SETTINGS)
    assert job.counts is Counts.CONFIRMED
    assert ledger.job_record(job.job_id)["counts"] == "confirmed"


def test_an_unknown_job_is_named(ledger: Ledger) -> None:
    with pytest.raises(UnknownJobError, match="nowhere"):
        ledger.job("nowhere")


def test_the_database_is_durable_and_private(ledger: Ledger) -> None:
    connection = ledger._connection  # the pragmas are per connection
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    ledger.record(received(1))
    for path in ledger.path.parent.glob("intake.sqlite*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_later_version_of_the_tables_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "intake.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(LedgerVersionError, match="99"):
        Ledger(path)


def test_many_threads_record_without_loss(ledger: Ledger) -> None:
    def record(start: int) -> None:
        for number in range(start, start + 6):
            ledger.record(received(number))

    threads = [threading.Thread(target=record, args=(start,)) for start in range(0, 30, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.counts()["instances"] == 30


def _record_in_another_process(path: Path, start: int) -> None:
    with Ledger(path) as ledger:
        for number in range(start, start + 6):
            ledger.record(received(number))


def test_several_processes_record_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "intake.sqlite"
    Ledger(path).close()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_record_in_another_process, args=(path, start)) for start in (0, 6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with Ledger(path) as ledger:
        assert ledger.counts()["instances"] == 12


@given(st.permutations(["1.1", "1.2", "1.10", "1.3"]))
def test_a_revision_does_not_depend_on_the_order_of_arrival(order: list[str]) -> None:
    digests = {uid: f"{uid}-content" for uid in order}
    assert series_revision(FLAIR, digests) == series_revision(FLAIR, dict(sorted(digests.items())))
    assert series_revision(FLAIR, digests | {"1.1": "other"}) != series_revision(FLAIR, digests)
    assert series_revision(OTHER, digests) != series_revision(FLAIR, digests)


# --- telling why ---------------------------------------------------------------------------------


def refused(series: str = FLAIR, reason: str = "missing-slice") -> SeriesDecision:
    return SeriesDecision(
        series, chosen=False, outcome=Outcome.NOT_ANALYSED, reason=reason, explanation="a gap"
    )


def tell_why(ledger: Ledger, *decisions: SeriesDecision) -> list[Job]:
    return ledger.close_study(STUDY, decisions, PACK, SETTINGS, tell_why=True)


def test_every_refused_flair_gets_a_job_that_tells_why(ledger: Ledger) -> None:
    ledger.record(received(1))
    ledger.record(received(1, OTHER))
    ledger.record(received(1, "1.2.5"))
    jobs = tell_why(ledger, refused(), refused(OTHER, "gantry-tilt"), skipped("1.2.5"))
    assert [(job.series_instance_uid, job.reason) for job in jobs] == [
        (FLAIR, "missing-slice"),
        (OTHER, "gantry-tilt"),
    ]
    assert ledger.refusal_of(jobs[0].job_id) == {"reason": "missing-slice", "explanation": "a gap"}
    assert ledger.job_record(jobs[0].job_id)["refusal"] == ledger.refusal_of(jobs[0].job_id)
    assert state_of(ledger) == (SeriesState.QUEUED, "missing-slice")
    assert state_of(ledger, "1.2.5") == (SeriesState.SKIPPED, "localizer")


def test_no_job_tells_why_unless_it_is_asked_for(ledger: Ledger) -> None:
    ledger.record(received(1))
    assert ledger.close_study(STUDY, [refused()], PACK, SETTINGS) == []
    assert state_of(ledger) == (SeriesState.NOT_ANALYSED, "missing-slice")


def test_beside_a_flair_that_is_or_was_analysed_nothing_is_told(ledger: Ledger) -> None:
    ledger.record(received(1))
    ledger.record(received(1, OTHER))
    (job,) = tell_why(ledger, chosen(), refused(OTHER))
    assert job.series_instance_uid == FLAIR
    assert state_of(ledger, OTHER) == (SeriesState.NOT_ANALYSED, "missing-slice")
    ledger.set_state(job.job_id, Outcome.DELIVERED)
    ledger.record(received(1, "1.2.5"))
    assert tell_why(ledger, refused("1.2.5")) == []


def test_a_delivered_series_whose_late_slice_spoils_it_is_told_of(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, Outcome.DELIVERED)
    ledger.record(received(3))
    (note,) = tell_why(ledger, refused(FLAIR, "duplicate-slice"))
    assert note.predecessor == job.job_id


def test_the_same_slices_refused_for_the_same_reason_are_told_of_once(ledger: Ledger) -> None:
    ledger.record(received(1))
    (note,) = tell_why(ledger, refused())
    ledger.set_state(note.job_id, Outcome.NOT_ANALYSED, "missing-slice", "a gap")
    ledger.reopen_series(FLAIR)
    assert tell_why(ledger, refused()) == []
    assert state_of(ledger) == (SeriesState.NOT_ANALYSED, "missing-slice")
    ledger.reopen_series(FLAIR)
    (other,) = tell_why(ledger, refused(FLAIR, "gantry-tilt"))
    assert other.job_id != note.job_id


def test_the_same_slices_may_be_analysed_after_all(ledger: Ledger) -> None:
    ledger.record(received(1))
    (note,) = tell_why(ledger, refused())
    ledger.set_state(note.job_id, Outcome.NOT_ANALYSED, "missing-slice", "a gap")
    ledger.reopen_series(FLAIR)  # the site wants fewer slices now
    (job,) = tell_why(ledger, chosen())
    assert (job.revision, job.predecessor) == (note.revision, note.job_id)
    assert ledger.refusal_of(job.job_id) is None


@pytest.mark.parametrize("state", [SeriesState.QUEUED, SeriesState.RUNNING, SeriesState.DELIVERING])
def test_a_note_on_its_way_keeps_no_flair_of_the_study_from_being_analysed(
    ledger: Ledger, state: SeriesState
) -> None:
    ledger.record(received(1))
    (note,) = tell_why(ledger, refused())
    ledger.set_state(note.job_id, state, "missing-slice")
    ledger.record(received(1, OTHER))
    jobs = tell_why(ledger, chosen(OTHER))
    assert OTHER in {job.series_instance_uid for job in jobs}


def test_nor_does_the_note_of_an_analysis_that_was_refused(ledger: Ledger, job: Job) -> None:
    ledger.set_state(job.job_id, SeriesState.DELIVERING, "blank-image")
    ledger.record(received(1, OTHER))
    tell_why(ledger, chosen(OTHER))
    assert state_of(ledger, OTHER) == (SeriesState.QUEUED, "")


def test_a_ledger_from_before_there_were_notes_is_opened_as_it_is(tmp_path: Path) -> None:
    with Ledger(tmp_path / "intake.sqlite") as old:
        old.record(received(1))
        old._connection.execute("DROP TABLE refusals")
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        (note,) = tell_why(ledger, refused())
        assert ledger.refusal_of(note.job_id) is not None
        assert ledger.counts()["instances"] == 1


def test_undelivered_names_destination_and_job(ledger: Ledger, job: Job) -> None:
    ledger.record_delivery(job.job_id, "dead", "1.9", "unreachable")
    ledger.record_delivery(job.job_id, "alive", "1.9", "confirmed")
    ledger.set_state(job.job_id, Outcome.NOT_ANALYSED, "blank-image")
    waiting = [("dead", job.job_id)]
    assert ledger.undelivered(SeriesState.NOT_ANALYSED, ["unreachable", "trying"]) == waiting
    assert ledger.undelivered(SeriesState.HELD, ["unreachable"]) == []
