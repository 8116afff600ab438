"""What is reported of the lesions: measurements on the source grid, in millilitres and mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from scipy import ndimage

from pipeline.lesions import LesionMap
from pipeline.morphology import Mask

PERIVENTRICULAR = "periventricular"
JUXTACORTICAL = "juxtacortical"
INFRATENTORIAL = "infratentorial"
DEEP_WHITE_MATTER = "deep-white-matter"
REGIONS = (PERIVENTRICULAR, JUXTACORTICAL, INFRATENTORIAL, DEEP_WHITE_MATTER)
"""Where a lesion lies, approximately: `pipeline.regions` has the rule. In the order of reports."""

NOT_ASSESSED = "not-assessed"
"""Region of a lesion when no region could be told."""


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion."""

    label: int
    """Its value in `LesionMap.labels`, and its number in every result."""
    voxels: int
    volume_ml: float
    long_axis_mm: float
    """The greatest in-plane extent on any slice: see `long_axis_mm`."""
    first_slice: int
    """Index in the volume, from 0."""
    last_slice: int
    """Index in the volume, from 0; part of the lesion."""
    largest_slice: int
    """Index of the slice with the largest area; of equal ones the first."""
    mean_probability: float
    disagreement: float
    """Mean over its voxels of the members' standard deviation: 0 agreed, 0.5 at most."""
    region: str = NOT_ASSESSED
    """One of `REGIONS`, or `NOT_ASSESSED`."""
    ventricle_mm: float | None = None
    """Least distance in the slice to a lateral ventricle; None: not on its slices, or unknown."""
    cortex_mm: float | None = None
    """Least distance in the slice to the cortex of the cerebrum; None as above."""

    def as_json(self) -> dict[str, JsonValue]:
        """For `process --json` and `result.json`. Slices count from 1, as a viewer does."""
        return {
            "label": self.label,
            "volume_ml": round(self.volume_ml, 6),
            "voxels": self.voxels,
            "long_axis_mm": round(self.long_axis_mm, 3),
            "slices": [self.first_slice + 1, self.last_slice + 1],
            "largest_slice": self.largest_slice + 1,
            "mean_probability": round(self.mean_probability, 4),
            "disagreement": round(self.disagreement, 4),
            "region": self.region,
            "ventricle_mm": _rounded(self.ventricle_mm),
            "cortex_mm": _rounded(self.cortex_mm),
        }


@dataclass(frozen=True, slots=True)
class Findings:
    """All lesions of a volume, by number."""

    lesions: tuple[Lesion, ...]
    total_volume_ml: float
    dropped_small: int = 0
    dropped_leaks: int = 0

    @property
    def lesion_count(self) -> int:
        """Number of lesions. 0 is a finding: the volume was analysed and none was found."""
        return len(self.lesions)

    def lesions_in(self, region: str) -> tuple[Lesion, ...]:
        """The lesions of one region, by number."""
        return tuple(lesion for lesion in self.lesions if lesion.region == region)

    @property
    def regions_assessed(self) -> bool:
        """Is the region of every lesion known? Also true when there is none."""
        return not self.lesions_in(NOT_ASSESSED)

    def as_json(self) -> dict[str, JsonValue]:
        """The `findings` of `process --json` and `result.json`."""
        return {
            "lesion_count": self.lesion_count,
            "total_volume_ml": round(self.total_volume_ml, 6),
            "lesions": [lesion.as_json() for lesion in self.lesions],
            "regions": {region: self._region_as_json(region) for region in self._regions_told()},
            "dropped_small": self.dropped_small,
            "dropped_leaks": self.dropped_leaks,
        }

    def _regions_told(self) -> tuple[str, ...]:
        # Where nothing was assessed, a count of 0 in a region would be a claim.
        return REGIONS if self.regions_assessed else (NOT_ASSESSED,)

    def _region_as_json(self, region: str) -> dict[str, JsonValue]:
        lesions = self.lesions_in(region)
        volume_ml = sum(lesion.volume_ml for lesion in lesions)
        return {"count": len(lesions), "volume_ml": round(volume_ml, 6)}


def _rounded(length_mm: float | None) -> float | None:
    return None if length_mm is None else round(length_mm, 2)


def measure(lesions: LesionMap) -> Findings:
    """Measure every lesion of a map.

    Volumes are voxel counts times the determinant of the grid; `slices` and areas follow the
    slices as they were acquired.
    """
    grid = lesions.grid
    measured = []
    for label, box in enumerate(ndimage.find_objects(lesions.labels), start=1):
        mask = lesions.labels[box] == label
        areas = mask.sum(axis=(1, 2))
        voxels = int(areas.sum())
        measured.append(
            Lesion(
                label=label,
                voxels=voxels,
                volume_ml=voxels * grid.voxel_volume_ml,
                long_axis_mm=max(long_axis_mm(one, grid.spacing_mm[1:]) for one in mask),
                first_slice=box[0].start,
                last_slice=box[0].stop - 1,
                largest_slice=box[0].start + int(np.argmax(areas)),
                mean_probability=float(lesions.probability[box][mask].mean(dtype=np.float64)),
                disagreement=float(lesions.disagreement[box][mask].mean(dtype=np.float64)),
            )
        )
    total = int(np.count_nonzero(lesions.labels))
    return Findings(
        lesions=tuple(measured),
        total_volume_ml=total * grid.voxel_volume_ml,
        dropped_small=lesions.dropped_small,
        dropped_leaks=lesions.dropped_leaks,
    )


def long_axis_mm(area: Mask, pixel_mm: tuple[float, float]) -> float:
    """Greatest extent of an area of one slice: between two pixel centres, plus a pixel.

    The pixel that is added is as wide as it is along that line, so a row of n pixels is n pixels
    long, and one pixel is as long as its longer side.

    Args:
        area: (rows, columns).
        pixel_mm: Distance of neighbouring pixel centres along (row, column) index.

    Returns:
        0 for an empty area.
    """
    ends = _ends_of_rows(area) * np.asarray(pixel_mm)
    if len(ends) == 0:
        return 0.0
    offset = np.abs(ends[:, None] - ends[None, :])
    length = np.hypot(offset[..., 0], offset[..., 1])
    apart = length > 0
    pixel_along = offset[apart] @ np.asarray(pixel_mm) / length[apart]
    return float(max(*pixel_mm, (length[apart] + pixel_along).max(initial=0.0)))


def _ends_of_rows(area: Mask) -> npt.NDArray[np.intp]:
    """First and last pixel of every row: the longest line ends in two of these."""
    rows = np.flatnonzero(area.any(axis=1))
    first = area[rows].argmax(axis=1)
    last = area.shape[1] - 1 - area[rows][:, ::-1].argmax(axis=1)
    return np.unique(np.concatenate([np.c_[rows, first], np.c_[rows, last]]), axis=0)
