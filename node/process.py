"""`flairnode process`: one folder or file, no network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.loader import load_settings
from config.settings import DEFAULT_KINDS, Settings
from dicom.errors import Outcome, StudyError, UnreadableError
from dicom.series import Series, Study, read_study
from node.cli import exit_status
from node.durable import write_durably
from pipeline.model_pack import find_pack, load_pack
from pipeline.selection import Decision, Selection, choose

if TYPE_CHECKING:
    from node.analysis import AnalysisOutcome
    from pipeline.ensemble import AnyEnsemble
    from pipeline.model_pack import ModelPack

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NO_FLAIR = "no-flair"
OPTIONAL_KINDS = ("key-image", "pdf", "probability")
"""A Segmentation and a report are always made."""


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    process = subparsers.add_parser(
        "process",
        help="analyse one study or series folder, without a network",
        description="Finds the FLAIR of a study, series or NIfTI file, segments its lesions and "
        "writes the results. Exit 0 analysed, 3 skipped or not analysed, 1 our fault.",
    )
    process.add_argument("input", type=Path, help="folder of DICOM files, or one NIfTI file")
    process.add_argument("--output", type=Path, required=True, help="folder for the results")
    process.add_argument("--model", help="model pack: a name or a folder (default: the settings')")
    process.add_argument(
        "--brain-mask", type=Path, help="mask of a NIfTI input that is already stripped"
    )
    process.add_argument(
        "--kinds",
        type=_kinds,
        default=DEFAULT_KINDS,
        metavar="KIND,...",
        help=f"result objects, beside Segmentation and report: of {', '.join(OPTIONAL_KINDS)} "
        f"(default: {','.join(DEFAULT_KINDS)})",
    )
    process.add_argument(
        "--save-volumes", action="store_true", help="also write brain, probability and lesions"
    )
    process.add_argument("--config", type=Path, help="settings of a site (TOML)")
    process.add_argument("--json", action="store_true", help="one JSON object on stdout")
    process.set_defaults(run=run_process)


def run_process(arguments: argparse.Namespace) -> int:
    """Analyse, write `result.json` beside the results, print it or its gist."""
    settings = load_settings(arguments.config)
    if arguments.model is not None:
        pipeline = settings.pipeline.model_copy(update={"model": arguments.model})
        settings = settings.model_copy(update={"pipeline": pipeline})
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with _progress() as on_stage:
        report = _process(arguments, settings, on_stage)
    report["timing_s"]["total"] = round(time.perf_counter() - started, 3)
    write_durably(arguments.output / "result.json", json.dumps(report, indent=1).encode())
    if arguments.json:
        print(json.dumps(report))
    else:
        print(_in_words(report, arguments.output))
    return exit_status(Outcome(report["outcome"]))


def _kinds(given: str) -> tuple[str, ...]:
    kinds = tuple(filter(None, (kind.strip() for kind in given.split(","))))
    for kind in kinds:
        if kind not in ("seg", "sr", *OPTIONAL_KINDS):
            raise argparse.ArgumentTypeError(
                f"{kind!r} is no kind of result: seg, sr, {', '.join(OPTIONAL_KINDS)}"
            )
    return kinds


def _process(
    arguments: argparse.Namespace, settings: Settings, on_stage: Callable[[str], None]
) -> dict[str, Any]:
    """The report of one input, whatever becomes of it."""
    try:
        if arguments.input.name.lower().endswith(NIFTI_SUFFIXES):
            return _process_nifti(arguments, settings, on_stage)
        on_stage("select")
        study = read_study(arguments.input)
        selection = choose(study, settings.selection)
        if selection.selected is None:
            return _nothing_selected(study, selection, arguments.output, settings)
        chosen = next(s for s in study.series if s.series_instance_uid == selection.selected)
        return _process_series(chosen, arguments, settings, on_stage)
    except StudyError as error:
        return _report(error.outcome, error.reason, str(error))


def _process_series(
    series: Series,
    arguments: argparse.Namespace,
    settings: Settings,
    on_stage: Callable[[str], None],
) -> dict[str, Any]:
    # torch and the network are imported only once there is something for them to do.
    from node.analysis import analyse_series
    from pipeline.brain_tools import require_extractor

    ensemble, pack, loaded_s = _load(settings, on_stage)
    done = analyse_series(
        [instance.path for instance in series.instances],
        ensemble,
        pack,
        arguments.output,
        kinds=arguments.kinds,
        extract=require_extractor(settings.pipeline).extract,
        save_volumes=arguments.save_volumes,
        on_stage=on_stage,
    )
    return _with_loading_time(done, loaded_s)


def _process_nifti(
    arguments: argparse.Namespace, settings: Settings, on_stage: Callable[[str], None]
) -> dict[str, Any]:
    if not arguments.input.is_file():
        raise UnreadableError(f"{arguments.input} is not there")
    from node.analysis import analyse_nifti
    from pipeline.brain_tools import extractor_of

    ensemble, pack, loaded_s = _load(settings, on_stage)
    done = analyse_nifti(
        arguments.input,
        arguments.brain_mask,
        ensemble,
        pack,
        arguments.output,
        extract=extractor_of(settings.pipeline).extract,  # of no use with a supplied mask
        on_stage=on_stage,
    )
    return _with_loading_time(done, loaded_s)


def _load(
    settings: Settings, on_stage: Callable[[str], None]
) -> tuple[AnyEnsemble, ModelPack, float]:
    from node.analysis import load_segmenter

    on_stage("load model")
    started = time.perf_counter()
    ensemble, pack = load_segmenter(settings.pipeline, (settings.node.packs_dir,))
    return ensemble, pack, round(time.perf_counter() - started, 3)


def _with_loading_time(done: AnalysisOutcome, loaded_s: float) -> dict[str, Any]:
    return {**done.report, "timing_s": {"load_model": loaded_s, **done.report["timing_s"]}}


def _nothing_selected(
    study: Study, selection: Selection, output: Path, settings: Settings
) -> dict[str, Any]:
    """A FLAIR that was refused says more than a T1 that was skipped, and has a note."""
    refused = [d for d in selection.decisions if d.outcome is Outcome.NOT_ANALYSED]
    if refused:
        best = max(refused, key=lambda decision: decision.score)
        report = _report(Outcome.NOT_ANALYSED, best.reason, best.explanation)
        report["series_instance_uid"] = best.series_instance_uid
        return report | _note(study, best, output, settings)
    if len(selection.decisions) == 1:
        only = selection.decisions[0]
        return _report(only.outcome, only.reason, only.explanation)
    count = len(study.series)
    return _report(Outcome.SKIPPED, NO_FLAIR, f"none of the {count} series is a FLAIR of the head")


def _note(study: Study, refused: Decision, output: Path, settings: Settings) -> dict[str, Any]:
    """`outputs` with the note on the refused series, or why there is none."""
    from pipeline.note import Refusal, build_note  # highdicom: not for what is merely skipped

    try:
        series = next(
            (s for s in study.series if s.series_instance_uid == refused.series_instance_uid), None
        )
        if series is None:
            raise UnreadableError("no image of the series can be read")
        pack = load_pack(find_pack(settings.pipeline.model, folders=[settings.node.packs_dir]))
        note = build_note(series, Refusal(refused.reason, refused.explanation), pack)
    except StudyError as error:
        return {"no_note": f"{error.reason}: {error}"}
    path = output / "note.dcm"
    write_durably(path, note.content)
    entry = {"kind": note.kind, "sop_instance_uid": note.sop_instance_uid, "path": str(path)}
    return {"outputs": [entry]}


def _report(outcome: Outcome, reason: str, explanation: str) -> dict[str, Any]:
    return {
        "outcome": outcome.value,
        "reason": reason,
        "explanation": explanation,
        "series_instance_uid": None,
        "model": None,
        "findings": None,
        "quality": None,
        "outputs": [],
        "timing_s": {},
    }


def _in_words(report: dict[str, Any], output: Path) -> str:
    if report["outcome"] != Outcome.ANALYSED:
        lines = [
            f"{report['outcome']}: {report['reason']}: {report['explanation']}",
            *(f"{one['kind']}: {one['path']}" for one in report["outputs"]),
        ]
        return "\n".join(lines)
    findings, quality = report["findings"], report["quality"]
    lines = [
        f"{findings['lesion_count']} lesions, {findings['total_volume_ml']:.2f} ml "
        f"({report['model']['name']} {report['model']['version']})",
        f"quality: {quality['verdict']}",
        *(f"  {flag['code']}: {flag['message']}" for flag in quality["flags"]),
        *(f"{one['kind']}: {one['path']}" for one in report["outputs"]),
        f"{report['timing_s']['total']:.1f} s; everything: {output / 'result.json'}",
        "RESEARCH USE ONLY - not for diagnosis or follow-up.",
    ]
    return "\n".join(lines)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that names the running stage, on a terminal; nothing anywhere else."""
    if not sys.stderr.isatty():
        yield lambda _stage: None
        return
    from rich.console import Console  # only a terminal needs it

    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda stage: status.update(f"{stage} ...")
