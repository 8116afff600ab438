"""Agreement lesion by lesion: as Anima counts (MSSEG), and as the ISBI 2015 challenge counts.

The two differ in what one lesion is and in what "detected" means:

=========== ==================== ============== =================================================
            one lesion           smallest       detected
=========== ==================== ============== =================================================
Anima       shares faces         over 3 mm3     more than 10 % covered, by predictions that do not
                                                lie mostly outside (`compare_lesions`)
any overlap shares faces or      one voxel      one common voxel (`compare_any_overlap`)
            edges (18 neighbours)
=========== ==================== ============== =================================================

The edge cases of every figure stand in one table: `training/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from scipy import ndimage

from training.statistics import mean, pearson
from training.voxel_metrics import Mask, SpacingMm, ratio

LESION_OVERLAP_ALPHA = 0.10
LESION_OUTSIDE_BETA = 0.70
LESION_EXPLAINED_GAMMA = 0.65
LESION_MINIMUM_MM3 = 3.0
"""Defaults of Anima's `animaSegPerfAnalyzer` (CSegPerfApp), used in the MSSEG challenges."""

STRATA = ("<10", "10-50", "50-100", "100-500", ">500")
STRATUM_STARTS_MM3 = (10.0, 50.0, 100.0)
LARGE_MM3 = 500.0
"""Lesion sizes, mm3. 10, 50 and 100 belong to the stratum they begin, 500 to `100-500`."""

_EDGES = ndimage.generate_binary_structure(3, 2)  # 18 neighbours: those that share a face or edge


@dataclass(frozen=True, slots=True)
class LesionMetrics:
    """Agreement lesion by lesion, as Anima counts it."""

    reference_count: int
    """Lesions of the reference that are larger than 3 mm3."""
    prediction_count: int
    """Lesions of the prediction that are larger than 3 mm3."""
    detected_count: int
    """Lesions of the reference that the prediction detects."""
    confirmed_count: int
    """Lesions of the prediction that the reference confirms: the same test the other way."""

    @property
    def sensitivity(self) -> float | None:
        """Share of the reference's lesions that were detected. Anima: SensL."""
        return ratio(self.detected_count, self.reference_count)

    @property
    def ppv(self) -> float | None:
        """Share of the predicted lesions that are confirmed. Anima: PPVL."""
        return ratio(self.confirmed_count, self.prediction_count)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; 0 where nothing agrees (Anima writes NaN there)."""
        if self.reference_count == 0 and self.prediction_count == 0:
            return None
        sensitivity, ppv = self.sensitivity or 0.0, self.ppv or 0.0
        return ratio(2 * sensitivity * ppv, sensitivity + ppv) or 0.0

    def as_json(self) -> dict[str, JsonValue]:
        """The `lesion` of `flairnode metrics --json`."""
        return {
            "f1": self.f1,
            "sensitivity": self.sensitivity,
            "ppv": self.ppv,
            "reference_count": self.reference_count,
            "prediction_count": self.prediction_count,
            "detected_count": self.detected_count,
            "missed_count": self.reference_count - self.detected_count,
            "confirmed_count": self.confirmed_count,
            "false_count": self.prediction_count - self.confirmed_count,
        }


def compare_lesions(reference: Mask, prediction: Mask, spacing_mm: SpacingMm) -> LesionMetrics:
    """Count lesions as Anima does (animaSegPerfCAnalyzer, `getDetectionMarks`).

    Lesions are components that share faces; those of 3 mm3 or less become background in both
    masks. A lesion is detected if more than alpha of it is covered, and if the other mask's lesions
    that cover it, taken by decreasing overlap until gamma of the overlap is explained, all have
    at most beta of themselves outside every lesion.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    ours, our_count = _lesions(reference, voxel_mm3)
    theirs, their_count = _lesions(prediction, voxel_mm3)
    marked = (ours > 0) | (theirs > 0)
    pairs, voxels = np.unique(
        ours[marked].astype(np.int64) * (their_count + 1) + theirs[marked], return_counts=True
    )
    our, their = np.divmod(pairs, their_count + 1)
    return LesionMetrics(
        reference_count=our_count,
        prediction_count=their_count,
        detected_count=_detected(_Meetings(our, their, voxels, our_count)),
        confirmed_count=_detected(_Meetings(their, our, voxels, their_count)),
    )


