"""Whose images these are, and the headers from which results are made.

highdicom 0.28 shares data elements between the images, the Segmentation and the report it makes of
them: an assignment on one changes the others, and the next patient's result with them. So results
are never made from received headers, but from `normalised_header`: a new dataset, in UTF-8, with
what a result takes over from an image and nothing else, and every attribute present that must be.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Final

from pydicom import charset, config
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.valuerep import DA, TM, VR

from dicom.attributes import items, numbers, required_text, text, values
from dicom.errors import SeriesError
from dicom.frames import FRAME_NUMBER

MANUFACTURER: Final = "flairnode"
"""Of every object we make: by it our own results are recognised."""

UTF_8: Final = "ISO_IR 192"

IDENTITY: Final = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "AccessionNumber",
)
"""What must not change or mix: it enters the digest, and so the UIDs of results."""

DESCRIPTION: Final = (
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "ReferringPhysicianName",
    "IssuerOfAccessionNumberSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "TimezoneOffsetFromUTC",
)
"""Taken over with the identity. A PACS may edit it later: the same images, the same result."""

_IMAGE: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    FRAME_NUMBER,
    "SeriesInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "SliceThickness",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_MUST_BE_PRESENT: Final = (
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
)
"""Type 2: may be empty, may not be absent; highdicom raises AttributeError without them."""
_MUST_HAVE_A_VALUE: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)
_REFERENCE: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality")
_PLACE: Final = ("FrameOfReferenceUID", "PositionReferenceIndicator", "SliceThickness")
"""What an object that says nothing of places does without."""

_MOMENTS: Final = (
    ("AcquisitionDate", "AcquisitionTime"),
    ("ContentDate", "ContentTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)
LONGEST_DESCRIPTION: Final = 64  # characters of a Long String, PS3.5 table 6.2-1
_NO_DATE, _NO_TIME = "19000101", "000000"  # of images without any date: some must be given
_AGE = re.compile(r"\d{3}[DWMY]")
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
_ESCAPE = "\x1b"  # of a code extension that is not declared


# Names of Python's codecs too, which some toolkits write.
_KNOWN_SETS = frozenset(
    re.sub(r"[ _-]", "", term).upper()
    for term in (*charset.python_encoding, *charset.python_encoding.values())
)
_LATIN_1 = frozenset({"", "ISOIR6", "ISOIR100", "ISO2022IR6", "ISO2022IR100", "ISO88591", "LATIN1"})


class UndecodableTextError(SeriesError):
    """A name or an identifier is not text in the character set that the image declares."""

    reason = "undecodable-text"


def normalised_header(header: Dataset) -> Dataset:
    """What a result takes over from an image, as a new dataset that shares nothing with `header`.

    Of one slice of an Enhanced object take the flat header (`dicom.frames`): what comes back then
    holds the number of the frame, as a reference to it must give it (`dicom.frames.frame_number`).

    Text is UTF-8, whatever the source was in (highdicom refuses multi-valued character sets). A
    date, time, sex or age that breaks its format is empty: it is not repaired by guessing. A
    description that is too long is cut, one that is not in the declared character set is left out.

    Raises:
        MissingAttributeError: A UID is absent.
        UndecodableTextError: What identifies is not text in the declared character set.
    """
    return _normalised(header, _IMAGE)


def normalised_reference(header: Dataset) -> Dataset:
    """`normalised_header` for an object that only names images: they need no place and no pixels.

    Raises:
        MissingAttributeError: A UID is absent.
        UndecodableTextError: Text is not in the declared character set.
    """
    return _normalised(header, _REFERENCE, without=_PLACE)


def _normalised(header: Dataset, image: tuple[str, ...], without: tuple[str, ...] = ()) -> Dataset:
    normalised = Dataset()
    normalised.SpecificCharacterSet = UTF_8
    for keyword in _MUST_HAVE_A_VALUE:
        if keyword not in without:
            required_text(header, keyword)
    for keyword in (*IDENTITY, *DESCRIPTION, *image):
        if keyword in header:
            _add(normalised, keyword, header)
    for keyword in _MUST_BE_PRESENT:
        if keyword not in normalised and keyword not in without:
            setattr(normalised, keyword, None if keyword == "SliceThickness" else "")
    return normalised


def identity_digest(header: Dataset) -> str:
    """SHA-256 of whose study this is. Character set, padding and letters of a re-send are alike."""
    identity = [_plain(keyword, header) for keyword in IDENTITY]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


PATIENT: Final = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
"""By which images are told to be of two patients. Not the name: the devices of one hospital write
one name in several ways."""


def differing_patient(headers: Iterable[Dataset]) -> tuple[str, ...]:
    """Keywords of `PATIENT` that have two values among these images; an empty one says nothing."""
    found: dict[str, set[str]] = {keyword: set() for keyword in PATIENT}
    for header in headers:
        for keyword in PATIENT:
            if value := text(header, keyword).strip():
                found[keyword].add(value)
    return tuple(keyword for keyword in PATIENT if len(found[keyword]) > 1)


def is_own_result(header: Dataset) -> bool:
    """Was this object made by flairnode?"""
    return text(header, "Manufacturer").casefold() == MANUFACTURER


def moment(headers: Iterable[Dataset]) -> tuple[str, str]:
    """Date and time (DA, TM) that a result of these images carries: of the latest image.

    Not of the clock: a result that is built again after a crash must have the bytes of the first.
    When it was built stands in the audit log. An image tells its acquisition, else its content,
    series or study.
    """
    return max(_moment(header) for header in headers)


def _moment(header: Dataset) -> tuple[str, str]:
    for date_keyword, time_keyword in _MOMENTS:
        if date := _date(text(header, date_keyword)):
            return date, _time(text(header, time_keyword)) or _NO_TIME
    return _NO_DATE, _NO_TIME


def _add(normalised: Dataset, keyword: str, header: Dataset) -> None:
    tag = Tag(keyword)
    vr = dictionary_VR(tag)
    value: object
    if vr == VR.SQ:
        value = _transcoded(header, keyword)
    elif vr in (VR.DS, VR.IS, VR.US):
        found = numbers(header, keyword) or ()
        plain = list(found) if vr == VR.DS else [int(number) for number in found]
        value = plain[0] if len(plain) == 1 else plain or None
    else:
        value = _plain(keyword, header)
    # A value that breaks a length limit stays as it was sent; pydicom would log it.
    normalised.add(DataElement(tag, vr, value, validation_mode=config.IGNORE))


def _plain(keyword: str, header: Dataset) -> str:
    found = text(header, keyword)
    if not _is_as_declared(found, header):
        if keyword in DESCRIPTION:
            return ""
        raise UndecodableTextError(f"{keyword} is not text in the declared character set")
    match keyword:
        case "PatientBirthDate" | "StudyDate":
            return _date(found)
        case "StudyTime":
            return _time(found)
        case "PatientSex":
            return found if found in ("M", "F", "O") else ""
        case "PatientAge":
            return found if _AGE.fullmatch(found) else ""
        case "PatientName" | "ReferringPhysicianName":
            # Empty trailing components mean nothing, and senders differ in them.
            return "=".join(group.rstrip("^ ") for group in found.split("=")).rstrip("=")
        case "StudyDescription" | "DeidentificationMethod":
            # Descriptions may be cut, what identifies may not.
            return "\\".join(value[:LONGEST_DESCRIPTION] for value in found.split("\\"))
    return found


def _is_as_declared(found: str, header: Dataset) -> bool:
    """Can the text have been written in the character set that the header declares?

    Where none is declared, letters beyond ASCII are read as Latin-1: old scanners mean that. They
    are not where they are UTF-8 too, for no name reads so in Latin-1.
    """
    if found.isascii():
        return _ESCAPE not in found
    declared = values(header, "SpecificCharacterSet")
    if _UNDECODABLE in found or not all(map(_is_known, declared)):
        return False
    if declared and not {_bare(term) for term in declared} <= _LATIN_1:
        return True
    try:
        found.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return True
    return False


def _is_known(term: str) -> bool:
    return term == "" or _bare(term) in _KNOWN_SETS


def _bare(term: str) -> str:
    """A defined term without what senders get wrong in it: "ISO-IR 100", "ISO_IR_100"."""
    return re.sub(r"[ _-]", "", term).upper()


def _date(found: str) -> str:
    try:
        return f"{DA(found):%Y%m%d}" if found else ""
    except ValueError:
        return ""


def _time(found: str) -> str:
    if not found:
        return ""
    try:
        time = TM(found)
    except ValueError:
        return ""
    return f"{time:%H%M%S}" + (f".{time.microsecond:06d}" if time.microsecond else "")


def _transcoded(header: Dataset, keyword: str) -> Sequence:
    copies = []
    for item in items(header, keyword):
        copy = Dataset()
        for tag in list(item.keys()):
            name = keyword_for_tag(tag)
            vr = dictionary_VR(tag) if name else ""
            if vr in (VR.LO, VR.SH, VR.UT, VR.CS, VR.UI, VR.LT, VR.ST):
                copy.add(DataElement(tag, vr, text(item, name), validation_mode=config.IGNORE))
        copies.append(copy)
    return Sequence(copies)
