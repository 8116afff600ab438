"""Single cases: examples, a line for each, and cohorts that stand aside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dicom.errors import Outcome
from training.cohort_figures import (
    MAIN,
    Draws,
    Row,
    analysed,
    figures,
)
from training.content import (
    Cell,
    Column,
    Picture,
    Pictures,
    Section,
    Table,
    Words,
    number,
    sorted_by,
)
from training.report_words import (
    figure_table,
    plural,
)


def overlays(rows: Sequence[Row], folder: Path) -> Section:
    """Best, median, worst; the largest false lesion and the largest missed one."""
    shown: list[Picture] = []
    drawn = [row for row in analysed(rows) if row["pictures"]]
    by_dsc = sorted(
        (row for row in drawn if row["metrics"]["dsc"] is not None),
        key=lambda row: (row["metrics"]["dsc"], row["case"]),
    )
    if by_dsc:
        # Of two cases none is in the middle, and of one none is the best.
        places = (("best", -1), ("median", (len(by_dsc) - 1) // 2), ("worst", 0))
        shown_of = {1: places[:1], 2: (places[0], places[2])}
        for name, place in shown_of.get(len(by_dsc), places):
            row = by_dsc[place]
            shown += _shown(
                row, "overview", f"{name} Dice, {number(row['metrics']['dsc'])}", folder
            )
    for kind, name in (("false", "largest false lesion"), ("missed", "largest missed lesion")):
        found = [
            (one["volume_ml"], row)
            for row in drawn
            for one in row["pictures"]
            if one["kind"] == kind
        ]
        if found:
            ml, row = max(found, key=lambda one: (one[0], one[1]["case"]))
            shown += _shown(row, kind, f"{name}, {ml:.2f} ml", folder)
    if not shown:
        return Section(
            "Examples",
            (Words("The run had no images (flair.nii.gz), or none could be drawn: no pictures."),),
        )
    return Section(
        "Examples",
        (
            Words(
                "Blue: the reference. Amber: the prediction, drawn over it. White "
                "corners: the lesion that is meant. Slices as acquired."
            ),
            Pictures(tuple(shown)),
        ),
    )


def _shown(row: Row, kind: str, title: str, folder: Path) -> list[Picture]:
    return [
        Picture(
            folder / one["file"],
            f"{row['case']}, slice {one['slice']} of {one['of_slices']}",
            title,
        )
        for one in row["pictures"]
        if one["kind"] == kind and (folder / one["file"]).is_file()
    ]


def every_case(rows: Iterable[Row], folder: Path) -> Section:
    """A line for each case, sortable, with its picture."""
    columns = (
        ("Dice", ("dsc",), 3),
        ("HD95, mm", ("hd95_mm",), 1),
        ("lesion F1", ("lesion", "f1"), 3),
        ("lesions", ("any_overlap", "reference_count"), 0),
        ("met", ("any_overlap", "found_count"), 0),
        ("false", ("any_overlap", "false_count"), 0),
        ("reference, ml", ("volume_reference_ml",), 2),
        ("predicted, ml", ("volume_prediction_ml",), 2),
    )
    table = []
    for row in rows:
        pictures = _shown(row, "overview", "", folder)
        cells = [
            sorted_by(_at(row["metrics"], path), digits) if row["metrics"] else Cell("-")
            for _, path, digits in columns
        ]
        quality = row["quality"]["verdict"] if row["quality"] else "-"
        outcome = "analysed" if row["outcome"] == Outcome.ANALYSED else str(row["reason"])
        table.append(
            (
                pictures[0].path if pictures else Cell(""),
                Cell(str(row["case"])),
                Cell(str(row["patient"])),
                Cell(outcome, tone="plain" if row["outcome"] == Outcome.ANALYSED else "bad"),
                Cell(quality),
                *cells,
                sorted_by(float(row["seconds"]), 1),
            )
        )
    return Section(
        "Every case",
        (
            Table(
                (
                    Column("", number=False),
                    Column("case", number=False),
                    Column("patient", number=False),
                    Column("outcome", number=False),
                    Column("quality", number=False),
                    *(Column(title) for title, _, _ in columns),
                    Column("s"),
                ),
                tuple(table),
                "A click on a head sorts. Names are those of the folders and of patients.csv: use "
                "pseudonyms there. Lesions: any overlap, every size.",
                sortable=True,
                name="cases",
            ),
        ),
        printed=False,
    )


def aside(title: str, words: str, rows: Sequence[Row], by: Draws) -> Section:
    """The figures of cases that are in no main figure."""
    done = analysed(rows)
    patients = len({row["patient"] for row in done})
    return Section(
        title,
        (
            Words(
                f"{words} {plural(len(done), 'case')} of {len(rows)} analysed, of "
                f"{plural(patients, 'patient')}.",
                "caution",
            ),
            figure_table(figures(rows, MAIN, by)),
        ),
    )


def _at(value: Any, path: Sequence[str]) -> float | None:  # noqa: ANN401  # JSON
    for name in path:
        value = value[name]
    return None if value is None else float(value)
