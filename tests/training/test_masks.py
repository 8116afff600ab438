"""Masks of every form become the same voxels, and what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from dicom.errors import StudyError
from dicom.volume import Grid, Volume, read_nifti, read_volume, write_nifti
from tests.conftest import FlairSeries, oblique_affine
from tests.training.cohorts import GRID, SHAPE, head, lesion, volume, write_seg
from training.cohort import SliceOrder
from training.masks import (
    LabelMaps,
    MaskRules,
    read_mask_for,
    refuse_mirrored,
    refuse_unlikely,
    to_binary,
)

Make = Callable[..., FlairSeries]
MASK = lesion(3)


def refusal(image: Volume, path: Path, rules: MaskRules | None = None) -> str:
    with pytest.raises(StudyError) as caught:
        read_mask_for(image, path, rules or MaskRules())
    return caught.value.reason


# --- NIfTI ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 255, 7])
def test_any_one_value_is_lesion(tmp_path: Path, value: int) -> None:
    write_nifti(tmp_path / "m.nii.gz", MASK.astype(np.uint8) * value, GRID)
    found = read_mask_for(volume(MASK), tmp_path / "m.nii.gz", MaskRules())
    assert found.mask.dtype == np.bool_
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.found == f"values 0 and {value}"


def test_several_labels_are_merged_only_when_somebody_says_so(tmp_path: Path) -> None:
    labels = MASK.astype(np.uint8)
    labels[4] *= 2
    write_nifti(tmp_path / "m.nii.gz", labels, GRID)
    assert refusal(volume(MASK), tmp_path / "m.nii.gz") == "mask-not-binary"
    merged = read_mask_for(volume(MASK), tmp_path / "m.nii.gz", MaskRules(labels=LabelMaps.MERGED))
    np.testing.assert_array_equal(merged.mask, MASK)


@pytest.mark.parametrize("values", [[0, 0.3, 1], [0.2, 0.9], [1, 1], [-1, 0], [1, 2]], ids=str)
def test_what_is_no_mask_is_refused_whatever_is_said_of_labels(values: list[float]) -> None:
    with pytest.raises(StudyError) as caught:
        to_binary(np.array(values), LabelMaps.MERGED)
    assert caught.value.reason == "mask-not-binary"


@pytest.mark.parametrize("shift_mm", [0.04, 0.06])
def test_a_mask_may_lie_5_hundredths_of_a_millimetre_off(tmp_path: Path, shift_mm: float) -> None:
    affine = GRID.affine.copy()
    affine[1, 3] += shift_mm
    write_nifti(tmp_path / "m.nii.gz", MASK, Grid(affine, SHAPE))
    if shift_mm < 0.05:
        found = read_mask_for(volume(MASK), tmp_path / "m.nii.gz", MaskRules())
        np.testing.assert_array_equal(found.mask, MASK)
    else:
        assert refusal(volume(MASK), tmp_path / "m.nii.gz") == "grid-mismatch"


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "m.nii.gz", MASK[:, ::2], Grid(GRID.affine, (6, 10, 16)))
    assert refusal(volume(MASK), tmp_path / "m.nii.gz") == "grid-mismatch"


def flipped(grid: Grid, axis: int) -> Grid:
    """The same box of voxels, counted from the other end."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (grid.shape[axis] - 1)
    affine[:3, axis] *= -1
    return Grid(affine, grid.shape)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_whose_axes_run_another_way_is_refused_beside_a_nifti_image(
    tmp_path: Path, axis: int
) -> None:
    write_nifti(tmp_path / "m.nii.gz", np.flip(MASK, axis), flipped(GRID, axis))
    assert refusal(volume(MASK), tmp_path / "m.nii.gz") == "mask-orientation"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_beside_a_dicom_series_a_converter_chose_the_axes_and_they_are_put_back(
    tmp_path: Path, make_flair_series: Make, axis: int
) -> None:
    image = read_volume(make_flair_series(voxels=head(MASK), spacing_mm=(6.5, 0.5, 0.75)).series)
    write_nifti(tmp_path / "m.nii.gz", np.flip(MASK, axis), flipped(image.grid, axis))
    found = read_mask_for(image, tmp_path / "m.nii.gz", MaskRules())
    np.testing.assert_array_equal(found.mask, MASK)
    assert "reordered" in found.found


