"""The outline of a region on one slice, for viewers that draw lines but no Segmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

_TOUCHING = np.ones((3, 3), bool)  # pixels that share a corner are one area, as in 3-D
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up: (row, column) of corners


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """A closed line around the largest area of a region on its largest slice."""

    slice_index: int
    points: Points
    """(n, 2) corners as (column, row), the first repeated at the end. (0, 0) is the outer corner
    of the first pixel and (1, 1) the opposite corner of it: PS3.3 C.18.6.1.1."""


def outline(mask: Mask) -> Outline:
    """Outline of a region on the slice where its area is largest; of equal ones the first.

    Where the region has several areas on that slice, the largest of them is drawn: a measurement
    group holds one line. Holes are not drawn.

    Args:
        mask: (slices, rows, columns), not empty.
    """
    areas = mask.sum(axis=(1, 2))
    slice_index = int(np.argmax(areas))
    parts, count = ndimage.label(mask[slice_index], structure=_TOUCHING)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return Outline(slice_index, _border(parts == 1 + int(np.argmax(sizes))))


def _border(area: Mask) -> Points:
    """Walk along the pixel edges around one area, clockwise as displayed, back to the start."""
    padded = np.pad(area, 1)
    row, column = (int(first) for first in np.argwhere(padded)[0])
    start = position = (row, column)  # corner above and left of the first pixel
    heading = 0  # along its upper edge; inside is on the right hand
    corners = [position]
    while True:
        position = (position[0] + _STEPS[heading][0], position[1] + _STEPS[heading][1])
        left, right = _ahead(padded, position, heading)
        # Outside both: turn right. Left pixel inside: turn left, also where only a corner of two
        # pixels touches, which keeps both in one line.
        turn = -1 if left else (0 if right else 1)
        if turn:
            corners.append(position)
            heading = (heading + turn) % 4
        if position == start and heading == 0:
            break
    return np.array(corners, float)[:, ::-1] - 1.0  # (column, row), without the padding


def _ahead(padded: Mask, corner: tuple[int, int], heading: int) -> tuple[bool, bool]:
    """Are the pixels ahead, to the left and to the right of the walker, inside?"""
    row, column = corner
    above_left, above_right = padded[row - 1, column - 1], padded[row - 1, column]
    below_left, below_right = padded[row, column - 1], padded[row, column]
    left, right = (
        (above_right, below_right),
        (below_right, below_left),
        (below_left, above_left),
        (above_left, above_right),
    )[heading]
    return bool(left), bool(right)
