"""From a probability per voxel to numbered lesions on the source grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom.volume import Grid, Volume
from pipeline.brain import BrainMask
from pipeline.model_pack import Manifest
from pipeline.morphology import Mask, dilate_in_plane_mm
from pipeline.orientation import axial_view

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

CONNECTIVITY_26 = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner belong to one lesion."""


@dataclass(frozen=True, slots=True, eq=False)
class LesionMap:
    """Lesions of one volume, on its grid."""

    probability: Array
    disagreement: Array
    labels: Labels
    """0 background, 1..n lesions by descending volume; of equal ones the first voxel decides."""
    grid: Grid
    dropped_small: int
    """Components below the minimum volume."""
    dropped_leaks: int
    """Components that the leak rule took for leftovers of the skull strip."""


def find_lesions(
    probability: Array,
    disagreement: Array,
    volume: Volume,
    brain: BrainMask,
    manifest: Manifest,
    core_median: float | None,
) -> LesionMap:
    """Group probable voxels into lesions and number them.

    A lesion is a 3-D component (26-connectivity) of voxels whose probability is greater than the
    pack's threshold and which lie where the network saw the image: in the brain mask or within the
    pack's `dilation_mm` of it, in the axial plane. Components smaller than the minimum volume are
    dropped, then those that the leak rule takes for leftovers of the skull strip.

    Args:
        probability: On the grid of the volume (`preprocess.restore`).
        disagreement: Of the members, on the same grid.
        volume: The source, for the intensities that the leak rule looks at.
        brain: Mask on the grid of the volume.
        manifest: Of the pack: threshold, minimum volume, dilation, leak rule.
        core_median: Median intensity of the deep brain (`Prepared.core_median`). None: not taken,
            of a pack that has no leak rule.

    Returns:
        The same labels for the same input, whatever the order in which components were met.

    Raises:
        ValueError: The pack has a leak rule and no core median is given.
    """
    grid = volume.grid
    view, dilation_mm = axial_view(grid), manifest.dilation_mm
    seen = dilate_in_plane_mm(view.apply(brain.mask), view.grid.spacing_mm, dilation_mm)
    candidates = (probability > manifest.threshold) & view.invert(seen)
    components = np.empty(candidates.shape, np.int32)
    ndimage.label(candidates, structure=CONNECTIVITY_26, output=components)
    numbers, first, voxels = _components(components)

    voxel_mm3 = grid.voxel_volume_ml * 1000.0
    # A component of exactly the minimum stays, whatever the last bit of the determinant says.
    large = voxels * voxel_mm3 >= manifest.minimum_lesion_mm3 * (1.0 - 1e-9)
    leaks = np.zeros(len(numbers), bool)
    if manifest.leak_rule is not None:
        if core_median is None:
            raise ValueError("the leak rule is in core medians, and none was taken")
        means = ndimage.mean(volume.voxels, components, numbers)
        limit = manifest.leak_rule.core_median_factor * core_median
        bright = np.flatnonzero(large & (means > limit))
        if len(bright):
            reaching_out = _tissue_outside(volume, brain, limit, manifest.leak_rule.outside_ml)
            part_of_it = np.unique(components[reaching_out])
            leaks[bright] = np.isin(numbers[bright], part_of_it)

    kept = np.flatnonzero(large & ~leaks)
    order = kept[np.lexsort((first[kept], -voxels[kept]))]
    renumbered = np.zeros(int(numbers.max(initial=0)) + 1, np.int32)
    renumbered[numbers[order]] = np.arange(1, len(order) + 1)
    return LesionMap(
        probability=probability,
        disagreement=disagreement,
        labels=renumbered[components],
        grid=grid,
        dropped_small=int(np.count_nonzero(~large)),
        dropped_leaks=int(np.count_nonzero(leaks)),
    )


def _components(
    components: Labels,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Numbers of the components, the flat index of the first voxel of each, and voxel counts."""
    inside = np.flatnonzero(components)
    numbers, first, counts = np.unique(
        components.ravel()[inside], return_index=True, return_counts=True
    )
    return numbers, inside[first], counts


def _tissue_outside(volume: Volume, brain: BrainMask, limit: float, least_ml: float) -> Mask:
    """Tissue brighter than a limit, of which a good part lies outside the brain.

    Voxels must share a face to be one tissue: a corner is too thin a bridge to the scalp.
    """
    tissues, count = ndimage.label(volume.voxels > limit)
    outside = np.bincount(tissues[~brain.mask], minlength=count + 1) * brain.grid.voxel_volume_ml
    reaches_out = outside >= least_ml
    reaches_out[0] = False  # what is not bright
    found: Mask = reaches_out[tissues]
    return found
