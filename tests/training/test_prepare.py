"""A cohort prepared: whole, refused, resumed, and on a disk that is full."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dicom.volume import read_nifti, write_nifti
from tests.conftest import FlairSeries
from tests.training.cohorts import (
    GRID,
    SHAPE,
    VOXEL_ML,
    head,
    lesion,
    put_cohort,
    put_patient,
    write_manifest,
    write_seg,
)
from training import prepare as module
from training.cohort import read_cohort
from training.commands import register
from training.prepare import EmptyMasks, Refusals, Rules, prepare
from training.splits import PatientInTwoPartsError, read_splits
from training.whole_files import DiskFullError

SEED = 11


def run(
    cohort: Path,
    output: Path,
    rules: Rules | None = None,
    refusals: Refusals = Refusals.STOP,
) -> tuple[dict[str, Any], list[str]]:
    """The report, and which cases were made anew."""
    made: list[str] = []

    def hear(row: dict[str, Any], *, kept: bool) -> None:
        if not kept:
            made.append(row["case"])

    report = prepare(read_cohort(cohort), output, SEED, rules or Rules(), refusals, hear)
    return report, made


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {row["case"]: row["reason"] for row in report["cases"] if row["reason"]}


def test_a_cohort_becomes_cases_splits_and_a_report(tmp_path: Path) -> None:
    output = tmp_path / "out"
    report, made = run(put_cohort(tmp_path / "cohort"), output)
    assert (report["outcome"], report["patients"], len(made)) == ("prepared", 8, 8)
    row = report["cases"][2]
    assert (row["case"], row["slices"], row["rows"], row["columns"]) == ("P03", 6, 20, 16)
    assert row["spacing_mm"] == [6.5, 0.5, 0.75]
    assert row["plane"] == "axial"
    assert row["lesion_ml"] == pytest.approx(6 * VOXEL_ML, abs=1e-6)  # 3 and 3
    assert (row["slices_with_lesions"], row["lesions"]) == (2, 2)
    # One pixel of 20 x 16 is H = 0.03: the paper's rule keeps both slices with lesions.
    assert row["entropy_rule"] == {
        "kept": 2,
        "empty": 4,
        "removed_with_lesion": 0,
        "removed_mm2": 0.0,
        "largest_removed_mm2": 0.0,
    }
    folder = output / "cases/P03"
    image, mask = (read_nifti(folder / name) for name in ("image.nii.gz", "mask.nii.gz"))
    np.testing.assert_array_equal(image.voxels, head(lesion(3), 3))
    np.testing.assert_array_equal(mask.voxels, lesion(3))
    np.testing.assert_allclose(mask.grid.affine, GRID.affine, atol=1e-4)
    splits = read_splits(output / "splits.json")
    assert report["parts"]["test"] == list(splits.test)
    assert len(splits.test) == 2
    with (output / "audit.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    with (output / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [one["part"] for one in rows] == [splits.part(f"P{n:02d}") for n in range(1, 9)]
    assert rows[2]["spacing_mm"] == "6.5 x 0.5 x 0.75"
    assert json.loads((output / "report.json").read_text()) == report
    assert not [path for path in output.rglob("*") if "part-" in path.name]


def test_the_overlay_outlines_the_mask(tmp_path: Path) -> None:
    run(put_cohort(tmp_path / "cohort", 1), tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out/cases/P01/overlay.png")).astype(int)
    red = (sheet[..., 0] == 255) & (sheet[..., 1] == 60)
    across = sheet.shape[1] // 6
    tiles = [bool(red[:, n * across : (n + 1) * across].any()) for n in range(6)]
    assert tiles == [False, False, True, False, True, False]  # slices 3 and 5 hold lesions


# --- refused --------------------------------------------------------------------------------


def spoil(cohort: Path) -> dict[str, str]:
    """Damage eight of sixteen patients, each in another way; their reasons."""
    put_cohort(cohort, 16)
    (cohort / "P01/lesion.nii.gz").unlink()
    (cohort / "P02/flair.nii.gz").unlink()
    write_nifti(cohort / "P03/lesion.nii", lesion(3), GRID)  # a second one
    write_nifti(cohort / "P04/lesion.nii.gz", np.zeros(SHAPE, np.uint8), GRID)
    flat = np.full(SHAPE, 100, np.float32)
    write_nifti(cohort / "P05/flair.nii.gz", flat, GRID)
    content = (cohort / "P06/flair.nii.gz").read_bytes()
    (cohort / "P06/flair.nii.gz").write_bytes(content[: len(content) // 2])
    one = module.Grid(GRID.affine, (1, 20, 16))
    write_nifti(cohort / "P07/flair.nii.gz", head(lesion(1))[2:3].astype(np.float32), one)
    write_nifti(cohort / "P07/lesion.nii.gz", lesion(1)[2:3], one)
    probability = head(lesion(8)).astype(np.float32) / 200
    write_nifti(cohort / "P08/lesion.nii.gz", probability, GRID)
    return {
        "P01": "mask-missing",
        "P02": "image-missing",
        "P03": "several-masks",
        "P04": "mask-empty",
        "P05": "blank-image",
        "P06": "truncated-file",
        "P07": "too-few-slices",
        "P08": "mask-not-binary",
    }


def test_a_refused_case_stops_the_whole_and_go_on_excludes_it(tmp_path: Path) -> None:
    expected = spoil(tmp_path / "cohort")
    output = tmp_path / "out"
    report, made = run(tmp_path / "cohort", output)
    assert reasons(report) == expected
    assert (report["outcome"], report["reason"]) == ("refused", "cases-refused")
    assert (report["prepared"], len(made)) == (8, 16)
    assert not (output / "splits.json").exists()
    report, made = run(tmp_path / "cohort", output, refusals=Refusals.GO_ON)
    assert (report["outcome"], made) == ("prepared", [])
    assert reasons(report) == expected
    parts = {row["case"]: row["part"] for row in report["cases"]}
    assert all((parts[case] == "") == (case in expected) for case in parts)
    assert sum(len(patients) for patients in report["parts"].values()) == 8
    assert not (output / "cases/P04/mask.nii.gz").exists()


def test_a_case_that_is_mended_is_prepared_and_one_that_breaks_is_removed(tmp_path: Path) -> None:
    cohort, output = put_cohort(tmp_path / "cohort"), tmp_path / "out"
    (cohort / "P03/lesion.nii.gz").unlink()
    assert run(cohort, output)[0]["outcome"] == "refused"
    put_patient(cohort / "P03", 3)
    report, made = run(cohort, output)
    assert (report["outcome"], made) == ("prepared", ["P03"])
    (cohort / "P05/lesion.nii.gz").unlink()
    report, made = run(cohort, output)
    assert (reasons(report), made) == ({"P05": "mask-missing"}, ["P05"])
    assert [path.name for path in (output / "cases/P05").iterdir()] == ["case.json"]


def test_an_empty_mask_is_a_negative_only_when_somebody_says_so(tmp_path: Path) -> None:
    cohort = put_cohort(tmp_path / "cohort")
    write_nifti(cohort / "P08/lesion.nii.gz", np.zeros(SHAPE, np.uint8), GRID)
    assert reasons(run(cohort, tmp_path / "out")[0]) == {"P08": "mask-empty"}
    report, _ = run(cohort, tmp_path / "out", Rules(empty=EmptyMasks.NEGATIVE))
    assert report["outcome"] == "prepared"
    assert "1 cases without a lesion" in report["notes"]
    rows = [
        {"patient": f"P{n:02d}", "image": f"cohort/P{n:02d}/flair.nii.gz",
         "mask": f"cohort/P{n:02d}/lesion.nii.gz", "lesion_free": "yes" if n == 8 else ""}
        for n in range(1, 9)
    ]  # fmt: skip
    report, _ = run(write_manifest(tmp_path / "cohort.csv", *rows), tmp_path / "told")
    assert report["outcome"] == "prepared"


def test_too_few_patients_are_refused_and_what_was_prepared_stays(tmp_path: Path) -> None:
    report, _ = run(put_cohort(tmp_path / "cohort", 6), tmp_path / "out")
    assert (report["outcome"], report["reason"]) == ("refused", "too-few-patients")
    assert (tmp_path / "out/cases/P06/mask.nii.gz").is_file()


def test_one_image_of_two_patients_is_an_error_that_nothing_switches_off(tmp_path: Path) -> None:
    cohort = put_cohort(tmp_path / "cohort")
    put_patient(cohort / "P09", 8)  # P08 again, under another pseudonym
    report, _ = run(cohort, tmp_path / "out", refusals=Refusals.GO_ON)
    assert (report["outcome"], report["reason"]) == ("refused", PatientInTwoPartsError.reason)
    assert "P08 and P09 have one image" in report["explanation"]
    assert not (tmp_path / "out/splits.json").exists()


def test_a_changed_cohort_is_refused_with_what_changed(tmp_path: Path) -> None:
    cohort, output = put_cohort(tmp_path / "cohort"), tmp_path / "out"
    run(cohort, output)
    put_patient(cohort / "P09", 9)
    write_nifti(cohort / "P02/lesion.nii.gz", lesion(4), GRID)
    report, made = run(cohort, output)
    assert (report["reason"], made) == ("splits-differ", ["P02", "P09"])
    assert "new: P09; changed image or mask: P02" in report["explanation"]
    assert "the masks of P02 and P04 are the same: one may be of another patient" in report["notes"]


# --- resumed --------------------------------------------------------------------------------


def test_the_same_command_again_changes_nothing_and_damage_is_repaired(tmp_path: Path) -> None:
    cohort, output = put_cohort(tmp_path / "cohort"), tmp_path / "out"
    run(cohort, output)
    first = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    report, made = run(cohort, output)
    assert (report["outcome"], made) == ("prepared", [])
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == first
    (output / "cases/P04/mask.nii.gz").write_bytes(b"")
    (output / "cases/P06/case.json").unlink()
    assert run(cohort, output)[1] == ["P04", "P06"]
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == first


def test_a_full_disk_is_said_and_the_finished_work_stays(tmp_path: Path) -> None:
    cohort, output = put_cohort(tmp_path / "cohort"), tmp_path / "out"
    full = output / "cases/P04/.part-mask.nii.gz"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")  # whoever writes there is told that the disk is full
    with pytest.raises(DiskFullError, match="3 of 8 cases are finished"):
        run(cohort, output)
    assert not (output / "cases/P04/mask.nii.gz").exists()
    assert not full.is_symlink()
    report, made = run(cohort, output)
    assert report["outcome"] == "prepared"
    assert made == ["P04", "P05", "P06", "P07", "P08"]


# --- DICOM ----------------------------------------------------------------------------------


def test_dicom_series_with_segmentations_and_mixed_field_strengths(
    tmp_path: Path, make_flair_series: Callable[..., FlairSeries]
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(1, 8):
        mask = lesion(number)
        made = make_flair_series(
            voxels=head(mask, number),
            patient_name="Secret^Name",
            patient_id=f"HOSPITAL-{number}",
            spacing_mm=(6.5, 0.5, 0.75),
            overrides={"MagneticFieldStrength": "3" if number == 1 else "1.5"},
        )
        write_seg(tmp_path / f"{number}.dcm", made, mask)
        image = made.folder.relative_to(tmp_path)
        rows.append({"patient": f"P{number}", "image": image, "mask": f"{number}.dcm"})
    output = tmp_path / "out"
    report, _ = run(write_manifest(tmp_path / "cohort.csv", *rows), output)
    assert report["outcome"] == "prepared"
    assert "mixed field strengths: 6 at 1.5 T, 1 at 3 T" in report["notes"]
    assert report["cases"][0]["scanner"] == "TEST SCANNER Phantom"
    np.testing.assert_array_equal(read_nifti(output / "cases/P3/mask.nii.gz").voxels, lesion(3))
    for path in output.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in (b"Secret", b"HOSPITAL", b"TEST-1"))
            assert str(tmp_path).encode() not in content


def test_a_name_as_pseudonym_and_a_second_series_are_refused(
    tmp_path: Path, make_flair_series: Callable[..., FlairSeries]
) -> None:
    cohort = tmp_path / "cohort"
    mask = lesion(1)
    make_flair_series(cohort / "Doe/flair", voxels=head(mask), patient_name="Doe^John")
    for uid in ("2.25.1", "2.25.2"):
        make_flair_series(cohort / f"P02/flair/{uid}", voxels=head(mask), series_instance_uid=uid)
    damaged = make_flair_series(cohort / "P03/flair", voxels=head(mask))
    damaged.paths[0].write_bytes(damaged.paths[0].read_bytes()[:-100])
    for patient in ("Doe", "P02", "P03"):
        write_nifti(cohort / patient / "lesion.nii.gz", mask, GRID)
    report, _ = run(cohort, tmp_path / "out")
    assert reasons(report) == {
        "Doe": "name-as-pseudonym",
        "P02": "several-images",
        "P03": "truncated-file",
    }


def test_a_second_reader_is_compared(tmp_path: Path) -> None:
    folder = put_patient(tmp_path / "cohort/P01", 3)
    second = lesion(3)
    second[4] = False
    write_nifti(folder / "lesion_rater2.nii.gz", second, GRID)
    report, _ = run(tmp_path / "cohort", tmp_path / "out")
    # 6 voxels and 3 of them: 2 * 3 / 9
    assert report["cases"][0]["second_reader"]["dice"] == pytest.approx(2 / 3)
    written = read_nifti(tmp_path / "out/cases/P01/mask_rater2.nii.gz").voxels
    np.testing.assert_array_equal(written, second)


# --- real data, the command -----------------------------------------------------------------


def test_real_patients_are_prepared(tmp_path: Path, shared_data: Path) -> None:
    """Their change masks stand in for lesion masks: what is tested is geometry and volume."""
    native = shared_data / "longitudinal"
    rows = [
        {
            "patient": patient,
            "session": study,
            "image": native / patient / f"{study}_flair.nii.gz",
            "mask": native / patient / f"{study}_change.nii.gz",
        }
        for patient, study in (("patient01", "study1"), ("patient03", "study1"))
    ]
    mni = shared_data / "ms_mni/patient07"
    rows.append({"patient": "mni07", "session": "1", "image": mni / "flair.nii.gz",
                 "mask": mni / "lesion.nii.gz"})  # fmt: skip
    report, _ = run(write_manifest(tmp_path / "cohort.csv", *rows), tmp_path / "out")
    assert report["reason"] == "too-few-patients"
    assert reasons(report) == {}
    found = {row["case"]: row for row in report["cases"]}
    assert found["mni07_1"]["lesion_ml"] == pytest.approx(1.3, abs=0.05)
    assert found["mni07_1"]["spacing_mm"] == [1, 1, 1]
    again = read_nifti(tmp_path / "out/cases/patient03_study1/mask.nii.gz")
    original = read_nifti(native / "patient03/study1_change.nii.gz")
    np.testing.assert_array_equal(again.voxels > 0, original.voxels > 0)


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(dest="command"))
    arguments = parser.parse_args(["train", "prepare", *words])
    status: int = arguments.run(arguments)
    return status


def test_the_command_prints_a_table_or_json_and_says_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, output = put_cohort(tmp_path / "cohort"), tmp_path / "out"
    words = ("--cohort", str(cohort), "--output", str(output), "--seed", "4")
    assert call(*words) == 0
    said = capsys.readouterr()
    assert "patients by part: test 2, fold 0 " in said.out
    assert "P01: prepared" in said.err
    assert call(*words, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["seed"] == 4
    assert "P01: prepared (from an earlier run)" in said.err
    (cohort / "P01/lesion.nii.gz").unlink()
    assert call(*words, "--json") == 3
    printed = json.loads(capsys.readouterr().out)
    assert (printed["outcome"], printed["reason"]) == ("refused", "cases-refused")
    assert call(*words, "--go-on") == 3
    said = capsys.readouterr()
    assert "P01: excluded: mask-missing: the case has no mask" in said.out
    assert "no splits: splits-differ" in said.out
    assert "gone: P01" in said.out
