"""A picture for a person: the slices that hold lesions, each lesion outlined and numbered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage
from skimage.color import lab2rgb

from dicom.seg import Labels
from dicom.volume import Volume
from pipeline.appearance import COLOURS_CIELAB, RESEARCH_BANNER
from pipeline.morphology import Mask
from pipeline.orientation import axial_view

MOST_SLICES = 12
TILES_ACROSS = 4
TILE_INCHES = 3.0
DOTS_PER_INCH = 110
WINDOW = 1.9
"""White is this multiple of the median of the head: lesions reach 1.9, fat burns out."""
MARGIN_MM = 8.0  # around the head

_INK, _PAPER, _TRUTH = "#e8e8e8", "#000000", "#ffffff"


@dataclass(frozen=True, slots=True)
class Caption:
    """What is written around the slices."""

    title: str
    notes: tuple[str, ...] = ()
    research: bool = True
    """Burns in that the model is not for clinical use."""


def draw_overlay(
    path: Path, volume: Volume, labels: Labels, caption: Caption, truth: Mask | None = None
) -> None:
    """Write a PNG of the axial slices with the largest lesion areas, in anatomical order.

    Radiological convention: the patient's right is at the left, anterior is up. Colours are those
    of the Segmentation. Without any lesion the middle slices are shown.

    Args:
        path: The PNG file.
        volume: The images.
        labels: 0 background, 1.. lesions, on the grid of the volume.
        caption: What is written around.
        truth: Known lesions, drawn as dotted white lines.
    """
    view = axial_view(volume.grid)
    images, marked = view.apply(volume.voxels), view.apply(labels)
    known = None if truth is None else view.apply(truth)
    _, row_mm, column_mm = view.grid.spacing_mm
    level = _level(images)
    rows, columns = _head_box(images > 0.25 * level, row_mm, column_mm)
    shown = _slices(marked, known)
    across = min(TILES_ACROSS, len(shown))
    down = -(-len(shown) // across)
    tall = (rows.stop - rows.start) * row_mm / ((columns.stop - columns.start) * column_mm)
    width, height = across * TILE_INCHES, down * TILE_INCHES * tall + 1.1
    figure = Figure((width, height), facecolor=_PAPER)
    FigureCanvasAgg(figure)
    top = 1 - 0.75 / height
    grid = figure.add_gridspec(
        down, across, left=0, right=1, bottom=0.35 / height, top=top, wspace=0.01, hspace=0.01
    )
    for number, index in enumerate(shown):
        axes = figure.add_subplot(grid[number // across, number % across])
        axes.imshow(
            images[index, rows, columns],
            cmap="gray",
            vmin=0,
            vmax=WINDOW * level,
            aspect=row_mm / column_mm,
            interpolation="bilinear",
        )
        _outline(axes, marked[index, rows, columns])
        if known is not None:
            _contour(axes, known[index, rows, columns], _TRUTH, ":")
        source_slice = view.grid.shape[0] - index if view.flipped[0] else index + 1
        # Of another acquisition no viewer numbers the axial slices: these are counted here.
        _annotate(axes, f"{'slice' if view.acquired == 'axial' else 'axial'} {source_slice}")
    _write_around(figure, caption, height)
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor=_PAPER)


def _level(images: npt.NDArray[np.float32]) -> float:
    """Median of what is head and not air or bone: near that of the brain."""
    bright = images[images > 0.3 * np.percentile(images, 99)]
    return float(np.median(bright)) if bright.size else 1.0


def _head_box(head: Mask, row_mm: float, column_mm: float) -> tuple[slice, slice]:
    """Rows and columns of the head with a margin: as large as it can be shown."""
    flat: Mask = np.asarray(head.any(axis=0), bool)
    flat = ndimage.binary_opening(flat, iterations=2)
    if not flat.any():
        flat = np.ones(flat.shape, bool)
    box = []
    for axis, step in ((1, row_mm), (0, column_mm)):
        inside = np.flatnonzero(flat.any(axis=axis))
        margin = round(MARGIN_MM / step)
        box.append(
            slice(
                max(0, int(inside[0]) - margin),
                min(flat.shape[1 - axis], int(inside[-1]) + margin + 1),
            )
        )
    return box[0], box[1]


def _slices(labels: Labels, truth: Mask | None) -> list[int]:
    area = (labels > 0).sum(axis=(1, 2))
    if truth is not None:
        area = area + truth.sum(axis=(1, 2))
    if not area.any():
        middle = len(area) // 2
        start = max(0, middle - MOST_SLICES // 2)
        return list(range(start, min(len(area), start + MOST_SLICES)))
    largest = np.argsort(-area, kind="stable")[:MOST_SLICES]
    return sorted(int(index) for index in largest if area[index])


def _outline(axes: Axes, labels: Labels) -> None:
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        colour = _rgb(int(label))
        _contour(axes, mask, colour, "-")
        row, column = np.argwhere(mask).max(axis=0)
        name = axes.text(column + 1, row + 1, str(label), color=colour, fontsize=8, va="top")
        name.set_path_effects([withStroke(linewidth=1.5, foreground=_PAPER)])


def _contour(axes: Axes, mask: Mask, colour: str | tuple[float, ...], style: str) -> None:
    if mask.any():
        # A line half a pixel outside, through the edge of the pixels that belong to the lesion.
        axes.contour(mask, [0.5], colors=[colour], linewidths=0.9, linestyles=style)


def _rgb(label: int) -> tuple[float, ...]:
    lab = COLOURS_CIELAB[(label - 1) % len(COLOURS_CIELAB)]
    return tuple(float(part) for part in lab2rgb(np.array(lab)))


def _annotate(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    corner = axes.transAxes
    axes.text(0.02, 0.98, text, va="top", color=_INK, fontsize=7, transform=corner)
    axes.text(0.02, 0.5, "R", va="center", color=_INK, fontsize=8, transform=corner)
    axes.text(0.98, 0.5, "L", va="center", ha="right", color=_INK, fontsize=8, transform=corner)


def _write_around(figure: Figure, caption: Caption, height: float) -> None:
    figure.text(0.01, 1 - 0.1 / height, caption.title, color=_INK, fontsize=11, va="top")
    figure.text(
        0.01, 1 - 0.38 / height, "   ".join(caption.notes), color=_INK, fontsize=8, va="top"
    )
    if caption.research:
        figure.text(
            0.5,
            0.1 / height,
            RESEARCH_BANNER,
            color="#ffb000",
            fontsize=11,
            weight="bold",
            ha="center",
        )
