"""`flairnode validate run`: every case of a folder measured against its reference.

A row per case, whatever becomes of it: measured, refused with the reason the node would give, or
failed. A row is a JSON file that is whole or not there, so a run that was stopped goes on where it
was; a row is kept for as long as the files of its case, the model and the measures stay the same.
What failed is tried again.

    CASES/patients.csv              case,patient: for patients with several cases (optional)
    CASES/CASE/reference.nii.gz     the expert's mask
    CASES/CASE/prediction.nii.gz    a mask made before; or, with a model:
    CASES/CASE/flair.nii.gz         the image, with skull (without a model: for pictures)
    CASES/CASE/brain.nii.gz         its brain, where the image came stripped (optional)
    CASES/CASE/second.nii.gz        the mask of a second reader (optional)

Further columns of `patients.csv` go into the report as they are; these it knows: `centre`, `fold`,
`scanner`, `field_strength_t`, `sex`, `age`, `phenotype`, `semi_synthetic` and `in_training` (yes or
no), `repeat_of` (another case, of the same patient scanned again).
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, Protocol

import numpy as np
from pydantic import JsonValue

from dicom.errors import EmptyInputError, Outcome, SeriesError, StudyError, UnreadableError
from dicom.volume import Grid, read_nifti
from pipeline.brain import BrainMask, supplied_mask
from pipeline.flow import Segmenter, analyse
from pipeline.model_pack import Manifest
from training.case_pictures import draw_pictures
from training.case_rows import calibration_sums, disagreement_sums, lesion_rows, slice_rows
from training.metrics import compare, read_mask, refuse_other_grid
from training.voxel_metrics import NSD_TOLERANCE_MM, Mask

MEASURES_REVISION = "2"
"""Raised when a measure changes: rows of another revision are measured again."""

REFERENCE, PREDICTION, FLAIR, BRAIN, SECOND = (
    f"{name}.nii.gz" for name in ("reference", "prediction", "flair", "brain", "second")
)
PATIENTS = "patients.csv"
ROWS, PICTURES, RUN, SUMMARY = "cases", "pictures", "run.json", "summary.json"
"""Of the output: a file per case, its pictures, which cases were asked for, the figures."""
YES_OR_NO = ("semi_synthetic", "in_training")
COMPUTED_WITH = ("flairnode", "numpy", "scipy", "torch")

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
    about: Mapping[str, str] = field(default_factory=dict)
    """Further columns of `patients.csv` that are filled in."""


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
    lines = _read_patients(folder / PATIENTS, names)
    return tuple(
        Case(
            path.name,
            lines[path.name]["patient"],
            path,
            {
                column: value
                for column, value in lines[path.name].items()
                if column not in ("case", "patient") and value
            },
        )
        for path in folders
    )


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
        output: Rows go to `cases/NAME.json` below it, pictures to `pictures`.
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
            row = measured_with | measure_case(
                case, model, nsd_tolerance_mm, pictures=output / PICTURES
            )
        if not kept or row.get("about") != dict(case.about):
            row["about"] = dict(case.about)  # says who was measured, and changes no measure
            write_whole(path, row)
        if on_row is not None:
            on_row(row, kept=kept)
        rows.append(row)
    return tuple(rows)


def measure_case(
    case: Case,
    model: Model | None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    pictures: Path | None = None,
) -> Row:
    """What became of one case. Nothing that goes wrong in a case stops the others.

    Args:
        case: From `read_cases`.
        model: Segments the image; None: the prediction is read.
        nsd_tolerance_mm: Of the normalised surface distance.
        pictures: Folder for pictures of it; None: no pictures.
    """
    started = time.perf_counter()
    peak_is_of_case = _forget_peak()
    row: Row = {
        "outcome": Outcome.ANALYSED.value,
        "reason": "",
        "explanation": "",
        "metrics": None,
        "slices": None,
        "lesions": None,
        "second_reader": None,
        "calibration": None,
        "disagreement": None,
        "quality": None,
        "timing_s": None,
        "pictures": [],
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software(),
    }
    try:
        _measure(case, model, nsd_tolerance_mm, row, pictures)
    except QualityError as error:
        row |= _end(Outcome.NOT_ANALYSED, error.code, str(error))
    except StudyError as error:
        row |= _end(error.outcome, error.reason, str(error))
    except Exception as error:  # noqa: BLE001  # a fault of ours in one case is a row, not the end
        row |= _end(Outcome.FAILED, "internal-error", f"{type(error).__name__}: {error}")
    row["seconds"] = round(time.perf_counter() - started, 3)
    row["peak_memory_mib"] = _peak_mib() if peak_is_of_case else None
    return row


def software() -> dict[str, str]:
    """Versions of what computes."""
    return {"python": python_version(), **{name: version(name) for name in COMPUTED_WITH}}


def write_whole(path: Path, content: JsonValue | Row) -> None:
    """Write JSON so that a stop at any moment leaves the old file or the whole new one."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _measure(
    case: Case, model: Model | None, nsd_tolerance_mm: float, row: Row, pictures: Path | None
) -> None:
    reference, grid = read_mask(_there(case, REFERENCE))
    second = _second_reader(case, grid)
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
        "slices": slice_rows(reference, prediction, grid.spacing_mm),
        "lesions": lesion_rows(reference, prediction, grid.spacing_mm),
    }
    if second is not None:
        row["second_reader"] = {
            "against_reference": compare(reference, second, grid).as_json(),
            "against_prediction": compare(second, prediction, grid).as_json(),
        }
    if pictures is not None and (case.folder / FLAIR).is_file():
        row["pictures"] = _drawn(case, pictures, grid, (reference, prediction), row)


