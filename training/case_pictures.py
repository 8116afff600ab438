"""Pictures of one case for the report: both masks as lines over the slice that tells the most.

Up to three slices: the one with the most lesion, the one with the largest false lesion, the one
with the largest missed one. Which way up a slice stands is decided in `pipeline.slice_picture`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from pydantic import JsonValue
from scipy import ndimage

from dicom.volume import Volume
from pipeline.slice_picture import Rgb, View, draw_slice, view_of
from training.case_rows import SHARES_EDGES
from training.voxel_metrics import Mask

ROOM: Final = (280, 320)
"""Width and height, pixels: three beside each other on a page."""
LETTERS: Final = 13
REFERENCE_RGB: Final = (64, 196, 255)
PREDICTION_RGB: Final = (255, 176, 0)
"""Blue and amber: told apart by those who do not tell red from green."""
COLOURS: Final = 96  # of a palette: greys and two lines need no more, and a file has a third
BRIGHT: Final = 0.3  # of the 99th percentile: where no brain was given, what is no air


@dataclass(frozen=True, slots=True)
class Choice:
    """One slice, and why."""

    kind: str
    """overview, false or missed."""
    index: int
    volume_ml: float
    """Of both masks together in it; or of the false, or missed, lesion."""


def choose(reference: Mask, prediction: Mask, voxel_volume_ml: float) -> tuple[Choice, ...]:
    """The slices to show; none of kind `false` or `missed` where there is no such lesion."""
    return tuple(_choices(reference, prediction, voxel_volume_ml))


def _choices(reference: Mask, prediction: Mask, voxel_ml: float) -> Iterator[Choice]:
    areas = (reference | prediction).sum(axis=(1, 2))
    index = int(areas.argmax()) if areas.any() else len(areas) // 2
    yield Choice("overview", index, float(areas[index]) * voxel_ml)
    for kind, mask, other in (
        ("false", prediction, reference),
        ("missed", reference, prediction),
    ):
        labels = np.empty(mask.shape, np.int32)
        count = ndimage.label(mask, structure=SHARES_EDGES, output=labels)
        sizes = np.bincount(labels[mask], minlength=count + 1)
        sizes[np.unique(labels[mask & other])] = 0  # met
        if sizes[1:].any():
            lesion = labels == int(sizes[1:].argmax()) + 1
            yield Choice(kind, int(lesion.sum(axis=(1, 2)).argmax()), float(sizes.max()) * voxel_ml)


def draw_pictures(
    folder: Path, name: str, volume: Volume, brain: Mask | None, masks: tuple[Mask, Mask]
) -> JsonValue:
    """Write the pictures of a case, and say what they show.

    Args:
        folder: Where to write them.
        name: Of the case.
        volume: The image.
        brain: On its grid; None: what is bright.
        masks: Reference and prediction.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reference, prediction = masks
    if brain is None:
        brain = np.asarray(volume.voxels > BRIGHT * np.percentile(volume.voxels, 99), bool)
    view = view_of(volume, brain, (reference | prediction).astype(np.int32))
    shown: list[JsonValue] = []
    for choice in choose(reference, prediction, volume.grid.voxel_volume_ml):
        pixels = draw_masks(volume, view, choice.index, masks)
        file = f"{name}-{choice.kind}.png"
        Image.fromarray(pixels).quantize(COLOURS, Image.Quantize.MEDIANCUT).save(
            folder / file, optimize=True
        )
        shown.append(
            {
                "kind": choice.kind,
                "file": file,
                "slice": choice.index + 1,
                "of_slices": len(reference),
                "volume_ml": choice.volume_ml,
            }
        )
    return shown


def draw_masks(volume: Volume, view: View, index: int, masks: tuple[Mask, Mask]) -> Rgb:
    """One slice with the reference in a blue line and the prediction in an amber one over it."""
    nothing = np.zeros(volume.grid.shape, np.int32)
    pixels = draw_slice(volume, nothing, index, view, ROOM, letters=LETTERS)
    for mask, colour in zip(masks, (REFERENCE_RGB, PREDICTION_RGB), strict=True):
        part = view.upright(mask[index])[view.box]
        large = np.asarray(
            Image.fromarray(part).resize(pixels.shape[1::-1], Image.Resampling.NEAREST), bool
        )
        pixels[large & ~ndimage.binary_erosion(large)] = colour
    return pixels
