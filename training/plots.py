"""The plots of the report, from numbers to lines and dots. Every axis names its unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final

from training.drawing import Dot, Drawing, Line, Role, Shape, Words

WIDTH, HEIGHT = 560.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 16.0, 14.0, 46.0
NICE: Final = (1, 2, 2.5, 5, 10)
"""Steps of an axis, times a power of ten."""
ROW_HEIGHT: Final = 24.0
NAME_WIDTH: Final = 210.0
NUMBER_WIDTH: Final = 150.0
KEY_WIDTH: Final = 112.0
LOSS_KEY_WIDTH: Final = 160.0
MONTHS_NAMED: Final = 8
GOLDEN: Final = 0.618034  # steps of it fill a stretch evenly, however many there are


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of numbers along a stretch of the sheet."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a number lies; beyond the ends at the end."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Four to seven round numbers."""
        step = _step((self.high - self.low) / 5)
        first = ceil(self.low / step - 1e-9)
        last = floor(self.high / step + 1e-9)
        return tuple(round(index * step, 10) for index in range(first, last + 1))


def _step(rough: float) -> float:
    power = 10.0 ** floor(log10(rough))
    return next(nice * power for nice in NICE if nice * power >= rough * 0.999)


def nice_range(values: Sequence[float]) -> tuple[float, float]:
    """Round ends that hold all values, with room."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = _step((high - low) / 5)
    return floor(low / step - 0.2) * step, ceil(high / step + 0.2) * step


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line; None is a gap."""

    name: str
    role: Role
    values: tuple[tuple[float, float | None], ...]


def sweep_plot(curves: Sequence[Curve], chosen: float, says: str) -> Drawing:
    """Rates of slices against the overlap that a slice needs to count as found."""
    x, y = _frame((0, 1), (0, 1))
    y = Axis(0, 1, y.start, TOP + 26)
    shapes = [*_axes(x, y, "overlap that counts as found, share of the reference", "rate")]
    shapes.append(Line(((x.at(chosen), y.start), (x.at(chosen), y.end)), "axis", 1, dashed=True))
    shapes.append(Words(x.at(chosen) + 5, y.start - 7, f"{chosen:g}", role="axis"))
    for curve in curves:
        shapes += [Line(points, curve.role, 2) for points in _pieces(curve, x, y)]
    shapes += _key(curves, x, y)
    return Drawing(WIDTH, HEIGHT, tuple(shapes), says)


def loss_plot(curves: Sequence[Curve], says: str) -> Drawing:
    """Losses against epochs; a curve of one epoch is a dot."""
    found = [value for curve in curves for _, value in curve.values if value is not None]
    epochs = [epoch for curve in curves for epoch, _ in curve.values]
    x, y = _frame((min(epochs), max(max(epochs), min(epochs) + 1)), nice_range(found))
    y = Axis(y.low, y.high, y.start, TOP + 26)
    shapes = [*_axes(x, y, "epoch", "loss")]
    for curve in curves:
        pieces = list(_pieces(curve, x, y))
        shapes += [Line(points, curve.role, 1.6) for points in pieces if len(points) > 1]
        shapes += [Dot(*points[0], curve.role, 2.6) for points in pieces if len(points) == 1]
    shapes += _key(curves, x, y, LOSS_KEY_WIDTH)
    return Drawing(WIDTH, HEIGHT, tuple(shapes), says)


def reliability_plot(
    bins: Sequence[tuple[float, float, int]], labels: tuple[str, str], diagonal: str, says: str
) -> Drawing:
    """What was said against what came true; larger dots for more voxels.

    Args:
        bins: x, y and n of each bin that holds something.
        labels: Of both axes.
        diagonal: What the diagonal is; "" for none.
        says: For who cannot see it.
    """
    top = 1.0 if diagonal else nice_range([0.0, *(share for _, share, _ in bins)])[1]
    x, y = _frame((0, 1 if diagonal else 0.5), (0, top))
    shapes = [*_axes(x, y, *labels)]
    if diagonal:
        shapes.append(Line(((x.start, y.start), (x.end, y.end)), "axis", 1, dashed=True))
        shapes.append(Words(x.at(0.72), y.at(0.79), diagonal, "end"))
    points = tuple((x.at(one), y.at(other)) for one, other, _ in bins)
    if len(points) > 1:
        shapes.append(Line(points, "one", 1.6))
    for (across, up), (_, share, n) in zip(points, bins, strict=True):
        shapes.append(Dot(across, up, "one", 2.0 + 0.8 * log10(n), f"{share:.3f} of {n} voxels"))
    return Drawing(WIDTH, HEIGHT, tuple(shapes), says)


