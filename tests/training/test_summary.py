"""Figures of a cohort, from rows whose numbers can be added up by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.training.pictures import grid, row, volume
from training.metrics import compare
from training.slice_metrics import OverlapRule, slice_overlaps
from training.statistics import calibration
from training.summary import Row, in_words
from training.summary import summarise as summarise_with_draws


def summarise(rows: list[Row]) -> dict[str, Any]:
    return summarise_with_draws(rows, seed=1, draws=200)


def case(
    name: str, reference: np.ndarray, prediction: np.ndarray, patient: str | None = None
) -> Row:
    """A row as `training.validate` writes it."""
    by_rule = [slice_overlaps(reference, prediction, rule) for rule in OverlapRule]
    made = {
        "case": name,
        "patient": patient or name,
        "outcome": "analysed",
        "reason": "",
        "metrics": compare(reference, prediction, grid(reference.shape)).as_json(),
        "slices": [
            {
                "positive": one[0].positive,
                "predicted": one[0].predicted,
                **{rule.value: each.overlap for rule, each in zip(OverlapRule, one, strict=True)},
            }
            for one in zip(*by_rule, strict=True)
        ],
        "calibration": None,
        "quality": None,
    }
    read: Row = json.loads(json.dumps(made))
    return read


def refused(name: str) -> Row:
    return {
        "case": name,
        "patient": name,
        "outcome": "not_analysed",
        "reason": "grid-mismatch",
        "metrics": None,
        "slices": None,
        "calibration": None,
        "quality": None,
    }


COHORT = [
    case("a", row("####......"), row("####......")),  # Dice 1
    case("b", row("########.."), row("....####..")),  # Dice 2 x 4 / 12
    case("c", row("####......"), row("..........")),  # missed
    case("d", row(".........."), row("..........")),  # rightly nothing
    case("e", row(".........."), row("......####")),  # a false lesion
]


def test_a_mean_leaves_out_what_is_not_defined_and_says_so() -> None:
    voxel = summarise(COHORT)["voxel"]
    assert voxel["dsc"]["mean"] == pytest.approx((1 + 8 / 12 + 0 + 0) / 4)
    assert (voxel["dsc"]["n"], voxel["dsc"]["undefined"]) == (4, 1)
    # A distance needs two masks.
    assert (voxel["hd95_mm"]["n"], voxel["hd95_mm"]["undefined"]) == (2, 3)
    low, high = voxel["dsc"]["bootstrap"]["percentile"]
    assert 0 <= low < voxel["dsc"]["mean"] < high <= 1
    assert voxel["dsc"]["bootstrap"]["draws"] == 200


def test_cases_that_were_not_analysed_are_counted_and_left_out() -> None:
    summary = summarise([*COHORT, refused("f"), refused("g")])
    assert summary["cases"]["n"] == 7
    assert summary["cases"]["analysed"] == 5
    assert summary["cases"]["reasons"] == {"not_analysed: grid-mismatch": 2}
    assert summary["cases"]["not_analysed_share"]["value"] == pytest.approx(2 / 7)
    assert summary["voxel"] == summarise(COHORT)["voxel"]


def test_lesions_are_pooled_by_size_not_averaged_by_case() -> None:
    # One case with one lesion found, one with one of three found: 2 of 4, not (1 + 1/3) / 2.
    rows = [
        case("a", row("####......"), row("####......")),
        case("b", row("##.##.##.."), row("##........")),
    ]
    strata = summarise(rows)["any_overlap"]["strata_mm3"]
    assert (strata["<10"]["recall"]["value"], strata["<10"]["recall"]["n"]) == (0.5, 4)
    assert (strata[">500"]["recall"]["value"], strata[">500"]["recall"]["n"]) == (None, 0)


def test_cases_without_a_lesion_give_false_lesions_instead_of_f1() -> None:
    empty = summarise(COHORT)["reference_empty"]
    assert (empty["n"], empty["correct_negatives"]) == (2, 1)
    assert empty["false_lesions"]["value"] == pytest.approx(1 / 2)
    assert empty["false_ml"]["value"] == pytest.approx(0.004 / 2)


def test_volumes_have_bias_and_correlation() -> None:
    volumes = summarise(COHORT)["volume"]
    # Prediction less reference: 0, -4, -4, 0, +4 mm3.
    assert volumes["bland_altman_ml"]["bias"]["value"] == pytest.approx(-0.0008)
    assert volumes["absolute_error_ml"]["value"] == pytest.approx(0.012 / 5)
    assert volumes["absolute_error_percent"]["n"] == 3
    assert volumes["icc_2_1"]["n"] == volumes["pearson"]["n"] == 5


def test_slices_are_counted_all_and_one_to_one() -> None:
    # 2 positive slices, one of them found; 8 negative, one marked.
    reference = volume(["####"], ["####"], *[["...."]] * 8)
    prediction = volume(["####"], ["...."], ["#..."], *[["...."]] * 7)
    slices = summarise([case("a", reference, prediction)])["slices"]["overlap"]
    assert slices["all"]["counts"] == {"tp": 1, "fn": 1, "tn": 7, "fp": 1}
    assert slices["all"]["sensitivity"]["wilson"]["value"] == 0.5
    assert slices["all"]["sensitivity"]["wilson"]["n"] == 2
    assert slices["prevalence"] == pytest.approx(0.2)
    balanced = slices["one_to_one"]["counts"]
    assert (balanced["tp"], balanced["fn"], balanced["tn"] + balanced["fp"]) == (1, 1, 2)
    assert slices["one_to_one"]["at_prevalence"]["prevalence"] == pytest.approx(0.2)
    assert [one["tp"] for one in slices["sweep"]] == [1] * 101


def test_an_interval_of_slices_is_wider_by_patient_than_by_slice() -> None:
    # Four patients of 20 slices, each all found or all missed.
    found = volume(*[["####"]] * 20)
    missed = volume(*[["...."]] * 20)
    rows = [case(name, found, found if name in "ab" else missed) for name in "abcd"]
    rate = summarise(rows)["slices"]["overlap"]["all"]["sensitivity"]
    low, high = rate["bootstrap"]["percentile"]
    assert rate["wilson"]["value"] == rate["bootstrap"]["value"] == 0.5
    assert rate["wilson"]["high"] - rate["wilson"]["low"] < 0.25
    assert (low, high) == (0, 1)


def test_cases_of_one_patient_are_drawn_together() -> None:
    rows = [
        case("a", row("####"), row("####"), patient="P1"),
        case("b", row("####"), row("####"), patient="P1"),
    ]
    figure = summarise(rows)["voxel"]["dsc"]
    assert (figure["n"], figure["bootstrap"]["clusters"]) == (2, 1)
    assert figure["bootstrap"]["percentile"] is None


def test_the_order_of_rows_does_not_matter() -> None:
    assert summarise(COHORT[::-1]) == summarise(COHORT)


def test_the_calibration_of_a_cohort_is_pooled_over_voxels() -> None:
    def sums(probability: list[float], truth: list[bool]) -> dict[str, object]:
        one = calibration(probability, truth)
        return {
            "count": list(one.count),
            "sum_probability": list(one.sum_probability),
            "sum_true": list(one.sum_true),
        }

    rows = [
        {**COHORT[0], "calibration": sums([0.9, 0.9, 0.9], [True, True, True])},
        {**COHORT[1], "calibration": sums([0.9], [False])},
        COHORT[2],
    ]
    # Three of four are true of 0.9: 0.75, a gap of 0.15.
    pooled = summarise(rows)["calibration"]
    assert pooled["ece"] == pytest.approx(0.15)
    assert (pooled["n"], pooled["cases"]) == (4, 2)
    assert summarise(COHORT)["calibration"] is None


@pytest.mark.parametrize("rows", [[], [refused("a")], COHORT[3:4], COHORT[:1], COHORT])
def test_a_cohort_of_any_size_is_summarised_without_nan(rows: list[Row]) -> None:
    summary = summarise(rows)
    json.dumps(summary, allow_nan=False)
    assert "nan" not in in_words(summary)
