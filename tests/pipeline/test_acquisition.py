"""How a series was acquired, in the form that the node and a validation both keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dicom.series import read_series
from dicom.volume import Grid, read_volume
from pipeline.acquisition import describe_acquisition
from tests.conftest import FlairSeries


def test_geometry_scanner_and_times_are_told_and_nothing_of_the_patient(
    make_flair_series: Callable[..., FlairSeries],
) -> None:
    made = make_flair_series(
        patient_name="Secret^Person",
        overrides={
            "Manufacturer": "GE MEDICAL SYSTEMS",
            "ManufacturerModelName": "Signa HDxt",
            "MagneticFieldStrength": "1.5",
            "InversionTime": 0,  # as GE writes it where there is none
            "InstitutionName": "Secret House",
        },
    )
    told = describe_acquisition(read_volume(made.series).grid, made.series)
    assert told == {
        "plane": "axial",
        "slices": 10,
        "rows": 48,
        "columns": 36,
        "spacing_mm": [6.5, 0.5, 0.75],
        "scanner": "GE MEDICAL SYSTEMS Signa HDxt",
        "field_strength_t": 1.5,
        "repetition_ms": 9000.0,
        "echo_ms": 120.0,
        "inversion_ms": None,
    }
    assert "ecret" not in json.dumps(told)


def test_an_enhanced_series_tells_it_from_its_functional_groups(shared_data: Path) -> None:
    (path,) = (shared_data / "dicom_samples" / "siemens_enhanced_mr").glob("*.dcm")
    grid = Grid(np.diag([5.0, 0.5, 0.5, 1.0]), (8, 16, 16))
    told = describe_acquisition(grid, read_series([path]))
    assert (told["echo_ms"], told["scanner"]) == (2.46, "Siemens")
    assert told["repetition_ms"] is None  # the object does not say it


def test_nifti_tells_its_geometry_alone(make_flair_series: Callable[..., FlairSeries]) -> None:
    grid = read_volume(make_flair_series().series).grid
    told = describe_acquisition(grid, None)
    assert told["spacing_mm"] == [6.5, 0.5, 0.75]
    assert [told[name] for name in ("scanner", "field_strength_t", "echo_ms")] == [None] * 3
