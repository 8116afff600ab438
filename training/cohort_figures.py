"""The cohorts of a run, and every figure that a report gives of one.

A figure is a part over a whole, added up over cases: a share of slices or lesions is such, and a
mean is one whose wholes are 1. So every figure knows how many it rests on, and its interval comes
from drawing whole patients. Beside it stands the classical interval (Wilson's for a share,
Student's of the patients' means for a mean), because a bootstrap of a few patients is too narrow,
and one of a share of 100 % has no width at all. What is judged is judged on the worse of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from pydantic import JsonValue

from dicom.errors import Outcome
from training.slice_metrics import OverlapRule, SliceCounts, SliceOverlap, count_slices
from training.statistics import (
    DRAWS,
    Bootstrap,
    bland_altman,
    icc,
    mean,
    proportion,
    ratio_bootstrap,
)

Row = Mapping[str, Any]
Part = tuple[float, float]
NOTHING: Final[Part] = (0.0, 0.0)
Scale = Literal["share", "positive", "signed"]
"""0 to 1; 0 and more; either side of 0."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure: what it is called, and what a case gives to it."""

    name: str
    label: str
    unit: str
    """"" for what lies between 0 and 1."""
    scale: Scale
    counts: Literal["cases", "slices", "lesions"]
    of: Callable[[Row], Part]
    """Part and whole of one analysed case."""
    is_share: bool = False
    """Whole things counted, so that Wilson's interval applies."""


def _value(*path: str) -> Callable[[Row], Part]:
    def of(row: Row) -> Part:
        value = row["metrics"]
        for name in path:
            value = value[name]
        return NOTHING if value is None else (float(value), 1.0)

    return of


def _count(part: str, whole: str) -> Callable[[Row], Part]:
    def of(row: Row) -> Part:
        met = row["metrics"]["any_overlap"]
        return float(met[part]), float(met[whole])

    return of


def slice_counts(row: Row) -> SliceCounts:
    """The table of all slices of a case, by the rule of the paper."""
    return count_slices(overlaps(row))


def overlaps(row: Row, rule: OverlapRule = OverlapRule.OVERLAP) -> list[SliceOverlap]:
    """Every slice of a case."""
    return [
        SliceOverlap(one["positive"], one["predicted"], one[rule.value]) for one in row["slices"]
    ]


def _slice_rate(name: str) -> Callable[[Row], Part]:
    def of(row: Row) -> Part:
        part, whole = slice_counts(row).rates[name]
        return float(part), float(whole)

    return of


def slice_dsc(one: Mapping[str, Any]) -> float | None:
    """Dice of one slice, from its voxels."""
    marked = one["reference_voxels"] + one["prediction_voxels"]
    return 2 * one["common_voxels"] / marked if marked else None


def _dsc_of_positive_slices(row: Row) -> Part:
    values = [slice_dsc(one) or 0.0 for one in row["slices"] if one["positive"]]
    return float(sum(values)), float(len(values))


