from __future__ import annotations

import pytest
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom.attributes import (
    has_value,
    number,
    numbers,
    required_number,
    required_numbers,
    required_text,
    text,
    values,
)
from dicom.errors import MissingAttributeError


def raw(keyword: str, vr: str, value: bytes) -> Dataset:
    """A dataset as it comes from a file: the value is converted when it is first looked at."""
    dataset = Dataset()
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)
    return dataset


def test_an_absent_and_an_empty_attribute_are_alike() -> None:
    empty = Dataset()
    empty.EchoTime = None
    empty.SeriesDescription = ""
    for dataset in (Dataset(), empty):
        assert number(dataset, "EchoTime") is None
        assert numbers(dataset, "EchoTime") is None
        assert text(dataset, "SeriesDescription") == ""
        assert values(dataset, "SeriesDescription") == ()


def test_padding_is_taken_off() -> None:
    assert text(raw("SeriesDescription", "LO", b" t2 flair \0"), "SeriesDescription") == "t2 flair"


def test_several_values_are_kept_apart() -> None:
    dataset = raw("ImageType", "CS", b"ORIGINAL\\PRIMARY\\\\M")
    assert values(dataset, "ImageType") == ("ORIGINAL", "PRIMARY", "", "M")
    assert text(dataset, "ImageType") == "ORIGINAL\\PRIMARY\\\\M"


def test_the_first_of_several_numbers_counts() -> None:
    assert number(raw("EchoTime", "DS", b"120\\240"), "EchoTime") == 120.0
    assert numbers(raw("EchoTime", "DS", b"120\\240"), "EchoTime") == (120.0, 240.0)


@pytest.mark.parametrize("value", [b"abc ", b"NaN ", b"inf ", b"1,5 ", b"--", b"1e999 "])
def test_what_is_no_finite_number_is_no_number(value: bytes) -> None:
    dataset = raw("EchoTime", "DS", value)
    assert number(dataset, "EchoTime") is None
    assert numbers(dataset, "EchoTime") is None
    assert has_value(dataset, "EchoTime")


def test_one_bad_number_spoils_the_vector() -> None:
    assert numbers(raw("ImagePositionPatient", "DS", b"1\\x\\3"), "ImagePositionPatient") is None


def test_a_value_of_the_wrong_length_is_no_number() -> None:
    assert number(raw("Rows", "US", b"\x01\x02\x03"), "Rows") is None


def test_an_absent_value_is_not_an_unreadable_one() -> None:
    assert not has_value(Dataset(), "RescaleSlope")
    assert not has_value(raw("RescaleSlope", "DS", b""), "RescaleSlope")
    assert has_value(raw("RescaleSlope", "DS", b"abc "), "RescaleSlope")


def test_required_readers_name_the_keyword() -> None:
    dataset = Dataset()
    dataset.add(DataElement("PixelSpacing", "DS", ["0.5", "0.5"]))
    with pytest.raises(MissingAttributeError, match="FrameOfReferenceUID"):
        required_text(dataset, "FrameOfReferenceUID")
    with pytest.raises(MissingAttributeError, match="Rows"):
        required_number(dataset, "Rows")
    with pytest.raises(MissingAttributeError, match=r"PixelSpacing.* 3 "):
        required_numbers(dataset, "PixelSpacing", 3)
    assert required_numbers(dataset, "PixelSpacing", 2) == (0.5, 0.5)