def test_a_missing_a_corrupt_and_a_truncated_mask_have_their_reasons(tmp_path: Path) -> None:
    image = volume(MASK)
    assert refusal(image, tmp_path / "none.nii.gz") == "mask-missing"
    (tmp_path / "empty").mkdir()
    assert refusal(image, tmp_path / "empty") == "mask-missing"
    (tmp_path / "text.nii.gz").write_bytes(b"no image")
    assert refusal(image, tmp_path / "text.nii.gz") == "unreadable"
    (tmp_path / "text.xyz").write_bytes(b"no image")
    assert refusal(image, tmp_path / "text.xyz") == "unreadable"
    write_nifti(tmp_path / "m.nii", MASK, GRID)
    (tmp_path / "cut.nii").write_bytes((tmp_path / "m.nii").read_bytes()[:-40])
    assert refusal(image, tmp_path / "cut.nii") == "truncated-file"


# --- Segmentation ---------------------------------------------------------------------------


@pytest.fixture
def made(make_flair_series: Make) -> FlairSeries:
    return make_flair_series(voxels=head(MASK), spacing_mm=(6.5, 0.5, 0.75))


def test_the_segments_of_a_segmentation_are_united_by_geometry(
    tmp_path: Path, made: FlairSeries
) -> None:
    write_seg(tmp_path / "seg.dcm", made, MASK)
    found = read_mask_for(read_volume(made.series), tmp_path / "seg.dcm", MaskRules())
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.found == "2 segments, united"


def test_a_segmentation_lies_on_a_nifti_image_of_any_order_of_axes(
    tmp_path: Path, made: FlairSeries
) -> None:
    write_seg(tmp_path / "seg.dcm", made, MASK)
    grid = flipped(flipped(Grid(made.affine, SHAPE), 1), 0)
    image = Volume(np.flip(head(MASK), (0, 1)).astype(np.float32), grid)
    found = read_mask_for(image, tmp_path / "seg.dcm", MaskRules())
    np.testing.assert_array_equal(found.mask, np.flip(MASK, (0, 1)))


def shift_frames(mm: float) -> Callable[[Dataset], None]:
    def change(seg: Dataset) -> None:
        for group in seg.PerFrameFunctionalGroupsSequence:
            position = group.PlanePositionSequence[0].ImagePositionPatient
            position[0] = float(position[0]) + mm

    return change


def other_frame(seg: Dataset) -> None:
    seg.FrameOfReferenceUID = "2.25.1"


def fractional(seg: Dataset) -> None:
    seg.SegmentationType = "FRACTIONAL"


def cut_pixels(seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[:-60]


def coarser(seg: Dataset) -> None:
    group = seg.SharedFunctionalGroupsSequence[0]
    group.PixelMeasuresSequence[0].PixelSpacing = [0.25, 0.375]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shift_frames(0.2), "grid-mismatch"),
        (shift_frames(500), "grid-mismatch"),
        (other_frame, "grid-mismatch"),
        (coarser, "grid-mismatch"),
        (fractional, "mask-not-binary"),
        (cut_pixels, "truncated-file"),
    ],
    ids=["beside", "far off", "other frame", "coarser", "fractional", "cut"],
)
def test_a_segmentation_that_does_not_fit_is_refused(
    tmp_path: Path, made: FlairSeries, change: Callable[[Dataset], None], reason: str
) -> None:
    write_seg(tmp_path / "seg.dcm", made, MASK, change)
    assert refusal(read_volume(made.series), tmp_path / "seg.dcm") == reason


def test_an_image_is_no_segmentation_and_two_are_one_too_many(
    tmp_path: Path, made: FlairSeries
) -> None:
    image = read_volume(made.series)
    assert refusal(image, made.paths[0]) == "unreadable"
    assert refusal(image, made.folder) == "several-masks"


# --- pictures -------------------------------------------------------------------------------


