"""A cohort as a site tells it: a table, BIDS, or plain folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom.errors import EmptyInputError
from tests.training.cohorts import write_manifest
from training.cohort import CohortCase, CohortError, SliceOrder, read_cohort


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_table_says_all_that_is_known_of_a_case(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path / "cohort.csv",
        {
            "patient": "P01",
            "session": "2024",
            "image": "p01/dicom",
            "mask": "p01/pictures",
            "mask_rater2": "p01/second.nii.gz",
            "slice_order": "head-to-foot",
            "lesion_free": "no",
            "mask_checked": "yes",
            "scanner": "A",
            "field_strength_t": 1.5,
            "sex": "F",
            "age": 34,
            "phenotype": "RRMS",
        },
        {"patient": "P02", "image": "p02.nii.gz", "mask": "p02-mask.nii.gz", "lesion_free": "yes"},
    )
    first, second = read_cohort(path)
    assert first == CohortCase(
        "P01",
        "2024",
        (tmp_path / "p01/dicom",),
        (tmp_path / "p01/pictures",),
        (tmp_path / "p01/second.nii.gz",),
        SliceOrder.HEAD_TO_FOOT,
        lesion_free=False,
        mask_checked=True,
        scanner="A",
        field_strength_t=1.5,
        sex="F",
        age=34,
        phenotype="RRMS",
    )
    assert first.name == "P01_2024"
    assert (second.name, second.session, second.lesion_free) == ("P02", "", True)
    assert second.second_masks == ()
    assert second.age is None


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_spreadsheet_may_separate_as_it_likes_and_start_with_a_mark(
    tmp_path: Path, delimiter: str
) -> None:
    lines = [["patient", "image", "mask"], ["P01", "a.nii", "b.nii"], ["", "", ""]]
    text = "\r\n".join(delimiter.join(line) for line in lines)
    (tmp_path / "cohort.csv").write_text(text, encoding="utf-8-sig")
    (case,) = read_cohort(tmp_path / "cohort.csv")
    assert case.images == (tmp_path / "a.nii",)


def test_toml_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "cohort.toml").write_text(
        '[[case]]\npatient = "P01"\nimage = "a"\nmask = "b"\nage = 40\nlesion_free = true\n'
    )
    (case,) = read_cohort(tmp_path / "cohort.toml")
    assert case == CohortCase(
        "P01", "", (tmp_path / "a",), (tmp_path / "b",), lesion_free=True, age=40
    )


def test_two_lines_of_one_session_are_one_case_with_two_masks(tmp_path: Path) -> None:
    row = {"patient": "P01", "image": "a.nii.gz"}
    path = write_manifest(tmp_path / "c.csv", row | {"mask": "m1"}, row | {"mask": "m2"})
    (case,) = read_cohort(path)
    assert case.images == (tmp_path / "a.nii.gz",)
    assert case.masks == (tmp_path / "m1", tmp_path / "m2")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"patient": "Doe John"}, "line 2 .* patient is no pseudonym"),
        ({"patient": "Doe^John"}, "patient is no pseudonym"),
        ({"patient": "../P01"}, "patient is no pseudonym"),
        ({"patient": "", "image": "a"}, "patient is no pseudonym"),
        ({"patient": "P01", "Name": "Doe"}, "Name is no column"),
        ({"patient": "P01", "age": "Doe"}, "age cannot be used"),
        ({"patient": "P01", "slice_order": "Doe"}, "slice_order cannot be used"),
        ({"image": "Doe.nii.gz"}, "patient is missing"),
    ],
    ids=["space", "caret", "path", "empty", "column", "age", "order", "missing"],
)
def test_a_line_that_cannot_be_read_is_refused_without_its_values(
    tmp_path: Path, row: dict[str, object], said: str
) -> None:
    with pytest.raises(CohortError, match=said) as caught:
        read_cohort(write_manifest(tmp_path / "cohort.csv", row))
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    "patients",
    [[("P01", ""), ("p01", "")], [("A_b", ""), ("A", "b")]],
    ids=["upper and lower case", "patient and session"],
)
def test_two_patients_who_may_be_one_are_refused(
    tmp_path: Path, patients: list[tuple[str, str]]
) -> None:
    rows = [{"patient": patient, "session": session, "image": "a"} for patient, session in patients]
    with pytest.raises(CohortError, match=r"P01 and p01|A and A_b"):
        read_cohort(write_manifest(tmp_path / "cohort.csv", *rows))


def test_no_cohort_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("patient,image,mask\n")
    for path in (tmp_path / "nowhere", tmp_path / "cohort.csv"):
        with pytest.raises(EmptyInputError):
            read_cohort(path)
    (tmp_path / "cohort.toml").write_text("[case")
    with pytest.raises(CohortError, match="TOML"):
        read_cohort(tmp_path / "cohort.toml")


def test_plain_folders_are_patients_with_or_without_sessions(tmp_path: Path) -> None:
    touch(
        tmp_path / "P01/flair.nii.gz",
        tmp_path / "P01/lesion.nii.gz",
        tmp_path / "P01/lesion_rater2.nii.gz",
        tmp_path / "P02/s1/flair/1.dcm",
        tmp_path / "P02/s1/lesion.dcm",
        tmp_path / "P02/s2/flair.nii",
        tmp_path / "P02/s2/lesion/1.png",
        tmp_path / "P02/s2/lesion.nii.gz",
        tmp_path / "P03/notes.txt",
    )
    cases = {case.name: case for case in read_cohort(tmp_path)}
    assert sorted(cases) == ["P01", "P02_s1", "P02_s2", "P03"]
    assert cases["P01"].second_masks == (tmp_path / "P01/lesion_rater2.nii.gz",)
    assert cases["P02_s1"].images == (tmp_path / "P02/s1/flair",)
    assert cases["P02_s1"].masks == (tmp_path / "P02/s1/lesion.dcm",)
    # Two masks: refused when the case is prepared. None: likewise, and never left out in silence.
    assert len(cases["P02_s2"].masks) == 2
    assert cases["P03"].images == cases["P03"].masks == ()


def test_a_folder_that_is_called_by_a_name_is_refused_without_it(tmp_path: Path) -> None:
    touch(tmp_path / "Doe, John/flair.nii.gz")
    with pytest.raises(CohortError, match="folder 1 of the cohort") as caught:
        read_cohort(tmp_path)
    assert "Doe" not in str(caught.value)


def test_bids_with_derivatives_participants_and_sidecars(tmp_path: Path) -> None:
    one, two = tmp_path / "sub-01/ses-a/anat", tmp_path / "sub-02/anat"
    touch(
        one / "sub-01_ses-a_FLAIR.nii.gz",
        one / "sub-01_ses-a_T1w.nii.gz",
        two / "sub-02_FLAIR.nii.gz",
        tmp_path / "derivatives/raters/sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask.nii.gz",
        tmp_path / "derivatives/raters/sub-01/ses-a/anat/sub-01_ses-a_label-brain_mask.nii.gz",
        tmp_path / "derivatives/sub-02/anat/sub-02_desc-lesion_mask.nii.gz",
    )
    (one / "sub-01_ses-a_FLAIR.json").write_text(json.dumps({"MagneticFieldStrength": 3}))
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\tphenotype\nsub-01\t41\tfemale\tSPMS\nsub-02\tn/a\tn/a\tn/a\n"
    )
    first, second = read_cohort(tmp_path)
    assert (first.name, first.patient, first.session) == ("sub-01_ses-a", "sub-01", "ses-a")
    assert [path.name for path in first.images] == ["sub-01_ses-a_FLAIR.nii.gz"]
    assert [path.name for path in first.masks] == ["sub-01_ses-a_label-lesion_mask.nii.gz"]
    assert (first.age, first.sex, first.phenotype, first.field_strength_t) == (41, "F", "SPMS", 3)
    assert (second.name, len(second.masks), second.age, second.sex) == ("sub-02", 1, None, None)
