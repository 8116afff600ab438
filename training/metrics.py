"""How well one mask agrees with another: every measure of one case, and where each is not defined.

Overlap and distance: `voxel_metrics`. Lesion by lesion: `lesion_metrics`. Slice by slice:
`slice_metrics`. Cohorts and intervals: `statistics`.

Edge cases, where libraries disagree (`reference/ms_facts.md` section 3). None is "not defined"
(0/0), and `null` in JSON; it is never 0, never 1 and never NaN:

============================ ============ ================= ================ ===================
                             both empty   reference empty   prediction empty no common voxel
============================ ============ ================= ================ ===================
`dsc`, `iou`                 None         0                 0                0
`sensitivity`                None         None              0                0
`ppv`                        None         0                 None             0
`hd95_mm`                    None         None              None             a distance
`nsd`, `nsd_in_plane`        None         0                 0                by distance [1]_
volume error, ml             0            + prediction      - reference      the difference
volume error, %              None         None              -100             the difference
lesion `f1`                  None         0                 0                0
lesion `sensitivity`         None         None              0                0
lesion `ppv`                 None         0                 None             0
`any_overlap`, a stratum:
.. recall (LTPR)             None         None              0                0
.. false share (LFPR)        None         1                 None             1
.. false lesions, ml         0            all predicted     0                all predicted
slices                       TN           TN, FP            TN, FN           TN, FN, FP
============================ ============ ================= ================ ===================

.. [1] Surfaces that pass each other within the tolerance agree though no voxel is common.

In a cohort: a case with both empty is a correct negative and left out of the mean of `dsc`; a case
with one empty counts with 0 and has no `hd95_mm`, so a mean HD95 is a mean of fewer cases and is
given with its n. Where the reference is empty, read false lesions and false volume, not F1.
A lesion of 3 mm3 or less is background to `lesion` (Anima) on both sides, so a case whose only
lesions are that small is "both empty" there, and not in `any_overlap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import JsonValue

from dicom.errors import SeriesError, StudyError, UnreadableError
from dicom.volume import Grid, read_nifti
from training.lesion_metrics import (
    AnyOverlapMetrics,
    IsbiParts,
    LesionMetrics,
    compare_any_overlap,
    compare_lesions,
)
from training.slice_metrics import TAU, OverlapRule, SliceCounts, count_slices, slice_overlaps
from training.voxel_metrics import (
    NSD_TOLERANCE_MM,
    Mask,
    contour_distances,
    overlap,
    ratio,
    surface_distances,
    union_box,
)

SAME_PLACE_MM = 0.05
"""Corners of two grids this close are one grid: NIfTI keeps its affine in float32."""


class GridMismatchError(SeriesError):
    """The two masks lie on different grids; comparing them would compare different places."""

    reason = "grid-mismatch"


class NotAMaskError(SeriesError):
    """Values that are neither a mask nor labels: a probability map, or an image."""

    reason: ClassVar[str] = "not-a-mask"


@dataclass(frozen=True, slots=True)
class VolumeError:
    """How much too much, or too little, was marked."""

    reference_ml: float
    prediction_ml: float

    @property
    def signed_ml(self) -> float:
        """Prediction less reference: below 0 is too little."""
        return self.prediction_ml - self.reference_ml

    @property
    def signed_percent(self) -> float | None:
        """Of the reference; not defined where the reference is empty."""
        share = ratio(self.signed_ml, self.reference_ml)
        return None if share is None else 100 * share

    def as_json(self) -> dict[str, JsonValue]:
        """The `volume_error` of `flairnode metrics --json`."""
        percent = self.signed_percent
        return {
            "ml": self.signed_ml,
            "absolute_ml": abs(self.signed_ml),
            "percent": percent,
            "absolute_percent": None if percent is None else abs(percent),
        }


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """Agreement of a prediction with a reference. None is "not defined": see the module."""

    dsc: float | None
    iou: float | None
    ppv: float | None
    sensitivity: float | None
    hd95_mm: float | None
    nsd: float | None
    """Share of both surfaces within `nsd_tolerance_mm` of the other, in space."""
    nsd_in_plane: float | None
    """The same of the outlines in each slice: the one to read where slices are thick."""
    nsd_tolerance_mm: float
    volume: VolumeError
    lesion: LesionMetrics
    any_overlap: AnyOverlapMetrics
    slices: SliceCounts
    """By |P and G| / |G|, with tau = 0.10."""

    @property
    def volume_reference_ml(self) -> float:
        """Lesion volume of the reference."""
        return self.volume.reference_ml

    @property
    def volume_prediction_ml(self) -> float:
        """Lesion volume of the prediction."""
        return self.volume.prediction_ml

    @property
    def isbi_parts(self) -> IsbiParts:
        """What this case gives to `isbi_score` of a cohort."""
        found = self.any_overlap.all_sizes
        return IsbiParts(
            self.dsc,
            self.ppv,
            found.false_share,
            found.recall,
            self.volume.reference_ml,
            self.volume.prediction_ml,
        )

    def as_json(self) -> dict[str, JsonValue]:
        """What `flairnode metrics --json` prints."""
        return {
            "dsc": self.dsc,
            "iou": self.iou,
            "ppv": self.ppv,
            "sensitivity": self.sensitivity,
            "hd95_mm": self.hd95_mm,
            "nsd": self.nsd,
            "nsd_in_plane": self.nsd_in_plane,
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "volume_reference_ml": self.volume.reference_ml,
            "volume_prediction_ml": self.volume.prediction_ml,
            "volume_error": self.volume.as_json(),
            "lesion": self.lesion.as_json(),
            "any_overlap": self.any_overlap.as_json(),
            "isbi_parts": self.isbi_parts.as_json(),
            "slices": {"rule": OverlapRule.OVERLAP.value, "tau": TAU, **self.slices.as_json()},
        }


def compare(
    reference: Mask, prediction: Mask, grid: Grid, *, nsd_tolerance_mm: float = NSD_TOLERANCE_MM
) -> PairMetrics:
    """Compare two masks (slices, rows, columns) that lie on one grid."""
    slices = count_slices(slice_overlaps(reference, prediction))
    # Nothing below looks beyond the lesions: what lies outside their box is background.
    box = union_box(reference, prediction)
    reference, prediction = reference[box], prediction[box]
    voxels = overlap(reference, prediction)
    surfaces = surface_distances(reference, prediction, grid.spacing_mm)
    outlines = contour_distances(reference, prediction, grid.spacing_mm)
    return PairMetrics(
        dsc=voxels.dsc,
        iou=voxels.iou,
        ppv=voxels.ppv,
        sensitivity=voxels.sensitivity,
        hd95_mm=surfaces.percentile_mm(95),
        nsd=surfaces.share_within(nsd_tolerance_mm),
        nsd_in_plane=outlines.share_within(nsd_tolerance_mm),
        nsd_tolerance_mm=nsd_tolerance_mm,
        volume=VolumeError(
            voxels.reference * grid.voxel_volume_ml, voxels.prediction * grid.voxel_volume_ml
        ),
        lesion=compare_lesions(reference, prediction, grid.spacing_mm),
        any_overlap=compare_any_overlap(reference, prediction, grid.spacing_mm),
        slices=slices,
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
    refuse_other_grid(grid, other)
    return compare(reference_mask, prediction_mask, grid)


def refuse_other_grid(reference: Grid, other: Grid) -> None:
    """Refuse what does not lie where the reference lies.

    Raises:
        GridMismatchError: Another number of voxels, or another place.
    """
    if reference.shape != other.shape:
        raise GridMismatchError(
            f"the reference has {reference.shape} voxels (slices, rows, columns), the other "
            f"{other.shape}: resample one to the other first"
        )
    apart_mm = _farthest_corner_mm(reference, other)
    if apart_mm > SAME_PLACE_MM:
        raise GridMismatchError(
            f"the corners of the two grids lie up to {apart_mm:.2f} mm apart: resample one to the "
            "other first"
        )


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


def _farthest_corner_mm(one: Grid, other: Grid) -> float:
    slices, rows, columns = one.shape
    corners = product((0, slices - 1), (0, rows - 1), (0, columns - 1))
    return max(
        float(np.linalg.norm(one.position_lps_mm(corner) - other.position_lps_mm(corner)))
        for corner in corners
    )
