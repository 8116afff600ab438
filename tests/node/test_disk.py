"""A disk that fills: refused in time, in flight goes on, taken from again by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import Destination, NodeSettings, Peer, RetentionSettings, Settings
from dicom.errors import Outcome
from dicom.network.scp import OUT_OF_RESOURCES, SUCCESS
from node.check import check_disk
from node.disk import Reserve, room
from node.ledger import Job, SeriesState
from tests.node.test_timers import Site

Bench = Any  # IntakeBench of conftest.py
Make = Callable[..., Any]
MB = 2**20
PEER = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=1)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Megabytes that are free on every disk."""
    megabytes = [1000]

    def usage(_folder: Path) -> Any:  # noqa: ANN401
        return type("Usage", (), {"free": megabytes[0] * MB, "total": 5000 * MB})

    monkeypatch.setattr("node.disk.shutil.disk_usage", usage)
    return megabytes


def test_once_refused_senders_are_taken_from_only_above_the_margin(
    tmp_path: Path, free: list[int]
) -> None:
    reserve = Reserve(tmp_path, NodeSettings(reserve_mb=100, reserve_margin_mb=50))
    answers = []
    for free[0] in (101, 100, 99, 100, 149, 150, 149, 100, 99):
        answers.append(reserve.has_room_for(0))
    assert answers == [True, True, False, False, False, True, True, True, False]
    assert reserve.short


def test_an_object_counts_as_if_it_were_written(tmp_path: Path, free: list[int]) -> None:
    reserve = Reserve(tmp_path, NodeSettings(reserve_mb=100, reserve_margin_mb=0))
    free[0] = 110
    assert reserve.has_room_for(10 * MB)
    assert not reserve.has_room_for(11 * MB)


def test_check_says_what_is_free_and_what_happens(tmp_path: Path, free: list[int]) -> None:
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "not" / "yet", reserve_mb=800))
    free[0] = 799
    found = check_disk(settings)
    assert not found.ok
    assert "799 MB free of 5000 MB, reserve 800 MB" in found.text
    assert "0xA700" in found.text
    assert "1000 MB" in found.text
    assert room(settings.node).below_reserve


def test_below_the_reserve_a_copy_of_what_is_here_is_welcome_and_nothing_else(
    make_bench: Make, make_flair_series: Make, free: list[int]
) -> None:
    bench = make_bench(reserve_mb=500)
    here, other = make_flair_series().paths[:2]
    assert bench.send(here) == [SUCCESS]
    free[0] = 499
    assert bench.send(here, other) == [SUCCESS, OUT_OF_RESOURCES]
    assert bench.ledger.counts()["instances"] == 1
    free[0] = 624
    assert bench.send(other) == [OUT_OF_RESOURCES]
    free[0] = 626  # 500, a quarter of it, and what the object takes
    assert bench.send(other) == [SUCCESS]
    assert bench.ledger.oracle().balanced


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_disk_that_fills_refuses_keeps_what_it_said_yes_to_and_opens_again(
    make_bench: Make, make_flair_series: Make, small_disk: Path
) -> None:
    data_dir = small_disk / "data"
    bench = make_bench(data_dir=data_dir, reserve_mb=5)
    bench.intake.reserve = Reserve(
        bench.spool.folder, NodeSettings(reserve_mb=5, reserve_margin_mb=2)
    )
    flair = make_flair_series(slices=60, rows=256, columns=256)  # 128 KB a slice, 8 MB in all
    answers = bench.send(*flair.paths)
    taken = answers.count(SUCCESS)
    assert set(answers) == {SUCCESS, OUT_OF_RESOURCES}
    assert 10 < taken < 60
    assert bench.ledger.counts()["instances"] == taken
    oracle = bench.ledger.oracle()
    assert oracle.balanced, oracle
    left = os.statvfs(small_disk)
    assert left.f_bavail * left.f_frsize >= 4 * MB, "the reserve is there for work in flight"
    # In flight goes on: the study is closed on the short disk, and no stack with holes analysed.
    assert bench.pass_time(30.0) == []
    assert bench.only_series().reason == "missing-slice"
    assert bench.send(flair.paths[0]) == [SUCCESS], "that is here"
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert set(bench.send(*flair.paths)) == {SUCCESS}
    assert bench.ledger.counts()["instances"] == 60
    (job,) = bench.pass_time(30.0)
    assert len(bench.ledger.paths_of(job.job_id)) == 60


# --- what is deleted, and what never ------------------------------------------------------------


def ended(bench: Bench, make_flair_series: Make, number: int, outcome: Outcome) -> Job:
    made = make_flair_series(
        study_instance_uid=f"1.2.{number}", series_instance_uid=f"1.3.{number}"
    )
    (job,) = bench.close(*made.paths)
    bench.ledger.set_state(job.job_id, outcome, "a-reason")
    return job  # type: ignore[no-any-return]


def images(bench: Bench) -> set[str]:
    return {path.parts[0] for path in bench.spool.files()}


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    return make_bench(peers=(PEER,), destinations=(Destination(peer="pacs"),))


