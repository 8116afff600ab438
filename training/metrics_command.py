"""`flairnode metrics`: one predicted mask against one reference."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training.metrics import PairMetrics, compare_files


def register_metrics(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type
    """Add the command."""
    metrics = subparsers.add_parser(
        "metrics",
        help="compare one predicted mask with a reference",
        description="Overlap, distance, volume, lesions (as Anima counts them, and by any overlap, "
        "by size) and slices of two NIfTI masks or label maps on one grid. Exit 0, or 3 when an "
        "input is refused.",
    )
    metrics.add_argument("reference", type=Path, help="NIfTI mask of the expert")
    metrics.add_argument("prediction", type=Path, help="NIfTI mask to judge")
    metrics.add_argument("--json", action="store_true", help="one JSON object on stdout")
    metrics.set_defaults(run=run_metrics)


def run_metrics(arguments: argparse.Namespace) -> int:
    """Compare, and print."""
    result = compare_files(arguments.reference, arguments.prediction)
    print(json.dumps(result.as_json()) if arguments.json else _in_words(result))
    return 0


def _in_words(result: PairMetrics) -> str:
    lesion, met, slices = result.lesion, result.any_overlap.all_sizes, result.slices
    within = f"{result.nsd_tolerance_mm:g} mm"
    return "\n".join(
        [
            f"Dice (DSC)        {_number(result.dsc)}",
            f"IoU               {_number(result.iou)}",
            f"sensitivity       {_number(result.sensitivity)}",
            f"PPV               {_number(result.ppv)}",
            f"HD95              {_number(result.hd95_mm, 'mm')}",
            f"NSD at {within:<11}{_number(result.nsd)}",
            f"  in the slice    {_number(result.nsd_in_plane)}",
            f"reference         {result.volume_reference_ml:.3f} ml, "
            f"{lesion.reference_count} lesions, {lesion.detected_count} of them detected",
            f"prediction        {result.volume_prediction_ml:.3f} ml, "
            f"{lesion.prediction_count} lesions, {lesion.confirmed_count} of them confirmed",
            f"volume error      {result.volume.signed_ml:+.3f} ml, "
            f"{_number(result.volume.signed_percent, '%')}",
            f"lesion F1         {_number(lesion.f1)}",
            f"lesion sens.      {_number(lesion.sensitivity)}",
            f"lesion PPV        {_number(lesion.ppv)}",
            f"any overlap       {met.found_count} of {met.reference_count} lesions met, "
            f"{met.false_count} false ones of {met.false_volume_ml:.3f} ml",
            *(
                f"  {size + ' mm3':<16}{one.found_count} of {one.reference_count} met, "
                f"{one.false_count} false"
                for size, one in result.any_overlap.strata.items()
            ),
            f"slices            TP {slices.tp}, FN {slices.fn}, TN {slices.tn}, FP {slices.fp}",
        ]
    )


def _number(value: float | None, unit: str = "") -> str:
    return "not defined" if value is None else f"{value:.4f} {unit}".rstrip()
