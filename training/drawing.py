"""Vector drawings that a web page and a PDF show alike.

A drawing is a few lines, dots and words, each with a role. What colour a role has is decided where
it is shown: on paper, on a light screen or on a dark one.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, Final, Literal

from reportlab.graphics import shapes
from reportlab.lib.colors import Color, HexColor

Role = Literal["axis", "grid", "one", "two", "three", "four", "faint", "good", "bad", "ink"]
Anchor = Literal["start", "middle", "end"]

PAPER: Final = {
    "axis": 0x5B6875,
    "grid": 0xE3E8EC,
    "one": 0x1F5F99,
    "two": 0xB5650A,
    "three": 0x3C7A3C,
    "four": 0x7A4E8C,
    "faint": 0x9AA5B0,
    "good": 0x2E7D4F,
    "bad": 0xB3261E,
    "ink": 0x1B2733,
}
"""Colours in print."""
TEXT_SIZE: Final = 11.0
SMALL_SIZE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined."""

    points: tuple[tuple[float, float], ...]
    role: Role
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle, and what a pointer over it is told."""

    x: float
    y: float
    role: Role
    radius: float = 3.2
    title: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """Text whose baseline is at y; turned, it reads upwards."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    role: Role = "axis"
    size: float = SMALL_SIZE
    turned: bool = False


Shape = Line | Dot | Words


@dataclass(frozen=True, slots=True)
class Drawing:
    """Shapes on a sheet; (0, 0) is its left upper corner."""

    width: float
    height: float
    shapes: tuple[Shape, ...]
    says: str
    """For who cannot see it."""


def to_svg(drawing: Drawing) -> str:
    """An inline SVG; the page holds the colours of the roles."""
    inside = "".join(_svg(shape) for shape in drawing.shapes)
    return (
        f'<svg viewBox="0 0 {_n(drawing.width)} {_n(drawing.height)}" role="img" '
        f'aria-label="{escape(drawing.says)}">{inside}</svg>'
    )


def _svg(shape: Shape) -> str:
    if isinstance(shape, Line):
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
        dashes = ' stroke-dasharray="5 4"' if shape.dashed else ""
        return (
            f'<polyline class="l {shape.role}" stroke-width="{_n(shape.width)}"{dashes} '
            f'points="{points}"/>'
        )
    if isinstance(shape, Dot):
        title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
        return (
            f'<circle class="d {shape.role}" cx="{_n(shape.x)}" cy="{_n(shape.y)}" '
            f'r="{_n(shape.radius)}">{title}</circle>'
        )
    turn = f' transform="rotate(-90 {_n(shape.x)} {_n(shape.y)})"' if shape.turned else ""
    return (
        f'<text class="t {shape.role}" x="{_n(shape.x)}" y="{_n(shape.y)}" '
        f'font-size="{_n(shape.size)}" text-anchor="{shape.anchor}"{turn}>'
        f"{escape(shape.text)}</text>"
    )


def to_reportlab(drawing: Drawing, width: float, font: str) -> Any:  # noqa: ANN401  # no types
    """The same as a flowable of this width."""
    scale = width / drawing.width
    sheet = shapes.Drawing(width, drawing.height * scale)
    group = shapes.Group()
    group.transform = (scale, 0, 0, scale, 0, 0)
    for shape in drawing.shapes:
        group.add(_printed(shape, drawing.height, font))
    sheet.add(group)
    return sheet


def _printed(shape: Shape, height: float, font: str) -> Any:  # noqa: ANN401
    colour = paper(shape.role)
    if isinstance(shape, Line):
        flat = [value for x, y in shape.points for value in (x, height - y)]
        return shapes.PolyLine(
            flat,
            strokeColor=colour,
            strokeWidth=shape.width,
            strokeDashArray=[5, 4] if shape.dashed else None,
        )
    if isinstance(shape, Dot):
        return shapes.Circle(
            shape.x, height - shape.y, shape.radius, fillColor=colour, strokeColor=None
        )
    text = shapes.String(
        0,
        0,
        shape.text,
        fontName=font,
        fontSize=shape.size,
        fillColor=colour,
        textAnchor=shape.anchor,
    )
    across, up = (0, 1) if shape.turned else (1, 0)
    return shapes.Group(text, transform=(across, up, -up, across, shape.x, height - shape.y))


def paper(role: Role) -> Color:
    """The colour of a role in print."""
    return HexColor(PAPER[role])


def _n(value: float) -> str:
    """Short, and the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
