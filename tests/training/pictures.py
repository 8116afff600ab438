"""Masks drawn with characters, so that a reader can count their voxels."""

from __future__ import annotations

import numpy as np

from dicom.volume import Grid

MM = (1.0, 1.0, 1.0)


def row(picture: str) -> np.ndarray:
    """One row of voxels: `#` is lesion. Of 1 mm3 each, Anima needs 4 (more than 3 mm3)."""
    return volume([picture])


def volume(*slices: list[str]) -> np.ndarray:
    """Slices, each a list of rows."""
    return np.array([[[mark == "#" for mark in line] for line in lines] for lines in slices])


def grid(shape: tuple[int, ...], spacing_mm: tuple[float, float, float] = MM) -> Grid:
    slices, rows, columns = shape
    return Grid(np.diag([*spacing_mm, 1.0]), (slices, rows, columns))
