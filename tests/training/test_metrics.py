"""Agreement of two masks, on numbers worked out by hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from dicom.errors import Outcome, StudyError
from dicom.volume import Grid, write_nifti
from training.metrics import (
    GridMismatchError,
    NotAMaskError,
    PairMetrics,
    compare,
    compare_files,
    compare_lesions,
    hd95_mm,
)
from training.metrics_command import register_metrics

MM = (1.0, 1.0, 1.0)


def row(picture: str) -> np.ndarray:
    """One row of voxels of 1 mm3: `#` is lesion. A lesion needs 4 of them (more than 3 mm3)."""
    return np.array([[[character == "#" for character in picture]]])


def grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] = MM) -> Grid:
    return Grid(np.diag([*spacing_mm, 1.0]), shape)


# What Anima's analyzer counts: lesions of the reference and of the prediction, detected lesions
# of the reference, confirmed lesions of the prediction.
ANIMA = {
    "the same lesion": ("..####..", "..####..", 1, 1, 1, 1),
    "two lesions that do not meet": ("####......", ".....####.", 1, 1, 0, 0),
    "nothing in either": (".....", ".....", 0, 0, 0, 0),
    "a prediction where the reference is empty": (".....", ".####", 0, 1, 0, 0),
    "no prediction": (".####", ".....", 1, 0, 0, 0),
    "3 mm3 is not larger than 3 mm3, in both": ("###..####", "###..####", 1, 1, 1, 1),
    # The small reference lesion is background, so the prediction lies outside altogether.
    "a prediction on a small lesion": ("###.....", "########", 0, 1, 0, 0),
    "a lesion met by a small one alone": ("##########", "...###....", 1, 0, 0, 0),
    # 2 of 20 voxels are alpha exactly: not enough. 18 of 20 lie outside: not confirmed.
    "covered by alpha exactly": ("#" * 20 + "....", "." * 18 + "####..", 1, 1, 0, 0),
    # 2 of 19 are more than alpha; half of the prediction lies outside, less than beta. The other
    # way 17 of 19 lie outside: not confirmed.
    "covered by more than alpha": ("#" * 19 + ".....", "." * 17 + "####...", 1, 1, 1, 0),
    # 7 of 10 outside is beta exactly, and still good. The other way 3 of 10, 1 of 4 outside.
    "outside by beta exactly": ("####........", ".##########.", 1, 1, 1, 1),
    # 8 of 11 outside.
    "outside by more than beta": ("####........", ".###########", 1, 1, 0, 1),
    "one lesion split in two": ("##########", "####..####", 1, 2, 1, 2),
    "two lesions merged into one": ("####..####", "##########", 2, 1, 2, 1),
    # 20 of 28 lie outside both: neither is detected, but the prediction is confirmed: 8 of 28 is
    # more than alpha, and the two references lie inside.
    "two lesions merged over a wide gap": ("####" + "." * 20 + "####", "#" * 28, 2, 1, 0, 1),
    # 17 of 20 are covered. The first explains 13/17 = .76, more than gamma: the second, 16 of 20
    # outside, is never looked at.
    "gamma is reached by the first": (
        "." * 16 + "#" * 20,
        "#" * 20 + "..." + "#" * 13,
        1,
        2,
        1,
        2,
    ),
    # 14 of 20 are covered. The first explains 8/14 = .57, so the second, 24 of 30 outside, counts.
    "gamma is not reached by the first": (
        "." * 24 + "#" * 20,
        "#" * 30 + "......" + "#" * 8,
        1,
        2,
        0,
        2,
    ),
    # 21 of 30 are covered by 6 + 6 + 5 + 4. The first two explain 12/21 = .57, less than gamma,
    # and the third lies 15 of 20 outside, more than beta. But Anima looks at no more lesions than
    # the other side has labels, background included: here 2. So the lesion is detected.
    "anima looks at as many lesions as there are labels": (
        "." * 15 + "#" * 30,
        "#" * 20 + ".." + "#" * 6 + ".." + "#" * 6 + "....." + "####",
        1,
        4,
        1,
        4,
    ),
    # Two of three lesions found, one of three predictions false.
    "a patient": (
        "#####...#####...#####......",
        ".####....####..........####",
        3,
        3,
        2,
        2,
    ),
}


@pytest.mark.parametrize("name", ANIMA)
def test_lesions_are_counted_as_anima_counts(name: str) -> None:
    reference, prediction, *counts = ANIMA[name]
    assert len(str(reference)) >= len(str(prediction))
    first, second = row(str(reference)), row(str(prediction).ljust(len(str(reference)), "."))
    result = compare_lesions(first, second, MM)
    assert [
        result.reference_count,
        result.prediction_count,
        result.detected_count,
        result.confirmed_count,
    ] == counts
    turned = compare_lesions(second, first, MM)
    assert [turned.detected_count, turned.confirmed_count] == [counts[3], counts[2]]


def test_lesions_that_touch_at_a_corner_are_two() -> None:
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2, :2] = mask[0, 2:, 2:] = True
    assert compare_lesions(mask, mask, MM).reference_count == 2


@pytest.mark.parametrize(("voxels", "lesions"), [(2, 0), (3, 1)])
def test_the_smallest_lesion_depends_on_the_voxel(voxels: int, lesions: int) -> None:
    # 6.5 x 0.43 x 0.43 mm is 1.2 mm3: three voxels are more than 3 mm3, two are less.
    mask = np.zeros((1, 1, 9), bool)
    mask[0, 0, :voxels] = True
    assert compare_lesions(mask, mask, (6.5, 0.43, 0.43)).reference_count == lesions


def test_lesion_f1_is_the_harmonic_mean() -> None:
    result = compare_lesions(row("####.####.####"), row("####.........."), MM)
    assert result.sensitivity == pytest.approx(1 / 3)
    assert result.ppv == 1.0
    assert result.f1 == pytest.approx(2 * (1 / 3) / (4 / 3))


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


@pytest.mark.parametrize(
    ("voxel", "distance_mm"),
    [
        ((1, 0, 0), 6.5),
        ((0, 1, 0), 0.5),
        ((0, 0, 1), 0.25),
        ((0, 3, 8), np.hypot(1.5, 2.0)),
        ((0, 0, 0), 0.0),
    ],
)
def test_hd95_is_in_mm_along_every_axis(voxel: tuple[int, int, int], distance_mm: float) -> None:
    first, second = np.zeros((2, 2, 5, 9), bool)
    first[0, 0, 0] = True
    second[voxel] = True
    assert hd95_mm(first, second, (6.5, 0.5, 0.25)) == pytest.approx(distance_mm)


def test_hd95_is_the_percentile_of_the_worse_direction() -> None:
    # Every voxel of a one-voxel-wide row is surface. From the reference to the prediction all is
    # 0; from the prediction, 20 voxels are at 0 and one is at 10 mm: with the linear percentile,
    # position 0.95 x 20 = 19 of 0..20 is the last 0.
    first = row("#" * 20 + "." * 10)
    second = first.copy()
    second[0, 0, 29] = True
    assert hd95_mm(first, second, MM) == 0.0
    # Two voxels at 9 and 10 mm of 22: position 0.95 x 21 = 19.95 lies between 0 and 9.
    second[0, 0, 28] = True
    assert hd95_mm(first, second, MM) == pytest.approx(0.95 * 9)
    assert hd95_mm(second, first, MM) == pytest.approx(0.95 * 9)


def test_hd95_is_between_surfaces_not_between_volumes() -> None:
    # A hollow cube in a full one: the surfaces of both are alike, whatever is inside.
    full = np.zeros((9, 9, 9), bool)
    full[1:8, 1:8, 1:8] = True
    smaller = np.zeros_like(full)
    smaller[2:7, 2:7, 2:7] = True
    # From the middle of a face of the full cube 1 mm, from its edges sqrt 2, its corners sqrt 3.
    # 218 surface voxels: 150 in faces, 60 on edges, 8 corners; the 95th percentile is an edge's.
    assert hd95_mm(full, smaller, MM) == pytest.approx(np.sqrt(2))


def empty() -> np.ndarray:
    return row("........")


def some() -> np.ndarray:
    return row("..####..")


def overlap_of(result: PairMetrics) -> list[float | None]:
    return [
        result.dsc,
        result.iou,
        result.sensitivity,
        result.ppv,
        result.hd95_mm,
        result.lesion.f1,
        result.lesion.sensitivity,
        result.lesion.ppv,
    ]


def test_two_empty_masks_have_no_dice() -> None:
    assert overlap_of(compare(empty(), empty(), grid((1, 1, 8)))) == [None] * 8


def test_a_prediction_where_there_is_nothing_has_dice_0_and_no_sensitivity() -> None:
    result = compare(empty(), some(), grid((1, 1, 8)))
    assert overlap_of(result) == [0, 0, None, 0, None, 0, None, 0]
    assert result.lesion.as_json()["false_count"] == 1


def test_no_prediction_where_there_is_something_has_dice_0_and_no_ppv() -> None:
    result = compare(some(), empty(), grid((1, 1, 8)))
    assert overlap_of(result) == [0, 0, 0, None, None, 0, 0, None]
    assert result.lesion.as_json()["missed_count"] == 1


def test_masks_without_a_common_voxel_have_a_distance() -> None:
    result = compare(row("####......"), row("......####"), grid((1, 1, 10)))
    assert overlap_of(result)[:4] == [0, 0, 0, 0]
    assert result.lesion.f1 == 0
    # Distances 6, 5, 4, 3 mm: position 0.95 x 3 = 2.85.
    assert result.hd95_mm == pytest.approx(5.85)


masks = arrays(bool, (3, 4, 5))


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_dice_iou_and_hd95_are_symmetric_and_ppv_is_sensitivity_turned(
    first: np.ndarray, second: np.ndarray
) -> None:
    there = compare(first, second, grid((3, 4, 5), (3.0, 1.0, 0.5)))
    back = compare(second, first, grid((3, 4, 5), (3.0, 1.0, 0.5)))
    assert (there.dsc, there.iou, there.hd95_mm) == (back.dsc, back.iou, back.hd95_mm)
    assert (there.ppv, there.sensitivity) == (back.sensitivity, back.ppv)
    assert (there.lesion.ppv, there.lesion.f1) == (back.lesion.sensitivity, back.lesion.f1)
    if there.dsc is not None and there.iou is not None:
        assert there.dsc == pytest.approx(2 * there.iou / (1 + there.iou))


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
    assert printed == {
        "dsc": 1.0,
        "iou": 1.0,
        "ppv": 1.0,
        "sensitivity": 1.0,
        "hd95_mm": 0.0,
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