MEASURES: Final = {
    one.name: one
    for one in (
        Measure("dsc", "Dice (DSC)", "", "share", "cases", _value("dsc")),
        Measure("iou", "IoU", "", "share", "cases", _value("iou")),
        Measure("ppv", "PPV of voxels", "", "share", "cases", _value("ppv")),
        Measure(
            "sensitivity", "sensitivity of voxels", "", "share", "cases", _value("sensitivity")
        ),
        Measure("hd95_mm", "HD95", "mm", "positive", "cases", _value("hd95_mm")),
        Measure("nsd", "NSD in space", "", "share", "cases", _value("nsd")),
        Measure("nsd_in_plane", "NSD in plane", "", "share", "cases", _value("nsd_in_plane")),
        Measure("lesion_f1", "lesion F1 (Anima)", "", "share", "cases", _value("lesion", "f1")),
        Measure(
            "lesion_sensitivity",
            "lesion sensitivity (Anima)",
            "",
            "share",
            "cases",
            _value("lesion", "sensitivity"),
        ),
        Measure("lesion_ppv", "lesion PPV (Anima)", "", "share", "cases", _value("lesion", "ppv")),
        Measure(
            "lesion_recall",
            "lesions met by one voxel",
            "",
            "share",
            "lesions",
            _count("found_count", "reference_count"),
            is_share=True,
        ),
        Measure(
            "lesion_false_share",
            "predicted lesions that meet none",
            "",
            "share",
            "lesions",
            _count("false_count", "prediction_count"),
            is_share=True,
        ),
        Measure(
            "false_lesions_per_case",
            "false lesions per case",
            "lesions",
            "positive",
            "cases",
            _value("any_overlap", "false_count"),
        ),
        Measure(
            "false_ml_per_case",
            "false volume per case",
            "ml",
            "positive",
            "cases",
            _value("any_overlap", "false_volume_ml"),
        ),
        *(
            Measure(
                f"slice_{name}",
                f"slice {label}",
                "",
                "share",
                "slices",
                _slice_rate(name),
                is_share=True,
            )
            for name, label in (
                ("accuracy", "accuracy"),
                ("sensitivity", "sensitivity"),
                ("specificity", "specificity"),
                ("ppv", "PPV"),
                ("npv", "NPV"),
            )
        ),
        Measure(
            "slice_dsc",
            "Dice of positive slices, missed ones as 0",
            "",
            "share",
            "slices",
            _dsc_of_positive_slices,
        ),
        Measure(
            "volume_bias_ml",
            "volume error, signed",
            "ml",
            "signed",
            "cases",
            _value("volume_error", "ml"),
        ),
        Measure(
            "volume_error_ml",
            "volume error, absolute",
            "ml",
            "positive",
            "cases",
            _value("volume_error", "absolute_ml"),
        ),
        Measure(
            "volume_error_percent",
            "volume error, absolute",
            "%",
            "positive",
            "cases",
            _value("volume_error", "absolute_percent"),
        ),
    )
}
MAIN: Final = (
    "dsc",
    "hd95_mm",
    "nsd_in_plane",
    "nsd",
    "lesion_f1",
    "lesion_sensitivity",
    "lesion_ppv",
    "lesion_recall",
    "lesion_false_share",
    "false_lesions_per_case",
    "false_ml_per_case",
    "slice_sensitivity",
    "slice_specificity",
    "slice_ppv",
    "slice_npv",
    "volume_bias_ml",
    "volume_error_ml",
    "volume_error_percent",
)
"""What is read first, in this order."""
BRIEF: Final = (
    "dsc",
    "lesion_f1",
    "slice_sensitivity",
    "slice_specificity",
    "false_lesions_per_case",
    "volume_bias_ml",
)
"""What a subgroup, a centre or a comparison shows."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its n and its intervals. None is "not defined"."""

    name: str
    value: float | None
    n: int
    """Of what it counts: cases where it is defined, slices or lesions."""
    cases: int
    patients: int
    by_patient: tuple[float, float] | None
    """Percentile interval of whole patients drawn."""
    classical: tuple[float, float] | None
    """Wilson's of a share; Student's of the patients' means of a mean."""
    bca: tuple[float, float] | None = None
    draws: int = 0
    undefined_draws: int = 0

    @property
    def worst(self) -> tuple[float, float] | None:
        """The lowest and the highest bound of all intervals."""
        all_of_them = [one for one in (self.by_patient, self.classical, self.bca) if one]
        if not all_of_them:
            return None
        return min(low for low, _ in all_of_them), max(high for _, high in all_of_them)

    def as_json(self) -> dict[str, JsonValue]:
        """Everything; intervals as `[low, high]`."""

        def pair(one: tuple[float, float] | None) -> JsonValue:
            return None if one is None else list(one)

        return {
            "value": self.value,
            "n": self.n,
            "cases": self.cases,
            "patients": self.patients,
            "by_patient": pair(self.by_patient),
            "bca": pair(self.bca),
            "classical": pair(self.classical),
            "draws": self.draws,
            "undefined_draws": self.undefined_draws,
        }


