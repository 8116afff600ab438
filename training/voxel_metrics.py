"""Overlap and surface distance of two masks on one grid. What is 0/0 is None, never NaN.

The edge cases of every figure stand in one table: `training/metrics.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

Mask = npt.NDArray[np.bool_]
SpacingMm = tuple[float, float, float]
Distances = npt.NDArray[np.float64]

NSD_TOLERANCE_MM = 1.0
"""About two pixels of a clinical FLAIR: what two readers of one lesion differ by."""

Neighbours = tuple[tuple[int, int, int], ...]
IN_PLANE: Neighbours = ((0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
FACES: Neighbours = (*IN_PLANE, (1, 0, 0), (-1, 0, 0))

SLICES_APART = 1e6  # times their distance: so far that no point of another slice is the nearest


@dataclass(frozen=True, slots=True)
class Overlap:
    """Voxels of two masks, counted."""

    reference: int
    prediction: int
    both: int

    @property
    def dsc(self) -> float | None:
        """Dice similarity coefficient."""
        return ratio(2 * self.both, self.reference + self.prediction)

    @property
    def iou(self) -> float | None:
        """Intersection over union."""
        return ratio(self.both, self.reference + self.prediction - self.both)

    @property
    def ppv(self) -> float | None:
        """Share of the prediction that is right."""
        return ratio(self.both, self.prediction)

    @property
    def sensitivity(self) -> float | None:
        """Share of the reference that is found."""
        return ratio(self.both, self.reference)


def overlap(reference: Mask, prediction: Mask) -> Overlap:
    """Count the voxels of two masks of one shape."""
    return Overlap(
        int(np.count_nonzero(reference)),
        int(np.count_nonzero(prediction)),
        int(np.count_nonzero(reference & prediction)),
    )


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """From every surface voxel of one mask to the nearest of the other, mm, both ways.

    A surface voxel is a voxel of the mask with a face neighbour that is not, or that lies beyond
    the image. Distances run between voxel centres. So do MONAI and Metrics Reloaded. Infinite
    where the other mask has no surface to go to.
    """

    of_reference: Distances
    of_prediction: Distances

    def percentile_mm(self, percent: float) -> float | None:
        """The percentile (linear) each way, and the larger of the two; None without a surface."""
        if not len(self.of_reference) or not len(self.of_prediction):
            return None
        return float(
            max(
                np.percentile(self.of_reference, percent),
                np.percentile(self.of_prediction, percent),
            )
        )

    def share_within(self, tolerance_mm: float) -> float | None:
        """Share of all surface voxels whose distance is at most the tolerance."""
        near = sum(
            int(np.count_nonzero(way <= tolerance_mm))
            for way in (self.of_reference, self.of_prediction)
        )
        return ratio(near, len(self.of_reference) + len(self.of_prediction))


def surface_distances(reference: Mask, prediction: Mask, spacing_mm: SpacingMm) -> SurfaceDistances:
    """Distances between the two surfaces in space."""
    return _distances(_surface(reference), _surface(prediction), spacing_mm)


def contour_distances(reference: Mask, prediction: Mask, spacing_mm: SpacingMm) -> SurfaceDistances:
    """Distances between the two outlines in each slice, of all slices together.

    In slices of 6.5 mm nearly every voxel of a lesion has no lesion above or below it, so that
    nearly all of it is "surface" in space. A reader draws outlines, and these compare outlines:
    in-plane neighbours only, and never to an outline in another slice.
    """
    return _distances(
        _surface(reference, IN_PLANE),
        _surface(prediction, IN_PLANE),
        (spacing_mm[0] * SLICES_APART, *spacing_mm[1:]),
    )


def hd95_mm(reference: Mask, prediction: Mask, spacing_mm: SpacingMm) -> float | None:
    """95th percentile Hausdorff distance; None where a mask is empty."""
    return surface_distances(reference, prediction, spacing_mm).percentile_mm(95)


def nsd(
    reference: Mask,
    prediction: Mask,
    spacing_mm: SpacingMm,
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> float | None:
    """Normalised surface distance: share of both surfaces within a tolerance of the other.

    Surface voxels are counted, not weighted by area, as in MONAI and Metrics Reloaded.
    """
    return surface_distances(reference, prediction, spacing_mm).share_within(tolerance_mm)


def union_box(reference: Mask, prediction: Mask) -> tuple[slice, ...]:
    """The smallest box around both masks; an empty one where both are empty."""
    found = ndimage.find_objects((reference | prediction).view(np.uint8))
    return found[0] if found else (slice(0, 0),) * reference.ndim


def ratio(part: float, whole: float) -> float | None:
    """A share, or None where there is nothing to take a share of."""
    return part / whole if whole else None


def _surface(mask: Mask, neighbours: Neighbours = FACES) -> npt.NDArray[np.intp]:
    """Indices (n, 3) of the voxels whose neighbours are not all mask."""
    voxels = np.argwhere(mask)
    padded = np.pad(mask, 1)
    surface = np.zeros(len(voxels), bool)
    for step in neighbours:
        surface |= ~padded[tuple((voxels + 1 + step).T)]
    return voxels[surface]


def _distances(
    first: npt.NDArray[np.intp], second: npt.NDArray[np.intp], spacing_mm: SpacingMm
) -> SurfaceDistances:
    # A tree of the surface points instead of a distance transform: the same distances to the
    # last digits of a float64 (tests), in a twentieth of the time for 100 lesions in a large
    # image (tests/benchmarks/bench_metrics.py).
    step = np.array(spacing_mm, np.float64)
    one, other = first * step, second * step
    return SurfaceDistances(_to_nearest(one, other), _to_nearest(other, one))


def _to_nearest(points: Distances, others: Distances) -> Distances:
    if not len(points) or not len(others):
        return np.full(len(points), np.inf)
    return np.asarray(KDTree(others).query(points)[0], np.float64)
