"""A folder of cases, measured: whole, resumed, and with cases that cannot be."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dicom.errors import EmptyInputError
from dicom.volume import Grid, write_nifti
from pipeline.model_pack import Canvas
from tests.pipeline.heads import ellipsoid_head
from tests.pipeline.tiny_pack import make_pack, make_plans, manifest
from training import validate
from training.commands import register
from training.validate import Model, PatientListError, Row, read_cases, run

GRID = Grid(np.diag([6.5, 0.5, 0.4, 1.0]), (2, 3, 10))


def put(folder: Path, name: str, *pictures: str, grid: Grid = GRID) -> None:
    """A mask whose middle row of each slice is drawn."""
    mask = np.zeros(grid.shape, np.uint8)
    for index, picture in enumerate(pictures):
        mask[index, 1] = [mark == "#" for mark in picture.ljust(grid.shape[2], ".")]
    folder.mkdir(parents=True, exist_ok=True)
    write_nifti(folder / name, mask, grid)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Three cases: good, half found, no lesion."""
    folder = tmp_path / "cases"
    put(folder / "good", "reference.nii.gz", "####")
    put(folder / "good", "prediction.nii.gz", "####")
    put(folder / "half", "reference.nii.gz", "########")
    put(folder / "half", "prediction.nii.gz", "....####")
    put(folder / "none", "reference.nii.gz", "")
    put(folder / "none", "prediction.nii.gz", "")
    return folder


@dataclass
class Heard:
    """What `on_row` was told."""

    rows: list[tuple[str, bool]]

    def __call__(self, row: Row, *, kept: bool) -> None:
        self.rows.append((row["case"], kept))


def run_heard(
    folder: Path, output: Path, model: Model | None = None
) -> tuple[tuple[Row, ...], list[tuple[str, bool]]]:
    heard = Heard([])
    return run(read_cases(folder), output, model, on_row=heard), heard.rows


def test_a_case_becomes_a_file_with_its_figures(cases: Path, tmp_path: Path) -> None:
    rows, _ = run_heard(cases, tmp_path / "out")
    assert [row["case"] for row in rows] == ["good", "half", "none"]
    assert [row["metrics"]["dsc"] for row in rows] == [1, pytest.approx(2 * 4 / 12), None]
    assert rows[1]["spacing_mm"] == [6.5, 0.5, 0.4]
    assert rows[1]["slices"] == [
        {
            "positive": True,
            "predicted": True,
            "overlap": 0.5,
            "any_lesion": 0.5,
            "iou": 0.5,
            "reference_voxels": 8,
            "prediction_voxels": 4,
            "common_voxels": 4,
            # From the four left pixels of the reference: 1, 2, 3, 4 x 0.4 mm; of 8 the 95th.
            "hd95_mm": pytest.approx(np.percentile([0, 0, 0, 0, 0.4, 0.8, 1.2, 1.6], 95)),
        },
        {
            "positive": False,
            "predicted": False,
            "overlap": 0,
            "any_lesion": 0,
            "iou": 0,
            "reference_voxels": 0,
            "prediction_voxels": 0,
            "common_voxels": 0,
            "hd95_mm": None,
        },
    ]
    written = json.loads((tmp_path / "out/cases/half.json").read_text())
    assert written["lesions"] == [
        # 8 and 4 voxels of 1.3 mm3.
        {"of": "reference", "volume_mm3": 10.4, "met": True, "first_slice": 0, "last_slice": 0},
        {"of": "prediction", "volume_mm3": 5.2, "met": True, "first_slice": 0, "last_slice": 0},
    ]
    assert rows[1]["peak_memory_mib"] is None or rows[1]["peak_memory_mib"] > 0
    assert set(rows[1]["software"]) == {"python", "flairnode", "numpy", "scipy", "torch"}
    # Lesions stay in the file: a run holds as little of each case as it can.
    assert {name: value for name, value in written.items() if name != "lesions"} == rows[1]
    assert sorted(path.name for path in (tmp_path / "out/cases").iterdir()) == [
        "good.json",
        "half.json",
        "none.json",
    ]


