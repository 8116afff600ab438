"""The figures of a cohort, from the rows of `training.validate`.

Every mean has its n. Intervals of what is counted in slices or lesions come from drawing whole
patients; Wilson's stand beside those of slices, because the paper's are such. Cases that were not
analysed are counted and left out of every figure: the share of them is a figure of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import JsonValue

from dicom.errors import Outcome
from training.lesion_metrics import STRATA, IsbiParts, isbi_score
from training.slice_metrics import (
    TAU,
    OverlapRule,
    SliceCounts,
    SliceOverlap,
    SlicePlace,
    count_slices,
    draw_negatives,
    predictive_values,
    sweep,
)
from training.statistics import (
    DRAWS,
    Calibration,
    bland_altman,
    icc,
    mean,
    pearson,
    proportion,
    ratio_bootstrap,
)
from training.voxel_metrics import ratio

Row = Mapping[str, Any]
Read = Callable[[Row], float | None]
Value = TypeVar("Value")

VOXEL_MEASURES = ("dsc", "iou", "ppv", "sensitivity", "hd95_mm", "nsd", "nsd_in_plane")
LESION_MEASURES = ("f1", "sensitivity", "ppv")
FEW_PATIENTS = 20
"""Below this a percentile bootstrap covers clearly less than it says."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How patients are drawn."""

    seed: int
    draws: int


def summarise(rows: Sequence[Row], *, seed: int, draws: int = DRAWS) -> dict[str, JsonValue]:
    """Everything that can be said of a cohort.

    Args:
        rows: From `training.validate.run`; their order does not matter.
        seed: Of the bootstrap and of the draw of negative slices.
        draws: Of each bootstrap.
    """
    by = Draws(seed, draws)
    rows = sorted(rows, key=lambda row: str(row["case"]))
    done = [row for row in rows if row["outcome"] == Outcome.ANALYSED]
    return {
        "cases": _cases(rows, done),
        "seed": seed,
        "draws": draws,
        "voxel": {name: _mean(done, _metric(name), by) for name in VOXEL_MEASURES},
        "lesion": {name: _mean(done, _metric("lesion", name), by) for name in LESION_MEASURES},
        "any_overlap": _any_overlap(done, by),
        "reference_empty": _reference_empty(done),
        "volume": _volume(done),
        "isbi": _isbi(done),
        "slices": {rule.value: _slices(done, rule, by) for rule in OverlapRule},
        "calibration": _calibration(done),
    }


def _cases(rows: Sequence[Row], done: Sequence[Row]) -> JsonValue:
    verdicts = Counter(row["quality"]["verdict"] for row in rows if row["quality"] is not None)
    reasons = Counter(
        f"{row['outcome']}: {row['reason']}" for row in rows if row["outcome"] != Outcome.ANALYSED
    )
    return {
        "n": len(rows),
        "analysed": len(done),
        "patients": len({row["patient"] for row in done}),
        "not_analysed_share": proportion(len(rows) - len(done), len(rows)).as_json(),
        "reasons": dict(sorted(reasons.items())),
        "verdicts": dict(sorted(verdicts.items())),
    }


