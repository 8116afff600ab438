"""One slice as a picture: upright, in true proportion, with its lesions outlined.

Everything a reader has to trust in a picture is decided here: which way up it stands, which side is
left, where a line lies. Slices are shown as they were acquired, never reformatted; rows and columns
are only turned as a whole so that axial slices stand with the patient's right at the left and the
nose up, coronal ones with the head up, sagittal ones with the nose to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from dicom.seg import Labels
from dicom.volume import Grid, Volume
from pipeline.appearance import colour_rgb
from pipeline.morphology import Mask

Rgb = npt.NDArray[np.uint8]
"""(rows, columns, 3)."""
Colour = tuple[int, int, int]
Scalar = TypeVar("Scalar", bound=np.generic)

WINDOW: Final = 1.9
"""White is this multiple of the brain's median: lesions reach 1.9, fat burns out (`overlay`)."""
MARGIN_MM: Final = 15.0  # around the brain: scalp and skull, without which a head looks cut off
LINE_PIXELS: Final = 2
FILL: Final = 110  # of 255: the tissue below is still seen
SECOND_LETTER: Final = 0.5  # cosine from which an edge is also called by its second direction

WHITE: Final = (235, 235, 235)
BLACK: Final = (0, 0, 0)

_TOUCHING = np.ones((3, 3), bool)
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # towards minus and plus along x, y, z of LPS
_LEFT, _POSTERIOR, _FEET = np.eye(3)[0], np.eye(3)[1], -np.eye(3)[2]
_DOWN_AND_RIGHT = ((_FEET, _POSTERIOR), (_FEET, _LEFT), (_POSTERIOR, _LEFT))
"""For slices whose normal runs along x (sagittal), y (coronal), z (axial)."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """How every slice of one volume is shown."""

    transposed: bool
    flipped: tuple[bool, bool]
    """Rows, columns; after transposing."""
    pixel_mm: tuple[float, float]
    """Of a row, of a column, as shown."""
    down: str
    """Where the rows lead, in letters of PS3.3 C.7.6.1.1.1."""
    right: str
    up: str
    left: str
    box: tuple[slice, slice]
    """Rows and columns that are shown: the head of every slice."""
    white: float
    """Intensity that is white; 0 is black."""

    def upright(self, pixels: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """One slice of the source, (rows, columns), as it stands in the picture; not cropped."""
        return _upright(pixels, self.transposed, self.flipped)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the largest picture in true proportion that fits."""
        rows, columns = (part.stop - part.start for part in self.box)
        tall, wide = rows * self.pixel_mm[0], columns * self.pixel_mm[1]
        scale = min(width / wide, height / tall)
        return max(1, round(wide * scale)), max(1, round(tall * scale))


def view_of(volume: Volume, brain: Mask, labels: Labels) -> View:
    """The view of a volume that shows its head.

    Args:
        volume: As it was acquired, in any plane.
        brain: On its grid; its median sets the window, its extent the crop.
        labels: On the same grid; no lesion is cropped away.
    """
    transposed, flipped, down, right = _turned(volume.grid)
    _, row_mm, column_mm = volume.grid.spacing_mm
    pixel_mm = (column_mm, row_mm) if transposed else (row_mm, column_mm)
    head: Mask = np.asarray((brain | (labels > 0)).any(axis=0), bool)
    inside = volume.voxels[brain]
    level = float(np.median(inside)) if inside.size else 0.0
    return View(
        transposed=transposed,
        flipped=flipped,
        pixel_mm=pixel_mm,
        down=_letters(down),
        right=_letters(right),
        up=_letters(-down),
        left=_letters(-right),
        box=_box(_upright(head, transposed, flipped), pixel_mm),
        white=WINDOW * level if level > 0 else 1.0,
    )


def draw_slice(
    volume: Volume,
    labels: Labels,
    index: int,
    view: View,
    room: tuple[int, int],
    *,
    letters: int = 20,
    line: int = LINE_PIXELS,
    focus: tuple[int, ...] = (),
) -> Rgb:
    """A picture of one slice, each lesion in a line of its colour just outside it, and numbered.

    Args:
        volume: The images.
        labels: 0 background, 1.. lesions, on its grid.
        index: Of the slice.
        view: `view_of` the volume.
        room: Width and height that the picture has to fit.
        letters: Size of numbers and side marks, in pixels.
        line: Width of the lines, in pixels.
        focus: Lesions that corners are drawn around.

    Returns:
        As large as fits; a number that finds no free place is left out.
    """
    width, height = view.size(*room)
    picture = Image.fromarray(_greys(view.upright(volume.voxels[index]), view, width, height))
    marked = _enlarged(view.upright(labels[index]), view, width, height)
    pixels = np.array(picture.convert("RGB"))
    areas = _areas(marked)
    for label in sorted(areas, reverse=True):  # of two lines in one place the larger lesion's stays
        _outline(pixels, marked, label, areas[label], line)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for label in focus:
        if label in areas:
            _corners(draw, areas[label], letters)
    _side_marks(draw, view, width, height, letters)
    _numbers(draw, areas, marked > 0, letters)
    return np.array(picture)


