"""Where the MNI152 template lies in a head: an affine map, found on the stripped FLAIR.

Mattes mutual information at two resolutions, started from the extents of the two brains; every
voxel of a coarse grid is a sample, and one thread adds them up, so that the same image gives the
same map bit for bit on one machine. A second or three.

Tried on eight FLAIR volumes (2 to 4 mm slices, averaged to 6.5 mm, and 1 mm): the template's brain
overlaps the brain mask by Dice .954 to .968, thick or thin. Brain Dice alone says little of where
the gyri lie. No non-linear step follows, and none was tried; the ventricles, which differ most
between people, are taken from the image itself (`pipeline.regions`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from scipy import ndimage

from dicom.volume import Affine, Volume
from pipeline.atlas import Atlas, mni_atlas
from pipeline.brain import BrainMask
from pipeline.morphology import Mask
from pipeline.orientation import axial_view
from pipeline.resample import coarser_in_plane

Image = npt.NDArray[np.float32]

SAMPLE_MM = 3.0
"""The voxel of the coarse grid; thicker slices stay as they are."""
BRIGHTEST = 1.6
"""Medians of the brain, above which the metric sees no difference: lesions are not anatomy."""
MARGIN_VOXELS = 2
"""Around the brain mask, that the metric also sees: the edge of the brain is the best landmark."""
BINS = 32
"""Of the joint histogram."""
LEVELS = ((4.0, 2.0, 240), (1.5, 0.5, 160))
"""Blur in mm, first step in mm and most iterations: far off, then close. The shrinking step ends
each. Of five volumes one was misplaced with a quarter of these (Dice .915 for .962); twice as many
change the Dice of none."""

# The limits of a map that is believed. Eight volumes, thick and thin, gave the figures behind them.
LEAST_DICE = 0.92  # .954 to .968; a mask with orbits and scalp .914, an ellipsoid .89
SCALE = (0.85, 1.6)  # 1.01 to 1.38: the template is a large head, so that people are stretched
LARGEST_TURN_DEG = 40.0  # 1 to 20
LARGEST_STRETCH = 1.5  # longest by shortest scale: 1.09 to 1.22


class RegistrationFailedError(Exception):
    """The template could not be laid over this brain. The message says why, in figures."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where the template lies."""

    to_mni: Affine
    """(4, 4), maps LPS mm of the patient to MNI coordinates in LPS mm."""
    dice: float
    """Of the template's brain and the brain mask."""


@dataclass(frozen=True, slots=True, eq=False)
class _Coarse:
    image: Image
    """In medians of the brain, 0 outside it."""
    brain: Mask
    affine: Affine


def place_template(volume: Volume, brain: BrainMask) -> Placement:
    """Lay the template over a brain.

    Raises:
        RegistrationFailedError: It does not fit, or fits a head no person has.
    """
    coarse, atlas = _coarse(volume, brain), mni_atlas()
    try:
        with _one_thread():
            transform = _align(coarse, atlas)
    except RuntimeError as error:  # of ITK: all samples left the template, a singular matrix
        raise RegistrationFailedError("the search for the template's place broke off") from error
    to_mni = _as_matrix(transform)
    refuse_implausible(to_mni)
    there = resample_structures(atlas, to_mni, coarse.affine, coarse.brain.shape) > 0
    both = int(np.count_nonzero(there & coarse.brain))
    dice = 2 * both / (int(np.count_nonzero(there)) + int(np.count_nonzero(coarse.brain)))
    if dice < LEAST_DICE:
        raise RegistrationFailedError(
            f"template and brain mask overlap by Dice {dice:.2f}; {LEAST_DICE:.2f} is the least"
        )
    return Placement(to_mni, dice)


