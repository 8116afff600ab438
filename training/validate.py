"""`flairnode validate run`: every case of a cohort measured against its reference.

A row per case, whatever becomes of it: measured, refused with the reason the node would give, or
failed. A row is a JSON file that is whole or not there, so a run that was stopped goes on where it
was; a row is kept for as long as the files of its case, the model and the measures stay the same.
What failed is tried again. Cases come from a cohort (`training.validate_cohort`) or from a folder:

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
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, Protocol

import numpy as np
from pydantic import JsonValue

from dicom.errors import EmptyInputError, Outcome, SeriesError, StudyError
from dicom.volume import Grid
from pipeline.brain import strip_skull
from pipeline.brain_tools import Extract
from pipeline.flow import Analysis, Segmenter, analyse
from pipeline.model_pack import Manifest
from training.case_inputs import FLAIR as FLAIR  # what a folder of cases is made of
from training.case_inputs import PREDICTION as PREDICTION
from training.case_inputs import REFERENCE as REFERENCE
from training.case_inputs import Files, Image, NiftiFiles, NotSelectedError
from training.case_pictures import draw_pictures
from training.case_rows import calibration_sums, disagreement_sums, lesion_rows, slice_rows
from training.metrics import compare, refuse_other_grid
from training.voxel_metrics import NSD_TOLERANCE_MM, Mask

MEASURES_REVISION = "2"
"""Raised when a measure changes: rows of another revision are measured again."""

PATIENTS = "patients.csv"
ROWS, PICTURES, RUN, SUMMARY = "cases", "pictures", "run.json", "summary.json"
"""Of the output: a file per case, its pictures, which cases were asked for, the figures."""
YES_OR_NO = ("semi_synthetic", "in_training")
PROCESS_ENDED = "process-ended"
"""Reason of a case whose process was killed."""
COMPUTED_WITH = ("flairnode", "numpy", "scipy", "torch")

Row = dict[str, Any]
"""What a case's JSON file holds."""


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
    """One examination with its reference."""

    name: str
    patient: str
    files: Files
    about: Mapping[str, str] = field(default_factory=dict)
    """What is known of it: columns of `patients.csv`, or of the cohort, that are filled in."""


@dataclass(frozen=True, slots=True)
class Model:
    """A pack that is loaded and warm, and what to call it."""

    segmenter: Segmenter
    manifest: Manifest
    identity: Mapping[str, JsonValue]
    """Name, version, digest and result-changing settings; another identity, another row."""
    extract: Extract = strip_skull
    """The skull strip of the site."""


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
            NiftiFiles(path.name, path),
            {
                column: value
                for column, value in lines[path.name].items()
                if column not in ("case", "patient") and value
            },
        )
        for path in folders
    )


def run(
    cases: Iterable[Case],
    output: Path,
    model: Model | None = None,
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    on_row: OnRow | None = None,
) -> tuple[Row, ...]:
    """Measure every case that has no row yet; the rows of all, without their lesions.

    Args:
        cases: From `read_cases` or `training.validate_cohort`.
        output: Rows go to `cases/NAME.json` below it, pictures to `pictures`.
        model: Segments every image; None: every `prediction.nii.gz` is read.
        nsd_tolerance_mm: Of the normalised surface distance.
        on_row: Told of each case.
    """
    (output / ROWS).mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases:
        row, kept = settle_case(case, output, model, nsd_tolerance_mm)
        if on_row is not None:
            on_row(row, kept=kept)
        rows.append(slim(row))
    return tuple(rows)


def settle_case(
    case: Case, output: Path, model: Model | None, nsd_tolerance_mm: float
) -> tuple[Row, bool]:
    """The row of one case, written; and whether it is from an earlier run."""
    path = row_path(output, case)
    measured_with = _measured_with(case, model, nsd_tolerance_mm)
    row = _kept_row(path, measured_with)
    kept = row is not None
    if row is None:
        row = measured_with | measure_case(
            case, model, nsd_tolerance_mm, pictures=output / PICTURES
        )
    about = _told_by_header(row) | dict(case.about)
    if not kept or row.get("about") != about:
        row["about"] = about  # says who was measured, and changes no measure
        write_whole(path, row)
    return row, kept


def write_lost(case: Case, output: Path, explanation: str) -> Row:
    """The row of a case whose process was ended from outside; a later run tries it again."""
    row = {
        "case": case.name,
        "patient": case.patient,
        "measures_revision": MEASURES_REVISION,
        "nsd_tolerance_mm": None,
        "model": None,
        "sha256": {},
        **_nothing_measured(),
        **_end(Outcome.FAILED, PROCESS_ENDED, explanation),
        "seconds": 0.0,
        "peak_memory_mib": None,
        "about": dict(case.about),
    }
    write_whole(row_path(output, case), row)
    return row


def row_path(output: Path, case: Case) -> Path:
    """Where the row of a case lies."""
    return output / ROWS / f"{case.name}.json"


def slim(row: Row) -> Row:
    """A row as it is held in memory: its lesions, which only the tables need, stay in its file."""
    return {name: value for name, value in row.items() if name != "lesions"}


