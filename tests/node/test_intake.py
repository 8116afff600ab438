from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from config.settings import Destination, Peer, SecuritySettings, SelectionSettings, Settings
from dicom.errors import Outcome
from dicom.network.scp import OUT_OF_RESOURCES, SUCCESS, Refusal
from dicom.series import Study
from node import intake as intake_module
from node.completeness import PeerHolding
from node.intake import admission
from node.ledger import Counts, ReceivedInstance, Recorded, SeriesState
from pipeline.selection import Selection

Bench = Any  # IntakeBench of conftest.py
Make = Callable[..., Any]

LEAST = 8  # SelectionSettings.minimum_slices


def changed(path: Path, folder: Path, **attributes: object) -> Path:
    """A copy with other attributes, everything else byte for byte alike."""
    dataset = dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    folder.mkdir(exist_ok=True)
    copy = folder / f"{dataset.SOPInstanceUID}-{len(list(folder.iterdir()))}.dcm"
    dataset.save_as(copy)
    return copy


# --- what 0x0000 means ---------------------------------------------------------------------------


def test_an_acknowledged_object_lies_on_disk_as_it_was_sent(
    bench: Bench, make_flair_series: Make
) -> None:
    flair = make_flair_series()
    assert bench.send(flair.paths[0]) == [SUCCESS]
    (stored,) = bench.spool.files()
    sent = dcmread(flair.paths[0])
    assert stored == Path(
        sent.StudyInstanceUID, sent.SeriesInstanceUID, f"{sent.SOPInstanceUID}.dcm"
    )
    kept = bench.spool.folder / stored
    assert kept.read_bytes().endswith(flair.paths[0].read_bytes()[-len(sent.PixelData) :])
    assert dcmread(kept) == sent
    assert dcmread(kept).file_meta.SourceApplicationEntityTitle == "PACS"
    assert bench.only_series().calling_ae_title == "PACS"