def put_pictures(
    folder: Path,
    mask: npt.NDArray[np.bool_],
    draw: Callable[[npt.NDArray[np.bool_]], Any] = lambda one: one.astype(np.uint8) * 255,
    first: int = 1,
) -> Path:
    """A picture per slice, named slice1, slice2, ... slice10 (which sorts after slice9)."""
    folder.mkdir(parents=True)
    for number, one in enumerate(mask, first):
        Image.fromarray(draw(one)).save(folder / f"slice{number}.png")
    return folder


def twice(one: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.kron(one, np.ones((2, 2))).astype(np.uint8) * 255


def paint(one: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Red on the grey picture, as with a drawing program."""
    picture = np.full((*one.shape, 3), 90, np.uint8)
    picture[one] = (230, 40, 40)
    return picture


def on_glass(one: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """White on nothing: what is transparent may hold any colour."""
    picture = np.full((*one.shape, 4), (200, 10, 10, 0), np.uint8)
    picture[one] = 255
    return picture


@pytest.fixture
def axial() -> Volume:
    """DICOM-like order: slices upwards, rows towards the back, columns to the patient's left."""
    return volume(MASK)


@pytest.mark.parametrize(
    "draw",
    [
        lambda one: one.astype(np.uint8) * 255,
        lambda one: one.astype(np.uint8),
        lambda one: one.astype(np.uint16) * 4000,
        lambda one: one,  # 1 bit
        twice,
        paint,
        on_glass,
    ],
    ids=["255", "1", "16 bit", "1 bit", "twice as large", "painted", "transparent"],
)
def test_pictures_of_any_convention_become_the_mask(
    tmp_path: Path, axial: Volume, draw: Callable[[npt.NDArray[np.bool_]], Any]
) -> None:
    folder = put_pictures(tmp_path / "pictures", MASK, draw)
    rules = MaskRules(SliceOrder.FOOT_TO_HEAD)
    np.testing.assert_array_equal(read_mask_for(axial, folder, rules).mask, MASK)


def test_file_names_are_counted_as_people_count(tmp_path: Path) -> None:
    mask = lesion(3, (12, 20, 16))
    image = volume(mask, grid=Grid(GRID.affine, mask.shape))
    folder = put_pictures(tmp_path / "pictures", mask)
    found = read_mask_for(image, folder, MaskRules(SliceOrder.FOOT_TO_HEAD))
    np.testing.assert_array_equal(found.mask, mask)


def test_pictures_from_the_vertex_down_and_numbered_ones(tmp_path: Path, axial: Volume) -> None:
    down = put_pictures(tmp_path / "down", MASK[::-1])
    found = read_mask_for(axial, down, MaskRules(SliceOrder.HEAD_TO_FOOT))
    np.testing.assert_array_equal(found.mask, MASK)
    some = put_pictures(tmp_path / "some", MASK[2:5], first=3)  # slices 3, 4, 5
    found = read_mask_for(axial, some, MaskRules(SliceOrder.NUMBERED_FOOT_TO_HEAD))
    np.testing.assert_array_equal(found.mask, MASK)
    some = put_pictures(tmp_path / "some-down", MASK[4:1:-1], first=2)  # slice 4 is the second
    found = read_mask_for(axial, some, MaskRules(SliceOrder.NUMBERED_HEAD_TO_FOOT))
    np.testing.assert_array_equal(found.mask, MASK)


def test_on_a_nifti_image_pictures_are_laid_as_a_radiologist_sees_them(tmp_path: Path) -> None:
    """A NIfTI file mostly counts rows from the back and columns from the left."""
    grid = flipped(flipped(GRID, 1), 2)
    stored = np.flip(MASK, (1, 2))
    folder = put_pictures(tmp_path / "pictures", MASK)
    found = read_mask_for(volume(stored, grid=grid), folder, MaskRules(SliceOrder.FOOT_TO_HEAD))
    np.testing.assert_array_equal(found.mask, stored)


def test_nobody_guesses_which_picture_lies_where(tmp_path: Path, axial: Volume) -> None:
    folder = put_pictures(tmp_path / "pictures", MASK)
    assert refusal(axial, folder) == "slice-order"
    (folder / "slice6.png").unlink()
    assert refusal(axial, folder, MaskRules(SliceOrder.FOOT_TO_HEAD)) == "slice-order"
    (folder / "slice5.png").rename(folder / "slice7.png")
    assert refusal(axial, folder, MaskRules(SliceOrder.NUMBERED_FOOT_TO_HEAD)) == "slice-order"


def test_pictures_that_are_no_mask_are_refused(tmp_path: Path, axial: Volume) -> None:
    rules = MaskRules(SliceOrder.FOOT_TO_HEAD)
    square = put_pictures(tmp_path / "square", np.zeros((6, 30, 30), bool))
    assert refusal(axial, square, rules) == "picture-shape"
    grey = np.random.default_rng(0).integers(0, 255, (20, 16), np.uint8)
    shades = put_pictures(tmp_path / "shades", MASK, lambda one: grey)
    assert refusal(axial, shades, rules) == "mask-not-binary"
    cut = put_pictures(tmp_path / "cut", MASK)
    content = (cut / "slice3.png").read_bytes()
    (cut / "slice3.png").write_bytes(content[:50])
    assert refusal(axial, cut, rules) == "truncated-file"


def test_pictures_are_laid_on_axial_slices_alone(tmp_path: Path, make_flair_series: Make) -> None:
    sagittal = oblique_affine((6.5, 0.5, 0.75), (0, 90, 0))
    image = volume(MASK, grid=Grid(sagittal, SHAPE))
    folder = put_pictures(tmp_path / "pictures", MASK)
    assert refusal(image, folder, MaskRules(SliceOrder.FOOT_TO_HEAD)) == "mask-orientation"
    upside_down = flipped(flipped(GRID, 1), 2).affine
    made = make_flair_series(voxels=head(MASK), affine=upside_down)
    image = read_volume(made.series)
    assert refusal(image, folder, MaskRules(SliceOrder.FOOT_TO_HEAD)) == "mask-orientation"


# --- plausibility ---------------------------------------------------------------------------


def test_a_mask_beside_the_head_is_refused() -> None:
    beside = np.zeros(SHAPE, np.bool_)
    beside[:, 0, :5] = True
    with pytest.raises(StudyError) as caught:
        refuse_unlikely(beside, volume(MASK))
    assert caught.value.reason == "mask-off-head"
    refuse_unlikely(MASK, volume(MASK))
    refuse_unlikely(np.zeros(SHAPE, np.bool_), volume(MASK))


def patch(slices: slice, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
    mask = np.zeros(SHAPE, np.bool_)
    mask[slices, rows, columns] = True
    return mask


@pytest.mark.parametrize("axes", [(2,), (1,), (0,), (1, 2), (0, 1, 2)], ids=str)
def test_a_mask_whose_mirror_image_lies_on_the_lesions_is_refused(axes: tuple[int, ...]) -> None:
    lesions = patch(slice(0, 2), slice(3, 8), slice(3, 8))  # 50 voxels, twice as bright as the rest
    refuse_mirrored(lesions, volume(lesions))
    with pytest.raises(StudyError, match="mirrored") as caught:
        refuse_mirrored(np.flip(lesions, axes), volume(lesions))
    assert caught.value.reason == "mask-orientation"


def test_faint_lesions_and_few_voxels_are_left_to_the_reader() -> None:
    lesions = patch(slice(0, 2), slice(3, 8), slice(3, 8))
    nothing = np.zeros(SHAPE, np.bool_)
    refuse_mirrored(np.flip(lesions, 2), volume(nothing))
    few = lesions.copy()
    few[0, 3, 3] = False  # 49
    refuse_mirrored(np.flip(few, 2), volume(few))


@pytest.mark.parametrize("patient", ["patient07", "patient19"])
def test_a_real_mask_is_refused_when_its_voxels_were_mirrored(
    shared_data: Path, patient: str
) -> None:
    folder = shared_data / "ms_mni" / patient
    image = read_nifti(folder / "flair.nii.gz")
    mask = read_nifti(folder / "lesion.nii.gz").voxels > 0
    refuse_mirrored(mask, image)
    with pytest.raises(StudyError, match="left to right"):
        refuse_mirrored(np.flip(mask, 2), image)