def measure_case(
    case: Case,
    model: Model | None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    pictures: Path | None = None,
) -> Row:
    """What became of one case. Nothing that goes wrong in a case stops the others.

    Args:
        case: Of `run`.
        model: Segments the image; None: the prediction is read.
        nsd_tolerance_mm: Of the normalised surface distance.
        pictures: Folder for pictures of it; None: no pictures.
    """
    started = time.perf_counter()
    peak_is_of_case = _forget_peak()
    row = _nothing_measured()
    try:
        _measure(case, model, nsd_tolerance_mm, row, pictures)
    except QualityError as error:
        row |= _end(Outcome.NOT_ANALYSED, error.code, str(error))
    except NotSelectedError as error:
        row |= _end(error.end, error.code, str(error))
    except StudyError as error:
        row |= _end(error.outcome, error.reason, str(error))
    except Exception as error:  # noqa: BLE001  # a fault of ours in one case is a row, not the end
        row |= _end(Outcome.FAILED, "internal-error", f"{type(error).__name__}: {error}")
    row["seconds"] = round(time.perf_counter() - started, 3)
    row["peak_memory_mib"] = _peak_mib() if peak_is_of_case else None
    return row


def _nothing_measured() -> Row:
    return {
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
        "findings": None,
        "acquisition": None,
        "image_digest": None,
        "timing_s": None,
        "pictures": [],
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software(),
    }


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
    files = case.files
    image = _read_image(files, row) if model is not None or files.needs_image else None
    masks = files.masks(image)
    reference, grid = masks.reference, masks.grid
    brain = None
    if model is None or image is None:
        prediction = files.prediction(grid)
    else:
        analysis = _segmented(image, model, reference, row)
        prediction, brain = np.asarray(analysis.lesions.labels > 0), analysis.brain.mask
    row |= {
        "spacing_mm": [round(step, 4) for step in grid.spacing_mm],
        "metrics": compare(
            reference, prediction, grid, nsd_tolerance_mm=nsd_tolerance_mm
        ).as_json(),
        "slices": slice_rows(reference, prediction, grid.spacing_mm),
        "lesions": lesion_rows(reference, prediction, grid.spacing_mm),
    }
    if masks.second is not None:
        row["second_reader"] = {
            "against_reference": compare(reference, masks.second, grid).as_json(),
            "against_prediction": compare(masks.second, prediction, grid).as_json(),
        }
    if pictures is not None and files.has_image:
        row["pictures"] = _drawn(case, pictures, grid, image, brain, (reference, prediction), row)


def _read_image(files: Files, row: Row) -> Image:
    image = files.image()
    row["acquisition"] = dict(image.acquisition)
    row["image_digest"] = image.volume.pixel_digest
    return image


def _segmented(image: Image, model: Model, reference: Mask, row: Row) -> Analysis:
    """Lesions as the node would send them."""
    analysis = analyse(
        image.volume,
        model.segmenter,
        model.manifest,
        brain=image.brain,
        extract=model.extract,
        flags=image.flags,
    )
    row["quality"] = analysis.quality.as_json()
    row["timing_s"] = dict(analysis.timing_s)
    row["findings"] = {
        "lesion_count": len(analysis.findings.lesions),
        "total_volume_ml": analysis.findings.total_volume_ml,
    }
    if analysis.quality.verdict == "fail":
        flag = next(flag for flag in analysis.quality.flags if flag.severity == "fail")
        raise QualityError(flag.code, flag.message)
    row["calibration"] = calibration_sums(analysis, reference)
    row["disagreement"] = disagreement_sums(analysis, reference)
    return analysis


def _drawn(
    case: Case,
    folder: Path,
    grid: Grid,
    image: Image | None,
    brain: Mask | None,
    masks: tuple[Mask, Mask],
    row: Row,
) -> JsonValue:
    """Pictures are no measure: an image that cannot be drawn costs the pictures alone."""
    try:
        if image is None:
            image = _read_image(case.files, row)
            refuse_other_grid(grid, image.volume.grid)
        if brain is None and image.brain is not None:
            brain = image.brain.mask
        return draw_pictures(folder, case.name, image.volume, brain, masks)
    except StudyError as error:
        row["explanation"] = f"no pictures: {error}"
        return []


def _told_by_header(row: Row) -> dict[str, str]:
    """Scanner and field strength, where the cohort does not say them."""
    told = row.get("acquisition") or {}
    return {
        name: f"{told[name]:g}" if isinstance(told[name], float) else str(told[name])
        for name in ("scanner", "field_strength_t")
        if told.get(name)
    }


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
    return {
        "case": case.name,
        "patient": case.patient,
        "measures_revision": MEASURES_REVISION,
        "nsd_tolerance_mm": nsd_tolerance_mm,
        "model": None if model is None else dict(model.identity),
        "read_as": case.files.read_as,
        "sha256": case.files.digests(segmented=model is not None),
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


def _end(outcome: Outcome, reason: str, explanation: str) -> Row:
    return {"outcome": outcome.value, "reason": reason, "explanation": explanation}
