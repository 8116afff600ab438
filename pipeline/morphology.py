"""Masks in millimetres: grow, shrink and tidy them, whatever the spacing.

Clinical slices are ten times thicker than their pixels are wide. What is meant in the plane is
measured in the plane ("in_plane"), slice by slice; voxels are never counted where millimetres are
meant. Arrays are (slice, row, column); `spacing_mm` is in the same order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Distance = npt.NDArray[np.float32]
SpacingMm = tuple[float, float, float]


def depth_in_plane_mm(mask: Mask, spacing_mm: SpacingMm) -> Distance:
    """Distance in the slice from each voxel of a mask to the nearest voxel centre outside.

    Zero outside the mask. Beyond the border of the image counts as outside.
    """
    depth = np.zeros(mask.shape, np.float32)
    for index, section in enumerate(mask):
        box = _bounding_box(section)
        if box is None:
            continue
        # One row and column of outside all around: those of the image, or just beyond it.
        padded = np.pad(section[box], 1)
        depth[index][box] = ndimage.distance_transform_edt(padded, sampling=spacing_mm[1:])[
            1:-1, 1:-1
        ]
    return depth


def erode_in_plane_mm(mask: Mask, spacing_mm: SpacingMm, radius_mm: float) -> Mask:
    """The voxels of a mask that are farther than a radius from its outside, slice by slice."""
    eroded: Mask = depth_in_plane_mm(mask, spacing_mm) > radius_mm
    return eroded


def dilate_in_plane_mm(mask: Mask, spacing_mm: SpacingMm, radius_mm: float) -> Mask:
    """A mask and every voxel within a radius of it in the same slice."""
    dilated = np.zeros(mask.shape, np.bool_)
    margin = tuple(int(np.ceil(radius_mm / step)) for step in spacing_mm[1:])
    for index, section in enumerate(mask):
        box = _bounding_box(section, margin)
        if box is None:
            continue
        distance = ndimage.distance_transform_edt(~section[box], sampling=spacing_mm[1:])
        dilated[index][box] = distance <= radius_mm
    return dilated


def dilate_mm(mask: Mask, spacing_mm: SpacingMm, radius_mm: float) -> Mask:
    """A mask and every voxel within a radius of it in three dimensions."""
    dilated = np.zeros(mask.shape, np.bool_)
    margin = tuple(int(np.ceil(radius_mm / step)) for step in spacing_mm)
    box = _bounding_box(mask, margin)
    if box is not None:
        distance = ndimage.distance_transform_edt(~mask[box], sampling=spacing_mm)
        dilated[box] = distance <= radius_mm
    return dilated


def close_in_plane_mm(mask: Mask, spacing_mm: SpacingMm, radius_mm: float) -> Mask:
    """A mask with gaps and bays narrower than twice a radius filled, slice by slice."""
    return erode_in_plane_mm(dilate_in_plane_mm(mask, spacing_mm, radius_mm), spacing_mm, radius_mm)


def fill_holes_in_plane(mask: Mask) -> Mask:
    """A mask with whatever it encloses in a slice filled (4-connected background)."""
    filled = np.zeros(mask.shape, np.bool_)
    for index, section in enumerate(mask):
        box = _bounding_box(section)
        if box is None:
            continue
        # What is connected with the padding is outside; the rest is mask or enclosed by it.
        background, _ = ndimage.label(~np.pad(section[box], 1))
        filled[index][box] = (background != background[0, 0])[1:-1, 1:-1]
    return filled


def largest_component(mask: Mask) -> Mask:
    """The component with the most voxels (6-connectivity); of equals the first in array order."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = labels == int(np.argmax(sizes))
    return largest


def _bounding_box(mask: Mask, margin: tuple[int, ...] | None = None) -> tuple[slice, ...] | None:
    """Slices around the true voxels, widened by a margin but not beyond the array."""
    box = []
    for axis, length in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        present = np.flatnonzero(mask.any(axis=others))
        if present.size == 0:
            return None
        extra = margin[axis] if margin is not None else 0
        box.append(
            slice(max(0, int(present[0]) - extra), min(length, int(present[-1]) + 1 + extra))
        )
    return tuple(box)
