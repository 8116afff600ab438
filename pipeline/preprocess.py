"""A stripped brain on the network's canvas, and what the network said back on the source grid.

Only the axial plane is resampled: the network is two-dimensional, and a slice of the canvas is a
slice of the source, or of its axial view. Training makes its inputs with the functions of this
module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from dicom.errors import StudyError
from dicom.volume import Volume
from pipeline.brain import BrainMask
from pipeline.morphology import Mask, dilate_in_plane_mm, erode_in_plane_mm
from pipeline.orientation import AxialView, axial_view

Array = npt.NDArray[np.float32]
Weights: TypeAlias = "csr_array[np.float32, tuple[int, int]]"
"""How much of each source pixel is in each target pixel, along one axis."""
Normalisation = Literal["starter", "paper"]

CORE_EROSION_MM = 12.0  # leaves cortex, scalp and orbit behind: the median is that of deep brain
BRIGHTEST_CORE_MEDIANS = 1.9  # lesions reach 1.93 x the core median; starter_model.md, "input"
SMALLEST_CORE_PIXELS = 200  # 2 cm2 of deep brain in the whole volume; less is no head


class CanvasError(StudyError):
    """The brain is larger than the canvas of the model pack."""

    reason = "does-not-fit-canvas"


class NoBrainCoreError(StudyError):
    """Too little deep brain to take the intensity scale from."""

    reason = "no-brain-core"


@dataclass(frozen=True, slots=True)
class CanvasSpec:
    """What a model pack says of its input images."""

    rows: int = 224
    columns: int = 192
    pixel_mm: float = 1.0
    normalisation: Normalisation = "starter"
    """starter: clip(v / (1.9 x core median), 0, 1). paper: minimum to 0 and maximum to 1 in the
    brain, which a single bright pixel can spoil; for packs that were trained that way."""
    dilation_mm: float = 2.0
    """The brain mask is widened in plane by this much: a tight mask loses juxtacortical lesions."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where a canvas lies in its source, in pixels of the canonical axial view."""

    view: AxialView
    shape: tuple[int, int, int]
    """(slices, rows, columns) of the canonical view."""
    canvas: tuple[int, int]
    """(rows, columns) of the canvas."""
    first: tuple[float, float]
    """Source (row, column) under the centre of canvas pixel (0, 0)."""
    step: tuple[float, float]
    """Source pixels per canvas pixel along (row, column)."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What the network is given."""

    images: Array
    """(slices, rows, columns) of the canvas, 0 to 1, 0 outside the widened brain mask."""
    placement: Placement
    core_median: float
    """Median source intensity of the deep brain: the unit of `starter` images and the leak rule."""


def prepare(volume: Volume, brain: BrainMask, spec: CanvasSpec) -> Prepared:
    """Resample the brain in plane to the canvas and normalise it.

    Raises:
        CanvasError: The brain is larger than the canvas.
        NoBrainCoreError: No brain is left 12 mm inside its edge.
    """
    view = axial_view(volume.grid)
    mask = view.apply(brain.mask)
    placement = place(mask, view, spec)
    brain_fraction = resample_to_canvas(mask, placement)
    canvas_mask = brain_fraction > 0.5
    intensities = resample_to_canvas(view.apply(volume.voxels), placement)
    median = core_median(intensities, canvas_mask, spec.pixel_mm)
    images = normalise(intensities, canvas_mask, median, spec.normalisation)
    spacing_mm = (1.0, spec.pixel_mm, spec.pixel_mm)
    images[~dilate_in_plane_mm(canvas_mask, spacing_mm, spec.dilation_mm)] = 0.0
    return Prepared(images, placement, median)


def restore(canvas: Array, placement: Placement) -> Array:
    """Canvas values on the source grid, by linear interpolation in plane; 0 outside the canvas.

    Args:
        canvas: (k, slices, rows, columns): probabilities, or logits against the background, so
            that 0 outside means what it says.
        placement: From the `Prepared` that the values belong to.

    Returns:
        (k, slices, rows, columns) of the source grid.
    """
    rows, columns = (
        _linear(-first / step, 1.0 / step, size, canvas_size)
        for first, step, size, canvas_size in zip(
            placement.first, placement.step, placement.shape[1:], placement.canvas, strict=True
        )
    )
    return np.stack(
        [placement.view.invert(_apply_in_plane(rows, channel, columns)) for channel in canvas]
    )


