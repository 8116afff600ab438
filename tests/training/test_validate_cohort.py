"""A site's cohort validated: DICOM through the node's gates, NIfTI, and what was prepared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom.volume import write_nifti
from pipeline.model_pack import Manifest, Summary
from tests.conftest import FlairSeries
from tests.pipeline.heads import ellipsoid_head
from tests.pipeline.tiny_pack import make_pack, make_plans
from tests.training.cohorts import put_cohort, write_manifest, write_seg
from tests.training.test_validate import CANVAS, Brightest, model_of
from training.case_inputs import CohortRules
from training.cohort import CohortError, read_cohort
from training.commands import register
from training.prepare import Rules, prepare
from training.validate import Row, run
from training.validate_cohort import NoSuchPartError, choose_cases

MakeSeries = Callable[..., FlairSeries]
Lesion = np.ndarray


def manifest_with(**figures: Any) -> Manifest:  # noqa: ANN401
    told = model_of(Brightest()).manifest
    return told.model_copy(update={"training_data": Summary(text="", figures=figures)})


def bright_head() -> tuple[np.ndarray, Lesion, Any]:
    """A head with one bright lesion of two slices."""
    volume, brain = ellipsoid_head()
    mask = np.zeros(volume.grid.shape, bool)
    slices, rows, columns = (size // 2 for size in volume.grid.shape)
    mask[slices : slices + 2, rows - 4 : rows + 4, columns + 6 : columns + 14] = True
    voxels = np.where(mask, volume.voxels[brain].mean() * 2.5, volume.voxels)
    return voxels.astype(np.int16), mask, volume.grid


def validate(cohort: Path, output: Path) -> dict[str, Row]:
    model = model_of(Brightest())
    chosen = choose_cases(cohort, CohortRules(), model.manifest)
    return {row["case"]: row for row in run(chosen.cases, output, model)}


def test_dicom_and_nifti_of_one_head_give_the_same_figures(
    tmp_path: Path, make_flair_series: MakeSeries
) -> None:
    voxels, mask, grid = bright_head()
    made = make_flair_series(
        tmp_path / "study",
        voxels=voxels,
        affine=grid.affine,
        overrides={"MagneticFieldStrength": 1.5, "ManufacturerModelName": "Signa"},
    )
    write_seg(tmp_path / "first.dcm", made, mask)
    write_nifti(tmp_path / "second.nii.gz", mask, grid)
    write_nifti(tmp_path / "image.nii.gz", voxels.astype(np.float32), grid)
    write_manifest(
        tmp_path / "cohort.csv",
        {"patient": "P1", "image": "study", "mask": "first.dcm", "mask_rater2": "second.nii.gz"},
        {"patient": "P2", "image": "image.nii.gz", "mask": "second.nii.gz", "centre": "North"},
    )
    rows = validate(tmp_path / "cohort.csv", tmp_path / "out")
    dicom, nifti = rows["P1"], rows["P2"]
    assert (dicom["outcome"], dicom["explanation"]) == ("analysed", "")
    assert dicom["metrics"]["dsc"] == nifti["metrics"]["dsc"] > 0.8
    assert dicom["second_reader"]["against_reference"]["dsc"] == 1
    # Who made the images is told by the header, of NIfTI by nobody.
    assert dicom["about"]["field_strength_t"] == "1.5"
    assert dicom["about"]["scanner"].endswith("Signa")
    assert dicom["acquisition"]["repetition_ms"] == 9000
    assert nifti["about"] == {"centre": "North"}
    assert nifti["acquisition"]["spacing_mm"] == [6.5, 1.8, 1.6]
    assert dicom["pictures"][0]["kind"] == "overview"


def test_a_series_that_the_node_would_refuse_is_a_row_with_the_nodes_reason(
    tmp_path: Path, make_flair_series: MakeSeries
) -> None:
    voxels, mask, grid = bright_head()
    for name, series in (
        ("t1", {"overrides": {"RepetitionTime": 500, "EchoTime": 10, "InversionTime": None}}),
        ("gap", {"drop": [5]}),
    ):
        make_flair_series(tmp_path / name, voxels=voxels, affine=grid.affine, **series)
    write_nifti(tmp_path / "mask.nii.gz", mask, grid)
    write_nifti(tmp_path / "empty.nii.gz", np.zeros_like(mask), grid)
    write_nifti(tmp_path / "small.nii.gz", mask[:-1], grid.__class__(grid.affine, (23, 128, 112)))
    write_nifti(tmp_path / "image.nii.gz", voxels.astype(np.float32), grid)
    nan = np.where(mask, np.nan, voxels).astype(np.float32)
    write_nifti(tmp_path / "nan.nii.gz", nan, grid)
    write_manifest(
        tmp_path / "cohort.csv",
        {"patient": "A-t1", "image": "t1", "mask": "mask.nii.gz"},
        {"patient": "B-gap", "image": "gap", "mask": "mask.nii.gz"},
        {"patient": "C-empty", "image": "image.nii.gz", "mask": "empty.nii.gz"},
        {"patient": "D-grid", "image": "image.nii.gz", "mask": "small.nii.gz"},
        {"patient": "E-nan", "image": "nan.nii.gz", "mask": "mask.nii.gz"},
        {"patient": "F-none", "image": "image.nii.gz", "mask": ""},
        {"patient": "G-gone", "image": "gone", "mask": "mask.nii.gz"},
    )
    rows = validate(tmp_path / "cohort.csv", tmp_path / "out")
    ends = {name: (row["outcome"], row["reason"]) for name, row in rows.items()}
    assert ends.pop("A-t1")[0] == "skipped"
    assert ends == {
        "B-gap": ("not_analysed", "missing-slice"),
        "C-empty": ("not_analysed", "mask-empty"),
        "D-grid": ("not_analysed", "grid-mismatch"),
        "E-nan": ("not_analysed", "not-finite"),
        "F-none": ("not_analysed", "mask-missing"),
        "G-gone": ("not_analysed", "image-missing"),
    }
    assert all(row["explanation"] for row in rows.values())


def test_a_repeat_names_a_session_of_the_same_patient(tmp_path: Path) -> None:
    lines = [
        {"patient": "P1", "session": "a", "image": "x.nii.gz", "in_training": "yes"},
        {"patient": "P1", "session": "b", "repeat_of": "a"},
    ]
    path = write_manifest(tmp_path / "cohort.csv", *lines)
    first, second = choose_cases(path, CohortRules(), manifest_with()).cases
    assert second.about["repeat_of"] == first.name == "P1_a"
    assert first.about["in_training"] == "yes"
    write_manifest(path, lines[0], {**lines[1], "repeat_of": "c"})
    with pytest.raises(CohortError, match="P1_b repeats a session"):
        choose_cases(path, CohortRules(), manifest_with())


def test_of_a_prepared_cohort_the_test_set_is_taken_and_training_patients_are_marked(
    tmp_path: Path,
) -> None:
    put_cohort(tmp_path / "raw", 8)
    prepared = tmp_path / "prepared"
    prepare(read_cohort(tmp_path / "raw"), prepared, 11, Rules())
    test = choose_cases(prepared, CohortRules(), manifest_with())
    assert [case.about["part"] for case in test.cases] == ["test", "test"]
    assert test.told["part"] == "test"
    number = int(test.cases[0].name.removeprefix("P"))
    masks = test.cases[0].files.masks(None)
    assert (np.count_nonzero(masks.reference), masks.second) == (number + 3, None)
    assert test.cases[0].files.image().volume.grid.shape == masks.grid.shape
    trained_here = manifest_with(cohort_digest=test.told["cohort_digest"], patients=6)
    every = choose_cases(prepared, CohortRules(), trained_here, "all").cases
    assert len(every) == 8
    for case in every:
        assert ("in_training" in case.about) == (case.about["part"] != "test")
    # The same patients, dealt otherwise: the test set may have been trained on.
    other = manifest_with(cohort_digest=test.told["cohort_digest"], splits_digest="of other")
    dealt = choose_cases(prepared, CohortRules(), other).cases
    assert [case.about["in_training"] for case in dealt] == ["yes", "yes"]
    fold = choose_cases(prepared, CohortRules(), manifest_with(), "fold-1").cases
    assert {case.about["fold"] for case in fold} == {"1"}
    assert "in_training" not in fold[0].about  # of a pack that was trained elsewhere
    named = manifest_with(patients=[fold[0].patient])
    assert choose_cases(prepared, CohortRules(), named, "fold-1").cases[0].about["in_training"]
    with pytest.raises(NoSuchPartError, match="train prepare"):
        choose_cases(tmp_path / "raw", CohortRules(), manifest_with(), "test")


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(dest="command"))
    arguments = parser.parse_args(["validate", "run", *words])
    status: int = arguments.run(arguments)
    return status


@pytest.mark.parametrize(
    "words", [(), ("x", "--cohort", "y"), ("x", "--part", "test"), ("x", "--processes", "0")]
)
def test_arguments_that_cannot_be_meant_are_wrong(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words, "--output", str(tmp_path / "out")) == 2
    assert "flairnode validate run: " in capsys.readouterr().err


def test_the_command_runs_a_cohort_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels, mask, grid = bright_head()
    for name in ("P1", "P2"):
        folder = tmp_path / "cohort" / name
        folder.mkdir(parents=True)
        write_nifti(folder / "flair.nii.gz", voxels.astype(np.float32), grid)
        write_nifti(folder / "lesion.nii.gz", mask, grid)
    pack = make_pack(
        tmp_path / "tiny", make_plans(CANVAS.rows, CANVAS.columns), canvas=CANVAS, folds=(0,)
    )
    words = ("--cohort", str(tmp_path / "cohort"), "--model", str(pack.path))
    assert call(*words, "--output", str(tmp_path / "out"), "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["model"]["digest"] == pack.digest
    assert said.err.splitlines()[0].startswith("1/2 P1: analysed; ")
    assert said.err.splitlines()[0].endswith(" left")
    asked = json.loads((tmp_path / "out/run.json").read_text())
    assert asked["cohort"] == {"cohort": "as it came", "cases": 2}
    assert call(*words, "--output", str(tmp_path / "out")) == 0
    assert "2/2 P2: analysed (from an earlier run)\n" in capsys.readouterr().err
