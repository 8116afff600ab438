from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicom.errors import Outcome
from node import jobs
from node.ledger import Job, SeriesDecision, SeriesState
from node.outcome import JobOutcome, Order, ResultFile, ResultsFolder

Bench = Any  # IntakeBench of conftest.py
Make = Callable[..., Any]
Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def job(bench: Bench, make_flair_series: Make) -> Job:
    (queued,) = bench.close(*make_flair_series().paths)
    return queued  # type: ignore[no-any-return]


@pytest.fixture
def run(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`flairnode jobs ...`: exit status and what it printed, parsed when it is JSON."""
    config = tmp_path / "site.toml"
    config.write_text(f'[node]\ndata_dir = "{bench.settings.node.data_dir}"\n')
    parser = argparse.ArgumentParser()
    jobs.register(parser.add_subparsers())

    def call(*arguments: str) -> tuple[int, Any]:
        parsed = parser.parse_args(["jobs", *arguments, "--config", str(config)])
        capsys.readouterr()
        status = parsed.run(parsed)
        said = capsys.readouterr()
        is_json = "--json" in arguments and said.out
        return status, json.loads(said.out) if is_json else said.out + said.err

    return call


def test_list_shows_every_series_with_state_and_reason(run: Run, bench: Bench, job: Job) -> None:
    status, shown = run("list", "--json")
    assert status == 0
    (series,) = shown["series"]
    assert (series["state"], series["job_id"], series["instances"]) == ("queued", job.job_id, 10)
    assert series["score"] > 0
    assert shown["counts"]["jobs.queued"] == 1
    assert job.job_id in run("list")[1]
    assert run("list", "--state", "failed", "--json")[1]["series"] == []


def test_show_finds_a_series_a_job_and_the_beginning_of_a_job(run: Run, job: Job) -> None:
    for name in (job.series_instance_uid, job.job_id, job.job_id[:8]):
        status, shown = run("show", name, "--json")
        assert status == 0
        assert shown["jobs"][0]["job_id"] == job.job_id
        assert shown["jobs"][0]["instances"] == 10
    assert job.job_id in run("show", job.job_id[:8])[1]


def test_what_is_unknown_is_a_wrong_argument(run: Run, job: Job) -> None:
    for name in ("1.2.3.4", "zzzzzzzz", job.job_id[:3]):
        status, said = run("show", name)
        assert status == 2
        assert name in said


def test_explain_tells_the_story_and_what_to_do(run: Run, bench: Bench, job: Job) -> None:
    bench.ledger.set_state(job.job_id, Outcome.HELD, "no-destination-for-research")
    status, told = run("explain", job.series_instance_uid, "--json")
    assert status == 0
    assert [one["state"] for one in told["history"]] == ["receiving", "queued", "held"]
    assert "research = true" in told["advice"]
    assert "What to do" in run("explain", job.job_id)[1]


def test_retry_queues_a_failed_job_again(run: Run, bench: Bench, job: Job) -> None:
    bench.ledger.set_state(job.job_id, Outcome.FAILED, "internal-error")
    status, shown = run("retry", job.series_instance_uid, "--json")
    assert (status, shown["state"]) == (0, "queued")
    assert shown["jobs"][0]["workflow_id"] == f"{job.job_id}.1"
    (_, operator) = [entry for entry in bench.audit.entries() if entry]
    assert (operator["event"], operator["what"]) == ("operator", "retry")
    assert bench.audit.verify().intact


def test_retry_of_what_is_under_way_is_refused_with_the_reason(run: Run, job: Job) -> None:
    status, shown = run("retry", job.job_id, "--json")
    assert (status, shown["outcome"]) == (3, "refused")
    assert "queued" in shown["explanation"]


def test_retry_of_a_later_flair_analyses_it(
    run: Run, bench: Bench, job: Job, make_flair_series: Make
) -> None:
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    better = make_flair_series(
        slices=24,
        spacing_mm=(3.0, 0.5, 0.75),
        study_instance_uid=job.study_instance_uid,
        series_instance_uid="1.2.3.4",
    )
    bench.close(*better.paths)
    assert run("explain", "1.2.3.4", "--json")[1]["reason"] == "later-flair"
    assert run("retry", "1.2.3.4")[0] == 0
    bench.pass_time(30.0)
    (second,) = bench.pass_time(30.0)
    assert second.series_instance_uid == "1.2.3.4"


def test_cancel_ends_a_waiting_job(run: Run, bench: Bench, job: Job) -> None:
    status, shown = run("cancel", job.job_id[:10], "--json")
    assert (status, shown["state"], shown["reason"]) == (0, "skipped", "cancelled-by-operator")
    assert bench.ledger.job(job.job_id).state is SeriesState.SKIPPED


def test_a_site_that_never_ran_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "site.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "nothing"}"\n')
    parser = argparse.ArgumentParser()
    jobs.register(parser.add_subparsers())
    parsed = parser.parse_args(["jobs", "list", "--config", str(config)])
    assert parsed.run(parsed) == 2
    assert "has `flairnode serve` run" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


# --- notes ---------------------------------------------------------------------------------------


@pytest.fixture
def told(bench: Bench, make_flair_series: Make) -> Job:
    """A FLAIR with a hole, whose note is at one archive and waits for another."""
    flair = make_flair_series(slices=12, drop=(5,))
    assert bench.close(*flair.paths) == []
    ledger = bench.ledger
    ledger.reopen_series(flair.series_instance_uid)
    row = bench.only_series()
    decision = SeriesDecision(
        row.series_instance_uid, False, Outcome.NOT_ANALYSED, "missing-slice", "1 slices missing"
    )
    (note,) = ledger.close_study(row.study_instance_uid, [decision], "a", "b", tell_why=True)
    results = ResultsFolder(bench.settings.node.data_dir)
    part = results.begin(note.job_id)
    (part / "note.dcm").write_bytes(b"a note")
    order = Order(note.job_id, ledger.job_record(note.job_id), ())
    file = ResultFile("note", "2.25.7", part / "note.dcm")
    ended = JobOutcome(
        Outcome.NOT_ANALYSED, "missing-slice", "", note.job_id, research=True, objects=(file,)
    )
    results.finish(note.job_id, ended, order, None)
    ledger.record_delivery(note.job_id, "pacs", "2.25.7", "confirmed")
    ledger.record_delivery(note.job_id, "other", "2.25.7", "unreachable")
    ledger.set_state(note.job_id, Outcome.NOT_ANALYSED, "missing-slice", "1 slices missing")
    return note  # type: ignore[no-any-return]


@pytest.mark.parametrize("action", ["show", "explain"])
def test_it_is_said_that_a_note_was_sent_and_where(run: Run, told: Job, action: str) -> None:
    _, shown = run(action, told.series_instance_uid, "--json")
    assert shown["state"] == "not_analysed"
    assert [(one["destination"], one["state"]) for one in shown["notes"]] == [
        ("other", "unreachable"),
        ("pacs", "confirmed"),
    ]
    said = run(action, told.series_instance_uid)[1]
    assert "note that says why (missing-slice): confirmed at pacs" in said


def test_explain_advises_what_the_note_advises(run: Run, told: Job) -> None:
    assert "Send the whole series again" in run("explain", told.job_id)[1]


def test_a_series_that_was_only_told_of_is_looked_at_again_by_a_retry(
    run: Run, bench: Bench, told: Job
) -> None:
    assert run("retry", told.series_instance_uid)[0] == 0
    assert bench.only_series().state is SeriesState.RECEIVING
    assert bench.ledger.job(told.job_id).state is SeriesState.NOT_ANALYSED