def test_a_second_run_keeps_rows_and_measures_what_changed(cases: Path, tmp_path: Path) -> None:
    first, heard = run_heard(cases, tmp_path / "out")
    assert heard == [("good", False), ("half", False), ("none", False)]
    put(cases / "half", "prediction.nii.gz", "########")
    (tmp_path / "out/cases/none.json").write_text('{"case": "none"')  # cut off by hand
    second, heard = run_heard(cases, tmp_path / "out")
    assert heard == [("good", True), ("half", False), ("none", False)]
    assert second[0] == first[0]
    assert second[1]["metrics"]["dsc"] == 1


def test_another_tolerance_or_revision_is_another_measurement(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_heard(cases, tmp_path / "out")
    heard = Heard([])
    run(read_cases(cases), tmp_path / "out", nsd_tolerance_mm=2.0, on_row=heard)
    assert not any(kept for _, kept in heard.rows)
    monkeypatch.setattr(validate, "MEASURES_REVISION", "next")
    heard = Heard([])
    run(read_cases(cases), tmp_path / "out", nsd_tolerance_mm=2.0, on_row=heard)
    assert not any(kept for _, kept in heard.rows)


def test_a_case_that_cannot_be_measured_is_a_row_with_its_reason(
    cases: Path, tmp_path: Path
) -> None:
    put(cases / "a-no-reference", "prediction.nii.gz", "####")
    put(cases / "b-no-prediction", "reference.nii.gz", "####")
    put(cases / "c-elsewhere", "reference.nii.gz", "####")
    moved = GRID.affine.copy()
    moved[0, 3] += 5
    put(cases / "c-elsewhere", "prediction.nii.gz", "####", grid=replace(GRID, affine=moved))
    put(cases / "d-broken", "reference.nii.gz", "####")
    (cases / "d-broken/prediction.nii.gz").write_bytes(b"no image")
    put(cases / "e-nan", "reference.nii.gz", "####")
    nan = np.full(GRID.shape, np.nan, np.float32)
    write_nifti(cases / "e-nan/prediction.nii.gz", nan, GRID)
    rows, _ = run_heard(cases, tmp_path / "out")
    assert [(row["outcome"], row["reason"]) for row in rows] == [
        ("not_analysed", "missing-file"),
        ("not_analysed", "missing-file"),
        ("not_analysed", "grid-mismatch"),
        ("not_analysed", "unreadable"),
        ("not_analysed", "not-finite"),
        ("analysed", ""),
        ("analysed", ""),
        ("analysed", ""),
    ]
    assert all(row["metrics"] is None for row in rows[:5])
    assert "b-no-prediction has no prediction.nii.gz" in rows[1]["explanation"]


def test_our_fault_in_one_case_is_a_row_and_is_tried_again(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in a measure")

    with monkeypatch.context() as patch:
        patch.setattr(validate, "compare", broken)
        rows, _ = run_heard(cases, tmp_path / "out")
    assert {(row["outcome"], row["reason"]) for row in rows} == {("failed", "internal-error")}
    rows, heard = run_heard(cases, tmp_path / "out")
    assert {row["outcome"] for row in rows} == {"analysed"}
    assert not any(kept for _, kept in heard)


def test_a_list_says_which_cases_are_of_one_patient(cases: Path) -> None:
    assert [case.patient for case in read_cases(cases)] == ["good", "half", "none"]
    (cases / "patients.csv").write_text("case,patient\ngood,P1\nhalf,P1\nnone,P2\n")
    assert [case.patient for case in read_cases(cases)] == ["P1", "P1", "P2"]


def test_a_list_says_what_is_known_of_a_case_and_nothing_is_measured_again(
    cases: Path, tmp_path: Path
) -> None:
    first, _ = run_heard(cases, tmp_path / "out")
    assert first[0]["about"] == {}
    (cases / "patients.csv").write_text(
        "case,patient,centre,age,repeat_of\ngood,P1,North,41,\nhalf,P1,North,42,good\nnone,P2,,,\n"
    )
    (tmp_path / "again").mkdir()
    second, heard = run_heard(cases, tmp_path / "again")
    third, heard = run_heard(cases, tmp_path / "again")
    assert heard == [("good", True), ("half", True), ("none", True)]
    assert third[1]["about"] == {"centre": "North", "age": "42", "repeat_of": "good"}
    assert third[2]["about"] == {}
    (cases / "patients.csv").write_text(
        "case,patient,centre\ngood,P1,South\nhalf,P1,South\nnone,P2,South\n"
    )
    fourth, heard = run_heard(cases, tmp_path / "again")
    assert all(kept for _, kept in heard)
    written = json.loads((tmp_path / "again/cases/none.json").read_text())
    assert written["about"] == fourth[2]["about"] == {"centre": "South"}
    assert written["measured_at"] == second[2]["measured_at"]


def test_a_second_reader_is_compared_with_the_first_and_with_the_prediction(
    cases: Path, tmp_path: Path
) -> None:
    put(cases / "half", "second.nii.gz", "######")
    rows, _ = run_heard(cases, tmp_path / "out")
    assert rows[0]["second_reader"] is None
    second = rows[1]["second_reader"]
    assert second["against_reference"]["dsc"] == pytest.approx(2 * 6 / 14)
    assert second["against_prediction"]["dsc"] == pytest.approx(2 * 2 / 10)
    put(cases / "half", "second.nii.gz", "########")
    assert [kept for _, kept in run_heard(cases, tmp_path / "out")[1]] == [True, False, True]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("maybe,,", "not yes, no or empty"),
        (",old,", "not a number"),
        (",,good", "no other case of the same patient"),
        (",,none", "no other case of the same patient"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(cases: Path, line: str, said: str) -> None:
    (cases / "patients.csv").write_text(
        f"case,patient,semi_synthetic,age,repeat_of\ngood,P1,{line}\nhalf,P1,,,\nnone,P2,,,\n"
    )
    with pytest.raises(PatientListError, match=said):
        read_cases(cases)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,patient\ngood,P1\nhalf,P1\n", "no patient for none"),
        ("case,patient\ngood,P1\nhalf,P1\nnone,\n", "no patient for none"),
        ("case,patient\ngood,P1\ngood,P2\nhalf,P1\nnone,P3\n", "twice"),
        ("name;who\ngood;P1\n", "case,patient"),
    ],
)
def test_a_list_that_leaves_a_case_open_is_refused(cases: Path, text: str, said: str) -> None:
    (cases / "patients.csv").write_text(text)
    with pytest.raises(PatientListError, match=said):
        read_cases(cases)


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyInputError, match=r"reference\.nii\.gz"):
        read_cases(tmp_path)


