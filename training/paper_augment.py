"""The paper's augmentation: five changed copies of every slice that its entropy rule keeps.

Ranges are the paper's: rotation +-40 degrees, shift +-20 % along both axes, shear +-20 degrees,
zoom +-20 %, horizontal flip. These are the arguments of Keras' ImageDataGenerator, so what the
paper leaves open is done as Keras does by default: a copy draws all of them, uniformly; zoom is
drawn for each axis; beyond the border the nearest pixel is repeated (of a stripped head: 0).
Silent in the paper and not Keras': the mask is moved with the nearest neighbour, so that it stays
0 and 1, and copies follow from a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, radians, sin
from random import Random
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.morphology import Mask
from training.entropy_rule import select_slices

COPIES = 5
ROTATION_DEG = 40.0
SHIFT = 0.20  # of rows and of columns
SHEAR_DEG = 20.0
ZOOM = 0.20

Image = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draw:
    """What happens to one copy."""

    rotation_deg: float = 0.0
    shift_rows: float = 0.0
    """Share of the rows. As in Keras, the picture moves against the sign."""
    shift_columns: float = 0.0
    shear_deg: float = 0.0
    zoom_rows: float = 1.0
    """Share of the picture that fills the copy: 0.8 enlarges."""
    zoom_columns: float = 1.0
    flip: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class PaperSlice:
    """One training image of the paper's recipe."""

    index: int
    """Of the slice in its case."""
    copy: int
    """0 is the slice itself, 1 to `COPIES` are changed."""
    image: Image
    mask: Mask


def paper_slices(
    images: Image, masks: Mask, pixel_mm2: float, *, case: str, seed: int
) -> Iterator[PaperSlice]:
    """Every slice that the entropy rule keeps, each followed by its copies.

    Args:
        images: (slices, rows, columns), 0 to 1, on the canvas.
        masks: Likewise.
        pixel_mm2: Area of a pixel of the canvas.
        case: Name of the case; two cases draw differently.
        seed: The same seed gives the same images.
    """
    for index in select_slices(masks, pixel_mm2).kept:
        yield PaperSlice(index, 0, images[index], masks[index])
        for copy in range(1, COPIES + 1):
            draw = draw_copy(f"{seed}/{case}/{index}/{copy}")
            image, mask = apply_draw(images[index], masks[index], draw)
            yield PaperSlice(index, copy, image, mask)


def draw_copy(key: str) -> Draw:
    """Uniform in the paper's ranges; a flip every second time. The same key, the same draw."""
    # Python's own generator, from a text: the same with every version of numpy.
    random = Random(key)  # noqa: S311  # no secret

    def within(half: float) -> float:
        return (2 * random.random() - 1) * half

    return Draw(
        rotation_deg=within(ROTATION_DEG),
        shift_rows=within(SHIFT),
        shift_columns=within(SHIFT),
        shear_deg=within(SHEAR_DEG),
        zoom_rows=1 + within(ZOOM),
        zoom_columns=1 + within(ZOOM),
        flip=random.random() < 0.5,
    )


def apply_draw(image: Image, mask: Mask, draw: Draw) -> tuple[Image, Mask]:
    """The copy: image linear, mask nearest, about the centre of the picture."""
    rows, columns = image.shape
    matrix = _matrix(draw, rows, columns)
    # Pixel i has its middle at i; the centre of the picture lies between pixels if it is even.
    centre = np.array([(rows - 1) / 2, (columns - 1) / 2])
    offset: Matrix = matrix[:2, :2] @ -centre + matrix[:2, 2] + centre

    def moved(values: Image, order: Literal[0, 1]) -> Image:
        out: Image = ndimage.affine_transform(
            values, matrix[:2, :2], offset, order=order, mode="nearest"
        )
        return np.ascontiguousarray(out[:, ::-1]) if draw.flip else out

    return moved(image, 1), moved(mask.astype(np.float32), 0) > 0.5


def _matrix(draw: Draw, rows: int, columns: int) -> Matrix:
    """(3, 3), maps (row, column, 1) of the copy to the picture, both from the centre.

    Source: keras.preprocessing.image.apply_affine_transform: rotation, shift, shear, zoom.
    """
    turn, shear = radians(draw.rotation_deg), radians(draw.shear_deg)
    rotation = np.array([[cos(turn), -sin(turn), 0], [sin(turn), cos(turn), 0], [0, 0, 1]])
    shift = np.array(
        [[1, 0, draw.shift_rows * rows], [0, 1, draw.shift_columns * columns], [0, 0, 1]]
    )
    sheared = np.array([[1, -sin(shear), 0], [0, cos(shear), 0], [0, 0, 1]])
    zoom = np.diag([draw.zoom_rows, draw.zoom_columns, 1.0])
    out: Matrix = rotation @ shift @ sheared @ zoom
    return out
