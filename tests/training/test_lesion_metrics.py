"""Lesions counted by hand: as Anima counts, and by any overlap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.training.pictures import MM, row, volume
from training.lesion_metrics import (
    STRATA,
    AnyOverlapLesion,
    IsbiParts,
    compare_any_overlap,
    compare_lesions,
    isbi_score,
)

# What Anima's analyzer counts, in rows of 1 mm3 voxels: lesions of the reference and of the
# prediction, detected lesions of the reference, confirmed lesions of the prediction.
ANIMA = {
    "the same lesion": ("..####..", "..####..", 1, 1, 1, 1),
    "two lesions that do not meet": ("####......", ".....####.", 1, 1, 0, 0),
    "nothing in either": (".....", ".....", 0, 0, 0, 0),
    "a prediction where the reference is empty": (".....", ".####", 0, 1, 0, 0),
    "no prediction": (".####", ".....", 1, 0, 0, 0),
    "3 mm3 is not larger than 3 mm3, in both": ("###..####", "###..####", 1, 1, 1, 1),
    # The small reference lesion is background, so the prediction lies outside altogether.
    "a prediction on a small lesion": ("###.....", "########", 0, 1, 0, 0),
    "a lesion met by a small one alone": ("##########", "...###....", 1, 0, 0, 0),
    # 2 of 20 voxels are alpha exactly: not enough. 18 of 20 lie outside: not confirmed.
    "covered by alpha exactly": ("#" * 20 + "....", "." * 18 + "####..", 1, 1, 0, 0),
    # 2 of 19 are more than alpha; half of the prediction lies outside, less than beta. The other
    # way 17 of 19 lie outside: not confirmed.
    "covered by more than alpha": ("#" * 19 + ".....", "." * 17 + "####...", 1, 1, 1, 0),
    # 7 of 10 outside is beta exactly, and still good. The other way 3 of 10, 1 of 4 outside.
    "outside by beta exactly": ("####........", ".##########.", 1, 1, 1, 1),
    # 8 of 11 outside.
    "outside by more than beta": ("####........", ".###########", 1, 1, 0, 1),
    "one lesion split in two": ("##########", "####..####", 1, 2, 1, 2),
    "two lesions merged into one": ("####..####", "##########", 2, 1, 2, 1),
    # 20 of 28 lie outside both: neither is detected, but the prediction is confirmed: 8 of 28 is
    # more than alpha, and the two references lie inside.
    "two lesions merged over a wide gap": ("####" + "." * 20 + "####", "#" * 28, 2, 1, 0, 1),
    # 17 of 20 are covered. The first explains 13/17 = .76, more than gamma: the second, 16 of 20
    # outside, is never looked at.
    "gamma is reached by the first": (
        "." * 16 + "#" * 20,
        "#" * 20 + "..." + "#" * 13,
        1,
        2,
        1,
        2,
    ),
    # 14 of 20 are covered. The first explains 8/14 = .57, so the second, 24 of 30 outside, counts.
    "gamma is not reached by the first": (
        "." * 24 + "#" * 20,
        "#" * 30 + "......" + "#" * 8,
        1,
        2,
        0,
        2,
    ),
    # 21 of 30 are covered by 6 + 6 + 5 + 4. The first two explain 12/21 = .57, less than gamma,
    # and the third lies 15 of 20 outside, more than beta. But Anima looks at no more lesions than
    # the other side has labels, background included: here 2. So the lesion is detected.
    "anima looks at as many lesions as there are labels": (
        "." * 15 + "#" * 30,
        "#" * 20 + ".." + "#" * 6 + ".." + "#" * 6 + "....." + "####",
        1,
        4,
        1,
        4,
    ),
    "side by side without a common voxel": ("####....", "....####", 1, 1, 0, 0),
    # 1 of 10 is alpha exactly. The other way 1 of 5 is enough, but 9 of 10 lie outside.
    "one common voxel": ("##########....", ".........#####", 1, 1, 0, 0),
    # 8 of 12 outside, less than beta.
    "drawn three times too wide": ("....####....", "############", 1, 1, 1, 1),
    # 26 of 30 outside: the lesion is drowned, and yet confirms, 4 of 30 being more than alpha.
    "drowned in a large prediction": ("####" + "." * 26, "#" * 30, 1, 1, 0, 1),
    # 4 of 41 is less than alpha.
    "drowned in a larger prediction": ("####" + "." * 37, "#" * 41, 1, 1, 0, 0),
    "one lesion split in three": ("##############", "####.####.####", 1, 3, 1, 3),
    "three lesions merged into one": ("####.####.####", "##############", 3, 1, 3, 1),
    "two lesions merged by a bridge of one voxel": ("####.####", "#########", 2, 1, 2, 1),
    "split, and a false one farther off": ("##########......", "####.####...####", 1, 3, 1, 2),
    # The second piece has 3 mm3 and is background: 4 of 10 are covered by the first.
    "a split piece that is too small": ("##########", "####...###", 1, 1, 1, 1),
    "one of two lesions met by too small a one": ("####..####", "####..###.", 2, 1, 1, 1),
    "nothing but specks": ("#.##.#.###", "###.#.##.#", 0, 0, 0, 0),
    # The first lesion is met by the tail of a prediction that lies 5 of 9 outside: good. The
    # second is met by 1 of 10 only.
    "one by its edge, one by a voxel": (
        "####......##########",
        "#########..........#",
        2,
        1,
        1,
        1,
    ),
    # Two lesions, two predictions, shifted by half: each lesion 2 of 4 covered, each prediction
    # 2 of 4 outside.
    "shifted by half": ("####....####..", "..####....####", 2, 2, 2, 2),
    # Two of three lesions found, one of three predictions false.
    "a patient": (
        "#####...#####...#####......",
        ".####....####..........####",
        3,
        3,
        2,
        2,
    ),
}


@pytest.mark.parametrize("name", ANIMA)
def test_lesions_are_counted_as_anima_counts(name: str) -> None:
    reference, prediction, *counts = ANIMA[name]
    assert len(str(reference)) >= len(str(prediction))
    first, second = row(str(reference)), row(str(prediction).ljust(len(str(reference)), "."))
    result = compare_lesions(first, second, MM)
    assert [
        result.reference_count,
        result.prediction_count,
        result.detected_count,
        result.confirmed_count,
    ] == counts
    turned = compare_lesions(second, first, MM)
    assert [turned.detected_count, turned.confirmed_count] == [counts[3], counts[2]]


# The same in space: spacing in mm, reference and prediction as slices of rows, then the counts.
SOLIDS = {
    "corners in a slice do not join": (
        MM,
        volume(["##..", "##..", "..##", "..##"]),
        volume(["##..", "##..", "..##", "..##"]),
        [2, 2, 2, 2],
    ),
    "edges between slices do not join": (
        MM,
        volume(["####", "...."], ["....", "####"]),
        volume(["####", "...."], ["....", "####"]),
        [2, 2, 2, 2],
    ),
    "faces between slices join": (
        MM,
        volume(["##.."], ["##.."]),
        volume(["##.."], ["##.."]),
        [1, 1, 1, 1],
    ),
    "the same place in the next slice is another place": (
        (6.5, 0.5, 0.5),
        volume(["####"], ["...."]),
        volume(["...."], ["####"]),
        [1, 1, 0, 0],
    ),
    # 5 x 0.5 x 0.4 mm is 1 mm3: three voxels are too small, in a slice or through slices.
    "small through thick slices": (
        (5.0, 0.5, 0.4),
        volume(["#..####"], ["#......"], ["#......"]),
        volume(["#..####"], ["#......"], ["#......"]),
        [1, 1, 1, 1],
    ),
    # The bridge lies in a slice of its own: two lesions of the reference, one of the prediction.
    "two lesions merged through the next slice": (
        (5.0, 0.5, 0.4),
        volume(["####.####"], ["........."]),
        volume(["####.####"], ["...###..."]),
        [2, 1, 2, 1],
    ),
    # A hole does not make two of one; 12 of 15 covered.
    "a ring and a disc": (
        MM,
        volume(["#####", "#####", "#####"]),
        volume(["#####", "#...#", "#####"]),
        [1, 1, 1, 1],
    ),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_lesions_in_space_are_counted_as_anima_counts(name: str) -> None:
    spacing_mm, reference, prediction, counts = SOLIDS[name]
    result = compare_lesions(reference, prediction, spacing_mm)
    assert [
        result.reference_count,
        result.prediction_count,
        result.detected_count,
        result.confirmed_count,
    ] == counts


@pytest.mark.parametrize(("voxels", "lesions"), [(2, 0), (3, 1)])
def test_the_smallest_lesion_depends_on_the_voxel(voxels: int, lesions: int) -> None:
    # 6.5 x 0.43 x 0.43 mm is 1.2 mm3: three voxels are more than 3 mm3, two are less.
    mask = np.zeros((1, 1, 9), bool)
    mask[0, 0, :voxels] = True
    assert compare_lesions(mask, mask, (6.5, 0.43, 0.43)).reference_count == lesions


def test_lesion_f1_is_the_harmonic_mean() -> None:
    result = compare_lesions(row("####.####.####"), row("####.........."), MM)
    assert result.sensitivity == pytest.approx(1 / 3)
    assert result.ppv == 1.0
    assert result.f1 == pytest.approx(2 * (1 / 3) / (4 / 3))


def test_there_are_at_least_thirty_lesion_fixtures() -> None:
    assert len(ANIMA) + len(SOLIDS) >= 30


def test_two_noisy_masks_fit_in_memory() -> None:
    # 12,500 lesions each: a table of all pairs would take 1.2 GB.
    noisy = np.zeros((1, 500, 500), bool)
    noisy[0, ::2, :] = np.arange(500) % 10 < 5
    result = compare_lesions(noisy, noisy, MM)
    assert result.reference_count == result.detected_count == 12_500


# Any overlap: recall of the reference's lesions, and what share of the predicted ones is false.
ANY_OVERLAP = {
    "the same lesion": (row("##"), row("##"), 1, 0),
    "one voxel in common is enough": (row("#########."), row("........##"), 1, 0),
    "side by side is not": (row("##.."), row("..##"), 0, 1),
    "one voxel is a lesion": (row("#.#.#"), row("#...#"), 2 / 3, 0),
    "one of two predictions is false": (row("##...."), row("##..##"), 1, 1 / 2),
    "one prediction finds two lesions": (row("##..##"), row(".####."), 1, 0),
    "corners in a slice join": (volume(["#.", ".#"]), volume(["#.", ".."]), 1, 0),
    "edges between slices join": (
        volume(["#.", ".."], [".#", ".."]),
        volume(["#.", ".."], ["..", ".."]),
        1,
        0,
    ),
    "corners between slices do not": (
        volume(["#.", ".."], ["..", ".#"]),
        volume(["#.", ".."], ["..", ".."]),
        1 / 2,
        0,
    ),
    "nothing in either": (row("..."), row("..."), None, None),
    "no prediction": (row(".#."), row("..."), 0, None),
    "a prediction where the reference is empty": (row("..."), row(".#."), None, 1),
}


@pytest.mark.parametrize("name", ANY_OVERLAP)
def test_any_overlap_finds_a_lesion(name: str) -> None:
    reference, prediction, recall, false_share = ANY_OVERLAP[name]
    met = compare_any_overlap(reference, prediction, MM).all_sizes
    assert (met.recall, met.false_share) == (recall, false_share)


def test_false_lesions_are_counted_and_have_a_volume() -> None:
    # Two false ones of 2 and 3 voxels of 6.5 x 0.5 x 0.4 = 1.3 mm3.
    met = compare_any_overlap(row("####......."), row("##..##..###"), (6.5, 0.5, 0.4)).all_sizes
    assert met.false_count == 2
    assert met.false_volume_ml == pytest.approx((2 + 3) * 1.3 / 1000)
    empty = compare_any_overlap(row("..........."), row("##..##..###"), (6.5, 0.5, 0.4)).all_sizes
    assert empty.false_count == 3
    assert empty.false_volume_ml == pytest.approx(7 * 1.3 / 1000)


@pytest.mark.parametrize(
    ("volume_mm3", "stratum"),
    [
        (0.2, "<10"),
        (9.99, "<10"),
        (10.0, "10-50"),
        (sum([0.1] * 100), "10-50"),  # 9.99999999999998
        (49.9, "10-50"),
        (50.0, "50-100"),
        (100.0, "100-500"),
        (500.0, "100-500"),
        (500.1, ">500"),
    ],
)
def test_a_lesion_of_a_limit_belongs_to_the_stratum_it_begins(
    volume_mm3: float, stratum: str
) -> None:
    assert AnyOverlapLesion(volume_mm3, met=True).stratum == stratum


def test_a_lesion_is_in_the_stratum_of_its_own_mask() -> None:
    # 9 mm3 in the reference, found; 12 mm3 in the prediction.
    result = compare_any_overlap(row("#" * 9 + "..."), row("#" * 12), MM)
    assert [result.strata[name].reference_count for name in STRATA] == [1, 0, 0, 0, 0]
    assert [result.strata[name].recall for name in STRATA] == [1, None, None, None, None]
    assert [result.strata[name].prediction_count for name in STRATA] == [0, 1, 0, 0, 0]


ISBI = IsbiParts(
    dsc=0.6, ppv=0.8, false_share=0.2, recall=0.5, volume_reference_ml=1, volume_prediction_ml=2
)


def test_the_isbi_score_weighs_its_parts_by_eighths_and_quarters() -> None:
    # Volumes 1, 2, 3 and 2, 4, 6 correlate by 1: .6/8 + .8/8 + .8/4 + .5/4 + 1/4 = .75.
    cases = [
        replace(ISBI, volume_reference_ml=times, volume_prediction_ml=2 * times)
        for times in (1, 2, 3)
    ]
    result = isbi_score(cases)
    assert result.score == pytest.approx(0.75)
    assert (result.correlation, result.n) == (pytest.approx(1), 3)


def test_the_isbi_correlation_is_of_volumes_across_cases() -> None:
    # Perfect masks, but the volumes go the other way: Corr is -1.
    cases = [
        IsbiParts(1, 1, 0, 1, volume_reference_ml=1, volume_prediction_ml=3),
        IsbiParts(1, 1, 0, 1, volume_reference_ml=3, volume_prediction_ml=1),
    ]
    assert isbi_score(cases).score == pytest.approx(1 / 8 + 1 / 8 + 1 / 4 + 1 / 4 - 1 / 4)


@pytest.mark.parametrize("cases", [[], [ISBI], [ISBI, ISBI]])
def test_without_a_correlation_there_is_no_isbi_score(cases: list[IsbiParts]) -> None:
    result = isbi_score(cases)  # two equal volumes have no correlation either
    assert (result.score, result.correlation, result.n) == (None, None, len(cases))
