"""Masks of a cohort as they come, and as training needs them: 0 and 1 on the grid of the image.

A mask comes as NIfTI, as a DICOM Segmentation (BINARY; its segments are united), or as a folder of
pictures, one per slice, of any size and any of the usual values (0/1, 0/255, painted colour).
Standardising changes no lesion: NIfTI and Segmentation must lie on the voxels of the image, and
pictures are brought to its rows and columns with the nearest neighbour. What does not fit is
refused by name, not repaired, for a mask that was repaired wrongly trains a model that is wrong.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from dicom.attributes import text
from dicom.errors import (
    MissingAttributeError,
    SeriesError,
    StudyError,
    TruncatedFileError,
    UnreadableError,
)
from dicom.volume import Grid, Volume, read_nifti
from pipeline.morphology import Mask
from pipeline.orientation import axial_view
from training.cohort import SliceOrder
from training.metrics import SAME_PLACE_MM, GridMismatchError, refuse_other_grid

PICTURE_ENDINGS = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg"})
ASPECT_TOLERANCE = 0.02  # of the aspect ratio: an odd number of rows, halved, gives less
COLOUR_SPREAD = 64  # of 255 between the channels of a pixel: paint; JPEG colours grey by up to 20
AIR = 0.25  # of the median of the head: air, or what a skull strip removed
MOST_ON_AIR = 0.5  # of the marked voxels; of real masks it is some per mille

BRIGHT = 1.15  # medians of the head: a mask that marks this lies on lesions (1.21 to 1.32 seen)
GAIN_OF_A_FLIP = 0.15  # medians of the head: between the 0.06 and the 0.27 of `refuse_mirrored`
FEWEST_TO_JUDGE = 50  # voxels: the median of fewer is chance

_FLIPS: tuple[tuple[tuple[int, ...], str], ...] = (
    ((2,), "left to right"),
    ((1,), "front to back"),
    ((0,), "foot to head"),
    ((1, 2), "left to right and front to back"),
    ((0, 2), "left to right and foot to head"),
    ((0, 1), "front to back and foot to head"),
    ((0, 1, 2), "along all axes"),
)

MaskForm = Literal["nifti", "segmentation", "pictures"]


class MissingMaskError(StudyError):
    """The case has no mask."""

    reason = "mask-missing"


class SeveralMasksError(StudyError):
    """More than one mask for one image, and nothing says which is meant."""

    reason = "several-masks"


class MaskOrientationError(SeriesError):
    """The mask is on the voxels of the image, but runs another way: by its header or its looks."""

    reason = "mask-orientation"


class NotBinaryError(SeriesError):
    """More than two values, or none that could be background."""

    reason = "mask-not-binary"


class EmptyMaskError(StudyError):
    """No voxel is marked, and nobody said that the patient is free of lesions."""

    reason = "mask-empty"


class SliceOrderError(StudyError):
    """Nobody said which picture lies on which slice, or the pictures do not fit what was said."""

    reason = "slice-order"


class PictureSizeError(SeriesError):
    """A picture has another shape than the slices: stretched or padded, nobody can know."""

    reason = "picture-shape"


class MaskOffHeadError(SeriesError):
    """Most of what is marked lies on air: the mask is turned, flipped or of somebody else."""

    reason = "mask-off-head"


class LabelMaps(Enum):
    """What becomes of a mask with several labels, such as active and inactive lesions."""

    REFUSED = "refused"
    MERGED = "merged"


@dataclass(frozen=True, slots=True)
class MaskRules:
    """What a person has said about the masks of a cohort."""

    slice_order: SliceOrder | None = None
    labels: LabelMaps = LabelMaps.REFUSED


@dataclass(frozen=True, slots=True, eq=False)
class StandardMask:
    """A mask on the grid of its image."""

    mask: Mask
    form: MaskForm
    found: str
    """What was there before, in words."""


def read_mask_for(image: Volume, path: Path, rules: MaskRules) -> StandardMask:
    """The mask of an image, standardised.

    Raises:
        MissingMaskError: Nothing is there.
        UnreadableError, TruncatedFileError: No mask of a known form, or one that is damaged.
        GridMismatchError: It does not lie on the voxels of the image: another number of them, or
            corners more than `SAME_PLACE_MM` apart, or another Frame of Reference.
        MaskOrientationError, NotBinaryError, SeveralMasksError, SliceOrderError, PictureSizeError:
            As they say.
    """
    if path.is_dir():
        return _read_folder(image, path, rules)
    if not path.is_file():
        raise MissingMaskError("the mask is not there")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _from_nifti(image, path, rules)
    return _from_seg(image, path)


def refuse_unlikely(mask: Mask, image: Volume) -> None:
    """Refuse a mask that lies beside the head.

    Raises:
        MaskOffHeadError: More than `MOST_ON_AIR` of it lies on air.
    """
    marked = image.voxels[mask]
    level = head_level(image)
    share = float(np.mean(marked <= AIR * level)) if marked.size else 0.0
    if share > MOST_ON_AIR:
        raise MaskOffHeadError(f"{100 * share:.0f} % of the marked voxels lie on air")


def refuse_mirrored(mask: Mask, image: Volume) -> None:
    """Refuse a mask that would lie on lesions if it were flipped: no header shows that it is.

    Lesions are bright on FLAIR. Of ten masks of this project that fit, none gains more than 0.06 of
    the median of the head by a flip along any axes; the two full lesion masks, mirrored on purpose,
    gain 0.27 to 0.37 by the flip back. A mask of few voxels, or of faint lesions, says nothing:
    the reader of its overlay remains the judge.

    Raises:
        MaskOrientationError: What it marks is not bright, and what its mirror image marks is.
    """
    level = head_level(image)
    if np.count_nonzero(mask) < FEWEST_TO_JUDGE or level <= 0:
        return
    view = axial_view(image.grid)
    voxels, seen = view.apply(image.voxels), view.apply(mask)
    given = float(np.median(voxels[seen])) / level
    for axes, words in _FLIPS:
        flipped = float(np.median(voxels[np.flip(seen, axes)])) / level
        if given < BRIGHT and flipped > given + GAIN_OF_A_FLIP:
            raise MaskOrientationError(
                f"what is marked is {given:.2f} times as bright as the head; mirrored {words} it "
                f"would be {flipped:.2f}: turn the mask, or say mask_checked if it is right"
            )


def head_level(image: Volume) -> float:
    """Median of what is head and not air."""
    bright = image.voxels[image.voxels > 0.3 * np.percentile(image.voxels, 99)]
    return float(np.median(bright)) if bright.size else 0.0


def to_binary(values: npt.NDArray[np.generic], labels: LabelMaps) -> tuple[Mask, str]:
    """0 is background; one other value is lesion; several are a label map.

    Raises:
        NotBinaryError: See `LabelMaps`; moreover values below 0, and an image without background.
    """
    found = np.unique(values)
    if not np.isfinite(found.astype(np.float64)).all() or found[0] != 0:
        raise NotBinaryError(
            f"{len(found)} values from {found[0]:g}: 0 must be there, as the background"
        )
    if len(found) > 2:
        whole = bool((found == np.round(found.astype(np.float64))).all())
        if labels is not LabelMaps.MERGED or not whole:
            raise NotBinaryError(
                f"{len(found)} values from {found[0]:g} to {found[-1]:g}, where a mask has two"
                + (": say that labels are to be merged, if they are labels" if whole else "")
            )
        return values != 0, f"{len(found) - 1} labels, merged"
    lesion = f" and {found[1]:g}" if len(found) == 2 else " alone"
    return values != 0, f"values 0{lesion}"


# --- NIfTI ----------------------------------------------------------------------------------


def _from_nifti(image: Volume, path: Path, rules: MaskRules) -> StandardMask:
    volume = read_nifti(path)
    mask, found = to_binary(volume.voxels, rules.labels)
    try:
        refuse_other_grid(image.grid, volume.grid)
    except GridMismatchError as error:
        ours, theirs = axial_view(image.grid), axial_view(volume.grid)
        try:
            refuse_other_grid(ours.grid, theirs.grid)
        except GridMismatchError:
            raise error from None
        if not image.sop_instance_uids:
            # A tool that draws on a NIfTI image keeps its axes. One that turned them may have
            # turned the header alone, or the voxels alone, and the mask would be a mirror image.
            raise MaskOrientationError(
                "the axes of the mask run another way than those of the image: save it again on "
                "the grid of the image, and look whether it still lies on the lesions"
            ) from None
        # Of a DICOM series the converter chose the order of the axes (dcm2niix flips the rows).
        return StandardMask(ours.invert(theirs.apply(mask)), "nifti", f"{found}, axes reordered")
    return StandardMask(mask, "nifti", found)


# --- DICOM Segmentation ---------------------------------------------------------------------


def _from_seg(image: Volume, path: Path) -> StandardMask:
    seg = _read_seg(path)
    if text(seg, "SegmentationType") != "BINARY":
        raise NotBinaryError("a Segmentation that is not BINARY")
    wanted, frame_of_reference = image.grid.frame_of_reference_uid, text(seg, "FrameOfReferenceUID")
    if wanted and frame_of_reference != wanted:
        raise GridMismatchError("the Segmentation has another Frame of Reference than the image")
    frames = _seg_pixels(seg)
    mask = np.zeros(image.grid.shape, np.bool_)
    for number, pixels in enumerate(frames):
        _paint(mask, image.grid, pixels, _frame_affine(seg, number))
    segments = len(seg.get("SegmentSequence", ()))
    return StandardMask(mask, "segmentation", f"{segments} segments, united")


def _read_seg(path: Path) -> Dataset:
    try:
        seg = pydicom.dcmread(path)
    except InvalidDicomError as error:
        raise UnreadableError("the mask is neither NIfTI nor DICOM nor a folder") from error
    except (OSError, EOFError, ValueError, LookupError, struct.error) as error:
        raise TruncatedFileError("the Segmentation cannot be read to its end") from error
    if text(seg, "SOPClassUID") != SegmentationStorage:
        raise UnreadableError("a DICOM object that is no Segmentation")
    return seg


def _seg_pixels(seg: Dataset) -> npt.NDArray[np.bool_]:
    """(frames, rows, columns)."""
    try:
        pixels = np.asarray(seg.pixel_array)
    except (AttributeError, LookupError, RuntimeError, ValueError, NotImplementedError) as error:
        raise TruncatedFileError("the pixels of the Segmentation cannot be read") from error
    marked: npt.NDArray[np.bool_] = pixels.reshape(-1, *pixels.shape[-2:]) > 0
    if len(marked) != len(seg.get("PerFrameFunctionalGroupsSequence", ())):
        raise TruncatedFileError("the Segmentation has not one position for each of its frames")
    return marked


def _frame_affine(seg: Dataset, number: int) -> npt.NDArray[np.float64]:
    """(4, 3), maps (row, column, 1) to LPS mm."""
    along = np.array(
        _macro(seg, number, "PlaneOrientationSequence", "ImageOrientationPatient"), float
    )
    spacing = np.array(_macro(seg, number, "PixelMeasuresSequence", "PixelSpacing"), float)
    position = np.array(_macro(seg, number, "PlanePositionSequence", "ImagePositionPatient"), float)
    affine = np.zeros((4, 3))
    affine[:3, 0] = along[3:] * spacing[0]
    affine[:3, 1] = along[:3] * spacing[1]
    affine[:3, 2] = position
    affine[3, 2] = 1
    return affine


def _macro(seg: Dataset, number: int, sequence: str, keyword: str) -> Sequence[float]:
    groups = [seg.PerFrameFunctionalGroupsSequence[number]]
    groups += list(seg.get("SharedFunctionalGroupsSequence", ()))
    for group in groups:
        for item in group.get(sequence, ()):
            if item.get(keyword) is not None:
                return list(item.get(keyword))
    raise MissingAttributeError(f"the Segmentation has no {keyword} for frame {number + 1}")


def _paint(
    mask: Mask,
    grid: Grid,
    pixels: npt.NDArray[np.bool_],
    affine: npt.NDArray[np.float64],
) -> None:
    """Mark the voxels of the image on which the marked pixels of a frame lie."""
    to_image = np.linalg.inv(grid.affine) @ affine  # (4, 3): (row, column, 1) to an index
    steps = np.abs(np.round(to_image[:3, :2]))
    rows, columns = pixels.shape
    corners = np.array([[r, c, 1] for r in (0, rows - 1) for c in (0, columns - 1)], float).T
    at = (to_image @ corners)[:3]
    off_mm = np.linalg.norm(grid.affine[:3, :3] @ (at - np.round(at)), axis=0).max()
    if off_mm > SAME_PLACE_MM or not (steps.sum(axis=0) == 1).all():
        raise GridMismatchError(
            f"the pixels of the Segmentation lie up to {off_mm:.2f} mm beside the voxels of the "
            "image, or have another size"
        )
    row, column = np.nonzero(pixels)
    index = np.round(to_image @ np.stack([row, column, np.ones_like(row)]))[:3].astype(np.int64)
    if ((index < 0) | (index >= np.array(grid.shape)[:, None])).any():
        raise GridMismatchError("the Segmentation marks places beyond the image")
    mask[tuple(index)] = True


# --- pictures -------------------------------------------------------------------------------


def _read_folder(image: Volume, folder: Path, rules: MaskRules) -> StandardMask:
    files = sorted(
        (path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")),
        key=_in_counting_order,
    )
    pictures = [path for path in files if path.suffix.lower() in PICTURE_ENDINGS]
    if pictures:
        return _from_pictures(image, pictures, rules)
    if not files:
        raise MissingMaskError("the folder of the mask is empty")
    if len(files) > 1:
        raise SeveralMasksError(f"{len(files)} files in the folder of the mask, none a picture")
    return read_mask_for(image, files[0], rules)


def _in_counting_order(path: Path) -> tuple[tuple[int, int | str], ...]:
    """slice2 before slice10."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def _from_pictures(image: Volume, paths: Sequence[Path], rules: MaskRules) -> StandardMask:
    view = axial_view(image.grid)
    # A picture is what a viewer shows. Of DICOM it shows rows and columns as they are stored; of
    # NIfTI, where nothing is stored for the eye, the axial view: patient's right at the left.
    shown_as_stored = view.axes == (0, 1, 2) and not any(view.flipped[1:])
    if view.acquired != "axial" or (image.sop_instance_uids and not shown_as_stored):
        raise MaskOrientationError("pictures are laid on axial slices alone: give NIfTI or SEG")
    slices = _slices_of(paths, view.grid.shape[0], rules.slice_order)
    read = [_read_picture(path) for path in paths]
    painted = any(_is_paint(picture).any() for picture in read)
    flat = [_is_paint(one).astype(np.uint8) if painted else one.max(axis=2) for one in read]
    found = "painted colour"
    if not painted:
        # One convention for the whole folder: a slice without lesions shows only its 0.
        _, found = to_binary(np.unique(np.concatenate([one.ravel() for one in flat])), rules.labels)
    seen = np.zeros(view.grid.shape, np.bool_)
    for number, picture in zip(slices, flat, strict=True):
        seen[number] = _nearest(picture != 0, view.grid)
    sizes = sorted({(one.shape[1], one.shape[0]) for one in flat})
    size = ", ".join(f"{width} x {height}" for width, height in sizes)
    return StandardMask(view.invert(seen), "pictures", f"{len(read)} pictures of {size}, {found}")


