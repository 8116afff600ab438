"""The figures of the main cohort: voxels, lesions, slices, volume, and the paper's reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from training.cohort_figures import (
    MAIN,
    MEASURES,
    Draws,
    Row,
    agreement_of_volumes,
    analysed,
    figure,
    figures,
    slice_dsc,
)
from training.content import (
    Block,
    Cell,
    Column,
    Plot,
    Section,
    Table,
    Words,
    between,
    number,
)
from training.drawing import Role
from training.paper import NAMES, RATES, WHAT_IT_IS, as_published
from training.plots import (
    Curve,
    bland_altman_plot,
    interval_plot,
    strip_plot,
    sweep_plot,
)
from training.report_words import (
    estimate_cells,
    estimate_words,
    figure_table,
    interval_line,
    plural,
    share_cells,
)
from training.slice_metrics import TAU, OverlapRule, SliceCounts
from training.statistics import Estimate, bland_altman, mean

SWEPT: Final[dict[str, Role]] = {
    "sensitivity": "one",
    "specificity": "two",
    "ppv": "three",
    "npv": "four",
}
"""The rates of the threshold sweep and the colours of their lines."""
RULES: Final = {
    OverlapRule.OVERLAP: "share of the reference of the slice",
    OverlapRule.ANY_LESION: "share of any one lesion of the slice",
    OverlapRule.IOU: "IoU of the slice",
}
FEWEST_FOR_CORRELATION: Final = 3
Summary = Mapping[str, Any]


def main_figures(rows: Sequence[Row], summary: Summary, by: Draws) -> Section:
    """What is read first."""
    found = figures(rows, MAIN, by)
    shares = [one for one in found if MEASURES[one.name].scale == "share"]
    blocks: list[Block] = [figure_table(found)]
    blocks.append(
        Plot(
            interval_plot(
                [interval_line(one) for one in shares],
                (0, 1),
                "0 to 1; lines are the widest 95 % interval",
                "Figures between 0 and 1 with their intervals",
            ),
            "Figures between 0 and 1. The dot is the value, the line the widest of its 95 % "
            "intervals.",
        )
    )
    dice = [
        (str(row["case"]), float(row["metrics"]["dsc"]))
        for row in analysed(rows)
        if row["metrics"]["dsc"] is not None
    ]
    if dice:
        blocks.append(
            Plot(
                strip_plot(dice, "Dice (DSC) of each case", "Dice of each case"),
                f"Dice of {plural(len(dice), 'case')}, a dot each. A mean hides the left end.",
            )
        )
    blocks.append(_by_size(summary))
    blocks.append(_isbi(summary["isbi"]))
    return Section("Main figures", tuple(blocks))


def _isbi(isbi: Mapping[str, Any]) -> Words:
    if isbi["n"] < FEWEST_FOR_CORRELATION:
        return Words(
            "ISBI 2015 score: not given. It holds the correlation of volumes across cases, and "
            f"{plural(isbi['n'], 'case')} always correlate by 1, by -1 or not at all."
        )
    return Words(
        f"ISBI 2015 score: {number(isbi['score'])}, of {plural(isbi['n'], 'case')} (parts: DSC "
        f"{number(isbi['dsc'])}, PPV {number(isbi['ppv'])}, false share {number(isbi['lfpr'])}, "
        f"recall {number(isbi['ltpr'])}, correlation of volumes {number(isbi['correlation'])})."
    )


def _by_size(summary: Summary) -> Table:
    strata = summary["any_overlap"]["strata_mm3"]
    return Table(
        (
            Column("lesion size, mm3", number=False),
            Column("met by at least a voxel"),
            Column("95 %, patients drawn"),
            Column("95 %, Wilson"),
            Column("of lesions"),
            Column("predicted that meet none"),
            Column("of predicted"),
        ),
        tuple(
            (
                Cell(name),
                Cell(number(one["recall"]["value"])),
                Cell(between(one["recall"]["bootstrap"]["percentile"])),
                share_cells(round(one["recall"]["part"]), round(one["recall"]["n"]))[1],
                Cell(str(round(one["recall"]["n"]))),
                Cell(number(one["false_share"]["value"])),
                Cell(str(round(one["false_share"]["n"]))),
            )
            for name, one in strata.items()
        ),
        "By size of the lesion in its own mask; lesions of all cases together.",
    )


def two_readings(rows: Sequence[Row], summary: Summary, by: Draws) -> Section:
    """The paper's arithmetic on this cohort, and beside it what the words mean."""
    slices = summary["slices"][OverlapRule.OVERLAP.value]
    balanced = SliceCounts(**slices["one_to_one"]["counts"])
    every = SliceCounts(**slices["all"]["counts"])
    published = as_published(balanced)
    table = []
    for label in RATES:
        printed = published[label]
        right = figure(rows, MEASURES[f"slice_{label}"], by)
        table.append(
            (
                Cell(NAMES[label]),
                Cell(estimate_words(printed) if printed else "not printed"),
                Cell(str(printed.n) if printed else "-"),
                Cell(NAMES[WHAT_IT_IS[label]] if printed else "-"),
                Cell(number(right.value)),
                Cell(between(right.classical)),
                Cell(between(right.by_patient)),
                Cell(str(right.n)),
            )
        )
    return Section(
        "Two readings of the same cohort",
        (
            Words(
                "Left: as the paper computed it. Slices with lesions and as many drawn without "
                f"({balanced.tp + balanced.fn} and {balanced.tn + balanced.fp}), its labels, "
                "Wilson with all those slices as n, voxel figures of detected slices alone. "
                f"Right: as it should be read. All {every.n} slices, each rate with what it is a "
                "share of, intervals from drawing whole patients. The paper's labels are of the "
                "class without lesions: what it calls sensitivity is the specificity."
            ),
            Table(
                (
                    Column("label in the paper", number=False),
                    Column("as the paper computed it"),
                    Column("its n"),
                    Column("what that is", number=False),
                    Column("as it should be read"),
                    Column("95 %, Wilson"),
                    Column("95 %, patients drawn"),
                    Column("n"),
                ),
                tuple(table),
                f"Found: at least {100 * TAU:g} % of the reference of the slice is covered. TP "
                f"{every.tp}, FN {every.fn}, TN {every.tn}, FP {every.fp} of all slices; TP "
                f"{balanced.tp}, FN {balanced.fn}, TN {balanced.tn}, FP {balanced.fp} of the draw.",
            ),
            _voxel_readings(rows, by),
        ),
    )


