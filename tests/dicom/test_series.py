from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom.data
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from dicom.errors import (
    EmptyInputError,
    InconsistentSeriesError,
    MissingAttributeError,
    NotDicomError,
    StudyError,
    TruncatedFileError,
)
from dicom.series import read_series, read_study
from dicom.volume import read_volume, stack_grid

MakeSeries = Callable[..., Any]


def cut(path: Path, bytes_kept: int) -> None:
    path.write_bytes(path.read_bytes()[:bytes_kept])


def test_a_study_is_read_into_its_series(make_flair_series: MakeSeries, tmp_path: Path) -> None:
    first = make_flair_series(tmp_path / "study" / "a", series_instance_uid="1.2.3")
    make_flair_series(tmp_path / "study" / "b" / "deeper", series_instance_uid="1.2.4", slices=4)
    study = read_study(tmp_path / "study")
    assert [one.series_instance_uid for one in study.series] == ["1.2.3", "1.2.4"]
    assert [len(one.instances) for one in study.series] == [10, 4]
    assert study.series[0].study_instance_uid == first.study_instance_uid
    assert study.unreadable == ()
    assert "PixelData" not in study.series[0].header


def test_an_empty_and_an_absent_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(EmptyInputError):
            read_study(folder)


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no images here")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    with pytest.raises(NotDicomError, match="2 files"):
        read_study(tmp_path)


