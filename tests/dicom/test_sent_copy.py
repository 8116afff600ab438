"""What a destination with wishes of its own is sent."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import MRImageStorage

from dicom.errors import ResultCheckError
from dicom.part10 import part10_bytes
from dicom.sent_copy import DoesNotFitError, Wishes, check_sent_copy, sent_copy

LATIN = Wishes(specific_character_set="ISO_IR 100")


def stored(name: str = "Größe^Jürgen", comment: str = "Läsion") -> bytes:
    item = Dataset()
    item.CodeMeaning = comment
    one = Dataset()
    one.SpecificCharacterSet = "ISO_IR 192"
    one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, "1.2.3.4.5"
    one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    one.PatientName, one.PatientID = name, "TEST-1"
    one.SeriesNumber, one.SeriesDescription = 9001, "FLAIR lesions"
    one.ConceptNameCodeSequence = Sequence([item])
    one.Rows, one.Columns = 1, 2
    one.BitsAllocated = one.BitsStored = 8
    one.HighBit, one.PixelRepresentation, one.SamplesPerPixel = 7, 0, 1
    one.PixelData = b"\x01\x02"
    return part10_bytes(one)


def test_an_old_pacs_reads_the_name_in_its_own_letters() -> None:
    content = stored()
    sent = sent_copy(content, LATIN)
    read = dcmread(BytesIO(sent))
    assert read.SpecificCharacterSet == "ISO_IR 100"
    assert "Größe^Jürgen".encode("latin-1") in sent
    assert "Läsion".encode("latin-1") in sent
    assert read.PatientName == "Größe^Jürgen"
    assert read.ConceptNameCodeSequence[0].CodeMeaning == "Läsion"
    assert (read.SOPInstanceUID, read.PixelData) == ("1.2.3.4.5", b"\x01\x02")
    assert content == stored(), "the stored object is as it was"


@pytest.mark.parametrize(
    ("content", "keyword"),
    [(stored(name="山田^太郎"), "PatientName"), (stored(comment="±Ω"), "CodeMeaning")],
)
def test_text_that_does_not_fit_is_refused_and_not_mangled(content: bytes, keyword: str) -> None:
    with pytest.raises(DoesNotFitError, match=f"{keyword} does not fit ISO_IR 100") as refused:
        sent_copy(content, LATIN)
    assert "山" not in str(refused.value)


def test_numbers_and_descriptions_are_those_of_the_destination() -> None:
    read = dcmread(
        BytesIO(
            sent_copy(stored(), Wishes(series_number=77, series_description="AI {description}"))
        )
    )
    assert (read.SeriesNumber, read.SeriesDescription) == (77, "AI FLAIR lesions")
    moved = dcmread(BytesIO(sent_copy(stored(), Wishes(series_number_offset=-8000))))
    assert moved.SeriesNumber == 1001


def test_a_description_that_would_be_cut_is_refused() -> None:
    """It may end in RESEARCH - NOT FOR CLINICAL USE: 52 + 13 characters are one too many."""
    with pytest.raises(DoesNotFitError, match="65 characters"):
        sent_copy(stored(), Wishes(series_description="x" * 52 + "{description}"))


def test_the_same_object_gives_the_same_bytes() -> None:
    wishes = Wishes(series_number_offset=1, specific_character_set="ISO_IR 100")
    assert sent_copy(stored(), wishes) == sent_copy(stored(), wishes)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("SOPInstanceUID", "1.2.3.4.6"), ("PixelData", b"\x01\x03"), ("PatientName", "Grosse^J")],
)
def test_anything_else_that_differs_is_found(keyword: str, value: object) -> None:
    changed = dcmread(BytesIO(stored()))
    setattr(changed, keyword, value)
    buffer = BytesIO()
    changed.save_as(buffer)
    with pytest.raises(ResultCheckError, match=keyword):
        check_sent_copy(buffer.getvalue(), stored())