def test_success_comes_after_a_durable_name_write_fsync_rename_and_row(
    bench: Bench, make_flair_series: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, second, *_ = make_flair_series().paths
    events: list[str] = []
    real_fsync, real_rename, real_record = os.fsync, Path.rename, bench.ledger.record

    def fsync(descriptor: int) -> None:
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("fsync directory" if directory else "fsync file")
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_rename(self, target)

    def record(instance: ReceivedInstance) -> Recorded:
        recorded = real_record(instance)
        events.append("row")
        return recorded

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(bench.ledger, "record", record)
    assert bench.send(path) == [SUCCESS]
    assert events[-4:] == ["fsync directory", "fsync file", "rename", "row"]
    events.clear()
    assert bench.send(second) == [SUCCESS]  # into a slot that is there already
    assert events == ["fsync file", "rename", "row"]


def test_an_image_whose_final_name_a_power_cut_took_is_taken_up_from_its_slot(
    make_bench: Make, make_flair_series: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    flair = make_flair_series()
    before = make_bench()
    assert before.send(flair.paths[0]) == [SUCCESS]
    with monkeypatch.context() as patch:
        # The rename stays in the memory of a machine that loses its power.
        patch.setattr(Path, "rename", lambda self, _: self)
        assert before.send(flair.paths[1]) == [SUCCESS]
    after = make_bench()
    after.intake.reconcile()
    assert after.ledger.oracle().balanced
    assert len(list(after.spool.files())) == 2
    assert after.spool.left_in_slots() == []


def test_what_is_not_whole_in_a_slot_is_no_image(bench: Bench, make_flair_series: Make) -> None:
    assert bench.send(make_flair_series().paths[0]) == [SUCCESS]
    (stored,) = bench.spool.files()
    whole = (bench.spool.folder / stored).read_bytes()
    for name, content in (("short", whole[:-7]), ("zeros", bytes(len(whole))), ("empty", b"")):
        (bench.spool.slots / f"{name}.slot").write_bytes(content)
    bench.intake.reconcile()
    assert bench.spool.left_in_slots() == []
    assert bench.ledger.oracle().received == 1


def test_a_row_that_a_power_cut_took_is_made_again_from_the_file(
    bench: Bench, make_flair_series: Make
) -> None:
    assert bench.send(*make_flair_series().paths[:2]) == [SUCCESS, SUCCESS]
    with bench.ledger._transaction() as db:
        db.execute("DELETE FROM instances WHERE rowid = (SELECT MAX(rowid) FROM instances)")
    bench.intake.reconcile()
    assert bench.ledger.oracle().received == 2
    assert bench.ledger.oracle().balanced


@pytest.mark.parametrize("broken", ["fsync", "record"])
def test_a_failing_disk_or_ledger_is_told_to_the_sender(
    bench: Bench, make_flair_series: Make, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        if broken == "fsync":
            raise OSError(28, "No space left on device")
        raise sqlite3.OperationalError("database or disk is full")

    path = make_flair_series().paths[0]
    with monkeypatch.context() as patch:
        if broken == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(bench.ledger, "record", fail)
        assert bench.send(path) == [OUT_OF_RESOURCES]
    assert bench.ledger.counts()["instances"] == 0
    assert not list(bench.spool.folder.rglob("*.part"))
    assert bench.send(path) == [SUCCESS]
    assert bench.ledger.oracle().balanced


def test_a_disk_below_its_reserve_refuses_before_writing(
    make_bench: Make, make_flair_series: Make
) -> None:
    bench = make_bench(reserve_mb=10**9)
    assert bench.send(make_flair_series().paths[0]) == [OUT_OF_RESOURCES]
    assert not list(bench.spool.files())
    assert bench.ledger.counts()["instances"] == 0


# --- objects that cannot be kept ------------------------------------------------------------------


@pytest.mark.parametrize("uid", ["../../../etc/x", "..", "1/2", "1.2.", "", "1." + "2" * 64])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_uid_that_is_none_never_becomes_a_path(
    bench: Bench,
    make_flair_series: Make,
    tmp_path: Path,
    sent: Callable[..., Any],
    keyword: str,
    uid: str,
) -> None:
    path = make_flair_series().paths[0]
    received = sent(path)
    dataset = dcmread(path)
    del dataset[keyword]
    raw = Dataset()
    raw.add_new(keyword, "ST", uid)  # ST, so that pydicom writes what it would refuse as UI
    dataset.add(raw[keyword])
    dataset.save_as(tmp_path / "odd.dcm")
    odd = replace(sent(tmp_path / "odd.dcm"), sop_instance_uid=received.sop_instance_uid)
    assert bench.intake.on_store(odd) & 0xF000 == 0xC000
    assert not list(bench.spool.files())
    assert not list(bench.spool.folder.rglob("*.dcm"))


def test_a_dataset_that_is_not_what_was_announced_is_refused(
    bench: Bench, make_flair_series: Make, sent: Callable[..., Any]
) -> None:
    received = replace(sent(make_flair_series().paths[0]), sop_instance_uid="1.2.3")
    assert bench.intake.on_store(received) & 0xFF00 == 0xA900
    assert not list(bench.spool.files())


@pytest.mark.parametrize("length", [0, 1, 7, 100])
def test_bytes_that_are_no_dataset_are_refused(
    bench: Bench, make_flair_series: Make, sent: Callable[..., Any], length: int
) -> None:
    received = sent(make_flair_series().paths[0])
    for dataset in (received.dataset[:length], os.urandom(length)):
        assert bench.intake.on_store(replace(received, dataset=dataset)) >= 0xA900
    assert bench.ledger.counts()["instances"] == 0


# --- the end of a study ---------------------------------------------------------------------------


def test_a_study_is_closed_after_the_quiet_period_not_before(
    bench: Bench, make_flair_series: Make
) -> None:
    bench.send(*make_flair_series().paths)
    assert bench.pass_time(29.9) == []
    bench.send(make_flair_series().paths[0])  # a copy, but the sender is still at it
    assert bench.pass_time(29.9) == []
    (job,) = bench.pass_time(0.2)
    assert len(bench.ledger.paths_of(job.job_id)) == 10
    assert bench.enqueued == [job]
    assert bench.only_series().state is SeriesState.QUEUED
    assert bench.only_series().score is not None


def test_every_series_of_a_study_has_an_outcome_a_reason_and_a_score(
    bench: Bench, make_flair_series: Make
) -> None:
    flair = make_flair_series()
    study = {"study_instance_uid": flair.study_instance_uid}
    t1 = make_flair_series(
        **study,
        series_instance_uid=generate_uid(),
        overrides={
            "EchoTime": "8",
            "RepetitionTime": "500",
            "InversionTime": None,
            "ScanningSequence": "SE",
            "SeriesDescription": "t1",
        },
    )
    secondary = changed(
        flair.paths[0],
        flair.folder.parent / "sc",
        SOPInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        Modality="OT",
    )
    dataset = dcmread(secondary)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(secondary)
    (job,) = bench.close(*flair.paths, *t1.paths, secondary)
    assert job.series_instance_uid == flair.series_instance_uid
    rows = {row.series_instance_uid: row for row in bench.ledger.series_of(job.study_instance_uid)}
    assert len(rows) == 3
    assert rows[t1.series_instance_uid].state is SeriesState.SKIPPED
    for row in rows.values():
        if row.series_instance_uid != flair.series_instance_uid:
            assert row.reason
            assert row.explanation
            assert row.score is not None


def test_an_object_of_an_unknown_kind_gets_a_row_and_is_skipped(
    bench: Bench, tmp_path: Path, make_flair_series: Make
) -> None:
    strange = changed(
        make_flair_series().paths[0], tmp_path / "strange", SOPClassUID="1.3.12.2.1107.5.9.1"
    )
    dataset = dcmread(strange)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(strange)
    assert bench.close(strange) == []
    assert (bench.only_series().state, bench.only_series().reason) == (
        SeriesState.SKIPPED,
        "not-image",
    )


def test_sending_everything_again_adds_nothing(bench: Bench, make_flair_series: Make) -> None:
    flair = make_flair_series()
    (job,) = bench.close(*flair.paths)
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    before = bench.ledger.counts()
    assert bench.close(*flair.paths) == []
    assert bench.ledger.counts() == before
    assert len(list(bench.spool.files())) == 10


def test_another_encoding_of_the_same_object_is_the_same_object(
    bench: Bench, make_flair_series: Make, tmp_path: Path
) -> None:
    path = make_flair_series(transfer_syntax_uid=ExplicitVRLittleEndian).paths[0]
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "implicit.dcm", implicit_vr=True, little_endian=True)
    assert bench.send(path, tmp_path / "implicit.dcm") == [SUCCESS, SUCCESS]
    assert bench.only_series().state is SeriesState.RECEIVING
    assert bench.ledger.counts()["conflicts"] == 0
    assert not list(bench.spool.conflicts())


def test_an_instance_with_other_pixels_holds_its_series(
    bench: Bench, make_flair_series: Make, tmp_path: Path
) -> None:
    flair = make_flair_series()
    pixels = bytes(len(dcmread(flair.paths[0]).PixelData))
    other = changed(flair.paths[0], tmp_path / "other", PixelData=pixels)
    (job,) = bench.close(*flair.paths)
    assert bench.send(other) == [SUCCESS]
    row = bench.only_series()
    assert (row.state, row.reason) == (SeriesState.HELD, "conflicting-instance")
    assert len(list(bench.spool.conflicts())) == 1
    assert bench.ledger.is_superseded(job.job_id)
    bench.ledger.reopen_series(row.series_instance_uid)  # looked at again, it is as it was
    assert bench.pass_time(0.0) == []
    assert bench.pass_time(30.0)[0].job_id == job.job_id
    assert bench.only_series().reason == "conflicting-instance"


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({"PatientID": "ANOTHER"}, "PatientID"),
        ({"PatientBirthDate": "19010203"}, "PatientBirthDate"),
        ({"PatientName": "Other^Spelling", "PatientSex": None}, ""),
    ],
)
def test_a_flair_in_a_study_of_two_patients_is_held(
    bench: Bench,
    make_flair_series: Make,
    tmp_path: Path,
    other: dict[str, str | None],
    differing: str,
) -> None:
    flair = make_flair_series(overrides={"PatientBirthDate": "19700101"})
    strange = changed(
        flair.paths[0],
        tmp_path / "t1",
        SeriesInstanceUID=generate_uid(),
        SOPInstanceUID=generate_uid(),
        EchoTime="12",
        RepetitionTime="600",
        InversionTime=None,
        **other,
    )
    jobs = bench.close(*flair.paths, strange)
    row = bench.ledger.series(flair.series.series_instance_uid)
    assert row is not None
    if differing:
        assert (jobs, row.state, row.reason) == ([], SeriesState.HELD, "mixed-patient")
        assert row.explanation == f"the images of this study differ in {differing}"
    else:
        assert (len(jobs), row.state) == (1, SeriesState.QUEUED)


