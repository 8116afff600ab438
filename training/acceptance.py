"""The acceptance test of a site: thresholds declared beforehand, judged on the worse bound.

A threshold is met only if the whole interval meets it: for `at_least` the lower bound, for
`at_most` the upper one, for `between` both. So a small cohort does not pass by luck. The file that
declares them is named by its SHA-256 in the report, and `declared_on` must not lie after the
day of the first measurement. Judged are real cases that are not known to be in the pack's training.

    training/acceptance.example.toml shows every key.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from math import inf
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from dicom.errors import Outcome, SeriesError, UnreadableError
from training.cohort_figures import (
    MEASURES,
    Cohorts,
    Draws,
    Figure,
    Row,
    agreement_of_volumes,
    figure,
)
from training.statistics import proportion

Judgement = Literal["passed", "failed", "cannot be judged"]

OF_VOLUMES: Final = {
    "volume_icc": ("ICC(2,1) of volume", ""),
    "volume_lower_limit_ml": ("lower limit of agreement of volume", "ml"),
    "volume_upper_limit_ml": ("upper limit of agreement of volume", "ml"),
}
NOT_ANALYSED: Final = "not_analysed_share"
LABELS: Final = {
    **{one.name: (one.label, one.unit) for one in MEASURES.values()},
    **OF_VOLUMES,
    NOT_ANALYSED: ("share of cases not analysed", ""),
}
"""Every measure that a threshold can name: its label and unit."""


class AcceptanceFileError(SeriesError):
    """The file does not declare thresholds that can be judged."""

    reason = "acceptance-file"


class Threshold(BaseModel):
    """What one measure has to reach."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measure: str
    at_least: float | None = None
    at_most: float | None = None
    between: tuple[float, float] | None = None
    why: str = ""

    @model_validator(mode="after")
    def _one_demand(self) -> Self:
        if self.measure not in LABELS:
            raise ValueError(f"{self.measure!r} is no measure; there are {', '.join(LABELS)}")
        given = [self.at_least, self.at_most, self.between]
        if sum(one is not None for one in given) != 1:
            raise ValueError(f"{self.measure} needs one of at_least, at_most and between")
        if self.between is not None and self.between[0] >= self.between[1]:
            raise ValueError(f"{self.measure}: between needs a lower and a higher number")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The range that the interval has to lie in; infinite where nothing is asked."""
        if self.between is not None:
            return self.between
        lowest = -inf if self.at_least is None else self.at_least
        return lowest, inf if self.at_most is None else self.at_most

    @property
    def demand(self) -> str:
        """In words."""
        unit = f" {LABELS[self.measure][1]}".rstrip()
        low, high = self.ends
        if low == -inf:
            return f"at most {high:g}{unit}"
        return f"at least {low:g}{unit}" if high == inf else f"{low:g} to {high:g}{unit}"

    def met_by(self, low: float, high: float) -> bool:
        """Whether the whole interval meets it."""
        return self.ends[0] <= low and high <= self.ends[1]

    def bound(self, low: float, high: float) -> float:
        """The bound that decides: the worse one."""
        lowest, highest = self.ends
        return low if lowest - low >= high - highest else high


class Declaration(BaseModel):
    """What a site declared before it measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = "Acceptance test"
    declared_on: date
    declared_by: str = ""
    fewest_patients: int = Field(default=20, ge=2)
    threshold: tuple[Threshold, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Judged:
    """One threshold and what became of it."""

    threshold: Threshold
    figure: Figure | None
    judgement: Judgement
    reason: str
    """In a sentence."""

    @property
    def label(self) -> str:
        """Of the measure."""
        return LABELS[self.threshold.measure][0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole test."""

    declaration: Declaration
    sha256: str
    """Of the file."""
    judged: tuple[Judged, ...]
    cases: int
    """Held-out real cases, analysed or not."""

    @property
    def judgement(self) -> Judgement:
        """One threshold that failed fails all; one that cannot be judged leaves all open."""
        every = {one.judgement for one in self.judged}
        if "failed" in every:
            return "failed"
        return "cannot be judged" if "cannot be judged" in every else "passed"

    def as_json(self) -> dict[str, JsonValue]:
        """The `acceptance` of `report.json`."""
        return {
            "judgement": self.judgement,
            "sha256": self.sha256,
            "declaration": self.declaration.model_dump(mode="json"),
            "cases": self.cases,
            "thresholds": [
                {
                    "measure": one.threshold.measure,
                    "demand": one.threshold.demand,
                    "judgement": one.judgement,
                    "reason": one.reason,
                    "figure": None if one.figure is None else one.figure.as_json(),
                }
                for one in self.judged
            ],
        }


def read_declaration(path: Path) -> tuple[Declaration, str]:
    """The thresholds of a file, and its SHA-256.

    Raises:
        UnreadableError: No such file.
        AcceptanceFileError: Not TOML, an unknown measure, no demand or two.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror}") from error
    try:
        declaration = Declaration.model_validate(tomllib.loads(content.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AcceptanceFileError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise AcceptanceFileError(f"{path}: {said}") from error
    return declaration, hashlib.sha256(content).hexdigest()


def judge(
    declaration: Declaration, sha256: str, cohorts: Cohorts, by: Draws, unmeasured: int = 0
) -> Verdict:
    """Hold a run against what was declared.

    Args:
        declaration: From `read_declaration`.
        sha256: Of its file.
        cohorts: Of the run.
        by: How patients are drawn.
        unmeasured: Cases that the run was asked for and has not measured.
    """
    rows = cohorts.held_out
    against = _against_judging(declaration, cohorts, unmeasured)
    return Verdict(
        declaration,
        sha256,
        tuple(_judged(one, rows, declaration, by, against) for one in declaration.threshold),
        len(rows),
    )


def _against_judging(declaration: Declaration, cohorts: Cohorts, unmeasured: int) -> str:
    """Why nothing at all can be judged; "" if it can."""
    if not cohorts.held_out:
        return (
            f"every real case ({len(cohorts.in_training)}) was in the training of the pack"
            if cohorts.in_training
            else "there is no real case"
        )
    if unmeasured:
        return f"{unmeasured} cases of the run are not measured yet"
    first = min(datetime.fromisoformat(row["measured_at"]).date() for row in cohorts.held_out)
    if declaration.declared_on > first:
        return (
            f"the thresholds are of {declaration.declared_on}, and the first case was measured on "
            f"{first}: they were not declared beforehand"
        )
    return ""


def _judged(
    threshold: Threshold,
    rows: Sequence[Row],
    declaration: Declaration,
    by: Draws,
    against: str,
) -> Judged:
    def open_(reason: str, one: Figure | None = None) -> Judged:
        return Judged(threshold, one, "cannot be judged", f"{reason[:1].upper()}{reason[1:]}.")

    if against:
        return open_(against)
    one = _figure(threshold.measure, rows, by)
    if one.patients < declaration.fewest_patients:
        return open_(
            f"it is defined in cases of {one.patients} patients, and {declaration.fewest_patients} "
            "were declared as the fewest",
            one,
        )
    if one.value is None:
        return open_("it is not defined in this cohort", one)
    if one.worst is None:
        return open_("it has no interval in this cohort", one)
    if not threshold.met_by(*one.worst):
        bound = threshold.bound(*one.worst)
        return Judged(
            threshold, one, "failed", f"The interval reaches {bound:.3f}: {threshold.demand} asked."
        )
    bound = threshold.bound(*one.worst)
    return Judged(
        threshold, one, "passed", f"The worse bound is {bound:.3f}: {threshold.demand} asked."
    )


def _figure(name: str, rows: Sequence[Row], by: Draws) -> Figure:
    if name in MEASURES:
        return figure(rows, MEASURES[name], by)
    if name in OF_VOLUMES:
        return agreement_of_volumes(rows)[name]
    return not_analysed(rows)


def not_analysed(rows: Sequence[Row]) -> Figure:
    """The share of cases that the pipeline refused or failed on."""
    left = sum(row["outcome"] != Outcome.ANALYSED for row in rows)
    share = proportion(left, len(rows))
    interval = None if share.low is None or share.high is None else (share.low, share.high)
    patients = len({row["patient"] for row in rows})
    return Figure(NOT_ANALYSED, share.value, len(rows), len(rows), patients, None, interval)