@dataclass(frozen=True, slots=True)
class AnyOverlapLesion:
    """One component of a mask, however small."""

    volume_mm3: float
    met: bool
    """The other mask has at least one voxel in it."""

    @property
    def stratum(self) -> str:
        """Its size, one of `STRATA`."""
        volume_mm3 = round(self.volume_mm3, 6)  # 100 voxels of 0.1 mm3 are 10 mm3
        if volume_mm3 > LARGE_MM3:
            return STRATA[-1]
        return STRATA[int(np.searchsorted(STRATUM_STARTS_MM3, volume_mm3, side="right"))]


@dataclass(frozen=True, slots=True)
class Stratum:
    """Lesions of one size, or of all sizes: of each mask by the lesion's size in that mask."""

    reference_count: int
    found_count: int
    """Lesions of the reference that the prediction meets."""
    prediction_count: int
    false_count: int
    """Lesions of the prediction that meet nothing."""
    false_volume_ml: float

    @property
    def recall(self) -> float | None:
        """Share of the reference's lesions that are met. ISBI: LTPR."""
        return ratio(self.found_count, self.reference_count)

    @property
    def false_share(self) -> float | None:
        """Share of the predicted lesions that meet nothing. ISBI: LFPR."""
        return ratio(self.false_count, self.prediction_count)

    def as_json(self) -> dict[str, JsonValue]:
        """Counts and shares."""
        return {
            "recall": self.recall,
            "false_share": self.false_share,
            "reference_count": self.reference_count,
            "found_count": self.found_count,
            "prediction_count": self.prediction_count,
            "false_count": self.false_count,
            "false_volume_ml": self.false_volume_ml,
        }


@dataclass(frozen=True, slots=True)
class AnyOverlapMetrics:
    """Every component of both masks, and whether the other mask meets it."""

    reference: tuple[AnyOverlapLesion, ...]
    prediction: tuple[AnyOverlapLesion, ...]

    @property
    def all_sizes(self) -> Stratum:
        """Lesions of every size."""
        return _stratum(self.reference, self.prediction)

    @property
    def strata(self) -> dict[str, Stratum]:
        """Lesions by size. Add up the counts of cases; do not average their recalls."""
        return {
            name: _stratum(
                [lesion for lesion in self.reference if lesion.stratum == name],
                [lesion for lesion in self.prediction if lesion.stratum == name],
            )
            for name in STRATA
        }

    def as_json(self) -> dict[str, JsonValue]:
        """The `any_overlap` of `flairnode metrics --json`."""
        return {
            **self.all_sizes.as_json(),
            "strata_mm3": {name: one.as_json() for name, one in self.strata.items()},
        }


def compare_any_overlap(
    reference: Mask, prediction: Mask, spacing_mm: SpacingMm
) -> AnyOverlapMetrics:
    """Find the components of both masks (18 neighbours) and which of them meet the other mask."""
    voxel_mm3 = float(np.prod(spacing_mm))
    return AnyOverlapMetrics(
        _components(reference, prediction, voxel_mm3), _components(prediction, reference, voxel_mm3)
    )


@dataclass(frozen=True, slots=True)
class IsbiParts:
    """What one case gives to the ISBI 2015 score."""

    dsc: float | None
    ppv: float | None
    false_share: float | None
    """LFPR."""
    recall: float | None
    """LTPR."""
    volume_reference_ml: float
    volume_prediction_ml: float

    def as_json(self) -> dict[str, JsonValue]:
        """The `isbi_parts` of `flairnode metrics --json`."""
        return {
            "dsc": self.dsc,
            "ppv": self.ppv,
            "lfpr": self.false_share,
            "ltpr": self.recall,
        }


@dataclass(frozen=True, slots=True)
class IsbiScore:
    """The ISBI 2015 score of a cohort and its parts, 0 to 1; None is "not defined"."""

    score: float | None
    dsc: float | None
    ppv: float | None
    lfpr: float | None
    ltpr: float | None
    correlation: float | None
    n: int
    """Cases given. A part is the mean of the cases where it is defined."""

    def as_json(self) -> dict[str, JsonValue]:
        """The score, its parts and n."""
        return asdict(self)