def test_a_late_slice_makes_a_new_revision(bench: Bench, make_flair_series: Make) -> None:
    flair = make_flair_series(slices=12)
    in_order = sorted(flair.paths, key=lambda path: int(dcmread(path).InstanceNumber))
    (first,) = bench.close(*in_order[:-1])
    bench.ledger.set_state(first.job_id, Outcome.DELIVERED)
    (second,) = bench.close(in_order[-1])
    assert second.predecessor == first.job_id
    assert len(bench.ledger.paths_of(first.job_id)) == 11
    assert len(bench.ledger.paths_of(second.job_id)) == 12


def test_a_stack_with_a_hole_is_not_analysed_until_the_slice_comes(
    bench: Bench, make_flair_series: Make
) -> None:
    flair = make_flair_series(slices=12)
    hole = next(p for p in flair.paths if dcmread(p).SOPInstanceUID == flair.sop_instance_uids[5])
    assert bench.close(*(path for path in flair.paths if path != hole)) == []
    row = bench.only_series()
    assert (row.state, row.reason) == (SeriesState.NOT_ANALYSED, "missing-slice")
    (job,) = bench.close(hole)
    assert len(bench.ledger.paths_of(job.job_id)) == 12


@pytest.fixture
def telling(make_bench: Make) -> Bench:
    """A node with a destination that takes notes, as destinations do by default."""
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104)
    return make_bench(peers=(peer,), destinations=(Destination(peer="pacs"),))


