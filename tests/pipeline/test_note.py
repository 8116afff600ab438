"""The note that a FLAIR was not analysed: what it says, of which images, and of whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from config.settings import SelectionSettings
from dicom.checks import check_header, check_note
from dicom.errors import (
    InconsistentSeriesError,
    Outcome,
    ResultCheckError,
    StudyError,
)
from dicom.identity import UndecodableTextError, is_own_result, normalised_reference
from dicom.part10 import part10_bytes, read_part10
from dicom.series import Series, read_series, read_study
from pipeline.note import Refusal, _note, build_note
from pipeline.quality import Flag
from pipeline.refusals import REFUSALS, UNKNOWN, in_words
from pipeline.results import RESEARCH_BANNER, ResultObject
from pipeline.selection import choose
from tests.pipeline.analysed import pack

Make = Callable[..., Any]

FAILED = Flag("no-tissue-contrast", "What was taken for a brain is nearly uniform.", "fail")


def refused(folder: Path) -> tuple[Series, Refusal]:
    """What the selection says of the only series of a folder."""
    study = read_study(folder)
    (decision,) = choose(study, SelectionSettings()).decisions
    assert decision.outcome is Outcome.NOT_ANALYSED
    return study.series[0], Refusal(decision.reason, decision.explanation)


def items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence", ()):
        yield from items(child)


def sentences(note: ResultObject) -> list[str]:
    return [
        str(item.TextValue)
        for item in note.dataset.ContentSequence
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == "121106"
    ]


def references(note: ResultObject) -> list[str]:
    return [
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in items(note.dataset)
        if item.get("ValueType") == "IMAGE"
    ]


def evidence(note: ResultObject) -> set[str]:
    (study,) = note.dataset.CurrentRequestedProcedureEvidenceSequence
    return {
        str(one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def multi_frame(path: Path) -> None:
    dataset = dcmread(path)
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData * 2
    dataset.save_as(path)


# --- what it says --------------------------------------------------------------------------------


def test_a_missing_slice_is_named_by_its_neighbours(make_flair_series: Make) -> None:
    made = make_flair_series(slices=14, drop=(7, 8, 9))  # images 8, 9 and 10 of 14
    note = build_note(*refused(made.folder), pack())
    first, second, *_ = sentences(note)
    assert first == RESEARCH_BANNER
    assert second == (
        "Not analysed: 3 slices are missing between image 7 and image 11. Send the whole series "
        "again: it is then looked at again, and analysed if it is complete."
    )


def test_gaps_are_told_in_stack_order_whatever_the_images_are_numbered(
    make_flair_series: Make,
) -> None:
    made = make_flair_series(slices=14, drop=(3, 9), instance_numbers=range(14, 0, -1))
    note = build_note(*refused(made.folder), pack())
    assert (
        "1 slice is missing between image 10 and image 12, "
        "1 slice is missing between image 4 and image 6."
    ) in sentences(note)[1]


@pytest.mark.parametrize(
    ("reason", "changes", "damage"),
    [
        ("missing-slice", {"slices": 12, "drop": (5,)}, None),
        ("too-few-slices", {"slices": 5}, None),
        ("duplicate-slice", {"double": (4,)}, None),
        ("irregular-spacing", {"per_slice": {4: {"ImagePositionPatient": ["0", "0", "40"]}}}, None),
        (
            "mixed-orientation",
            {"per_slice": {4: {"ImageOrientationPatient": ["0", "1", "0", "0", "0", "-1"]}}},
            None,
        ),
        ("gantry-tilt", {"tilt": True}, None),
        ("inconsistent-series", {"per_slice": {4: {"Columns": 20}}}, None),
        ("implausible-geometry", {"overrides": {"PixelSpacing": ["-1", "1"]}}, None),
        ("missing-attribute", {"overrides": {"FrameOfReferenceUID": None}}, None),
        ("missing-attribute", {"overrides": {"ImageOrientationPatient": None}}, None),
        ("truncated-file", {}, cut_short),
        ("unknown-multi-frame", {}, multi_frame),
    ],
)
def test_every_kind_of_refusal_has_its_note(
    make_flair_series: Make,
    reason: str,
    changes: dict[str, Any],
    damage: Callable[[Path], None] | None,
) -> None:
    if changes == {"tilt": True}:
        upright = make_flair_series(degrees_about_xyz=(0.0, 0.0, 0.0)).affine
        upright[1, 0] = 2.0  # each slice 2 mm further back
        changes = {"affine": upright}
    made = make_flair_series(**changes)
    if damage is not None:
        damage(made.paths[0])
    series, refusal = refused(made.folder)
    assert refusal.reason == reason
    note = build_note(series, refusal, pack())
    said = "\n".join(sentences(note))
    assert f"Reason code: {reason}." in said
    assert in_words(reason).to_do in said
    assert in_words(reason) is not UNKNOWN
    assert "This is not a finding. No lesion was looked for" in said
    assert refusal.explanation.rstrip(".") in said
    readable = {one.sop_instance_uid for one in series.instances}
    assert set(references(note)) == evidence(note) == readable
    assert len(references(note)) == len(readable)


def test_a_reason_that_nobody_listed_is_told_by_code_and_detail(make_flair_series: Make) -> None:
    note = build_note(make_flair_series().series, Refusal("of-tomorrow", "seven of nine"), pack())
    assert {"Reason code: of-tomorrow.", "Detail: seven of nine."} <= set(sentences(note))
    assert UNKNOWN.what in sentences(note)[1]


def test_a_withheld_result_is_not_told_as_a_series_that_was_never_looked_at(
    make_flair_series: Make,
) -> None:
    refusal = Refusal(FAILED.code, FAILED.message, (FAILED,))
    said = "\n".join(sentences(build_note(make_flair_series().series, refusal, pack())))
    assert "The analysis ran, and its result was withheld" in said
    assert "No lesion was looked for" not in said
    assert f"Quality, fail: {FAILED.message}" in said
    assert "not applied" not in said


def test_the_coded_status_is_that_no_algorithm_succeeded(make_flair_series: Make) -> None:
    for flags in ((), (FAILED,)):
        refusal = Refusal("blank-image", "all alike", flags)
        note = build_note(make_flair_series().series, refusal, pack())
        answers = {
            item.ConceptNameCodeSequence[0].CodeValue: item.ConceptCodeSequence[0].CodeValue
            for item in note.dataset.ContentSequence
            if item.ValueType == "CODE" and item.RelationshipType == "CONTAINS"
        }
        assert answers == {"111017": "111245"}


def test_the_banner_stands_first_and_only_where_the_model_is_research(
    make_flair_series: Make,
) -> None:
    refusal = Refusal("blank-image", "all alike")
    series = make_flair_series().series
    research, clinical = (build_note(series, refusal, pack(s)) for s in ("research", "clinical"))
    assert sentences(research)[0] == RESEARCH_BANNER
    assert RESEARCH_BANNER in research.dataset.SeriesDescription
    assert RESEARCH_BANNER not in "\n".join(sentences(clinical))
    assert clinical.dataset.SeriesDescription == "FLAIR not analysed"
    assert sentences(clinical)[0].startswith("Not analysed: ")


# --- of which images -----------------------------------------------------------------------------


def test_a_damaged_image_is_counted_and_not_referenced(make_flair_series: Make) -> None:
    made = make_flair_series()
    lost = str(dcmread(made.paths[0]).SOPInstanceUID)
    cut_short(made.paths[0])
    note = build_note(*refused(made.folder), pack())
    assert lost not in references(note)
    assert any("9 images could be read, 1 could not" in said for said in sentences(note))


def test_the_note_carries_the_date_of_the_latest_image(make_flair_series: Make) -> None:
    made = make_flair_series(
        slices=5, per_slice={2: {"AcquisitionDate": "20240103", "AcquisitionTime": "0900"}}
    )
    dataset = build_note(*refused(made.folder), pack()).dataset
    assert (dataset.ContentDate, dataset.ContentTime) == ("20240103", "090000")


# --- of whom -------------------------------------------------------------------------------------


def test_identity_is_that_of_the_images_in_utf_8(make_flair_series: Make) -> None:
    made = make_flair_series(
        slices=5,
        overrides={"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Größe^Jürgen"},
    )
    dataset = build_note(*refused(made.folder), pack()).dataset
    assert str(dataset.PatientName) == "Größe^Jürgen"
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    for keyword in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
        assert dataset[keyword].value == dcmread(made.paths[0])[keyword].value


def test_no_note_is_made_of_two_patients(make_flair_series: Make) -> None:
    made = make_flair_series(slices=9, per_slice={3: {"PatientName": "Some^Body"}})
    with pytest.raises(InconsistentSeriesError, match="2 identities among 9 images"):
        build_note(made.series, Refusal("blank-image", "all alike"), pack())


def test_nor_of_one_whose_name_cannot_be_read(make_flair_series: Make) -> None:
    made = make_flair_series(slices=9)
    for path in made.paths:
        path.write_bytes(path.read_bytes().replace(b"Phantom^Flair", b"Phant\xf6m^Flair"))
    with pytest.raises(UndecodableTextError):
        build_note(read_series(made.paths), Refusal("blank-image", "all alike"), pack())


# --- the same note again -------------------------------------------------------------------------


def test_the_same_images_reason_and_model_give_the_same_bytes(make_flair_series: Make) -> None:
    made = make_flair_series(slices=5)
    first, second = (build_note(*refused(made.folder), pack()) for _ in range(2))
    assert first.content == second.content


def test_other_images_another_reason_and_another_model_give_another_note(
    make_flair_series: Make,
) -> None:
    made = make_flair_series(slices=5)
    series, refusal = refused(made.folder)
    uids = {
        build_note(series, refusal, pack()).sop_instance_uid,
        build_note(series, Refusal("blank-image", ""), pack()).sop_instance_uid,
        build_note(read_series(made.paths[1:]), refusal, pack()).sop_instance_uid,
        build_note(make_flair_series(slices=5, patient_id="2").series, refusal, pack())
        .sop_instance_uid,
    }  # fmt: skip
    assert len(uids) == 4


def test_our_own_note_is_recognised_and_never_analysed(
    make_flair_series: Make, tmp_path: Path
) -> None:
    note = build_note(*refused(make_flair_series(slices=5).folder), pack())
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "note.dcm").write_bytes(note.content)
    assert is_own_result(note.dataset)
    (decision,) = choose(read_study(tmp_path / "back"), SelectionSettings()).decisions
    assert (decision.reason, decision.outcome) == ("own-result", Outcome.SKIPPED)


# --- checks --------------------------------------------------------------------------------------


def damage_patient(note: Dataset) -> None:
    note.PatientID = "OTHER"


def damage_reference(note: Dataset) -> None:
    note.ContentSequence[-1].ContentSequence.pop()


def damage_sentence(note: Dataset) -> None:
    next(
        item
        for item in note.ContentSequence
        if item.ValueType == "TEXT" and item.TextValue.startswith("Not analysed")
    ).TextValue = "No lesions found."


def damage_status(note: Dataset) -> None:
    item = next(
        i
        for i in note.ContentSequence
        if i.ValueType == "CODE" and i.RelationshipType == "CONTAINS"
    )
    item.ConceptCodeSequence[0].CodeValue = "111241"


def damage_title(note: Dataset) -> None:
    note.ConceptNameCodeSequence[0].CodeValue = "126000"


@pytest.mark.parametrize(
    "damage", [damage_patient, damage_reference, damage_sentence, damage_status, damage_title]
)
def test_a_note_that_says_something_else_is_not_sent(
    make_flair_series: Make, damage: Callable[[Dataset], None]
) -> None:
    series, refusal = refused(make_flair_series(slices=5).folder)
    note = build_note(series, refusal, pack())
    sources = [normalised_reference(one.header) for one in series.instances]

    def check(dataset: Dataset) -> None:
        check_header(dataset, sources)
        check_note(dataset, sources, _note(series, refusal, pack()))

    check(read_part10(note.content))
    damaged = read_part10(note.content)
    damage(damaged)
    with pytest.raises(ResultCheckError):
        check(read_part10(part10_bytes(damaged)))


# --- words ---------------------------------------------------------------------------------------


def test_every_reason_that_a_stack_is_refused_for_has_words() -> None:
    reasons = {
        error.reason
        for error in subclasses(StudyError)
        if error.__module__ == "dicom.errors"
        and error.outcome is Outcome.NOT_ANALYSED
        and error.reason not in NOT_OF_A_SERIES
    }
    assert sorted(reasons - REFUSALS.keys()) == []


NOT_OF_A_SERIES = {"unspecified", "unreadable", "empty-input", "not-dicom", "series-unusable"}


def subclasses(error: type[StudyError]) -> Iterator[type[StudyError]]:
    for one in error.__subclasses__():
        yield one
        yield from subclasses(one)
