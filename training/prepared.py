"""What `flairnode train prepare` left: read again, and believed only where its digests agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dicom.errors import StudyError
from dicom.volume import Grid, Volume, read_nifti
from pipeline.brain import SAME_PLACE_MM
from pipeline.model_pack import canonical_json
from pipeline.morphology import Mask
from training.prepare import CASES, IMAGE, MASK, PREPARED, ROW, SPLITS
from training.splits import TEST, Splits, SplitsDifferError, SplitsFileError, read_splits


class NotPreparedError(StudyError):
    """`flairnode train prepare` has not gone through to its end in this folder."""

    reason = "not-prepared"


class CaseChangedError(StudyError):
    """A prepared file is not the one that was prepared."""

    reason = "case-changed"


class GridMismatchError(StudyError):
    """Image and mask lie on different grids."""

    reason = "grid-mismatch"


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """One session, with its mask on its own grid."""

    name: str
    patient: str
    part: str
    """`test`, `fold 0` to `fold 4`, or "" where there are no folds by patient."""
    lesion_ml: float
    folder: Path
    files: Mapping[str, str]
    """SHA-256 of image and mask, by file name."""
    digest: str = ""
    """Of the voxels of both: as `training.splits.SplitCase`. Compression does not enter it."""

    def read(self) -> tuple[Volume, Mask]:
        """Image and lesion mask, (slices, rows, columns), on one grid.

        Raises:
            CaseChangedError: A file is gone or another one.
            GridMismatchError: The mask is on another grid.
            StudyError: Not readable.
        """
        for name, expected in self.files.items():
            path = self.folder / name
            if not path.is_file() or file_digest(path) != expected:
                raise CaseChangedError(
                    f"{name} was changed or removed after it was prepared: give "
                    "`flairnode train prepare` again"
                )
        image, mask = read_nifti(self.folder / IMAGE), read_nifti(self.folder / MASK)
        if mask.grid.shape != image.grid.shape or not _same_place(mask.grid, image.grid):
            raise GridMismatchError(
                f"the mask has {mask.grid.shape} voxels, the image {image.grid.shape}"
                if mask.grid.shape != image.grid.shape
                else "mask and image have the same shape but lie elsewhere"
            )
        return image, mask.voxels > 0.5


@dataclass(frozen=True, slots=True)
class PreparedCohort:
    """Every prepared case, and every patient's part."""

    cases: tuple[PreparedCase, ...]
    splits: Splits | None
    """None: no folds by patient."""

    @property
    def digest(self) -> str:
        """Of images and masks: another one is another cohort."""
        return _digest({case.name: [case.patient, case.digest] for case in self.cases})

    @property
    def splits_digest(self) -> str:
        """Of every patient's part; "" without splits."""
        if self.splits is None:
            return ""
        return _digest([self.splits.seed, list(self.splits.test), list(self.splits.folds)])


def read_prepared(folder: Path, *, patient_folds: bool) -> PreparedCohort:
    """The cases of a folder of `flairnode train prepare`.

    Args:
        folder: Its `--output`.
        patient_folds: Without them every case is trained on, and too few patients are no obstacle.

    Raises:
        NotPreparedError: Not prepared to the end, or refused.
        SplitsDifferError: The splits are of other images or masks.
        SplitsFileError, PatientInTwoPartsError: As `training.splits`.
    """
    try:
        report: Any = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        few = report["reason"] == "too-few-patients" and not patient_folds
        if report["outcome"] != "prepared" and not few:
            raise NotPreparedError(
                f"the cohort was refused: {report['reason']}: {report['explanation']}"
            )
        names = [row["case"] for row in report["cases"] if row["outcome"] == PREPARED]
        rows = {
            name: json.loads((folder / CASES / name / ROW).read_text(encoding="utf-8"))
            for name in sorted(names)
        }
        splits = read_splits(folder / SPLITS) if patient_folds else None
        if splits is not None:
            _refuse_other_cases(splits, rows)
        cases = tuple(_case(folder, row, splits) for row in rows.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotPreparedError(
            "no whole output of `flairnode train prepare` in this folder"
        ) from error
    if not cases:
        raise NotPreparedError("no case was prepared")
    return PreparedCohort(cases, splits)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _case(folder: Path, row: Mapping[str, Any], splits: Splits | None) -> PreparedCase:
    return PreparedCase(
        name=row["case"],
        patient=row["patient"],
        part="" if splits is None else splits.part(row["patient"]),
        lesion_ml=float(row["lesion_ml"]),
        folder=folder / CASES / row["case"],
        files={name: row["files"][name] for name in (IMAGE, MASK)},
        digest=_voxel_digest(row),
    )


def _voxel_digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{row['image_digest']}\0{row['mask_digest']}".encode()).hexdigest()


def _refuse_other_cases(splits: Splits, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """The splits were dealt for exactly these images and masks of these patients."""
    dealt = {case.name: (case.patient, case.digest) for case in splits.cases}
    here = {name: (row["patient"], _voxel_digest(row)) for name, row in rows.items()}
    if dealt != here:
        odd = sorted(
            name for name in dealt.keys() | here.keys() if dealt.get(name) != here.get(name)
        )
        raise SplitsDifferError(f"the splits are of another cohort: {', '.join(odd)}")


def _same_place(one: Grid, other: Grid) -> bool:
    apart = one.affine - other.affine
    corners = product(*((0, length - 1) for length in one.shape))
    farthest = max(float(np.linalg.norm(apart[:3] @ (*corner, 1))) for corner in corners)
    return farthest <= SAME_PLACE_MM


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


__all__ = [
    "TEST",
    "CaseChangedError",
    "GridMismatchError",
    "NotPreparedError",
    "PreparedCase",
    "PreparedCohort",
    "SplitsFileError",
    "file_digest",
    "read_prepared",
]
