"""Agreement of two masks, on numbers worked out by hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dicom.errors import Outcome, StudyError
from dicom.volume import Grid, write_nifti
from tests.training.pictures import grid, row
from training.metrics import GridMismatchError, NotAMaskError, PairMetrics, compare, compare_files
from training.metrics_command import register_metrics
from training.slice_metrics import SliceCounts


def test_overlap_is_counted_in_voxels() -> None:
    # 5 and 4 voxels, 3 of them common.
    result = compare(row("#####..."), row("..####.."), grid((1, 1, 8)))
    assert result.dsc == pytest.approx(2 * 3 / 9)
    assert result.iou == pytest.approx(3 / 6)
    assert result.ppv == pytest.approx(3 / 4)
    assert result.sensitivity == pytest.approx(3 / 5)


def test_volumes_are_in_millilitres() -> None:
    result = compare(row("#####..."), row("..####.."), grid((1, 1, 8), (6.5, 0.5, 0.25)))
    assert result.volume_reference_ml == pytest.approx(5 * 6.5 * 0.5 * 0.25 / 1000)
    assert result.volume_prediction_ml == pytest.approx(4 * 6.5 * 0.5 * 0.25 / 1000)


def empty() -> np.ndarray:
    return row("........")


def some() -> np.ndarray:
    return row("..####..")


def test_a_volume_error_is_signed_and_in_percent_of_the_reference() -> None:
    error = compare(row("#####..."), row("..####.."), grid((1, 1, 8), (6.5, 0.5, 0.25))).volume
    assert error.signed_ml == pytest.approx(-1 * 6.5 * 0.5 * 0.25 / 1000)
    assert error.signed_percent == pytest.approx(-20)
    assert error.as_json()["absolute_percent"] == pytest.approx(20)
    assert error.as_json()["absolute_ml"] == pytest.approx(6.5 * 0.5 * 0.25 / 1000)


def figures_of(result: PairMetrics) -> dict[str, float | None]:
    met = result.any_overlap.all_sizes
    return {
        "dsc": result.dsc,
        "iou": result.iou,
        "sensitivity": result.sensitivity,
        "ppv": result.ppv,
        "hd95_mm": result.hd95_mm,
        "nsd": result.nsd,
        "nsd_in_plane": result.nsd_in_plane,
        "error_ml": result.volume.signed_ml,
        "error_percent": result.volume.signed_percent,
        "lesion_f1": result.lesion.f1,
        "lesion_sensitivity": result.lesion.sensitivity,
        "lesion_ppv": result.lesion.ppv,
        "recall": met.recall,
        "false_share": met.false_share,
        "false_ml": met.false_volume_ml,
    }


# The columns of the table in `training/metrics.py`, from 8 voxels of 1 mm3.
BOTH_EMPTY = dict.fromkeys(figures_of(compare(empty(), empty(), grid((1, 1, 8))))) | {
    "error_ml": 0,
    "false_ml": 0,
}
REFERENCE_EMPTY = BOTH_EMPTY | {
    "dsc": 0,
    "iou": 0,
    "ppv": 0,
    "nsd": 0,
    "nsd_in_plane": 0,
    "error_ml": 0.004,
    "lesion_f1": 0,
    "lesion_ppv": 0,
    "false_share": 1,
    "false_ml": 0.004,
}
PREDICTION_EMPTY = BOTH_EMPTY | {
    "dsc": 0,
    "iou": 0,
    "sensitivity": 0,
    "nsd": 0,
    "nsd_in_plane": 0,
    "error_ml": -0.004,
    "error_percent": -100,
    "lesion_f1": 0,
    "lesion_sensitivity": 0,
    "recall": 0,
}


def test_of_two_empty_masks_nothing_is_defined_but_volumes() -> None:
    result = compare(empty(), empty(), grid((1, 1, 8)))
    assert figures_of(result) == BOTH_EMPTY
    assert result.slices == SliceCounts(tp=0, fn=0, tn=1, fp=0)


def test_a_prediction_where_there_is_nothing_has_dice_0_and_no_sensitivity() -> None:
    result = compare(empty(), some(), grid((1, 1, 8)))
    assert figures_of(result) == pytest.approx(REFERENCE_EMPTY)
    assert result.lesion.as_json()["false_count"] == 1
    assert result.slices == SliceCounts(tp=0, fn=0, tn=0, fp=1)


def test_no_prediction_where_there_is_something_has_dice_0_and_no_ppv() -> None:
    result = compare(some(), empty(), grid((1, 1, 8)))
    assert figures_of(result) == pytest.approx(PREDICTION_EMPTY)
    assert result.lesion.as_json()["missed_count"] == 1
    assert result.slices == SliceCounts(tp=0, fn=1, tn=0, fp=0)


def test_masks_without_a_common_voxel_have_a_distance() -> None:
    result = compare(row("####......"), row("......####"), grid((1, 1, 10)))
    assert figures_of(result) == pytest.approx(
        BOTH_EMPTY
        | dict.fromkeys(("dsc", "iou", "sensitivity", "ppv", "nsd", "nsd_in_plane"), 0)
        | dict.fromkeys(("lesion_f1", "lesion_sensitivity", "lesion_ppv", "recall"), 0)
        # Distances 6, 5, 4, 3 mm: position 0.95 x 3 = 2.85.
        | {"hd95_mm": 5.85, "error_percent": 0, "false_share": 1, "false_ml": 0.004}
    )


def test_masks_side_by_side_agree_within_a_tolerance_without_a_common_voxel() -> None:
    # Distances 4, 3, 2, 1 mm either way: one of four within 1 mm, two within 2 mm.
    touching = row("####...."), row("....####")
    result = compare(*touching, grid((1, 1, 8)))
    assert (result.dsc, result.nsd) == (0, 1 / 4)
    assert compare(*touching, grid((1, 1, 8)), nsd_tolerance_mm=2).nsd == 2 / 4


def test_a_lesion_of_3_mm3_is_nothing_to_anima_and_a_lesion_to_any_overlap() -> None:
    result = compare(row("###....."), row("###....."), grid((1, 1, 8)))
    assert (result.dsc, result.lesion.f1, result.any_overlap.all_sizes.recall) == (1, None, 1)


masks = arrays(bool, (3, 4, 5))
SPACING_MM = (3.0, 1.0, 0.5)


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_dice_iou_hd95_and_nsd_are_symmetric_and_ppv_is_sensitivity_turned(
    first: np.ndarray, second: np.ndarray
) -> None:
    there = compare(first, second, grid((3, 4, 5), SPACING_MM))
    back = compare(second, first, grid((3, 4, 5), SPACING_MM))
    assert (there.dsc, there.iou, there.hd95_mm) == (back.dsc, back.iou, back.hd95_mm)
    assert (there.nsd, there.nsd_in_plane) == (back.nsd, back.nsd_in_plane)
    assert (there.ppv, there.sensitivity) == (back.sensitivity, back.ppv)
    assert (there.lesion.ppv, there.lesion.f1) == (back.lesion.sensitivity, back.lesion.f1)
    assert there.volume.signed_ml == -back.volume.signed_ml
    assert there.any_overlap.prediction == back.any_overlap.reference
    if there.dsc is not None and there.iou is not None:
        assert there.dsc == pytest.approx(2 * there.iou / (1 + there.iou))


@settings(max_examples=60, deadline=None)
@given(masks, masks, st.sets(st.sampled_from([0, 1, 2])))
def test_nothing_changes_when_both_masks_are_flipped(
    first: np.ndarray, second: np.ndarray, axes: set[int]
) -> None:
    # Anima's detection is left out: between equal overlaps it takes the lesion that comes first.
    there = compare(first, second, grid((3, 4, 5), SPACING_MM))
    flipped = compare(
        np.flip(first, tuple(axes)), np.flip(second, tuple(axes)), grid((3, 4, 5), SPACING_MM)
    )
    left_out = dict.fromkeys(("lesion_f1", "lesion_sensitivity", "lesion_ppv"))
    assert figures_of(there) | left_out == pytest.approx(figures_of(flipped) | left_out)
    assert there.slices == flipped.slices
    assert there.lesion.reference_count == flipped.lesion.reference_count
    assert sorted(there.any_overlap.reference, key=str) == sorted(
        flipped.any_overlap.reference, key=str
    )


@settings(max_examples=60, deadline=None)
@given(masks, masks, st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 3))
def test_nothing_changes_when_background_is_put_around_both_masks(
    first: np.ndarray, second: np.ndarray, margins: tuple[tuple[int, int], ...]
) -> None:
    there = compare(first, second, grid((3, 4, 5), SPACING_MM))
    larger = np.pad(first, margins), np.pad(second, margins)
    padded = compare(*larger, grid(larger[0].shape, SPACING_MM))
    assert figures_of(there) == pytest.approx(figures_of(padded))
    assert (there.lesion, there.any_overlap) == (padded.lesion, padded.any_overlap)
    empty_slices = sum(margins[0])
    assert there.slices + SliceCounts(0, 0, empty_slices, 0) == padded.slices


def write(path: Path, array: np.ndarray, where: Grid) -> Path:
    write_nifti(path, array, where)
    return path


@pytest.fixture
def oblique() -> Grid:
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:3, 0] = np.array([0, -np.sin(angle), np.cos(angle)]) * 5
    affine[:3, 1] = np.array([0, np.cos(angle), np.sin(angle)]) * 0.5
    affine[:3, 2] = np.array([1, 0, 0]) * 0.25
    affine[:3, 3] = [-10, 20, 30]
    return Grid(affine, (2, 3, 8))


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register_metrics(parser.add_subparsers())
    arguments = parser.parse_args(["metrics", *words])
    status: int = arguments.run(arguments)
    return status


def test_the_command_prints_what_it_promises(
    tmp_path: Path, oblique: Grid, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros(oblique.shape, np.uint8)
    mask[0, 1, 1:7] = 1  # 6 voxels of 0.625 mm3: 3.75 mm3
    labels = mask.astype(np.int32) * 3  # a label map: its numbers do not matter
    reference = write(tmp_path / "reference.nii.gz", mask, oblique)
    prediction = write(tmp_path / "prediction.nii.gz", labels, oblique)

    assert call(str(reference), str(prediction), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    one_lesion = {
        "recall": 1.0,
        "false_share": 0.0,
        "reference_count": 1,
        "found_count": 1,
        "prediction_count": 1,
        "false_count": 0,
        "false_volume_ml": 0,
    }
    no_lesion = dict.fromkeys(one_lesion, 0) | {"recall": None, "false_share": None}
    assert printed == {
        "dsc": 1.0,
        "iou": 1.0,
        "ppv": 1.0,
        "sensitivity": 1.0,
        "hd95_mm": 0.0,
        "nsd": 1.0,
        "nsd_in_plane": 1.0,
        "nsd_tolerance_mm": 1.0,
        "volume_reference_ml": pytest.approx(0.00375),
        "volume_prediction_ml": pytest.approx(0.00375),
        "lesion": {
            "f1": 1.0,
            "sensitivity": 1.0,
            "ppv": 1.0,
            "reference_count": 1,
            "prediction_count": 1,
            "detected_count": 1,
            "missed_count": 0,
            "confirmed_count": 1,
            "false_count": 0,
        },
        "volume_error": {"ml": 0.0, "absolute_ml": 0.0, "percent": 0.0, "absolute_percent": 0.0},
        "any_overlap": one_lesion
        | {
            "strata_mm3": {
                "<10": one_lesion,
                "10-50": no_lesion,
                "50-100": no_lesion,
                "100-500": no_lesion,
                ">500": no_lesion,
            }
        },
        "isbi_parts": {"dsc": 1.0, "ppv": 1.0, "lfpr": 0.0, "ltpr": 1.0},
        "slices": {"rule": "overlap", "tau": 0.1, "tp": 1, "fn": 0, "tn": 1, "fp": 0},
    }

    assert call(str(reference), str(prediction)) == 0
    assert "Dice (DSC)        1.0000" in capsys.readouterr().out


def test_what_is_not_defined_is_null_and_said_in_words(
    tmp_path: Path, oblique: Grid, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = str(write(tmp_path / "a.nii.gz", np.zeros(oblique.shape, np.uint8), oblique))
    call(nothing, nothing, "--json")
    assert json.loads(capsys.readouterr().out)["dsc"] is None
    call(nothing, nothing)
    assert "Dice (DSC)        not defined" in capsys.readouterr().out


def test_masks_of_another_shape_or_place_are_refused(tmp_path: Path, oblique: Grid) -> None:
    mask = np.zeros(oblique.shape, np.uint8)
    first = write(tmp_path / "a.nii.gz", mask, oblique)
    larger = Grid(oblique.affine, (2, 3, 9))
    second = write(tmp_path / "b.nii.gz", np.zeros(larger.shape, np.uint8), larger)
    moved_affine = oblique.affine.copy()
    moved_affine[2, 3] += 0.2
    third = write(tmp_path / "c.nii.gz", mask, Grid(moved_affine, oblique.shape))
    for other in (second, third):
        with pytest.raises(GridMismatchError, match="resample") as error:
            compare_files(first, other)
        assert error.value.reason == "grid-mismatch"
        assert error.value.outcome is Outcome.NOT_ANALYSED


def test_a_probability_map_is_not_a_mask(tmp_path: Path, oblique: Grid) -> None:
    mask = np.zeros(oblique.shape, np.float32)
    mask[0, 0, 0] = 0.7
    path = write(tmp_path / "p.nii.gz", mask, oblique)
    with pytest.raises(NotAMaskError, match=r"p\.nii\.gz"):
        compare_files(path, path)


def test_a_file_that_is_not_there_or_no_nifti_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"missing\.nii"):
        compare_files(tmp_path / "missing.nii", tmp_path / "missing.nii")
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(StudyError, match=r"text\.nii"):
        compare_files(tmp_path / "text.nii", tmp_path / "text.nii")
