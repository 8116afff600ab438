"""The comparison of a month as a page, a PDF, CSV and JSON, in the form of the validation report.

    DIR/drift.html, DIR/drift.pdf, DIR/drift.json
    DIR/drift.csv     every number and rate of the month
    DIR/months.csv    what the node had in each month

The same results and the same run give the same bytes. No identifier of a study or a job is in it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from pydantic import JsonValue

from dicom.errors import Outcome
from training.content import (
    Block,
    Cell,
    Column,
    Document,
    Plot,
    Section,
    Table,
    Tone,
    Verdict,
    Words,
    number,
)
from training.drift import (
    ALPHA,
    FEWEST,
    LARGE_DELTA,
    LARGE_DIFFERENCE,
    NUMBERS,
    OUTSIDE_SHARE,
    RANGE,
    Compared,
    Drift,
    Judgement,
    Live,
    Seen,
    compare,
    read_live,
    validated_cases,
)
from training.plots import month_plot
from training.report import Run
from training.report_words import plural
from training.validate import write_whole
from training.whole_files import write_text

TONES: Final[dict[Judgement, Tone]] = {
    "inside": "good",
    "outside": "bad",
    "too few to say": "caution",
    "not known": "plain",
}
PLOTTED: Final = ("lesion volume", "lesions", "slice spacing")


def write(data_dir: Path, run: Run, output: Path, month: str | None = None) -> Drift:
    """Compare, and write everything.

    Args:
        data_dir: Of the live node.
        run: The validation.
        output: Folder for the report.
        month: To be judged; None: the latest.

    Raises:
        NoLiveResultsError, NoSuchMonthError: There is nothing to compare.
    """
    from training.report_html import to_html
    from training.report_print import to_pdf

    live, validated = read_live(data_dir), validated_cases(run.rows)
    drift = compare(live, validated, month)
    document = build(drift, live, validated, run)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "drift.json", _content(drift, live, validated, run))
    write_text(output / "drift.html", to_html(document))
    (output / "drift.pdf").write_bytes(to_pdf(document))
    write_text(output / "drift.csv", _csv([one.as_json() for one in _all(drift)]))
    write_text(output / "months.csv", _csv(_months(live)))
    return drift


def build(drift: Drift, live: Live, validated: Sequence[Seen], run: Run) -> Document:
    """What is said."""
    models = sorted({_model(row["model"]) for row in run.rows if row["model"]})
    return Document(
        "Drift report",
        f"{drift.month}, {plural(drift.live_n, 'series', 'series')} of the node against "
        f"{plural(len(validated), 'validated case')} ({' and '.join(models) or 'no model'})",
        (
            _verdict(drift, live, validated),
            _findings(drift, live),
            _rates(drift),
            _by_month(live),
            _how(run, validated),
        ),
        f"flairnode {version('flairnode')}",
    )


def _verdict(drift: Drift, live: Live, validated: Sequence[Seen]) -> Section:
    words = {
        "inside": f"In {drift.month} the node worked within what it was validated on.",
        "outside": f"In {drift.month} the node left what it was validated on: somebody has to "
        "look, and the figures of the validation do not speak for these results until then.",
        "too few to say": f"Nothing can be said of {drift.month} yet.",
        "not known": f"Nothing can be said of {drift.month}.",
    }
    blocks: list[Block] = [
        Verdict(drift.judgement, words[drift.judgement], TONES[drift.judgement]),
        *(Words(f"{one[:1].upper()}{one[1:]}.") for one in drift.because),
        Words(
            f"{plural(drift.live_n, 'series', 'series')} of the month are compared. Series that "
            "were skipped (no FLAIR) leave no result and are not counted. No reference is needed "
            "and none is used: this cannot show that masks are right, only that the node sees and "
            "finds what it did when somebody had looked."
        ),
    ]
    if drift.other_pack:
        blocks.append(
            Words(
                f"{plural(drift.other_pack, 'result is', 'results are')} of another pack than the "
                "validated one and left out: validate that pack too.",
                "caution",
            )
        )
    for scanner, count in drift.new_scanners.items():
        blocks.append(
            Words(
                f"{scanner}: {plural(count, 'series', 'series')}, and no validated case.", "caution"
            )
        )
    for count, said in (
        (live.unreadable, "damaged and not read"),
        (live.replaced, "replaced by a later one of the same series, which is counted"),
    ):
        if count:
            blocks.append(
                Words(f"{plural(count, 'stored result was', 'stored results were')} {said}.")
            )
    if len(validated) < FEWEST:
        blocks.append(
            Words(
                f"{plural(len(validated), 'validated case')}: fewer than {FEWEST}, so no range can "
                "be drawn from them and nothing is called outside.",
                "caution",
            )
        )
    return Section("Verdict of the month", tuple(blocks))


def _findings(drift: Drift, live: Live) -> Section:
    rows = tuple(
        (
            Cell(f"{one.name}, {one.unit}" if one.unit else one.name),
            Cell(_brief(one.validated, one.validated_n)),
            Cell(_range(one)),
            Cell(_brief(one.live, one.live_n)),
            Cell("-" if one.beyond is None else f"{one.beyond} of {one.live_n}"),
            Cell(number(one.effect, 2) if one.effect is not None else "-"),
            Cell(_p(one.p)),
            _judgement(one),
        )
        for one in drift.numbers
    )
    low, high = RANGE
    blocks: list[Block] = [
        Table(
            (
                Column("", number=False),
                Column("validated, median [n]"),
                Column(f"{low:g} to {high:g} %"),
                Column("month, median [n]"),
                Column("beyond"),
                Column("delta"),
                Column("p"),
                Column("judgement", number=False),
            ),
            rows,
            f"Outside: p below {ALPHA:g} (rank test of Mann and Whitney, adjusted by Holm for all "
            f"tests of the month) and a Cliff's delta of at least {LARGE_DELTA:g}; or so many "
            f"cases beyond the validated range that the lower bound of their share (Wilson) is "
            f"above {100 * OUTSIDE_SHARE:g} %. Fewer than {FEWEST} cases on either side: too few "
            "to say.",
        )
    ]
    for one, (name, _, of) in zip(drift.numbers, NUMBERS, strict=True):
        if name in PLOTTED and one.low is not None and one.high is not None and one.live_n:
            months = [
                (month, [v for s in live.seen if s.month == month and (v := of(s)) is not None])
                for month in live.months
            ]
            label = f"{name}, {one.unit}" if one.unit else name
            blocks.append(
                Plot(
                    month_plot(months, (one.low, one.high), one.validated, label),
                    f"{name[:1].upper()}{name[1:]}, a dot for each series. Dashed: the validated "
                    f"{low:g} to {high:g} % (n {one.validated_n}); the line between is their "
                    "median.",
                )
            )
    return Section("Findings and acquisition", tuple(blocks))


def _rates(drift: Drift) -> Section:
    return Section(
        "Rates",
        (
            Table(
                (
                    Column("", number=False),
                    Column("validated [n]"),
                    Column("month [n]"),
                    Column("difference"),
                    Column("p"),
                    Column("judgement", number=False),
                ),
                tuple(
                    (
                        Cell(one.name),
                        Cell(_median(one.validated, one.validated_n)),
                        Cell(_median(one.live, one.live_n)),
                        Cell(number(one.effect) if one.effect is not None else "-"),
                        Cell(_p(one.p)),
                        _judgement(one),
                    )
                    for one in drift.rates
                ),
                f"Outside: p below {ALPHA:g} (Fisher's exact test, adjusted likewise) and a "
                f"difference of at least {LARGE_DIFFERENCE:g}. Verdicts and flags are shares of "
                "the series whose quality was judged.",
            ),
        ),
    )


def _by_month(live: Live) -> Section:
    return Section(
        "Month by month",
        (
            Table(
                (
                    Column("month", number=False),
                    *(Column(name) for name in ("series", "analysed", "not analysed", "failed")),
                    Column("review or fail"),
                    Column("median volume, ml [n]"),
                    Column("median lesions [n]"),
                ),
                tuple(
                    (
                        str(one["month"]),
                        *(
                            Cell(str(one[name]))
                            for name in ("series", "analysed", "not_analysed", "failed_or_held")
                        ),
                        Cell(str(one["review_or_fail"])),
                        Cell(_median(one["median_volume_ml"], one["analysed"])),
                        Cell(_median(one["median_lesions"], one["analysed"])),
                    )
                    for one in _months(live)
                ),
                "By the day on which the node ordered the analysis, UTC, whatever the pack.",
            ),
        ),
    )


def _how(run: Run, validated: Sequence[Seen]) -> Section:
    packs = sorted({one.pack_digest for one in validated if one.pack_digest})
    rows = [
        ("validated packs, SHA-256", ", ".join(packs) or "none: masks were read"),
        ("validated cases measured", _days(run)),
        ("report by", f"flairnode {version('flairnode')}"),
    ]
    return Section(
        "How it was made",
        (
            Table(
                (Column("", number=False), Column("", number=False)),
                tuple((name, Cell(value)) for name, value in rows),
            ),
        ),
    )


def _days(run: Run) -> str:
    days = sorted(str(row["measured_at"])[:10] for row in run.rows)
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def _months(live: Live) -> list[dict[str, Any]]:
    found = []
    for month in live.months:
        seen = [one for one in live.seen if one.month == month]
        done = [one for one in seen if one.outcome == Outcome.ANALYSED]
        volumes = [one.volume_ml for one in done if one.volume_ml is not None]
        counts = [one.lesions for one in done if one.lesions is not None]
        found.append(
            {
                "month": month,
                "series": len(seen),
                "analysed": len(done),
                "not_analysed": sum(one.outcome == Outcome.NOT_ANALYSED for one in seen),
                "failed_or_held": sum(one.outcome in ("failed", "held") for one in seen),
                "review_or_fail": sum(one.verdict in ("review", "fail") for one in seen),
                "median_volume_ml": median(volumes) if volumes else None,
                "median_lesions": float(median(counts)) if counts else None,
            }
        )
    return found


def _content(drift: Drift, live: Live, validated: Sequence[Seen], run: Run) -> dict[str, JsonValue]:
    return {
        "month": drift.month,
        "verdict": drift.judgement,
        "because": list(drift.because),
        "live_series": drift.live_n,
        "validated_cases": len(validated),
        "other_pack": drift.other_pack,
        "new_scanners": dict(drift.new_scanners),
        "numbers": [one.as_json() for one in drift.numbers],
        "rates": [one.as_json() for one in drift.rates],
        "months": list(_months(live)),
        "unreadable": live.unreadable,
        "replaced": live.replaced,
        "rules": {
            "alpha": ALPHA,
            "fewest": FEWEST,
            "large_delta": LARGE_DELTA,
            "large_difference": LARGE_DIFFERENCE,
            "outside_share": OUTSIDE_SHARE,
            "range_percentiles": list(RANGE),
        },
        "validated_rows_sha256": dict(run.sha256),
        "report_by": {"flairnode": version("flairnode")},
    }


def _all(drift: Drift) -> tuple[Compared, ...]:
    return (*drift.numbers, *drift.rates)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return written.getvalue()


def _median(value: float | None, n: int) -> str:
    return f"{number(value)} [{n}]" if value is not None else f"- [{n}]"


def _brief(value: float | None, n: int) -> str:
    """Four digits: a repetition time has no decimals worth printing."""
    return f"{value:.4g} [{n}]" if value is not None else f"- [{n}]"


def _range(one: Compared) -> str:
    if one.low is None or one.high is None:
        return "-"
    return f"{one.low:.4g} to {one.high:.4g}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else number(value)


def _judgement(one: Compared) -> Cell:
    known = one.judgement != "not known"
    said = f"{one.judgement}{': ' if one.because else ''}{one.because}" if known else one.because
    return Cell(said, tone=TONES[one.judgement])


def _model(model: Mapping[str, Any]) -> str:
    return f"{model['name']} {model.get('version', '')}".strip()
