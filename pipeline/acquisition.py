"""How a FLAIR was acquired, in plain numbers: what a result is compared by with others.

The node keeps it beside each result and a validation beside each case, by this one function, so
that the two can be held against each other (`training.drift`). Nothing here is of a patient.
"""

from __future__ import annotations

from pydantic import JsonValue

from config.selection import SelectionSettings, rules_in_force
from dicom.attributes import text
from dicom.frames import as_classic
from dicom.series import Series
from dicom.volume import Grid
from pipeline.header_facts import field_strength_t, physics_of
from pipeline.orientation import axial_view


def describe_acquisition(grid: Grid, series: Series | None) -> dict[str, JsonValue]:
    """Geometry, scanner, field strength and times; null for what nothing tells.

    Args:
        grid: Of the volume.
        series: Its images; None where it came without headers (NIfTI).
    """
    told: dict[str, JsonValue] = {
        "plane": axial_view(grid).acquired,
        "slices": grid.shape[0],
        "rows": grid.shape[1],
        "columns": grid.shape[2],
        "spacing_mm": [round(step, 4) for step in grid.spacing_mm],
        "scanner": None,
        "field_strength_t": None,
        "repetition_ms": None,
        "echo_ms": None,
        "inversion_ms": None,
    }
    if series is None:
        return told
    series = as_classic(series)
    physics = physics_of(series, rules_in_force(SelectionSettings()))
    maker = (text(series.header, name) for name in ("Manufacturer", "ManufacturerModelName"))
    return told | {
        "scanner": " ".join(filter(None, maker)) or None,
        "field_strength_t": field_strength_t(series),
        "repetition_ms": physics.repetition_ms,
        "echo_ms": physics.echo_ms,
        "inversion_ms": physics.inversion_ms,
    }
