"""What a prepared case becomes for the network: slices, a volume or a stack, on the canvas.

paper's order: skull strip -> [0, 1] -> canvas -> masks 0 and 1 -> entropy rule -> copies
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from dicom.volume import Volume
from pipeline.brain import BrainMask, premasked, strip_skull
from pipeline.morphology import Mask, dilate_in_plane_mm
from pipeline.orientation import axial_view
from pipeline.preprocess import (
    Array,
    CanvasSpec,
    Placement,
    core_median,
    place,
    prepare,
    resample_to_canvas,
)
from training.enlarge import Labelled
from training.entropy_rule import EntropySelection, select_slices
from training.nnunet_files import canvas_properties, encode_case, fingerprint_of_case
from training.paper_augment import apply_draw, draw_copy
from training.recipe import Recipe
from training.sources import running_sum

Row = dict[str, Any]
Files = Iterator[tuple[str, bytes]]
"""Path below the data set, and content."""

FINE_SLICE_MM = 1.5
"""Stacks of slices up to this are cut anew, thicker and tilted; thicker ones stay as acquired."""
MARGIN_PIXELS = 6  # around the brain box: room for rim artefacts
SMALLEST_BRAIN_MM2 = 100.0  # of a slice that is drawn for training


def find_brain(volume: Volume, recipe: Recipe) -> BrainMask:
    """The brain as the recipe says: by the node's skull strip, or what a stripped image holds."""
    return strip_skull(volume) if recipe.skull_strip else premasked(volume)


def nearest_on_canvas(canonical: Mask, placement: Placement) -> Mask:
    """A mask of the canonical view on the canvas, by its nearest pixel; beyond the source: False.

    The paper says that masks are resized and 0 or 1; between pixels only the nearest is both.
    """
    found = []
    for first, step, canvas, size in zip(
        placement.first, placement.step, placement.canvas, placement.shape[1:], strict=True
    ):
        index = np.floor(first + step * np.arange(canvas) + 0.5).astype(np.intp)
        found.append((np.clip(index, 0, size - 1), (index >= 0) & (index < size)))
    (rows, rows_in), (columns, columns_in) = found
    out: Mask = canonical[:, rows[:, None], columns[None, :]] & (
        rows_in[:, None] & columns_in[None, :]
    )
    return out


# --- cases as nnU-Net reads them ----------------------------------------------------------------


