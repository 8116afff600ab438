"""`flairnode validate report`: from the files of a run to a page, a PDF, tables and JSON.

    DIR/report.html    everything; opens without a network, sorts, prints
    DIR/report.pdf     verdict, main tables, plots
    DIR/report.json    every figure with its n and intervals; versions, digests, settings, seeds
    DIR/cases.csv, slices.csv, lesions.csv

No image is read: the pictures are those that the run drew. The same run gives the same bytes: the
only dates are those of its measurements.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

from pydantic import JsonValue

from dicom.errors import EmptyInputError, SeriesError, UnreadableError
from training import (
    acceptance,
    report_cases,
    report_conduct,
    report_figures,
    report_groups,
    report_opening,
    report_training,
)
from training.cohort_figures import MEASURES, Cohorts, Draws, figures, split
from training.content import Cell, Column, Document, Section, Table, Words
from training.report_words import plural
from training.statistics import DRAWS
from training.summary import summarise
from training.training_log import FoldLog
from training.validate import MEASURES_REVISION, PICTURES, ROWS, RUN, write_whole

Row = dict[str, Any]
DEFAULT_SEED: Final = 20250101
CASE_COLUMNS: Final = (
    "case",
    "patient",
    "outcome",
    "reason",
    "explanation",
    "seconds",
    "peak_memory_mib",
    "measured_at",
)
NOT_FLAT: Final = ("any_overlap.strata_mm3", "isbi_parts")
"""Of the measures: left to `report.json` and `lesions.csv`."""


class OtherRevisionError(SeriesError):
    """Rows of other measures than ours: their numbers may mean something else."""

    reason = "other-revision"


@dataclass(frozen=True, slots=True)
class Run:
    """The rows of a run, and what is known of it as a whole."""

    folder: Path
    rows: tuple[Row, ...]
    """Without their lesions, which only `lesions.csv` needs."""
    seed: int
    unmeasured: tuple[str, ...] = ()
    """Asked for, and without a row."""
    left_over: tuple[str, ...] = ()
    """Rows of cases that the last run was not asked for."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each row's file."""
    cohort: Mapping[str, JsonValue] = field(default_factory=dict)
    """Where its cases came from."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is written."""

    document: Document
    content: dict[str, JsonValue]
    verdict: acceptance.Verdict | None
    cohorts: Cohorts


def read_run(folder: Path, on_row: RowTables | None = None) -> Run:
    """Read the rows of a run.

    Args:
        folder: Of `flairnode validate run --output`.
        on_row: Told of each row while it is whole.

    Raises:
        EmptyInputError: No row.
        UnreadableError: A row is no JSON object.
        OtherRevisionError: A row of another revision of the measures.
    """
    paths = sorted((folder / ROWS).glob("*.json"))
    asked, seed, cohort = _asked(folder / RUN)
    left_over = tuple(path.stem for path in paths if asked is not None and path.stem not in asked)
    rows, digests = [], {}
    for path in paths:
        if path.stem in left_over:
            continue
        content = path.read_bytes()
        row = _row(path, content)
        digests[str(row["case"])] = hashlib.sha256(content).hexdigest()
        if on_row is not None:
            on_row.add(row)
        row.pop("lesions")
        rows.append(row)
    if not rows:
        raise EmptyInputError(
            f"{folder} holds no measured case: give the folder of `flairnode validate run --output`"
        )
    measured = {str(row["case"]) for row in rows}
    return Run(
        folder,
        tuple(rows),
        seed,
        tuple(name for name in asked or () if name not in measured),
        left_over,
        digests,
        cohort,
    )


