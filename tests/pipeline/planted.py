"""A synthetic head with lesions whose region is known, on any acquisition.

The truth is read off the fine maps of the head and a few coordinates that atlases print; what is
tested is laid over the acquired image, by `pipeline.regions`. The head is made of the same average
brain as the template, bent and stretched as a whole: it shows that poses, planes, thick slices and
noise do no harm, and says nothing about how people differ from the average.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom.volume import Grid, Volume
from pipeline.findings import (
    DEEP_WHITE_MATTER,
    INFRATENTORIAL,
    JUXTACORTICAL,
    PERIVENTRICULAR,
)
from pipeline.phantom import FLAIR, Acquisition, Head, acquire, scan, synthetic_head

Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

MIDDLE = (7.0, 18.0, 0.0)  # of the brain's box, from the anterior commissure: `pipeline.phantom`
BELOW_MNI = (
    (6, -25, -32), (-7, -22, -26), (24, -62, -36), (-24, -58, -40),
    (38, -58, -38), (14, -40, -32), (-14, -42, -34), (2, -36, -46), (7, -20, -12),
)  # fmt: skip
"""Pons, hemispheres and peduncles of the cerebellum, medulla and midbrain: MNI, RAS mm."""
APART_MM = 14.0


@dataclass(frozen=True, slots=True, eq=False)
class PlantedHead:
    """A volume, its lesions and where each of them lies."""

    volume: Volume
    brain: Mask
    labels: Labels
    regions: tuple[str, ...]
    """Of label 1, 2, ..."""


def planted_head(seed: int, acquisition: Acquisition, each: int = 6) -> PlantedHead:
    """`each` lesions a region, as far as the slices show them."""
    phantom = synthetic_head(seed, acquisition, lesions=False)
    head, grid = phantom.head, phantom.volume.grid
    rng = np.random.default_rng((seed, 1))
    centres = _centres(head, each, rng)
    truth = np.zeros(head.brain.shape, bool)
    for region, centre in centres:
        truth |= _ball(head, centre, 3.5 if region == DEEP_WHITE_MATTER else 4.0)
    truth &= (head.white > 0.3) | (head.grey > 0.3)
    soft = np.float32(0.45) * ndimage.gaussian_filter(truth.astype(np.float32), 0.6)
    thickness_mm = acquisition.thickness_mm
    sick = replace(head, lesion=soft, truth=truth)
    voxels = scan(sick, FLAIR, grid, thickness_mm, rng)
    parts, _ = ndimage.label(acquire(truth, head, grid, thickness_mm) > 0.5, np.ones((3, 3, 3)))
    labels, regions = _known(parts, centres, np.linalg.inv(head.affine) @ grid.affine)
    volume = Volume(voxels, grid, phantom.volume.sop_instance_uids)
    return PlantedHead(volume, phantom.brain, labels, regions)


def sagittal(axial: PlantedHead) -> PlantedHead:
    """The same voxels, stored as slices from right to left with rows from the vertex down."""
    grid = axial.volume.grid
    affine = grid.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += grid.affine[:3, 0] * (grid.shape[0] - 1)
    affine[:3, 1] *= -1

    def turned(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(array[::-1].transpose(2, 0, 1))

    voxels = turned(axial.volume.voxels)
    new = Grid(affine, (voxels.shape[0], voxels.shape[1], voxels.shape[2]))
    return PlantedHead(
        Volume(voxels.astype(np.float32), new),
        turned(axial.brain).astype(bool),
        turned(axial.labels).astype(np.int32),
        axial.regions,
    )


def _centres(
    head: Head, each: int, rng: np.random.Generator
) -> list[tuple[str, npt.NDArray[np.float64]]]:
    voxel_mm = float(np.cbrt(abs(np.linalg.det(head.affine[:3, :3]))))
    depth = ndimage.distance_transform_edt(head.brain) * voxel_mm
    parts, _ = ndimage.label((head.fluid > 0.5) & (depth > 25))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    fluid_deep = parts == int(sizes.argmax())  # lateral and third ventricle hang together
    to_ventricle = ndimage.distance_transform_edt(~fluid_deep) * voxel_mm
    beside = np.stack([ndimage.distance_transform_edt(~plane) for plane in fluid_deep]) * voxel_mm
    # Beside it on several slices: over its roof, a thick slice has no contact in its plane.
    wall = (beside > 2.5) & (beside < 3.5)
    for step in (-3, 3):
        wall &= np.roll(beside, step, axis=0) < 6
    grey = (head.grey > 0.5) & (depth < 22)
    to_grey = ndimage.distance_transform_edt(~grey) * voxel_mm
    origin = _anterior_commissure(head)
    up, _, left = np.ogrid[tuple(slice(n) for n in head.brain.shape)]
    # Above the temporal lobes and the third ventricle, and not on the midline.
    above = (up > origin[0] + 10) & (np.abs(left - origin[2]) > 9)
    white = head.white > 0.6
    allowed = {
        PERIVENTRICULAR: white & above & wall,
        DEEP_WHITE_MATTER: white & above & (to_ventricle > 9) & (to_grey > 6.5),
        JUXTACORTICAL: white
        & above
        & (to_ventricle > 12)
        & (to_grey > 1)
        & (to_grey < 2.5)
        & (depth < 9),  # on the convexity: sulci of an average of heads are too blurred to be seen
    }
    taken: list[tuple[str, npt.NDArray[np.float64]]] = []
    for x, y, z in BELOW_MNI:
        taken.append((INFRATENTORIAL, origin + np.array((z, -y, -x), float)))
    for region, mask in allowed.items():
        places = np.argwhere(mask).astype(float)
        count = 0
        for place in places[rng.permutation(len(places))]:
            gaps = [np.linalg.norm(place - other) * voxel_mm for _, other in taken]
            if min(gaps) > APART_MM:
                taken.append((region, place))
                count += 1
            if count == each:
                break
    return taken


def _anterior_commissure(head: Head) -> npt.NDArray[np.float64]:
    """MNI's origin, as an index of the head's maps."""
    box = np.argwhere(head.brain)
    low = box.min(axis=0)
    from pipeline.atlas import mni_atlas  # the box of the same brain, in stated coordinates

    atlas = mni_atlas()
    corner = np.argwhere(atlas.brain).min(axis=0)
    zero = np.linalg.inv(atlas.affine)[:3, 3]
    return np.asarray(low + zero - corner, float)


def _ball(head: Head, centre: npt.NDArray[np.float64], radius_mm: float) -> Mask:
    index = np.indices(head.brain.shape, sparse=True)
    offset = [index[axis] - centre[axis] for axis in range(3)]
    metric = head.affine[:3, :3].T @ head.affine[:3, :3]
    square = sum(
        metric[one, other] * offset[one] * offset[other] for one in range(3) for other in range(3)
    )
    return np.asarray(square <= radius_mm**2)


def _known(
    parts: Labels,
    centres: list[tuple[str, npt.NDArray[np.float64]]],
    to_head: npt.NDArray[np.float64],
) -> tuple[Labels, tuple[str, ...]]:
    """Labels of the lesions of at least three voxels, and the region of the nearest centre."""
    labels = np.zeros(parts.shape, np.int32)
    regions: list[str] = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        points = np.argwhere(parts[box] == number)
        if len(points) < 3:
            continue
        middle = points.mean(axis=0) + [side.start for side in box]
        there = to_head[:3, :3] @ middle + to_head[:3, 3]
        nearest = min(centres, key=lambda one: float(np.linalg.norm(one[1] - there)))
        regions.append(nearest[0])
        labels[box][parts[box] == number] = len(regions)
    return labels, tuple(regions)
