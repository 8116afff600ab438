"""One series to the files of its result: what the worker and `flairnode process` both do.

Only they import this module; the service process holds no pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config.settings import DEFAULT_KINDS, PipelineSettings, Settings
from dicom.errors import InconsistentSeriesError, Outcome, StudyError
from dicom.reference import DocumentReference
from dicom.series import read_series, read_study
from dicom.volume import Volume, read_nifti, read_volume, write_nifti
from node.durable import write_durably
from pipeline.acquisition import describe_acquisition
from pipeline.brain import BrainMask, strip_skull, supplied_mask
from pipeline.brain_tools import Extract
from pipeline.ensemble import AnyEnsemble, load_ensemble
from pipeline.flow import Analysis, OnStage, Stopwatch, analyse
from pipeline.model_pack import ModelPack, find_pack, load_pack
from pipeline.note import Refusal, build_note
from pipeline.preview import PREVIEW_FILE, write_preview
from pipeline.quality import header_flags
from pipeline.results import ResultObject, build_results
from pipeline.steady import AnySteadyEnsemble


@dataclass(frozen=True, slots=True)
class Output:
    """One file of a result."""

    kind: str
    sop_instance_uid: str
    path: Path


@dataclass(frozen=True, slots=True)
class AnalysisOutcome:
    """How an analysis ended, and what it left on disk."""

    outcome: Outcome
    reason: str
    explanation: str
    outputs: tuple[Output, ...]
    report: Mapping[str, Any]
    """What `flairnode process --json` prints; plain values only."""


def load_segmenter(
    settings: PipelineSettings, packs: Sequence[Path] = ()
) -> tuple[AnyEnsemble, ModelPack]:
    """The configured pack, every file checked against its digest, its ensemble warm.

    Raises:
        ModelPackError: The pack is missing, changed or of a kind that cannot be run.
    """
    pack = load_pack(find_pack(settings.model, folders=packs))
    ensemble = load_ensemble(
        pack, device=settings.device, mirroring=settings.mirroring, threads=settings.threads
    )
    return ensemble, pack


def kinds_to_make(settings: Settings) -> tuple[str, ...]:
    """Which objects a site's results have.

    The default ones always, whatever its destinations take today: a result is made once, and a
    destination that is added later, or a person who looks into the results folder, should find them
    there. A probability map only where a destination names it.
    """
    asked = {kind for destination in settings.destinations for kind in destination.kinds}
    return (*DEFAULT_KINDS, *(("probability",) if "probability" in asked else ()))


def analyse_series(
    paths: Sequence[Path],
    ensemble: AnyEnsemble | AnySteadyEnsemble,
    pack: ModelPack,
    output: Path,
    *,
    kinds: Collection[str] = DEFAULT_KINDS,
    extract: Extract = strip_skull,
    save_volumes: bool = False,
    on_stage: OnStage | None = None,
    predecessor: DocumentReference | None = None,
    preview: bool = False,
) -> AnalysisOutcome:
    """Analyse the files of one series and write the result objects.

    Refusals are outcomes, not exceptions, and their object is the note that says why; whatever
    still rises from here is our fault.

    Args:
        paths: Exactly the instances to analyse.
        ensemble: Warm, from `load_segmenter`.
        pack: The pack the ensemble was loaded from.
        output: An existing folder that the files go to.
        kinds: Of objects, as `build_results` takes them.
        extract: The skull strip that the site configured.
        save_volumes: Also write brain, probability and lesions as NIfTI.
        on_stage: Called with the name of each stage as it begins.
        predecessor: The report of an earlier result, which this one replaces.
        preview: Also draw every slice for the operator page.
    """
    stage = Stopwatch(on_stage)
    report: dict[str, Any] = {"series_instance_uid": None, "model": _model(pack)}
    try:
        with stage("read"):
            series = read_series(paths)
            report["series_instance_uid"] = series.series_instance_uid
            volume = read_volume(series)
            report["acquisition"] = describe_acquisition(volume.grid, series)
        analysis = analyse(
            volume,
            ensemble,
            pack.manifest,
            extract=extract,
            flags=header_flags(series),
            stage=stage,
        )
        if refused := _refused_for_quality(analysis, report, stage):
            return _with_note(refused, paths, pack, output, analysis)
        with stage("results"):
            objects = build_results(series, analysis, pack, ensemble.settings(), kinds, predecessor)
            outputs = tuple(_write(one, output) for one in objects)
            if preview:
                write_preview(output / PREVIEW_FILE, analysis)
            if save_volumes:
                _save_volumes(analysis, output)
    except StudyError as error:
        refused = _refused(error.outcome, error.reason, str(error), report, stage)
        return _with_note(refused, paths, pack, output)
    return _analysed(analysis, outputs, report, stage)


def tell_why(
    paths: Sequence[Path], pack: ModelPack, output: Path, reason: str, explanation: str
) -> AnalysisOutcome:
    """The note on a series that was refused before any pixel was looked at.

    Args:
        paths: The instances of the series, damaged ones too.
        pack: The model that the series was to be analysed with.
        output: An existing folder that the note goes to.
        reason: Why the series was refused.
        explanation: With the values that decided.
    """
    report: dict[str, Any] = {"series_instance_uid": None, "model": _model(pack)}
    refused = _refused(Outcome.NOT_ANALYSED, reason, explanation, report, Stopwatch())
    return _with_note(refused, paths, pack, output)


def analyse_nifti(
    path: Path,
    brain_mask: Path | None,
    ensemble: AnyEnsemble,
    pack: ModelPack,
    output: Path,
    *,
    extract: Extract = strip_skull,
    on_stage: OnStage | None = None,
) -> AnalysisOutcome:
    """Analyse one NIfTI volume: volumes and a report, no DICOM objects.

    Args:
        path: The FLAIR volume; with skull, unless `brain_mask` is given.
        brain_mask: The mask of an image that is already stripped; recorded as supplied.
        ensemble: Warm, from `load_segmenter`.
        pack: The pack the ensemble was loaded from.
        output: An existing folder that the volumes go to.
        extract: The skull strip that the site configured, where no mask is supplied.
        on_stage: Called with the name of each stage as it begins.
    """
    stage = Stopwatch(on_stage)
    report: dict[str, Any] = {"series_instance_uid": None, "model": _model(pack)}
    try:
        with stage("read"):
            volume = read_nifti(path)
            report["acquisition"] = describe_acquisition(volume.grid, None)
            brain = _supplied_brain(brain_mask, volume) if brain_mask is not None else None
        analysis = analyse(
            volume, ensemble, pack.manifest, brain=brain, extract=extract, stage=stage
        )
        if refused := _refused_for_quality(analysis, report, stage):
            return refused
        with stage("results"):
            _save_volumes(analysis, output)
    except StudyError as error:
        return _refused(error.outcome, error.reason, str(error), report, stage)
    return _analysed(analysis, (), report, stage)


def _supplied_brain(path: Path, volume: Volume) -> BrainMask:
    return supplied_mask(read_nifti(path), volume.grid)


def _write(result: ResultObject, output: Path) -> Output:
    # Of these there may be several.
    number = f"-{result.dataset.InstanceNumber}" if result.kind == "key-image" else ""
    path = output / f"{result.kind}{number}.dcm"
    write_durably(path, result.content)
    return Output(result.kind, result.sop_instance_uid, path)


def _save_volumes(analysis: Analysis, output: Path) -> None:
    grid = analysis.volume.grid
    write_nifti(output / "brain.nii.gz", analysis.brain.mask.astype("uint8"), grid)
    write_nifti(output / "probability.nii.gz", analysis.lesions.probability, grid)
    write_nifti(output / "lesions.nii.gz", analysis.lesions.labels, grid)


def _model(pack: ModelPack) -> dict[str, str]:
    return {"name": pack.name, "version": pack.version, "digest": pack.digest}


def _analysed(
    analysis: Analysis, outputs: tuple[Output, ...], report: dict[str, Any], stage: Stopwatch
) -> AnalysisOutcome:
    report |= {
        "outcome": Outcome.ANALYSED.value,
        "reason": "",
        "explanation": "",
        "findings": analysis.findings.as_json(),
        "quality": analysis.quality.as_json(),
        "outputs": [_entry(one) for one in outputs],
        "timing_s": dict(stage.timing_s),
    }
    return AnalysisOutcome(Outcome.ANALYSED, "", "", outputs, report)


def _refused_for_quality(
    analysis: Analysis, report: dict[str, Any], stage: Stopwatch
) -> AnalysisOutcome | None:
    if analysis.quality.verdict != "fail":
        return None
    flag = next(flag for flag in analysis.quality.flags if flag.severity == "fail")
    report["quality"] = analysis.quality.as_json()
    return _refused(Outcome.NOT_ANALYSED, flag.code, flag.message, report, stage)


def _with_note(
    refused: AnalysisOutcome,
    paths: Sequence[Path],
    pack: ModelPack,
    output: Path,
    analysis: Analysis | None = None,
) -> AnalysisOutcome:
    """The refusal with its note, or with the reason why there is none."""
    if refused.outcome is not Outcome.NOT_ANALYSED:
        return refused
    refusal = Refusal(
        refused.reason, refused.explanation, analysis.quality.flags if analysis is not None else ()
    )
    try:
        study = read_study(Path(), files=paths)
        if len(study.series) != 1:
            raise InconsistentSeriesError(f"files of {len(study.series)} series, expected one")
        series = replace(study.series[0], unreadable=study.unreadable)
        outputs = (_write(build_note(series, refusal, pack), output),)
    except StudyError as error:
        return replace(refused, report={**refused.report, "no_note": f"{error.reason}: {error}"})
    report = {
        **refused.report,
        "series_instance_uid": series.series_instance_uid,
        "outputs": [_entry(one) for one in outputs],
    }
    return replace(refused, outputs=outputs, report=report)


def _entry(one: Output) -> dict[str, str]:
    return {"kind": one.kind, "sop_instance_uid": one.sop_instance_uid, "path": str(one.path)}


def _refused(
    outcome: Outcome, reason: str, explanation: str, report: dict[str, Any], stage: Stopwatch
) -> AnalysisOutcome:
    report |= {
        "outcome": outcome.value,
        "reason": reason,
        "explanation": explanation,
        "findings": None,
        "outputs": [],
        "timing_s": dict(stage.timing_s),
    }
    report.setdefault("quality", None)
    return AnalysisOutcome(outcome, reason, explanation, (), report)
