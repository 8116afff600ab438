"""A rejection note: a Key Object Selection that tells an archive to withdraw what it lists.

Source:
    IHE Radiology, Imaging Object Change Management (IOCM), RAD-66; PS3.16 TID 2010 and CID 7010;
    PS3.3 A.35.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Final

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom import codes
from dicom.errors import ResultCheckError
from dicom.identity import IDENTITY
from dicom.seg import ObjectIdentity, building, dated_bytes

TITLES: Final = {
    "patient-safety": codes.REJECTED_FOR_PATIENT_SAFETY,
    "quality": codes.REJECTED_FOR_QUALITY,
}
REJECTION_SERIES_NUMBER: Final = 9010
"""After our results and notes."""


def build_rejection_note(
    rejected: Sequence[Dataset], title: Code, description: str, identity: ObjectIdentity
) -> bytes:
    """A note on objects of one study, as a file; checked.

    Args:
        rejected: Headers of the objects, read for this and for nothing else: highdicom shares
            elements with them.
        title: One of `TITLES`.
        description: Why, in a sentence; names no patient.
        identity: UIDs, series and date of the note.

    Raises:
        ResultCheckError: The note does not say what it should.
        ValueError: They are of several studies.
    """
    if len({str(one.StudyInstanceUID) for one in rejected}) != 1:
        raise ValueError("a rejection note is of one study")
    with building():
        content = hd.ko.KeyObjectSelection(
            document_title=title, referenced_objects=rejected, description=description
        )
        built = hd.ko.KeyObjectSelectionDocument(
            evidence=rejected,
            content=content,
            **identity.for_highdicom(),
        )
        note = dated_bytes(built, identity)
    check_rejection_note(note, rejected, title)
    return note


def check_rejection_note(note: bytes, rejected: Sequence[Dataset], title: Code) -> None:
    """It withdraws these objects, all of them and no other, of this patient.

    Raises:
        ResultCheckError: It does not.
    """
    read = pydicom.dcmread(BytesIO(note))
    wanted = sorted(str(one.SOPInstanceUID) for one in rejected)
    (named,) = read.ConceptNameCodeSequence
    if (named.CodeValue, named.CodingSchemeDesignator) != (title.value, title.scheme_designator):
        raise ResultCheckError("the rejection note has another title")
    evidence = sorted(
        str(one.ReferencedSOPInstanceUID)
        for study in read.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    )
    listed = sorted(
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in read.ContentSequence
        if item.ValueType in ("IMAGE", "COMPOSITE")
    )
    if not evidence == listed == wanted:
        raise ResultCheckError(f"the note withdraws {len(listed)} objects of {len(wanted)}")
    for keyword in IDENTITY:
        if (read.get(keyword) or "") != (rejected[0].get(keyword) or ""):
            raise ResultCheckError(f"{keyword} of the rejection note is not that of its objects")