def _second_reader(case: Case, grid: Grid) -> Mask | None:
    path = case.folder / SECOND
    if not path.is_file():
        return None
    mask, other = read_mask(path)
    refuse_other_grid(grid, other)
    return mask


def _segmented(case: Case, model: Model, reference: Mask, grid: Grid, row: Row) -> Mask:
    """Lesions as the node would send them."""
    volume = read_nifti(_there(case, FLAIR))
    refuse_other_grid(grid, volume.grid)
    analysis = analyse(volume, model.segmenter, model.manifest, brain=_brain(case, volume.grid))
    row["quality"] = analysis.quality.as_json()
    row["timing_s"] = dict(analysis.timing_s)
    if analysis.quality.verdict == "fail":
        flag = next(flag for flag in analysis.quality.flags if flag.severity == "fail")
        raise QualityError(flag.code, flag.message)
    row["calibration"] = calibration_sums(analysis, reference)
    row["disagreement"] = disagreement_sums(analysis, reference)
    return np.asarray(analysis.lesions.labels > 0)


def _brain(case: Case, grid: Grid) -> BrainMask | None:
    path = case.folder / BRAIN
    return supplied_mask(read_nifti(path), grid) if path.is_file() else None


def _drawn(case: Case, folder: Path, grid: Grid, masks: tuple[Mask, Mask], row: Row) -> JsonValue:
    """Pictures are no measure: an image that cannot be drawn costs the pictures alone."""
    try:
        volume = read_nifti(case.folder / FLAIR)
        refuse_other_grid(grid, volume.grid)
        brain = _brain(case, grid)
        return draw_pictures(
            folder, case.name, volume, None if brain is None else brain.mask, masks
        )
    except StudyError as error:
        row["explanation"] = f"no pictures: {error}"
        return []


def _forget_peak() -> bool:
    """Let the kernel count the peak from here on; False where it cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_mib() -> float | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None


def _measured_with(case: Case, model: Model | None, nsd_tolerance_mm: float) -> Row:
    """What a row rests on: when it changes, the case is measured again."""
    names = [REFERENCE, *([PREDICTION] if model is None else []), FLAIR, BRAIN, SECOND]
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


def _read_patients(path: Path, cases: list[str]) -> dict[str, dict[str, str]]:
    """The line of every case; without a list every case is a patient."""
    if not path.is_file():
        return {name: {"patient": name} for name in cases}
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    if not table or not {"case", "patient"} <= set(table[0]):
        raise PatientListError(f"{path} needs a first line `case,patient` and a line for each case")
    lines: dict[str, dict[str, str]] = {}
    for line in table:
        if line["case"] in lines:
            raise PatientListError(f"{path} names the case {line['case']} twice")
        lines[line["case"]] = {
            column: (value or "").strip() for column, value in line.items() if column is not None
        }
    left_out = [name for name in cases if not lines.get(name, {}).get("patient")]
    if left_out:
        raise PatientListError(f"{path} names no patient for {', '.join(left_out)}")
    for name in cases:
        _check_line(path, name, lines)
    return lines


def _check_line(path: Path, name: str, lines: Mapping[str, Mapping[str, str]]) -> None:
    line = lines[name]
    for column in YES_OR_NO:
        if line.get(column, "") not in ("", "yes", "no"):
            raise PatientListError(
                f"{path}: {column} of {name} is {line[column]!r}, not yes, no or empty"
            )
    if age := line.get("age"):
        try:
            float(age)
        except ValueError:
            raise PatientListError(f"{path}: age of {name} is {age!r}, not a number") from None
    first = line.get("repeat_of")
    if first and (first == name or lines.get(first, {}).get("patient") != line["patient"]):
        raise PatientListError(
            f"{path}: {name} repeats {first!r}, which is no other case of the same patient"
        )


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
