"""What the members of a run do on patients they never saw: through the node's own pipeline.

Fold K's member alone segments the patients that fold K was validated on, as a pack of one member:
skull strip, preprocessing, threshold and every rule as the node would apply them. nnU-Net's
`perform_actual_validation` does none of that. The test set is opened only when asked for, and then
by all members together.

Validation patients chose nothing here but `checkpoint_best`, which a pack does not use; still, a
recipe that was picked because its folds looked good has seen them. So this is called fold
validation, and no test.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from dicom.errors import Outcome
from pipeline.ensemble import load_ensemble
from pipeline.model_pack import ModelPack
from training.prepare import IMAGE, MASK
from training.prepared import PreparedCase
from training.validate import FLAIR, PATIENTS, REFERENCE, Model, OnRow, Row, read_cases, run
from training.whole_files import write_text

MEASURES = ("dice", "lesion_f1", "ppv", "sensitivity")


@dataclass(frozen=True, slots=True)
class Judged:
    """The rows of one fold, or of the test set."""

    fold: int | None
    """None: the test set, by all members."""
    rows: tuple[Row, ...]


def judge(
    folder: Path,
    fold: int | None,
    pack: ModelPack,
    cases: Sequence[PreparedCase],
    device: str,
    on_row: OnRow | None = None,
) -> Judged:
    """Segment prepared cases with a pack, and measure. Rows that are there already are kept.

    Args:
        folder: Rows go to `cases/NAME.json` below it.
        fold: Whose member the pack holds.
        pack: A member alone, or all.
        cases: That none of its members was trained on.
        device: Of the network.
        on_row: Told of each case.
    """
    _link(folder / "in", cases)
    ensemble = load_ensemble(pack, device=device)
    model = Model(
        ensemble,
        pack.manifest,
        {
            "name": pack.name,
            "version": pack.version,
            "digest": pack.digest,
            "settings": ensemble.settings(),
        },
    )
    return Judged(fold, run(read_cases(folder / "in"), folder, model, on_row=on_row))


def _link(folder: Path, cases: Sequence[PreparedCase]) -> None:
    """Lay prepared cases out as `training.validate` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "patient"])
    for case in cases:
        place = folder / case.name
        place.mkdir(exist_ok=True)
        for name, source in ((FLAIR, IMAGE), (REFERENCE, MASK)):
            (place / name).unlink(missing_ok=True)
            (place / name).symlink_to((case.folder / source).resolve())
        table.writerow([case.name, case.patient])
    write_text(folder / PATIENTS, text.getvalue())


def figures(judged: Iterable[Judged]) -> dict[str, JsonValue]:
    """Per fold, over folds, and every case: what stands in the manifest and on the card."""
    folds = [_figures_of(one) for one in judged]
    return {
        "folds": [dict(one) for one in folds],
        "over_folds": {
            name: _mean_and_sd([fold[name]["mean"] for fold in folds]) for name in MEASURES
        },
        "cases": sum(fold["cases"] for fold in folds),
        "patients": sum(fold["patients"] for fold in folds),
        "not_analysed": sum(len(fold["not_analysed"]) for fold in folds),
    }


def test_figures(judged: Judged) -> dict[str, JsonValue]:
    """The same of the test set."""
    found: dict[str, JsonValue] = _figures_of(judged)
    del found["fold"]
    return found


def _figures_of(judged: Judged) -> dict[str, Any]:
    analysed = [row for row in judged.rows if row["outcome"] == Outcome.ANALYSED]
    per_case = [
        {
            "case": row["case"],
            "dice": row["metrics"]["dsc"],
            "lesion_f1": row["metrics"]["lesion"]["f1"],
            "ppv": row["metrics"]["ppv"],
            "sensitivity": row["metrics"]["sensitivity"],
            "volume_reference_ml": row["metrics"]["volume_reference_ml"],
            "volume_prediction_ml": row["metrics"]["volume_prediction_ml"],
            "quality": row["quality"]["verdict"],
        }
        for row in analysed
    ]
    return {
        "fold": judged.fold,
        "cases": len(judged.rows),
        "patients": len({row["patient"] for row in judged.rows}),
        **{name: _mean_and_sd([one[name] for one in per_case]) for name in MEASURES},
        "volume_reference_ml": sum(one["volume_reference_ml"] for one in per_case),
        "volume_prediction_ml": sum(one["volume_prediction_ml"] for one in per_case),
        "per_case": per_case,
        "not_analysed": [
            {"case": row["case"], "reason": row["reason"]}
            for row in judged.rows
            if row["outcome"] != Outcome.ANALYSED
        ],
    }


def _mean_and_sd(values: Sequence[float | None]) -> dict[str, Any]:
    """Of the values that are defined; SD of the sample, from two on."""
    known = [value for value in values if value is not None]
    return {
        "n": len(known),
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
    }


def spacing_seen(
    judged: Iterable[Judged],
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """((low, high) of slices, (low, high) of pixels) in mm, of the cases that were analysed."""
    spacing = [
        row["spacing_mm"]
        for one in judged
        for row in one.rows
        if row["outcome"] == Outcome.ANALYSED
    ]
    if not spacing:
        return None
    slices = [one[0] for one in spacing]
    pixels = [value for one in spacing for value in one[1:]]
    return (min(slices), max(slices)), (min(pixels), max(pixels))


def mean_in_words(found: Mapping[str, Any]) -> str:
    """`0.61 (SD 0.08, n 5)`, or that there is none."""
    if found["mean"] is None:
        return "not defined"
    spread = "" if found["sd"] is None else f"SD {found['sd']:.3f}, "
    return f"{found['mean']:.3f} ({spread}n {found['n']})"
