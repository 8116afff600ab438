"""Tiny stripped brains with lesions, prepared as a cohort: what a data set is built from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from dicom.volume import Grid, write_nifti
from tests.conftest import oblique_affine
from training.cohort import read_cohort
from training.prepare import Refusals, Rules, prepare

SPACING_MM = (6.5, 4.0, 4.0)
SHAPE = (25, 52, 44)
"""Not square."""
SEED = 11

CANVAS = """
[canvas]
rows = 64
columns = 48
pixel_mm = 4.0
normalisation = "{normalisation}"
dilation_mm = 4.0
"""
PAPER = (
    """
name = "paper-small"
summary = "As paper-2d, on a small canvas."
preprocessing = "canvas"
skull_strip = false
augmentation = "nnunet"
"""
    + CANVAS.format(normalisation="paper")
    + """
[cases]
unit = "slice"
entropy_rule = true
copies = 5

[training]
epochs = 2
batch_size = 2
"""
)
SITE = (
    """
name = "site-small"
summary = "As site-2d, on a small canvas."
preprocessing = "canvas"
skull_strip = false
augmentation = "site"
mirroring_axes = [1]
"""
    + CANVAS.format(normalisation="starter")
    + """
[training]
epochs = 2
batch_size = 4
foreground_share = 0.5
"""
)


def brain(shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.bool_]:
    """An ellipsoid of 150 x 120 mm, as high as the stack."""
    axes = [(np.arange(length) - (length - 1) / 2) for length in shape]
    radii = (shape[0] / 2, 75 / SPACING_MM[1], 60 / SPACING_MM[2])
    squares = [(axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)]
    inside: npt.NDArray[np.bool_] = (
        squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] < 1
    )
    return inside


def lesion(number: int, shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.bool_]:
    """`number` + 3 pixels in slice 12 and two in slice 14, left of the middle."""
    mask = np.zeros(shape, np.bool_)
    middle = shape[0] // 2
    mask[middle, 20:22, 12 : 12 + number + 3] = True
    mask[middle + 2, 30:31, 16:18] = True
    return mask


def head(mask: npt.NDArray[np.bool_], seed: int) -> npt.NDArray[np.float32]:
    """White matter of 500 with noise, lesions of 700, air of 0."""
    inside = brain(mask.shape)  # type: ignore[arg-type]
    noise = np.random.default_rng(seed).normal(0, 15, mask.shape)
    return (np.where(mask, 700, 500) + noise).round().astype(np.float32) * inside


def put_brain(folder: Path, number: int, spacing_mm: tuple[float, float, float]) -> None:
    folder.mkdir(parents=True)
    grid = Grid(oblique_affine(spacing_mm), SHAPE)
    mask = lesion(number)
    write_nifti(folder / "flair.nii.gz", head(mask, number), grid)
    write_nifti(folder / "lesion.nii.gz", mask, grid)


def put_prepared(
    folder: Path, patients: int = 8, spacing_mm: tuple[float, float, float] = SPACING_MM
) -> Path:
    """`folder`/prepared: what `flairnode train prepare` makes of so many patients."""
    for number in range(1, patients + 1):
        put_brain(folder / "cohort" / f"P{number:02d}", number, spacing_mm)
    prepare(read_cohort(folder / "cohort"), folder / "prepared", SEED, Rules(), Refusals.STOP)
    return folder / "prepared"


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@cache
def _kept() -> TemporaryDirectory[str]:
    folder: TemporaryDirectory[str] = TemporaryDirectory()
    put_prepared(Path(folder.name))
    return folder


def prepared_cohort() -> Path:
    """Eight patients, prepared once. Read only."""
    return Path(_kept().name) / "prepared"
