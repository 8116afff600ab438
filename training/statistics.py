"""Numbers about numbers: intervals, agreement, calibration. Small, and each with its source.

Three rules hold throughout. What is not defined (the mean of nothing, the spread of one case, the
correlation of a constant) is None, `null` in JSON and "not defined" in words; never NaN. Every
estimate carries its n. Slices and lesions of one patient are not independent, so their intervals
come from drawing whole patients (`cluster_bootstrap`); a Wilson interval of slices is too narrow.

scipy holds the distributions. Its own intervals take whole counts only (`binomtest`) or rows that
are independent (`bootstrap`); the tests compare ours with them where both are defined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import atanh, isfinite, sqrt, tanh
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from scipy.special import fdtri, ndtr, ndtri, stdtrit

CONFIDENCE = 0.95
DRAWS = 2000  # the fewest whose 2.5 % tail, 50 draws, is steady in the second digit
SMALLEST_COHORT = 2
UNDEFINED_DRAWS_ALLOWED = 0.05
"""Above this share of draws without a value their spread says little: no interval is given."""
CALIBRATION_BINS = 10

Row = TypeVar("Row")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its interval, and how many it rests on. None is "not defined"."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def as_json(self) -> dict[str, JsonValue]:
        """`value`, `low`, `high`, `n`."""
        return asdict(self)


# Shares.


def proportion(part: int, whole: int, confidence: float = CONFIDENCE) -> Estimate:
    """A share with its Wilson interval; not defined for a whole of 0."""
    if whole == 0:
        return Estimate(None, None, None, 0)
    return Estimate(part / whole, *wilson(part / whole, whole, confidence), whole)


def wilson(share: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share of n.

    The share need not be a whole number out of n: the paper's intervals are such
    (`training/paper.py`).

    Source:
        Wilson 1927, J Am Stat Assoc 22:209; Brown, Cai, DasGupta 2001, Stat Sci 16:101. The tests
        compare it with `scipy.stats.binomtest(...).proportion_ci(method="wilson")`.
    """
    z = _z(confidence)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and 1 the formula gives exactly 0 and 1, but for the last digit of a float.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def agresti_coull(share: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Agresti and Coull's interval: Wald's, after z^2 more trials of which half succeed.

    Source:
        Agresti, Coull 1998, Am Stat 52:119; Brown, Cai, DasGupta 2001, Stat Sci 16:101.
    """
    z = _z(confidence)
    trials = n + z * z
    centre = (share * n + z * z / 2) / trials
    half = z * sqrt(centre * (1 - centre) / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


# Means.


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean and spread of the values that are defined."""

    value: float | None
    sd: float | None
    """With n - 1; not defined for one value."""
    low: float | None
    high: float | None
    """Student's t interval of the mean; for rows that are independent, so of patients."""
    n: int
    """Values that are defined."""
    undefined: int
    """Values left out, because they are not defined."""

    def as_json(self) -> dict[str, JsonValue]:
        """`value`, `sd`, `low`, `high`, `n`, `undefined`."""
        return asdict(self)


def mean(values: Sequence[float | None], confidence: float = CONFIDENCE) -> Mean:
    """The mean of what is defined; how many were not is part of the answer."""
    defined = [value for value in values if value is not None]
    n, undefined = len(defined), len(values) - len(defined)
    if n == 0:
        return Mean(None, None, None, None, 0, undefined)
    middle = float(np.mean(defined))
    if n < SMALLEST_COHORT:
        return Mean(middle, None, None, None, n, undefined)
    sd = float(np.std(defined, ddof=1))
    half = _t(confidence, n - 1) * sd / sqrt(n)
    return Mean(middle, sd, middle - half, middle + half, n, undefined)


# Whole patients drawn with replacement.


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A statistic of a cohort, and its spread over cohorts drawn from it."""

    value: float | None
    percentile: tuple[float, float] | None
    bca: tuple[float, float] | None
    """Corrected for bias and for skew; not defined where every draw is alike."""
    clusters: int
    """Patients."""
    n: int
    """Rows of all patients: cases, slices or lesions."""
    draws: int
    undefined_draws: int
    """Draws in which the statistic is not defined; left out."""
    seed: int

    def as_json(self) -> dict[str, JsonValue]:
        """Everything; intervals as `[low, high]`."""
        return {
            "value": self.value,
            "percentile": None if self.percentile is None else list(self.percentile),
            "bca": None if self.bca is None else list(self.bca),
            "clusters": self.clusters,
            "n": self.n,
            "draws": self.draws,
            "undefined_draws": self.undefined_draws,
            "seed": self.seed,
        }


def cluster_bootstrap(
    clusters: Mapping[str, Sequence[Row]],
    statistic: Callable[[Sequence[Row]], float | None],
    *,
    seed: int,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> Bootstrap:
    """Draw as many patients as there are, with replacement, again and again.

    With a handful of patients every bootstrap interval is too narrow: state the number of patients
    beside it.

    Args:
        clusters: The rows of each patient. The order of patients does not matter.
        statistic: Of the rows of several patients, a patient's as often as it was drawn; None
            where it is not defined. The order of rows must not matter to it.
        seed: The same seed gives the same interval.
        draws: How many cohorts.
        confidence: Of the intervals.

    Source:
        Efron, Tibshirani 1993, An Introduction to the Bootstrap (BCa, with the jackknife over
        patients; what `scipy.stats.bootstrap` cites); Field, Welsh 2007, J R Stat Soc B 69:369
        (whole clusters).
    """
    names = sorted(clusters)
    rows = [clusters[name] for name in names]

    def of(chosen: Sequence[int]) -> float | None:
        value = statistic([row for index in chosen for row in rows[index]])
        return None if value is None else _finite(value)

    count = len(names)
    everyone = range(count)
    value = of(everyone) if count else None
    drawn: list[float | None] = []
    if count >= SMALLEST_COHORT and value is not None:
        random = np.random.default_rng(seed)
        drawn = [of(chosen) for chosen in random.integers(0, count, (draws, count)).tolist()]
    defined = np.array([one for one in drawn if one is not None])
    undefined = len(drawn) - len(defined)
    percentile = bca = None
    if value is not None and drawn and undefined <= UNDEFINED_DRAWS_ALLOWED * len(drawn):
        left_out = [of([index for index in everyone if index != out]) for out in everyone]
        percentile = _between(defined, (1 - confidence) / 2, (1 + confidence) / 2)
        bca = _bca(value, defined, left_out, confidence)
    return Bootstrap(
        value=value,
        percentile=percentile,
        bca=bca,
        clusters=count,
        n=sum(len(some) for some in rows),
        draws=len(drawn),
        undefined_draws=undefined,
        seed=seed,
    )


def paired_bootstrap(
    clusters: Mapping[str, Sequence[tuple[Row, Row]]],
    statistic: Callable[[Sequence[Row]], float | None],
    *,
    seed: int,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> Bootstrap:
    """The statistic of the first of each pair less that of the second: two packs on the same rows.

    Both are computed on the same patients in every draw, so what makes a patient hard for both
    packs cancels. An interval that holds 0 does not show that the packs are alike.
    """

    def difference(pairs: Sequence[tuple[Row, Row]]) -> float | None:
        first = statistic([pair[0] for pair in pairs])
        second = statistic([pair[1] for pair in pairs])
        return None if first is None or second is None else first - second

    return cluster_bootstrap(clusters, difference, seed=seed, draws=draws, confidence=confidence)


def ratio_bootstrap(
    clusters: Mapping[str, Sequence[tuple[float, float]]],
    *,
    less: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    seed: int,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> Bootstrap:
    """`cluster_bootstrap` of the sum of parts over the sum of wholes: the same draws, at once.

    A share is parts of wholes; a mean is values of wholes of 1, and (0, 0) where it is not defined.

    Args:
        clusters: Part and whole of each row of each patient.
        less: Of the same patients; their ratio is taken from the first: two packs on the same rows
            (`paired_bootstrap`).
        seed: The same seed gives the same interval.
        draws: How many cohorts.
        confidence: Of the intervals.
    """
    names = sorted(clusters)
    tables = [clusters] if less is None else [clusters, less]
    sums = np.array(
        [[np.sum(table[name], axis=0) for table in tables] for name in names], np.float64
    ).reshape(len(names), len(tables), 2)

    def of(chosen: npt.NDArray[np.integer]) -> Floats:
        """(draws, patients) to a value each; NaN, which never leaves here, is not defined."""
        parts, wholes = np.moveaxis(sums[chosen].sum(axis=1), -1, 0)
        shares = np.divide(parts, wholes, out=np.full(wholes.shape, np.nan), where=wholes != 0)
        return np.asarray(shares[:, 0] if less is None else shares[:, 0] - shares[:, 1], np.float64)

    count = len(names)
    everyone = np.arange(count)
    value = _finite(float(of(everyone[None])[0])) if count else None
    drawn = np.empty(0)
    if count >= SMALLEST_COHORT and value is not None:
        chosen = np.random.default_rng(seed).integers(0, count, (draws, count))
        drawn = np.concatenate([of(part) for part in np.array_split(chosen, 20)])
    defined = drawn[np.isfinite(drawn)]
    undefined = len(drawn) - len(defined)
    percentile = bca = None
    if value is not None and len(drawn) and undefined <= UNDEFINED_DRAWS_ALLOWED * len(drawn):
        left_out = of(np.array([np.delete(everyone, out) for out in everyone]))
        percentile = _between(defined, (1 - confidence) / 2, (1 + confidence) / 2)
        bca = _bca(value, defined, [_finite(one) for one in left_out.tolist()], confidence)
    return Bootstrap(
        value=value,
        percentile=percentile,
        bca=bca,
        clusters=count,
        n=sum(len(some) for some in clusters.values()),
        draws=len(drawn),
        undefined_draws=undefined,
        seed=seed,
    )


def _bca(
    value: float, draws: Floats, left_out: Sequence[float | None], confidence: float
) -> tuple[float, float] | None:
    """Efron's BCa interval; None where the draws are all on one side, or alike."""
    jackknife = np.array([one for one in left_out if one is not None])
    if len(jackknife) < len(left_out):
        return None
    # Draws equal to the value count half: with few patients ties are common.
    below = (np.count_nonzero(draws < value) + np.count_nonzero(draws <= value)) / (2 * len(draws))
    spread = jackknife.mean() - jackknife
    width = float((spread**2).sum())
    if not 0 < below < 1 or width <= 0:
        return None
    bias = float(ndtri(below))
    skew = float((spread**3).sum()) / (6 * width**1.5)

    low, high = (bias + float(ndtri((1 + side * confidence) / 2)) for side in (-1, 1))
    if skew * low >= 1 or skew * high >= 1:
        return None  # beyond the formula's pole: the draws are too skewed for it
    return _between(
        draws,
        float(ndtr(bias + low / (1 - skew * low))),
        float(ndtr(bias + high / (1 - skew * high))),
    )


def _between(draws: Floats, low: float, high: float) -> tuple[float, float]:
    return float(np.quantile(draws, low)), float(np.quantile(draws, high))


# Agreement of two measurements.


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """Prediction less reference: the mean difference and the limits of agreement."""

    bias: Estimate
    sd: float | None
    lower_limit: Estimate
    """Bias - 1.96 SD, below which 2.5 % of differences are expected."""
    upper_limit: Estimate
    n: int

    def as_json(self) -> dict[str, JsonValue]:
        """The bias and both limits, each with its interval."""
        return {
            "bias": self.bias.as_json(),
            "sd": self.sd,
            "lower_limit": self.lower_limit.as_json(),
            "upper_limit": self.upper_limit.as_json(),
            "n": self.n,
        }


def bland_altman(
    reference: Sequence[float], prediction: Sequence[float], confidence: float = CONFIDENCE
) -> BlandAltman:
    """Bias and limits of agreement, with intervals; one value per patient.

    Source:
        Bland, Altman 1999, Stat Methods Med Res 8:135: variance of the bias s2/n, of a limit
        (1/n + 1.96^2 / (2 (n - 1))) s2, Student's t with n - 1. Carkeet, Goh 2018, Stat Methods
        Med Res 27:1559: below 40 pairs the outer side of a limit's interval is too near.
    """
    difference = np.asarray(prediction, float) - np.asarray(reference, float)
    n = len(difference)
    none = Estimate(None, None, None, n)
    if n == 0:
        return BlandAltman(none, None, none, none, 0)
    bias = float(difference.mean())
    if n < SMALLEST_COHORT:
        return BlandAltman(Estimate(bias, None, None, n), None, none, none, n)
    sd = float(difference.std(ddof=1))
    z, t = _z(CONFIDENCE), _t(confidence, n - 1)
    of_bias = t * sd * sqrt(1 / n)
    of_limit = t * sd * sqrt(1 / n + z * z / (2 * (n - 1)))
    low, high = bias - z * sd, bias + z * sd
    return BlandAltman(
        bias=Estimate(bias, bias - of_bias, bias + of_bias, n),
        sd=sd,
        lower_limit=Estimate(low, low - of_limit, low + of_limit, n),
        upper_limit=Estimate(high, high - of_limit, high + of_limit, n),
        n=n,
    )


@dataclass(frozen=True, slots=True)
class Icc:
    """Intraclass correlation of single measurements."""

    agreement: Estimate
    """ICC(2,1): two-way random, absolute agreement. A constant offset lowers it."""
    consistency: Estimate
    """ICC(3,1): two-way mixed, consistency. A constant offset does not."""

    def as_json(self) -> dict[str, JsonValue]:
        """Both, under their usual names."""
        return {
            "icc_2_1": self.agreement.as_json(),
            "icc_3_1": self.consistency.as_json(),
        }


def icc(ratings: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> Icc:
    """ICC(2,1) and ICC(3,1) with intervals.

    Args:
        ratings: A row for each subject, a column for each rater (reference, prediction, ...).
        confidence: Of the intervals.

    Source:
        Shrout, Fleiss 1979, Psychol Bull 86:420; the interval of ICC(2,1) by Satterthwaite's
        degrees of freedom. The tests hold the worked example of that paper.
    """
    table = np.asarray(ratings, float)
    subjects, raters = table.shape if table.ndim == 2 else (len(table), 0)
    undefined = Icc(Estimate(None, None, None, subjects), Estimate(None, None, None, subjects))
    if subjects < SMALLEST_COHORT or raters < 2:
        return undefined
    middle = table.mean()
    of_subjects, of_raters = table.mean(axis=1), table.mean(axis=0)
    freedom = (subjects - 1) * (raters - 1)
    between = raters * float(((of_subjects - middle) ** 2).sum()) / (subjects - 1)
    raters_ms = subjects * float(((of_raters - middle) ** 2).sum()) / (raters - 1)
    residue = table - of_subjects[:, None] - of_raters[None, :] + middle
    error = float((residue**2).sum()) / freedom
    noise = np.finfo(float).eps * float((table**2).max()) * table.size
    between, raters_ms, error = (
        0.0 if square <= noise else square for square in (between, raters_ms, error)
    )
    if between + error == 0:
        return undefined  # every subject is alike: nothing to correlate
    return Icc(
        _agreement(between, raters_ms, error, subjects, raters, confidence),
        _consistency(between, error, subjects, raters, confidence),
    )


def _consistency(
    between: float, error: float, subjects: int, raters: int, confidence: float
) -> Estimate:
    value = (between - error) / (between + (raters - 1) * error)
    if error == 0:
        return Estimate(value, value, value, subjects)
    first, second = subjects - 1, (subjects - 1) * (raters - 1)
    share = (1 + confidence) / 2
    low = between / error / float(fdtri(first, second, share))
    high = between / error * float(fdtri(second, first, share))
    return Estimate(
        value,
        _finite((low - 1) / (low + raters - 1)),
        _finite((high - 1) / (high + raters - 1)),
        subjects,
    )


def _agreement(
    between: float,
    of_raters: float,
    error: float,
    subjects: int,
    raters: int,
    confidence: float,
) -> Estimate:
    whole = between + (raters - 1) * error + raters * (of_raters - error) / subjects
    if whole <= 0:
        return Estimate(None, None, None, subjects)
    value = (between - error) / whole
    if error == 0 and of_raters == 0:
        return Estimate(value, value, value, subjects)
    a = raters * value
    b = subjects * (1 + (raters - 1) * value) - raters * value
    spread = (subjects - 1) * (a * of_raters) ** 2 + (b * error) ** 2
    if spread == 0:
        return Estimate(value, None, None, subjects)  # no degrees of freedom to approximate
    freedom = (raters - 1) * (subjects - 1) * (a * of_raters + b * error) ** 2 / spread
    share = (1 + confidence) / 2
    upper = float(fdtri(subjects - 1, freedom, share))
    lower = float(fdtri(freedom, subjects - 1, share))
    rest = raters * of_raters + (raters * subjects - raters - subjects) * error
    low = subjects * (between - upper * error) / (upper * rest + subjects * between)
    high = subjects * (lower * between - error) / (rest + subjects * lower * between)
    return Estimate(value, _finite(low), _finite(high), subjects)


def pearson(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate:
    """Pearson's correlation; not defined for fewer than two pairs or a constant.

    The interval is Fisher's, and needs four pairs: with two the correlation is 1 or -1 whatever
    the numbers are.
    """
    one, other = np.asarray(first, float), np.asarray(second, float)
    n = len(one)
    if n < SMALLEST_COHORT or np.ptp(one) == 0 or np.ptp(other) == 0:
        return Estimate(None, None, None, n)
    one, other = one - one.mean(), other - other.mean()
    scale = sqrt(float((one**2).sum())) * sqrt(float((other**2).sum()))
    if scale == 0:
        return Estimate(None, None, None, n)  # differences too small to be squared
    value = max(-1.0, min(1.0, float((one * other).sum()) / scale))
    if n <= 3:  # Fisher's standard error is 1 / sqrt(n - 3)
        return Estimate(value, None, None, n)
    if abs(value) == 1:
        return Estimate(value, value, value, n)
    half = _z(confidence) / sqrt(n - 3)
    return Estimate(value, tanh(atanh(value) - half), tanh(atanh(value) + half), n)


# Calibration.


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions of one range of probability."""

    low: float
    high: float
    mean_probability: float | None
    share_true: float | None
    n: int

    def as_json(self) -> dict[str, JsonValue]:
        """Everything."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Does a probability of 0.8 come true eight times in ten?

    Sums per bin, so that a cohort is the sum of its cases (`+`) and no voxel has to be kept.
    """

    count: tuple[int, ...]
    sum_probability: tuple[float, ...]
    sum_true: tuple[int, ...]

    def __add__(self, other: Calibration) -> Calibration:
        if len(self.count) != len(other.count):
            raise ValueError(f"{len(self.count)} and {len(other.count)} bins cannot be added")
        return Calibration(
            tuple(a + b for a, b in zip(self.count, other.count, strict=True)),
            tuple(a + b for a, b in zip(self.sum_probability, other.sum_probability, strict=True)),
            tuple(a + b for a, b in zip(self.sum_true, other.sum_true, strict=True)),
        )

    @property
    def n(self) -> int:
        """Predictions in all."""
        return sum(self.count)

    @property
    def ece(self) -> float | None:
        """Expected calibration error: |share true - mean probability|, weighted by the bin's n."""
        if not self.n:
            return None
        pairs = zip(self.sum_probability, self.sum_true, strict=True)
        return sum(abs(true - probability) for probability, true in pairs) / self.n

    @property
    def bins(self) -> tuple[ReliabilityBin, ...]:
        """The reliability diagram. A bin without predictions has no mean and no share."""
        bins = len(self.count)
        return tuple(
            ReliabilityBin(
                low=index / bins,
                high=(index + 1) / bins,
                mean_probability=self.sum_probability[index] / n if n else None,
                share_true=self.sum_true[index] / n if n else None,
                n=n,
            )
            for index, n in enumerate(self.count)
        )

    def as_json(self) -> dict[str, JsonValue]:
        """`ece`, `n` and `bins`."""
        return {"ece": self.ece, "n": self.n, "bins": [one.as_json() for one in self.bins]}


def calibration(
    probability: npt.ArrayLike, truth: npt.ArrayLike, bins: int = CALIBRATION_BINS
) -> Calibration:
    """Sort predictions into bins of equal width; a bin holds its lower edge, the last one 1 too.

    Of a lesion map give only the voxels of the brain: air is 0 and right, and would hide
    everything else.

    Source:
        Guo et al. 2017, ICML, eq. 3 (ECE); the probability is that of lesion, not of the winner.

    Raises:
        ValueError: A probability outside 0..1, or NaN.
    """
    values = np.asarray(probability, float).ravel()
    true = np.asarray(truth, bool).ravel()
    if len(values) != len(true):
        raise ValueError(f"{len(values)} probabilities and {len(true)} outcomes")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a probability is not within 0..1")
    # Compared with the edges as the bins print them: multiplying by the number of bins would put
    # some values on an edge (0.29 x 100 is 28.999...) into the bin below.
    edges = np.arange(1, bins) / bins
    index = np.searchsorted(edges, values, side="right")
    return Calibration(
        tuple(np.bincount(index, minlength=bins).tolist()),
        tuple(np.bincount(index, weights=values, minlength=bins).tolist()),
        tuple(np.bincount(index[true], minlength=bins).tolist()),
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _z(confidence: float) -> float:
    """The two-sided quantile of the normal distribution: 1.96 for 95 %."""
    return float(ndtri((1 + confidence) / 2))


def _t(confidence: float, freedom: int) -> float:
    """The two-sided quantile of Student's distribution."""
    return float(stdtrit(freedom, (1 + confidence) / 2))
