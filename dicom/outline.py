"""Where a region lies, and its outline on one slice, for viewers that draw lines alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

_TOUCHING = np.ones((3, 3), bool)  # pixels that share a corner are one area, as in 3-D
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up: (row, column) of corners


@dataclass(frozen=True, slots=True, eq=False)
class Footprint:
    """The slices a region lies on, and a line around its largest area."""

    slices: tuple[int, ...]
    """Index of every slice with a voxel of it."""
    largest_slice: int
    """Where its area is largest; of equal ones the first."""
    outline: Points
    """On that slice: (n, 2) corners as (column, row), the first repeated at the end. (0, 0) is the
    outer corner of the first pixel, (1, 1) the opposite one (PS3.3 C.18.6.1.1). Where the region
    has several areas on the slice, this is the largest: a measurement group holds one line. Holes
    are not drawn."""


def footprints(labels: Labels) -> dict[int, Footprint]:
    """Footprint of every region of a label map (slices, rows, columns), by number."""
    found = {}
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(labels)
    for number, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = labels[box] == number
        areas = mask.sum(axis=(1, 2))
        largest = int(np.argmax(areas))
        parts, count = ndimage.label(mask[largest], structure=_TOUCHING)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        offset = np.array([box[2].start, box[1].start])
        found[number] = Footprint(
            slices=tuple(int(index) + box[0].start for index in np.flatnonzero(areas)),
            largest_slice=largest + box[0].start,
            outline=_border(parts == 1 + int(np.argmax(sizes))) + offset,
        )
    return found


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