def _voxel_readings(rows: Sequence[Row], by: Draws) -> Table:
    found = [
        one
        for row in analysed(rows)
        for one in row["slices"]
        if one["positive"] and one["overlap"] > 0 and one["overlap"] >= TAU
    ]
    every = figure(rows, MEASURES["slice_dsc"], by)
    readings: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float | None]], ...] = (
        ("DSC", "dsc", slice_dsc),
        ("PPV", "ppv", lambda one: one["common_voxels"] / one["prediction_voxels"]),
        (
            "IoU",
            "iou",
            lambda one: (
                one["common_voxels"]
                / (one["reference_voxels"] + one["prediction_voxels"] - one["common_voxels"])
            ),
        ),
        (
            "sensitivity",
            "sensitivity",
            lambda one: one["common_voxels"] / one["reference_voxels"],
        ),
        ("HD95, mm", "hd95_mm", lambda one: one["hd95_mm"]),
    )
    table = []
    for label, name, of in readings:
        paper = mean([of(one) for one in found])
        low_high = None if paper.low is None or paper.high is None else (paper.low, paper.high)
        right = figure(rows, MEASURES[name], by)
        whole = every if name == "dsc" else None
        table.append(
            (
                Cell(label),
                Cell(f"{number(paper.value)} ({between(low_high)})"),
                Cell(str(paper.n)),
                Cell(f"{number(whole.value)} ({between(whole.by_patient)})" if whole else "-"),
                Cell(str(whole.n) if whole else "-"),
                Cell(number(right.value)),
                Cell(between(right.by_patient)),
                Cell(str(right.n)),
            )
        )
    return Table(
        (
            Column("voxels", number=False),
            Column("detected slices only, as in the paper"),
            Column("slices"),
            Column("all positive slices, missed as 0"),
            Column("slices"),
            Column("whole cases"),
            Column("95 %, patients drawn"),
            Column("cases"),
        ),
        tuple(table),
        "Detected slices: mean per slice, Student's interval as if slices were independent, HD95 "
        "of the outlines in the slice. Whole cases: in space, every case where it is defined.",
    )


