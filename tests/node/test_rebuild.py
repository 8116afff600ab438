from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import Destination, Peer
from dicom.errors import Outcome
from node.ledger import Job, Ledger, LedgerVersionError, SeriesState
from node.outcome import ResultsFolder
from node.rebuild import open_ledger, rebuild

Bench = Any  # IntakeBench of conftest.py
Make = Callable[..., Any]


def finish(
    bench: Bench, job: Job, outcome: Outcome, reason: str = "", objects: Sequence[object] = ()
) -> None:
    """Leave the result folder that a worker leaves."""
    folder = bench.settings.node.data_dir / "results" / job.job_id
    folder.mkdir(parents=True)
    content = {
        "job": bench.ledger.job_record(job.job_id),
        "workflow_id": job.workflow_id,
        "outcome": outcome.value,
        "reason": reason,
        "explanation": "",
        "research": True,
        "objects": list(objects),
    }
    (folder / "outcome.json").write_text(json.dumps(content))


def rows(ledger: Ledger) -> list[tuple[str, str, str, str]]:
    """What a ledger says, times aside."""
    return [
        (row.series_instance_uid, row.state.value, row.reason, row.job_id)
        for row in sorted(ledger.all_series(), key=lambda row: row.series_instance_uid)
    ]


def test_a_lost_ledger_is_made_again_from_spool_and_results(
    make_bench: Make, make_flair_series: Make
) -> None:
    bench: Bench = make_bench()
    good = make_flair_series(patient_id="GOOD")
    blank = make_flair_series(patient_id="BLANK")
    t1 = make_flair_series(patient_id="T1", overrides={"EchoTime": "8", "RepetitionTime": "500"})
    jobs = {
        job.series_instance_uid: job for job in bench.close(*good.paths, *blank.paths, *t1.paths)
    }
    delivered, refused = jobs[good.series_instance_uid], jobs[blank.series_instance_uid]
    finish(bench, delivered, Outcome.ANALYSED)
    bench.ledger.set_state(delivered.job_id, Outcome.DELIVERED)
    finish(bench, refused, Outcome.NOT_ANALYSED, "blank-image")
    bench.ledger.set_state(refused.job_id, Outcome.NOT_ANALYSED, "blank-image")
    before = rows(bench.ledger)
    bench.ledger.close()

    found = rebuild(bench.settings.node.data_dir)
    assert (found.instances, found.jobs, found.lost_jobs) == (30, 2, 0)
    again: Bench = make_bench()
    assert again.ledger.oracle().balanced
    assert again.ledger.job(refused.job_id).state is SeriesState.NOT_ANALYSED
    # The result is owed again: the engine looks for it at the destination and finds it there.
    owed = again.ledger.job(delivered.job_id)
    assert (owed.state, owed.workflow_id) == (SeriesState.QUEUED, delivered.workflow_id)
    assert again.ledger.paths_of(owed.job_id) == bench_paths(bench, good)
    again.ledger.set_state(owed.job_id, Outcome.DELIVERED)
    again.intake.reconcile()
    again.pass_time(0.0)
    assert again.pass_time(30.0) == []
    assert rows(again.ledger) == before


def test_a_note_of_a_lost_ledger_is_owed_again_and_still_known_for_one(
    make_bench: Make, make_flair_series: Make
) -> None:
    peers = (Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104),)
    site = {"peers": peers, "destinations": (Destination(peer="pacs"),)}
    bench: Bench = make_bench(**site)
    (note,) = bench.close(*make_flair_series(slices=12, drop=(5,)).paths)
    file = {"kind": "note", "sop_instance_uid": "2.25.7", "file": "note.dcm"}
    finish(bench, note, Outcome.NOT_ANALYSED, "missing-slice", objects=[file])
    refusal = bench.ledger.refusal_of(note.job_id)
    bench.ledger.close()

    rebuild(bench.settings.node.data_dir)
    again: Bench = make_bench(**site)
    owed = again.ledger.job(note.job_id)
    assert (owed.state, owed.reason) == (SeriesState.DELIVERING, "missing-slice")
    assert again.ledger.refusal_of(note.job_id) == refusal
    again.intake.reconcile()
    assert [job.job_id for job in again.enqueued] == [note.job_id]
    again.pass_time(0.0)
    assert [job.job_id for job in again.pass_time(30.0)] == [note.job_id]  # no second note


