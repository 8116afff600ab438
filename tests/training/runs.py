"""Runs to report on: rows of drawn masks, written as `validate run` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dicom.volume import Grid
from training.case_rows import lesion_rows, slice_rows
from training.metrics import compare
from training.validate import MEASURES_REVISION

GRID_SPACING_MM = (6.0, 0.5, 0.5)
SOFTWARE = {"python": "3.12", "flairnode": "0.1.0", "numpy": "2", "scipy": "1", "torch": "2"}


def case_row(
    name: str,
    reference: np.ndarray,
    prediction: np.ndarray,
    patient: str | None = None,
    about: Mapping[str, str] | None = None,
    **more: object,
) -> dict[str, Any]:
    """The row of an analysed case."""
    slices, rows, columns = reference.shape
    grid = Grid(np.diag([*GRID_SPACING_MM, 1.0]), (slices, rows, columns))
    row = {
        "case": name,
        "patient": patient or name,
        "measures_revision": MEASURES_REVISION,
        "nsd_tolerance_mm": 1.0,
        "model": {"name": "drawn", "version": "3", "digest": "5a", "settings": {"fold": [0]}},
        "sha256": {"reference.nii.gz": f"of {name}"},
        "outcome": "analysed",
        "reason": "",
        "explanation": "",
        "spacing_mm": list(GRID_SPACING_MM),
        "metrics": compare(reference, prediction, grid).as_json(),
        "slices": slice_rows(reference, prediction, grid.spacing_mm),
        "lesions": lesion_rows(reference, prediction, grid.spacing_mm),
        "second_reader": None,
        "calibration": None,
        "disagreement": None,
        "quality": None,
        "timing_s": None,
        "pictures": [],
        "measured_at": "2026-03-04T05:06:07+00:00",
        "software": SOFTWARE,
        "seconds": 1.5,
        "peak_memory_mib": 200.0,
        "about": dict(about or {}),
        **more,
    }
    read: dict[str, Any] = json.loads(json.dumps(row))
    return read


def refused_row(name: str, reason: str = "grid-mismatch") -> dict[str, Any]:
    """The row of a case that was not analysed."""
    empty = np.zeros((1, 1, 1), bool)
    return {
        **case_row(name, empty, empty),
        "outcome": "not_analysed",
        "reason": reason,
        "explanation": "the <other> grid",
        "metrics": None,
        "slices": None,
        "lesions": None,
    }


def write_run(
    folder: Path, rows: list[dict[str, Any]], asked: list[str] | None = None, seed: int = 7
) -> Path:
    """A folder as `validate run --output` leaves it."""
    (folder / "cases").mkdir(parents=True)
    for row in rows:
        (folder / "cases" / f"{row['case']}.json").write_text(json.dumps(row, indent=1))
    names = [row["case"] for row in rows] if asked is None else asked
    (folder / "run.json").write_text(json.dumps({"cases": names, "seed": seed}))
    return folder
