"""Heads to strip: one of ellipsoids with a known brain, and the real ones of `shared_data`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom.volume import Grid, Volume, read_nifti
from pipeline.brain import BrainMask, strip_skull
from tests.conftest import oblique_affine

Mask = npt.NDArray[np.bool_]

SHAPE = (24, 128, 112)
SPACING_MM = (6.5, 1.8, 1.6)
HALF_AXES_MM = (62.0, 80.0, 64.0)  # a brain of 4/3 pi 62 x 80 x 64 mm3 = 1330 ml


@cache
def ellipsoid_head(
    seed: int = 0,
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> tuple[Volume, Mask]:
    """Brain, ventricles, CSF, skull and scalp, oblique and anisotropic, and where the brain is."""
    rng = np.random.default_rng(seed)
    offsets = []
    for axis, length in enumerate(shape):
        offset_mm = (np.arange(length) - (length - 1) / 2) * spacing_mm[axis] - centre_mm[axis]
        offsets.append(np.expand_dims(offset_mm, [other for other in range(3) if other != axis]))
    radius = np.sqrt(sum((o / a) ** 2 for o, a in zip(offsets, HALF_AXES_MM, strict=True)))
    ventricles = np.sqrt((offsets[0] / 15) ** 2 + (offsets[1] / 30) ** 2 + (offsets[2] / 14) ** 2)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), (0.7, 2, 2))
    brain_level = 100 + 8 * texture / texture.std()
    levels = [
        (radius < 1.18, 90.0),  # scalp
        (radius < 1.10, 12.0),  # skull
        (radius < 1.05, 30.0),  # CSF
        (radius < 1.00, brain_level),
        (ventricles < 1.0, 30.0),
    ]
    voxels = np.full(shape, 4.0)
    for where, level in levels:
        voxels = np.where(where, level, voxels)
    voxels = np.abs(voxels + rng.normal(0, 3, shape)).astype(np.float32)
    return Volume(voxels, Grid(oblique_affine(spacing_mm), shape, "1.2.3")), radius < 1.0


@cache
def stripped_head() -> BrainMask:
    """The first head, stripped."""
    return strip_skull(ellipsoid_head()[0])


def dice(one: Mask, other: Mask) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


# Real heads ----------------------------------------------------------------------------------

CLEAN = ("patient01/study1", "patient01/study2", "patient04/study1", "patient20/study2")
"""Whose brain masks are right; patient03's and patient19's are wrong at their source."""
ALL_SCANS = (
    *CLEAN,
    "patient03/study1",
    "patient03/study2",
    "patient19/study1",
    "patient19/study2",
)
THICK_MM = 6.5


@cache
def flair(data: Path, scan: str) -> Volume:
    return read_nifti(data / "longitudinal" / f"{scan}_flair.nii.gz")


@cache
def mask_of(data: Path, scan: str, kind: str) -> Volume:
    """The "brain" or "change" mask of a scan."""
    return read_nifti(data / "longitudinal" / f"{scan}_{kind}.nii.gz")


@cache
def stripped(data: Path, scan: str) -> BrainMask:
    return strip_skull(flair(data, scan))


@cache
def thick_flair(data: Path, scan: str) -> Volume:
    return averaged(flair(data, scan), THICK_MM)


@cache
def thick_stripped(data: Path, scan: str) -> BrainMask:
    return strip_skull(thick_flair(data, scan))


def averaged(volume: Volume, slice_mm: float) -> Volume:
    """Box-averaged along the slices to thicker ones, as many as fit."""
    step_mm = volume.grid.spacing_mm[0]
    edges_mm = np.arange(len(volume.voxels) + 1) * step_mm
    count = int(edges_mm[-1] / slice_mm + 1e-6)
    share = np.zeros((count, len(volume.voxels)))
    for index in range(count):
        low, high = index * slice_mm, (index + 1) * slice_mm
        overlap = np.minimum(high, edges_mm[1:]) - np.maximum(low, edges_mm[:-1])
        share[index] = np.maximum(0, overlap) / slice_mm
    voxels = np.tensordot(share, volume.voxels, 1).astype(np.float32)
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (slice_mm / step_mm - 1) / 2
    affine[:3, 0] *= slice_mm / step_mm
    return Volume(voxels, Grid(affine, (count, *volume.grid.shape[1:])))