@dataclass(frozen=True)
class Said:
    probability: np.ndarray
    disagreement: np.ndarray


@dataclass
class Brightest:
    """A network of one rule: what is clipped as bright (1.9 times the brain) is lesion."""

    calls: int = 0

    def segment(self, images: np.ndarray) -> Said:
        self.calls += 1
        probability = np.where(images > 0.9, 0.9, 0.05).astype(np.float32)
        return Said(probability, np.zeros_like(probability))


CANVAS = Canvas(rows=96, columns=80, pixel_mm=2, normalisation="starter", dilation_mm=2)
"""192 x 160 mm: the brain is 160 x 128."""


def model_of(segmenter: Brightest, digest: str = "5a") -> Model:
    return Model(segmenter, manifest(canvas=CANVAS), {"name": "brightest", "digest": digest})


@pytest.fixture
def head_case(tmp_path: Path) -> Path:
    """A head with one bright lesion of 2 slices, which the reference marks."""
    volume, brain = ellipsoid_head()
    lesion = np.zeros(volume.grid.shape, bool)
    slices, rows, columns = (size // 2 for size in volume.grid.shape)
    lesion[slices : slices + 2, rows - 4 : rows + 4, columns + 6 : columns + 14] = True
    voxels = np.where(lesion, volume.voxels[brain].mean() * 2.5, volume.voxels)
    folder = tmp_path / "cases" / "head"
    folder.mkdir(parents=True)
    write_nifti(folder / "flair.nii.gz", voxels.astype(np.float32), volume.grid)
    write_nifti(folder / "reference.nii.gz", lesion, volume.grid)
    write_nifti(folder / "brain.nii.gz", brain, volume.grid)
    return tmp_path / "cases"


def test_with_a_model_every_image_is_segmented(head_case: Path, tmp_path: Path) -> None:
    brightest = Brightest()
    (row,), _ = run_heard(head_case, tmp_path / "out", model_of(brightest))
    assert (row["outcome"], row["explanation"]) == ("analysed", "")
    assert row["metrics"]["dsc"] > 0.8  # the canvas has pixels of 2 mm
    assert row["quality"]["verdict"] == "review"  # a supplied brain mask always is
    assert row["model"]["name"] == "brightest"
    assert sum(row["calibration"]["count"]) > sum(row["calibration"]["sum_true"]) > 0
    # One member: no disagreement, and what is wrong is wrong in the lowest bin.
    assert sum(row["disagreement"]["count"]) == row["disagreement"]["count"][0]
    assert set(row["timing_s"]) >= {"brain", "segment"}
    (overview, *_) = row["pictures"]
    assert (overview["kind"], overview["slice"] - 1) in {("overview", 12), ("overview", 13)}
    run_heard(head_case, tmp_path / "out", model_of(brightest))
    assert brightest.calls == 1
    run_heard(head_case, tmp_path / "out", model_of(brightest, digest="5b"))
    assert brightest.calls == 2


def test_an_image_that_the_node_would_refuse_is_refused_with_the_same_reason(
    head_case: Path, tmp_path: Path
) -> None:
    grid = Grid(np.diag([6.5, 0.9, 0.9, 1.0]), (12, 64, 48))
    write_nifti(head_case / "head/flair.nii.gz", np.zeros(grid.shape, np.float32), grid)
    write_nifti(head_case / "head/reference.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    (head_case / "head/brain.nii.gz").unlink()
    (row,), _ = run_heard(head_case, tmp_path / "out", model_of(Brightest()))
    assert row["outcome"] == "not_analysed"
    assert row["reason"] not in {"", "internal-error", "missing-file"}


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(dest="command"))
    arguments = parser.parse_args(["validate", "run", *words])
    status: int = arguments.run(arguments)
    return status


def test_the_command_writes_rows_and_a_summary(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert call(str(cases), "--output", str(output), "--json") == 0
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert printed == json.loads((output / "summary.json").read_text())
    assert printed["cases"]["analysed"] == 3
    assert printed["voxel"]["dsc"]["mean"] == pytest.approx((1 + 8 / 12) / 2)
    assert (printed["voxel"]["dsc"]["n"], printed["voxel"]["dsc"]["undefined"]) == (2, 1)
    assert "good: analysed" in said.err
    assert call(str(cases), "--output", str(output)) == 0
    said = capsys.readouterr()
    assert "3 of 3 cases analysed, of 3 patients" in said.out
    assert "good: analysed (from an earlier run)" in said.err


def test_the_command_says_with_its_exit_status_that_a_case_is_missing(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cases / "good/prediction.nii.gz").unlink()
    assert call(str(cases), "--output", str(tmp_path / "out")) == 3
    said = capsys.readouterr()
    assert "1 not_analysed: missing-file" in said.out
    assert "good: not_analysed: missing-file" in said.err


def test_the_command_runs_a_pack(
    head_case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = make_plans(CANVAS.rows, CANVAS.columns)
    pack = make_pack(tmp_path / "tiny", plans, canvas=CANVAS, folds=(0,))
    output = tmp_path / "out"
    assert call(str(head_case), "--output", str(output), "--model", str(pack.path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"]["digest"] == pack.digest
    assert printed["cases"]["verdicts"] == {"review": 1}
    assert printed["calibration"]["n"] > 0
