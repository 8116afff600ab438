"""`flairnode validate run`: every case of a folder measured against its reference.

A row per case, whatever becomes of it: measured, refused with the reason the node would give, or
failed. A row is a JSON file that is whole or not there, so a run that was stopped goes on where it
was; a row is kept for as long as the files of its case, the model and the measures stay the same.
What failed is tried again.

    CASES/patients.csv              case,patient: for patients with several cases (optional)
    CASES/CASE/reference.nii.gz     the expert's mask
    CASES/CASE/prediction.nii.gz    a mask made before; or, with a model:
    CASES/CASE/flair.nii.gz         the image, with skull
    CASES/CASE/brain.nii.gz         its brain, where the image came stripped (optional)
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import JsonValue

from dicom.errors import EmptyInputError, Outcome, SeriesError, StudyError, UnreadableError
from dicom.volume import Grid, read_nifti
from pipeline.brain import supplied_mask
from pipeline.flow import Analysis, Segmenter, analyse
from pipeline.model_pack import Manifest
from training.metrics import compare, read_mask, refuse_other_grid
from training.slice_metrics import OverlapRule, slice_overlaps
from training.statistics import calibration
from training.voxel_metrics import NSD_TOLERANCE_MM, Mask

MEASURES_REVISION = "1"
"""Raised when a measure changes: rows of another revision are measured again."""

REFERENCE, PREDICTION, FLAIR, BRAIN = (
    f"{name}.nii.gz" for name in ("reference", "prediction", "flair", "brain")
)
PATIENTS = "patients.csv"
ROWS = "cases"

Row = dict[str, Any]
"""What a case's JSON file holds."""


class MissingFileError(UnreadableError):
    """A case lacks a file that the run needs."""

    reason = "missing-file"


class PatientListError(SeriesError):
    """`patients.csv` does not say one patient for every case."""

    reason = "patient-list"


class QualityError(StudyError):
    """The analysis was made and its quality is *fail*: the node would send no mask."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Case:
    """One folder."""

    name: str
    patient: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Model:
    """A pack that is loaded and warm, and what to call it."""

    segmenter: Segmenter
    manifest: Manifest
    identity: Mapping[str, JsonValue]
    """Name, version, digest and result-changing settings; another identity, another row."""


class OnRow(Protocol):
    """Told of each case when its row is there."""

    def __call__(self, row: Row, *, kept: bool) -> None:
        """`kept`: from an earlier run."""


def read_cases(folder: Path) -> tuple[Case, ...]:
    """The cases of a folder, in the order of their names.

    Raises:
        EmptyInputError: No folder in it.
        PatientListError: `patients.csv` names a case twice or leaves one out.
    """
    folders = sorted(
        path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")
    )
    if not folders:
        raise EmptyInputError(f"{folder} holds no folder: a case is a folder with {REFERENCE}")
    names = [path.name for path in folders]
    patients = _read_patients(folder / PATIENTS, names)
    return tuple(Case(path.name, patients[path.name], path) for path in folders)


def run(
    cases: tuple[Case, ...],
    output: Path,
    model: Model | None = None,
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    on_row: OnRow | None = None,
) -> tuple[Row, ...]:
    """Measure every case that has no row yet; the rows of all.

    Args:
        cases: From `read_cases`.
        output: Rows go to `cases/NAME.json` below it.
        model: Segments every `flair.nii.gz`; None: every `prediction.nii.gz` is read.
        nsd_tolerance_mm: Of the normalised surface distance.
        on_row: Told of each case.
    """
    (output / ROWS).mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases:
        path = output / ROWS / f"{case.name}.json"
        measured_with = _measured_with(case, model, nsd_tolerance_mm)
        row = _kept_row(path, measured_with)
        kept = row is not None
        if row is None:
            row = measured_with | measure_case(case, model, nsd_tolerance_mm)
            write_whole(path, row)
        if on_row is not None:
            on_row(row, kept=kept)
        rows.append(row)
    return tuple(rows)


def measure_case(
    case: Case, model: Model | None, nsd_tolerance_mm: float = NSD_TOLERANCE_MM
) -> Row:
    """What became of one case. Nothing that goes wrong in a case stops the others."""
    started = time.perf_counter()
    row: Row = {
        "outcome": Outcome.ANALYSED.value,
        "reason": "",
        "explanation": "",
        "metrics": None,
        "slices": None,
        "calibration": None,
        "quality": None,
    }
    try:
        _measure(case, model, nsd_tolerance_mm, row)
    except QualityError as error:
        row |= _end(Outcome.NOT_ANALYSED, error.code, str(error))
    except StudyError as error:
        row |= _end(error.outcome, error.reason, str(error))
    except Exception as error:  # noqa: BLE001  # a fault of ours in one case is a row, not the end
        row |= _end(Outcome.FAILED, "internal-error", f"{type(error).__name__}: {error}")
    row["seconds"] = round(time.perf_counter() - started, 3)
    return row


def write_whole(path: Path, content: JsonValue | Row) -> None:
    """Write JSON so that a stop at any moment leaves the old file or the whole new one."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _measure(case: Case, model: Model | None, nsd_tolerance_mm: float, row: Row) -> None:
    reference, grid = read_mask(_there(case, REFERENCE))
    if model is None:
        prediction, other = read_mask(_there(case, PREDICTION))
        refuse_other_grid(grid, other)
    else:
        prediction = _segmented(case, model, reference, grid, row)
    row |= {
        "spacing_mm": [round(step, 4) for step in grid.spacing_mm],
        "metrics": compare(
            reference, prediction, grid, nsd_tolerance_mm=nsd_tolerance_mm
        ).as_json(),
        "slices": _slices(reference, prediction),
    }