def slice_detail(summary: Summary) -> Section:
    """The threshold sweep, the other rules, and predictive values."""
    overlap = summary["slices"][OverlapRule.OVERLAP.value]
    curves = [
        Curve(
            NAMES[name],
            role,
            tuple(
                (one["tau"], _rate(SliceCounts(one["tp"], one["fn"], one["tn"], one["fp"]), name))
                for one in overlap["sweep"]
            ),
        )
        for name, role in SWEPT.items()
    ]
    counts = SliceCounts(**overlap["all"]["counts"])
    table = []
    for rule, words in RULES.items():
        one = summary["slices"][rule.value]["all"]
        table.append(
            (
                Cell(words),
                *(
                    Cell(
                        f"{number(one[name]['wilson']['value'])} "
                        f"({between(one[name]['bootstrap']['percentile'])}), "
                        f"n {one[name]['wilson']['n']}"
                    )
                    for name in ("sensitivity", "specificity")
                ),
            )
        )
    adjusted = overlap["one_to_one"]["at_prevalence"]
    blocks: list[Block] = [
        Plot(
            sweep_plot(
                curves, TAU, "Sensitivity, specificity, PPV and NPV of slices for every threshold"
            ),
            f"All {counts.n} slices: {counts.tp + counts.fn} with lesions and "
            f"{counts.tn + counts.fp} without. The dashed line is the paper's 10 %. Specificity "
            "does not depend on the threshold.",
        ),
        Table(
            (
                Column("what the overlap is", number=False),
                Column("sensitivity (95 %, patients drawn)"),
                Column("specificity (95 %, patients drawn)"),
            ),
            tuple(table),
            "The paper does not say which overlap it means: the three ways to read it, at 10 %.",
        ),
    ]
    if adjusted is not None:
        blocks.append(
            Words(
                f"{100 * adjusted['prevalence']:.1f} % of the slices of this cohort have lesions. "
                f"At that share the one-to-one draw gives PPV {number(adjusted['ppv'])} and NPV "
                f"{number(adjusted['npv'])}; the PPV and NPV of the draw itself hold for no clinic."
            )
        )
    return Section("Slice by slice", tuple(blocks), printed=True)


def _rate(counts: SliceCounts, name: str) -> float | None:
    part, whole = counts.rates[name]
    return part / whole if whole else None


def volume(rows: Sequence[Row], summary: Summary) -> Section:
    """Bland-Altman, ICC."""
    done = analysed(rows)
    pairs = [
        (
            str(row["case"]),
            float(row["metrics"]["volume_reference_ml"]),
            float(row["metrics"]["volume_prediction_ml"]),
        )
        for row in done
    ]
    found = bland_altman([one for _, one, _ in pairs], [other for _, _, other in pairs])
    low, high = found.lower_limit.value, found.upper_limit.value
    icc = agreement_of_volumes(rows)["volume_icc"]
    pearson = summary["volume"]["pearson"]
    blocks: list[Block] = []
    if pairs:
        blocks.append(
            Plot(
                bland_altman_plot(
                    pairs,
                    found.bias.value,
                    None if low is None or high is None else (low, high),
                    "Difference of the two volumes against their mean",
                ),
                f"Bland-Altman of lesion volume, {plural(len(pairs), 'case')}. Above 0: too much "
                "was marked. Limits of agreement: bias ± 1.96 SD.",
            )
        )
    blocks.append(
        Table(
            (
                Column("volume", number=False),
                Column("value"),
                Column("95 %"),
                Column("cases"),
            ),
            (
                ("bias, ml", *estimate_cells(found.bias)),
                ("lower limit of agreement, ml", *estimate_cells(found.lower_limit)),
                ("upper limit of agreement, ml", *estimate_cells(found.upper_limit)),
                (
                    "ICC(2,1), absolute agreement",
                    Cell(number(icc.value)),
                    Cell(between(icc.classical)),
                    Cell(str(icc.n)),
                ),
                (
                    "ICC(3,1), consistency",
                    *estimate_cells(Estimate(**summary["volume"]["icc_3_1"])),
                ),
                (
                    "Pearson's correlation",
                    *estimate_cells(
                        Estimate(**pearson)
                        if pearson["n"] >= FEWEST_FOR_CORRELATION
                        else Estimate(None, None, None, pearson["n"])
                    ),
                ),
            ),
            "Intervals take cases for independent: with several cases of a patient they are too "
            "narrow, and with fewer than 40 cases so are those of the limits of agreement.",
        )
    )
    return Section("Volume", tuple(blocks))