def _by_patient(rows: Sequence[Row], read: Callable[[Row], Value]) -> dict[str, list[Value]]:
    patients: dict[str, list[Value]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(read(row))
    return patients


def _metric(*path: str) -> Read:
    def read(row: Row) -> float | None:
        value = row["metrics"]
        for name in path:
            value = value[name]
        return None if value is None else float(value)

    return read


def _mean(rows: Sequence[Row], read: Read, by: Draws) -> JsonValue:
    """Mean over the cases where it is defined, and how many those are."""

    def part(row: Row) -> tuple[float, float]:
        value = read(row)
        return (0.0, 0.0) if value is None else (value, 1.0)

    whole = mean([read(row) for row in rows])
    return {
        "mean": whole.value,
        "sd": whole.sd,
        "n": whole.n,
        "undefined": whole.undefined,
        "bootstrap": ratio_bootstrap(
            _by_patient(rows, part), seed=by.seed, draws=by.draws
        ).as_json(),
    }


def _share(rows: Sequence[Row], part: Read, whole: Read, by: Draws) -> JsonValue:
    """A share of things that are counted over all cases, drawn by patient."""

    def counts(row: Row) -> tuple[float, float]:
        return int(part(row) or 0), int(whole(row) or 0)

    drawn = ratio_bootstrap(_by_patient(rows, counts), seed=by.seed, draws=by.draws)
    return {
        "value": drawn.value,
        "part": sum(counts(row)[0] for row in rows),
        "n": sum(counts(row)[1] for row in rows),
        "bootstrap": drawn.as_json(),
    }


def _any_overlap(rows: Sequence[Row], by: Draws) -> JsonValue:
    """Recall and false share of all lesions of the cohort, and by size."""

    def one(*path: str) -> JsonValue:
        def read(name: str) -> Read:
            return _metric("any_overlap", *path, name)

        return {
            "recall": _share(rows, read("found_count"), read("reference_count"), by),
            "false_share": _share(rows, read("false_count"), read("prediction_count"), by),
            "false_per_case": _mean(rows, read("false_count"), by),
            "false_ml_per_case": _mean(rows, read("false_volume_ml"), by),
        }

    return {"all": one(), "strata_mm3": {name: one("strata_mm3", name) for name in STRATA}}


def _reference_empty(rows: Sequence[Row]) -> JsonValue:
    """Cases without a lesion: what is marked in them, instead of an F1 (MSSEG-2)."""
    none = [row for row in rows if _metric("any_overlap", "reference_count")(row) == 0]
    false = _metric("any_overlap", "false_count")
    return {
        "n": len(none),
        "correct_negatives": sum(false(row) == 0 for row in none),
        "false_lesions": mean([false(row) for row in none]).as_json(),
        "false_ml": mean(
            [_metric("any_overlap", "false_volume_ml")(row) for row in none]
        ).as_json(),
    }


def _volume(rows: Sequence[Row]) -> JsonValue:
    reference = [row["metrics"]["volume_reference_ml"] for row in rows]
    prediction = [row["metrics"]["volume_prediction_ml"] for row in rows]
    return {
        "absolute_error_ml": mean(
            [row["metrics"]["volume_error"]["absolute_ml"] for row in rows]
        ).as_json(),
        "absolute_error_percent": mean(
            [row["metrics"]["volume_error"]["absolute_percent"] for row in rows]
        ).as_json(),
        "bland_altman_ml": bland_altman(reference, prediction).as_json(),
        "pearson": pearson(reference, prediction).as_json(),
        **icc(list(zip(reference, prediction, strict=True))).as_json(),
    }


def _isbi(rows: Sequence[Row]) -> JsonValue:
    score = isbi_score(
        [
            IsbiParts(
                dsc=row["metrics"]["isbi_parts"]["dsc"],
                ppv=row["metrics"]["isbi_parts"]["ppv"],
                false_share=row["metrics"]["isbi_parts"]["lfpr"],
                recall=row["metrics"]["isbi_parts"]["ltpr"],
                volume_reference_ml=row["metrics"]["volume_reference_ml"],
                volume_prediction_ml=row["metrics"]["volume_prediction_ml"],
            )
            for row in rows
        ]
    )
    return score.as_json()


def _slices(rows: Sequence[Row], rule: OverlapRule, by: Draws) -> JsonValue:
    """All slices; a draw of as many negatives as positives; and the sweep."""
    slices = {
        SlicePlace(row["patient"], row["case"], index, len(row["slices"])): SliceOverlap(
            one["positive"], one["predicted"], one[rule.value]
        )
        for row in rows
        for index, one in enumerate(row["slices"])
    }
    positives = {place: one.positive for place, one in slices.items()}
    drawn = draw_negatives(positives, by.seed)
    balanced = {place: slices[place] for place in (*filter(positives.get, positives), *drawn)}
    every, one_to_one = _counts(slices), _counts(balanced)
    whole = _sum(every.values())
    prevalence = ratio(whole.tp + whole.fn, whole.n)
    return {
        "tau": TAU,
        "prevalence": prevalence,
        "all": _table(every, by),
        "one_to_one": _table(one_to_one, by) | _adjusted(_sum(one_to_one.values()), prevalence),
        "sweep": [{"tau": tau, **counts.as_json()} for tau, counts in sweep(slices.values())],
    }


def _counts(slices: Mapping[SlicePlace, SliceOverlap]) -> dict[str, SliceCounts]:
    """The table of each patient: tables add up, so that a draw adds tables, not slices."""
    patients: dict[str, list[SliceOverlap]] = {}
    for place, one in slices.items():
        patients.setdefault(place.patient, []).append(one)
    return {name: count_slices(some) for name, some in patients.items()}


def _sum(tables: Iterable[SliceCounts]) -> SliceCounts:
    return sum(tables, SliceCounts(0, 0, 0, 0))


def _table(patients: Mapping[str, SliceCounts], by: Draws) -> dict[str, JsonValue]:
    counts = _sum(patients.values())
    return {
        "counts": counts.as_json(),
        **{name: _rate(patients, name, by) for name in counts.rates},
    }


def _rate(patients: Mapping[str, SliceCounts], name: str, by: Draws) -> JsonValue:
    shares = {patient: [table.rates[name]] for patient, table in patients.items()}
    return {
        "wilson": proportion(*_sum(patients.values()).rates[name]).as_json(),
        "bootstrap": ratio_bootstrap(shares, seed=by.seed, draws=by.draws).as_json(),
    }


def _adjusted(counts: SliceCounts, prevalence: float | None) -> dict[str, JsonValue]:
    """PPV and NPV of a one-to-one draw at the prevalence of all slices."""
    if prevalence is None:
        return {"at_prevalence": None}
    ppv, npv = predictive_values(
        ratio(*counts.rates["sensitivity"]), ratio(*counts.rates["specificity"]), prevalence
    )
    return {"at_prevalence": {"prevalence": prevalence, "ppv": ppv, "npv": npv}}


def _calibration(rows: Sequence[Row]) -> JsonValue:
    cases = [
        Calibration(
            tuple(row["calibration"]["count"]),
            tuple(row["calibration"]["sum_probability"]),
            tuple(row["calibration"]["sum_true"]),
        )
        for row in rows
        if row["calibration"] is not None
    ]
    if not cases:
        return None
    whole = cases[0]
    for one in cases[1:]:
        whole += one
    return {**whole.as_json(), "cases": len(cases)}


def in_words(summary: Mapping[str, Any]) -> str:
    """The figures that are read first, each with its n; all of them are in `summary.json`."""
    cases, volume = summary["cases"], summary["volume"]
    slices = summary["slices"][OverlapRule.OVERLAP.value]
    lines = [
        f"{cases['analysed']} of {cases['n']} cases analysed, of {cases['patients']} patients",
        *(f"  {count} {reason}" for reason, count in cases["reasons"].items()),
        f"{'':<26}{'mean':>12}  {'95 % by patient':<20}n",
    ]
    for label, name in (("Dice (DSC)", "dsc"), ("HD95, mm", "hd95_mm"), ("NSD", "nsd")):
        lines.append(_line(label, summary["voxel"][name]))
    lines.append(_line("lesion F1 (Anima)", summary["lesion"]["f1"]))
    met = summary["any_overlap"]
    lines.append(_line("lesion recall", met["all"]["recall"]))
    lines += [_line(f"  {name} mm3", one["recall"]) for name, one in met["strata_mm3"].items()]
    lines.append(_line("false lesions per case", met["all"]["false_per_case"]))
    lines += [
        _line(f"slice {name}", {**slices["all"][name], **slices["all"][name]["wilson"]})
        for name in ("sensitivity", "specificity")
    ]
    bias = volume["bland_altman_ml"]
    lines.append(
        f"volume: bias {_number(bias['bias']['value'])} ml, limits of agreement "
        f"{_number(bias['lower_limit']['value'])} to {_number(bias['upper_limit']['value'])} ml, "
        f"ICC(2,1) {_number(volume['icc_2_1']['value'])}, n {bias['n']}"
    )
    empty = summary["reference_empty"]
    lines.append(
        f"cases without a lesion: {empty['n']}, of them {empty['correct_negatives']} without a mark"
    )
    for name, count in summary.get("left_out", {}).items():
        if count:
            lines.append(f"Left out of these figures: {count} {name.replace('_', ' ')}.")
    alone = cases["patients"] == 1
    if cases["patients"] < FEW_PATIENTS:
        lines.append(
            f"Intervals from {cases['patients']} {'patient' if alone else 'patients'} are too "
            "narrow: too few to draw from."
        )
    return "\n".join(lines)


def _line(label: str, figure: Mapping[str, Any]) -> str:
    interval = figure["bootstrap"]["percentile"]
    between = "not defined" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    value = figure["mean"] if "mean" in figure else figure["value"]
    return f"{label:<26}{_number(value):>12}  {between:<20}{figure['n']}"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