def _asked(path: Path) -> tuple[list[str] | None, int, dict[str, JsonValue]]:
    """Cases, seed and cohort of the last run; no cases where the run did not write them."""
    if not path.is_file():
        return None, DEFAULT_SEED, {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return [str(name) for name in run["cases"]], int(run["seed"]), dict(run.get("cohort", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"{path} is not what `flairnode validate run` wrote") from error


def _row(path: Path, content: bytes) -> Row:
    try:
        row = json.loads(content)
    except ValueError as error:
        raise UnreadableError(f"{path} is no JSON: measure the case again") from error
    if not isinstance(row, dict) or row.get("measures_revision") != MEASURES_REVISION:
        given = row.get("measures_revision") if isinstance(row, dict) else None
        raise OtherRevisionError(
            f"{path} was measured by revision {given}, this is {MEASURES_REVISION}: run "
            "`flairnode validate run` again"
        )
    return row


# --- the report ------------------------------------------------------------------------------


def build(
    run: Run,
    *,
    declaration: tuple[acceptance.Declaration, str] | None = None,
    baseline: Run | None = None,
    folds: Sequence[FoldLog] = (),
    draws: int = DRAWS,
) -> Report:
    """Everything a report says of a run.

    Args:
        run: From `read_run`.
        declaration: From `acceptance.read_declaration`.
        baseline: Another run, on the same cases.
        folds: How the pack was trained, from `training_log.read_training`.
        draws: Of each bootstrap.
    """
    by = Draws(run.seed, draws)
    cohorts = split(run.rows)
    main = cohorts.main
    summary: dict[str, Any] = summarise(main, seed=by.seed, draws=by.draws)
    verdict = (
        acceptance.judge(*declaration, cohorts, by, len(run.unmeasured)) if declaration else None
    )
    compared: list[dict[str, Any]] = []
    sections: list[Section] = []
    if verdict is not None:
        section = report_opening.verdict(verdict)
        plot = report_opening.judged_plot(verdict)
        blocks = (*section.blocks, plot) if plot else section.blocks
        sections.append(Section(section.title, blocks))
    sections.append(
        report_opening.what_it_can_show(
            main, cohorts.in_training, cohorts.semi_synthetic, run.unmeasured, run.left_over
        )
    )
    if doubled := report_opening.given_twice(run.rows):
        sections.append(doubled)
    if main:
        sections += _of_main(main, summary, by)
        if baseline is not None:
            section, compared = report_groups.comparison(
                main, _real(baseline.rows), _pack(baseline.rows), by
            )
            sections.append(section)
        sections.append(report_cases.overlays(main, run.folder / PICTURES))
    if folds:
        sections.append(report_training.training(folds))
    sections += _asides(cohorts, by)
    sections.append(report_cases.every_case(run.rows, run.folder / PICTURES))
    made = _made(run, by, declaration[1] if declaration else None, baseline)
    sections.append(_how_it_was_made(made))
    days = sorted(str(row["measured_at"])[:10] for row in run.rows)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    document = Document(
        "Validation report",
        f"{_pack(run.rows)}; {plural(len(run.rows), 'case')}, measured {when}",
        tuple(sections),
        f"flairnode {version('flairnode')}",
    )
    content: dict[str, JsonValue] = {
        "made": made,
        "acceptance": None if verdict is None else verdict.as_json(),
        "main_cohort": "held_out" if cohorts.held_out else "in_training" if main else "none",
        "figures": {
            name: None
            if not rows
            else {one.name: one.as_json() for one in figures(rows, MEASURES, by)}
            for name, rows in (
                ("held_out", cohorts.held_out),
                ("in_training", cohorts.in_training),
                ("semi_synthetic", cohorts.semi_synthetic),
            )
        },
        "summary_of_main_cohort": summary,
        "comparison": list(compared),
        "training": list(report_training.as_json(folds)),
    }
    return Report(document, content, verdict, cohorts)


def _of_main(
    main: Sequence[Mapping[str, Any]], summary: dict[str, Any], by: Draws
) -> Iterator[Section]:
    if summary["cases"]["analysed"]:
        yield report_figures.main_figures(main, summary, by)
        yield report_figures.two_readings(main, summary, by)
        yield report_figures.slice_detail(summary)
        yield report_figures.volume(main, summary)
        yield report_groups.folds_and_centres(main, by)
        yield report_groups.of_subgroups(main, by)
        yield report_conduct.doubt(main, summary)
    yield report_conduct.failures(main, summary)
    yield report_conduct.time_and_memory(main)
    if summary["cases"]["analysed"]:
        yield report_groups.repeats_and_readers(main, by)


def _asides(cohorts: Cohorts, by: Draws) -> Iterator[Section]:
    if cohorts.held_out and cohorts.in_training:
        yield report_cases.aside(
            "Cases of the pack's training",
            "The pack has seen these patients: the figures flatter it.",
            cohorts.in_training,
            by,
        )
    if cohorts.semi_synthetic:
        yield report_cases.aside(
            "Semi-synthetic cases",
            "Lesions painted into real scans: no figure of these says how the pack does on "
            "patients.",
            cohorts.semi_synthetic,
            by,
        )


def _real(rows: Sequence[Row]) -> tuple[Mapping[str, Any], ...]:
    cohorts = split(rows)
    return (*cohorts.held_out, *cohorts.in_training)


def _pack(rows: Sequence[Row]) -> str:
    models = {
        f"{row['model']['name']} {row['model'].get('version', '')}".strip()
        if row["model"]
        else "masks made before"
        for row in rows
    }
    return " and ".join(sorted(models))


def _made(
    run: Run, by: Draws, declaration_sha256: str | None, baseline: Run | None
) -> dict[str, JsonValue]:
    """What the figures rest on; several values where rows were measured by several."""

    def distinct(name: str) -> list[JsonValue]:
        values = {json.dumps(row[name], sort_keys=True): row[name] for row in run.rows}
        return [values[key] for key in sorted(values)]

    return {
        "report_by": {"flairnode": version("flairnode")},
        "measures_revision": MEASURES_REVISION,
        "cohort": dict(run.cohort),
        "models": distinct("model"),
        "software": distinct("software"),
        "nsd_tolerance_mm": distinct("nsd_tolerance_mm"),
        "seed": by.seed,
        "draws": by.draws,
        "first_measured_at": min(str(row["measured_at"]) for row in run.rows),
        "last_measured_at": max(str(row["measured_at"]) for row in run.rows),
        "acceptance_sha256": declaration_sha256,
        "unmeasured": list(run.unmeasured),
        "left_over": list(run.left_over),
        "rows_sha256": dict(run.sha256),
        "inputs_sha256": {str(row["case"]): row["sha256"] for row in run.rows},
        "baseline_rows_sha256": None if baseline is None else dict(baseline.sha256),
    }


def _how_it_was_made(made: Mapping[str, Any]) -> Section:
    digest = hashlib.sha256(json.dumps(made["rows_sha256"], sort_keys=True).encode()).hexdigest()
    lines = [
        ("report by", f"flairnode {made['report_by']['flairnode']}"),
        ("measures, revision", made["measures_revision"]),
        *(("cases", _pairs(made["cohort"])) for _ in range(bool(made["cohort"]))),
        *(("software", _pairs(one)) for one in made["software"]),
        *(
            (
                "model",
                "none: masks were read"
                if one is None
                else _pairs({name: value for name, value in one.items() if name != "settings"}),
            )
            for one in made["models"]
        ),
        *(
            ("settings of the model", _pairs(one["settings"]))
            for one in made["models"]
            if one and one.get("settings")
        ),
        ("NSD tolerance, mm", ", ".join(f"{one:g}" for one in made["nsd_tolerance_mm"])),
        ("seed of every draw", str(made["seed"])),
        ("draws of each bootstrap", str(made["draws"])),
        ("first and last case", f"{made['first_measured_at']}, {made['last_measured_at']}"),
        ("SHA-256 of the rows", digest),
    ]
    if made["acceptance_sha256"]:
        lines.append(("SHA-256 of the thresholds", made["acceptance_sha256"]))
    return Section(
        "How it was made",
        (
            Table(
                (Column("", number=False), Column("", number=False)),
                tuple((name, Cell(str(value))) for name, value in lines),
            ),
            Words(
                "Digests of every row and of every input file are in report.json. What each "
                "measure is, and where it is not defined, stands in training/metrics.py; intervals "
                "in training/statistics.py."
            ),
        ),
    )


def _pairs(some: Mapping[str, Any]) -> str:
    told = (f"{name.replace('_', ' ')} {_brief(value)}" for name, value in some.items())
    return ", ".join(told)


def _brief(value: Any) -> str:  # noqa: ANN401  # JSON
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(str(one) for one in value) or "none"
    return str(value)


# --- tables for other programs ---------------------------------------------------------------


class RowTables:
    """`cases.csv`, `slices.csv` and `lesions.csv`, written row by row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = ExitStack()
        self._writers: dict[str, Any] = {}
        self._columns: dict[str, list[str]] = {}
        self._cases: list[dict[str, JsonValue]] = []

    def __enter__(self) -> RowTables:
        return self

    def __exit__(self, *_: object) -> None:
        """Cases come last: what columns they have is known when all have been seen."""
        columns = list(dict.fromkeys(name for case in self._cases for name in case))
        with self._open("cases") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._cases)
        for name in ("slices", "lesions"):
            if name not in self._writers:
                (self._folder / f"{name}.csv").write_text("case,patient\n", encoding="utf-8")
        self._files.close()

    def add(self, row: Row) -> None:
        """One case."""
        who = {"case": row["case"], "patient": row["patient"]}
        self._cases.append(
            {
                **{name: row[name] for name in CASE_COLUMNS},
                **{f"about.{name}": value for name, value in row["about"].items()},
                "quality": row["quality"]["verdict"] if row["quality"] else None,
                **(dict(_flat(row["metrics"])) if row["metrics"] else {}),
            }
        )
        for name, start in (("slices", 1), ("lesions", 1)):
            for index, one in enumerate(row[name] or (), start=start):
                self._write(name, {**who, name[:-1]: index, **one})

    def _write(self, name: str, line: dict[str, JsonValue]) -> None:
        if name not in self._writers:
            file = self._files.enter_context(self._open(name))
            self._writers[name] = csv.DictWriter(file, list(line), lineterminator="\n")
            self._writers[name].writeheader()
        self._writers[name].writerow(line)

    def _open(self, name: str) -> IO[str]:
        return (self._folder / f"{name}.csv").open("w", encoding="utf-8", newline="")


def _flat(values: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, JsonValue]]:
    for name, value in values.items():
        path = f"{under}{name}"
        if path in NOT_FLAT:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def write(folder: Path, output: Path, **asked: Any) -> Report:  # noqa: ANN401  # those of `build`
    """Read a run, build its report and write all of it.

    Args:
        folder: Of the run.
        output: Where the report goes.
        **asked: `declaration`, `baseline`, `folds`, `draws` of `build`.
    """
    from training.report_html import to_html
    from training.report_print import to_pdf

    output.mkdir(parents=True, exist_ok=True)
    with RowTables(output) as tables:
        run = read_run(folder, tables)
    report = build(run, **asked)
    write_whole(output / "report.json", report.content)
    (output / "report.html").write_text(to_html(report.document), encoding="utf-8")
    (output / "report.pdf").write_bytes(to_pdf(report.document))
    return report
