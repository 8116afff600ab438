"""A contact sheet of one case: its slices with the outline of the mask, for a person to look at.

It is the one check that finds a mask which is mirrored, of the wrong visit or of the wrong person.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from dicom.volume import Volume
from pipeline.morphology import Mask
from pipeline.orientation import axial_view
from training.masks import head_level

MOST_TILES = 30  # a 2-D series whole; of a 3-D one every few slices
TILES_ACROSS = 6
TILE_PIXELS = 220
HEADING_PIXELS = 34
WINDOW = 1.9  # white, in medians of the head: as in pipeline.overlay
FIRST, SECOND, INK = (255, 60, 60), (60, 200, 255), (235, 235, 235)

Picture = npt.NDArray[np.uint8]


def draw_contact_sheet(
    path: Path, image: Volume, mask: Mask, heading: str, second: Mask | None = None
) -> None:
    """Write a PNG: axial slices from foot to head, the patient's right at the left.

    Args:
        path: The file.
        image: The FLAIR.
        mask: Outlined in red.
        heading: Above the slices; ASCII, names nobody.
        second: Of a second reader: outlined in blue.
    """
    view = axial_view(image.grid)
    voxels, first = view.apply(image.voxels), view.apply(mask)
    other = None if second is None else view.apply(second)
    shown = _shown(first if other is None else first | other, voxels)
    _, row_mm, column_mm = view.grid.spacing_mm
    _, rows, columns = view.grid.shape
    scale = TILE_PIXELS / max(rows * row_mm, columns * column_mm)
    size = max(1, round(columns * column_mm * scale)), max(1, round(rows * row_mm * scale))
    across = min(TILES_ACROSS, len(shown))
    down = -(-len(shown) // across)
    sheet = Image.new("RGB", (max(across * size[0], 480), HEADING_PIXELS + down * size[1]))
    pen = ImageDraw.Draw(sheet)
    pen.text((6, 4), heading, fill=INK)
    pen.text((6, 18), "red: mask" + ("" if other is None else ", blue: second reader"), fill=INK)
    white = WINDOW * head_level(image) or 1.0
    for number, index in enumerate(shown):
        tile = _tile(voxels[index] / white, size)
        _outline(tile, first[index], size, FIRST)
        if other is not None:
            _outline(tile, other[index], size, SECOND)
        at = (number % across * size[0], HEADING_PIXELS + number // across * size[1])
        sheet.paste(Image.fromarray(tile), at)
        pen.text((at[0] + 3, at[1] + 2), f"{index + 1}", fill=INK)
        pen.text((at[0] + 3, at[1] + size[1] // 2), "R", fill=INK)
    sheet.save(path, format="PNG")


def _shown(mask: Mask, voxels: npt.NDArray[np.float32]) -> list[int]:
    """All slices; of many, evenly spaced ones of those with lesions, then of the others."""
    slices = len(mask)
    if slices <= MOST_TILES:
        return list(range(slices))
    marked = np.flatnonzero(mask.any(axis=(1, 2)))
    if len(marked) >= MOST_TILES:
        return sorted(set(marked[np.linspace(0, len(marked) - 1, MOST_TILES).astype(int)].tolist()))
    others = np.setdiff1d(np.flatnonzero(voxels.any(axis=(1, 2))), marked)
    places = min(MOST_TILES - len(marked), len(others))
    chosen = others[np.linspace(0, len(others) - 1, places).astype(int)] if places else others[:0]
    return sorted({*marked.tolist(), *chosen.tolist()})


def _tile(values: npt.NDArray[np.float32], size: tuple[int, int]) -> Picture:
    grey = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    resized = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(resized)[..., None], 3, axis=2)


def _outline(
    tile: Picture, mask: Mask, size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Just outside of the mask, so that what it marks stays to be seen."""
    large = np.asarray(
        Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST), bool
    )
    tile[ndimage.binary_dilation(large) & ~large] = colour
