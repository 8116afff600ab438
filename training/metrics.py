"""How well one mask agrees with another: overlap, distance, volume, and lesion by lesion.

Edge cases, where libraries disagree (`reference/ms_facts.md` section 3):

==================== ============ =========== ========== ============ ========== ===========
                     `dsc`, `iou` sensitivity ppv        hd95_mm      lesion f1  in a mean
==================== ============ =========== ========== ============ ========== ===========
both empty           None         None        None       None         None       left out: a
                                                                                 correct
                                                                                 negative
reference empty      0            None        0          None         0          counts
prediction empty     0            0           None       None         0          counts
no common voxel      0            0           0          a distance   0          counts
==================== ============ =========== ========== ============ ========== ===========

None is "not defined" (0/0), and `null` in JSON. It is never 0 and never 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from scipy import ndimage

from dicom.errors import SeriesError, StudyError, UnreadableError
from dicom.volume import Grid, read_nifti

Mask = npt.NDArray[np.bool_]

SAME_PLACE_MM = 0.05
"""Corners of two grids this close are one grid: NIfTI keeps its affine in float32."""

LESION_OVERLAP_ALPHA = 0.10
LESION_OUTSIDE_BETA = 0.70
LESION_EXPLAINED_GAMMA = 0.65
LESION_MINIMUM_MM3 = 3.0
"""Defaults of Anima's `animaSegPerfAnalyzer` (CSegPerfApp), used in the MSSEG challenges."""


class GridMismatchError(SeriesError):
    """The two masks lie on different grids; comparing them would compare different places."""

    reason = "grid-mismatch"


class NotAMaskError(SeriesError):
    """Values that are neither a mask nor labels: a probability map, or an image."""

    reason: ClassVar[str] = "not-a-mask"


@dataclass(frozen=True, slots=True)
class LesionMetrics:
    """Agreement lesion by lesion, as Anima counts it."""

    reference_count: int
    """Lesions of the reference that are larger than 3 mm3."""
    prediction_count: int
    """Lesions of the prediction that are larger than 3 mm3."""
    detected_count: int
    """Lesions of the reference that the prediction detects."""
    confirmed_count: int
    """Lesions of the prediction that the reference confirms: the same test the other way."""

    @property
    def sensitivity(self) -> float | None:
        """Share of the reference's lesions that were detected. Anima: SensL."""
        return _ratio(self.detected_count, self.reference_count)

    @property
    def ppv(self) -> float | None:
        """Share of the predicted lesions that are confirmed. Anima: PPVL."""
        return _ratio(self.confirmed_count, self.prediction_count)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; 0 where nothing agrees (Anima writes NaN there)."""
        if self.reference_count == 0 and self.prediction_count == 0:
            return None
        sensitivity, ppv = self.sensitivity or 0.0, self.ppv or 0.0
        return _ratio(2 * sensitivity * ppv, sensitivity + ppv) or 0.0

    def as_json(self) -> dict[str, JsonValue]:
        """The `lesion` of `flairnode metrics --json`."""
        return {
            "f1": self.f1,
            "sensitivity": self.sensitivity,
            "ppv": self.ppv,
            "reference_count": self.reference_count,
            "prediction_count": self.prediction_count,
            "detected_count": self.detected_count,
            "missed_count": self.reference_count - self.detected_count,
            "confirmed_count": self.confirmed_count,
            "false_count": self.prediction_count - self.confirmed_count,
        }


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """Agreement of a prediction with a reference. None is "not defined": see the module."""

    dsc: float | None
    iou: float | None
    ppv: float | None
    sensitivity: float | None
    hd95_mm: float | None
    volume_reference_ml: float
    volume_prediction_ml: float
    lesion: LesionMetrics

    def as_json(self) -> dict[str, JsonValue]:
        """What `flairnode metrics --json` prints."""
        return {
            "dsc": self.dsc,
            "iou": self.iou,
            "ppv": self.ppv,
            "sensitivity": self.sensitivity,
            "hd95_mm": self.hd95_mm,
            "volume_reference_ml": self.volume_reference_ml,
            "volume_prediction_ml": self.volume_prediction_ml,
            "lesion": self.lesion.as_json(),
        }


def compare(reference: Mask, prediction: Mask, grid: Grid) -> PairMetrics:
    """Compare two masks (slices, rows, columns) that lie on one grid."""
    both = int(np.count_nonzero(reference & prediction))
    of_reference = int(np.count_nonzero(reference))
    of_prediction = int(np.count_nonzero(prediction))
    return PairMetrics(
        dsc=_ratio(2 * both, of_reference + of_prediction),
        iou=_ratio(both, of_reference + of_prediction - both),
        ppv=_ratio(both, of_prediction),
        sensitivity=_ratio(both, of_reference),
        hd95_mm=hd95_mm(reference, prediction, grid.spacing_mm),
        volume_reference_ml=of_reference * grid.voxel_volume_ml,
        volume_prediction_ml=of_prediction * grid.voxel_volume_ml,
        lesion=compare_lesions(reference, prediction, grid.spacing_mm),
    )


def compare_files(reference: Path, prediction: Path) -> PairMetrics:
    """Compare two NIfTI masks or label maps: every value above 0 is lesion.

    Raises:
        StudyError: A file cannot be read.
        NotAMaskError: A file holds other values than whole numbers from 0.
        GridMismatchError: Their grids differ.
    """
    reference_mask, grid = read_mask(reference)
    prediction_mask, other = read_mask(prediction)
    if grid.shape != other.shape:
        raise GridMismatchError(
            f"the reference has {grid.shape} voxels (slices, rows, columns), the prediction "
            f"{other.shape}: resample one to the other first"
        )
    apart_mm = _farthest_corner_mm(grid, other)
    if apart_mm > SAME_PLACE_MM:
        raise GridMismatchError(
            f"the corners of the two grids lie up to {apart_mm:.2f} mm apart: resample one to the "
            "other first"
        )
    return compare(reference_mask, prediction_mask, grid)


def read_mask(path: Path) -> tuple[Mask, Grid]:
    """A NIfTI mask or label map and its grid.

    Raises:
        StudyError: The file cannot be read; its message names the file.
        NotAMaskError: Other values than whole numbers from 0.
    """
    if not path.is_file():
        raise UnreadableError(f"{path}: no such file")
    try:
        volume = read_nifti(path)
    except StudyError as error:
        raise type(error)(f"{path}: {error}") from error
    values = np.unique(volume.voxels)
    if (values < 0).any() or (values != np.round(values)).any():
        raise NotAMaskError(
            f"{path} holds values from {values[0]:g} to {values[-1]:g} that are not whole numbers "
            "from 0: a mask is 0 and 1, a label map 0, 1, 2, ..."
        )
    mask: Mask = volume.voxels > 0
    return mask, volume.grid


def hd95_mm(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, float, float]
) -> float | None:
    """95th percentile Hausdorff distance; None where a mask is empty.

    From every surface voxel (a face neighbour is not mask, or lies beyond the image) to the
    nearest surface voxel of the other mask, between voxel centres in mm; the 95th percentile
    (linear) each way, and the larger of the two. So do MONAI and Metrics Reloaded.
    """
    if not reference.any() or not prediction.any():
        return None
    box = ndimage.find_objects((reference | prediction).astype(np.uint8))[0]
    first, second = _surface(reference[box]), _surface(prediction[box])
    to_first = ndimage.distance_transform_edt(~first, sampling=spacing_mm)
    to_second = ndimage.distance_transform_edt(~second, sampling=spacing_mm)
    return float(max(np.percentile(to_second[first], 95), np.percentile(to_first[second], 95)))


def compare_lesions(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, float, float]
) -> LesionMetrics:
    """Count lesions as Anima does (animaSegPerfCAnalyzer, `getDetectionMarks`).

    Lesions are components that share faces; those of 3 mm3 or less become background in both
    masks. A lesion is detected if more than alpha of it is covered, and if the other mask's lesions
    that cover it, taken by decreasing overlap until gamma of the overlap is explained, all have
    at most beta of themselves outside every lesion.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    ours, our_count = _lesions(reference, voxel_mm3)
    theirs, their_count = _lesions(prediction, voxel_mm3)
    shape = (our_count + 1, their_count + 1)
    pairs = ours.astype(np.int64) * shape[1] + theirs
    overlap = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    return LesionMetrics(
        reference_count=our_count,
        prediction_count=their_count,
        detected_count=_detected(overlap),
        confirmed_count=_detected(overlap.T),
    )