def _slices_of(paths: Sequence[Path], slices: int, order: SliceOrder | None) -> list[int]:
    """Slice of each picture, 0 the lowest."""
    if order is None:
        raise SliceOrderError(
            "nobody said which picture lies on which slice: state slice_order as "
            + ", ".join(one.value for one in SliceOrder)
        )
    if order in (SliceOrder.FOOT_TO_HEAD, SliceOrder.HEAD_TO_FOOT):
        if len(paths) != slices:
            raise SliceOrderError(f"{len(paths)} pictures for {slices} slices")
        found = list(range(slices))
    else:
        numbers = [re.findall(r"\d+", path.stem) for path in paths]
        if not all(numbers):
            raise SliceOrderError("a picture without a number in its name")
        found = [int(one[-1]) - 1 for one in numbers]
        if min(found) < 0 or max(found) >= slices or len(set(found)) < len(found):
            raise SliceOrderError(
                f"pictures numbered {min(found) + 1} to {max(found) + 1} for {slices} slices, "
                "each once, from 1"
            )
    down = order in (SliceOrder.HEAD_TO_FOOT, SliceOrder.NUMBERED_HEAD_TO_FOOT)
    return [slices - 1 - one for one in found] if down else found


def _read_picture(path: Path) -> npt.NDArray[np.int32]:
    """(rows, columns, 1 or 3); what is transparent is 0."""
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode in ("P", "PA", "LA", "RGBA", "CMYK", "YCbCr"):
                rgba = np.asarray(picture.convert("RGBA"), np.int32)
                return np.where(rgba[..., 3:] >= 128, rgba[..., :3], 0)
            values = np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise TruncatedFileError("a picture of the mask is damaged or no picture") from error
    return np.atleast_3d(values.astype(np.int32))


def _is_paint(picture: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    if picture.shape[2] == 1:
        return np.zeros(picture.shape[:2], np.bool_)
    spread: npt.NDArray[np.bool_] = np.ptp(picture, axis=2) >= COLOUR_SPREAD
    return spread


def _nearest(picture: npt.NDArray[np.bool_], grid: Grid) -> npt.NDArray[np.bool_]:
    """The picture on the rows and columns of a slice; both cover the same field of view."""
    height, width = picture.shape
    _, rows, columns = grid.shape
    _, row_mm, column_mm = grid.spacing_mm
    as_stored, as_seen = columns / rows, columns * column_mm / (rows * row_mm)
    if all(
        abs(width / height - wanted) > ASPECT_TOLERANCE * wanted for wanted in (as_stored, as_seen)
    ):
        raise PictureSizeError(
            f"a picture of {width} x {height} for slices of {columns} x {rows} pixels"
        )
    # The middle of each pixel of the slice, in the picture.
    row = ((np.arange(rows) + 0.5) * height / rows).astype(np.int64)
    column = ((np.arange(columns) + 0.5) * width / columns).astype(np.int64)
    resized: npt.NDArray[np.bool_] = picture[row[:, None], column]
    return resized