def isbi_score(cases: Sequence[IsbiParts]) -> IsbiScore:
    """DSC/8 + PPV/8 + (1 - LFPR)/4 + LTPR/4 + Corr/4.

    Corr is Pearson's correlation of the *volumes across the cases*, so one case has no score, and
    neither has a cohort where another part is defined for no case.

    Source:
        Carass et al. 2017, NeuroImage 148:77 (the 2015 Longitudinal MS Lesion Segmentation
        Challenge). What an empty mask gives is our choice: see the table in `training/metrics.py`.
    """
    dsc = mean([case.dsc for case in cases]).value
    ppv = mean([case.ppv for case in cases]).value
    lfpr = mean([case.false_share for case in cases]).value
    ltpr = mean([case.recall for case in cases]).value
    correlation = pearson(
        [case.volume_reference_ml for case in cases],
        [case.volume_prediction_ml for case in cases],
    ).value
    score = None
    if not (dsc is None or ppv is None or lfpr is None or ltpr is None or correlation is None):
        score = dsc / 8 + ppv / 8 + (1 - lfpr) / 4 + ltpr / 4 + correlation / 4
    return IsbiScore(score, dsc, ppv, lfpr, ltpr, correlation, len(cases))


def _stratum(
    reference: Iterable[AnyOverlapLesion], prediction: Iterable[AnyOverlapLesion]
) -> Stratum:
    reference, prediction = tuple(reference), tuple(prediction)
    false_mm3 = [lesion.volume_mm3 for lesion in prediction if not lesion.met]
    return Stratum(
        reference_count=len(reference),
        found_count=sum(lesion.met for lesion in reference),
        prediction_count=len(prediction),
        false_count=len(false_mm3),
        false_volume_ml=sum(false_mm3) / 1000,
    )


def _components(mask: Mask, other: Mask, voxel_mm3: float) -> tuple[AnyOverlapLesion, ...]:
    labels = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, structure=_EDGES, output=labels)
    sizes = np.bincount(labels[mask], minlength=count + 1)[1:]
    common = np.bincount(labels[mask & other], minlength=count + 1)[1:]
    return tuple(
        AnyOverlapLesion(int(size) * voxel_mm3, bool(both))
        for size, both in zip(sizes, common, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Meetings:
    """Voxels that a lesion of one mask and a lesion of the other share; 0 is background.

    Only pairs that meet: the table of all pairs of two noisy masks would not fit in memory.
    """

    ours: npt.NDArray[np.integer]
    theirs: npt.NDArray[np.integer]
    voxels: npt.NDArray[np.integer]
    our_count: int


def _detected(meetings: _Meetings) -> int:
    """How many of our lesions theirs detect."""
    ours, theirs, voxels = meetings.ours, meetings.theirs, meetings.voxels
    sizes = np.bincount(ours, voxels, minlength=1)
    their_sizes = np.bincount(theirs, voxels, minlength=1)
    their_outside = np.bincount(theirs[ours == 0], voxels[ours == 0], minlength=len(their_sizes))
    outside_share = their_outside / np.maximum(their_sizes, 1)
    met = np.flatnonzero((ours > 0) & (theirs > 0))
    # By lesion of ours, then by decreasing overlap; of equal ones the larger lesion of theirs.
    met = met[np.lexsort((theirs[met], -voxels[met], ours[met]))]
    starts = np.flatnonzero(np.diff(ours[met], prepend=0))
    return sum(
        _is_detected(
            int(sizes[ours[group[0]]]),
            voxels[group].tolist(),
            # Anima looks at no more of their lesions than there are of *ours*, background included.
            outside_share[theirs[group]].tolist()[: meetings.our_count + 1],
        )
        for group in np.split(met, starts[1:])
        if len(group)
    )


def _is_detected(size: int, overlaps: list[int], outside_shares: list[float]) -> bool:
    covered = sum(overlaps)
    if covered / size <= LESION_OVERLAP_ALPHA:
        return False
    explained = 0.0
    for overlap, outside in zip(overlaps, outside_shares, strict=False):
        if explained >= LESION_EXPLAINED_GAMMA:
            break
        if outside > LESION_OUTSIDE_BETA:
            return False
        explained += overlap / covered
    return True


def _lesions(mask: Mask, voxel_mm3: float) -> tuple[npt.NDArray[np.int32], int]:
    """Components by descending size (of equal ones the first voxel decides), small ones dropped.

    The order is ITK's RelabelComponentImageFilter's; it decides between equal overlaps.
    """
    components = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=components)  # faces: ITK's default too
    inside = np.flatnonzero(components)
    numbers, first, sizes = np.unique(
        components.ravel()[inside], return_index=True, return_counts=True
    )
    smallest = int(LESION_MINIMUM_MM3 / voxel_mm3) + 1  # strictly larger than 3 mm3
    large = np.flatnonzero(sizes >= smallest)
    order = large[np.lexsort((first[large], -sizes[large]))]
    renumbered = np.zeros(int(numbers.max(initial=0)) + 1, np.int32)
    renumbered[numbers[order]] = np.arange(1, len(order) + 1)
    return renumbered[components], len(order)
