"""The paper's own figures, rebuilt from its own counts: what was printed, and what it is.

The slice table of the paper (its Table 5) gives accuracy, "sensitivity", "PPV" and "NPV" of two
centres, and the text gives the counts behind them. From the counts:

- The printed "sensitivity" is the specificity, the printed "PPV" is the NPV and the printed "NPV"
  is the PPV: every rate was taken with "no lesion" as the finding. The sensitivity itself, 67.0 %
  and 52.2 %, was not printed.
- The printed intervals are Wilson's, 95 %, with n = all slices of the centre for every row. The
  right n of a rate is what it is a share of (the positive slices, for sensitivity).

`as_published` computes with that wrong n under those wrong labels, and agrees with the print to
the digit but for one row (`differences`). `as_it_is` computes what the labels mean. Neither is
corrected for slices of one patient being alike: the paper does not say which slice is whose.

Source:
    `reference/paper.txt`, sections "Evaluation metrics" and "Results", Tables 4 and 5;
    arithmetic in `reference/ms_facts.md` 1b and 1d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2, pi, sqrt
from textwrap import wrap

from pydantic import JsonValue
from scipy.optimize import brentq

from training.slice_metrics import TAU, SliceCounts, predictive_values
from training.statistics import Estimate, Mean, agresti_coull, mean, proportion, wilson

RATES = ("accuracy", "sensitivity", "specificity", "ppv", "npv")
NAMES = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
}
WHAT_IT_IS = {
    "accuracy": "accuracy",
    "sensitivity": "specificity",
    "ppv": "npv",
    "npv": "ppv",
}
"""The paper's label, and the rate that stands under it."""

FOLD_DSC_PERCENT = (83.5, 89.4, 88.4, 87.5, 84.5)
ENTROPY_LIMIT_BITS = 0.01
CANVAS_PIXELS = 512 * 512
PIXEL_MM = 0.4297
SLICE_SPACING_MM = 6.5
POSITIVE_SLICES = 1200
ALL_SLICES = (2575, 2060)
"""103 patients with 25 or 20 slices; about 1200 of them with lesions."""


LINE = 100  # characters


@dataclass(frozen=True, slots=True)
class Printed:
    """A figure of Table 5, percent; "100" there is "100.0" here.

    Only for comparison: nothing is computed from it.
    """

    value: str
    low: str
    high: str

    def __str__(self) -> str:
        return f"{self.value} ({self.low}-{self.high})"


@dataclass(frozen=True, slots=True)
class Centre:
    """One test set of the paper."""

    name: str
    counts: SliceCounts
    printed: Mapping[str, Printed]
    """By the paper's label."""
    printed_sensitivity_of_voxels: float
    """Table 5, voxel level, percent."""
    printed_dsc: float


CENTRES = (
    Centre(
        "Center 1 (internal test set)",
        SliceCounts(tp=146, fn=72, tn=217, fp=1),
        {
            "accuracy": Printed("83.3", "79.5", "86.5"),
            "sensitivity": Printed("99.5", "98.3", "99.9"),
            "ppv": Printed("75.1", "70.8", "78.9"),
            "npv": Printed("99.3", "98.0", "99.8"),
        },
        printed_sensitivity_of_voxels=71.1,
        printed_dsc=70.3,
    ),
    Centre(
        "Center 2 (external test set)",
        SliceCounts(tp=12, fn=11, tn=23, fp=0),
        {
            "accuracy": Printed("76.1", "62.1", "86.1"),
            "sensitivity": Printed("100.0", "92.3", "100.0"),
            "ppv": Printed("67.7", "53.2", "79.4"),
            "npv": Printed("100.0", "92.3", "100.0"),
        },
        printed_sensitivity_of_voxels=68.1,
        printed_dsc=74.8,
    ),
)


def as_published(counts: SliceCounts) -> dict[str, Estimate | None]:
    """The paper's rows, under its labels, with its n. None: the paper has no such row."""
    rates = counts.rates
    rows: dict[str, Estimate | None] = dict.fromkeys(RATES)
    for label, rate in WHAT_IT_IS.items():
        part, whole = rates[rate]
        rows[label] = (
            Estimate(part / whole, *wilson(part / whole, counts.n), counts.n)
            if whole
            else Estimate(None, None, None, counts.n)
        )
    return rows


def as_it_is(counts: SliceCounts) -> dict[str, Estimate]:
    """What the labels mean, each with its own n."""
    return {name: proportion(*counts.rates[name]) for name in RATES}


