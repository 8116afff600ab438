"""Tiny patients: a head of 100 on air of 0, lesions of 200; oblique, anisotropic, not square."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from skimage.morphology import label

from dicom.volume import Grid, Volume, write_nifti
from tests.conftest import FlairSeries, oblique_affine
from tests.dicom.regions import build

SHAPE = (6, 20, 16)
GRID = Grid(oblique_affine((6.5, 0.5, 0.75)), SHAPE)
VOXEL_ML = 6.5 * 0.5 * 0.75 / 1000


def lesion(number: int = 1, shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.bool_]:
    """`number` voxels in a row of slice 2 and three of slice 4: along no axis symmetric."""
    mask = np.zeros(shape, np.bool_)
    mask[2, 6, 4 : 4 + number] = True
    mask[4, 12:15, 9] = True
    return mask


def head(mask: npt.NDArray[np.bool_], seed: int = 0) -> npt.NDArray[np.uint16]:
    """The image of these lesions. Another seed is another person's head."""
    voxels = np.zeros(mask.shape, np.uint16)
    voxels[:, 2:-2, 2:-2] = 100
    voxels += (np.random.default_rng(seed).integers(0, 5, mask.shape) * (voxels > 0)).astype("u2")
    voxels[mask] = 200
    return voxels


def volume(mask: npt.NDArray[np.bool_], seed: int = 0, grid: Grid = GRID) -> Volume:
    return Volume(head(mask, seed).astype(np.float32), grid)


def put_patient(folder: Path, number: int = 1, grid: Grid = GRID) -> Path:
    """A plain folder: flair.nii.gz and lesion.nii.gz, of `number` + 3 lesion voxels."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = lesion(number)
    write_nifti(folder / "flair.nii.gz", head(mask, number).astype(np.float32), grid)
    write_nifti(folder / "lesion.nii.gz", mask, grid)
    return folder


def put_cohort(folder: Path, patients: int = 8) -> Path:
    for number in range(1, patients + 1):
        put_patient(folder / f"P{number:02d}", number)
    return folder


def write_seg(
    path: Path,
    made: FlairSeries,
    mask: npt.NDArray[np.bool_],
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """The Segmentation of a series, a segment per component, as flairnode writes it."""
    path.write_bytes(build(made.series, label(mask).astype(np.int32)).seg_bytes)
    if change is not None:
        seg = pydicom.dcmread(path)
        change(seg)
        seg.save_as(path)
    return path


def write_manifest(path: Path, *rows: Mapping[str, Any]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    path.write_text("\n".join(",".join(line) for line in lines) + "\n", encoding="utf-8")
    return path
