"""A PDF in the study it speaks of, for viewers that read neither Segmentation nor report."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from dicom import codes
from dicom.part10 import part10_bytes
from dicom.result_header import object_references, result_header
from dicom.seg import ObjectIdentity, building

MIME_TYPE = "application/pdf"


def build_encapsulated_pdf(
    sources: Sequence[Dataset],
    seg: Dataset | None,
    pdf: bytes,
    title: str,
    identity: ObjectIdentity,
) -> bytes:
    """The document as a file.

    Args:
        sources: `identity.normalised_header` of the image of every slice.
        seg: The Segmentation it speaks of; None when no lesion was found.
        pdf: The document. Of even length, as values of a DICOM file are: a reader that ignores
            EncapsulatedDocumentLength then gets these very bytes.
        title: What a viewer lists.
        identity: UIDs, series and dates.

    Source:
        PS3.3 A.45.1 (Encapsulated PDF IOD), C.24.2 (Encapsulated Document Module).
    """
    if len(pdf) % 2:
        raise ValueError(f"a PDF of {len(pdf)} bytes: an even number is needed")
    with building():
        document = result_header(sources[0], identity, EncapsulatedPDFStorage)
        document.Modality = "DOC"
        document.ConversionType = "WSD"
        document.BurnedInAnnotation = "YES"  # the patient's name stands on it
        document.DocumentTitle = title
        document.AcquisitionDateTime = ""
        document.VerificationFlag = "UNVERIFIED"
        name = Dataset()
        name.CodeValue = codes.IMAGING_MEASUREMENT_REPORT.value
        name.CodingSchemeDesignator = codes.IMAGING_MEASUREMENT_REPORT.scheme_designator
        name.CodeMeaning = codes.IMAGING_MEASUREMENT_REPORT.meaning
        document.ConceptNameCodeSequence = [name]
        document.SourceInstanceSequence = object_references(
            [*sources, *([seg] if seg is not None else [])]
        )
        document.MIMETypeOfEncapsulatedDocument = MIME_TYPE
        document.EncapsulatedDocument = pdf
        document.EncapsulatedDocumentLength = len(pdf)
        return part10_bytes(document)
