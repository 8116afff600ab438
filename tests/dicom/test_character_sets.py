# ruff: noqa: RUF001  # letters of other scripts look like Latin ones
"""Names in the scripts of the world: read as they were meant, or refused; never guessed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset

from dicom.attributes import text
from dicom.frames import frames_of
from dicom.identity import UndecodableTextError, identity_digest, normalised_header
from dicom.series import read_series
from tests.enhanced import write_enhanced

Make = Callable[..., Any]

NAMES: dict[str, tuple[str | list[str], str]] = {
    "ASCII": ("", "Buc^Jerome"),
    "Latin-1": ("ISO_IR 100", "Größe^Jürgen"),
    "Latin-2": ("ISO_IR 101", "Dvořák^Jiří"),
    "Latin-5": ("ISO_IR 148", "Şimşek^Çağrı"),
    "Cyrillic": ("ISO_IR 144", "Люкceмбypг"),
    "Greek": ("ISO_IR 126", "Διονυσιος"),
    "Arabic": ("ISO_IR 127", "قباني^لنزار"),
    "Hebrew": ("ISO_IR 138", "שרון^דבורה"),
    "Thai": ("ISO_IR 166", "สมชาย^ใจดี"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "half width": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "Chinese, UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
}  # fmt: skip


@pytest.mark.parametrize("script", NAMES)
def test_a_name_is_the_same_person_in_its_script_and_in_utf_8(
    make_flair_series: Make, tmp_path: Path, script: str
) -> None:
    declared, name = NAMES[script]
    one_slice = {"slices": 1, "rows": 4, "columns": 4}
    local = make_flair_series(
        **one_slice, overrides={"SpecificCharacterSet": declared, "PatientName": name}
    )
    utf_8 = make_flair_series(**one_slice, patient_name=name)
    if not name.isascii() and declared != "ISO_IR 192":
        assert name.encode() not in local.paths[0].read_bytes()
    header = local.series.header
    normalised = normalised_header(header)
    assert normalised.SpecificCharacterSet == "ISO_IR 192"
    assert str(normalised.PatientName) == name
    assert identity_digest(header) == identity_digest(utf_8.series.header)


EXPECTED = {
    "chrArab.dcm": "قباني^لنزار",
    "chrFren.dcm": "Buc^Jérôme",
    "chrGerm.dcm": "Äneas^Rüdiger",
    "chrGreek.dcm": "Διονυσιος",
    "chrH31.dcm": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "chrH32.dcm": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "chrHbrw.dcm": "שרון^דבורה",
    "chrI2.dcm": "Hong^Gildong=洪^吉洞=홍^길동",
    "chrKoreanMulti.dcm": "김희중",
    "chrRuss.dcm": "Люкceмбypг",
    "chrX1.dcm": "Wang^XiaoDong=王^小東",
    "chrX2.dcm": "Wang^XiaoDong=王^小东",
}
"""What is written in files that others made, as DICOM's Supplements and pydicom tell it."""


@pytest.mark.parametrize("file", EXPECTED)
def test_names_in_files_of_other_programs_are_read_as_meant(file: str) -> None:
    (path,) = get_charset_files(file)
    source = dcmread(path)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(source, keyword, "1.2.3")
    assert str(normalised_header(source).PatientName) == EXPECTED[file]


@pytest.mark.parametrize("file", ["chrFren", "chrGreek"])
def test_names_in_the_samples_are_read_as_meant(shared_data: Path, file: str) -> None:
    source = dcmread(shared_data / "dicom_samples" / "odd_fodicom" / f"{file}.dcm")
    assert text(source, "PatientName") == EXPECTED[f"{file}.dcm"]


def sent(declared: str | list[str], keyword: str, value: bytes, make: Make) -> Dataset:
    """A header as it comes from a file whose value is those very bytes."""
    made = make(slices=1, rows=4, columns=4, overrides={keyword: "X" * len(value)})
    image = dcmread(made.paths[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom does not know every set that is written here
        image.SpecificCharacterSet = declared
        image.save_as(made.paths[0])
    content = made.paths[0].read_bytes()
    assert content.count(b"X" * len(value)) == 1
    made.paths[0].write_bytes(content.replace(b"X" * len(value), value))
    return read_series(made.paths).header


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("ISO_IR 192", "Größe^Jürgen".encode("latin-1")),
        ("ISO_IR 100", "Größe^Jürgen".encode()),
        ("ISO_IR 100", "Jürgen".encode()),
        ("", "Jürgen".encode()),
        ("ISO_IR 999", "Jürgen".encode("latin-1")),
        ("ISO_IR 100", b"Yamada=\x1b$B;3ED\x1b(B"),
        ("", b"Yamada=\x1b$B;3ED\x1b(B "),
    ],
)
def test_a_name_that_is_not_in_the_declared_set_is_refused(
    make_flair_series: Make, declared: str, value: bytes
) -> None:
    with pytest.raises(UndecodableTextError, match="PatientName") as caught:
        normalised_header(sent(declared, "PatientName", value, make_flair_series))
    assert caught.value.reason == "undecodable-text"


def test_letters_without_a_declared_set_are_latin_1(make_flair_series: Make) -> None:
    header = sent("", "PatientName", "Größe^Jürgen".encode("latin-1"), make_flair_series)
    assert str(normalised_header(header).PatientName) == "Größe^Jürgen"


def test_a_misspelt_set_is_understood(make_flair_series: Make) -> None:
    value = "Größe^Jürgen".encode("latin-1")
    header = sent("ISO-IR 100", "PatientName", value, make_flair_series)
    assert str(normalised_header(header).PatientName) == "Größe^Jürgen"


def test_an_unknown_set_does_no_harm_where_all_is_ascii(make_flair_series: Make) -> None:
    header = sent("ISO_IR 999", "PatientName", b"Buc^Jerome", make_flair_series)
    assert str(normalised_header(header).PatientName) == "Buc^Jerome"


def test_a_description_that_is_not_in_the_declared_set_is_left_out(
    make_flair_series: Make,
) -> None:
    header = sent("ISO_IR 192", "StudyDescription", "Schädel".encode("latin-1"), make_flair_series)
    normalised = normalised_header(header)
    assert normalised.StudyDescription == ""
    assert str(normalised.PatientName) == "Phantom^Flair"


def test_names_of_enhanced_objects_are_read_too(make_flair_series: Make, tmp_path: Path) -> None:
    declared, name = NAMES["Japanese"]
    made = make_flair_series(overrides={"SpecificCharacterSet": declared, "PatientName": name})
    series = write_enhanced(made, tmp_path / "e")
    assert {str(normalised_header(f.header).PatientName) for f in frames_of(series)} == {name}
