"""The paper's table, digit by digit, from its counts."""

from __future__ import annotations

import argparse
import json

import pytest

from training.commands import register
from training.paper import (
    CENTRES,
    as_it_is,
    as_published,
    differences,
    entropy_rule,
    fold_dsc,
    summaries,
    voxel_ceiling,
)
from training.statistics import Estimate

# Table 5, slice level: what the paper prints, percent.
TABLE_5 = [
    {
        "accuracy": (83.3, 79.5, 86.5),
        "sensitivity": (99.5, 98.3, 99.9),
        "ppv": (75.1, 70.8, 78.9),
        "npv": (99.3, 98.0, 99.8),
    },
    {
        "accuracy": (76.1, 62.1, 86.1),
        "sensitivity": (100.0, 92.3, 100.0),
        "ppv": (67.7, 53.2, 79.4),
        "npv": (100.0, 92.3, 100.0),
    },
]
ONE_ROW = (1, "ppv")  # 23 of 34 is 67.65: 67.6, and Wilson's upper bound is 79.35: 79.3


def percent(row: Estimate | None) -> tuple[float, ...]:
    assert row is not None
    assert row.value is not None
    assert row.low is not None
    assert row.high is not None
    return tuple(round(100 * share, 1) for share in (row.value, row.low, row.high))


@pytest.mark.parametrize("centre", [0, 1])
@pytest.mark.parametrize("label", ["accuracy", "sensitivity", "ppv", "npv"])
def test_the_printed_table_comes_out_of_the_counts_to_the_digit(centre: int, label: str) -> None:
    row = as_published(CENTRES[centre].counts)[label]
    if (centre, label) == ONE_ROW:
        assert percent(row) == (67.6, 53.2, 79.3)
    else:
        assert percent(row) == TABLE_5[centre][label]


def test_the_paper_prints_no_specificity() -> None:
    assert [as_published(centre.counts)["specificity"] for centre in CENTRES] == [None, None]


def test_the_print_in_the_code_is_the_print_of_the_paper() -> None:
    for centre, printed in zip(CENTRES, TABLE_5, strict=True):
        assert {
            label: (float(one.value), float(one.low), float(one.high))
            for label, one in centre.printed.items()
        } == printed


def test_the_one_row_that_differs_is_named_with_the_interval_that_fits() -> None:
    (one,) = differences()
    assert (one.centre, one.label) == (CENTRES[1].name, "ppv")
    assert str(one.printed) == "67.7 (53.2-79.4)"
    assert str(one.computed) == "67.6 (53.2-79.3)"
    assert str(one.agresti_coull) == "67.6 (53.2-79.4)"


@pytest.mark.parametrize(("centre", "n"), [(0, 436), (1, 46)])
def test_the_printed_labels_stand_for_other_rates(centre: int, n: int) -> None:
    published, right = as_published(CENTRES[centre].counts), as_it_is(CENTRES[centre].counts)
    for label, rate in (("sensitivity", "specificity"), ("ppv", "npv"), ("npv", "ppv")):
        row = published[label]
        assert row is not None
        assert (row.value, row.n) == (right[rate].value, n)


# The labels' own meaning, Wilson with the right n (reference/ms_facts.md 1b).
@pytest.mark.parametrize(
    ("centre", "name", "n", "figures"),
    [
        (0, "accuracy", 436, (83.3, 79.5, 86.5)),
        (0, "sensitivity", 218, (67.0, 60.5, 72.9)),
        (0, "specificity", 218, (99.5, 97.4, 99.9)),
        (0, "ppv", 147, (99.3, 96.2, 99.9)),
        (0, "npv", 289, (75.1, 69.8, 79.7)),
        (1, "accuracy", 46, (76.1, 62.1, 86.1)),
        (1, "sensitivity", 23, (52.2, 33.0, 70.8)),
        (1, "specificity", 23, (100.0, 85.7, 100.0)),
        (1, "ppv", 12, (100.0, 75.8, 100.0)),
        (1, "npv", 34, (67.6, 50.8, 80.9)),
    ],
)
def test_the_true_rates_have_their_own_n(
    centre: int, name: str, n: int, figures: tuple[float, ...]
) -> None:
    row = as_it_is(CENTRES[centre].counts)[name]
    assert (percent(row), row.n) == (figures, n)


def test_one_number_for_both_kinds_of_error() -> None:
    rounded = [
        {name: round(value or 0, 3) for name, value in summaries(centre.counts).items()}
        for centre in CENTRES
    ]
    # MCC: (146 x 217 - 1 x 72) / sqrt(147 x 218 x 218 x 289) = 31610 / 44933.
    assert rounded == [
        {"f1": 0.800, "balanced_accuracy": 0.833, "mcc": 0.703},
        {"f1": 0.686, "balanced_accuracy": 0.761, "mcc": 0.594},
    ]


def test_the_fold_table_comes_out() -> None:
    folds = fold_dsc()
    assert folds.value == pytest.approx(86.66)
    assert folds.sd == pytest.approx(2.544, abs=5e-4)  # with n - 1; with n it is 2.275
    assert folds.n == 5


def test_the_entropy_rule_drops_slices_below_226_pixels() -> None:
    rule = entropy_rule()
    assert rule.pixels == pytest.approx(225.5, abs=0.05)
    assert rule.area_mm2 == pytest.approx(41.6, abs=0.05)
    assert rule.diameter_mm == pytest.approx(7.3, abs=0.05)
    assert rule.volume_ml == pytest.approx(0.27, abs=0.005)


def test_the_voxel_table_cannot_be_a_mean_of_all_positive_slices() -> None:
    first, second = (voxel_ceiling(centre) for centre in CENTRES)
    assert first.sensitivity == pytest.approx(100 * (146 + 7.2) / 218)  # 70.3
    assert first.sensitivity < first.printed_sensitivity
    assert second.sensitivity == pytest.approx(100 * (12 + 1.1) / 23)  # 57.0
    assert second.sensitivity < second.printed_sensitivity
    assert second.dsc == pytest.approx(60.9, abs=0.05)
    assert second.dsc < second.printed_dsc


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(dest="command"))
    arguments = parser.parse_args(["validate", *words])
    status: int = arguments.run(arguments)
    return status


def test_validate_paper_prints_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("paper", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    centres = printed["centres"]
    assert [one["counts"] for one in centres] == [
        {"tp": 146, "fn": 72, "tn": 217, "fp": 1},
        {"tp": 12, "fn": 11, "tn": 23, "fp": 0},
    ]
    rates = {"accuracy", "sensitivity", "specificity", "ppv", "npv"}
    for one in centres:
        assert set(one["as_published"]) == set(one["as_it_is"]) == rates
        assert one["as_published"]["specificity"] is None
        for row in (*one["as_published"].values(), *one["as_it_is"].values()):
            assert row is None or 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert round(centres[0]["as_it_is"]["sensitivity"]["value"], 3) == 0.670
    assert round(centres[1]["as_it_is"]["sensitivity"]["value"], 3) == 0.522
    assert [one["label"] for one in printed["differences"]] == ["ppv"]


def test_validate_paper_says_it_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("paper") == 0
    text = capsys.readouterr().out
    assert "67.0 (60.5-72.9)" in text
    assert "it found 67.0 % of those in center 1 and 52.2 % in center 2" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 102


def test_validate_needs_one_of_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 2
    assert "paper" in capsys.readouterr().err