def bench_paths(bench: Bench, flair: Any) -> list[Path]:  # noqa: ANN401  # FlairSeries
    folder = bench.spool.folder / flair.study_instance_uid / flair.series_instance_uid
    return sorted(folder.iterdir())


def test_a_conflict_survives_a_lost_ledger(
    make_bench: Make, make_flair_series: Make, tmp_path: Path
) -> None:
    bench: Bench = make_bench()
    flair = make_flair_series()
    bench.send(*flair.paths)
    other = dcmread(flair.paths[0])
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(tmp_path / "other.dcm")
    bench.send(tmp_path / "other.dcm")
    bench.ledger.close()
    rebuild(bench.settings.node.data_dir)
    again: Bench = make_bench()
    assert again.only_series().reason == "conflicting-instance"
    assert again.ledger.counts()["conflicts"] == 1


@pytest.mark.parametrize("damage", ["garbage", "torn", "empty"])
def test_a_damaged_ledger_is_rebuilt_when_it_is_opened(
    make_bench: Make, make_flair_series: Make, damage: str
) -> None:
    bench: Bench = make_bench()
    bench.send(*make_flair_series().paths)
    data_dir = bench.settings.node.data_dir
    bench.ledger.close()
    path = data_dir / "intake.sqlite"
    content = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"\x7f" * len(content))
    elif damage == "torn":
        path.write_bytes(content[:4096] + b"\0" * 4096 + content[8192:])
    else:
        path.write_bytes(b"")
    with open_ledger(data_dir) as ledger:
        if damage == "empty":  # SQLite takes an empty file for a new database
            assert ledger.counts()["instances"] == 0
        else:
            assert ledger.counts()["instances"] == 10
            assert len(list(data_dir.glob("*.damaged.sqlite"))) == 1
    restarted: Bench = make_bench()
    restarted.intake.reconcile()
    assert restarted.only_series().instances == 10


def test_a_sound_ledger_is_left_as_it_is(make_bench: Make, make_flair_series: Make) -> None:
    bench: Bench = make_bench()
    (job,) = bench.close(*make_flair_series().paths)
    with open_ledger(bench.settings.node.data_dir) as ledger:
        assert ledger.job(job.job_id) == job
    assert not list(bench.settings.node.data_dir.glob("*.damaged.sqlite"))


def test_a_ledger_of_another_version_is_not_taken_for_damaged(tmp_path: Path) -> None:
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        ledger._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerVersionError):
        open_ledger(tmp_path)


def test_a_result_without_its_images_stays_on_disk_and_is_counted(
    make_bench: Make, make_flair_series: Make
) -> None:
    bench: Bench = make_bench()
    (job,) = bench.close(*make_flair_series().paths)
    finish(bench, job, Outcome.ANALYSED)
    for path in bench.ledger.paths_of(job.job_id):
        path.unlink()
    bench.ledger.close()
    found = rebuild(bench.settings.node.data_dir)
    assert (found.instances, found.jobs, found.lost_jobs) == (0, 0, 1)
    assert (bench.settings.node.data_dir / "results" / job.job_id / "outcome.json").is_file()


def test_what_was_recalled_is_not_owed_again(make_bench: Make, make_flair_series: Make) -> None:
    bench: Bench = make_bench()
    (job,) = bench.close(*make_flair_series().paths)
    finish(bench, job, Outcome.ANALYSED)
    data_dir = bench.settings.node.data_dir
    ResultsFolder(data_dir).mark_recalled(job.job_id)
    bench.ledger.close()
    rebuild(data_dir)
    with Ledger(data_dir / "intake.sqlite") as ledger:
        found = ledger.job(job.job_id)
    assert (found.state, found.reason) == (SeriesState.SKIPPED, "recalled")