def canvas_case(name: str, one: Labelled, recipe: Recipe, seed: int) -> tuple[Row, Files]:
    """Slices or a volume on the canvas: facts, and files of nnU-Net's data set.

    Args:
        name: Of the prepared case.
        one: Image, lesions, brain.
        recipe: With a canvas.
        seed: Of the copies.

    Raises:
        CanvasError, NoBrainCoreError: The brain does not fit, or is none.
    """
    canvas = _canvas(recipe)
    prepared = prepare(one.volume, one.brain, canvas)
    view = axial_view(one.volume.grid)
    masks = nearest_on_canvas(view.apply(one.lesions), prepared.placement)
    spacing_mm = (view.grid.spacing_mm[0], canvas.pixel_mm, canvas.pixel_mm)
    pixel_mm2 = canvas.pixel_mm**2
    facts, intensities = fingerprint_of_case(prepared.images, masks, spacing_mm)
    # Enough for percentiles that nothing is normalised with, and the row stays small.
    sample = np.sort(intensities)[:: max(1, len(intensities) // 200)]
    row: Row = {
        "slices": len(masks),
        "lesion_ml": _ml(one.lesions, one.volume),
        "lesion_outside_brain_ml": round(
            float(np.count_nonzero(masks & (prepared.images <= 0.0)))
            * pixel_mm2
            * spacing_mm[0]
            / 1000,
            4,
        ),
        "brain_ml": round(one.brain.volume_ml, 1),
        "fingerprint": {**facts, "intensities": [round(float(value), 4) for value in sample]},
    }
    if recipe.cases.unit == "volume":
        images = [{"name": name, "copy": 0}]
        return row | {"images": images}, _volume_files(
            name, prepared.images, masks, spacing_mm, canvas
        )
    chosen = _chosen(prepared.images, masks, pixel_mm2, recipe)
    images = [
        {"name": slice_name(name, index, copy), "slice": index, "copy": copy}
        for index in chosen.kept
        for copy in range(recipe.cases.copies + 1)
    ]
    row |= {**chosen.as_json(), "copies": len(chosen.kept) * recipe.cases.copies, "images": images}
    return row, _slice_files(name, prepared.images, masks, chosen.kept, recipe, seed, spacing_mm)


def slice_name(case: str, index: int, copy: int = 0) -> str:
    """Of a slice, and of its copies from 1."""
    return f"{case}_s{index:03d}" + (f"_a{copy}" if copy else "")


def _chosen(images: Array, masks: Mask, pixel_mm2: float, recipe: Recipe) -> EntropySelection:
    if recipe.cases.entropy_rule:
        return select_slices(masks, pixel_mm2)
    with_brain = (images > 0.0).any(axis=(1, 2)) | masks.any(axis=(1, 2))
    kept = tuple(int(index) for index in np.flatnonzero(with_brain))
    empty = tuple(int(index) for index in np.flatnonzero(~with_brain))
    return EntropySelection(kept, empty, (), ())


def _slice_files(
    name: str,
    images: Array,
    masks: Mask,
    kept: Sequence[int],
    recipe: Recipe,
    seed: int,
    spacing_mm: tuple[float, float, float],
) -> Files:
    canvas = _canvas(recipe)
    for index in kept:
        for copy in range(recipe.cases.copies + 1):
            image, mask = images[index], masks[index]
            if copy:
                image, mask = apply_draw(image, mask, draw_copy(f"{seed}/{name}/{index}/{copy}"))
            yield from _encoded(
                slice_name(name, index, copy),
                image[None, None],
                mask[None, None],
                spacing_mm,
                canvas,
            )


def _volume_files(
    name: str,
    images: Array,
    masks: Mask,
    spacing_mm: tuple[float, float, float],
    canvas: CanvasSpec,
) -> Files:
    yield from _encoded(name, images[None], masks[None], spacing_mm, canvas)


def _encoded(
    name: str,
    images: Array,
    masks: Mask,
    spacing_mm: tuple[float, float, float],
    canvas: CanvasSpec,
) -> Files:
    properties = canvas_properties(masks, spacing_mm)
    patch = (canvas.rows, canvas.columns)
    for suffix, content in encode_case(images, masks, properties, patch).items():
        yield f"nnUNetPlans_2d/{name}{suffix}", content


# --- stacks that slices are drawn from ----------------------------------------------------------


def stack_case(name: str, one: Labelled, recipe: Recipe) -> tuple[Row, Files]:
    """A `training.sources.Stack`: intensity in core medians, lesion and brain, on the canvas.

    The same placement, resampling and median as `pipeline.preprocess.prepare`. What lies outside
    the brain is kept: training draws how far the mask is widened.

    Raises:
        CanvasError, NoBrainCoreError: The brain does not fit, or is none.
    """
    canvas = _canvas(recipe)
    view = axial_view(one.volume.grid)
    brain = view.apply(one.brain.mask)
    placement = place(brain, view, canvas)
    shares = resample_to_canvas(brain, placement)
    intensities = resample_to_canvas(view.apply(one.volume.voxels), placement)
    median = core_median(intensities, shares > 0.5, canvas.pixel_mm)
    lesions = resample_to_canvas(view.apply(one.lesions), placement)
    values = _cropped(np.stack([intensities / np.float32(median), lesions, shares], -1), canvas)
    slice_mm = view.grid.spacing_mm[0]
    kind = "slab" if slice_mm <= FINE_SLICE_MM else "slices"
    inside = shares > 0.5
    row: Row = {
        "slices": len(values),
        "kind": kind,
        "lesion_ml": _ml(one.lesions, one.volume),
        "lesion_outside_brain_ml": _ml(one.lesions & ~one.brain.mask, one.volume),
        "brain_ml": round(one.brain.volume_ml, 1),
        "core_median": round(median, 4),
        "images": [{"name": name, "copy": 0}],
    }
    facts, intensities = fingerprint_of_case(
        intensities / np.float32(median) * inside,
        lesions > 0.5,
        (slice_mm, canvas.pixel_mm, canvas.pixel_mm),
    )
    sample = np.sort(intensities)[:: max(1, len(intensities) // 200)]
    row["fingerprint"] = {**facts, "intensities": [round(float(value), 4) for value in sample]}
    return row, chain(
        _stack_files(name, values, kind, slice_mm, canvas), brain_file(name, one.brain.mask)
    )


def _stack_files(name: str, values: Array, kind: str, slice_mm: float, canvas: CanvasSpec) -> Files:
    lesion_slices = np.flatnonzero((values[..., 1] > 0.5).any(axis=(1, 2)))
    area_mm2 = (values[..., 2] > 0.5).sum(axis=(1, 2)) * canvas.pixel_mm**2
    brain_slices = np.flatnonzero(area_mm2 > SMALLEST_BRAIN_MM2)
    stored = running_sum(values) if kind == "slab" else values
    array, index = BytesIO(), BytesIO()
    np.save(array, stored)
    np.savez(
        index,
        slab=np.array(kind == "slab"),
        lesion_slices=lesion_slices,
        brain_slices=brain_slices,
        slice_mm=np.array(slice_mm),
    )
    yield f"stacks/{name}.npy", array.getvalue()
    yield f"stacks/{name}.index.npz", index.getvalue()


def _cropped(values: Array, canvas: CanvasSpec) -> Array:
    """The brain box and a margin, equal on both sides of the canvas centre."""
    margin = MARGIN_PIXELS + int(np.ceil(canvas.dilation_mm / canvas.pixel_mm))
    brain = np.any(values[..., 2] > 0.5, axis=0)
    cuts = []
    for axis, size in enumerate(brain.shape):
        inside = np.flatnonzero(brain.any(axis=1 - axis))
        half = int(np.abs(inside - size // 2).max()) + margin
        cuts.append(slice(max(0, size // 2 - half), size // 2 + half + 1))
    return np.ascontiguousarray(values[:, cuts[0], cuts[1]])


# --- volumes for nnU-Net's own preprocessing ----------------------------------------------------


def in_axial_view(one: Labelled) -> Labelled:
    """As the node shows a head to a network with nnU-Net's preprocessing, however it was stored.

    nnU-Net takes arrays as they lie: a cohort stored in several ways would be trained on several
    ways up, and a sagittal acquisition cut into sagittal slices.
    """
    view = axial_view(one.volume.grid)
    return Labelled(
        Volume(view.apply(one.volume.voxels), view.grid),
        view.apply(one.lesions),
        BrainMask(view.apply(one.brain.mask), view.grid, one.brain.method, one.brain.version),
    )


def stripped_case(name: str, one: Labelled, recipe: Recipe) -> tuple[Row, Files]:
    """Where the brain is, and what nnU-Net's fingerprint takes from the case."""
    image = stripped_image(one.volume, one.brain.mask, recipe)
    facts, intensities = fingerprint_of_case(image, one.lesions, one.volume.grid.spacing_mm)
    row: Row = {
        "slices": len(image),
        "lesion_ml": _ml(one.lesions, one.volume),
        "lesion_outside_brain_ml": _ml(one.lesions & ~(image != 0), one.volume),
        "brain_ml": round(one.brain.volume_ml, 1),
        "fingerprint": facts,
        "images": [],
    }

    def files() -> Files:
        content = BytesIO()
        np.savez(
            content, brain=np.packbits(one.brain.mask), intensities=intensities.astype(np.float32)
        )
        yield f"stripped/{name}.npz", content.getvalue()

    return row, files()


def stripped_image(volume: Volume, brain: Mask, recipe: Recipe) -> Array:
    """The image, 0 outside the widened brain."""
    if not recipe.skull_strip:
        return volume.voxels
    widened = dilate_in_plane_mm(brain, volume.grid.spacing_mm, CanvasSpec().dilation_mm)
    out: Array = np.where(widened, volume.voxels, np.float32(0.0))
    return out


def brain_file(name: str, brain: Mask) -> Files:
    """The brain, so that a host or a donor is not stripped again."""
    content = BytesIO()
    np.savez_compressed(content, brain=np.packbits(brain))
    yield f"brains/{name}.npz", content.getvalue()


def unpacked(bits: npt.NDArray[np.uint8], shape: tuple[int, int, int]) -> Mask:
    """A mask from `np.packbits`."""
    flat = np.unpackbits(bits, count=int(np.prod(shape)))
    return flat.reshape(shape).astype(np.bool_)


def _canvas(recipe: Recipe) -> CanvasSpec:
    if recipe.canvas is None:
        raise ValueError("the recipe has no canvas")
    return recipe.canvas.spec()


def _ml(mask: Mask, volume: Volume) -> float:
    return round(float(np.count_nonzero(mask)) * volume.grid.voxel_volume_ml, 4)


def facts_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Row], list[Array]]:
    """Fingerprints of rows, for `nnunet_files.fingerprint`."""
    prints = [json.loads(json.dumps(row["fingerprint"])) for row in rows]
    return prints, [np.asarray(one.pop("intensities", []), np.float32) for one in prints]
