"""Who differs from whom: folds, centres, subgroups, repeat scans, readers, another pack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any, Final

from training.cohort_figures import (
    BRIEF,
    FEWEST_FOR_LOAD,
    MAIN,
    MEASURES,
    Draws,
    Row,
    analysed,
    by_column,
    difference,
    figure,
    figures,
    says,
    subgroups,
)
from training.content import (
    Block,
    Cell,
    Column,
    Section,
    Table,
    Words,
    between,
    number,
)
from training.report_words import (
    label_and_unit,
    plural,
    value_and_interval,
)
from training.statistics import Bootstrap, mean
from training.summary import FEW_PATIENTS

REPEATABILITY: Final = 1.96 * sqrt(2)
"""Times the standard deviation within a patient: what two scans differ by in 95 % of cases."""


def folds_and_centres(rows: Sequence[Row], by: Draws) -> Section:
    """The fold table and the centre table, where patients.csv gives them."""
    blocks: list[Block] = []
    folds = by_column(rows, "fold")
    if folds:
        of_folds = {name: figure(some, MEASURES["dsc"], by) for name, some in folds.items()}
        whole = mean([one.value for one in of_folds.values()])
        blocks.append(
            Table(
                (
                    Column("fold", number=False),
                    Column("Dice (DSC)"),
                    Column("95 %, patients drawn"),
                    Column("cases"),
                    Column("patients"),
                ),
                (
                    *(
                        (
                            name,
                            Cell(number(one.value)),
                            Cell(between(one.by_patient)),
                            Cell(str(one.n)),
                            Cell(str(one.patients)),
                        )
                        for name, one in of_folds.items()
                    ),
                    (
                        f"mean of {plural(whole.n, 'fold')}",
                        Cell(number(whole.value)),
                        Cell(f"SD {number(whole.sd)}"),
                        Cell(str(sum(one.n for one in of_folds.values()))),
                        Cell(str(sum(one.patients for one in of_folds.values()))),
                    ),
                ),
                "SD of the folds' means, with n - 1. Folds share training data: their SD is no "
                "standard error.",
            )
        )
    else:
        blocks.append(Words("No fold is given in patients.csv: no table of folds."))
    centres = by_column(rows, "centre")
    blocks.append(
        _brief_table("centre", centres, by)
        if centres
        else Words("No centre is given in patients.csv: no table of centres.")
    )
    return Section("Folds and centres", tuple(blocks))


def of_subgroups(rows: Sequence[Row], by: Draws) -> Section:
    """By scanner, field strength, spacing, sex, age, phenotype and load."""
    found = subgroups(rows)
    blocks: list[Block] = [_brief_table(name, groups, by) for name, groups in found.items()]
    blocks.append(
        Words(
            "Known of no case, so without a table: "
            + (
                ", ".join(
                    name
                    for name in ("scanner", "field strength", "sex", "age", "phenotype")
                    if name not in found
                )
                or "nothing"
            )
            + (
                ""
                if "lesion load" in found
                else f". Thirds by lesion load need {FEWEST_FOR_LOAD} cases with lesions"
            )
            + ". Many small groups are looked at: some differ by chance."
        )
    )
    return Section("Subgroups", tuple(blocks), printed=False)


def _brief_table(what: str, groups: Mapping[str, Sequence[Row]], by: Draws) -> Table:
    return Table(
        (
            Column(what, number=False),
            Column("cases"),
            Column("patients"),
            *(Column(label_and_unit(name)) for name in BRIEF),
        ),
        tuple(
            (
                name,
                Cell(f"{len(analysed(some))} of {len(some)}"),
                Cell(str(len({row["patient"] for row in analysed(some)}))),
                *(value_and_interval(one) for one in figures(some, BRIEF, by)),
            )
            for name, some in groups.items()
        ),
        "n in brackets; below, the 95 % interval from drawing patients, where there are two. "
        "Cases: analysed, of all.",
    )


def repeats_and_readers(rows: Sequence[Row], by: Draws) -> Section:
    """Repeat scans and the second reader, or a sentence that there are none."""
    return Section(
        "Repeat scans and a second reader",
        (*_repeats(analysed(rows)), *_readers(analysed(rows), by)),
        printed=False,
    )


def _repeats(done: Sequence[Row]) -> Iterator[Block]:
    named = {row["case"]: row for row in done}
    pairs = [
        (named[first], row) for row in done if (first := row["about"].get("repeat_of")) in named
    ]
    if not pairs:
        yield Words(
            "No case is given as a repeat of another (repeat_of): how far two scans of one day "
            "differ is not known, and so neither is what change can be told from noise."
        )
        return
    volumes = [
        tuple(float(row["metrics"]["volume_prediction_ml"]) for row in pair) for pair in pairs
    ]
    differences = [second - first for first, second in volumes]
    within = sqrt(sum(one**2 for one in differences) / 2 / len(pairs))
    yield Table(
        (
            Column("scan", number=False),
            Column("repeat", number=False),
            Column("predicted, ml"),
            Column("in the repeat, ml"),
            Column("difference, ml"),
        ),
        tuple(
            (
                str(pair[0]["case"]),
                str(pair[1]["case"]),
                Cell(number(first)),
                Cell(number(second)),
                Cell(number(apart)),
            )
            for pair, (first, second), apart in zip(pairs, volumes, differences, strict=True)
        ),
        f"{plural(len(pairs), 'pair')}: mean difference "
        f"{number(sum(differences) / len(pairs))} ml, standard deviation within a patient "
        f"{number(within)} ml, repeatability coefficient {number(REPEATABILITY * within)} ml "
        "(two scans of an unchanged patient differ by less in 95 %).",
    )


def _readers(done: Sequence[Row], by: Draws) -> Iterator[Block]:
    both = [row for row in done if row["second_reader"] is not None]
    if not both:
        yield Words(
            "No case has a second reader (second.nii.gz): how far readers agree, which is the most "
            "that can be asked, is not known."
        )
        return
    readers = [{**row, "metrics": row["second_reader"]["against_reference"]} for row in both]
    second = [{**row, "metrics": row["second_reader"]["against_prediction"]} for row in both]
    names = ("dsc", "lesion_f1", "nsd_in_plane", "volume_error_ml")
    yield Table(
        (
            Column(f"{plural(len(both), 'case')} with two readers", number=False),
            Column("second reader and reference"),
            Column("prediction and reference"),
            Column("prediction and second reader"),
        ),
        tuple(
            (
                label_and_unit(name),
                *(
                    value_and_interval(figure(some, MEASURES[name], by))
                    for some in (readers, both, second)
                ),
            )
            for name in names
        ),
        "The first column is the ceiling: a prediction that agrees with the reference better than "
        "readers agree with each other has learned the habits of one reader.",
    )


def _said(apart: Bootstrap) -> str:
    if apart.clusters < FEW_PATIENTS:
        return f"cannot be told from {plural(apart.clusters, 'patient')}"
    if apart.percentile is None or apart.percentile[0] <= 0 <= apart.percentile[1]:
        return "no difference shown"
    return "differs"


def comparison(
    rows: Sequence[Row], baseline: Sequence[Row], name: str, by: Draws
) -> tuple[Section, list[dict[str, Any]]]:
    """Two runs on the same cases; what is not the same case in both is left out, and said."""
    theirs = {row["case"]: row for row in analysed(baseline)}
    ours = analysed(rows)
    pairs = [
        (row, theirs[row["case"]])
        for row in ours
        if row["case"] in theirs
        and row["sha256"]["reference.nii.gz"] == theirs[row["case"]]["sha256"]["reference.nii.gz"]
        and row["nsd_tolerance_mm"] == theirs[row["case"]]["nsd_tolerance_mm"]
        # A pack is not compared on cases that it has seen with one that has not.
        and says(row, "in_training") == says(theirs[row["case"]], "in_training")
    ]
    said = Words(
        f"Compared with {name}: {plural(len(pairs), 'case')} with the same reference, analysed in "
        "both, in the training of both packs or of neither. Left out: "
        f"{len(ours) - len(pairs)} of this run, {len(theirs) - len(pairs)} of the baseline."
    )
    if not pairs:
        return Section("Comparison with a baseline", (said,)), []
    table, found = [], []
    for measure in (MEASURES[name] for name in MAIN):
        # A mean of one run must not hold a case that the other has no value for.
        alike = [
            pair
            for pair in pairs
            if measure.counts != "cases" or all(measure.of(row)[1] for row in pair)
        ]
        first, second = [one for one, _ in alike], [other for _, other in alike]
        apart = difference(first, second, measure, by)
        one, other = (figure(some, measure, by) for some in (first, second))
        table.append(
            (
                label_and_unit(measure.name),
                Cell(f"{number(one.value)} [{one.n}]"),
                Cell(f"{number(other.value)} [{other.n}]"),
                Cell(number(apart.value)),
                Cell(between(apart.percentile)),
                Cell(_said(apart)),
            )
        )
        found.append({"measure": measure.name, "cases": len(alike), **apart.as_json()})
    return (
        Section(
            "Comparison with a baseline",
            (
                said,
                Table(
                    (
                        Column("measure", number=False),
                        Column("this run [n]"),
                        Column("baseline [n]"),
                        Column("difference"),
                        Column("95 %, patients drawn, paired"),
                        Column("", number=False),
                    ),
                    tuple(table),
                    "A mean is of the cases where both runs have a value. Both are computed on the "
                    "same patients in every draw. An interval that holds "
                    "0 does not show that the two are alike; with few patients it is too narrow.",
                ),
            ),
        ),
        found,
    )
