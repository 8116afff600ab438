"""`flairnode train prepare`: a site's cohort, looked at case by case, and dealt to its parts.

    DIR/cases/CASE/image.nii.gz         the FLAIR, on its own grid
    DIR/cases/CASE/mask.nii.gz          0 and 1, on the same grid
    DIR/cases/CASE/mask_rater2.nii.gz   of a second reader, where there is one
    DIR/cases/CASE/overlay.png          to look at
    DIR/cases/CASE/case.json            what is known of the case, or why it is excluded
    DIR/report.json, DIR/report.csv     all cases
    DIR/splits.json, DIR/audit.csv      every patient's part (`training.splits`)

`case.json` is written last, so a case is finished or not there; a finished one is kept for as long
as its files and the rules stay the same. A case that is refused stops the whole: then there are no
splits, unless it is said that the rest is to go on without it. Nothing says which file was read:
paths may hold names.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import acos, degrees
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)
from scipy import ndimage

from dicom.attributes import number, text
from dicom.errors import (
    BlankImageError,
    EmptyInputError,
    IncompleteSeriesError,
    StudyError,
    TruncatedFileError,
)
from dicom.series import read_study
from dicom.stacks import FEWEST_SLICES
from dicom.volume import Grid, Volume, read_nifti, read_volume, write_nifti
from pipeline.morphology import Mask
from pipeline.orientation import axial_view
from training.cohort import CohortCase
from training.contact_sheet import draw_contact_sheet
from training.entropy_rule import select_slices
from training.masks import (
    EmptyMaskError,
    MaskRules,
    MissingMaskError,
    SeveralMasksError,
    StandardMask,
    head_level,
    read_mask_for,
    refuse_mirrored,
    refuse_unlikely,
)
from training.splits import (
    FOLDS,
    PatientInTwoPartsError,
    SplitCase,
    Splits,
    settle_splits,
    write_audit,
)
from training.voxel_metrics import overlap
from training.whole_files import DiskFullError, write_text, write_whole

PREPARE_REVISION = "1"
"""Raised when a prepared case would come out differently: cases of another one are made again."""

CASES, IMAGE, MASK, SECOND_MASK = "cases", "image.nii.gz", "mask.nii.gz", "mask_rater2.nii.gz"
OVERLAY, ROW, SPLITS, AUDIT = "overlay.png", "case.json", "splits.json", "audit.csv"
PREPARED, EXCLUDED = "prepared", "excluded"
FIELD_TOLERANCE_T = 0.1  # scanners write 1.494 for 1.5
FEW_PER_FOLD = 5  # patients: below it a fold's figures say little, and the report says so

_MR = frozenset({MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage})

Row = dict[str, Any]
"""What a case's JSON file holds."""


class MissingImageError(StudyError):
    """The case has no image."""

    reason = "image-missing"


class SeveralImagesError(StudyError):
    """More than one image for one session, and nothing says which is meant."""

    reason = "several-images"


class NameAsPseudonymError(StudyError):
    """What the cohort calls a pseudonym is the name in the image's header."""

    reason = "name-as-pseudonym"


class SamePersonError(PatientInTwoPartsError):
    """One image or study belongs to two patients of the cohort."""


class Refusals(Enum):
    """What a refused case means for the others."""

    STOP = "stop"
    GO_ON = "go-on"


