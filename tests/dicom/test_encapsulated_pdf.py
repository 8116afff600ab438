from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicom.checks import check_header, check_pdf, printed_strings
from dicom.encapsulated_pdf import build_encapsulated_pdf
from dicom.errors import ResultCheckError
from dicom.identity import is_own_result
from dicom.part10 import part10_bytes, read_part10
from tests.dicom.regions import Built, object_identity, three_regions

Make = Callable[..., Any]


def pdf_of(content: bytes) -> bytes:
    """As much of a PDF as `printed_strings` looks at."""
    pdf = b"%PDF-1.4\n1 0 obj\nstream\r\n" + zlib.compress(content) + b"endstream\n%%EOF\n"
    return pdf + b"\n" * (len(pdf) % 2)


PDF = pdf_of(rb"BT (Lesion) Tj (1) Tj (0.512) Tj (a \(b\) \\ c) Tj (caf\351) Tj ET")


@pytest.fixture
def regions(make_flair_series: Make) -> Built:
    return three_regions(make_flair_series)


def built(regions: Built, pdf: bytes = PDF) -> Dataset:
    identity = object_identity("PDF", 9004)
    return read_part10(build_encapsulated_pdf(regions.sources, regions.seg, pdf, "A PDF", identity))


def test_the_document_comes_out_as_it_went_in(regions: Built) -> None:
    document = built(regions)
    assert document.EncapsulatedDocument == PDF
    assert document.EncapsulatedDocumentLength == len(PDF)
    assert document.MIMETypeOfEncapsulatedDocument == "application/pdf"
    check_header(document, regions.sources)
    check_pdf(document, regions.sources, regions.seg, [("1", "0.512")])


def test_it_is_unverified_and_says_that_a_name_is_in_it(regions: Built) -> None:
    document = built(regions)
    assert document.Modality == "DOC"
    assert document.VerificationFlag == "UNVERIFIED"
    assert document.BurnedInAnnotation == "YES"
    assert is_own_result(document)


def test_it_names_the_images_and_the_segmentation_it_was_made_from(regions: Built) -> None:
    named = [one.ReferencedSOPInstanceUID for one in built(regions).SourceInstanceSequence]
    assert named == [*(one.SOPInstanceUID for one in regions.sources), regions.seg.SOPInstanceUID]


def test_a_document_of_odd_length_is_not_padded_in_silence(regions: Built) -> None:
    with pytest.raises(ValueError, match="even"):
        built(regions, PDF[:-1])


def test_strings_are_read_with_their_escapes() -> None:
    assert printed_strings(PDF) == ["Lesion", "1", "0.512", r"a (b) \ c", "caf?"]


def test_a_number_that_was_broken_over_two_lines_is_found_whole(regions: Built) -> None:
    document = built(regions, pdf_of(b"(lateral) Tj (ventricle) Tj (0.5) Tj"))
    check_pdf(document, regions.sources, regions.seg, [("lateral ventricle", "0.5")])


@pytest.mark.parametrize("row", [("1", "0.51"), ("0.512", "1"), ("2", "0.512")])
def test_a_number_that_is_not_printed_is_noticed(regions: Built, row: tuple[str, ...]) -> None:
    with pytest.raises(ResultCheckError, match="does not print"):
        check_pdf(built(regions), regions.sources, regions.seg, [row])


def _verified(document: Dataset) -> None:
    document.VerificationFlag = "VERIFIED"


def _fewer_sources(document: Dataset) -> None:
    document.SourceInstanceSequence = document.SourceInstanceSequence[1:]


def _no_pdf(document: Dataset) -> None:
    document.EncapsulatedDocument = b"no PDF at all."


@pytest.mark.parametrize("damage", [_verified, _fewer_sources, _no_pdf])
def test_a_document_that_claims_too_much_is_refused(
    regions: Built, damage: Callable[[Dataset], None]
) -> None:
    document = built(regions)
    damage(document)
    again = read_part10(part10_bytes(document))
    with pytest.raises(ResultCheckError):
        check_pdf(again, regions.sources, regions.seg, [])