def _segmented(case: Case, model: Model, reference: Mask, grid: Grid, row: Row) -> Mask:
    """Lesions as the node would send them."""
    volume = read_nifti(_there(case, FLAIR))
    refuse_other_grid(grid, volume.grid)
    brain_path = case.folder / BRAIN
    brain = supplied_mask(read_nifti(brain_path), volume.grid) if brain_path.is_file() else None
    analysis = analyse(volume, model.segmenter, model.manifest, brain=brain)
    row["quality"] = analysis.quality.as_json()
    if analysis.quality.verdict == "fail":
        flag = next(flag for flag in analysis.quality.flags if flag.severity == "fail")
        raise QualityError(flag.code, flag.message)
    row["calibration"] = _calibration(analysis, reference)
    return np.asarray(analysis.lesions.labels > 0)


def _calibration(analysis: Analysis, reference: Mask) -> JsonValue:
    """Of the voxels of the brain: outside it all is 0, and right, and hides the rest."""
    inside = analysis.brain.mask
    sums = calibration(analysis.lesions.probability[inside].clip(0, 1), reference[inside])
    return {
        "count": list(sums.count),
        "sum_probability": list(sums.sum_probability),
        "sum_true": list(sums.sum_true),
    }


def _slices(reference: Mask, prediction: Mask) -> JsonValue:
    """Each slice, with its overlap by every rule, so that any threshold can be applied later."""
    by_rule = {rule: slice_overlaps(reference, prediction, rule) for rule in OverlapRule}
    return [
        {
            "positive": one[0].positive,
            "predicted": one[0].predicted,
            **{rule.value: each.overlap for rule, each in zip(by_rule, one, strict=True)},
        }
        for one in zip(*by_rule.values(), strict=True)
    ]


def _measured_with(case: Case, model: Model | None, nsd_tolerance_mm: float) -> Row:
    """What a row rests on: when it changes, the case is measured again."""
    names = (REFERENCE, PREDICTION) if model is None else (REFERENCE, FLAIR, BRAIN)
    return {
        "case": case.name,
        "patient": case.patient,
        "measures_revision": MEASURES_REVISION,
        "nsd_tolerance_mm": nsd_tolerance_mm,
        "model": None if model is None else dict(model.identity),
        "sha256": {name: _digest(case.folder / name) for name in names},
    }


def _kept_row(path: Path, measured_with: Row) -> Row | None:
    """The row of an earlier run, if it rests on the same and did not fail."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # none yet, or not ours: measured (again)
    if not isinstance(row, dict) or row.get("outcome") == Outcome.FAILED:
        return None
    same = all(row.get(name) == value for name, value in measured_with.items())
    return row if same else None


def _read_patients(path: Path, cases: list[str]) -> dict[str, str]:
    """The patient of every case; without a list every case is a patient."""
    if not path.is_file():
        return {name: name for name in cases}
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    if not table or not {"case", "patient"} <= set(table[0]):
        raise PatientListError(f"{path} needs a first line `case,patient` and a line for each case")
    patients: dict[str, str] = {}
    for line in table:
        if line["case"] in patients:
            raise PatientListError(f"{path} names the case {line['case']} twice")
        patients[line["case"]] = line["patient"]
    left_out = [name for name in cases if not patients.get(name)]
    if left_out:
        raise PatientListError(f"{path} names no patient for {', '.join(left_out)}")
    return patients


def _there(case: Case, name: str) -> Path:
    path = case.folder / name
    if not path.is_file():
        raise MissingFileError(f"{case.name} has no {name}")
    return path


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _end(outcome: Outcome, reason: str, explanation: str) -> Row:
    return {"outcome": outcome.value, "reason": reason, "explanation": explanation}
