"""Intervals and agreement: hand-worked numbers, published tables, and scipy where it has them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from training.statistics import (
    Bootstrap,
    Calibration,
    Estimate,
    agresti_coull,
    bland_altman,
    calibration,
    cluster_bootstrap,
    icc,
    mean,
    paired_bootstrap,
    pearson,
    proportion,
    ratio_bootstrap,
    wilson,
)


def average(values: list[float] | tuple[float, ...]) -> float | None:
    return sum(values) / len(values) if values else None


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_for_whole_counts(counts: tuple[int, int]) -> None:
    part, whole = counts
    theirs = stats.binomtest(part, whole).proportion_ci(method="wilson")
    assert wilson(part / whole, whole) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    ours = proportion(part, whole)
    assert ours.value is not None
    assert ours.low is not None
    assert ours.high is not None
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_agresti_coull_adds_two_successes_and_two_failures() -> None:
    # z^2 = 3.8415: (4 + 1.9207) of 13.8415 is .42775; 1.96 sqrt(.42775 x .57225 / 13.8415) = .26064
    assert agresti_coull(4 / 10, 10) == pytest.approx((0.1671, 0.6884), abs=5e-5)
    assert agresti_coull(1.0, 10)[1] == 1.0  # the formula goes beyond


def test_a_share_of_nothing_is_not_defined() -> None:
    assert proportion(0, 0) == Estimate(None, None, None, 0)


def test_a_mean_says_how_many_it_rests_on() -> None:
    # 1, 2, 3: SD 1, t(2) = 4.3027, 4.3027 / sqrt 3 = 2.4841.
    result = mean([1.0, None, 2.0, 3.0])
    assert (result.value, result.sd, result.n, result.undefined) == (2, 1, 3, 1)
    assert (result.low, result.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_the_mean_of_one_has_no_spread_and_of_none_no_value() -> None:
    one, none = mean([3.0]), mean([None, None])
    assert (one.value, one.sd, one.low, one.high, one.n) == (3, None, None, None, 1)
    assert (none.value, none.sd, none.n, none.undefined) == (None, None, 0, 2)


PATIENTS = {
    f"p{number:02}": [value] for number, value in enumerate([0.9, 0.7, 0.4, 0.8, 0.2, 0.75])
}


def test_with_one_row_per_patient_both_intervals_are_scipys_to_the_digit() -> None:
    # The same generator draws the same patients.
    ours = cluster_bootstrap(PATIENTS, average, seed=5)
    data = (np.array([rows[0] for rows in PATIENTS.values()]),)
    for method, interval in (("percentile", ours.percentile), ("BCa", ours.bca)):
        theirs = stats.bootstrap(
            data,
            np.mean,
            n_resamples=2000,
            method=method,
            rng=np.random.default_rng(5),
            vectorized=True,
        ).confidence_interval
        assert interval == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_whole_patients_are_drawn_not_their_rows() -> None:
    # Two patients of 100 equal rows: a drawn cohort is (1, 1), (1, 0), (0, 1) or (0, 0).
    seen: set[float | None] = set()

    def statistic(rows: list[float]) -> float | None:
        seen.add(average(rows))
        return average(rows)

    result = cluster_bootstrap({"a": [1.0] * 100, "b": [0.0] * 100}, statistic, seed=1)
    assert seen == {0.0, 0.5, 1.0}
    assert (result.clusters, result.n, result.percentile) == (2, 200, (0, 1))
    rows = {str(index): [float(index < 100)] for index in range(200)}
    alone = cluster_bootstrap(rows, average, seed=1).percentile
    assert alone is not None
    assert 0.4 < alone[0] < 0.45  # 0.5 +- 1.96 sqrt(.25 / 200) = 0.43 .. 0.57
    assert 0.55 < alone[1] < 0.6


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.lists(st.floats(0, 1), min_size=1, max_size=4),
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_patients_and_of_their_rows_does_not_matter(
    patients: dict[str, list[float]], order: random.Random
) -> None:
    names = list(patients)
    order.shuffle(names)
    turned = {name: patients[name] for name in names}
    here = cluster_bootstrap(patients, average, seed=3, draws=40)
    assert cluster_bootstrap(turned, average, seed=3, draws=40) == here
    backwards = {name: rows[::-1] for name, rows in turned.items()}
    assert cluster_bootstrap(backwards, average, seed=3, draws=40).value == pytest.approx(
        here.value
    )


def test_a_seed_gives_the_same_interval_and_another_seed_another() -> None:
    first = cluster_bootstrap(PATIENTS, average, seed=1)
    assert cluster_bootstrap(PATIENTS, average, seed=1) == first
    assert cluster_bootstrap(PATIENTS, average, seed=2).percentile != first.percentile
    assert first.draws == 2000


@pytest.mark.parametrize("patients", [{}, {"a": [0.5, 0.6]}])
def test_one_patient_or_none_has_no_interval(patients: dict[str, list[float]]) -> None:
    result = cluster_bootstrap(patients, average, seed=1)
    assert (result.percentile, result.bca, result.draws) == (None, None, 0)
    assert result.clusters == len(patients)


def test_patients_who_are_all_alike_have_a_point_and_no_bca() -> None:
    result = cluster_bootstrap({"a": [0.5], "b": [0.5], "c": [0.5]}, average, seed=1)
    assert (result.value, result.percentile, result.bca) == (0.5, (0.5, 0.5), None)


def test_draws_without_a_value_are_counted_and_too_many_leave_no_interval() -> None:
    # Sensitivity over three patients of whom one has a lesion: (2/3)^3 = 30 % of draws have none.
    def share(rows: list[tuple[int, int]]) -> float | None:
        whole = sum(row[1] for row in rows)
        return sum(row[0] for row in rows) / whole if whole else None

    few = cluster_bootstrap({"a": [(1, 2)], "b": [(0, 0)], "c": [(0, 0)]}, share, seed=1)
    assert few.value == 0.5
    assert few.undefined_draws == pytest.approx(2000 * 8 / 27, abs=80)
    assert (few.percentile, few.bca) == (None, None)
    # One of eight without: never all.
    many = {str(number): [(number % 3, 3)] for number in range(7)} | {"none": [(0, 0)]}
    result = cluster_bootstrap(many, share, seed=1)
    assert result.undefined_draws == 0
    assert result.percentile is not None


def test_nan_is_not_a_value() -> None:
    result = cluster_bootstrap(PATIENTS, lambda _: float("nan"), seed=1)
    assert (result.value, result.percentile, result.bca) == (None, None, None)


def test_a_pair_of_packs_is_compared_on_the_same_patients() -> None:
    # The second pack is 0.1 worse in every patient, hard or easy: the interval is a point.
    pairs = {name: [(rows[0], rows[0] - 0.1)] for name, rows in PATIENTS.items()}
    result = paired_bootstrap(pairs, average, seed=1)
    assert result.value == pytest.approx(0.1)
    assert result.percentile == pytest.approx((0.1, 0.1))


def test_a_pair_that_is_not_defined_in_one_pack_has_no_difference() -> None:
    def first_only(rows: list[float | None]) -> float | None:
        return None if None in rows else average([row for row in rows if row is not None])

    result = paired_bootstrap({"a": [(0.5, None)], "b": [(0.5, 0.5)]}, first_only, seed=1)
    assert result.value is None


@given(
    patients=st.dictionaries(
        st.text("abc", min_size=1, max_size=2),
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=3),
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_a_ratio_is_drawn_as_any_other_statistic_only_at_once(
    patients: dict[str, list[tuple[float, float]]],
) -> None:
    def share(rows: Sequence[tuple[float, float]]) -> float | None:
        whole = sum(one[1] for one in rows)
        return sum(one[0] for one in rows) / whole if whole else None

    slow = cluster_bootstrap(patients, share, seed=3, draws=200)
    fast = ratio_bootstrap(patients, seed=3, draws=200)
    for name in ("clusters", "n", "draws", "undefined_draws", "seed"):
        assert getattr(fast, name) == getattr(slow, name)
    for name in ("value", "percentile"):
        expected = getattr(slow, name)
        assert getattr(fast, name) == (expected if expected is None else pytest.approx(expected))
    pairs = {name: [(one, (one[1], one[0])) for one in rows] for name, rows in patients.items()}
    swapped = {name: [pair[1] for pair in some] for name, some in pairs.items()}
    slow = paired_bootstrap(pairs, share, seed=3, draws=200)
    fast = ratio_bootstrap(patients, less=swapped, seed=3, draws=200)
    assert fast.undefined_draws == slow.undefined_draws
    assert fast.percentile == (
        slow.percentile if slow.percentile is None else pytest.approx(slow.percentile)
    )


def test_bland_altman_has_limits_and_their_intervals() -> None:
    # Differences 1, 2, 3: bias 2, SD 1, t(2) = 4.3027. Of the bias 4.3027 sqrt(1/3) = 2.4841; of a
    # limit 4.3027 sqrt(1/3 + 3.8415/4) = 4.8939.
    result = bland_altman([10, 20, 30], [11, 22, 33])
    assert (result.bias.value, result.sd, result.n) == (2, 1, 3)
    assert (result.bias.low, result.bias.high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert result.lower_limit.value == pytest.approx(2 - 1.95996, abs=1e-5)
    assert result.upper_limit.value == pytest.approx(2 + 1.95996, abs=1e-5)
    assert result.upper_limit.high == pytest.approx(3.95996 + 4.8939, abs=2e-4)
    assert result.upper_limit.low == pytest.approx(3.95996 - 4.8939, abs=2e-4)


def test_bland_altman_of_one_pair_has_a_bias_only() -> None:
    one, none = bland_altman([1], [3]), bland_altman([], [])
    assert (one.bias, one.sd) == (Estimate(2, None, None, 1), None)
    assert one.lower_limit == one.upper_limit == Estimate(None, None, None, 1)
    assert none.bias == Estimate(None, None, None, 0)


SHROUT_FLEISS = [  # 1979, table 2: six subjects, four judges
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def rounded(estimate: Estimate) -> list[float | None]:
    return [
        None if value is None else round(value, 3)
        for value in (estimate.value, estimate.low, estimate.high)
    ]


def test_icc_is_that_of_shrout_and_fleiss() -> None:
    # Their table 4: .29 and .71. Intervals as R's psych::ICC prints them for these data.
    result = icc(SHROUT_FLEISS)
    assert rounded(result.agreement) == [0.290, 0.019, 0.761]
    assert rounded(result.consistency) == [0.715, 0.342, 0.946]
    assert result.agreement.n == 6


def test_an_offset_lowers_agreement_and_not_consistency() -> None:
    result = icc([[1, 3], [2, 4], [3, 5], [5, 7]])
    assert result.consistency.value == pytest.approx(1)
    assert result.agreement.value is not None
    assert result.agreement.value < 0.7


def test_raters_who_agree_have_icc_1() -> None:
    result = icc([[0.5, 0.5], [1.5, 1.5], [9, 9]])
    assert rounded(result.agreement) == rounded(result.consistency) == [1, 1, 1]


@pytest.mark.parametrize("ratings", [[], [[1, 2]], [[1], [2]], [[3, 3], [3, 3]], [[1, 2], [1, 2]]])
def test_icc_of_one_subject_or_of_equal_subjects_is_not_defined(ratings: list[list[float]]) -> None:
    result = icc(ratings)
    nothing = Estimate(None, None, None, len(ratings))
    assert (result.agreement, result.consistency) == (nothing, nothing)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6))
@example([(1, 5), (4, 2), (4, 2)])  # equal means of subjects and of raters: no interval
def test_agreement_is_a_number_or_none_and_never_nan(pairs: list[tuple[int, int]]) -> None:
    first, second = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    for printed in (
        icc(pairs).as_json(),
        pearson(first, second).as_json(),
        bland_altman(first, second).as_json(),
        mean(first).as_json(),
        cluster_bootstrap(
            {str(i): [v] for i, v in enumerate(first)}, average, seed=1, draws=20
        ).as_json(),
    ):
        json.dumps(printed, allow_nan=False)


def test_pearson_and_its_interval_are_scipys() -> None:
    first, second = [1.0, 2.0, 3.0, 5.0, 8.0], [1.1, 1.9, 3.5, 4.0, 9.0]
    ours, theirs = pearson(first, second), stats.pearsonr(first, second)
    interval = theirs.confidence_interval()
    assert (ours.value, ours.low, ours.high) == pytest.approx(
        (theirs.statistic, interval.low, interval.high)
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], Estimate(None, None, None, 0)),
        ([1], [2], Estimate(None, None, None, 1)),
        ([1, 1, 1], [1, 2, 3], Estimate(None, None, None, 3)),
        ([1, 2], [5, 3], Estimate(-1, None, None, 2)),
    ],
)
def test_a_correlation_needs_two_pairs_that_differ_and_its_interval_four(
    first: list[float], second: list[float], expected: Estimate
) -> None:
    result = pearson(first, second)
    assert result.value == pytest.approx(expected.value)
    assert (result.low, result.high, result.n) == (None, None, expected.n)


def test_calibration_is_the_weighted_gap_of_the_bins() -> None:
    # Bin 0.2-0.3: two of mean .25, none true: gap .25. Bin 0.9-1: two of mean .95, one true: .45.
    result = calibration([0.2, 0.3 - 1e-9, 0.9, 1.0], [False, False, True, False])
    assert result.ece == pytest.approx((2 * 0.25 + 2 * 0.45) / 4, abs=1e-8)
    assert [one.n for one in result.bins] == [0, 0, 2, 0, 0, 0, 0, 0, 0, 2]
    assert result.bins[9].share_true == 0.5
    assert result.bins[9].mean_probability == pytest.approx(0.95)
    assert (result.bins[0].mean_probability, result.bins[0].share_true) == (None, None)


def test_a_bin_holds_its_lower_edge() -> None:
    edges = [index / 10 for index in range(10)]
    assert calibration(edges, [True] * 10).count == (1,) * 10


def test_the_calibration_of_a_cohort_is_the_sum_of_its_cases() -> None:
    first = calibration([0.1, 0.8], [False, True])
    second = calibration([0.85, 0.4], [False, True])
    together = calibration([0.1, 0.8, 0.85, 0.4], [False, True, False, True])
    summed = first + second
    assert (summed.count, summed.sum_true) == (together.count, together.sum_true)
    assert summed.ece == pytest.approx(together.ece)
    with pytest.raises(ValueError, match="bins"):
        first + calibration([0.5], [True], bins=5)


def test_the_calibration_of_nothing_is_not_defined() -> None:
    assert calibration([], []).ece is None


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        calibration([probability], [True])
    with pytest.raises(ValueError, match="outcomes"):
        calibration([0.5], [True, False])


def test_json_holds_no_tuple_and_no_nan() -> None:
    result: Bootstrap = cluster_bootstrap(PATIENTS, average, seed=1)
    assert json.loads(json.dumps(result.as_json(), allow_nan=False)) == result.as_json()
    one: Calibration = calibration([0.5], [True])
    json.dumps(one.as_json(), allow_nan=False)