def place(mask: Mask, view: AxialView, spec: CanvasSpec) -> Placement:
    """Centre the canvas on the box of a brain mask in the canonical view.

    The centre falls on a source pixel, so that a source of the canvas's own spacing is copied.
    """
    if not mask.any():
        raise NoBrainCoreError("the brain mask is empty")
    pixels_mm = view.grid.spacing_mm[1:]
    canvas = (spec.rows, spec.columns)
    first, step = [], []
    for axis, (pixel_mm, size) in enumerate(zip(pixels_mm, canvas, strict=True)):
        low, high = _extent(np.any(mask, axis=(0, 2 - axis)))
        extent_mm = (high - low) * pixel_mm
        if extent_mm > size * spec.pixel_mm:
            along = ("anterior to posterior", "right to left")[axis]
            raise CanvasError(
                f"the brain is {extent_mm:.0f} mm from {along}; "
                f"the canvas of the model holds {size * spec.pixel_mm:.0f} mm"
            )
        step.append(spec.pixel_mm / pixel_mm)
        first.append((low + high - 1) // 2 - (size // 2) * step[-1])
    return Placement(
        view=view,
        shape=(mask.shape[0], mask.shape[1], mask.shape[2]),
        canvas=canvas,
        first=(first[0], first[1]),
        step=(step[0], step[1]),
    )


def resample_to_canvas(
    canonical: npt.NDArray[np.float32] | npt.NDArray[np.bool_], placement: Placement
) -> Array:
    """Values in the canonical view on the canvas; a Gaussian goes first where pixels get larger."""
    rows, columns = (
        _linear(first, step, canvas_size, size) @ _anti_alias(size, step)
        for first, step, canvas_size, size in zip(
            placement.first, placement.step, placement.canvas, placement.shape[1:], strict=True
        )
    )
    return _apply_in_plane(rows, canonical, columns)


def core_median(intensities: Array, brain: Mask, pixel_mm: float) -> float:
    """Median intensity more than 12 mm inside the brain, in plane.

    Percentiles of the whole brain follow any fat that the skull strip left; the median of the core
    does not (measured: starter_model.md, "What failed").
    """
    core = erode_in_plane_mm(brain, (1.0, pixel_mm, pixel_mm), CORE_EROSION_MM)
    if np.count_nonzero(core) < SMALLEST_CORE_PIXELS:
        raise NoBrainCoreError(
            f"{np.count_nonzero(core)} pixels lie {CORE_EROSION_MM:.0f} mm inside the brain"
        )
    median = float(np.median(intensities[core]))
    if not median > 0.0:
        raise NoBrainCoreError(f"the median intensity of the deep brain is {median:g}")
    return median


def normalise(intensities: Array, brain: Mask, median: float, rule: Normalisation) -> Array:
    """Intensities from 0 to 1."""
    if rule == "starter":
        low, high = 0.0, BRIGHTEST_CORE_MEDIANS * median
    else:
        inside = intensities[brain]
        low, high = float(inside.min()), float(inside.max())
    scaled: Array = np.clip((intensities - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return scaled


def _extent(occupied: npt.ArrayLike) -> tuple[int, int]:
    indices = np.flatnonzero(occupied)
    return int(indices[0]), int(indices[-1]) + 1


def _linear(first: float, step: float, targets: int, sources: int) -> Weights:
    """(targets, sources): linear interpolation at `first + i * step`; 0 beyond the last source."""
    position = first + step * np.arange(targets)[:, None]
    weight = 1.0 - np.abs(position - np.arange(sources)[None, :])
    return csr_array(np.maximum(weight, 0.0).astype(np.float32))


def _anti_alias(size: int, step: float) -> Weights:
    """(size, size): Gaussian of sd (step - 1) / 2 pixels; the identity where pixels get smaller."""
    sd = 0.5 * (step - 1.0)
    if sd <= 0.0:
        return csr_array(np.eye(size, dtype=np.float32))
    index = np.arange(size)
    offset = (index[:, None] - index[None, :]) / sd
    weight = np.where(np.abs(offset) <= 4.0, np.exp(-0.5 * offset**2), 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    return csr_array(weight.astype(np.float32))


def _apply_in_plane(
    rows: Weights, stack: npt.NDArray[np.float32] | Mask, columns: Weights
) -> Array:
    """Rows @ slice @ columns.T for every slice: in-plane resampling is separable."""
    out = np.empty((len(stack), rows.shape[0], columns.shape[0]), np.float32)
    for index, one in enumerate(stack):
        out[index] = (columns @ (rows @ one.astype(np.float32, copy=False)).T).T
    return out