def draw_layers(
    volume: Volume, labels: Labels, index: int, view: View, room: tuple[int, int]
) -> tuple[Image.Image, Image.Image | None]:
    """One slice in two pictures of one size, to be laid over each other.

    Args:
        volume: The images.
        labels: 0 background, 1.. lesions, on its grid.
        index: Of the slice.
        view: `view_of` the volume.
        room: Width and height that the pictures have to fit.

    Returns:
        The slice in grey with its side marks; the lesions in their colours on nothing, each filled
        and with a line around it, or None where the slice has none.
    """
    width, height = view.size(*room)
    grey = Image.fromarray(_greys(view.upright(volume.voxels[index]), view, width, height))
    _side_marks(ImageDraw.Draw(grey), view, width, height, letters=16)
    marked = _enlarged(view.upright(labels[index]), view, width, height)
    areas = _areas(marked)
    if not areas:
        return grey, None
    pixels = np.zeros((height, width, 3), np.uint8)
    lines = np.zeros((height, width), bool)
    for label in sorted(areas, reverse=True):
        pixels[marked == label] = colour_rgb(label)
        before = pixels.copy()
        _outline(pixels, marked, label, areas[label], LINE_PIXELS)
        lines |= (pixels != before).any(axis=2)
    opaque = np.where(lines, 255, np.where(marked > 0, FILL, 0)).astype(np.uint8)
    return grey, Image.fromarray(np.dstack([pixels, opaque]))


@lru_cache(maxsize=32)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which ships inside matplotlib: the same letters on every machine."""
    # Not the layout engine of the system, which may be there or not.
    return ImageFont.truetype(str(font_path(bold=bold)), size, layout_engine=ImageFont.Layout.BASIC)


def font_path(*, bold: bool = False) -> Path:
    """Where the font lies."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / name


def _upright(
    pixels: npt.NDArray[Scalar], transposed: bool, flipped: tuple[bool, bool]
) -> npt.NDArray[Scalar]:
    turned = pixels.T if transposed else pixels
    return np.flip(turned, tuple(axis for axis in (0, 1) if flipped[axis]))


