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
from PIL import Image, ImageDraw
from pydantic import JsonValue
from scipy import ndimage

from dicom.volume import Volume
from pipeline.slice_picture import WHITE, Rgb, View, draw_slice, view_of
from training.case_rows import SHARES_EDGES
from training.voxel_metrics import Mask

ROOM: Final = (280, 320)
"""Width and height, pixels: three beside each other on a page."""
LETTERS: Final = 13
REFERENCE_RGB: Final = (64, 196, 255)
PREDICTION_RGB: Final = (255, 176, 0)
"""Blue and amber: told apart by those who do not tell red from green."""
AWAY: Final = 6  # pixels between a lesion and the corners around it, and their length
GREYS: Final = 62  # of a palette with both lines: 6 bits, as much as an eye tells, half the bytes
BRIGHT: Final = 0.3  # of the 99th percentile: where no brain was given, what is no air


@dataclass(frozen=True, slots=True)
class Choice:
    """One slice, and why."""

    kind: str
    """overview, false or missed."""
    index: int
    volume_ml: float
    """Of both masks together in it; or of the false, or missed, lesion."""
    box: tuple[slice, slice] | None = None
    """Rows and columns of that lesion in the slice."""


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
            index = int(lesion.sum(axis=(1, 2)).argmax())
            rows, columns = ndimage.find_objects(lesion[index].astype(np.int32))[0]
            yield Choice(kind, index, float(sizes.max()) * voxel_ml, (rows, columns))


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
        pixels = draw_masks(volume, view, choice, masks)
        file = f"{name}-{choice.kind}.png"
        _with_palette(pixels).save(folder / file, optimize=True)
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


def draw_masks(volume: Volume, view: View, choice: Choice, masks: tuple[Mask, Mask]) -> Rgb:
    """A slice with the reference in a blue line, the prediction in amber, corners around one."""
    nothing = np.zeros(volume.grid.shape, np.int32)
    pixels = draw_slice(volume, nothing, choice.index, view, ROOM, letters=LETTERS)
    for mask, colour in zip(masks, (REFERENCE_RGB, PREDICTION_RGB), strict=True):
        large = _as_shown(mask[choice.index], view, pixels.shape)
        pixels[large & ~ndimage.binary_erosion(large)] = colour
    if choice.box is not None:
        where = np.zeros(volume.grid.shape[1:], bool)
        where[choice.box] = True
        _corners(pixels, _as_shown(where, view, pixels.shape))
    return pixels


def _as_shown(flat: Mask, view: View, shape: tuple[int, ...]) -> Mask:
    height, width = shape[:2]
    part = Image.fromarray(view.upright(flat)[view.box])
    shown: Mask = np.asarray(part.resize((width, height), Image.Resampling.NEAREST)) > 0
    return shown


def _corners(pixels: Rgb, where: Mask) -> None:
    """Four angles around a place, that hide nothing of it."""
    rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for y, down in ((rows[0] - AWAY, 1), (rows[-1] + AWAY, -1)):
        for x, inwards in ((columns[0] - AWAY, 1), (columns[-1] + AWAY, -1)):
            draw.line([(x + inwards * AWAY, y), (x, y), (x, y + down * AWAY)], WHITE, 1)
    pixels[:] = np.asarray(picture)


def _with_palette(pixels: Rgb) -> Image.Image:
    """Greys and the two colours, exactly: a palette that is looked for makes the lines pale."""
    indices = (pixels[..., 0].astype(np.uint16) * (GREYS - 1) // 255).astype(np.uint8)
    colours = [(level * 255 // (GREYS - 1),) * 3 for level in range(GREYS)]
    for index, colour in enumerate((REFERENCE_RGB, PREDICTION_RGB), start=GREYS):
        indices[(pixels == colour).all(axis=-1)] = index
        colours.append(colour)
    picture = Image.fromarray(indices, "P")
    picture.putpalette([value for colour in colours for value in colour])
    return picture
