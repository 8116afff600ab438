from __future__ import annotations

import copy
from io import BytesIO

import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom.errors import MissingAttributeError
from dicom.identity import (
    UndecodableTextError,
    identity_digest,
    is_own_result,
    moment,
    normalised_header,
)


def header(**changes: object) -> Dataset:
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    made.SOPInstanceUID, made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.1", "1.2.2", "1.2.3"
    made.FrameOfReferenceUID = "1.2.4"
    made.PatientName, made.PatientID, made.PatientSex = "Größe^Jürgen", "P-1", "M"
    made.PatientBirthDate, made.AccessionNumber = "19700203", "A1"
    made.StudyDate, made.StudyTime = "20240102", "101500"
    made.Manufacturer = "SCANNERS"
    for keyword, value in changes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def received(dataset: Dataset, encoded: dict[str, bytes]) -> Dataset:
    """As read from a file in which these elements hold these bytes."""
    dataset = copy.deepcopy(dataset)
    for keyword in encoded:
        dataset.add_new(keyword, "PN" if "Name" in keyword else "LO", "")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in encoded.items():
        element = dataset[keyword]
        element.VR = "UN"
        element.value = value + b" " * (len(value) % 2)
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    content = buffer.getvalue()
    for keyword in encoded:
        tag = dataset[keyword].tag
        start = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + b"UN\0\0"
        at = content.index(start)
        size = content[at + 8 : at + 10]
        vr = b"PN" if "Name" in keyword else b"LO"
        content = content[:at] + start[:4] + vr + size + content[at + 12 :]
    return pydicom.dcmread(BytesIO(content), force=True)


def test_a_normalised_header_shares_no_element_with_the_received_one() -> None:
    source = header()
    normalised = normalised_header(source)
    normalised.PatientID = "P-2"
    normalised.PatientName = "Other"
    assert (source.PatientID, str(source.PatientName)) == ("P-1", "Größe^Jürgen")


def test_only_what_a_result_takes_over_is_copied() -> None:
    source = header(ProtocolName="t2 flair", InstitutionName="Somewhere")
    source.add_new(0x00091001, "LO", "private")
    normalised = normalised_header(source)
    assert "ProtocolName" not in normalised
    assert "InstitutionName" not in normalised
    assert 0x00091001 not in normalised
    assert "Manufacturer" not in normalised  # it is ours on a result


@pytest.mark.parametrize(
    "keyword",
    [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "StudyID",
        "ReferringPhysicianName",
        "PositionReferenceIndicator",
        "SliceThickness",
    ],
)
def test_an_absent_type_2_attribute_is_added_empty(keyword: str) -> None:
    source = header()
    if keyword in source:
        delattr(source, keyword)
    assert not normalised_header(source)[keyword].value


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID"])
def test_an_absent_uid_is_an_error_that_names_it(keyword: str) -> None:
    with pytest.raises(MissingAttributeError, match=keyword):
        normalised_header(header(**{keyword: None}))


def test_multi_valued_japanese_is_transcoded_to_utf_8() -> None:
    # PS3.5 H.3.1: "Yamada^Tarou=山田^太郎=やまだ^たろう"
    japanese = (
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"
    )
    source = received(
        header(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=None),
        {"PatientName": japanese},
    )
    normalised = normalised_header(source)
    assert normalised.SpecificCharacterSet == "ISO_IR 192"
    assert str(normalised.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_umlauts_in_latin_1_are_the_same_identity_as_in_utf_8() -> None:
    latin = received(
        header(SpecificCharacterSet="ISO_IR 100", PatientName=None),
        {"PatientName": "Größe^Jürgen^^^".encode("latin-1")},
    )
    assert str(normalised_header(latin).PatientName) == "Größe^Jürgen"
    assert identity_digest(latin) == identity_digest(header())


def test_text_that_is_not_in_the_declared_character_set_is_refused() -> None:
    broken = received(header(PatientName=None), {"PatientName": "Größe".encode("latin-1")})
    with pytest.raises(UndecodableTextError, match="PatientName"):
        normalised_header(broken)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientBirthDate", "1970"), ("StudyTime", "ten"), ("PatientSex", "W"), ("PatientAge", "54")],
)
def test_a_value_that_breaks_its_format_is_empty_not_guessed(keyword: str, value: str) -> None:
    source = header()
    with pydicom.config.disable_value_validation():
        source.pop(keyword, None)
        setattr(source, keyword, value)
    assert normalised_header(source)[keyword].value == ""


def test_a_description_that_is_too_long_is_cut_and_an_identifier_is_not() -> None:
    long = "x" * 70
    sent = header()
    for keyword in ("DeidentificationMethod", "PatientID"):
        sent.add(DataElement(keyword, "LO", long, validation_mode=pydicom.config.IGNORE))
    normalised = normalised_header(sent)
    assert normalised.DeidentificationMethod == "x" * 64
    assert normalised.PatientID == long


def test_the_identity_digest_follows_patient_study_and_accession_number() -> None:
    digest = identity_digest(header())
    assert identity_digest(header(PatientID="P-1 ")) == digest  # padding
    assert identity_digest(header(StudyDescription="edited later")) == digest
    others = {
        identity_digest(header(**{keyword: value}))
        for keyword, value in {
            "PatientID": "P-2",
            "PatientName": "Groß^Jürgen",
            "PatientBirthDate": "19700204",
            "PatientSex": "F",
            "StudyInstanceUID": "1.2.5",
            "AccessionNumber": "A2",
            "IssuerOfPatientID": "elsewhere",
        }.items()
    }
    assert len(others | {digest}) == 8


def test_our_own_results_are_recognised_by_their_manufacturer() -> None:
    assert is_own_result(header(Manufacturer="flairnode "))
    assert not is_own_result(header())
    assert not is_own_result(header(Manufacturer=None))


def test_the_moment_of_a_result_is_that_of_the_latest_image() -> None:
    early = header(AcquisitionDate="20240102", AcquisitionTime="101501")
    late = header(AcquisitionDate="20240102", AcquisitionTime="101502.5")
    assert moment([late, early]) == ("20240102", "101502.500000")


def test_images_without_any_date_still_give_one_and_always_the_same() -> None:
    assert moment([header(StudyDate="", StudyTime="")]) == ("19000101", "000000")