@pytest.mark.parametrize(
    ("outcome", "goes"),
    [
        (Outcome.DELIVERED, True),
        (Outcome.SKIPPED, True),
        (Outcome.NOT_ANALYSED, True),
        (Outcome.HELD, False),
        (Outcome.FAILED, False),
    ],
)
def test_what_waits_for_a_person_is_never_deleted(
    bench: Bench, make_flair_series: Make, outcome: Outcome, goes: bool
) -> None:
    ended(bench, make_flair_series, 1, outcome)
    assert bench.intake.discard_old(in_days(13)) == 0
    assert bench.intake.discard_old(in_days(400)) == int(goes)
    assert images(bench) == (set() if goes else {"1.2.1"})
    assert bench.ledger.oracle().balanced
    events = [entry["event"] for entry in bench.audit.entries() if entry]
    assert events.count("discarded") == int(goes)


@pytest.mark.parametrize("state", ["trying", "unreachable", "undeliverable", "awaiting-commitment"])
def test_a_note_that_did_not_arrive_keeps_its_series(
    bench: Bench, make_flair_series: Make, state: str
) -> None:
    job = ended(bench, make_flair_series, 1, Outcome.NOT_ANALYSED)
    bench.ledger.record_delivery(job.job_id, "pacs", "2.25.1", state)
    assert bench.intake.discard_old(in_days(400)) == 0
    bench.ledger.record_delivery(job.job_id, "pacs", "2.25.1", "confirmed")
    bench.ledger.record_delivery(job.job_id, "gone-from-the-settings", "2.25.1", state)
    assert bench.intake.discard_old(in_days(400)) == 1


def test_an_open_commitment_keeps_its_series_for_a_quarter_of_a_year(
    bench: Bench, make_flair_series: Make
) -> None:
    job = ended(bench, make_flair_series, 1, Outcome.DELIVERED)
    bench.ledger.record_delivery(job.job_id, "pacs", "2.25.1", "confirmed")
    bench.ledger.ask_for_commitment("2.25.9", job.job_id, "pacs", ["2.25.1"])
    assert bench.intake.discard_old(in_days(89)) == 0
    assert list(bench.intake._discardable(in_days(91), timedelta(days=14)))
    bench.ledger.record_commitment("2.25.9", ["2.25.1"], {})
    assert bench.intake.discard_old(in_days(15)) == 1


def test_while_the_disk_is_short_the_oldest_go_first_and_no_more_than_needed(
    bench: Bench, make_flair_series: Make, free: list[int]
) -> None:
    for number in (1, 2, 3):
        ended(bench, make_flair_series, number, Outcome.DELIVERED)
    ended(bench, make_flair_series, 4, Outcome.FAILED)
    bench.intake.reserve = Reserve(
        bench.spool.folder, NodeSettings(reserve_mb=500, reserve_margin_mb=0)
    )
    assert bench.intake.make_room(in_days(2)) == 0, "there is room"
    free[0] = 400
    assert bench.intake.make_room(in_days(0.9)) == 0, "none is a day old"
    plain = bench.intake._discard

    def discard(row: Any) -> bool:  # noqa: ANN401  # each series frees 60 MB
        free[0] += 60
        return bool(plain(row))

    bench.intake._discard = discard
    assert bench.intake.make_room(in_days(1.1)) == 2
    assert images(bench) == {"1.2.3", "1.2.4"}
    assert not bench.intake.reserve.short


def test_images_that_were_sent_again_after_their_time_are_discarded_again(
    bench: Bench, make_flair_series: Make
) -> None:
    flair = make_flair_series(study_instance_uid="1.2.1", series_instance_uid="1.3.1")
    (job,) = bench.close(*flair.paths)
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    assert bench.intake.discard_old(in_days(15)) == 1
    bench.close(*flair.paths)
    assert images(bench) == {"1.2.1"}
    assert bench.intake.discard_old(in_days(13)) == 0
    assert bench.intake.discard_old(in_days(15)) == 1
    assert images(bench) == set()
    assert bench.intake.discard_old(in_days(15)) == 0


@pytest.mark.parametrize("short", [False, True])
def test_results_go_with_their_time_or_earlier_when_the_disk_is_short(
    tmp_path: Path, short: bool
) -> None:
    site = Site(tmp_path, 1)
    site.settings = site.settings.model_copy(
        update={"retention": RetentionSettings(keep_days=14, least_days=2)}
    )
    site.timers._settings = site.settings
    site.short[0] = short
    old = [site.job(number, state, days_ago=15) for number, state in enumerate(SITE_ENDS, 1)]
    young = [site.job(number, state, days_ago=3) for number, state in enumerate(SITE_ENDS, 11)]
    youngest = site.job(21, SeriesState.DELIVERED, days_ago=1)
    owed = site.job(22, SeriesState.NOT_ANALYSED, days_ago=400)
    site.ledger.record_delivery(owed.job_id, "pacs", "2.25.1", "unreachable")
    site.timers.expire()
    site.timers.make_room()
    there = {
        job.job_id for job in (*old, *young, youngest, owed) if site.results.of(job.job_id).exists()
    }
    kept = {youngest.job_id, owed.job_id} | (set() if short else {job.job_id for job in young})
    assert there == kept
    site.ledger.close()


SITE_ENDS = (SeriesState.DELIVERED, SeriesState.SKIPPED, SeriesState.NOT_ANALYSED)
