"""The same field of view on other rows and columns. Slices stay as they were acquired."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.morphology import SpacingMm

Image = npt.NDArray[np.float32]

_BLUR_WORTH_DOING = 0.1  # pixels: a narrower Gaussian changes nothing


def coarser_in_plane(
    image: Image, spacing_mm: SpacingMm, pixel_mm: float
) -> tuple[Image, SpacingMm]:
    """The image at about this pixel, blurred before, and its spacing; coarser ones stay."""
    slices, rows, columns = image.shape
    row_factor = min(1.0, spacing_mm[1] / pixel_mm)
    column_factor = min(1.0, spacing_mm[2] / pixel_mm)
    sigma = [0.5 * (1 / factor - 1) for factor in (row_factor, column_factor)]
    blurred = image
    if max(sigma) > _BLUR_WORTH_DOING:
        blurred = ndimage.gaussian_filter(image, (0.0, *sigma))
    shape = (slices, round(rows * row_factor), round(columns * column_factor))
    coarse_spacing = (
        spacing_mm[0],
        spacing_mm[1] * rows / shape[1],
        spacing_mm[2] * columns / shape[2],
    )
    return resample_in_plane(blurred, shape), coarse_spacing


def resample_in_plane(image: Image, shape: tuple[int, ...]) -> Image:
    """Linear in plane; within half a pixel of the border the image is flat."""
    for axis in (1, 2):
        image = _resample_axis(image, axis, shape[axis])
    return image


def _resample_axis(image: Image, axis: int, length: int) -> Image:
    old = image.shape[axis]
    if old == length:
        return image
    # Pixels are areas: the borders of the field of view meet, not the centres of its end pixels.
    at = np.clip((np.arange(length) + 0.5) * (old / length) - 0.5, 0, old - 1)
    low = np.minimum(at.astype(np.intp), max(0, old - 2))
    weight = (at - low).astype(np.float32)
    weight = weight[:, np.newaxis] if axis == 1 else weight
    high = np.minimum(low + 1, old - 1)
    resampled: Image = image.take(low, axis) * (1 - weight)
    resampled += image.take(high, axis) * weight
    return resampled
