"""Figures as words and cells: how every section of the report prints them."""

from __future__ import annotations

from collections.abc import Sequence

from training import acceptance
from training.cohort_figures import (
    MEASURES,
    Figure,
)
from training.content import (
    Cell,
    Column,
    Table,
    between,
    number,
)
from training.plots import (
    Interval,
)
from training.statistics import Estimate, proportion


def plural(count: int, one: str, many: str = "") -> str:
    """`1 case`, `2 cases`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def with_unit(one: Figure) -> str:
    """A value and its unit."""
    if one.value is None:
        return number(None)
    return f"{number(one.value)} {acceptance.LABELS[one.name][1]}".rstrip()


def label_and_unit(name: str) -> str:
    """A measure and its unit."""
    one = MEASURES[name]
    return f"{one.label}, {one.unit}" if one.unit else one.label


def estimate_words(one: Estimate) -> str:
    """A value, and its interval where it has one."""
    interval = None if one.low is None or one.high is None else (one.low, one.high)
    return f"{number(one.value)} ({between(interval)})" if interval else number(one.value)


def estimate_cells(one: Estimate) -> tuple[Cell, Cell, Cell]:
    """Value, interval and n."""
    interval = None if one.low is None or one.high is None else (one.low, one.high)
    return Cell(number(one.value)), Cell(between(interval)), Cell(str(one.n))


def share_cells(part: int, whole: int) -> tuple[Cell, Cell]:
    """A share and Wilson's interval."""
    one = proportion(part, whole)
    return estimate_cells(one)[:2]


def value_and_interval(one: Figure) -> Cell:
    """A value with its n, and its interval below."""
    under = between(one.by_patient) if one.by_patient else ""
    return Cell(f"{number(one.value)} [{one.n}]", one.value, under=under)


def interval_line(one: Figure) -> Interval:
    """A figure as a line of a plot."""
    low, high = one.worst or (None, None)
    words = f"{number(one.value)} ({between(one.worst)})" if one.worst else number(one.value)
    return Interval(MEASURES[one.name].label, one.value, low, high, words)


def figure_table(found: Sequence[Figure]) -> Table:
    """Figures with their n and both intervals."""
    return Table(
        (
            Column("measure", number=False),
            Column("value"),
            Column("95 %, patients drawn"),
            Column("95 %, Wilson or Student"),
            Column("n"),
            Column("of", number=False),
            Column("patients"),
        ),
        tuple(
            (
                Cell(MEASURES[one.name].label),
                Cell(with_unit(one)),
                Cell(between(one.by_patient)),
                Cell(between(one.classical)),
                Cell(str(one.n)),
                Cell(MEASURES[one.name].counts),
                Cell(str(one.patients)),
            )
            for one in found
        ),
        "n is how many the value rests on: cases where it is defined, or all slices, or all "
        "lesions, of all cases. Wilson's intervals take slices and lesions of one patient for "
        "independent, which they are not.",
    )
