"""Rejection notes: what they withdraw, and what a judge says of their form."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    SegmentationStorage,
)

from dicom import codes
from dicom.errors import ResultCheckError
from dicom.rejection import TITLES, build_rejection_note, check_rejection_note
from dicom.seg import Equipment, ObjectIdentity

IDENTITY = ObjectIdentity(
    sop_instance_uid="2.25.1",
    series_instance_uid="2.25.2",
    series_number=9010,
    series_description="Rejected results",
    date="20260102",
    time="030405",
    equipment=Equipment("flairnode", "0123456789abcdef", ("flairnode 1",)),
)


def header(sop_class: str, uid: str, series: str, **changes: object) -> Dataset:
    one = Dataset()
    one.SpecificCharacterSet = "ISO_IR 192"
    one.SOPClassUID, one.SOPInstanceUID = sop_class, uid
    one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.3", series
    one.PatientName, one.PatientID = "Größe^Jürgen", "TEST-1"
    one.PatientBirthDate, one.PatientSex = "19700101", "F"
    one.AccessionNumber, one.StudyID = "A1", "1"
    one.StudyDate, one.StudyTime = "20260101", "120000"
    one.ReferringPhysicianName = ""
    if sop_class == SegmentationStorage:
        one.Rows, one.Columns = 4, 4
    for keyword, value in changes.items():
        setattr(one, keyword, value)
    return one


def objects() -> list[Dataset]:
    return [
        header(SegmentationStorage, "1.2.3.1.1", "1.2.3.1"),
        header(Comprehensive3DSRStorage, "1.2.3.2.1", "1.2.3.2"),
        header(EncapsulatedPDFStorage, "1.2.3.3.1", "1.2.3.3"),
    ]


@pytest.mark.parametrize(("reason", "code"), [("patient-safety", "113037"), ("quality", "113001")])
def test_a_note_withdraws_every_object_and_has_no_fault_of_form(
    tmp_path: Path, reason: str, code: str
) -> None:
    note = build_rejection_note(objects(), TITLES[reason], "The model was recalled.", IDENTITY)
    read = dcmread(BytesIO(note))
    assert read.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert read.ConceptNameCodeSequence[0].CodeValue == code
    assert (read.PatientName, read.StudyInstanceUID) == ("Größe^Jürgen", "1.2.3")
    assert [item.ValueType for item in read.ContentSequence] == [
        "TEXT",
        "IMAGE",
        "COMPOSITE",
        "COMPOSITE",
    ]
    path = tmp_path / "note.dcm"
    path.write_bytes(note)
    judged = subprocess.run(
        ["/usr/bin/dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False
    )
    assert "Error" not in judged.stdout + judged.stderr, judged.stderr
    assert "KeyObjectSelection" in judged.stdout + judged.stderr


def test_the_same_objects_give_the_same_bytes() -> None:
    title = TITLES["quality"]
    first, again = (build_rejection_note(objects(), title, "x", IDENTITY) for _ in range(2))
    assert first == again


def test_a_note_on_other_objects_or_another_patient_is_found() -> None:
    title = codes.REJECTED_FOR_QUALITY
    note = build_rejection_note(objects(), title, "x", IDENTITY)
    with pytest.raises(ResultCheckError, match="3 objects of 2"):
        check_rejection_note(note, objects()[:2], title)
    others = [header(SegmentationStorage, "1.2.3.1.1", "1.2.3.1", PatientID="TEST-2")]
    others += objects()[1:]
    with pytest.raises(ResultCheckError, match="PatientID"):
        check_rejection_note(note, others, title)
    with pytest.raises(ResultCheckError, match="another title"):
        check_rejection_note(note, objects(), codes.REJECTED_FOR_PATIENT_SAFETY)


def test_a_note_is_of_one_study() -> None:
    mixed = [*objects(), header(SegmentationStorage, "1.2.4.1", "1.2.4", StudyInstanceUID="1.2.4")]
    with pytest.raises(ValueError, match="one study"):
        build_rejection_note(mixed, TITLES["quality"], "x", IDENTITY)
