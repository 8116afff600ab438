"""One training image: a slice cut through a stack, and all that scanners and skull strips do to it.

Intensities are in units of the core median until `finish`. Each step takes the image and a random
generator, so that a sample is a function of its seed.

Source: the table "Recipe that worked" of the project's starter-model notes; figures are from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pipeline.morphology import Mask
from pipeline.preprocess import BRIGHTEST_CORE_MEDIANS, Array, CanvasSpec
from training.sources import Stack

IGNORE = 255
"""In targets: not known. Neither loss sees such a pixel."""
LESION_SHARE = 0.65
"""Slices drawn among those with a lesion; the others are drawn among all slices of the brain."""

Plane = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """An image with its labels, on the canvas."""

    image: Array
    lesion: Mask
    brain: Mask
    ignored: Mask
    depth: Array
    """Distance to the edge of the brain in pixels: positive inside, negative outside."""
    visible: Mask
    """What the skull strip leaves: outside, the image ends as 0."""


def sample(
    stack: Stack, canvas: CanvasSpec, rng: np.random.Generator
) -> tuple[Array, npt.NDArray[np.uint8]]:
    """An augmented image (0 to 1) and its target (0, 1 or `IGNORE`)."""
    one = on_canvas(cut(stack, rng), canvas, rng, widen=stack.kind == "slices")
    if stack.kind == "slab" and rng.random() < 0.35:
        one = change_lesion_contrast(one, rng)
    one = change_sharpness(one, rng)
    one = change_scale(one, rng)
    if rng.random() < 0.12:
        one = add_bright_csf(one, rng)
    if rng.random() < 0.5:
        one = fail_to_strip(one, rng)
    if rng.random() < 0.12:
        one = add_ghost(one, rng)
    if rng.random() < 0.7:
        one = add_noise(one, rng)
    return finish(one)


# --- geometry -------------------------------------------------------------------------------


def cut(stack: Stack, rng: np.random.Generator) -> Array:
    """(rows, columns, channels) of one slice: as acquired, or a tilted slab of a 1 mm volume."""
    with_lesion = len(stack.lesion_slices) and rng.random() < LESION_SHARE
    index = int(rng.choice(stack.lesion_slices if with_lesion else stack.brain_slices))
    if stack.kind == "slices":
        return np.asarray(stack.values[index])
    thickness = 1.0 if rng.random() < 0.25 else rng.uniform(2.0, 7.0)
    tilt = (rng.normal(0.0, 0.12), rng.normal(0.0, 0.05))
    return slab_mean(stack.values, index + 0.5 + rng.uniform(-0.5, 0.5), thickness, tilt)


def slab_mean(
    sums: npt.NDArray[np.float32], centre: float, thickness: float, tilt: tuple[float, float]
) -> Array:
    """Mean over a tilted slab, from running sums along the slices.

    Args:
        sums: (slices + 1, rows, columns, channels); entry k is the sum of the slices before k.
        centre: Of the slab, in slices; slice k reaches from k to k + 1.
        thickness: Of the slab, in slices.
        tilt: Slices per pixel along (row, column).
    """
    _, rows, columns, _ = sums.shape
    row, column = np.ogrid[:rows, :columns]
    height = (
        centre + tilt[0] * (row - (rows - 1) / 2) + tilt[1] * (column - (columns - 1) / 2)
    ).astype(np.float32)

    def sum_below(level: Array) -> Array:
        level = np.clip(level, 0, len(sums) - 1)
        lower = np.minimum(level.astype(np.int64), len(sums) - 2)
        below = sums[lower, row, column]
        rest: Array = (level - lower).astype(np.float32)[..., None]
        out: Array = below + rest * (sums[lower + 1, row, column] - below)
        return out

    half = np.float32(thickness / 2)
    mean: Array = (sum_below(height + half) - sum_below(height - half)) / np.float32(thickness)
    return mean


def on_canvas(values: Array, canvas: CanvasSpec, rng: np.random.Generator, *, widen: bool) -> Slice:
    """Turn, scale, stretch, shift and mirror a slice, and lay it on the canvas.

    Args:
        values: (rows, columns, channels) centred on the brain box.
        canvas: Of the network.
        rng: Draws the transform.
        widen: The skull is still there: draw how far outside the brain the image is kept.
    """
    moved = _moved(values, (canvas.rows, canvas.columns), _transform(rng))
    brain = moved[2] > 0.5
    depth = signed_depth(brain)
    visible = brain
    if widen:
        # Half the images as `prepare` makes them, the others over- and understripped.
        kept = canvas.dilation_mm if rng.random() < 0.5 else rng.uniform(0.0, 3.5)
        visible = depth >= -kept
    image = moved[0] * visible
    ignored = moved[3] > 0.5 if len(moved) > 3 else np.zeros_like(brain)
    lesion = (moved[1] > 0.5) & visible
    return Slice(image, lesion, brain, ignored & visible & ~lesion, depth, visible)


def _transform(rng: np.random.Generator) -> Plane:
    """(2, 3), maps canvas (column, row) to source (column, row), both from their centres."""
    angle = np.deg2rad(rng.uniform(-15.0, 15.0))
    scale = np.exp(rng.uniform(-0.15, 0.15))
    stretch = np.exp(rng.normal(0.0, 0.04))
    shift = rng.uniform(-4.0, 4.0, size=2)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([mirror * stretch, 1.0 / stretch]) / scale
    return np.hstack([matrix, shift[:, None]])


def _moved(values: Array, canvas: tuple[int, int], transform: Plane) -> Array:
    """(channels, rows, columns) of the canvas, by bilinear interpolation; 0 beyond the source."""
    rows, columns, _ = values.shape
    scale_in = np.array([(canvas[1] - 1) / 2, (canvas[0] - 1) / 2])
    # The centre of a canvas (size // 2) is a source pixel and the centre of its crop.
    centre_in = np.array([canvas[1] // 2, canvas[0] // 2]) - scale_in
    centre_out = np.array([columns // 2, rows // 2]) - np.array([(columns - 1) / 2, (rows - 1) / 2])
    matrix = transform[:, :2]
    offset = centre_out + transform[:, 2] - matrix @ centre_in
    to_unit = 1.0 / np.array([(columns - 1) / 2, (rows - 1) / 2])
    theta = np.hstack([to_unit[:, None] * matrix * scale_in, (to_unit * offset)[:, None]])
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(theta).float()[None], [1, 1, *canvas], align_corners=True
    )
    source = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
    moved = torch.nn.functional.grid_sample(source, grid, align_corners=True)
    out: Array = moved[0].numpy()
    return out


def signed_depth(brain: Mask) -> Array:
    """Distance to the edge of a mask in pixels, from a half-size copy: right to one pixel."""
    if not brain.any():
        return np.full(brain.shape, -np.inf, np.float32)
    half = np.pad(brain[::2, ::2], 1)
    inside = ndimage.distance_transform_edt(half)[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~half)[1:-1, 1:-1]
    signed = np.where(half[1:-1, 1:-1], inside - 0.5, 0.5 - outside) * 2.0
    return _enlarged(signed.astype(np.float32), brain.shape)


def _enlarged(small: Array, shape: tuple[int, ...]) -> Array:
    """A small image at full size, bilinear; [0, 0] and the last pixel stay where they are."""
    big = torch.nn.functional.interpolate(
        torch.from_numpy(small)[None, None],
        size=(shape[0], shape[1]),
        mode="bilinear",
        align_corners=False,
    )
    out: Array = big[0, 0].numpy()
    return out


def smooth_field(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> Array:
    """A smooth random field of sd about 1, with about `cells` bumps along each side."""
    coarse = rng.standard_normal((1, 1, cells, cells)).astype(np.float32)
    big = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), size=shape, mode="bicubic", align_corners=True
    )
    out: Array = big[0, 0].numpy()
    return out


# --- intensity ------------------------------------------------------------------------------


def change_lesion_contrast(one: Slice, rng: np.random.Generator) -> Slice:
    """Fainter or brighter lesions than the few patients have. Only where every lesion is known."""
    edge = ndimage.gaussian_filter(one.lesion.astype(np.float32), 0.6)
    return replace(one, image=one.image + np.float32(rng.uniform(-0.10, 0.12)) * edge)


def change_sharpness(one: Slice, rng: np.random.Generator) -> Slice:
    """Blur, or sharpen, or sample more coarsely, or none of them."""
    image, draw = one.image, rng.random()
    if draw < 0.35:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.0))
    elif draw < 0.55:
        image = image + rng.uniform(0.2, 0.8) * (image - ndimage.gaussian_filter(image, 0.8))
    if rng.random() < 0.15:
        factor = rng.uniform(1.2, 2.0)
        small = (round(image.shape[0] / factor), round(image.shape[1] / factor))
        image = _enlarged(_enlarged(image.astype(np.float32), small), image.shape)
    return replace(one, image=image.astype(np.float32))


def change_scale(one: Slice, rng: np.random.Generator) -> Slice:
    """Gamma, scale and offset, and a smooth gain field: coil and scanner."""
    image = np.maximum(one.image, 0.0)
    if rng.random() < 0.6:
        image = image ** np.float32(np.exp(rng.uniform(-0.35, 0.35)))
    if rng.random() < 0.3:
        image = image * rng.uniform(0.85, 1.15) + rng.uniform(-0.06, 0.10) * one.visible
    if rng.random() < 0.6:
        field = smooth_field((image.shape[0], image.shape[1]), 4, rng)
        image = image * np.exp(rng.uniform(0.02, 0.13) * field)
    return replace(one, image=image.astype(np.float32))


def add_bright_csf(one: Slice, rng: np.random.Generator) -> Slice:
    """Inflow: fluid that was not suppressed is bright and is no lesion."""
    dark = ndimage.gaussian_filter(((one.image < 0.6) & (one.depth > 3)).astype(np.float32), 0.8)
    bumps = np.clip(smooth_field((dark.shape[0], dark.shape[1]), 14, rng) - 0.4, 0.0, 1.0)
    added = dark * bumps * rng.uniform(0.4, 1.4)
    return replace(one, image=one.image + (added * ~one.lesion).astype(np.float32))


def fail_to_strip(one: Slice, rng: np.random.Generator) -> Slice:
    """A skull strip that cuts into the brain, or leaves scalp, fat and eyes at its edge."""
    shape = (one.image.shape[0], one.image.shape[1])
    visible = one.visible
    if rng.random() < 0.5:
        bite = rng.uniform(0.0, 4.0) * np.clip(0.6 + 0.7 * smooth_field(shape, 6, rng), 0.0, 1.3)
        visible = visible & (one.depth > bite)
    image, lesion, ignored = one.image * visible, one.lesion & visible, one.ignored & visible
    if rng.random() < 0.6:
        rim = leftover_rim(one.depth, rng)
        bright = rng.uniform(1.2, 3.0) if rng.random() < 0.6 else rng.uniform(0.5, 1.15)
        texture = bright * (1.0 + 0.15 * smooth_field(shape, 24, rng))
        image = np.where(rim, texture, image)
        visible, lesion, ignored = visible | rim, lesion & ~rim, ignored & ~rim
    return replace(
        one, image=image.astype(np.float32), lesion=lesion, ignored=ignored, visible=visible
    )


RIM_INSIDE_PIXELS = 2.0
RIM_OUTSIDE_PIXELS = 5.0


def leftover_rim(depth: Array, rng: np.random.Generator) -> Mask:
    """Stretches of a band along the edge: up to 5 pixels outside and 2 pixels inside of it."""
    outside = rng.uniform(1.0, RIM_OUTSIDE_PIXELS)
    inside = rng.uniform(0.0, RIM_INSIDE_PIXELS)
    stretches = smooth_field((depth.shape[0], depth.shape[1]), int(rng.integers(4, 9)), rng)
    rim: Mask = (depth > -outside) & (depth < inside) & (stretches > rng.uniform(-0.3, 1.2))
    return rim


def add_ghost(one: Slice, rng: np.random.Generator) -> Slice:
    """A faint copy, moved along one axis: motion in the phase direction."""
    axis = int(rng.integers(2))
    size = one.image.shape[axis]
    shift = int(rng.integers(size // 8, size // 2))
    ghost = np.roll(one.image, shift, axis=axis) + np.roll(one.image, -shift, axis=axis)
    return replace(one, image=one.image + np.float32(rng.uniform(0.02, 0.08)) * ghost)


def add_noise(one: Slice, rng: np.random.Generator) -> Slice:
    """White noise, or noise as interpolation on the scanner smooths it."""
    noise = rng.standard_normal(one.image.shape, dtype=np.float32)
    if rng.random() < 0.5:
        noise = ndimage.gaussian_filter(noise, 0.7)
        noise /= noise.std()
    return replace(one, image=one.image + np.float32(rng.uniform(0.0, 0.05)) * noise)


def finish(one: Slice) -> tuple[Array, npt.NDArray[np.uint8]]:
    """The image as `pipeline.preprocess` scales it, and the target."""
    image = np.clip(one.image / np.float32(BRIGHTEST_CORE_MEDIANS), 0.0, 1.0) * one.visible
    target = one.lesion.astype(np.uint8)
    target[one.ignored & ~one.lesion] = IGNORE
    return image.astype(np.float32), target