def summaries(counts: SliceCounts) -> dict[str, float | None]:
    """One number for both kinds of error: F1, balanced accuracy, Matthews' correlation."""
    tp, fn, tn, fp = counts.tp, counts.fn, counts.tn, counts.fp
    across = sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    both = tp + fn and tn + fp
    return {
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2 if both else None,
        "mcc": (tp * tn - fp * fn) / across if across else None,
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """A row where our figures and the print differ by a digit."""

    centre: str
    label: str
    printed: Printed
    computed: Printed
    agresti_coull: Printed
    """The same share and n by Agresti and Coull."""


def differences() -> tuple[Difference, ...]:
    """The rows that Wilson with n = all slices does not give to the printed digit."""
    found = []
    for centre in CENTRES:
        for label, row in as_published(centre.counts).items():
            if row is None or row.value is None or row.low is None or row.high is None:
                continue
            computed = _in_percent(row.value, row.low, row.high)
            if computed != centre.printed[label]:
                other = _in_percent(row.value, *agresti_coull(row.value, row.n))
                found.append(Difference(centre.name, label, centre.printed[label], computed, other))
    return tuple(found)


# Extras: other figures of the paper that its own numbers decide.


def fold_dsc() -> Mean:
    """Table 4: the five folds' DSC, percent."""
    return mean(FOLD_DSC_PERCENT)


@dataclass(frozen=True, slots=True)
class EntropyRule:
    """The smallest lesion area in a slice that the rule "drop H < 0.01" keeps."""

    pixels: float
    area_mm2: float
    diameter_mm: float
    """Of a disc of that area."""
    volume_ml: float
    """In one slice."""


def entropy_rule() -> EntropyRule:
    """Where the entropy of a 512 x 512 mask of the paper reaches 0.01 bit."""

    def above(share: float) -> float:
        return -share * log2(share) - (1 - share) * log2(1 - share) - ENTROPY_LIMIT_BITS

    pixels = float(brentq(above, 1e-12, 0.5, xtol=1e-15)) * CANVAS_PIXELS
    area_mm2 = pixels * PIXEL_MM**2
    return EntropyRule(
        pixels, area_mm2, 2 * sqrt(area_mm2 / pi), area_mm2 * SLICE_SPACING_MM / 1000
    )


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The highest mean over all positive slices that the counts allow, percent, and the print."""

    sensitivity: float
    printed_sensitivity: float
    dsc: float
    printed_dsc: float


def voxel_ceiling(centre: Centre) -> Ceiling:
    """What the voxel table could be at most, if it were a mean over all positive slices.

    A slice that was missed is overlapped by less than tau of its reference, so its DSC is below
    2 tau / (1 + tau); the others have at most 1.
    """
    tp, fn = centre.counts.tp, centre.counts.fn
    return Ceiling(
        sensitivity=100 * (tp + fn * TAU) / (tp + fn),
        printed_sensitivity=centre.printed_sensitivity_of_voxels,
        dsc=100 * (tp + fn * 2 * TAU / (1 + TAU)) / (tp + fn),
        printed_dsc=centre.printed_dsc,
    )


def as_json() -> dict[str, JsonValue]:
    """What `flairnode validate paper --json` prints; shares are of 1, intervals of 95 %."""
    return {
        "centres": [_centre_json(centre) for centre in CENTRES],
        "differences": [
            {
                "centre": one.centre,
                "label": one.label,
                "printed_percent": str(one.printed),
                "computed_percent": str(one.computed),
                "agresti_coull_percent": str(one.agresti_coull),
            }
            for one in differences()
        ],
        "fold_dsc_percent": fold_dsc().as_json(),
        "entropy_rule": _entropy_json(entropy_rule()),
    }


def _centre_json(centre: Centre) -> JsonValue:
    counts, ceiling = centre.counts, voxel_ceiling(centre)
    published = as_published(counts)
    return {
        "name": centre.name,
        "counts": counts.as_json(),
        "slices": counts.n,
        "as_published": {
            label: None if row is None else row.as_json() for label, row in published.items()
        },
        "as_it_is": {name: row.as_json() for name, row in as_it_is(counts).items()},
        "what_the_label_is": dict(WHAT_IT_IS),
        "printed_percent": {label: str(one) for label, one in centre.printed.items()},
        "summaries": dict(summaries(counts)),
        "at_the_prevalence_of_the_paper": [
            {"prevalence": prevalence, "ppv": ppv, "npv": npv}
            for prevalence, ppv, npv in at_prevalence(counts)
        ],
        "voxel_ceiling_percent": {
            "sensitivity": ceiling.sensitivity,
            "printed_sensitivity": ceiling.printed_sensitivity,
            "dsc": ceiling.dsc,
            "printed_dsc": ceiling.printed_dsc,
        },
    }


def at_prevalence(counts: SliceCounts) -> tuple[tuple[float, float | None, float | None], ...]:
    """Prevalence, PPV and NPV, at the share of slices with lesions among all of the paper's."""
    rates = as_it_is(counts)
    return tuple(
        (
            POSITIVE_SLICES / slices,
            *predictive_values(
                rates["sensitivity"].value, rates["specificity"].value, POSITIVE_SLICES / slices
            ),
        )
        for slices in ALL_SLICES
    )


def _entropy_json(rule: EntropyRule) -> JsonValue:
    return {
        "limit_bits": ENTROPY_LIMIT_BITS,
        "pixels": rule.pixels,
        "area_mm2": rule.area_mm2,
        "diameter_mm": rule.diameter_mm,
        "volume_ml": rule.volume_ml,
    }


def in_words() -> str:
    """The table for people, and a paragraph on what it shows."""
    return "\n".join([*_tables(), "", *_explanation(), "", *_extras()])


def _tables() -> list[str]:
    lines: list[str] = []
    for centre in CENTRES:
        counts, right = centre.counts, as_it_is(centre.counts)
        lines += [
            f"{centre.name}: TP {counts.tp}, FN {counts.fn}, TN {counts.tn}, FP {counts.fp}; "
            f"{counts.n} slices",
            f"  {'':<13}{'printed, %':<22}{'rebuilt from counts':<22}"
            f"{'what that is':<14}{'what the label means, %':<25}n",
        ]
        for label, row in as_published(counts).items():
            printed = str(centre.printed[label]) if row else "not printed"
            rebuilt = _words(row) if row else ""
            meaning = NAMES[WHAT_IT_IS[label]] if row else ""
            lines.append(
                f"  {NAMES[label]:<13}{printed:<22}{rebuilt:<22}{meaning:<14}"
                f"{_words(right[label]):<25}{right[label].n}"
            )
        lines.append("")
    return lines[:-1]


def _explanation() -> list[str]:
    first, second = (as_it_is(centre.counts)["sensitivity"].value for centre in CENTRES)
    lines = _wrapped(
        'Every printed rate but the accuracy was taken with "no lesion" as the finding. What the '
        "paper calls sensitivity is the share of slices without lesions that were left alone "
        "(specificity); its PPV is the NPV, and its NPV the PPV. The system as published rarely "
        "marks a slice without lesions and misses many that have them: it found "
        f"{_percent(first)} % of those in center 1 and {_percent(second)} % in center 2. The "
        "printed intervals are Wilson's with all slices as n; on the right each rate has the n it "
        "is a share of. Slices of one patient are alike, so even these intervals are too narrow."
    )
    for one in differences():
        lines += _wrapped(
            f"One row does not come out to the digit: {one.centre}, {NAMES[one.label]}: printed "
            f"{one.printed}, computed {one.computed}. Agresti and Coull's interval has the printed "
            f"bounds there, {one.agresti_coull}, but not in the rows of 100 %."
        )
    return lines


def _extras() -> list[str]:
    folds, rule = fold_dsc(), entropy_rule()
    lines = ["Also from the paper's own numbers:"]
    lines += _item(
        f"DSC of the {folds.n} folds: mean {folds.value:.2f}, SD {folds.sd:.3f} with n - 1. "
        "Printed: 86.7 and 2.54."
    )
    lines += _item(
        f"The entropy rule (H < {ENTROPY_LIMIT_BITS} bit) drops every slice with less than "
        f"{rule.pixels:.1f} lesion pixels of 512 x 512: {rule.area_mm2:.1f} mm2, a disc of "
        f"{rule.diameter_mm:.1f} mm, {rule.volume_ml:.2f} ml. A slice whose only lesion has "
        "3 mm, the smallest that the McDonald criteria count, is dropped."
    )
    for centre in CENTRES:
        ceiling = voxel_ceiling(centre)
        lines += _item(
            f"{centre.name}: by its own 10 % rule the mean voxel sensitivity over all positive "
            f"slices is at most {ceiling.sensitivity:.1f} % (printed "
            f"{ceiling.printed_sensitivity}) and the mean DSC at most {ceiling.dsc:.1f} % (printed "
            f"{ceiling.printed_dsc}): {_verdict(ceiling)}."
        )
        for prevalence, ppv, npv in at_prevalence(centre.counts):
            lines += _item(
                f"{centre.name}: where {100 * prevalence:.0f} % of slices are positive, as in the "
                f"paper's data, PPV is {_percent(ppv)} % and NPV {_percent(npv)} %."
            )
    return lines


def _wrapped(text: str) -> list[str]:
    return wrap(text, LINE)


def _item(text: str) -> list[str]:
    return wrap(f"- {text}", LINE, subsequent_indent="  ")


def _verdict(ceiling: Ceiling) -> str:
    if ceiling.printed_sensitivity > ceiling.sensitivity or ceiling.printed_dsc > ceiling.dsc:
        return "the printed means are not of all positive slices"
    return "the printed means may be of all positive slices"


def _words(row: Estimate) -> str:
    if row.value is None or row.low is None or row.high is None:
        return "not defined"
    return str(_in_percent(row.value, row.low, row.high))


def _in_percent(value: float, low: float, high: float) -> Printed:
    return Printed(_percent(value), _percent(low), _percent(high))


def _percent(share: float | None) -> str:
    return "not defined" if share is None else f"{100 * share:.1f}"
