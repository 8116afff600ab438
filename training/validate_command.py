"""`flairnode validate`: how well a model does, at a site or in the paper it comes from."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom.errors import Outcome
from training.prepare_command import add_mask_rules, mask_rules

if TYPE_CHECKING:
    from config.settings import Settings
    from training.validate import Case, Model, OnRow, Row
    from training.validate_cohort import Chosen

PARTS = ("test", "fold-0", "fold-1", "fold-2", "fold-3", "fold-4", "all")
"""Of a prepared cohort: `training.validate_cohort`, which is not for `flairnode --help`."""
DEFAULT_SEED = 20250101  # any number: what matters is that it is written down
EXIT_DONE, EXIT_WRONG_ARGUMENTS, EXIT_REFUSED = 0, 2, 3


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
    _register_drift(commands)
    _register_paper(commands)


def _register_run(subparsers: Any) -> None:  # noqa: ANN401
    run = subparsers.add_parser(
        "run",
        help="measure every case of a cohort against its reference",
        description="Measures the cases of a cohort with a model pack (--cohort), or those of a "
        "folder CASES: a folder for each case, with reference.nii.gz and either prediction.nii.gz "
        "or, with --model, flair.nii.gz (and brain.nii.gz where it came stripped); "
        "CASES/patients.csv (case,patient) says which cases are of one patient. Writes "
        "DIR/cases/NAME.json for each case, DIR/pictures and DIR/summary.json, and goes on where "
        "it was stopped. Exit 0 when every case was analysed, 3 when one was not (its reason is "
        "in its file).",
    )
    run.add_argument("cases", type=Path, metavar="CASES", nargs="?")
    run.add_argument(
        "--cohort",
        type=Path,
        metavar="PATH",
        help="in place of CASES: what `train prepare` reads (manifest, BIDS or plain folders, of "
        "DICOM or NIfTI), or the folder it wrote",
    )
    run.add_argument(
        "--part",
        choices=PARTS,
        help="of a folder that `train prepare` wrote (default: test, which no fold has seen)",
    )
    run.add_argument("--output", type=Path, required=True, metavar="DIR")
    run.add_argument(
        "--model",
        help="model pack, a name or a folder; with --cohort the default is that of the settings, "
        "with CASES none: masks made before are read",
    )
    run.add_argument("--config", type=Path, help="settings of a site (TOML)")
    run.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="cases measured at a time, each process with a model of its own (%(default)s)",
    )
    add_mask_rules(run)
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
    report.add_argument(
        "--training",
        type=Path,
        metavar="TRAINING_RUN",
        help="folder of `flairnode train run`: its curves, and its table of folds",
    )
    report.add_argument("--output", type=Path, metavar="DIR", help="(RUN_DIR/report)")
    report.set_defaults(run=run_report)


def _register_drift(subparsers: Any) -> None:  # noqa: ANN401
    drift = subparsers.add_parser(
        "drift",
        help="compare a month of the live node with what was validated",
        description="Compares the stored results of a node with the cases of a validation run: "
        "volumes, counts, quality, results that are missing, acquisition. Writes drift.html, "
        "drift.pdf, drift.json, drift.csv and months.csv without identifiers. Run it once a month. "
        "Exit 0 inside, or too few to say; 3 outside.",
    )
    drift.add_argument(
        "--live", type=Path, required=True, metavar="DATA_DIR", help="node.data_dir of the site"
    )
    drift.add_argument(
        "--validated",
        type=Path,
        required=True,
        metavar="RUN_DIR",
        help="folder of `validate run --output`",
    )
    drift.add_argument("--month", metavar="YYYY-MM", help="to be judged (default: the latest)")
    drift.add_argument("--output", type=Path, required=True, metavar="DIR")
    drift.add_argument("--json", action="store_true", help="one JSON object on stdout")
    drift.set_defaults(run=run_drift)


def run_drift(arguments: argparse.Namespace) -> int:
    """Compare, write, and say the verdict."""
    from training.drift_report import write
    from training.report import read_run

    drift = write(arguments.live, read_run(arguments.validated), arguments.output, arguments.month)
    told = {"month": drift.month, "verdict": drift.judgement, "because": list(drift.because)}
    if arguments.json:
        sys.stdout.write(f"{json.dumps(told)}\n")
    else:
        sys.stdout.write(f"{drift.month}: {drift.judgement}\n")
        sys.stdout.writelines(f"  {one}\n" for one in drift.because)
        sys.stdout.write(f"{arguments.output / 'drift.html'}\n")
    return EXIT_REFUSED if drift.judgement == "outside" else EXIT_DONE


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
    from training.training_log import read_training

    output = arguments.output or arguments.run_folder / "report"
    report = write(
        arguments.run_folder,
        output,
        declaration=read_declaration(arguments.acceptance) if arguments.acceptance else None,
        baseline=read_run(arguments.baseline) if arguments.baseline else None,
        folds=read_training(arguments.training) if arguments.training else (),
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
    from training.progress import progress
    from training.summary import in_words, summarise
    from training.validate import RUN, SUMMARY, software, write_whole

    wrong = _wrong(arguments)
    if wrong:
        sys.stderr.write(f"flairnode validate run: {wrong}\n")
        return EXIT_WRONG_ARGUMENTS
    chosen = _chosen(arguments)
    cases = chosen.cases
    arguments.output.mkdir(parents=True, exist_ok=True)
    # Before the first case: a report of a run that was stopped has to know what is missing.
    write_whole(
        arguments.output / RUN,
        {
            "cases": [case.name for case in cases],
            "seed": arguments.seed,
            "software": software(),
            "cohort": dict(chosen.told),
        },
    )
    with progress(len(cases)) as on_row:
        rows = _measured(arguments, cases, on_row)
    cohorts = split(rows)
    summary = summarise(cohorts.main, seed=arguments.seed)
    summary["left_out"] = {
        "in_training": len(cohorts.in_training) if cohorts.held_out else 0,
        "semi_synthetic": len(cohorts.semi_synthetic),
    }
    summary["model"] = next((row["model"] for row in rows if row["model"] is not None), None)
    write_whole(arguments.output / SUMMARY, summary)
    text = json.dumps(summary) if arguments.json else in_words(summary)
    sys.stdout.write(f"{text}\n")
    return EXIT_DONE if all(row["outcome"] == Outcome.ANALYSED for row in rows) else EXIT_REFUSED


def _wrong(arguments: argparse.Namespace) -> str:
    if (arguments.cases is None) == (arguments.cohort is None):
        return "give CASES or --cohort, one of them"
    if arguments.part is not None and arguments.cohort is None:
        return "--part is of a prepared cohort: give --cohort"
    if arguments.processes < 1:
        return "--processes is at least 1"
    return ""


def _chosen(arguments: argparse.Namespace) -> Chosen:
    """The cases to measure; the pack is looked at, not loaded."""
    from config.loader import load_settings
    from pipeline.model_pack import find_pack, read_manifest
    from training.case_inputs import CohortRules
    from training.validate import read_cases
    from training.validate_cohort import Chosen, choose_cases

    if arguments.cohort is None:
        return Chosen(read_cases(arguments.cases))
    settings = load_settings(arguments.config)
    pack = find_pack(_pack_name(arguments, settings), folders=(settings.node.packs_dir,))
    rules = CohortRules(settings.selection, mask_rules(arguments), arguments.allow_empty)
    return choose_cases(arguments.cohort, rules, read_manifest(pack)[0], arguments.part)


def _measured(
    arguments: argparse.Namespace, cases: tuple[Case, ...], on_row: OnRow
) -> tuple[Row, ...]:
    from training.case_workers import run_in_processes
    from training.validate import run

    segmented = arguments.model is not None or arguments.cohort is not None
    load = partial(
        load_model, arguments.model, arguments.config, arguments.processes, segmented=segmented
    )
    if arguments.processes > 1:
        return run_in_processes(
            cases,
            arguments.output,
            load,
            processes=arguments.processes,
            nsd_tolerance_mm=arguments.nsd_tolerance_mm,
            on_row=on_row,
        )
    return run(
        cases,
        arguments.output,
        load(),
        nsd_tolerance_mm=arguments.nsd_tolerance_mm,
        on_row=on_row,
    )


def _pack_name(arguments: argparse.Namespace, settings: Settings) -> str:
    return arguments.model or settings.pipeline.model


def load_model(
    name: str | None, config: Path | None, processes: int, *, segmented: bool
) -> Model | None:
    """A pack as the node of these settings would run it; None where masks are read.

    Args:
        name: Of the pack, or its folder; None: that of the settings.
        config: Settings of the site.
        processes: How many there are. Where the settings leave the threads open, they share the
            processors.
        segmented: Is there anything for a model to do?
    """
    if not segmented:
        return None
    from config.loader import load_settings
    from pipeline.brain_tools import require_extractor
    from pipeline.ensemble import load_ensemble
    from pipeline.model_pack import find_pack, load_pack
    from training.validate import Model

    settings = load_settings(config)
    pack = load_pack(find_pack(name or settings.pipeline.model, folders=(settings.node.packs_dir,)))
    shared = 0 if processes == 1 else max(1, (os.cpu_count() or 1) // processes)
    ensemble = load_ensemble(
        pack,
        device=settings.pipeline.device,
        mirroring=settings.pipeline.mirroring,
        threads=settings.pipeline.threads or shared,
    )
    return Model(
        ensemble,
        pack.manifest,
        {
            "name": pack.name,
            "version": pack.version,
            "digest": pack.digest,
            "settings": {**ensemble.settings(), "brain": settings.pipeline.brain},
        },
        require_extractor(settings.pipeline).extract,
    )
