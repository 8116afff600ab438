"""Two objects with one SOP Instance UID, until a person says which one counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from dicom.errors import Outcome
from node.ledger import Job, RetryRefusedError, SeriesState
from node.rebuild import rebuild
from node.resolve import Keep, resolve

Bench = Any  # IntakeBench of conftest.py
Flair = Any  # FlairSeries of tests/conftest.py
Make = Callable[..., Any]


@pytest.fixture
def flair(make_flair_series: Make) -> Flair:
    return make_flair_series()


@pytest.fixture
def first(bench: Bench, flair: Flair) -> Job:
    """The job of the series as it was sent first."""
    (job,) = bench.close(*flair.paths)
    return job  # type: ignore[no-any-return]


def changed(flair: Flair, folder: Path, value: int = 7) -> Path:
    """The first slice once more, with other pixels."""
    other = dcmread(flair.paths[0])
    other.PixelData = bytes([value]) * len(other.PixelData)
    path = folder / f"changed{value}.dcm"
    other.save_as(path)
    return path


def end(bench: Bench, keep: Keep, digest: str = "") -> list[dict[str, Any]]:
    return resolve(
        bench.settings, bench.ledger, bench.only_series(), keep=keep, digest=digest, user="meier"
    )


def pixels(bench: Bench, flair: Flair) -> int:
    """The value of every byte of the first slice, as it lies in the spool."""
    uid = dcmread(flair.paths[0]).SOPInstanceUID
    row = bench.ledger.instance(uid)
    return int(dcmread(bench.spool.folder / row.path).PixelData[0])


@pytest.fixture
def conflict(bench: Bench, flair: Flair, first: Job, tmp_path: Path) -> Path:
    path = changed(flair, tmp_path)
    bench.send(path)
    assert bench.only_series().reason == "conflicting-instance"
    bench.ledger.set_state(first.job_id, Outcome.SKIPPED, "superseded")  # as the workflow does
    return path


def test_keeping_the_stored_object_goes_on_with_what_was_there(
    bench: Bench, first: Job, conflict: Path
) -> None:
    (told,) = end(bench, "stored")
    assert told["kept"] != told["deleted"][0]
    assert list(bench.spool.conflicts()) == []
    bench.pass_time(0.0)
    (again,) = bench.pass_time(30.0)
    assert again.job_id == first.job_id, "the same instances: the same work"
    assert again.workflow_id != first.workflow_id
    assert bench.only_series().state is SeriesState.QUEUED
    assert not bench.ledger.is_superseded(first.job_id)


def test_keeping_the_received_object_makes_a_new_revision_that_replaces_the_old(
    bench: Bench,
    flair: Flair,
    first: Job,
    conflict: Path,
) -> None:
    (told,) = end(bench, "received")
    assert pixels(bench, flair) == 7
    assert list(bench.spool.conflicts()) == []
    assert bench.ledger.oracle().balanced
    bench.pass_time(0.0)
    (second,) = bench.pass_time(30.0)
    assert second.job_id != first.job_id
    assert second.predecessor == first.job_id
    assert bench.ledger.is_superseded(first.job_id), "a result of the old pixels is never sent"
    row = bench.ledger.instance(told["sop_instance_uid"])
    assert row.digest == told["kept"]
    assert bench.send(conflict) == [0], "and what was received is now what is known"
    assert bench.only_series().state is SeriesState.QUEUED


def test_the_decision_is_in_the_audit_trail_with_both_digests(
    bench: Bench, first: Job, conflict: Path
) -> None:
    (told,) = end(bench, "received")
    entry = [one for one in bench.audit.entries() if one][-1]
    assert (entry["event"], entry["what"], entry["user"]) == ("operator", "resolve", "meier")
    assert (entry["keep"], entry["kept"]) == ("received", told["kept"])
    assert entry["deleted"] == told["deleted"][0]
    assert bench.audit.verify().intact


def test_of_several_later_objects_one_has_to_be_named(
    bench: Bench,
    flair: Flair,
    first: Job,
    conflict: Path,
    tmp_path: Path,
) -> None:
    bench.send(changed(flair, tmp_path, value=9))
    with pytest.raises(RetryRefusedError, match="--digest"):
        end(bench, "received")
    assert len(list(bench.spool.conflicts())) == 2
    assert bench.only_series().reason == "conflicting-instance"
    nine = next(
        one.digest
        for one in bench.ledger.conflicts_of(flair.series_instance_uid)
        if dcmread(bench.spool.folder / one.path).PixelData[0] == 9
    )
    end(bench, "received", digest=nine[:12])
    assert pixels(bench, flair) == 9
    assert list(bench.spool.conflicts()) == []


def test_a_resolving_that_was_cut_short_is_finished_by_the_next(
    bench: Bench,
    flair: Flair,
    first: Job,
    conflict: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed when the file was in its place and the ledger did not know of it yet."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.ledger, "resolve_conflict", killed)
        with pytest.raises(KeyboardInterrupt):
            end(bench, "received")
    assert bench.only_series().reason == "conflicting-instance"
    assert len(list(bench.spool.conflicts())) == 1
    end(bench, "received")
    assert pixels(bench, flair) == 7
    assert bench.ledger.oracle().balanced


def test_a_rebuilt_ledger_takes_what_was_resolved_for_resolved(
    bench: Bench,
    make_bench: Make,
    flair: Flair,
    first: Job,
    conflict: Path,
) -> None:
    (aside,) = bench.spool.conflicts()
    content = (bench.spool.folder / aside).read_bytes()
    end(bench, "received")
    (bench.spool.folder / aside).write_bytes(content)  # killed before it was deleted
    bench.ledger.close()
    rebuild(bench.settings.node.data_dir)
    again: Bench = make_bench()
    assert again.only_series().state is SeriesState.RECEIVING
    assert again.ledger.counts()["conflicts"] == 0


def test_one_object_in_two_series_goes_where_it_is_kept(
    bench: Bench, make_flair_series: Make, tmp_path: Path
) -> None:
    flair = make_flair_series()
    bench.close(*flair.paths)
    other = dcmread(flair.paths[0])
    other.SeriesInstanceUID = "1.2.3.9"
    other.save_as(tmp_path / "moved.dcm")
    bench.send(tmp_path / "moved.dcm")
    reasons = {row.series_instance_uid: row.reason for row in bench.ledger.all_series()}
    assert set(reasons.values()) == {"conflicting-instance"}
    row = bench.ledger.series("1.2.3.9")
    resolve(bench.settings, bench.ledger, row, keep="received", user="meier")
    assert {r.series_instance_uid: r.instances for r in bench.ledger.all_series()} == {
        flair.series_instance_uid: 9,
        "1.2.3.9": 1,
    }
    assert all(r.state is SeriesState.RECEIVING for r in bench.ledger.all_series())
    assert bench.ledger.oracle().balanced
    assert len(list(bench.spool.files())) == 10


def test_without_a_conflict_there_is_nothing_to_resolve(bench: Bench, first: Job) -> None:
    with pytest.raises(RetryRefusedError, match="has no conflict"):
        end(bench, "stored")


def test_a_damaged_object_is_never_put_in_the_place_of_the_stored_one(
    bench: Bench,
    flair: Flair,
    first: Job,
    conflict: Path,
) -> None:
    (aside,) = bench.spool.conflicts()
    file = bench.spool.folder / aside
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RetryRefusedError, match=r"cannot be read|is not what was received"):
        end(bench, "received")
    assert pixels(bench, flair) != 7
    assert bench.only_series().reason == "conflicting-instance"
