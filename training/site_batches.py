"""Batches of the recipe `site-2d`: slices drawn from whole volumes, varied as scanners vary.

A patient is drawn first, then a session, then a slice: who has many slices counts no more than
another. The last images of a batch hold a lesion for certain, as nnU-Net's do. Every batch is a
function of (seed, fold, part, index) alone.

Source of the steps and their ranges: `training.augment`. What is added for a site: slice thickness
in millimetres, neighbours combined where slices are thin enough for it, and pixel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.morphology import dilate_in_plane_mm
from pipeline.preprocess import BRIGHTEST_CORE_MEDIANS, Array, CanvasSpec
from pipeline.resample import resample_in_plane
from training import augment
from training.dataset import Dataset
from training.sources import Stack, load_stack

Part = Literal["train", "val", "train-plain"]
PARTS: tuple[Part, ...] = ("train", "val", "train-plain")

AS_ACQUIRED_SHARE = 0.25
"""Of the draws from fine stacks; the others get a thickness and a tilt."""
THICKNESS_MM = (2.0, 7.0)  # of clinical 2-D FLAIR with its gap
TILT = (0.12, 0.05)  # sd of the slope along rows and columns: 7 and 3 degrees
COMBINED_SHARE = 0.3
THICKEST_COMBINED_MM = 3.5
"""Two neighbours of more than this are thicker than any clinical slice."""
TRIES = 4
"""To keep a lesion that was drawn for certain: a tilt, a thick slab or a bite can lose it."""
COARSER_SHARE = 0.35
COARSEST = 2.0
"""Times the pixel of the canvas, along each axis: 1.5 mm for site-2d."""

Choice = TypeVar("Choice")
Scalar = TypeVar("Scalar", bound=np.generic)
Batch = tuple[Array, npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class SiteStack:
    """A stack, and how far its slices are apart."""

    stack: Stack
    slice_mm: float

    @classmethod
    def load(cls, folder: Path, name: str) -> SiteStack:
        """From `RUN/dataset/stacks`, memory-mapped."""
        with np.load(folder / f"{name}.index.npz") as index:
            return cls(load_stack(folder, name), float(index["slice_mm"]))


class SiteBatches:
    """Batches of one part of one fold.

    Args:
        dataset: Of a recipe with augmentation "site".
        fold: 0 to 4.
        part: `train`; `val`, never augmented; or `train-plain`, the training cases not augmented
            and without inserted lesions (the paper's figure 3).
    """

    def __init__(self, dataset: Dataset, fold: int, part: Part) -> None:
        recipe = dataset.recipe
        if recipe.canvas is None or recipe.training.batch_size is None:
            raise ValueError("augmentation 'site' needs a canvas and a batch size")
        self._canvas = recipe.canvas.spec()
        self._augmented = part == "train"
        self._batch_size = recipe.training.batch_size
        self._seed = (dataset.seed, fold, PARTS.index(part))
        first_sure = round(self._batch_size * (1 - recipe.training.foreground_share))
        self._sure = [number >= first_sure for number in range(self._batch_size)]
        self._share = recipe.cases.semi_synthetic if part == "train" else 0.0
        names = dataset.splits[fold]["val"] if part == "val" else dataset.splits[fold]["train"]
        real = [name for name in names if dataset.origins[name].real]
        made_up = [name for name in names if not dataset.origins[name].real]
        self._real = _Drawer(dataset, real)
        self._made_up = _Drawer(dataset, made_up) if made_up and self._share else None

    def __call__(self, index: int) -> Batch:
        """Images (batch, rows, columns) of 0 to 1, targets likewise of 0, 1 or `augment.IGNORE`."""
        rng = np.random.default_rng([*self._seed, index])
        pairs = [self._image(rng, sure=sure) for sure in self._sure]
        images, targets = zip(*pairs, strict=True)
        return np.stack(images), np.stack(targets)

    def _image(self, rng: np.random.Generator, *, sure: bool) -> Batch:
        drawer = self._real
        if self._made_up is not None and rng.random() < self._share:
            drawer = self._made_up
        one, index = drawer.draw(rng, sure=sure)
        if not self._augmented:
            return plain_image(one, index, self._canvas)
        made = varied_image(one, index, self._canvas, rng)
        for _ in range(TRIES - 1 if sure else 0):
            if (made[1] == 1).any():
                break
            made = varied_image(one, index, self._canvas, rng)
        return made


class _Drawer:
    """Draws a patient, a session and a slice."""

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        folder = dataset.cases_folder
        patients: dict[str, list[SiteStack]] = {}
        for name in names:
            patients.setdefault(dataset.origins[name].patients[0], []).append(
                SiteStack.load(folder, name)
            )
        self._all = [patients[who] for who in sorted(patients)]
        with_lesions = [[one for one in stacks if _has_lesion(one)] for stacks in self._all]
        self._with_lesions = [stacks for stacks in with_lesions if stacks]

    def draw(self, rng: np.random.Generator, *, sure: bool) -> tuple[SiteStack, int]:
        """A stack and a slice of it. `sure`: with a lesion, where any patient has one."""
        sure = sure and bool(self._with_lesions)
        stacks = _one_of(self._with_lesions if sure else self._all, rng)
        one = _one_of(stacks, rng)
        slices = one.stack.lesion_slices if sure else one.stack.brain_slices
        return one, int(slices[int(rng.integers(len(slices)))])


def _has_lesion(one: SiteStack) -> bool:
    return len(one.stack.lesion_slices) > 0


def _one_of(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def plain_image(one: SiteStack, index: int, canvas: CanvasSpec) -> Batch:
    """A slice as acquired: the image that `pipeline.preprocess.prepare` gives the network."""
    values = _slice(one.stack, index)
    brain = values[..., 2] > 0.5
    spacing_mm = (1.0, canvas.pixel_mm, canvas.pixel_mm)
    visible = dilate_in_plane_mm(brain[None], spacing_mm, canvas.dilation_mm)[0]
    image = np.clip(values[..., 0] / np.float32(BRIGHTEST_CORE_MEDIANS), 0.0, 1.0) * visible
    target = ((values[..., 1] > 0.5) & visible).astype(np.uint8)
    return _laid(image.astype(np.float32), canvas), _laid(target, canvas)


def varied_image(one: SiteStack, index: int, canvas: CanvasSpec, rng: np.random.Generator) -> Batch:
    """A slice with everything that a site's scanners and the skull strip may do to it."""
    # `training.augment` counts in pixels.
    pixels = replace(canvas, pixel_mm=1.0, dilation_mm=canvas.dilation_mm / canvas.pixel_mm)
    made = augment.on_canvas(cut(one, index, canvas, rng), pixels, rng, widen=True)
    if rng.random() < 0.35:
        made = augment.change_lesion_contrast(made, rng)
    made = augment.change_sharpness(made, rng)
    if rng.random() < COARSER_SHARE:
        made = replace(made, image=coarser(made.image, rng))
    made = augment.change_scale(made, rng)
    if rng.random() < 0.12:
        made = augment.add_bright_csf(made, rng)
    if rng.random() < 0.5:
        made = augment.fail_to_strip(made, rng)
    if rng.random() < 0.12:
        made = augment.add_ghost(made, rng)
    if rng.random() < 0.7:
        made = augment.add_noise(made, rng)
    return augment.finish(made)


def cut(one: SiteStack, index: int, canvas: CanvasSpec, rng: np.random.Generator) -> Array:
    """(rows, columns, channels) of a slice: as acquired, thicker, or tilted.

    A lesion that fills half of the thickness or less is no lesion of that slice, as for a reader.
    """
    stack = one.stack
    if stack.kind == "slab":
        if rng.random() < AS_ACQUIRED_SHARE:
            return _slice(stack, index)
        thickness = max(1.0, rng.uniform(*THICKNESS_MM) / one.slice_mm)
        slope = canvas.pixel_mm / one.slice_mm
        tilt = (rng.normal(0.0, TILT[0]) * slope, rng.normal(0.0, TILT[1]) * slope)
        centre = index + 0.5 + rng.uniform(-0.5, 0.5)
        return augment.slab_mean(stack.values, centre, thickness, tilt)
    if one.slice_mm <= THICKEST_COMBINED_MM and rng.random() < COMBINED_SHARE:
        beside = index + (1 if rng.random() < 0.5 else -1)
        if 0 <= beside < len(stack.values):
            mean: Array = 0.5 * (stack.values[index] + stack.values[beside])
            return mean
    return _slice(stack, index)


def coarser(image: Array, rng: np.random.Generator) -> Array:
    """Acquired with larger pixels, along each axis by its own factor, and interpolated."""
    factors = rng.uniform(1.0, COARSEST, size=2)
    shape = tuple(max(8, round(size / by)) for size, by in zip(image.shape, factors, strict=True))
    small = resample_in_plane(image[None], (1, *shape))
    large: Array = resample_in_plane(small, (1, *image.shape))[0]
    return large


def _slice(stack: Stack, index: int) -> Array:
    if stack.kind == "slab":
        thin: Array = stack.values[index + 1] - stack.values[index]
        return thin
    return np.asarray(stack.values[index])


def _laid(values: npt.NDArray[Scalar], canvas: CanvasSpec) -> npt.NDArray[Scalar]:
    """A crop about the centre of the canvas, on the canvas."""
    out = np.zeros((canvas.rows, canvas.columns), values.dtype)
    cuts = []
    for size, whole in zip(values.shape, out.shape, strict=True):
        first = whole // 2 - size // 2
        cuts.append(slice(first, first + size))
    out[cuts[0], cuts[1]] = values
    return out