@dataclass(frozen=True, slots=True)
class Draws:
    """How patients are drawn."""

    seed: int
    draws: int = DRAWS


def analysed(rows: Iterable[Row]) -> list[Row]:
    """The cases that have measures."""
    return [row for row in rows if row["outcome"] == Outcome.ANALYSED]


def figure(rows: Sequence[Row], measure: Measure, by: Draws) -> Figure:
    """One figure of a cohort; cases that were not analysed are left out."""
    parts = parts_by_patient(analysed(rows), measure)
    drawn = ratio_bootstrap(parts, seed=by.seed, draws=by.draws)
    wholes = [whole for some in parts.values() for _, whole in some]
    n = round(sum(wholes))
    return Figure(
        name=measure.name,
        value=drawn.value,
        n=n,
        cases=sum(whole > 0 for whole in wholes),
        patients=sum(any(whole > 0 for _, whole in some) for some in parts.values()),
        by_patient=drawn.percentile,
        classical=_classical(parts, measure, n),
        bca=drawn.bca,
        draws=drawn.draws,
        undefined_draws=drawn.undefined_draws,
    )


def figures(rows: Sequence[Row], names: Iterable[str], by: Draws) -> list[Figure]:
    """Several figures of one cohort."""
    return [figure(rows, MEASURES[name], by) for name in names]


def difference(
    rows: Sequence[Row], baseline: Sequence[Row], measure: Measure, by: Draws
) -> Bootstrap:
    """The figure of a run less that of a baseline, on the same cases in the same order."""
    names = [row["patient"] for row in rows]
    ours, theirs = (_grouped(names, some, measure) for some in (rows, baseline))
    return ratio_bootstrap(ours, less=theirs, seed=by.seed, draws=by.draws)


def parts_by_patient(rows: Sequence[Row], measure: Measure) -> dict[str, list[Part]]:
    """What each patient gives to a figure."""
    return _grouped([row["patient"] for row in rows], rows, measure)


def _grouped(
    patients: Sequence[str], rows: Sequence[Row], measure: Measure
) -> dict[str, list[Part]]:
    grouped: dict[str, list[Part]] = {}
    for patient, row in zip(patients, rows, strict=True):
        grouped.setdefault(patient, []).append(measure.of(row))
    return grouped


def _classical(
    parts: Mapping[str, Sequence[Part]], measure: Measure, n: int
) -> tuple[float, float] | None:
    if measure.is_share:
        part = round(sum(one for some in parts.values() for one, _ in some))
        share = proportion(part, n)
        return None if share.low is None or share.high is None else (share.low, share.high)
    of_patients = [np.sum(some, axis=0) for some in parts.values()]
    spread = mean([float(part / whole) for part, whole in of_patients if whole])
    if spread.low is None or spread.high is None:
        return None
    low, high = spread.low, spread.high
    if measure.scale != "signed":
        low = max(0.0, low)
    if measure.scale == "share":
        high = min(1.0, high)
    return low, high


def agreement_of_volumes(rows: Sequence[Row]) -> dict[str, Figure]:
    """ICC(2,1) and the limits of agreement, as figures that can be judged."""
    done = analysed(rows)
    reference = [row["metrics"]["volume_reference_ml"] for row in done]
    prediction = [row["metrics"]["volume_prediction_ml"] for row in done]
    patients = len({row["patient"] for row in done})
    limits = bland_altman(reference, prediction)
    correlation = icc(list(zip(reference, prediction, strict=True))).agreement
    return {
        name: Figure(
            name,
            one.value,
            len(done),
            len(done),
            patients,
            None,
            None if one.low is None or one.high is None else (one.low, one.high),
        )
        for name, one in (
            ("volume_icc", correlation),
            ("volume_lower_limit_ml", limits.lower_limit),
            ("volume_upper_limit_ml", limits.upper_limit),
        )
    }


# Who is in which cohort.