def test_a_refused_flair_is_told_of_and_analysed_once_it_is_complete(
    telling: Bench, make_flair_series: Make
) -> None:
    flair = make_flair_series(slices=12)
    hole = next(p for p in flair.paths if dcmread(p).SOPInstanceUID == flair.sop_instance_uids[5])
    (note,) = telling.close(*(path for path in flair.paths if path != hole))
    refusal = telling.ledger.refusal_of(note.job_id)
    assert refusal["reason"] == note.reason == "missing-slice"
    assert "1 slices missing" in refusal["explanation"]
    assert len(telling.ledger.paths_of(note.job_id)) == 11
    telling.ledger.set_state(note.job_id, Outcome.NOT_ANALYSED, "missing-slice")
    assert telling.close(*(path for path in flair.paths if path != hole)) == []  # sent again
    (job,) = telling.close(hole)
    assert (job.predecessor, telling.ledger.refusal_of(job.job_id)) == (note.job_id, None)
    assert len(telling.ledger.paths_of(job.job_id)) == 12


def test_a_series_that_is_no_flair_is_not_told_of(telling: Bench, make_flair_series: Make) -> None:
    t1 = {"EchoTime": "8", "RepetitionTime": "500", "InversionTime": None}
    assert telling.close(*make_flair_series(overrides=t1).paths) == []
    assert telling.only_series().state is SeriesState.SKIPPED


def test_a_better_flair_after_a_delivered_one_is_held(
    bench: Bench, make_flair_series: Make
) -> None:
    first = make_flair_series()
    (job,) = bench.close(*first.paths)
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    better = make_flair_series(
        slices=40,
        spacing_mm=(1.6, 0.5, 0.75),
        study_instance_uid=first.study_instance_uid,
        series_instance_uid=generate_uid(),
    )
    assert bench.close(*better.paths) == []
    row = bench.ledger.series(better.series_instance_uid)
    assert row is not None
    assert (row.state, row.reason) == (SeriesState.HELD, "later-flair")


