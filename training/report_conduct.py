"""How the pipeline behaved: its doubt, its refusals and flags, its time and memory.

What is not there (no probabilities, no quality check) is said in a sentence, so that nobody takes a
gap for a good result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dicom.errors import Outcome
from training import acceptance
from training.cohort_figures import (
    Row,
    analysed,
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
from training.plots import (
    reliability_plot,
)
from training.report_words import (
    plural,
    share_cells,
)

Summary = Mapping[str, Any]


def doubt(rows: Sequence[Row], summary: Summary) -> Section:
    """Calibration, and the members' disagreement against error."""
    blocks: list[Block] = []
    calibration = summary["calibration"]
    if calibration is None:
        blocks.append(
            Words(
                "The run read masks that were made before, without probabilities: there is no "
                "calibration and no disagreement of the members."
            )
        )
        return Section("Calibration and doubt", tuple(blocks), printed=False)
    points = [
        (one["mean_probability"], one["share_true"], one["n"])
        for one in calibration["bins"]
        if one["n"]
    ]
    blocks.append(
        Plot(
            reliability_plot(
                points,
                ("probability of lesion, mean of the bin", "share of voxels that are lesion"),
                "as it should be",
                "Probability against how often it came true",
            ),
            f"{calibration['n']} voxels of the brain, {plural(calibration['cases'], 'case')}. "
            f"Expected calibration error {number(calibration['ece'], 4)}; most voxels are near 0 "
            "and right, so read the curve. Larger dots hold more voxels.",
        )
    )
    sums = [row["disagreement"] for row in analysed(rows) if row["disagreement"] is not None]
    counts = [sum(column) for column in zip(*(one["count"] for one in sums), strict=True)]
    doubts = [sum(column) for column in zip(*(one["sum_probability"] for one in sums), strict=True)]
    wrong = [sum(column) for column in zip(*(one["sum_true"] for one in sums), strict=True)]
    bins = [
        (half / n / 2, bad / n, n) for n, half, bad in zip(counts, doubts, wrong, strict=True) if n
    ]
    if len(bins) > 1:
        blocks.append(
            Plot(
                reliability_plot(
                    bins,
                    (
                        "disagreement: SD of the members' probabilities",
                        "share of voxels that are wrong",
                    ),
                    "",
                    "Disagreement of the members against error",
                ),
                f"{sum(counts)} voxels of the brain, {plural(len(sums), 'case')}. Where the "
                "members disagree more, the mask should be wrong more often; if the curve is flat, "
                "their disagreement warns of nothing.",
            )
        )
    else:
        blocks.append(Words("The members never disagree: a pack of one member has no doubt."))
    return Section("Calibration and doubt", tuple(blocks), printed=False)


def failures(rows: Sequence[Row], summary: Summary) -> Section:
    """Cases not analysed, quality flags, and cases without a lesion."""
    left = acceptance.not_analysed(rows)
    blocks: list[Block] = [
        Words(
            f"{plural(summary['cases']['analysed'], 'case')} of {len(rows)} analysed. Share not "
            f"analysed: {number(left.value)} (95 %, Wilson: {between(left.classical)}; n {left.n})."
            " They are in no other figure."
        )
    ]
    refused = [row for row in rows if row["outcome"] != Outcome.ANALYSED]
    if refused:
        blocks.append(
            Table(
                (
                    Column("case", number=False),
                    Column("outcome", number=False),
                    Column("reason", number=False),
                    Column("explanation", number=False),
                ),
                tuple(
                    (
                        str(row["case"]),
                        str(row["outcome"]).replace("_", " "),
                        str(row["reason"]),
                        str(row["explanation"]),
                    )
                    for row in refused
                ),
            )
        )
    judged = [row for row in rows if row["quality"] is not None]
    if judged:
        flags = Counter(
            (flag["code"], flag["severity"])
            for row in judged
            for flag in {one["code"]: one for one in row["quality"]["flags"]}.values()
        )
        verdicts = Counter(row["quality"]["verdict"] for row in judged)
        blocks.append(
            Table(
                (
                    Column("quality", number=False),
                    Column("severity", number=False),
                    Column("cases"),
                    Column("share"),
                    Column("95 %, Wilson"),
                ),
                tuple(
                    (
                        name,
                        severity,
                        Cell(f"{count} of {len(judged)}"),
                        *share_cells(count, len(judged)),
                    )
                    for name, severity, count in (
                        *(
                            (f"verdict {name}", "-", count)
                            for name, count in sorted(verdicts.items())
                        ),
                        *((code, severity, n) for (code, severity), n in sorted(flags.items())),
                    )
                ),
                "Quality is judged by the node's own rules, without the reference.",
            )
        )
    else:
        blocks.append(Words("Masks were read, not made: there is no quality check to count."))
    empty = summary["reference_empty"]
    blocks.append(
        Words(
            f"Cases without a lesion in the reference: {empty['n']}; of them "
            f"{empty['correct_negatives']} without a mark. False lesions in such a case, mean: "
            f"{number(empty['false_lesions']['value'])} (n {empty['false_lesions']['n']}). False "
            f"volume, ml, mean: {number(empty['false_ml']['value'])} (n {empty['false_ml']['n']})."
            if empty["n"]
            else "Every analysed case has a lesion in its reference: what the pipeline marks in a "
            "healthy head, this run does not show."
        )
    )
    return Section("Failures, quality flags and cases without lesions", tuple(blocks))


def time_and_memory(rows: Sequence[Row]) -> Section:
    """Of each case."""
    stages: dict[str, list[float]] = {}
    for row in rows:
        for stage, seconds in (row["timing_s"] or {}).items():
            stages.setdefault(stage, []).append(float(seconds))
    lines = [
        ("whole case, s", [float(row["seconds"]) for row in rows]),
        *((f"{stage}, s", some) for stage, some in stages.items()),
        (
            "peak memory of the process, MiB",
            [float(row["peak_memory_mib"]) for row in rows if row["peak_memory_mib"] is not None],
        ),
    ]
    return Section(
        "Time and memory",
        (
            Table(
                (
                    Column("", number=False),
                    Column("least"),
                    Column("median"),
                    Column("most"),
                    Column("cases"),
                ),
                tuple(
                    (
                        name,
                        Cell(number(min(some, default=None), 1)),
                        Cell(number(median(some) if some else None, 1)),
                        Cell(number(max(some, default=None), 1)),
                        Cell(str(len(some))),
                    )
                    for name, some in lines
                ),
                "Whole case: reading, segmenting and measuring, on the machine of the run and "
                "beside whatever else ran there.",
            ),
        ),
        printed=False,
    )
