"""What one destination is sent instead of the stored object: the same, but for how it is listed.

A PACS may want its own Series Numbers, a prefix to the description, or a character set that it can
read. The stored object is not touched: the copy is made from its bytes, always the same copy, and
keeps every UID (in the spirit of PS3.4 B.4.1.3: attributes may be coerced, an instance stays
itself). Text that does not fit is refused: a name that lost its letters is another name.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.charset import python_encoding
from pydicom.dataset import Dataset
from pydicom.valuerep import VR

from dicom.attributes import number, text, values
from dicom.errors import Outcome, ResultCheckError, StudyError
from dicom.identity import LONGEST_DESCRIPTION

_TEXT = frozenset({VR.SH, VR.LO, VR.ST, VR.LT, VR.UC, VR.UT, VR.PN})
"""Whose encoding Specific Character Set names (PS3.5 6.1.2.2)."""
_CHANGED = ("SeriesNumber", "SeriesDescription", "SpecificCharacterSet")


class DoesNotFitError(StudyError):
    """What a destination wants cannot be made of this object."""

    reason = "does-not-fit-destination"
    outcome = Outcome.HELD


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a destination wants an object to be listed."""

    series_number: int | None = None
    """None: as it is."""
    series_number_offset: int = 0
    """Added where no number is given."""
    series_description: str = "{description}"
    specific_character_set: str | None = None


def sent_copy(content: bytes, wishes: Wishes) -> bytes:
    """The file to send instead of a stored one; checked against it.

    Raises:
        DoesNotFitError: Text does not fit the character set, or the description its 64 characters.
        ResultCheckError: The copy differs in something else than it should.
    """
    dataset = pydicom.dcmread(BytesIO(content))  # its own elements: nothing is shared
    if wishes.specific_character_set is not None:
        dataset.decode()
        _require_fit(dataset, wishes.specific_character_set)
        dataset.SpecificCharacterSet = wishes.specific_character_set
    _renumber(dataset, wishes)
    _describe(dataset, wishes)
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    sent = buffer.getvalue()
    check_sent_copy(sent, content)
    return sent


def check_sent_copy(sent: bytes, stored: bytes) -> None:
    """The copy is the stored object in everything but how it is listed: UIDs, references, pixels.

    Raises:
        ResultCheckError: With the keyword that differs, never its value.
    """
    copy, original = _comparable(sent), _comparable(stored)
    if copy.file_meta != original.file_meta:
        raise ResultCheckError("the file meta information of the sent copy differs")
    if copy != original:
        differing = sorted(
            element.keyword or str(element.tag)
            for element in original
            if copy.get(element.tag) != element
        )
        raise ResultCheckError(f"the sent copy differs in {', '.join(differing[:5])}")


def _comparable(content: bytes) -> Dataset:
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.decode()  # before its character set goes
    for keyword in _CHANGED:
        if keyword in dataset:
            del dataset[keyword]
    return dataset


def _renumber(dataset: Dataset, wishes: Wishes) -> None:
    if wishes.series_number is not None:
        dataset.SeriesNumber = wishes.series_number
    elif wishes.series_number_offset:
        wanted = int(number(dataset, "SeriesNumber") or 0) + wishes.series_number_offset
        if not 0 <= wanted < 2**31:
            raise DoesNotFitError(f"SeriesNumber would be {wanted}")
        dataset.SeriesNumber = wanted


def _describe(dataset: Dataset, wishes: Wishes) -> None:
    ours = text(dataset, "SeriesDescription")
    wanted = wishes.series_description.replace("{description}", ours)
    if wanted == ours:
        return
    if len(wanted) > LONGEST_DESCRIPTION:
        raise DoesNotFitError(
            f"SeriesDescription would be {len(wanted)} characters long, and "
            f"{LONGEST_DESCRIPTION} are allowed"
        )
    if wishes.specific_character_set is not None:
        _require_encodable(wanted, "SeriesDescription", wishes.specific_character_set)
    dataset.SeriesDescription = wanted


def _require_fit(dataset: Dataset, character_set: str) -> None:
    for element in dataset:
        if element.VR == VR.SQ:
            for item in element.value:
                if "SpecificCharacterSet" in item:
                    del item.SpecificCharacterSet  # decoded; written in that of the whole
                _require_fit(item, character_set)
        elif element.VR in _TEXT and element.keyword:
            for value in values(dataset, element.keyword):
                _require_encodable(value, element.keyword, character_set)


def _require_encodable(value: str, keyword: str, character_set: str) -> None:
    try:
        value.encode(python_encoding[character_set])
    except UnicodeEncodeError:
        raise DoesNotFitError(f"{keyword} does not fit {character_set}") from None
