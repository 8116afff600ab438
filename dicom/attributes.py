"""Attributes as a PACS really sends them: absent, empty, multi-valued or not parsable.

Everything read from a received object goes through here. Absent, empty and unusable are one and the
same answer ("" or None), so that a caller needs a single branch; the `required_*` readers turn that
answer into a coded error that names the keyword. No reader raises anything else.
"""

from __future__ import annotations

import math
import struct
import warnings
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from dicom.errors import MissingAttributeError

# A raw element is converted when it is first looked at. These are what a wrong value raises then.
_CONVERSION_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,  # a sequence whose items run on beyond its end
    TypeError,
    ValueError,
    struct.error,
)


def text(dataset: Dataset, keyword: str) -> str:
    r"""Value as text without padding; several values joined by a backslash; "" if there is none."""
    return "\\".join(values(dataset, keyword))


def values(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Every value as text without padding; () if the attribute is absent or empty."""
    found = tuple(_plain(value) for value in _values(dataset, keyword))
    return found if any(found) else ()


def number(dataset: Dataset, keyword: str) -> float | None:
    """First value as a finite number; None if it is absent, empty, not a number or not finite."""
    found = _values(dataset, keyword)
    return _finite(found[0]) if found else None


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Every value as a finite number; None if there is none, or if any is not one."""
    found = [_finite(value) for value in _values(dataset, keyword)]
    complete = tuple(value for value in found if value is not None)
    return complete if found and len(complete) == len(found) else None


def has_value(dataset: Dataset, keyword: str) -> bool:
    """Does something stand there, whether it can be read or not?

    For attributes with a default: an unreadable RescaleSlope is not an absent one.
    """
    if keyword not in dataset:
        return False
    return dataset.get_item(keyword).value not in (None, "", b"", [])


def items(dataset: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """Items of a sequence; () if it is absent, empty or no sequence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = dataset.get(keyword)
        except _CONVERSION_ERRORS:
            return ()
    return tuple(found) if isinstance(found, Sequence) else ()


def required_text(dataset: Dataset, keyword: str) -> str:
    """`text`, never empty.

    Raises:
        MissingAttributeError: Absent or empty.
    """
    found = text(dataset, keyword)
    if not found:
        raise MissingAttributeError(f"{keyword} is absent or empty")
    return found


def required_number(dataset: Dataset, keyword: str) -> float:
    """`number`, never None.

    Raises:
        MissingAttributeError: Absent, empty or not a finite number.
    """
    found = number(dataset, keyword)
    if found is None:
        raise MissingAttributeError(f"{keyword} is absent, empty or not a finite number")
    return found


def required_numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """`numbers`, exactly `count` of them.

    Raises:
        MissingAttributeError: Absent, empty, not finite numbers, or another count.
    """
    found = numbers(dataset, keyword)
    if found is None or len(found) != count:
        raise MissingAttributeError(f"{keyword} is absent or does not hold {count} finite numbers")
    return found


def _values(dataset: Dataset, keyword: str) -> tuple[Any, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that break their VR's rules
        try:
            value = dataset.get(keyword)
        except _CONVERSION_ERRORS:
            return ()
    if value is None or isinstance(value, Sequence):
        return ()
    if isinstance(value, MultiValue | list | tuple):
        return tuple(value)
    return (value,)


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str("" if value is None else value).strip(" \0")
        except _CONVERSION_ERRORS:
            return ""


def _finite(value: object) -> float | None:
    try:
        found = float(str(value))
    except _CONVERSION_ERRORS:
        return None
    return found if math.isfinite(found) else None
