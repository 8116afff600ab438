"""What the timers look at; that they tick is seen in tests/integration/test_workflow.py."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from config.settings import Destination, NodeSettings, Peer, RetentionSettings, Settings
from dicom.errors import Outcome
from dicom.network.embedded_archive import EmbeddedArchive
from node.archive import LOOPBACK, free_port
from node.ledger import Job, Ledger, ReceivedInstance, SeriesDecision, SeriesState
from node.outcome import JobOutcome, Order, ResultsFolder
from node.timers import Timers


class Site:
    """Timers over a real ledger and real folders; the engine and the intake only note calls."""

    def __init__(self, folder: Path, port: int) -> None:
        self.ledger = Ledger(folder / "intake.sqlite")
        self.results = ResultsFolder(folder)
        self.calls: list[tuple[str, object]] = []
        self.held: dict[str, list[str]] = {}
        self.settings = Settings(
            node=NodeSettings(data_dir=folder),
            peers=(
                Peer(name="pacs", ae_title="PACS", host=LOOPBACK, port=port),
                Peer(name="scanner", ae_title="SCANNER", host=LOOPBACK, port=1),
            ),
            destinations=(Destination(peer="pacs", research=True),),
            retention=RetentionSettings(keep_days=14),
        )
        engine: Any = SimpleNamespace(
            forget_finished_before=lambda epoch_s: self.calls.append(("history", epoch_s)),
            checkpoint=lambda: self.calls.append(("checkpoint", "engine")),
        )
        casework: Any = SimpleNamespace(
            due_for=lambda: self.held,
            deliver_again=lambda job, peer: self.calls.append((job, peer)),
            put_off=lambda job, peer: self.calls.append((f"not {job}", peer)),
            hurry=lambda peer: self.calls.append(("hurry", peer)),
        )
        self.short = [False]
        intake: Any = SimpleNamespace(
            discard_old=lambda: self.calls.append(("discard", "")),
            make_room=lambda: self.calls.append(("make room", "")),
            reserve=SimpleNamespace(look=lambda: self.short[0]),
        )
        self.timers = Timers(self.settings, self.ledger, self.results, engine, casework, intake)

    def job(self, number: int, state: SeriesState, days_ago: float = 0.0) -> Job:
        series = f"1.2.{number}"
        path = Path("1.2", series, f"{series}.1.dcm")
        self.ledger.record(ReceivedInstance(series, series, f"{series}.1", "1.2.3", "d", path))
        decision = SeriesDecision(series, chosen=True, outcome=Outcome.ANALYSED, reason="selected")
        (job,) = self.ledger.close_study(series, [decision], "a" * 64, "b" * 64)
        self.ledger.set_state(job.job_id, state)
        with closing(sqlite3.connect(self.ledger.path)) as connection:
            connection.execute(
                "UPDATE jobs SET updated_at ="
                " strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', ?) WHERE job_id = ?",
                (f"-{days_ago} days", job.job_id),
            )
            connection.commit()
        self.results.begin(job.job_id)
        order = Order(job.job_id, {}, ())
        self.results.write_order(job.job_id, order)
        ended = JobOutcome(Outcome.ANALYSED, "", "", job.job_id, research=True, objects=())
        self.results.finish(job.job_id, ended, order, None)
        return self.ledger.job(job.job_id)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, free_port())
    yield site
    site.ledger.close()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines  # type: ignore[misc]


def test_only_results_at_a_good_end_for_long_are_deleted(site: Site) -> None:
    """What is held or failed waits for a person, however long."""
    good = (SeriesState.DELIVERED, SeriesState.SKIPPED, SeriesState.NOT_ANALYSED)
    old = [site.job(number, state, days_ago=15) for number, state in enumerate(good)]
    young = site.job(10, SeriesState.DELIVERED, days_ago=13)
    others = [
        site.job(number, state, days_ago=400)
        for number, state in enumerate(SeriesState, start=20)
        if state not in (*good, SeriesState.RECEIVING)
    ]
    site.timers.expire()
    assert not any(site.results.of(job.job_id).exists() for job in old)
    assert all(site.results.of(job.job_id).exists() for job in (young, *others))
    assert [name for name, _ in site.calls] == ["discard", "history"]


def test_of_a_result_that_is_deleted_the_numbers_of_its_month_stay(site: Site) -> None:
    job = site.job(1, SeriesState.DELIVERED, days_ago=15)
    site.results.begin(job.job_id)
    done = JobOutcome(Outcome.ANALYSED, "", "", "w", research=True, objects=())
    report = {
        "series_instance_uid": "1.2.1",
        "findings": {"lesion_count": 3, "total_volume_ml": 1.5, "lesions": [{"label": 1}]},
        "quality": {"verdict": "review", "flags": [{"code": "motion", "message": "long"}]},
        "acquisition": {"slices": 22},
    }
    order = Order("w", site.ledger.job_record(job.job_id), ())
    site.results.finish(job.job_id, done, order, report)
    site.timers.expire()
    assert not site.results.of(job.job_id).exists()
    text = (site.results.data_dir / "history" / f"{job.job_id}.json").read_text()
    kept = json.loads(text)
    assert "1.2.1" not in text
    assert kept["job"]["created_at"] == job.created_at.isoformat()
    assert kept["report"] == {
        "findings": {"lesion_count": 3, "total_volume_ml": 1.5},
        "quality": {"verdict": "review", "flags": [{"code": "motion"}]},
        "acquisition": {"slices": 22},
    }


@pytest.mark.parametrize(
    ("state", "days", "alarms"),
    [
        (SeriesState.RUNNING, 0.02, 0),  # 29 minutes of 15 allowed, three times over
        (SeriesState.RUNNING, 0.04, 1),  # 58 minutes
        (SeriesState.DELIVERING, 1.0, 1),
        (SeriesState.QUEUED, 0.1, 0),
        (SeriesState.QUEUED, 1.0, 1),
        (SeriesState.HELD, 30.0, 0),
    ],
)
def test_work_that_does_not_move_on_is_told_of_once(
    site: Site, logged: list[dict[str, Any]], state: SeriesState, days: float, alarms: int
) -> None:
    job = site.job(1, state, days_ago=days)
    site.timers.alarm_stuck()
    site.timers.alarm_stuck()
    found = [line["job"] for line in logged if line["event"] == "case.stuck"]
    assert found == [job.job_id] * alarms


def test_to_a_peer_that_does_not_answer_only_the_oldest_result_is_tried(site: Site) -> None:
    site.held = {"pacs": ["job-1", "job-2"]}
    site.timers.deliver_due()  # nobody has asked it yet
    assert site.calls == [("job-1", "pacs"), ("job-2", "pacs")]
    site.calls.clear()
    site.timers.heartbeat()
    assert site.timers.answering == {"pacs": False}
    site.timers.deliver_due()
    assert site.calls == [("job-1", "pacs"), ("not job-2", "pacs")]


def test_a_peer_that_answers_again_ends_every_pause_for_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.timers.heartbeat()
    with EmbeddedArchive(tmp_path / "pacs", "PACS", ["FLAIRNODE"]) as archive:
        back = Peer(name="pacs", ae_title="PACS", host=LOOPBACK, port=archive.dicom_port)
        changed = site.settings.model_copy(update={"peers": (back,)})
        monkeypatch.setattr(site.timers, "_settings", changed)
        site.timers.heartbeat()
        site.timers.heartbeat()  # it is hurried once, not at every heartbeat
    assert site.calls == [("hurry", "pacs")]
    assert site.timers.answering == {"pacs": True}


def test_a_scanner_that_only_sends_is_not_asked_whether_it_is_there(site: Site) -> None:
    site.timers.heartbeat()
    assert set(site.timers.answering) == {"pacs"}


def test_the_write_ahead_logs_are_folded_in(site: Site) -> None:
    site.job(1, SeriesState.DELIVERED)
    log = site.ledger.path.with_name(site.ledger.path.name + "-wal")
    assert log.stat().st_size > 0
    site.timers.checkpoint()
    assert log.stat().st_size == 0
    assert site.calls == [("checkpoint", "engine")]