def test_other_files_beside_images_are_listed_not_fatal(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    (made.folder / "README.txt").write_text("exported by a viewer")
    (made.folder / "zero.dcm").touch()
    study = read_study(made.folder)
    assert [(one.path.name, one.reason) for one in study.unreadable] == [
        ("README.txt", "not-dicom"),
        ("zero.dcm", "empty-file"),
    ]
    assert read_volume(study.series[0]).grid.shape[0] == 10


def test_files_without_preamble_are_read(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    for path in made.paths:
        path.write_bytes(path.read_bytes()[132:])
    assert len(read_study(made.folder).series[0].instances) == 10


def test_a_bare_dataset_is_read(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(transfer_syntax_uid="1.2.840.10008.1.2")
    for path in made.paths:
        dataset = pydicom.dcmread(path)
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        raw = path.read_bytes()
        path.write_bytes(raw[raw.index(b"\x08\x00\x05\x00") :])
    series = read_study(made.folder).series[0]
    assert len(series.instances) == 10
    assert series.header.RepetitionTime == 9000


def test_a_dicomdir_is_left_out(make_flair_series: MakeSeries, tmp_path: Path) -> None:
    made = make_flair_series(slices=3)
    file_set = FileSet()
    for path in made.paths:
        file_set.add(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file_set.write(tmp_path / "media")
        # pydicom leaves its scratch folder to the garbage collector, which warns when it comes.
        del file_set
        gc.collect()
    study = read_study(tmp_path / "media")
    assert len(study.series[0].instances) == 3
    assert study.unreadable == ()


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLELossless])
def test_a_series_with_a_truncated_file_is_known_to_be_incomplete(
    make_flair_series: MakeSeries, syntax: str, part: float
) -> None:
    made = make_flair_series(transfer_syntax_uid=syntax, rows=96, columns=72)
    # An end slice: geometry alone would not miss it.
    last = next(path for path in made.paths if "_009_" in path.name)
    cut(last, int(last.stat().st_size * part))
    study = read_study(made.folder)
    assert [one.reason for one in study.unreadable] == ["truncated-file"]
    assert study.unreadable[0].series_instance_uid == made.series_instance_uid
    assert study.series[0].unreadable == study.unreadable
    for read in (stack_grid, read_volume):
        with pytest.raises(TruncatedFileError, match="1 of 10"):
            read(study.series[0])
    with pytest.raises(TruncatedFileError):
        read_series(made.paths)


def test_a_truncated_deflated_file_is_noticed(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
    cut(made.paths[0], made.paths[0].stat().st_size // 2)
    assert [one.reason for one in read_study(made.folder).unreadable] == ["truncated-file"]


def test_only_truncated_files_are_refused_as_such(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(slices=3)
    for path in made.paths:
        cut(path, path.stat().st_size - 10)
    with pytest.raises(TruncatedFileError):
        read_study(made.folder)


def test_an_object_without_its_identifiers_is_not_used(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    dataset = pydicom.dcmread(made.paths[0])
    del dataset.SOPInstanceUID
    dataset.save_as(made.paths[0], enforce_file_format=False)
    study = read_study(made.folder)
    assert [one.reason for one in study.unreadable] == ["missing-attribute"]
    with pytest.raises(TruncatedFileError, match="1 of 10"):
        stack_grid(study.series[0])
    with pytest.raises(MissingAttributeError):
        read_study(made.folder, files=made.paths[:1])


def test_a_second_copy_of_a_file_is_dropped(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    shutil.copy(made.paths[2], made.folder / "copy.dcm")
    assert len(read_study(made.folder).series[0].instances) == 10


def test_two_objects_of_one_uid_are_both_kept(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    dataset = pydicom.dcmread(made.paths[2])
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(made.folder / "other_pixels.dcm")
    assert len(read_study(made.folder).series[0].instances) == 11


def test_read_series_wants_one_series(make_flair_series: MakeSeries) -> None:
    first = make_flair_series(series_instance_uid="1.2.3")
    second = make_flair_series(series_instance_uid="1.2.4")
    with pytest.raises(InconsistentSeriesError, match="2 series"):
        read_series([*first.paths, *second.paths])
    with pytest.raises(EmptyInputError):
        read_series([])


def test_instances_come_in_order_of_uid(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    uids = [one.sop_instance_uid for one in read_series(made.paths[::-1]).instances]
    assert uids == sorted(uids)


PYDICOM_FILES = Path(pydicom.data.__file__).parent


def odd_files() -> list[Path]:
    """Every file that pydicom ships for its own tests, damaged ones among them."""
    folders = (PYDICOM_FILES / "test_files", PYDICOM_FILES / "charset_files")
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def outcome_of(path: Path) -> str:
    """What reading comes to; anything but a StudyError fails the test."""
    try:
        study = read_study(path.parent, files=[path])
    except StudyError as error:
        return error.reason
    try:
        read_volume(study.series[0])
    except StudyError as error:
        return error.reason
    return "volume"


def test_no_file_of_pydicoms_tests_raises_anything_but_a_coded_reason() -> None:
    reasons = {path.name: outcome_of(path) for path in odd_files()}
    for name, reason in sorted(reasons.items()):
        print(f"{name:45s} {reason}")  # noqa: T201  # the table, with pytest -s
    assert len(reasons) > 80
    assert "volume" not in reasons.values()
    assert "unspecified" not in reasons.values()
    assert reasons["MR_truncated.dcm"] == "truncated-file"
    assert reasons["DICOMDIR"] == "empty-input"
    assert reasons["README.txt"] == "not-dicom"
    assert reasons["image_dfl.dcm"] == "missing-attribute"


def test_no_sample_raises_anything_but_a_coded_reason(shared_data: Path) -> None:
    files = [path for path in (shared_data / "dicom_samples").rglob("*") if path.is_file()]
    for path in files:
        assert outcome_of(path) not in ("volume", "unspecified"), path


@pytest.mark.parametrize("kept", range(0, 1400, 37))
def test_a_file_cut_anywhere_is_refused_with_a_reason(
    make_flair_series: MakeSeries, kept: int
) -> None:
    made = make_flair_series(slices=1, rows=8, columns=8)
    whole = made.paths[0].read_bytes()
    assert outcome_of(made.paths[0]) == "too-few-slices"
    made.paths[0].write_bytes(whole[: min(kept, len(whole) - 1)])
    assert outcome_of(made.paths[0]) in ("not-dicom", "truncated-file", "unreadable")