class EmptyMasks(Enum):
    """What a mask without a marked voxel means, if the case itself does not say lesion_free."""

    REFUSED = "refused"
    NEGATIVE = "negative"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a person has said about the whole cohort."""

    masks: MaskRules = field(default_factory=MaskRules)
    empty: EmptyMasks = EmptyMasks.REFUSED


class OnRow(Protocol):
    """Told of each case when its row is there."""

    def __call__(self, row: Row, *, kept: bool) -> None:
        """`kept`: from an earlier run."""


def prepare(
    cases: Sequence[CohortCase],
    output: Path,
    seed: int,
    rules: Rules,
    refusals: Refusals = Refusals.STOP,
    on_row: OnRow | None = None,
) -> Row:
    """Prepare every case that is not prepared yet, and deal the patients to their parts.

    Returns:
        The report, which is also written: `outcome` is "prepared", or "refused" with a `reason`.

    Raises:
        DiskFullError: The message says how much is finished, and stays so.
    """
    rows: list[Row] = []
    try:
        (output / CASES).mkdir(parents=True, exist_ok=True)
        for case in cases:
            row, kept = _row_of(case, output / CASES / case.name, rules)
            rows.append(row)
            if on_row is not None:
                on_row(row, kept=kept)
        report = _report(rows, seed, refusals, output)
        _write_report(output, report)
    except DiskFullError as error:
        raise DiskFullError(
            f"{error}: {len(rows)} of {len(cases)} cases are finished and stay; make room and give "
            "the same command again"
        ) from error
    return report


def prepare_case(case: CohortCase, folder: Path, rules: Rules) -> Row:
    """Read, check and write one case.

    Raises:
        StudyError: It is refused.
        DiskFullError: No space.
    """
    image, header = read_image(case)
    grid, view = image.grid, axial_view(image.grid)
    fewest = min(grid.shape[0], view.grid.shape[0])
    if fewest < FEWEST_SLICES:
        raise IncompleteSeriesError(f"{fewest} slices, at least {FEWEST_SLICES} are needed")
    if not np.ptp(image.voxels):
        raise BlankImageError("all voxels of the image are alike")
    mask_rules = MaskRules(case.slice_order or rules.masks.slice_order, rules.masks.labels)
    first = read_mask_for(image, _the_only_mask(case.masks), mask_rules)
    second = (
        read_mask_for(image, _the_only_mask(case.second_masks), mask_rules)
        if case.second_masks
        else None
    )
    if not first.mask.any() and not case.lesion_free and rules.empty is EmptyMasks.REFUSED:
        raise EmptyMaskError(
            "no voxel is marked: say that the patient is free of lesions, if somebody looked"
        )
    for one in (first, second):
        if one is not None:
            refuse_unlikely(one.mask, image)
            if not case.mask_checked:
                refuse_mirrored(one.mask, image)
    row = _described(case, image, header, first, second)
    _write_case(folder, case, image, first, second, row)
    return row


def read_image(case: CohortCase) -> tuple[Volume, Dataset | None]:
    """The FLAIR of a case, and the header of a DICOM series.

    Raises:
        MissingImageError, SeveralImagesError, NameAsPseudonymError: As they say.
        StudyError: It cannot be read as a volume.
    """
    if not case.images:
        raise MissingImageError("the case has no image")
    if len(case.images) > 1:
        raise SeveralImagesError(f"{len(case.images)} images for one session")
    (path,) = case.images
    if not path.exists():
        raise MissingImageError("the image is not there")
    if path.is_file() and path.name.lower().endswith((".nii", ".nii.gz")):
        return read_nifti(path), None
    study = read_study(path)
    damaged = [one for one in study.unreadable if one.reason != "not-dicom"]
    if damaged:
        raise TruncatedFileError(f"{len(damaged)} damaged files in the folder of the image")
    series = [one for one in study.series if text(one.header, "SOPClassUID") in _MR]
    if not series:
        raise MissingImageError("no MR image in the folder of the image")
    if len(series) > 1:
        raise SeveralImagesError(f"{len(series)} MR series in the folder of the image")
    header = series[0].header
    name = text(header, "PatientName")
    if "^" in name and case.patient.casefold() in name.casefold().split("^"):
        raise NameAsPseudonymError("the pseudonym is a part of PatientName in the image")
    return read_volume(series[0]), header


def _the_only_mask(masks: Sequence[Path]) -> Path:
    if not masks:
        raise MissingMaskError("the case has no mask")
    if len(masks) > 1:
        raise SeveralMasksError(f"{len(masks)} masks for one image, and nothing says which to use")
    return masks[0]


# --- one row --------------------------------------------------------------------------------


def _row_of(case: CohortCase, folder: Path, rules: Rules) -> tuple[Row, bool]:
    """The row of a case, and whether it is from an earlier run."""
    based_on: Row = {}
    try:
        based_on = _based_on(case, rules)
        kept = _kept_row(folder, based_on)
        if kept is not None:
            return kept, True
        folder.mkdir(exist_ok=True)
        row = prepare_case(case, folder, rules)
    except DiskFullError:
        raise
    except StudyError as error:
        row = _excluded(case, folder, error.reason, str(error))
    except OSError as error:
        # What the system says of a file repeats its path.
        row = _excluded(
            case, folder, "unreadable", f"a file cannot be read or written ({type(error).__name__})"
        )
        based_on = {}
    except Exception as error:  # noqa: BLE001  # a fault of ours in one case is a row, not the end
        row = _excluded(case, folder, "internal-error", type(error).__name__)
        based_on = {}  # tried again
    row["based_on"] = based_on
    write_text(folder / ROW, json.dumps(row, indent=1, allow_nan=False) + "\n")
    return row, False


def _excluded(case: CohortCase, folder: Path, reason: str, explanation: str) -> Row:
    """The row of a refused case; what an earlier run prepared of it is removed."""
    folder.mkdir(exist_ok=True)
    for name in (IMAGE, MASK, SECOND_MASK, OVERLAY):
        (folder / name).unlink(missing_ok=True)
    return {
        **_who(case),
        "outcome": EXCLUDED,
        "reason": reason,
        "explanation": explanation,
        "notes": [],
    }


def _who(case: CohortCase) -> Row:
    return {"case": case.name, "patient": case.patient, "session": case.session}


def _described(
    case: CohortCase,
    image: Volume,
    header: Dataset | None,
    first: StandardMask,
    second: StandardMask | None,
) -> Row:
    grid, view = image.grid, axial_view(image.grid)
    axial = view.apply(first.mask)
    _, row_mm, column_mm = view.grid.spacing_mm
    connected = ndimage.generate_binary_structure(3, 3)
    scanner, field_t, notes = _scanner(case, header)
    level = head_level(image)
    if image.lossy:
        notes.append("the images were compressed with loss")
    if first.mask.any() and np.median(image.voxels[first.mask]) < level:
        notes.append("the marked voxels are darker than the head: look at the overlay")
    if not first.mask.any():
        notes.append("no lesion: a negative")
    return {
        **_who(case),
        "outcome": PREPARED,
        "reason": "",
        "explanation": "",
        "notes": notes,
        "image_form": "nifti" if header is None else "dicom",
        "slices": grid.shape[0],
        "rows": grid.shape[1],
        "columns": grid.shape[2],
        "spacing_mm": [round(step, 4) for step in grid.spacing_mm],
        "plane": view.acquired,
        "tilt_deg": round(_tilt_deg(grid), 2),
        "lesion_ml": _volume_ml(first.mask, grid),
        "lesions": int(ndimage.label(first.mask, connected)[1]),
        "slices_with_lesions": int(np.count_nonzero(axial.any(axis=(1, 2)))),
        "entropy_rule": select_slices(axial, row_mm * column_mm).as_json(),
        "mask_form": first.form,
        "mask_found": first.found,
        "second_reader": None
        if second is None
        else {
            "lesion_ml": _volume_ml(second.mask, grid),
            "dice": overlap(first.mask, second.mask).dsc,
            "mask_form": second.form,
            "mask_found": second.found,
        },
        "scanner": scanner,
        "field_strength_t": field_t,
        "sex": case.sex,
        "age": case.age,
        "phenotype": case.phenotype,
        "image_digest": image.pixel_digest,
        "mask_digest": _mask_digest(first.mask),
        "study_tag": "" if header is None else _short(text(header, "StudyInstanceUID")),
    }


def _scanner(case: CohortCase, header: Dataset | None) -> tuple[str, float | None, list[str]]:
    """Scanner and field strength: what the site says, else what the header says."""
    if header is None:
        return case.scanner, case.field_strength_t, []
    told = f"{text(header, 'Manufacturer')} {text(header, 'ManufacturerModelName')}".strip()
    field_t = number(header, "MagneticFieldStrength")
    notes = []
    if (
        field_t is not None
        and case.field_strength_t is not None
        and abs(field_t - case.field_strength_t) > FIELD_TOLERANCE_T
    ):
        notes.append(f"the cohort says {case.field_strength_t:g} T, the image {field_t:g} T")
    return case.scanner or told, case.field_strength_t or field_t, notes


def _tilt_deg(grid: Grid) -> float:
    """Between the normal of the slices and the nearest axis of the patient."""
    normal = np.cross(grid.affine[:3, 1], grid.affine[:3, 2])
    return degrees(acos(min(1.0, float(np.abs(normal).max() / np.linalg.norm(normal)))))


def _volume_ml(mask: Mask, grid: Grid) -> float:
    return round(int(np.count_nonzero(mask)) * grid.voxel_volume_ml, 6)


def _write_case(
    folder: Path,
    case: CohortCase,
    image: Volume,
    first: StandardMask,
    second: StandardMask | None,
    row: Row,
) -> None:
    second_mask = None if second is None else second.mask
    heading = (
        f"{case.name}   {row['lesion_ml']:.2f} ml in {row['slices_with_lesions']} of "
        f"{row['slices']} slices   spacing {_spacing(row)} mm"
    )
    arrays: dict[str, npt.NDArray[Any]] = {IMAGE: image.voxels, MASK: first.mask}
    if second_mask is not None:
        arrays[SECOND_MASK] = second_mask
    else:
        (folder / SECOND_MASK).unlink(missing_ok=True)
    for name, array in arrays.items():
        write_whole(
            folder / name,
            lambda part, array=array: write_nifti(part, array, image.grid),  # type: ignore[misc]
        )
    write_whole(
        folder / OVERLAY,
        lambda part: draw_contact_sheet(part, image, first.mask, heading, second_mask),
    )
    row["files"] = {name: _file_digest(folder / name) for name in (*arrays, OVERLAY)}


def _based_on(case: CohortCase, rules: Rules) -> Row:
    """What a row rests on: when it changes, the case is prepared again."""
    return {
        "revision": PREPARE_REVISION,
        "images": [_input_digest(path) for path in case.images],
        "masks": [_input_digest(path) for path in case.masks],
        "second_masks": [_input_digest(path) for path in case.second_masks],
        "about": [
            case.patient,
            case.session,
            case.slice_order or rules.masks.slice_order,
            case.lesion_free,
            case.mask_checked,
            case.scanner,
            case.field_strength_t,
            case.sex,
            case.age,
            case.phenotype,
        ],
        "labels": rules.masks.labels.value,
        "empty": rules.empty.value,
    }


def _kept_row(folder: Path, based_on: Row) -> Row | None:
    """The row of an earlier run, if it rests on the same and its files are whole."""
    try:
        row = json.loads((folder / ROW).read_text(encoding="utf-8"))
        if not isinstance(row, dict) or row.get("based_on") != based_on:
            return None
        files = row.get("files", {})
        if row["outcome"] == PREPARED and MASK not in files:
            return None
        whole = all(_file_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # none yet, or not ours: prepared (again)
    return row if whole else None


def _input_digest(path: Path) -> str:
    """Of a file, or of all files of a folder. Names enter it: they order pictures."""
    if not path.is_dir():
        return _file_digest(path) if path.is_file() else ""
    digest = hashlib.sha256()
    for one in sorted(found for found in path.rglob("*") if found.is_file()):
        digest.update(f"{one.relative_to(path)}\0{_file_digest(one)}\0".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mask_digest(mask: Mask) -> str:
    return hashlib.sha256(str(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()


def _short(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:16] if uid else ""


# --- the whole cohort -----------------------------------------------------------------------


def _report(rows: Sequence[Row], seed: int, refusals: Refusals, output: Path) -> Row:
    prepared = [row for row in rows if row["outcome"] == PREPARED]
    excluded = [row for row in rows if row["outcome"] == EXCLUDED]
    report: Row = {
        "outcome": "prepared",
        "reason": "",
        "explanation": "",
        "seed": seed,
        "patients": len({row["patient"] for row in prepared}),
        "prepared": len(prepared),
        "excluded": len(excluded),
        "notes": _notes(prepared),
        "parts": None,
        "cases": [{k: v for k, v in row.items() if k not in ("based_on", "files")} for row in rows],
    }
    try:
        refuse_shared(prepared)
        if excluded and refusals is Refusals.STOP:
            reasons = sorted({row["reason"] for row in excluded})
            return report | {
                "outcome": "refused",
                "reason": "cases-refused",
                "explanation": f"{len(excluded)} of {len(rows)} cases were refused "
                f"({', '.join(reasons)}); mend them, or say that the rest is to go on",
            }
        if not prepared:
            raise EmptyInputError("every case was refused")
        splits = settle_splits(output / SPLITS, [_split_case(row) for row in prepared], seed)
        write_audit(output / AUDIT, splits)
    except DiskFullError:
        raise
    except StudyError as error:
        return report | {
            "outcome": "refused",
            "reason": error.reason,
            "explanation": str(error),
        }
    for row in report["cases"]:
        row["part"] = splits.part(row["patient"]) if row["outcome"] == PREPARED else ""
    report["parts"] = _parts(splits)
    smallest = min(len(fold) for fold in splits.folds)
    if smallest < FEW_PER_FOLD:
        report["notes"].append(
            f"a fold has {smallest} patients to be validated on: its figures will say little"
        )
    return report


def refuse_shared(prepared: Sequence[Row]) -> None:
    """One person under two pseudonyms would be trained on and tested on.

    Raises:
        SamePersonError: Two patients share an image or a study.
    """
    for what, key in (("image", "image_digest"), ("study", "study_tag")):
        for same in _sharing(prepared, key):
            raise SamePersonError(f"patients {' and '.join(same)} have one {what}")


def _sharing(rows: Sequence[Row], key: str) -> list[list[str]]:
    """Patients of different names with one value."""
    patients: dict[str, set[str]] = {}
    for row in rows:
        if row[key]:
            patients.setdefault(row[key], set()).add(row["patient"])
    return [sorted(same) for same in patients.values() if len(same) > 1]


def _split_case(row: Mapping[str, Any]) -> SplitCase:
    digest = hashlib.sha256(f"{row['image_digest']}\0{row['mask_digest']}".encode()).hexdigest()
    return SplitCase(row["case"], row["patient"], row["lesion_ml"], digest)


def _notes(prepared: Sequence[Row]) -> list[str]:
    notes = []
    fields = Counter(
        round(row["field_strength_t"], 1) for row in prepared if row["field_strength_t"]
    )
    if len(fields) > 1:
        counts = ", ".join(f"{count} at {field_t:g} T" for field_t, count in sorted(fields.items()))
        notes.append(f"mixed field strengths: {counts}")
    unknown = sum(row["field_strength_t"] is None for row in prepared)
    if fields and unknown:
        notes.append(f"field strength unknown in {unknown} cases")
    notes += [
        f"the masks of {' and '.join(same)} are the same: one may be of another patient"
        for same in _sharing([row for row in prepared if row["lesion_ml"]], "mask_digest")
    ]
    images = Counter(row["image_digest"] for row in prepared)
    for digest in (digest for digest, count in images.items() if count > 1):
        names = [row["case"] for row in prepared if row["image_digest"] == digest]
        notes.append(f"the images of {' and '.join(names)} are the same")
    negatives = sum(row["lesion_ml"] == 0 for row in prepared)
    if negatives:
        notes.append(f"{negatives} cases without a lesion")
    lost = [row for row in prepared if row["entropy_rule"]["removed_with_lesion"]]
    if lost:
        slices = sum(row["entropy_rule"]["removed_with_lesion"] for row in lost)
        largest = max(row["entropy_rule"]["largest_removed_mm2"] for row in lost)
        notes.append(
            f"the paper's entropy rule would remove {slices} slices with lesions of up to "
            f"{largest:.1f} mm2, in {len(lost)} cases (recipe paper-2d alone applies it)"
        )
    return notes


def _parts(splits: Splits) -> dict[str, JsonValue]:
    return {
        "test": list(splits.test),
        **{f"fold {number}": list(splits.folds[number]) for number in range(FOLDS)},
    }


_COLUMNS: tuple[tuple[str, Callable[[Row], object]], ...] = (
    ("case", lambda row: row["case"]),
    ("patient", lambda row: row["patient"]),
    ("session", lambda row: row["session"]),
    ("outcome", lambda row: row["outcome"]),
    ("reason", lambda row: row["reason"]),
    ("explanation", lambda row: row["explanation"]),
    ("part", lambda row: row.get("part", "")),
    ("slices", lambda row: row.get("slices", "")),
    ("rows", lambda row: row.get("rows", "")),
    ("columns", lambda row: row.get("columns", "")),
    ("spacing_mm", lambda row: _spacing(row)),
    ("plane", lambda row: row.get("plane", "")),
    ("lesion_ml", lambda row: row.get("lesion_ml", "")),
    ("lesions", lambda row: row.get("lesions", "")),
    ("slices_with_lesions", lambda row: row.get("slices_with_lesions", "")),
    ("slices_entropy_rule_removes", lambda row: _removed(row)),
    ("mask_form", lambda row: row.get("mask_form", "")),
    ("mask_found", lambda row: row.get("mask_found", "")),
    ("scanner", lambda row: row.get("scanner", "")),
    ("field_strength_t", lambda row: row.get("field_strength_t", "")),
    ("sex", lambda row: row.get("sex", "")),
    ("age", lambda row: row.get("age", "")),
    ("phenotype", lambda row: row.get("phenotype", "")),
    ("notes", lambda row: "; ".join(row["notes"])),
)


def _write_report(output: Path, report: Row) -> None:
    write_text(output / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([name for name, _ in _COLUMNS])
    for row in report["cases"]:
        values = (read(row) for _, read in _COLUMNS)
        writer.writerow(["" if value is None else value for value in values])
    write_text(output / "report.csv", table.getvalue())


def _removed(row: Row) -> object:
    return row["entropy_rule"]["removed_with_lesion"] if "entropy_rule" in row else ""


def _spacing(row: Row) -> str:
    return " x ".join(f"{step:g}" for step in row.get("spacing_mm", ()))


def in_words(report: Row) -> str:
    """The report for a person."""
    head = ("case", "part", "slices", "spacing mm", "lesion ml", "with lesions")
    lines = [
        (
            row["case"],
            row.get("part", ""),
            f"{row['slices']}",
            _spacing(row),
            f"{row['lesion_ml']:.2f}",
            f"{row['slices_with_lesions']}",
        )
        for row in report["cases"]
        if row["outcome"] == PREPARED
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    text_lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    ]
    for row in report["cases"]:
        if row["outcome"] == EXCLUDED:
            text_lines.append(f"{row['case']}: excluded: {row['reason']}: {row['explanation']}")
        text_lines += [f"{row['case']}: {note}" for note in row["notes"]]
    text_lines += report["notes"]
    text_lines.append(
        f"{report['prepared']} cases of {report['patients']} patients prepared, "
        f"{report['excluded']} excluded; seed {report['seed']}"
    )
    if report["parts"] is not None:
        sizes = (f"{part} {len(patients)}" for part, patients in report["parts"].items())
        text_lines.append(f"patients by part: {', '.join(sizes)}")
    else:
        text_lines.append(f"no splits: {report['reason']}: {report['explanation']}")
    return "\n".join(text_lines)
