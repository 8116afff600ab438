"""Slice by slice: does a slice with lesions count as found, and is a slice without left alone?

The paper's question, made exact. A slice is positive when the reference marks a voxel in it.

=================== ============================================================================
true positive (TP)  positive, and the overlap is at least tau (inclusive; tau = 0: one voxel)
false negative (FN) positive, and not TP; also when the prediction marks something else in it
true negative (TN)  negative, and the prediction marks nothing in it
false positive (FP) negative, and the prediction marks a voxel in it
=================== ============================================================================

Every slice is exactly one of these. Specificity does not depend on tau.

The paper says "a volumetric overlap of at least 10 % compared to the ground truth" and no more;
`OverlapRule` names the three ways to read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pydantic import JsonValue
from scipy import ndimage

from training.voxel_metrics import Mask, overlap

TAU = 0.10
SWEEP = tuple(step / 100 for step in range(101))
LEVELS = 3
"""Thirds of a stack: top and base of the head hold few lesions, the middle most."""

Stratum = Callable[["SlicePlace"], object]
STRATA: tuple[Stratum, ...] = (
    lambda place: (place.patient, place.level),
    lambda place: place.patient,
    lambda place: place.level,
    lambda _: None,
)
"""What a negative shares with the positive it is drawn for: as much as can be had."""

_CORNERS = ndimage.generate_binary_structure(2, 2)


class OverlapRule(StrEnum):
    """What the overlap of a positive slice is: reference G, prediction P."""

    OVERLAP = "overlap"
    """|P and G| / |G|, over the slice: the rule unless another is named."""
    ANY_LESION = "any_lesion"
    """The same of each lesion (component of 8 neighbours) of the slice; the largest."""
    IOU = "iou"
    """|P and G| / |P or G|, over the slice."""


@dataclass(frozen=True, slots=True)
class SliceOverlap:
    """One slice, before a threshold decides."""

    positive: bool
    """The reference marks a voxel."""
    predicted: bool
    """The prediction marks a voxel."""
    overlap: float
    """By the rule; 0 in a negative slice."""

    def found(self, tau: float) -> bool:
        """Positive, and overlapped enough."""
        return self.positive and self.overlap > 0 and self.overlap >= tau


@dataclass(frozen=True, slots=True)
class SliceCounts:
    """A two-by-two table of slices."""

    tp: int
    fn: int
    tn: int
    fp: int

    def __add__(self, other: SliceCounts) -> SliceCounts:
        return SliceCounts(
            self.tp + other.tp, self.fn + other.fn, self.tn + other.tn, self.fp + other.fp
        )

    @property
    def n(self) -> int:
        """All slices."""
        return self.tp + self.fn + self.tn + self.fp

    @property
    def rates(self) -> dict[str, tuple[int, int]]:
        """Each rate as (part, whole), so that its interval gets the right n."""
        return {
            "accuracy": (self.tp + self.tn, self.n),
            "sensitivity": (self.tp, self.tp + self.fn),
            "specificity": (self.tn, self.tn + self.fp),
            "ppv": (self.tp, self.tp + self.fp),
            "npv": (self.tn, self.tn + self.fn),
        }

    def as_json(self) -> dict[str, JsonValue]:
        """The four counts."""
        return {"tp": self.tp, "fn": self.fn, "tn": self.tn, "fp": self.fp}


def slice_overlaps(
    reference: Mask, prediction: Mask, rule: OverlapRule = OverlapRule.OVERLAP
) -> tuple[SliceOverlap, ...]:
    """Every slice of two masks (slices, rows, columns)."""
    return tuple(
        SliceOverlap(bool(of.any()), bool(by.any()), _overlap(of, by, rule))
        for of, by in zip(reference, prediction, strict=True)
    )


def count_slices(slices: Iterable[SliceOverlap], tau: float = TAU) -> SliceCounts:
    """The table at one threshold."""
    tp = fn = tn = fp = 0
    for one in slices:
        if one.positive:
            tp, fn = (tp + 1, fn) if one.found(tau) else (tp, fn + 1)
        else:
            tn, fp = (tn, fp + 1) if one.predicted else (tn + 1, fp)
    return SliceCounts(tp, fn, tn, fp)


def sweep(slices: Iterable[SliceOverlap]) -> tuple[tuple[float, SliceCounts], ...]:
    """The table at tau = 0, 0.01, ... 1. TP never rises."""
    slices = tuple(slices)
    return tuple((tau, count_slices(slices, tau)) for tau in SWEEP)


@dataclass(frozen=True, slots=True, order=True)
class SlicePlace:
    """Which slice of which patient: `case` tells two studies of one patient apart."""

    patient: str
    case: str
    index: int
    slices: int
    """Of the case's stack."""

    @property
    def level(self) -> int:
        """Which third of the stack, 0 to 2."""
        return self.index * LEVELS // self.slices


def draw_negatives(positives: Mapping[SlicePlace, bool], seed: int) -> tuple[SlicePlace, ...]:
    """As many negative slices as there are positive ones, as the paper did; all if there are fewer.

    For each positive slice one negative of the same patient and third of the stack. Where these run
    out: of the same patient, then of the same third, then any. No slice is drawn twice.

    Args:
        positives: Every slice, and whether it is positive. The order does not matter.
        seed: The same seed draws the same slices.
    """
    random = np.random.default_rng(seed)
    wanted = sorted(place for place, positive in positives.items() if positive)
    left = sorted(place for place, positive in positives.items() if not positive)
    left = [left[index] for index in random.permutation(len(left))]
    drawn: list[SlicePlace] = []
    for same in STRATA:
        by_stratum: dict[object, list[SlicePlace]] = {}
        for place in left:
            by_stratum.setdefault(same(place), []).append(place)
        unmet = []
        for place in wanted:
            if candidates := by_stratum.get(same(place)):
                drawn.append(candidates.pop())
            else:
                unmet.append(place)
        taken = set(drawn)
        wanted, left = unmet, [place for place in left if place not in taken]
    return tuple(sorted(drawn))


def predictive_values(
    sensitivity: float | None, specificity: float | None, prevalence: float
) -> tuple[float | None, float | None]:
    """PPV and NPV where another share of slices is positive (Bayes).

    A 1:1 draw has a prevalence of one half by construction, and its PPV and NPV hold for no
    clinic. None where they are not defined.

    Raises:
        ValueError: A prevalence outside 0..1.
    """
    if not 0 <= prevalence <= 1:
        raise ValueError(f"a prevalence of {prevalence:g} is not within 0..1")
    if sensitivity is None or specificity is None:
        return None, None
    true_positive, false_negative = prevalence * sensitivity, prevalence * (1 - sensitivity)
    true_negative, false_positive = (
        (1 - prevalence) * specificity,
        (1 - prevalence) * (1 - specificity),
    )
    predicted, left_alone = true_positive + false_positive, true_negative + false_negative
    return (
        true_positive / predicted if predicted else None,
        true_negative / left_alone if left_alone else None,
    )


def _overlap(reference: Mask, prediction: Mask, rule: OverlapRule) -> float:
    both = overlap(reference, prediction)
    if not both.both:
        return 0.0
    match rule:
        case OverlapRule.OVERLAP:
            return both.both / both.reference
        case OverlapRule.IOU:
            return both.iou or 0.0
        case OverlapRule.ANY_LESION:
            labels, _ = ndimage.label(reference, structure=_CORNERS)
            sizes, common = (
                np.bincount(labels[reference]),
                np.bincount(labels[reference & prediction]),
            )
            return float((common[1:] / sizes[1 : len(common)]).max())
