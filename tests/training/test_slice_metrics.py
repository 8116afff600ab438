"""Slices counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.training.pictures import row, volume
from training.slice_metrics import (
    SWEEP,
    OverlapRule,
    SliceCounts,
    SlicePlace,
    count_slices,
    draw_negatives,
    predictive_values,
    slice_overlaps,
    sweep,
)


def counts(reference: np.ndarray, prediction: np.ndarray, tau: float = 0.10) -> SliceCounts:
    return count_slices(slice_overlaps(reference, prediction), tau)


SLICES = {
    "the same lesion": ("##..", "##..", SliceCounts(1, 0, 0, 0)),
    "nothing in either": ("....", "....", SliceCounts(0, 0, 1, 0)),
    "one voxel where there is nothing": ("....", "...#", SliceCounts(0, 0, 0, 1)),
    "no prediction": ("##..", "....", SliceCounts(0, 1, 0, 0)),
    # Something else is marked: missed all the same, and no false positive slice.
    "a prediction beside the lesion": ("##..", "..##", SliceCounts(0, 1, 0, 0)),
    "a tenth of the reference": ("#" * 10 + "....", "." * 9 + "#####", SliceCounts(1, 0, 0, 0)),
    "less than a tenth": ("#" * 11 + "....", "." * 10 + "#####", SliceCounts(0, 1, 0, 0)),
}


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_is_exactly_one_of_four(name: str) -> None:
    reference, prediction, expected = SLICES[name]
    assert counts(row(reference), row(prediction)) == expected


def test_the_slices_of_a_stack_are_counted_one_by_one() -> None:
    reference = volume(["##"], ["##"], [".."], [".."])
    prediction = volume(["##"], [".."], [".."], [".#"])
    assert counts(reference, prediction) == SliceCounts(tp=1, fn=1, tn=1, fp=1)
    assert counts(reference, prediction).n == 4


def test_at_tau_0_one_common_voxel_is_needed() -> None:
    assert counts(row("####"), row("...#"), tau=0) == SliceCounts(1, 0, 0, 0)
    assert counts(row("###."), row("...#"), tau=0) == SliceCounts(0, 1, 0, 0)


def test_the_three_rules_read_the_paper_in_three_ways() -> None:
    # Two lesions of 8 and 2 voxels; the small one is found and 2 voxels beside it.
    reference, prediction = row("########..##.."), row("..........####")
    found = {rule: slice_overlaps(reference, prediction, rule)[0].overlap for rule in OverlapRule}
    assert found == {
        OverlapRule.OVERLAP: pytest.approx(2 / 10),
        OverlapRule.ANY_LESION: pytest.approx(2 / 2),
        OverlapRule.IOU: pytest.approx(2 / 12),
    }


def test_a_lesion_of_a_slice_holds_together_by_corners() -> None:
    # One lesion of two voxels that meet at a corner: half of it is found.
    reference, prediction = volume(["#.", ".#"]), volume(["#.", ".."])
    assert slice_overlaps(reference, prediction, OverlapRule.ANY_LESION)[0].overlap == 0.5


def test_the_sweep_goes_from_one_voxel_to_the_whole_lesion() -> None:
    reference, prediction = volume(["####"], ["####"]), volume(["##.."], ["####"])
    table = dict(sweep(slice_overlaps(reference, prediction)))
    assert len(table) == 101
    assert [table[tau].tp for tau in (0, 0.5, 0.51, 1.0)] == [2, 2, 1, 1]


stacks = arrays(bool, (4, 3, 3))


@settings(max_examples=60, deadline=None)
@given(stacks, stacks, st.sampled_from(OverlapRule))
def test_in_a_sweep_found_slices_never_rise_and_specificity_is_constant(
    reference: np.ndarray, prediction: np.ndarray, rule: OverlapRule
) -> None:
    table = [one for _, one in sweep(slice_overlaps(reference, prediction, rule))]
    found = [one.tp for one in table]
    assert found == sorted(found, reverse=True)
    assert len({(one.tn, one.fp) for one in table}) == 1
    assert len({one.tp + one.fn for one in table}) == 1
    assert {one.n for one in table} == {4}


def test_the_sweep_holds_tau_itself() -> None:
    assert 0.10 in SWEEP


def test_every_rate_has_its_own_n() -> None:
    assert SliceCounts(tp=1, fn=2, tn=4, fp=8).rates == {
        "accuracy": (5, 15),
        "sensitivity": (1, 3),
        "specificity": (4, 12),
        "ppv": (1, 9),
        "npv": (4, 6),
    }


def stack(patient: str, picture: str, case: str = "1") -> dict[SlicePlace, bool]:
    """`+` is a positive slice."""
    return {
        SlicePlace(patient, case, index, len(picture)): mark == "+"
        for index, mark in enumerate(picture)
    }


def test_negatives_are_drawn_one_for_each_positive_of_the_same_patient_and_third() -> None:
    slices = stack("A", "--------- -++------ ---------".replace(" ", "")) | stack("B", "-" * 27)
    drawn = draw_negatives(slices, seed=1)
    assert len(drawn) == len(set(drawn)) == 2
    assert {(place.patient, place.level) for place in drawn} == {("A", 1)}


def test_where_a_third_has_too_few_negatives_the_patient_goes_before_the_third() -> None:
    # The middle third of A has one negative for two positives.
    drawn = draw_negatives(stack("A", "--- ++- ---".replace(" ", "")) | stack("B", "-" * 9), seed=1)
    assert [place.patient for place in drawn] == ["A", "A"]
    assert sorted(place.level for place in drawn) in ([0, 1], [1, 2])


def test_where_a_patient_has_no_negatives_the_third_decides() -> None:
    drawn = draw_negatives(stack("A", "+++") | stack("B", "---------"), seed=1)
    assert [(place.patient, place.level) for place in drawn] == [("B", 0), ("B", 1), ("B", 2)]


def test_with_too_few_negatives_all_are_drawn() -> None:
    slices = stack("A", "+++-")
    assert draw_negatives(slices, seed=1) == (SlicePlace("A", "1", 3, 4),)
    assert draw_negatives(stack("A", "+++"), seed=1) == ()
    assert draw_negatives({}, seed=1) == ()


def test_a_seed_draws_the_same_slices_whatever_the_order_of_cases() -> None:
    slices = stack("A", "---+++------") | stack("B", "+-----------") | stack("A", "-+--", case="2")
    turned = dict(reversed(slices.items()))
    assert draw_negatives(slices, seed=7) == draw_negatives(turned, seed=7)
    assert len({draw_negatives(slices, seed=seed) for seed in range(20)}) > 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("+-", min_size=1, max_size=12), max_size=5), st.integers(0, 2**32 - 1))
def test_a_draw_holds_negatives_only_and_as_many_as_can_be(pictures: list[str], seed: int) -> None:
    slices: dict[SlicePlace, bool] = {}
    for number, picture in enumerate(pictures):
        slices |= stack(str(number), picture)
    drawn = draw_negatives(slices, seed)
    assert len(set(drawn)) == len(drawn)
    assert not any(slices[place] for place in drawn)
    positives = sum(slices.values())
    assert len(drawn) == min(positives, len(slices) - positives)


def test_predictive_values_follow_the_prevalence() -> None:
    # Of 100 slices 10 are positive: 8 found; of 90 negative 9 marked.
    ppv, npv = predictive_values(0.8, 0.9, prevalence=0.1)
    assert ppv == pytest.approx(8 / 17)
    assert npv == pytest.approx(81 / 83)


def test_predictive_values_that_are_not_defined_are_none() -> None:
    assert predictive_values(None, 0.9, 0.5) == (None, None)
    assert predictive_values(0.8, None, 0.5) == (None, None)
    assert predictive_values(0.0, 1.0, 0.5) == (None, 0.5)  # nothing is ever marked
    assert predictive_values(1.0, 0.0, 0.5) == (0.5, None)  # everything is
    with pytest.raises(ValueError, match="prevalence"):
        predictive_values(0.8, 0.9, 1.5)