def _detected(overlap: npt.NDArray[np.int64]) -> int:
    """How many row lesions the column lesions detect; row 0 and column 0 are background."""
    return sum(_is_detected(overlap, row) for row in range(1, len(overlap)))


def _is_detected(overlap: npt.NDArray[np.int64], row: int) -> bool:
    covered = int(overlap[row, 1:].sum())
    if covered / int(overlap[row].sum()) <= LESION_OVERLAP_ALPHA:
        return False
    sizes = overlap.sum(axis=0)
    by_overlap = np.argsort(-overlap[row, 1:], kind="stable") + 1
    explained = 0.0
    # Anima looks at no more column lesions than there are *rows*, background included.
    for column in by_overlap[: len(overlap)]:
        if explained >= LESION_EXPLAINED_GAMMA:
            break
        if overlap[0, column] / sizes[column] > LESION_OUTSIDE_BETA:
            return False
        explained += int(overlap[row, column]) / covered
    return True


def _lesions(mask: Mask, voxel_mm3: float) -> tuple[npt.NDArray[np.int32], int]:
    """Components by descending size (of equal ones the first voxel decides), small ones dropped.

    The order is ITK's RelabelComponentImageFilter's; it decides between equal overlaps.
    """
    components = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=components)  # faces: ITK's default too
    inside = np.flatnonzero(components)
    numbers, first, sizes = np.unique(
        components.ravel()[inside], return_index=True, return_counts=True
    )
    smallest = int(LESION_MINIMUM_MM3 / voxel_mm3) + 1  # strictly larger than 3 mm3
    large = np.flatnonzero(sizes >= smallest)
    order = large[np.lexsort((first[large], -sizes[large]))]
    renumbered = np.zeros(int(numbers.max(initial=0)) + 1, np.int32)
    renumbered[numbers[order]] = np.arange(1, len(order) + 1)
    return renumbered[components], len(order)


def _surface(mask: Mask) -> Mask:
    surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return surface


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _farthest_corner_mm(one: Grid, other: Grid) -> float:
    slices, rows, columns = one.shape
    corners = product((0, slices - 1), (0, rows - 1), (0, columns - 1))
    return max(
        float(np.linalg.norm(one.position_lps_mm(corner) - other.position_lps_mm(corner)))
        for corner in corners
    )