def resample_structures(
    atlas: Atlas, to_mni: Affine, affine: Affine, shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """The atlas's `Structure` at every voxel of a grid in the patient; the nearest one."""
    index_map = np.linalg.inv(atlas.affine) @ to_mni @ affine
    found: npt.NDArray[np.uint8] = ndimage.affine_transform(
        atlas.structures, index_map[:3, :3], index_map[:3, 3], output_shape=shape, order=0
    )
    return found


def _coarse(volume: Volume, brain: BrainMask) -> _Coarse:
    view = axial_view(volume.grid)
    spacing_mm = view.grid.spacing_mm
    image, _ = coarser_in_plane(view.apply(volume.voxels), spacing_mm, SAMPLE_MM)
    share, _ = coarser_in_plane(view.apply(brain.mask).astype(np.float32), spacing_mm, SAMPLE_MM)
    # 1.2 mm slices by two, 1 mm by three: what remains of the topmost is air.
    together = max(1, round(0.9 * SAMPLE_MM / spacing_mm[0]))
    count = len(image) // together
    image, share = (
        one[: count * together].reshape(count, together, *one.shape[1:]).mean(axis=1)
        for one in (image, share)
    )
    size = np.array((1, *view.grid.shape[1:])) / (1, *image.shape[1:])
    size[0] = together
    affine = view.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((size - 1) / 2)  # borders meet, not centres
    affine[:3, :3] *= size
    inside: Mask = share > 0.5
    level = float(np.median(image[inside])) if inside.any() else 0.0
    if level <= 0:
        raise RegistrationFailedError("the brain mask is empty or dark")
    return _Coarse(np.clip(image / level, 0, BRIGHTEST) * share, inside, affine)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads add up their samples in any order, and differ in the last digits.

    The number that a registration is given does not reach its metric (SimpleITK 2.5.7: six runs
    gave six maps); only what a new object finds as the default of the process does.
    """
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _align(coarse: _Coarse, atlas: Atlas) -> Any:  # noqa: ANN401  # SimpleITK has no types
    transform = _start(coarse, atlas)
    fixed = _itk_image(coarse.image, coarse.affine)
    near: Mask = ndimage.binary_dilation(coarse.brain, iterations=MARGIN_VOXELS)
    mask = SimpleITK.Cast(_itk_image(near.astype(np.float32), coarse.affine), SimpleITK.sitkUInt8)
    for blur_mm, step_mm, iterations in LEVELS:
        smooth = ndimage.gaussian_filter(atlas.image, blur_mm)[::2, ::2, ::2]
        moving = _itk_image(smooth, atlas.affine @ np.diag((2, 2, 2, 1)))
        search = SimpleITK.ImageRegistrationMethod()
        search.SetMetricAsMattesMutualInformation(BINS)
        search.SetMetricSamplingStrategy(search.NONE)
        search.SetMetricFixedMask(mask)
        search.SetInterpolator(SimpleITK.sitkLinear)
        search.SetOptimizerAsRegularStepGradientDescent(
            learningRate=step_mm,
            minStep=0.02,
            numberOfIterations=iterations,
            relaxationFactor=0.6,
            gradientMagnitudeTolerance=1e-6,
        )
        search.SetOptimizerScalesFromPhysicalShift()
        search.SetInitialTransform(transform, inPlace=True)
        blurred = SimpleITK.SmoothingRecursiveGaussian(fixed, blur_mm * 0.75)
        search.Execute(blurred if blur_mm > SAMPLE_MM else fixed, moving)
    return transform


def _start(coarse: _Coarse, atlas: Atlas) -> Any:  # noqa: ANN401  # SimpleITK has no types
    """The template stretched to the brain's breadth and length, their vertices at one height.

    Not to its height: the lower end of a stack may cut the brain off.
    """
    low, high = _extent(coarse.brain, coarse.affine)
    template_low, template_high = _extent(atlas.brain[::2, ::2, ::2], atlas.affine * (2, 2, 2, 1))
    stretch = (template_high - template_low) / (high - low)
    stretch[2] = (stretch[0] + stretch[1]) / 2
    middle = (low + high) / 2
    offset = (template_low + template_high) / 2 - middle
    offset[2] = template_high[2] - middle[2] - stretch[2] * (high[2] - middle[2])
    transform = SimpleITK.AffineTransform(3)
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(np.diag(stretch).ravel().tolist())
    transform.SetTranslation(offset.tolist())
    return transform


def _extent(mask: Mask, affine: Affine) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """LPS mm between which nearly all of a mask lies."""
    points = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    low, high = np.percentile(points, (2, 98), axis=0)
    return low, high


def _itk_image(array: Image, affine: Affine) -> Any:  # noqa: ANN401  # SimpleITK has no types
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array, np.float32))
    axes = affine[:3, :3][:, ::-1]  # ITK counts columns first
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _as_matrix(transform: Any) -> Affine:  # noqa: ANN401  # SimpleITK has no types
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = transform.GetTranslation() + centre - matrix[:3, :3] @ centre
    return matrix


def refuse_implausible(to_mni: Affine) -> None:
    """Refuse a map of a head that no person has.

    Raises:
        RegistrationFailedError: It turns, scales or distorts more than any head needs.
    """
    if not np.isfinite(to_mni).all():
        raise RegistrationFailedError("the template's place is no number")
    left, scales, right = np.linalg.svd(to_mni[:3, :3])
    turn = left @ right
    if np.linalg.det(turn) < 0:
        raise RegistrationFailedError("the template was turned inside out")
    degrees = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    low, high = SCALE
    if not (low <= scales[-1] and scales[0] <= high) or scales[0] > LARGEST_STRETCH * scales[-1]:
        printed = ", ".join(f"{scale:.2f}" for scale in scales)
        raise RegistrationFailedError(f"the brain would be scaled by {printed} to the template")
    if degrees > LARGEST_TURN_DEG:
        raise RegistrationFailedError(f"the head would be turned by {degrees:.0f} degrees")
