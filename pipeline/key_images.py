"""Key images: the few pictures that show a result in any viewer.

An overview of the slices with the largest lesion areas, then the largest lesion, the one the model
is least sure of, and the largest of every region; a slice is shown once, whatever it is shown for.
Where nothing was found, one picture says so. All that a picture must not be taken for is burned in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from dicom.secondary_capture import Capture
from dicom.volume import Grid
from pipeline.appearance import colour_rgb
from pipeline.findings import NOT_ASSESSED, Findings, Lesion
from pipeline.flow import Analysis
from pipeline.report_pdf import KeyPicture
from pipeline.slice_picture import BLACK, WHITE, Colour, Rgb, View, draw_slice, font, view_of

WIDTH: Final = 1024
HEIGHT: Final = 1024
BANNER_HEIGHT: Final = 44
NOT_FOR_MEASUREMENT: Final = "AI result, not for measurement"
NOTHING_FOUND: Final = "No lesions found by the software"
UNVERIFIED: Final = "Not verified by a physician; no diagnosis."
MOST_TILES: Final = 12
IN_DOCUMENT: Final = 3
DOCUMENT_ROOM: Final = (480, 560)  # three side by side on A4: 210 dots per inch
FEWEST_TILES: Final = 2  # one slice needs no overview

AMBER: Final = (255, 176, 0)
GREY: Final = (160, 160, 160)

_EDGE = 24
_TOP, _BOTTOM = 140, 944  # of the room for slices
_LEGEND = 308  # width
_LEGEND_ROWS = 22
_TILE_GAP = 6


@dataclass(frozen=True, slots=True)
class Writing:
    """What is written around the slices: no name, no identifier, no free text of the scanner."""

    banner: str
    """Burned in at the top; "" for a model that is no research model."""
    found: str
    """The result in one sentence."""
    series: str
    """Which series, as a viewer lists it."""
    model: str
    quality: str
    image_names: tuple[str, ...]
    """What a viewer calls the image of every slice, in slice order."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A slice that is worth a picture, and why."""

    slice_index: int
    title: str
    focus: tuple[int, ...]
    """The lesions it is shown for."""


def choose(findings: Findings) -> tuple[Choice, ...]:
    """The slices to show, each once, in the order of what they are shown for; () for no lesion."""
    roles: dict[int, list[str]] = {}
    lesions = {lesion.label: lesion for lesion in findings.lesions}
    for lesion, role in _roles(findings.lesions):
        roles.setdefault(lesion.label, []).append(role)
    slices: dict[int, list[int]] = {}
    for label in roles:
        slices.setdefault(lesions[label].largest_slice, []).append(label)
    return tuple(
        Choice(
            slice_index=index,
            title="; ".join(f"Lesion {label}: {', '.join(roles[label])}" for label in labels),
            focus=tuple(labels),
        )
        for index, labels in slices.items()
    )


def region_in_words(region: str) -> str:
    """The region of a lesion, for people."""
    return region.replace("-", " ").replace("_", " ")


def draw_key_images(analysis: Analysis, writing: Writing) -> tuple[Capture, ...]:
    """The key images of an analysis; never none."""
    view = view_of(analysis.volume, analysis.brain.mask, analysis.lesions.labels)
    findings = analysis.findings
    if not findings.lesions:
        return (_nothing_found(analysis, view, writing),)
    areas = (analysis.lesions.labels > 0).sum(axis=(1, 2))
    captures = []
    if np.count_nonzero(areas) >= FEWEST_TILES:
        captures.append(_overview(analysis, view, writing))
    captures += [_one_slice(analysis, view, writing, choice) for choice in choose(findings)]
    return tuple(captures)