def bland_altman_plot(
    pairs: Sequence[tuple[str, float, float]],
    bias: float | None,
    limits: tuple[float, float] | None,
    says: str,
) -> Drawing:
    """Difference against mean of the two volumes, ml.

    Args:
        pairs: Case, reference and prediction.
        bias: Mean difference.
        limits: Of agreement.
        says: For who cannot see it.
    """
    means = [(one + other) / 2 for _, one, other in pairs]
    differences = [other - one for _, one, other in pairs]
    x, y = _frame(nice_range([0.0, *means]), nice_range([0.0, *differences, *(limits or ())]))
    x = Axis(0.0, x.high, x.start, x.end)
    shapes = [*_axes(x, y, "mean of reference and prediction, ml", "prediction - reference, ml")]
    shapes.append(Line(((x.start, y.at(0)), (x.end, y.at(0))), "axis", 1))
    for value, role, name in (
        (bias, "one", "bias"),
        *(((one, "two", "limit") for one in limits) if limits else ()),
    ):
        if value is not None:
            level = y.at(value)
            shapes.append(Line(((x.start, level), (x.end, level)), role, 1.3, dashed=True))
            shapes.append(Words(x.end, level - 4, f"{name} {value:.2f}", "end", role))
    for (name, _, _), middle, apart in zip(pairs, means, differences, strict=True):
        shapes.append(Dot(x.at(middle), y.at(apart), "one", 3.2, f"{name}: {apart:+.2f} ml"))
    return Drawing(WIDTH, HEIGHT, tuple(shapes), says)


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of a plot of intervals."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    words: str
    role: Role = "one"
    mark: float | None = None
    """A threshold on the same scale."""


def month_plot(
    months: Sequence[tuple[str, Sequence[float]]],
    limits: tuple[float, float],
    middle: float | None,
    label: str,
) -> Drawing:
    """The values of each month, a dot each, over a range that they are held against.

    Args:
        months: Name and values, in order.
        limits: Of the range.
        middle: Its median.
        label: Of the upright axis.
    """
    found = [value for _, values in months for value in values]
    x, _ = _frame((0, len(months)), (0, 1))
    low, high = nice_range([*found, *limits])
    if min(*found, *limits) >= 0:
        low = max(0.0, low)  # nothing that is counted or measured here is below
    y = Axis(low, high, HEIGHT - BOTTOM, TOP)
    shapes: list[Shape] = []
    for tick in y.ticks:
        shapes.append(Line(((x.start, y.at(tick)), (x.end, y.at(tick))), "grid"))
        shapes.append(Words(x.start - 8, y.at(tick) + 3.5, f"{tick:g}", "end"))
    shapes.append(Line(((x.start, y.start), (x.end, y.start)), "axis"))
    shapes.append(Words(14, (y.start + y.end) / 2, label, "middle", size=11, turned=True))
    for value, dashed in ((limits[0], True), (limits[1], True), (middle, False)):
        if value is not None:
            ends = ((x.start, y.at(value)), (x.end, y.at(value)))
            shapes.append(Line(ends, "two", 1.3, dashed=dashed))
    every = ceil(len(months) / MONTHS_NAMED)
    for index, (name, values) in enumerate(months):
        if index % every == 0:
            shapes.append(Words(x.at(index + 0.5), y.start + 17, name, "middle"))
        for place, value in enumerate(values):
            # Side by side in a fixed order, so that equal values are all seen.
            across = index + 0.5 + 0.7 * ((place * GOLDEN) % 1 - 0.5)
            shapes.append(Dot(x.at(across), y.at(value), "one", 2.6, f"{name}: {value:.3g}"))
    return Drawing(WIDTH, HEIGHT, tuple(shapes), f"{label} by month, and the validated range")


