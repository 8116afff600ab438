"""Figures of a cohort: parts over wholes that can be added up by hand."""

from __future__ import annotations

import pytest

from tests.training.pictures import row, volume
from tests.training.runs import case_row, refused_row
from training.cohort_figures import MEASURES, Draws, difference, figure, split, subgroups
from training.statistics import mean, proportion

BY = Draws(seed=1, draws=200)
COHORT = [
    case_row("a", row("####......"), row("####......")),  # Dice 1
    case_row("b", row("########.."), row("....####..")),  # Dice 2 x 4 / 12
    case_row("c", row("####......"), row("..........")),  # missed
    case_row("d", row(".........."), row("..........")),  # rightly nothing
]


def test_a_mean_counts_the_cases_where_it_is_defined() -> None:
    dice = figure(COHORT, MEASURES["dsc"], BY)
    assert dice.value == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert (dice.n, dice.cases, dice.patients) == (3, 3, 3)
    student = mean([1, 2 / 3, 0])
    assert dice.classical == (0.0, 1.0)  # Student's is wider than what Dice can be
    assert student.low is not None
    assert student.low < 0
    assert dice.by_patient is not None
    assert 0 <= dice.by_patient[0] < dice.value < dice.by_patient[1] <= 1


def test_a_share_has_the_interval_of_wilson_and_its_own_n() -> None:
    found = figure(COHORT, MEASURES["slice_sensitivity"], BY)
    share = proportion(2, 3)
    assert (found.value, found.n) == (share.value, 3)
    assert found.classical == (share.low, share.high)


def test_the_worst_interval_is_the_widest_of_all() -> None:
    # Found in every patient: no draw differs, and only Wilson's interval is honest.
    rows = [case_row(name, row("####"), row("####")) for name in "abc"]
    found = figure(rows, MEASURES["slice_sensitivity"], BY)
    assert found.by_patient == (1, 1)
    assert found.worst == (proportion(3, 3).low, 1)


def test_a_missed_slice_counts_as_0_in_the_mean_of_positive_slices() -> None:
    # Dice 1 in one slice, missed in one, none in the third.
    one = case_row("a", volume(["##"], ["##"], [".."]), volume(["##"], [".."], [".."]))
    found = figure([one], MEASURES["slice_dsc"], BY)
    assert (found.value, found.n) == (0.5, 2)
    assert found.worst is None  # of one patient nothing can be drawn


def test_nothing_that_is_not_defined_becomes_a_number() -> None:
    for rows in ([], [refused_row("a")], COHORT[3:]):
        found = figure(rows, MEASURES["dsc"], BY)
        assert (found.value, found.n, found.patients, found.worst) == (None, 0, 0, None)


def test_a_difference_is_drawn_in_pairs() -> None:
    better = [case_row(name, row("####"), row("####")) for name in "ab"]
    worse = [case_row(name, row("####"), row("##..")) for name in "ab"]
    apart = difference(better, worse, MEASURES["sensitivity"], BY)
    assert (apart.value, apart.percentile) == (0.5, (0.5, 0.5))


def test_what_is_painted_or_was_trained_on_is_never_in_the_main_cohort() -> None:
    def one(name: str, **about: str) -> dict[str, object]:
        return case_row(name, row("##"), row("##"), about=about)

    rows = [
        one("a"),
        one("b", in_training="yes"),
        one("c", semi_synthetic="yes"),
        one("d", semi_synthetic="yes", in_training="yes"),
        one("e", in_training="no", semi_synthetic="no"),
    ]
    cohorts = split(rows)
    assert [case["case"] for case in cohorts.main] == ["a", "e"]
    assert [case["case"] for case in cohorts.in_training] == ["b"]
    assert [case["case"] for case in cohorts.semi_synthetic] == ["c", "d"]
    # Without another real case the trained ones are shown, and the report says what they are.
    assert [case["case"] for case in split(rows[1:4]).main] == ["b"]
    assert split(rows[2:4]).main == ()


def test_subgroups_are_those_that_a_case_is_known_to_belong_to() -> None:
    rows = [
        case_row("a", row("#"), row("#"), about={"age": "29.5", "sex": "F"}),
        case_row("b", row("#"), row("#"), about={"age": "30", "sex": "M"}),
        case_row("c", row("#"), row("#"), about={"age": "60"}),
        refused_row("d"),
    ]
    groups = subgroups(rows)
    names = {what: {name: len(some) for name, some in one.items()} for what, one in groups.items()}
    assert names == {
        "slice spacing": {"6.0 mm": 3},
        "sex": {"F": 1, "M": 1, "not given": 1},
        "age": {"30 to 39": 1, "60 and older": 1, "under 30": 1},
    }


def test_lesion_load_is_cut_in_thirds_from_six_cases_on() -> None:
    rows = [
        case_row(str(size), row(("#" * size).ljust(7, ".")), row("#######")) for size in range(7)
    ]
    load = subgroups(rows)["lesion load"]
    # Voxels of 1.5 mm3.
    assert [[one["case"] for one in some] for some in load.values()] == [
        ["0"],
        ["1", "2"],
        ["3", "4"],
        ["5", "6"],
    ]
    assert "lesion load" not in subgroups(rows[:6])
