"""What the file of a case holds beside its measures: its slices, its lesions, its doubt.

A report must be able to show where a figure comes from, and to compute another one, without the
images: so each slice keeps its voxel counts, and each lesion its volume and its place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import JsonValue
from scipy import ndimage

from pipeline.flow import Analysis
from training.slice_metrics import OverlapRule, slice_overlaps
from training.statistics import Calibration, calibration
from training.voxel_metrics import Mask, SpacingMm, contour_distances, overlap

SHARES_EDGES = ndimage.generate_binary_structure(3, 2)
"""What one lesion is to `compare_any_overlap`: 18 neighbours."""
LARGEST_DISAGREEMENT = 0.5  # standard deviation of values within 0..1


def slice_rows(reference: Mask, prediction: Mask, spacing_mm: SpacingMm) -> JsonValue:
    """Each slice: its overlap by every rule, so that any threshold can be applied, and voxels."""
    by_rule = {rule: slice_overlaps(reference, prediction, rule) for rule in OverlapRule}
    rows: list[JsonValue] = []
    for index, each in enumerate(zip(*by_rule.values(), strict=True)):
        ours, theirs = reference[index : index + 1], prediction[index : index + 1]
        voxels = overlap(ours, theirs)
        rows.append(
            {
                "positive": each[0].positive,
                "predicted": each[0].predicted,
                **{rule.value: one.overlap for rule, one in zip(by_rule, each, strict=True)},
                "reference_voxels": voxels.reference,
                "prediction_voxels": voxels.prediction,
                "common_voxels": voxels.both,
                # Of the outlines: within one slice every voxel would be surface in space.
                "hd95_mm": contour_distances(ours, theirs, spacing_mm).percentile_mm(95),
            }
        )
    return rows


def lesion_rows(reference: Mask, prediction: Mask, spacing_mm: SpacingMm) -> JsonValue:
    """Every lesion of both masks: volume, slices, and whether the other mask meets it."""
    voxel_mm3 = float(np.prod(spacing_mm))
    return [
        {"of": of, **lesion}
        for of, mask, other in (
            ("reference", reference, prediction),
            ("prediction", prediction, reference),
        )
        for lesion in _lesions(mask, other, voxel_mm3)
    ]


def _lesions(mask: Mask, other: Mask, voxel_mm3: float) -> Iterator[dict[str, JsonValue]]:
    labels = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, structure=SHARES_EDGES, output=labels)
    sizes = np.bincount(labels[mask], minlength=count + 1)
    common = np.bincount(labels[mask & other], minlength=count + 1)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        yield {
            "volume_mm3": round(int(sizes[label]) * voxel_mm3, 6),
            "met": bool(common[label]),
            "first_slice": int(box[0].start),
            "last_slice": int(box[0].stop - 1),
        }


def calibration_sums(analysis: Analysis, reference: Mask) -> JsonValue:
    """Of the voxels of the brain: outside it all is 0, and right, and hides the rest."""
    inside = analysis.brain.mask
    return _sums(
        calibration(analysis.lesions.probability[inside].clip(0, 1), reference[inside]),
    )


def disagreement_sums(analysis: Analysis, reference: Mask) -> JsonValue:
    """How often a voxel of the brain is wrong, by how much the members disagree in it.

    `sum_probability` holds twice the standard deviation of the members, which is within 0..1.
    """
    inside = analysis.brain.mask
    wrong = (analysis.lesions.labels > 0)[inside] != reference[inside]
    share = (analysis.lesions.disagreement[inside] / LARGEST_DISAGREEMENT).clip(0, 1)
    return _sums(calibration(share, wrong))


def _sums(sums: Calibration) -> JsonValue:
    return {
        "count": list(sums.count),
        "sum_probability": list(sums.sum_probability),
        "sum_true": list(sums.sum_true),
    }
