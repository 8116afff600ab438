"""Parts of a cohort: by patient, stratified, the same again, and never a patient in two."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.splits import (
    PatientInTwoPartsError,
    SplitCase,
    SplitsDifferError,
    SplitsFileError,
    TooFewPatientsError,
    make_splits,
    read_splits,
    settle_splits,
    write_audit,
)


def cohort(patients: int, sessions: int = 1, negatives: int = 0) -> list[SplitCase]:
    """Patient k has k ml; each session is a case."""
    cases = [
        SplitCase(
            f"P{number:03d}_{session}", f"P{number:03d}", float(number), f"{number}-{session}"
        )
        for number in range(1, patients + 1)
        for session in range(sessions)
    ]
    return cases + [
        SplitCase(f"N{number:03d}", f"N{number:03d}", 0.0, "") for number in range(negatives)
    ]


@given(st.integers(7, 60), st.integers(0, 20), st.integers(0, 2**40))
def test_a_quarter_is_tested_and_the_rest_dealt_evenly_whatever_the_seed(
    patients: int, negatives: int, seed: int
) -> None:
    splits = make_splits(cohort(patients, negatives=negatives), seed)
    everybody = patients + negatives
    assert len(splits.test) == (everybody + 2) // 4  # 25 %, halves up
    sizes = [len(fold) for fold in splits.folds]
    assert sum(sizes) == everybody - len(splits.test)
    assert max(sizes) - min(sizes) <= 1
    counted = Counter([*splits.test, *(patient for fold in splits.folds for patient in fold)])
    assert set(counted.values()) == {1}
    for fold in splits.folds:  # each has somebody with lesions to be validated on
        assert any(patient.startswith("P") for patient in fold)


def test_the_test_set_has_one_of_every_four_neighbours_in_lesion_load() -> None:
    splits = make_splits(cohort(40), seed=3)
    loads = sorted(int(patient[1:]) for patient in splits.test)
    assert [(load - 1) // 4 for load in loads] == list(range(10))


def test_every_fold_has_one_of_every_five_neighbours_that_are_left() -> None:
    splits = make_splits(cohort(40), seed=3)
    left = [f"P{n:03d}" for n in range(40, 0, -1) if f"P{n:03d}" not in splits.test]
    for start in range(0, 30, 5):
        block = set(left[start : start + 5])
        assert [len(block & set(fold)) for fold in splits.folds] == [1] * 5


def test_all_sessions_of_a_patient_are_in_one_part() -> None:
    splits = make_splits(cohort(12, sessions=3), seed=1)
    for fold in splits.as_nnunet():
        trained = {name[:4] for name in fold["train"]}
        validated = {name[:4] for name in fold["val"]}
        assert not trained & validated
        assert not (trained | validated) & set(splits.test)
        assert len(fold["train"]) + len(fold["val"]) == 3 * 9


def test_the_order_of_cases_does_not_matter_and_the_seed_does() -> None:
    cases = cohort(24)
    assert make_splits(cases, 5) == make_splits(cases[::-1], 5)
    assert make_splits(cases, 5).test != make_splits(cases, 6).test


def test_the_draw_is_pinned() -> None:
    """A colleague gets the same folds a year later, with another numpy and another Python."""
    splits = make_splits(cohort(8), seed=1)
    assert (splits.test, splits.folds) == PINNED


def test_seven_patients_with_lesions_are_the_fewest() -> None:
    assert len(make_splits(cohort(7), 1).test) == 2
    with pytest.raises(TooFewPatientsError, match="6 patients with lesions"):
        make_splits(cohort(6, sessions=4, negatives=30), 1)


def test_a_later_run_must_match(tmp_path: Path) -> None:
    path, cases = tmp_path / "splits.json", cohort(9)
    made = settle_splits(path, cases, 1)
    content = path.read_bytes()
    assert settle_splits(path, cases[::-1], 1) == made == read_splits(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "seed", "said"),
    [
        (lambda cases: cases, 2, "seed 2, it was 1"),
        (lambda cases: [*cases, SplitCase("P999_0", "P999", 1.0, "")], 1, "new: P999_0"),
        (lambda cases: cases[1:], 1, "gone: P001_0"),
        (
            lambda cases: [replace(cases[0], digest="other"), *cases[1:]],
            1,
            "changed image or mask: P001_0",
        ),
        (
            lambda cases: [replace(cases[0], patient="P002"), *cases[1:]],
            1,
            "of another patient: P001_0",
        ),
    ],
)
def test_another_cohort_or_seed_is_refused_with_what_changed(
    tmp_path: Path, change: object, seed: int, said: str
) -> None:
    path = tmp_path / "splits.json"
    settle_splits(path, cohort(9), 1)
    before = path.read_bytes()
    with pytest.raises(SplitsDifferError, match=said):
        settle_splits(path, change(cohort(9)), seed)  # type: ignore[operator]
    assert path.read_bytes() == before


def test_a_patient_in_two_parts_is_an_error_wherever_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    settle_splits(path, cohort(9), 1)
    content = json.loads(path.read_text())
    moved = content["test"][0]
    content["folds"][0].append(moved)
    path.write_text(json.dumps(content))
    for read in (lambda: read_splits(path), lambda: settle_splits(path, cohort(9), 1)):
        with pytest.raises(PatientInTwoPartsError, match=moved):
            read()


def test_a_patient_in_no_part_is_an_error_too(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    settle_splits(path, cohort(9), 1)
    content = json.loads(path.read_text())
    left_out = content["folds"][2].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(PatientInTwoPartsError, match=left_out):
        read_splits(path)


def test_patients_swapped_by_hand_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    settle_splits(path, cohort(9), 1)
    content = json.loads(path.read_text())
    content["test"][0], content["folds"][0][0] = content["folds"][0][0], content["test"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(SplitsDifferError, match="by hand"):
        settle_splits(path, cohort(9), 1)


def test_a_damaged_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text('{"format": 1, "seed"')
    with pytest.raises(SplitsFileError):
        settle_splits(path, cohort(9), 1)
    assert path.read_text() == '{"format": 1, "seed"'


def test_the_audit_has_a_line_for_every_patient(tmp_path: Path) -> None:
    splits = make_splits(cohort(9, sessions=2), 1)
    write_audit(tmp_path / "audit.csv", splits)
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == [f"P{n:03d}" for n in range(1, 10)]
    assert Counter(row["part"] for row in rows) == {
        "test": 2,
        **{f"fold {n}": len(fold) for n, fold in enumerate(splits.folds)},
    }
    assert rows[2]["case_names"] == "P003_0 P003_1"


PINNED = (
    ("P002", "P005"),
    (("P008",), ("P006",), ("P007",), ("P004",), ("P001", "P003")),
)
