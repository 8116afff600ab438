from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom.errors import Outcome
from node import jobs
from node.check import check_pause
from node.ledger import Job, SeriesDecision, SeriesState
from node.outcome import JobOutcome, Order, ResultFile, ResultsFolder
from node.pause import PauseSwitch

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


# --- many at once, conflicts, pause --------------------------------------------------------------


@pytest.fixture
def three(bench: Bench, make_flair_series: Make, run: Run, tmp_path: Path) -> list[Job]:
    """Two results that `pacs` did not take, one of which `other` did not take either; a failure."""
    with (tmp_path / "site.toml").open("a") as config:
        for name in ("pacs", "other"):
            config.write(f'[[peers]]\nname = "{name}"\nae_title = "X"\nhost = "::1"\nport = 1\n')
    jobs = []
    for number in (1, 2, 3):
        made = make_flair_series(
            study_instance_uid=f"1.2.{number}", series_instance_uid=f"1.3.{number}"
        )
        (job,) = bench.close(*made.paths)
        jobs.append(job)
    for job, peers in ((jobs[0], ("pacs", "other")), (jobs[1], ("pacs",))):
        for peer in peers:
            bench.ledger.record_delivery(job.job_id, peer, "2.25.1", "undeliverable")
        bench.ledger.set_state(job.job_id, Outcome.HELD, "undeliverable")
    bench.ledger.set_state(jobs[2].job_id, Outcome.FAILED, "internal-error")
    return jobs


@pytest.mark.parametrize(
    ("arguments", "retried"),
    [
        (("--reason", "undeliverable"), [0, 1]),
        (("--reason", "undeliverable", "--destination", "other"), [0]),
        (("--reason", "internal-error"), [2]),
        (("--reason", "poison"), []),
    ],
)
def test_all_that_ended_for_a_reason_are_retried_at_once(
    run: Run, bench: Bench, three: list[Job], arguments: tuple[str, ...], retried: list[int]
) -> None:
    status, told = run("retry", "--all", *arguments, "--json")
    assert status == 0
    assert told == {"retried": [three[number].job_id for number in retried], "refused": {}}
    queued = [job.job_id for job in bench.ledger.jobs(SeriesState.QUEUED)]
    assert queued == told["retried"]
    noted = [one for one in bench.audit.entries() if one and one["event"] == "operator"]
    assert [one["job"] for one in noted] == told["retried"]


def test_what_cannot_be_retried_is_named_with_its_reason(
    run: Run, bench: Bench, three: list[Job], make_flair_series: Make
) -> None:
    late = make_flair_series(
        slices=11, study_instance_uid="1.2.1", series_instance_uid="1.3.1"
    )  # one slice more than the job holds
    bench.send(*late.paths)
    status, told = run("retry", "--all", "--reason", "undeliverable", "--json")
    assert status == 0
    assert told["retried"] == [three[1].job_id]
    assert "out of date" in told["refused"][three[0].job_id]


def test_what_one_peer_gave_up_is_found_while_another_one_is_still_tried(
    run: Run, bench: Bench, three: list[Job]
) -> None:
    job = three[0].job_id
    bench.ledger.record_delivery(job, "other", "2.25.1", "unreachable")
    bench.ledger.set_state(job, Outcome.HELD, "destination-unreachable")
    options = ("--all", "--reason", "undeliverable", "--json")
    assert run("retry", *options, "--destination", "other")[1]["retried"] == []
    assert run("retry", *options, "--destination", "pacs")[1]["retried"] == [three[1].job_id, job]
    states = {(one.destination, one.state) for one in bench.ledger.deliveries(job)}
    assert states == {("pacs", "trying"), ("other", "trying")}


@pytest.mark.parametrize(
    "arguments", [(), ("--all",), ("--reason", "poison"), ("1.3.1", "--all", "--reason", "poison")]
)
def test_a_bulk_retry_says_what_it_wants(
    run: Run, three: list[Job], arguments: tuple[str, ...]
) -> None:
    status, said = run("retry", *arguments)
    assert status == 3
    assert "--all with --reason" in said


def test_a_destination_that_is_not_there_is_a_wrong_argument(run: Run, three: list[Job]) -> None:
    options = ("--all", "--reason", "undeliverable", "--destination", "pcas")
    status, said = run("retry", *options)
    assert (status, "no peer is named pcas" in said) == (2, True)


def test_a_note_that_was_given_up_is_sent_again_by_a_bulk_retry(
    run: Run, bench: Bench, told: Job
) -> None:
    bench.ledger.record_delivery(told.job_id, "other", "2.25.7", "undeliverable")
    status, done = run("retry", "--all", "--reason", "undeliverable", "--json")
    assert (status, done["retried"]) == (0, [told.job_id])
    states = {one.destination: one.state for one in bench.ledger.deliveries(told.job_id)}
    assert states == {"pacs": "confirmed", "other": "unreachable"}
    assert bench.ledger.job(told.job_id).state is SeriesState.NOT_ANALYSED


def test_a_conflict_is_shown_and_resolved(
    run: Run, bench: Bench, job: Job, make_flair_series: Make
) -> None:
    other = make_flair_series(voxels=np.full((10, 48, 36), 9, np.uint16))
    bench.send(other.paths[0])
    uid = job.series_instance_uid
    assert "jobs resolve" in run("explain", uid)[1]
    (shown,) = run("show", uid, "--json")[1]["conflicts"]
    status, told = run("resolve", uid, "--keep", "received", "--json")
    assert (status, told["state"], told["conflicts"]) == (0, "receiving", [])
    assert told["resolved"][0]["kept"] == shown["received"]["digest"]
    assert run("resolve", uid, "--keep", "stored")[0] == 3


def test_a_pause_is_seen_and_ended(run: Run, bench: Bench, job: Job) -> None:
    switch = PauseSwitch(bench.settings.node.data_dir)
    assert run("pause")[0] == 0
    assert switch.is_on()
    assert "PAUSED since" in run("list")[1]
    assert not check_pause(bench.settings).ok
    assert run("pause", "--json")[1] == {"paused": True, "changed": False}
    assert run("resume")[0] == 0
    assert not switch.is_on()
    assert run("list", "--json")[1]["paused"] == ""
    assert check_pause(bench.settings).ok
    noted = [one["what"] for one in bench.audit.entries() if one and one["event"] == "operator"]
    assert noted == ["pause", "resume"]


def test_a_drain_waits_for_what_runs_and_stays_paused(
    run: Run, bench: Bench, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda _: None)
    bench.ledger.set_state(job.job_id, SeriesState.RUNNING)
    status, said = run("drain", "--timeout", "0.2")
    assert (status, "1 analyses still run" in said) == (3, True)
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    assert run("drain", "--json")[1] == {"paused": True, "running": 0}
    assert PauseSwitch(bench.settings.node.data_dir).is_on()


def test_the_disk_is_in_the_list(run: Run, job: Job) -> None:
    disk = run("list", "--json")[1]["disk"]
    assert disk["free_mb"] > 0
    assert disk["reserve_mb"] == 2048
