"""Thresholds are declared beforehand and judged on the worse bound."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

import training
from tests.training.pictures import row
from tests.training.runs import case_row, refused_row
from training.acceptance import (
    LABELS,
    AcceptanceFileError,
    Declaration,
    Threshold,
    Verdict,
    judge,
    read_declaration,
)
from training.cohort_figures import Draws, split
from training.statistics import proportion

BY = Draws(seed=1, draws=200)
FOUND = [case_row(f"f{index}", row("####"), row("####")) for index in range(18)]
MISSED = [case_row(f"m{index}", row("####"), row("....")) for index in range(2)]


def judged(rows: list[dict[str, Any]], unmeasured: int = 0, **asked: object) -> Verdict:
    declaration = Declaration.model_validate(
        {"declared_on": "2026-01-01", "fewest_patients": 2, **asked}
    )
    return judge(declaration, "5a", split(rows), BY, unmeasured)


def of(verdict: Verdict) -> tuple[str, str]:
    (one,) = verdict.judged
    return one.judgement, one.reason


def test_the_bound_is_judged_and_not_the_value() -> None:
    # 18 of 20 slices found: 0.9, but by Wilson 0.70 to 0.97.
    low = proportion(18, 20).low
    assert low is not None
    rows = [*FOUND, *MISSED]
    passed = judged(rows, threshold=[{"measure": "slice_sensitivity", "at_least": low - 0.01}])
    assert (passed.judgement, of(passed)[0]) == ("passed", "passed")
    failed = judged(rows, threshold=[{"measure": "slice_sensitivity", "at_least": low + 0.01}])
    assert of(failed) == (
        "failed",
        f"The interval reaches {low:.3f}: at least {low + 0.01:g} asked.",
    )


def test_all_found_in_few_patients_passes_no_high_threshold() -> None:
    # The draws of patients all give 1; Wilson says what three of three can mean.
    verdict = judged(FOUND[:3], threshold=[{"measure": "slice_sensitivity", "at_least": 0.9}])
    assert verdict.judgement == "failed"


@pytest.mark.parametrize(
    ("threshold", "met", "bound"),
    [
        ({"at_least": 0.5}, True, 0.5),
        ({"at_least": 0.51}, False, 0.5),
        ({"at_most": 0.7}, True, 0.7),
        ({"at_most": 0.69}, False, 0.7),
        ({"between": [0.4, 0.71]}, True, 0.7),
        ({"between": [0.6, 0.9]}, False, 0.5),
    ],
)
def test_each_demand_has_its_own_worse_bound(
    threshold: dict[str, Any], met: bool, bound: float
) -> None:
    one = Threshold.model_validate({"measure": "dsc", **threshold})
    assert one.met_by(0.5, 0.7) is met
    assert one.bound(0.5, 0.7) == bound


def test_one_failure_fails_all_and_one_open_question_leaves_all_open() -> None:
    rows = [*FOUND, *MISSED]
    met = {"measure": "slice_sensitivity", "at_least": 0.1}
    failed = {"measure": "slice_sensitivity", "at_least": 0.99}
    undefined = {"measure": "slice_specificity", "at_least": 0.1}  # no slice without a lesion
    assert judged(rows, threshold=[met, undefined]).judgement == "cannot be judged"
    assert judged(rows, threshold=[met, undefined, failed]).judgement == "failed"
    assert judged(rows, threshold=[met]).judgement == "passed"


def test_what_cannot_be_judged_says_why() -> None:
    asked = [{"measure": "dsc", "at_least": 0.1}]
    few = judged(FOUND[:3], fewest_patients=4, threshold=asked)
    assert "cases of 3 patients, and 4 were declared" in of(few)[1]
    late = judged(FOUND, declared_on="2026-03-05", threshold=asked)
    assert "not declared beforehand" in of(late)[1]
    stopped = judged(FOUND, unmeasured=3, threshold=asked)
    assert of(stopped) == ("cannot be judged", "3 cases of the run are not measured yet.")
    trained = [case_row("a", row("#"), row("#"), about={"in_training": "yes"})]
    assert "Every real case (1) was in the training" in of(judged(trained, threshold=asked))[1]
    painted = [case_row("a", row("#"), row("#"), about={"semi_synthetic": "yes"})]
    assert of(judged(painted, threshold=asked))[1] == "There is no real case."


def test_a_case_that_was_refused_counts_in_its_own_measure() -> None:
    rows = [*FOUND, refused_row("x"), refused_row("y")]
    high = proportion(2, 20).high
    assert high is not None
    asked = {"measure": "not_analysed_share", "at_most": high + 0.001}
    assert judged(rows, threshold=[asked]).judgement == "passed"
    asked["at_most"] = high - 0.001
    assert judged(rows, threshold=[asked]).judgement == "failed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("declared_on = 2026-01-01", "threshold"),
        ("declared_on = 2026-01-01\nthreshold = []", "threshold"),
        ("[[threshold]]\nmeasure = 'dsc'\nat_least = 1", "declared_on"),
        ("declared_on = 2026-01-01\n[[threshold]]\nmeasure = 'dice'\nat_least = 1", "no measure"),
        ("declared_on = 2026-01-01\n[[threshold]]\nmeasure = 'dsc'", "one of at_least"),
        (
            "declared_on = 2026-01-01\n[[threshold]]\nmeasure = 'dsc'\nat_least = 1\nat_most = 2",
            "one of at_least",
        ),
        ("declared_on = 2026-01-01\n[[threshold]]\nmeasure = 'dsc'\nat_leest = 1", "at_leest"),
        (
            "declared_on = 2026-01-01\n[[threshold]]\nmeasure = 'dsc'\nbetween = [1, 0]",
            "lower and a higher",
        ),
        ("declared_on = 2026-01-01\n[[threshold]]\nmeasure = 'dsc'\nat_least = nan", "finite"),
        ("declared_on =", "no TOML"),
    ],
)
def test_a_file_that_declares_nothing_that_can_be_judged_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "acceptance.toml").write_text(text)
    with pytest.raises(AcceptanceFileError, match=said):
        read_declaration(tmp_path / "acceptance.toml")


def test_the_example_declares_what_it_says_it_does() -> None:
    path = Path(training.__file__).with_name("acceptance.example.toml")
    declaration, sha256 = read_declaration(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert declaration.fewest_patients == 20
    named = {one.measure for one in declaration.threshold}
    # Every measure that can be named is named, in a threshold or in the list below them.
    listed = path.read_text().split("Other measures:")[1]
    assert named | {name for name in LABELS if f"{name}," in listed or f"{name}." in listed} == set(
        LABELS
    )