def test_a_study_that_trips_over_our_fault_ends_and_others_go_on(
    bench: Bench, make_flair_series: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = make_flair_series(patient_id="BAD"), make_flair_series(patient_id="GOOD")
    real = intake_module.choose

    def choose(study: Study, settings: SelectionSettings) -> Selection:
        if study.series[0].study_instance_uid == bad.study_instance_uid:
            raise ZeroDivisionError
        return real(study, settings)

    monkeypatch.setattr(intake_module, "choose", choose)
    (job,) = bench.close(*bad.paths, *good.paths)
    assert job.study_instance_uid == good.study_instance_uid
    (row,) = bench.ledger.series_of(bad.study_instance_uid)
    assert (row.state, row.reason) == (SeriesState.FAILED, "internal-error")


# --- what the peer holds --------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PeerHolding]:
    """The answers of the peer to come, the last one for ever; the question itself is tested
    in test_completeness.py against a real query provider."""
    answers: list[PeerHolding] = []

    def query(*_: object) -> PeerHolding:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(intake_module, "query_peer", query)
    return answers


def test_a_peer_that_holds_more_is_waited_for(
    bench: Bench, make_flair_series: Make, asked: list[PeerHolding]
) -> None:
    flair = make_flair_series(slices=12)
    in_order = sorted(flair.paths, key=lambda path: int(dcmread(path).InstanceNumber))
    asked.append(PeerHolding({flair.series_instance_uid: 12}))
    assert bench.close(*in_order[:-1]) == []
    assert bench.only_series().state is SeriesState.RECEIVING
    (job,) = bench.close(in_order[-1])
    assert job.counts is Counts.CONFIRMED
    assert bench.only_series().counts is Counts.CONFIRMED


def test_after_the_longest_wait_an_incomplete_series_is_held(
    bench: Bench, make_flair_series: Make, asked: list[PeerHolding]
) -> None:
    flair = make_flair_series()
    asked.append(PeerHolding({flair.series_instance_uid: 24}))
    assert bench.close(*flair.paths) == []
    for _ in range(9):  # 270 s of the 300 s
        assert bench.pass_time(30.0) == []
        assert bench.only_series().state is SeriesState.RECEIVING
    assert bench.pass_time(30.0) == []
    row = bench.only_series()
    assert (row.state, row.reason) == (SeriesState.HELD, "incomplete")
    assert row.explanation == "10 instances arrived, the peer says it holds 24"


def test_too_few_slices_are_waited_for_when_the_peer_holds_more(
    bench: Bench, make_flair_series: Make, asked: list[PeerHolding]
) -> None:
    flair = make_flair_series(slices=12)
    in_order = sorted(flair.paths, key=lambda path: int(dcmread(path).InstanceNumber))
    asked.append(PeerHolding({flair.series_instance_uid: 12}))
    assert bench.close(*in_order[: LEAST - 1]) == []
    assert bench.only_series().state is SeriesState.RECEIVING
    assert len(bench.close(*in_order[LEAST - 1 :])) == 1


def test_a_series_that_is_no_flair_is_not_waited_for(
    bench: Bench, make_flair_series: Make, asked: list[PeerHolding]
) -> None:
    t1 = make_flair_series(
        overrides={"EchoTime": "8", "RepetitionTime": "500", "InversionTime": None}
    )
    asked.append(PeerHolding({t1.series_instance_uid: 99}))
    assert bench.close(*t1.paths) == []
    assert bench.only_series().state is SeriesState.SKIPPED


def test_without_an_answer_the_study_goes_on_unconfirmed(
    bench: Bench, make_flair_series: Make, asked: list[PeerHolding]
) -> None:
    asked.append(PeerHolding(None))
    (job,) = bench.close(*make_flair_series().paths)
    assert job.counts is Counts.UNCONFIRMED


# --- restarts -------------------------------------------------------------------------------------


def test_a_restart_gives_an_open_study_a_new_quiet_period(
    make_bench: Make, make_flair_series: Make, tmp_path: Path
) -> None:
    make_bench().send(*make_flair_series().paths)
    restarted = make_bench()
    restarted.intake.reconcile()
    assert restarted.pass_time(0.0) == []
    assert restarted.pass_time(29.9) == []
    assert len(restarted.pass_time(0.2)) == 1


def test_a_restart_records_files_without_rows_and_removes_half_written_ones(
    make_bench: Make, make_flair_series: Make
) -> None:
    flair = make_flair_series()
    bench = make_bench()
    bench.send(*flair.paths[:-1])
    # A crash between rename and row (K3), and one before the rename (K2).
    other = make_bench(bench.settings.node.data_dir.parent / "other")
    other.send(flair.paths[-1])
    (stray,) = other.spool.files()
    folder = bench.spool.folder / stray.parent
    (folder / stray.name).write_bytes((other.spool.folder / stray).read_bytes())
    (folder / "1.2.dcm.00.part").write_bytes(b"half")
    restarted = make_bench()
    restarted.intake.reconcile()
    assert restarted.only_series().instances == 10
    assert restarted.only_series().calling_ae_title == "PACS"
    assert not list(restarted.spool.folder.rglob("*.part"))
    assert restarted.ledger.oracle().balanced


def test_a_restart_hands_over_unfinished_jobs_again(
    make_bench: Make, make_flair_series: Make
) -> None:
    (job,) = make_bench().close(*make_flair_series().paths)
    restarted = make_bench()
    restarted.intake.reconcile()
    assert [one.job_id for one in restarted.enqueued] == [job.job_id]


# --- retention ------------------------------------------------------------------------------------


def test_old_images_are_discarded_and_a_copy_sent_later_is_still_known(
    bench: Bench, make_flair_series: Make
) -> None:
    flair = make_flair_series()
    (job,) = bench.close(*flair.paths)
    later = datetime.now(UTC) + timedelta(days=15)
    assert bench.intake.discard_old(later) == 0  # not delivered yet
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    assert bench.intake.discard_old(later) == 1
    assert list(bench.spool.folder.iterdir()) == [bench.spool.slots]  # which are empty
    assert not any(slot.stat().st_size for slot in bench.spool.slots.iterdir())
    assert bench.ledger.oracle().balanced
    assert bench.close(*flair.paths) == []
    assert bench.only_series().state is SeriesState.DELIVERED


def test_a_late_slice_of_a_discarded_series_asks_for_the_whole_series(
    bench: Bench, make_flair_series: Make
) -> None:
    flair = make_flair_series(slices=12)
    in_order = sorted(flair.paths, key=lambda path: int(dcmread(path).InstanceNumber))
    (job,) = bench.close(*in_order[:-1])
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    bench.intake.discard_old(datetime.now(UTC) + timedelta(days=15))
    assert bench.close(in_order[-1]) == []
    assert (bench.only_series().state, bench.only_series().reason) == (
        SeriesState.HELD,
        "missing-files",
    )
    (again,) = bench.close(*in_order)
    assert again.predecessor == job.job_id
    assert len(bench.ledger.paths_of(again.job_id)) == 12


def test_a_crash_among_the_deletions_leaves_no_image_behind(
    make_bench: Make, make_flair_series: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    (job,) = bench.close(*make_flair_series().paths)
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    real_unlink, deleted = Path.unlink, 0

    def unlink(self: Path, missing_ok: bool = False) -> None:
        nonlocal deleted
        if (deleted := deleted + 1) == 5:
            raise KeyboardInterrupt  # the power goes
        real_unlink(self, missing_ok)

    later = datetime.now(UTC) + timedelta(days=15)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            bench.intake.discard_old(later)
    assert len(list(bench.spool.files())) == 6
    restarted = make_bench()
    restarted.intake.reconcile()
    assert not list(restarted.spool.files())
    assert restarted.ledger.oracle().balanced


def test_images_that_came_back_after_they_were_discarded_are_kept_as_long_again(
    make_bench: Make, make_flair_series: Make
) -> None:
    bench = make_bench()
    flair = make_flair_series(slices=12)
    in_order = sorted(flair.paths, key=lambda path: int(dcmread(path).InstanceNumber))
    later = datetime.now(UTC) + timedelta(days=15)
    (job,) = bench.close(*in_order[:-1])
    bench.ledger.set_state(job.job_id, Outcome.DELIVERED)
    bench.intake.discard_old(later)
    bench.close(in_order[-1])
    (again,) = bench.close(*in_order)
    bench.ledger.set_state(again.job_id, Outcome.DELIVERED)
    restarted = make_bench()
    restarted.intake.reconcile()
    assert len(list(restarted.spool.files())) == 12
    assert restarted.intake.discard_old(later) == 1
    assert not list(restarted.spool.files())


# --- who may send ---------------------------------------------------------------------------------


def test_by_default_only_the_configured_peers_may_send() -> None:
    assert admission(Settings()).calling_ae_titles == frozenset()
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104)
    assert admission(Settings(peers=(peer,))).calling_ae_titles == {"PACS"}
    named = Settings(peers=(peer,), security=SecuritySettings(calling_ae_titles=("MR1",)))
    assert admission(named).calling_ae_titles == {"MR1"}


def test_a_refusal_and_an_arrival_leave_a_line_in_the_audit(
    bench: Bench, make_flair_series: Make
) -> None:
    bench.intake.on_refusal(Refusal("calling-ae-title", "10.0.0.9", "EVIL", "FLAIRNODE"))
    bench.close(*make_flair_series().paths)
    events = [(entry["event"], entry.get("reason")) for entry in bench.audit.entries() if entry]
    assert events == [("refused", "calling-ae-title"), ("received", "")]
    assert bench.audit.verify().intact


def test_the_spool_is_private(bench: Bench, make_flair_series: Make) -> None:
    bench.send(make_flair_series().paths[0])
    for path in [bench.spool.folder, *bench.spool.folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
