"""`flairnode validate`: how well a model does, at a site or in the paper it comes from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom.errors import Outcome

if TYPE_CHECKING:
    from config.settings import Settings
    from training.validate import Model, Row

DEFAULT_SEED = 20250101  # any number: what matters is that it is written down
EXIT_DONE, EXIT_REFUSED = 0, 3


def register_validate(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type
    """Add the group; each of its commands adds itself to it."""
    validate = subparsers.add_parser(
        "validate",
        help="measure how well a model does",
        description="Measure how well a model does.",
    )
    commands = validate.add_subparsers(title="commands", dest="validate_command", required=True)
    _register_run(commands)
    _register_report(commands)
    _register_paper(commands)


def _register_run(subparsers: Any) -> None:  # noqa: ANN401
    run = subparsers.add_parser(
        "run",
        help="measure every case of a folder against its reference",
        description="CASES holds a folder for each case, with reference.nii.gz and either "
        "prediction.nii.gz or, with --model, flair.nii.gz (and brain.nii.gz where it came "
        "stripped). CASES/patients.csv (case,patient) says which cases are of one patient. Writes "
        "DIR/cases/NAME.json for each case, DIR/pictures and DIR/summary.json, and goes on where "
        "it was stopped. Exit 0 when every case was analysed, 3 when one was not (its reason is "
        "in its file).",
    )
    run.add_argument("cases", type=Path, metavar="CASES")
    run.add_argument("--output", type=Path, required=True, metavar="DIR")
    run.add_argument("--model", help="model pack, a name or a folder: segment flair.nii.gz")
    run.add_argument("--config", type=Path, help="settings of a site (TOML), with --model")
    run.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of every draw (%(default)s)")
    run.add_argument(
        "--nsd-tolerance-mm", type=float, default=1.0, metavar="MM", help="(%(default)s)"
    )
    run.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    run.set_defaults(run=run_cases)


def _register_report(subparsers: Any) -> None:  # noqa: ANN401
    report = subparsers.add_parser(
        "report",
        help="make the report of a run: a page, a PDF, tables",
        description="Makes report.html (one file, works offline), report.pdf, report.json, "
        "cases.csv, slices.csv and lesions.csv from the files that `validate run` wrote; no image "
        "is needed. Exit 0, or 3 where an acceptance test was asked for and is not passed.",
    )
    report.add_argument("run_folder", type=Path, metavar="RUN_DIR")
    report.add_argument(
        "--acceptance", type=Path, metavar="FILE.toml", help="thresholds declared beforehand"
    )
    report.add_argument(
        "--baseline", type=Path, metavar="OTHER_RUN", help="a run on the same cases, to compare"
    )
    report.add_argument("--output", type=Path, metavar="DIR", help="(RUN_DIR/report)")
    report.set_defaults(run=run_report)


def _register_paper(subparsers: Any) -> None:  # noqa: ANN401
    paper = subparsers.add_parser(
        "paper",
        help="rebuild the published slice table from its counts, and say what it is",
        description="Rebuilds the slice-level table of the paper that flairnode starts from, out "
        "of its counts: under the paper's labels and with its n, and beside it what the labels "
        "mean with the right n. Needs no data.",
    )
    paper.add_argument("--json", action="store_true", help="one JSON object on stdout")
    paper.set_defaults(run=run_paper)


def run_paper(arguments: argparse.Namespace) -> int:
    """Compute, and print."""
    from training.paper import as_json, in_words  # scipy.optimize: not for `flairnode --help`

    text = json.dumps(as_json()) if arguments.json else in_words()
    sys.stdout.write(f"{text}\n")
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """Build, write, and say where it is."""
    from training.acceptance import read_declaration
    from training.report import read_run, write

    output = arguments.output or arguments.run_folder / "report"
    report = write(
        arguments.run_folder,
        output,
        declaration=read_declaration(arguments.acceptance) if arguments.acceptance else None,
        baseline=read_run(arguments.baseline) if arguments.baseline else None,
    )
    sys.stdout.write(f"{output / 'report.html'}\n{output / 'report.pdf'}\n")
    if report.verdict is None:
        return EXIT_DONE
    sys.stdout.write(f"acceptance test: {report.verdict.judgement}\n")
    for one in report.verdict.judged:
        sys.stdout.write(f"  {one.label}: {one.judgement}. {one.reason}\n")
    return EXIT_DONE if report.verdict.judgement == "passed" else EXIT_REFUSED


def run_cases(arguments: argparse.Namespace) -> int:
    """Measure what has no row yet, summarise, and print."""
    from training.cohort_figures import split
    from training.summary import in_words, summarise
    from training.validate import RUN, SUMMARY, read_cases, run, software, write_whole

    cases = read_cases(arguments.cases)
    arguments.output.mkdir(parents=True, exist_ok=True)
    # Before the first case: a report of a run that was stopped has to know what is missing.
    write_whole(
        arguments.output / RUN,
        {"cases": [case.name for case in cases], "seed": arguments.seed, "software": software()},
    )
    model = None
    if arguments.model is not None:
        from config.loader import load_settings

        model = _load(arguments.model, load_settings(arguments.config))
    rows = run(
        cases,
        arguments.output,
        model,
        nsd_tolerance_mm=arguments.nsd_tolerance_mm,
        on_row=_say,
    )
    cohorts = split(rows)
    summary = summarise(cohorts.main, seed=arguments.seed)
    summary["left_out"] = {
        "in_training": len(cohorts.in_training) if cohorts.held_out else 0,
        "semi_synthetic": len(cohorts.semi_synthetic),
    }
    summary["model"] = None if model is None else dict(model.identity)
    write_whole(arguments.output / SUMMARY, summary)
    text = json.dumps(summary) if arguments.json else in_words(summary)
    sys.stdout.write(f"{text}\n")
    return EXIT_DONE if all(row["outcome"] == Outcome.ANALYSED for row in rows) else EXIT_REFUSED


def _load(name: str, settings: Settings) -> Model:
    """A pack as the node of these settings would run it."""
    from pipeline.ensemble import load_ensemble
    from pipeline.model_pack import find_pack, load_pack
    from training.validate import Model

    pack = load_pack(find_pack(name, folders=(settings.node.packs_dir,)))
    ensemble = load_ensemble(
        pack,
        device=settings.pipeline.device,
        mirroring=settings.pipeline.mirroring,
        threads=settings.pipeline.threads,
    )
    return Model(
        ensemble,
        pack.manifest,
        {
            "name": pack.name,
            "version": pack.version,
            "digest": pack.digest,
            "settings": ensemble.settings(),
        },
    )


def _say(row: Row, *, kept: bool) -> None:
    end = (
        row["outcome"]
        if row["outcome"] == Outcome.ANALYSED
        else (f"{row['outcome']}: {row['reason']}: {row['explanation']}")
    )
    sys.stderr.write(f"{row['case']}: {end}{' (from an earlier run)' if kept else ''}\n")
    sys.stderr.flush()