def draw_key_slices(analysis: Analysis, image_names: Sequence[str]) -> tuple[KeyPicture, ...]:
    """Three slices for a document, each with a line that says what it shows.

    Those of the key images, then of further lesions by size; without any lesion some from the
    middle of the brain.
    """
    view = view_of(analysis.volume, analysis.brain.mask, analysis.lesions.labels)
    choices = {choice.slice_index: choice for choice in choose(analysis.findings)}
    for lesion in analysis.findings.lesions:
        further = Choice(lesion.largest_slice, f"Lesion {lesion.label}", (lesion.label,))
        choices.setdefault(further.slice_index, further)
    if not choices:
        present = np.flatnonzero(analysis.brain.mask.any(axis=(1, 2)))
        middle = dict.fromkeys(int(present[len(present) * part // 8]) for part in (3, 4, 6))
        choices = {index: Choice(index, "", ()) for index in middle}
    pictures = []
    for choice in list(choices.values())[:IN_DOCUMENT]:
        pixels = draw_slice(
            analysis.volume,
            analysis.lesions.labels,
            choice.slice_index,
            view,
            DOCUMENT_ROOM,
            letters=18,
            focus=choice.focus,
        )
        title = f"{choice.title}. " if choice.title else ""
        pictures.append(KeyPicture(pixels, f"{title}Image {image_names[choice.slice_index]}."))
    return tuple(pictures)


def banner_strip(banner: str) -> Rgb:
    """The rows at the top of every picture of a research model."""
    strip = Image.new("RGB", (WIDTH, BANNER_HEIGHT), AMBER)
    middle = (WIDTH // 2, BANNER_HEIGHT // 2)
    ImageDraw.Draw(strip).text(middle, banner, BLACK, font(26, bold=True), anchor="mm")
    return np.array(strip)


def _roles(lesions: Sequence[Lesion]) -> list[tuple[Lesion, str]]:
    # Numbers go by descending volume.
    roles = [(lesion, "the largest") for lesion in lesions[:1]]
    if len(lesions) > 1:
        least = min(lesions, key=lambda lesion: lesion.mean_probability)
        roles.append((least, "the lowest mean probability"))
    regions: dict[str, Lesion] = {}
    for lesion in lesions:
        if lesion.region != NOT_ASSESSED:
            regions.setdefault(lesion.region, lesion)
    roles += [
        (lesion, f"the largest {region_in_words(region)}") for region, lesion in regions.items()
    ]
    return roles


# --- the three kinds of pictures -----------------------------------------------------------------


def _one_slice(analysis: Analysis, view: View, writing: Writing, choice: Choice) -> Capture:
    page = _Page(writing, choice.title, _where(writing, [choice.slice_index]))
    labels, index = analysis.lesions.labels, choice.slice_index
    room = (WIDTH - 3 * _EDGE - _LEGEND, _BOTTOM - _TOP)
    picture = draw_slice(analysis.volume, labels, index, view, room, focus=choice.focus)
    page.paste(picture, (_EDGE, _TOP), room)
    here = [one for one in analysis.findings.lesions if np.any(labels[index] == one.label)]
    _legend(page.draw, here, choice.focus)
    return _capture(page, analysis.volume.grid, view, (index,), choice.title)


def _overview(analysis: Analysis, view: View, writing: Writing) -> Capture:
    areas = (analysis.lesions.labels > 0).sum(axis=(1, 2))
    largest = np.argsort(-areas, kind="stable")[:MOST_TILES]
    shown = tuple(sorted(int(index) for index in largest if areas[index]))
    count = int(np.count_nonzero(areas))
    title = f"Overview: {len(shown)} of {count} slices with lesions"
    if len(shown) < count:
        title += ", those with the largest areas"
    page = _Page(writing, title, f"{writing.series}. {writing.found}")
    _tiles(page, analysis, view, shown)
    return _capture(page, analysis.volume.grid, view, shown, writing.found)


def _nothing_found(analysis: Analysis, view: View, writing: Writing) -> Capture:
    """Slices from all over the brain: the sentence speaks of all of it."""
    present = np.flatnonzero(analysis.brain.mask.any(axis=(1, 2)))
    places = np.linspace(0, len(present) - 1, min(MOST_TILES, len(present)))
    shown = tuple(int(present[round(place)]) for place in places)
    page = _Page(writing, NOTHING_FOUND, f"{writing.series}. {writing.found}")
    _tiles(page, analysis, view, shown)
    return _capture(page, analysis.volume.grid, view, shown, writing.found)


def _capture(page: _Page, grid: Grid, view: View, slices: tuple[int, ...], comment: str) -> Capture:
    return Capture(
        pixels=page.pixels(),
        slices=slices,
        patient_orientation=(view.right, view.down),
        comment=comment,
        derivation=(
            f"{len(slices)} of {grid.shape[0]} slices, as acquired, enlarged and windowed; lesions"
            " outlined by software, the line lies just outside. Not for measurement."
        ),
    )


def _where(writing: Writing, indices: Sequence[int]) -> str:
    names = ", ".join(writing.image_names[index] for index in indices)
    places = ", ".join(str(index + 1) for index in indices)
    return f"{writing.series}, image {names} (slice {places} of {len(writing.image_names)})"


# --- the page ------------------------------------------------------------------------------------


class _Page:
    """A black picture with everything around the slices written on it."""

    def __init__(self, writing: Writing, title: str, subtitle: str) -> None:
        self._image = Image.new("RGB", (WIDTH, HEIGHT), BLACK)
        self.draw = ImageDraw.Draw(self._image)
        self.image_names = writing.image_names
        if writing.banner:
            self._image.paste(Image.fromarray(banner_strip(writing.banner)), (0, 0))
        room = WIDTH - 2 * _EDGE
        self._write((_EDGE, 60), title, WHITE, room, sizes=(26, 22, 18, 15), bold=True)
        self._write((_EDGE, 98), subtitle, GREY, room, sizes=(19, 17, 15, 13))
        self._write((_EDGE, 958), NOT_FOR_MEASUREMENT, AMBER, room, sizes=(20,), bold=True)
        said = f"{UNVERIFIED}   {writing.quality}"
        self._write((_EDGE + 390, 961), said, GREY, room - 390, sizes=(16, 14, 12))
        self._write((_EDGE, 991), writing.model, GREY, room, sizes=(16, 14, 12))

    def paste(self, picture: Rgb, corner: tuple[int, int], room: tuple[int, int]) -> None:
        """Into the middle of a room."""
        height, width, _ = picture.shape
        place = (corner[0] + (room[0] - width) // 2, corner[1] + (room[1] - height) // 2)
        self._image.paste(Image.fromarray(picture), place)

    def pixels(self) -> Rgb:
        """What is on it."""
        return np.array(self._image)

    def _write(
        self,
        place: tuple[int, int],
        text: str,
        colour: Colour,
        room: int,
        *,
        sizes: Sequence[int],
        bold: bool = False,
    ) -> None:
        """In the largest size that fits; what fits in none is cut, and ends with dots."""
        for size in sizes:
            if self.draw.textlength(text, font(size, bold=bold)) <= room:
                break
        face = font(size, bold=bold)
        whole = text
        while self.draw.textlength(text, face) > room:
            whole = whole[:-1]
            text = whole.rstrip() + "..."
        self.draw.text(place, text, colour, face)


def _tiles(page: _Page, analysis: Analysis, view: View, shown: Sequence[int]) -> None:
    across, room = _division(view, len(shown))
    letters = max(12, min(18, room[0] // 18))
    for number, index in enumerate(shown):
        corner = (
            _EDGE + number % across * (room[0] + _TILE_GAP),
            _TOP + number // across * (room[1] + _TILE_GAP),
        )
        picture = draw_slice(
            analysis.volume, analysis.lesions.labels, index, view, room, letters=letters, line=1
        )
        page.paste(picture, corner, room)
        page.draw.text(
            (corner[0] + 6, corner[1] + 4),
            f"image {page.image_names[index]}",
            WHITE,
            font(letters),
            stroke_width=2,
            stroke_fill=BLACK,
        )


def _division(view: View, count: int) -> tuple[int, tuple[int, int]]:
    """How many tiles stand side by side, and the room of each: the largest pictures win."""
    best: tuple[int, int, tuple[int, int]] | None = None
    for across in range(1, count + 1):
        down = -(-count // across)
        room = (
            (WIDTH - 2 * _EDGE - (across - 1) * _TILE_GAP) // across,
            (_BOTTOM - _TOP - (down - 1) * _TILE_GAP) // down,
        )
        width, height = view.size(*room)
        if best is None or width * height > best[0]:
            best = (width * height, across, room)
    assert best is not None  # noqa: S101  # at least one slice is shown
    return best[1], best[2]


def _legend(draw: ImageDraw.ImageDraw, lesions: Sequence[Lesion], focus: Sequence[int]) -> None:
    left = WIDTH - _EDGE - _LEGEND
    columns = (left + 70, left + 148, left + 226, left + _LEGEND - 6)
    top = _TOP + 8
    heads = ("lesion", "ml", "mm long", "prob.")
    for column, head in zip(columns, heads, strict=True):
        draw.text((column, top), head, GREY, font(15), anchor="ra")
    with_regions = any(one.region != NOT_ASSESSED for one in lesions)
    step = 46 if with_regions else 31
    fitting = min(_LEGEND_ROWS, (_BOTTOM - top - 90) // step)
    # The lesions the picture is for are in the legend, whatever else has room there.
    chosen = sorted(lesions, key=lambda one: (one.label not in focus, one.label))[:fitting]
    for row, lesion in enumerate(sorted(chosen, key=lambda one: one.label)):
        y = top + 28 + row * step
        bold = lesion.label in focus
        ink = WHITE if bold else (200, 200, 200)
        draw.rectangle((left, y + 2, left + 15, y + 17), fill=colour_rgb(lesion.label))
        cells = (
            str(lesion.label),
            f"{lesion.volume_ml:.3f}",
            f"{lesion.long_axis_mm:.1f}",
            f"{lesion.mean_probability:.2f}",
        )
        for column, cell in zip(columns, cells, strict=True):
            draw.text((column, y), cell, ink, font(17, bold=bold), anchor="ra")
        if lesion.region != NOT_ASSESSED:
            draw.text((left + 26, y + 21), region_in_words(lesion.region), GREY, font(14))
    y = top + 34 + len(chosen) * step
    said = ["Values are of the whole lesion,", "on all of its slices."]
    if with_regions:
        said.append("Regions are approximate.")
    if more := len(lesions) - len(chosen):
        said.insert(0, f"And {more} more on this slice.")
    draw.multiline_text((left, y), "\n".join(said), GREY, font(14))