def interval_plot(
    lines: Sequence[Interval], ends: tuple[float, float], label: str, says: str
) -> Drawing:
    """Values with their intervals under each other, on one scale."""
    height = TOP + len(lines) * ROW_HEIGHT + BOTTOM
    x = Axis(*ends, NAME_WIDTH, WIDTH - NUMBER_WIDTH)
    bottom = height - BOTTOM
    shapes: list[Shape] = []
    for tick in x.ticks:
        shapes.append(Line(((x.at(tick), TOP), (x.at(tick), bottom)), "grid"))
        shapes.append(Words(x.at(tick), bottom + 16, f"{tick:g}", "middle"))
    shapes.append(Words((x.start + x.end) / 2, bottom + 36, label, "middle"))
    for index, line in enumerate(lines):
        level = TOP + (index + 0.5) * ROW_HEIGHT
        shapes.append(Words(0, level + 4, line.name, role="ink", size=11))
        shapes.append(Words(WIDTH, level + 4, line.words, "end", role="ink"))
        if line.low is not None and line.high is not None:
            shapes.append(Line(((x.at(line.low), level), (x.at(line.high), level)), line.role, 2))
        if line.value is not None:
            shapes.append(Dot(x.at(line.value), level, line.role, 4, line.words))
        if line.mark is not None:
            at = x.at(line.mark)
            shapes.append(Line(((at, level - 8), (at, level + 8)), "ink", 2))
    return Drawing(WIDTH, height, tuple(shapes), says)


def strip_plot(values: Sequence[tuple[str, float]], label: str, says: str) -> Drawing:
    """A dot for each case along one axis from 0 to 1; equal ones stand on each other."""
    height = 120.0
    x = Axis(0, 1, 20, WIDTH - 20)
    bottom = height - BOTTOM
    shapes: list[Shape] = []
    for tick in x.ticks:
        shapes.append(Line(((x.at(tick), TOP), (x.at(tick), bottom)), "grid"))
        shapes.append(Words(x.at(tick), bottom + 16, f"{tick:g}", "middle"))
    shapes.append(Words((x.start + x.end) / 2, bottom + 36, label, "middle"))
    taken: dict[int, int] = {}
    for name, value in values:
        column = round(x.at(value) / 8)
        above = taken.get(column, 0)
        taken[column] = above + 1
        level = max(TOP, bottom - 6 - 7 * above)
        shapes.append(Dot(x.at(value), level, "one", 3.2, f"{name}: {value:.3f}"))
    return Drawing(WIDTH, height, tuple(shapes), says)


def _frame(across: tuple[float, float], up: tuple[float, float]) -> tuple[Axis, Axis]:
    return (
        Axis(*across, LEFT, WIDTH - RIGHT),
        Axis(*up, HEIGHT - BOTTOM, TOP),
    )


def _axes(x: Axis, y: Axis, across: str, up: str) -> Iterator[Shape]:
    for tick in y.ticks:
        yield Line(((x.start, y.at(tick)), (x.end, y.at(tick))), "grid")
        yield Words(x.start - 8, y.at(tick) + 3.5, f"{tick:g}", "end")
    for tick in x.ticks:
        yield Line(((x.at(tick), y.start), (x.at(tick), y.start + 4)), "axis")
        yield Words(x.at(tick), y.start + 17, f"{tick:g}", "middle")
    yield Line(((x.start, y.start), (x.end, y.start)), "axis")
    yield Words((x.start + x.end) / 2, y.start + 37, across, "middle", size=11)
    yield Words(14, (y.start + y.end) / 2, up, "middle", size=11, turned=True)


def _pieces(curve: Curve, x: Axis, y: Axis) -> Iterator[tuple[tuple[float, float], ...]]:
    piece: list[tuple[float, float]] = []
    for across, up in (*curve.values, (0.0, None)):
        if up is not None:
            piece.append((x.at(across), y.at(up)))
        elif piece:
            yield tuple(piece)
            piece = []


def _key(curves: Sequence[Curve], x: Axis, y: Axis, width: float = KEY_WIDTH) -> Iterator[Shape]:
    """The names of the lines beside each other, above them."""
    for index, curve in enumerate(curves):
        start = x.start + index * width
        yield Line(((start, y.end - 16), (start + 18, y.end - 16)), curve.role, 2)
        yield Words(start + 24, y.end - 12, curve.name, role="ink", size=11)