@dataclass(frozen=True, slots=True)
class Cohorts:
    """The cases of a run by what may be concluded from them."""

    held_out: tuple[Row, ...]
    """Real, and not known to be in the training of the pack."""
    in_training: tuple[Row, ...]
    semi_synthetic: tuple[Row, ...]

    @property
    def main(self) -> tuple[Row, ...]:
        """What the main figures are of: never a semi-synthetic case."""
        return self.held_out or self.in_training


def split(rows: Iterable[Row]) -> Cohorts:
    """By the columns `semi_synthetic` and `in_training` of `patients.csv`."""
    by_name = sorted(rows, key=lambda row: str(row["case"]))
    real = [row for row in by_name if not says(row, "semi_synthetic")]
    return Cohorts(
        held_out=tuple(row for row in real if not says(row, "in_training")),
        in_training=tuple(row for row in real if says(row, "in_training")),
        semi_synthetic=tuple(row for row in by_name if says(row, "semi_synthetic")),
    )


def says(row: Row, column: str) -> bool:
    """Whether `patients.csv` says yes."""
    return bool(row["about"].get(column) == "yes")


AGE_STARTS: Final = (30, 40, 50, 60)
LOAD_GROUPS: Final = 3
FEWEST_FOR_LOAD: Final = 6  # two cases in each third; with fewer a third is one patient's name


def subgroups(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Analysed cases by what is known of them; a property that no case has is left out."""
    done = analysed(rows)
    found = {
        "scanner": _by(done, lambda row: row["about"].get("scanner")),
        "field strength": _by(done, _field_strength),
        "slice spacing": _by(done, lambda row: f"{row['spacing_mm'][0]:.1f} mm"),
        "sex": _by(done, lambda row: row["about"].get("sex")),
        "age": _by(done, _age_band),
        "phenotype": _by(done, lambda row: row["about"].get("phenotype")),
        "lesion load": _by_load(done),
    }
    return {name: groups for name, groups in found.items() if set(groups) - {NOT_GIVEN}}


NOT_GIVEN: Final = "not given"


def _by(rows: Sequence[Row], key: Callable[[Row], str | None]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row) or NOT_GIVEN, []).append(row)

    def place(item: tuple[str, list[Row]]) -> tuple[bool, bool, str]:
        return item[0] == NOT_GIVEN, not item[0].startswith("under"), item[0]

    return dict(sorted(groups.items(), key=place))


def by_column(rows: Sequence[Row], column: str) -> dict[str, list[Row]]:
    """All cases by a column of `patients.csv`; {} when no case has it."""
    groups = _by(rows, lambda row: row["about"].get(column))
    return groups if set(groups) - {NOT_GIVEN} else {}


def _field_strength(row: Row) -> str | None:
    value = row["about"].get("field_strength_t")
    return f"{value} T" if value else None


def _age_band(row: Row) -> str | None:
    if not (text := row["about"].get("age")):
        return None
    age = float(text)
    below = [start for start in AGE_STARTS if start <= age]
    above = [start for start in AGE_STARTS if start > age]
    if not below:
        return f"under {above[0]}"
    return f"{below[-1]} to {above[0] - 1}" if above else f"{below[-1]} and older"


def _by_load(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Thirds by volume of the reference; cases without a lesion by themselves."""
    ill = sorted(
        (row for row in rows if row["metrics"]["volume_reference_ml"] > 0),
        key=lambda row: (row["metrics"]["volume_reference_ml"], row["case"]),
    )
    none = [row for row in rows if row["metrics"]["volume_reference_ml"] == 0]
    if len(ill) < FEWEST_FOR_LOAD:
        return {}
    groups: dict[str, list[Row]] = {"none": none} if none else {}
    for third in np.array_split(np.arange(len(ill)), LOAD_GROUPS):
        some = [ill[index] for index in third.tolist()]
        low, high = (row["metrics"]["volume_reference_ml"] for row in (some[0], some[-1]))
        groups[f"{low:.2f} to {high:.2f} ml"] = some
    return groups
