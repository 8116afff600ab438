"""The axial view of a volume: one order of axes, whatever order the scanner sent.

Sagittal and coronal acquisitions are seen as the axial stack that they also are. Nothing is
resampled: a view turns and flips whole axes, so `invert(apply(array))` is the array itself,
bit for bit, and a mask computed in the view lies on the source grid again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from dicom.volume import Grid

Scalar = TypeVar("Scalar", bound=np.generic)

LARGEST_TILT_DEG = 45.0
"""Beyond it the slices are nearer to sagittal or coronal than to axial."""

_TILT_TOLERANCE = 1e-6  # of the cosine: direction cosines are decimal strings

_LEFT, _POSTERIOR, _SUPERIOR = 0, 1, 2  # rows of an affine to LPS
_NAMES = (_SUPERIOR, _POSTERIOR, _LEFT)
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
"""Source axis behind each axis of a view, in every way there is."""


Plane = Literal["axial", "sagittal", "coronal"]


@dataclass(frozen=True, slots=True, eq=False)
class AxialView:
    """How to look at arrays on `source` as a radiologist's axial stack, and back."""

    source: Grid
    grid: Grid
    """Of the view: slices inferior to superior, rows anterior to posterior, columns right to left
    of the patient. Oblique stacks stay oblique: each axis has the name that it is nearest to, as
    far as no two share one."""
    axes: tuple[int, int, int]
    """Source axis behind each axis of the view."""
    flipped: tuple[bool, bool, bool]
    """Does an axis of the view run against its source axis?"""

    @property
    def acquired(self) -> Plane:
        """The plane nearest to the slices as they were acquired."""
        planes: tuple[Plane, Plane, Plane] = ("axial", "coronal", "sagittal")
        return planes[self.axes.index(0)]

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Array in the order of the view; the last three axes are (slice, row, column)."""
        self._check(array, self.source)
        leading = tuple(range(array.ndim - 3))
        turned = array.transpose(*leading, *(array.ndim - 3 + axis for axis in self.axes))
        return np.ascontiguousarray(np.flip(turned, self._flipped_axes()))

    def invert(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Array in the order of the source, from one in the order of the view."""
        self._check(array, self.grid)
        leading = tuple(range(array.ndim - 3))
        back = tuple(array.ndim - 3 + self.axes.index(axis) for axis in range(3))
        unflipped = np.flip(array, self._flipped_axes())
        return np.ascontiguousarray(unflipped.transpose(*leading, *back))

    def _flipped_axes(self) -> tuple[int, ...]:
        return tuple(axis - 3 for axis, flip in enumerate(self.flipped) if flip)

    @staticmethod
    def _check(array: npt.NDArray[Scalar], grid: Grid) -> None:
        if array.shape[-3:] != grid.shape:
            raise ValueError(f"array of shape {array.shape} on a grid of {grid.shape}")


def axial_view(grid: Grid) -> AxialView:
    """The axial view of arrays on a grid, whether its slices are axial, sagittal or coronal.

    Any axis of the source may follow any axis of the patient, either way.
    """
    steps = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = _nearest(steps)
    flipped = tuple(bool(steps[name, axis] < 0) for name, axis in zip(_NAMES, axes, strict=True))
    view_to_source = _index_map(grid.shape, axes, flipped)
    view_grid = Grid(
        affine=grid.affine @ view_to_source,
        shape=(grid.shape[axes[0]], grid.shape[axes[1]], grid.shape[axes[2]]),
        frame_of_reference_uid=grid.frame_of_reference_uid,
    )
    return AxialView(grid, view_grid, axes, (flipped[0], flipped[1], flipped[2]))


def _nearest(steps: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """Source axis for superior, posterior and left.

    Up to `LARGEST_TILT_DEG` slices are axial and stay slices. The other axes decide together: at 45
    degrees each alone could choose the same name. Of equally near ones the first stays.
    """
    near = np.abs(steps)
    # The normal of the slice plane, not the step between slices: they differ in a sheared grid.
    normal = np.cross(steps[:, 1], steps[:, 2])
    along = abs(float(normal[_SUPERIOR])) / float(np.linalg.norm(normal))
    axial = along >= cos(radians(LARGEST_TILT_DEG)) - _TILT_TOLERANCE

    def nearness(axes: tuple[int, int, int]) -> float:
        found = [float(near[name, axis]) for name, axis in zip(_NAMES, axes, strict=True)]
        return round(sum(found), 6)

    return max((axes for axes in _ORDERS if (axes[0] == 0) == axial), key=nearness)


def _index_map(
    shape: tuple[int, int, int], axes: tuple[int, ...], flipped: tuple[bool, ...]
) -> npt.NDArray[np.float64]:
    """(4, 4), maps an index of the view to the index of the source."""
    index_map = np.zeros((4, 4))
    index_map[3, 3] = 1.0
    for view_axis, (axis, flip) in enumerate(zip(axes, flipped, strict=True)):
        index_map[axis, view_axis] = -1.0 if flip else 1.0
        index_map[axis, 3] = shape[axis] - 1 if flip else 0
    return index_map