def _turned(
    grid: Grid,
) -> tuple[bool, tuple[bool, bool], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Transposed?, flipped?, and where rows and columns of the picture then lead."""
    steps = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    along_rows, along_columns = steps[:, 1], steps[:, 2]
    normal = np.cross(along_rows, along_columns)
    down, right = _DOWN_AND_RIGHT[int(np.argmax(np.abs(normal)))]
    as_stored = abs(along_rows @ down) + abs(along_columns @ right)
    swapped = abs(along_rows @ right) + abs(along_columns @ down)
    transposed = bool(swapped > as_stored)
    if transposed:
        along_rows, along_columns = along_columns, along_rows
    flipped = bool(along_rows @ down < 0), bool(along_columns @ right < 0)
    return (
        transposed,
        flipped,
        -along_rows if flipped[0] else along_rows,
        -along_columns if flipped[1] else along_columns,
    )


def _letters(direction: npt.NDArray[np.float64]) -> str:
    first, *others = np.argsort(-np.abs(direction), kind="stable").tolist()
    named = [first, *(axis for axis in others if abs(direction[axis]) >= SECOND_LETTER)]
    return "".join(_LETTERS[axis][int(direction[axis] > 0)] for axis in named)


def _box(flat: Mask, pixel_mm: tuple[float, float]) -> tuple[slice, slice]:
    if not flat.any():
        return slice(0, flat.shape[0]), slice(0, flat.shape[1])
    box = []
    for axis in (0, 1):
        inside = np.flatnonzero(flat.any(axis=1 - axis))
        margin = round(MARGIN_MM / pixel_mm[axis])
        first, last = int(inside[0]) - margin, int(inside[-1]) + margin + 1
        box.append(slice(max(0, first), min(flat.shape[axis], last)))
    return box[0], box[1]


def _greys(
    pixels: npt.NDArray[np.float32], view: View, width: int, height: int
) -> npt.NDArray[np.uint8]:
    part = np.ascontiguousarray(pixels[view.box], np.float32)
    smooth = np.asarray(
        Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC), np.float32
    )
    greys: npt.NDArray[np.uint8] = np.rint(np.clip(smooth / view.white, 0, 1) * 255).astype(
        np.uint8
    )
    return greys


def _enlarged(labels: npt.NDArray[np.int32], view: View, width: int, height: int) -> Labels:
    """Pixel by pixel, not smoothed: the line follows the very pixels that were counted."""
    part = labels[view.box]
    rows = (np.arange(height) + 0.5) * part.shape[0] // height
    columns = (np.arange(width) + 0.5) * part.shape[1] // width
    enlarged = part[np.ix_(rows.astype(np.intp), columns.astype(np.intp))]
    # Where the picture has fewer pixels than the slice, a tiny lesion must not fall between them.
    for label in np.setdiff1d(part, enlarged):
        row, column = np.argwhere(part == label)[0]
        enlarged[row * height // part.shape[0], column * width // part.shape[1]] = label
    return enlarged


def _areas(marked: Labels) -> dict[int, tuple[slice, slice]]:
    found: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(marked)
    return {label: (box[0], box[1]) for label, box in enumerate(found, start=1) if box is not None}


def _outline(pixels: Rgb, marked: Labels, label: int, box: tuple[slice, slice], width: int) -> None:
    around = tuple(
        slice(max(0, part.start - width), min(size, part.stop + width))
        for part, size in zip(box, marked.shape, strict=True)
    )
    part = marked[around]
    line = ndimage.binary_dilation(part == label, _TOUCHING, iterations=width) & (part == 0)
    pixels[around][line] = colour_rgb(label)


def _corners(draw: ImageDraw.ImageDraw, box: tuple[slice, slice], letters: int) -> None:
    away, long = letters // 2, letters // 2
    top, bottom = box[0].start - away, box[0].stop - 1 + away
    left, right = box[1].start - away, box[1].stop - 1 + away
    for x, inwards in ((left, 1), (right, -1)):
        for y, down in ((top, 1), (bottom, -1)):
            draw.line([(x + inwards * long, y), (x, y), (x, y + down * long)], WHITE, 1)


def _side_marks(
    draw: ImageDraw.ImageDraw, view: View, width: int, height: int, letters: int
) -> None:
    near = letters // 3
    ink: int | Colour = 235 if draw.mode == "L" else WHITE
    edge: int | Colour = 0 if draw.mode == "L" else BLACK
    places: tuple[tuple[str, tuple[int, int], Literal["mt", "mb", "lm", "rm"]], ...] = (
        (view.up, (width // 2, near), "mt"),
        (view.down, (width // 2, height - near), "mb"),
        (view.left, (near, height // 2), "lm"),
        (view.right, (width - near, height // 2), "rm"),
    )
    for text, place, anchor in places:
        draw.text(
            place,
            text,
            ink,
            font(letters, bold=True),
            anchor=anchor,
            stroke_width=2,
            stroke_fill=edge,
        )


def _numbers(
    draw: ImageDraw.ImageDraw, areas: dict[int, tuple[slice, slice]], lesion: Mask, letters: int
) -> None:
    """Beside each lesion, the largest first, where nothing else lies."""
    taken = lesion.copy()
    height, width = taken.shape
    face = font(letters)
    for label, box in sorted(areas.items()):
        text = str(label)
        left, top, right, bottom = face.getbbox(text, stroke_width=2)
        wide, tall = round(right - left), round(bottom - top)
        for x, y in _places(box, wide, tall):
            inside = x >= 0 and y >= 0 and x + wide <= width and y + tall <= height
            if inside and not taken[y : y + tall, x : x + wide].any():
                draw.text(
                    (x - left, y - top),
                    text,
                    colour_rgb(label),
                    face,
                    stroke_width=2,
                    stroke_fill=BLACK,
                )
                taken[y : y + tall, x : x + wide] = True
                break


def _places(box: tuple[slice, slice], wide: int, tall: int) -> list[tuple[int, int]]:
    """Left upper corners around a lesion, the best first; nearer ones before farther ones."""
    top, bottom, left, right = box[0].start, box[0].stop, box[1].start, box[1].stop
    middle_x, middle_y = (left + right - wide) // 2, (top + bottom - tall) // 2
    places = []
    for away in (LINE_PIXELS + 2, tall, 2 * tall):
        over, under = top - away - tall, bottom + away
        before, behind = left - away - wide, right + away
        places += [(behind, under), (behind, over), (before, over), (before, under)]
        places += [(behind, middle_y), (before, middle_y), (middle_x, over), (middle_x, under)]
    return places
