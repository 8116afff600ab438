"""What a report says, before it is a page or a PDF: sections of words, tables, plots, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.drawing import Drawing

Tone = Literal["plain", "good", "caution", "bad"]
NOT_DEFINED = "not defined"


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph; one that is not plain stands in a box of its colour."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Cell:
    """What is printed, and what a column is sorted by."""

    text: str
    order: float | None = None
    tone: Tone = "plain"
    under: str = ""
    """In small letters, below."""


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column."""

    title: str
    number: bool = True
    """Aligned at the right."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell | Path | str, ...], ...]
    """A path is a small picture."""
    note: str = ""
    sortable: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing and what it shows."""

    drawing: Drawing
    caption: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file and what it shows."""

    path: Path
    caption: str
    title: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images beside each other."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one word of the acceptance test, large."""

    word: str
    text: str
    tone: Tone


Block = Words | Table | Plot | Pictures | Verdict


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]
    printed: bool = True
    """Also in the PDF, which is short."""


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report."""

    title: str
    made_of: str
    """One line under the title."""
    sections: tuple[Section, ...]
    made_by: str


def number(value: float | None, digits: int = 3) -> str:
    """A number, or "not defined"."""
    if value is None:
        return NOT_DEFINED
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and not float(text) else text


def between(interval: tuple[float, float] | None, digits: int = 3) -> str:
    """An interval, or "not defined"."""
    if interval is None:
        return NOT_DEFINED
    return f"{number(interval[0], digits)} to {number(interval[1], digits)}"


def sorted_by(value: float | None, digits: int = 3) -> Cell:
    """A number in a table that can be sorted."""
    return Cell(number(value, digits), value)
