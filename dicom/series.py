"""A study on disk, read into series. Headers only: pixels are decoded by `dicom.volume`."""

from __future__ import annotations

import filecmp
import os
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
)

from dicom.attributes import text
from dicom.deflate import inflates_too_far
from dicom.errors import (
    EmptyInputError,
    InconsistentSeriesError,
    MissingAttributeError,
    NotDicomError,
    StudyError,
    TruncatedFileError,
    UnreadableError,
)

_MAGIC_OFFSET = 128
_MAGIC = b"DICM"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_FORM_VRS = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN"})
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_PIXEL_GROUP = 0x7FE0

_IMAGE_CLASSES = frozenset(
    {
        CTImageStorage,
        EnhancedMRImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
        MRImageStorage,
    }
)
"""Objects that are nothing without pixels, whatever else their header still tells."""

# What pydicom raises on damaged bytes, beside its own InvalidDicomError.
_PARSE_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One DICOM object on disk."""

    path: Path
    sop_instance_uid: str
    header: Dataset
    """All attributes but the pixel data. Shared: nobody assigns on it."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is no usable DICOM object, and why."""

    path: Path
    reason: str
    """`not-dicom`, `empty-file`, `truncated-file`, `missing-attribute` or `unreadable`."""
    series_instance_uid: str = ""
    """The series it belongs to, when that much could be read."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """All instances of one Series Instance UID, in order of SOP Instance UID."""

    study_instance_uid: str
    series_instance_uid: str
    instances: tuple[Instance, ...]
    unreadable: tuple[Unreadable, ...] = field(default=())
    """Damaged objects of this very series. A stack that has some is known to be incomplete."""

    @property
    def header(self) -> Dataset:
        """The header of the first instance, for attributes that the whole series shares."""
        return self.instances[0].header


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Everything found in one place, usually the series of one study."""

    series: tuple[Series, ...]
    """In order of Series Instance UID; each has at least one instance."""
    unreadable: tuple[Unreadable, ...] = field(default=())
    """Every file that is no usable object, those of a known series too."""


class _UnusableFileError(Exception):
    def __init__(self, reason: str, series_instance_uid: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.series_instance_uid = series_instance_uid


def read_study(folder: Path, *, files: Sequence[Path] | None = None) -> Study:
    """Headers of every DICOM object below a folder, or of the given files alone.

    A DICOMDIR is an index, not an object, and is left out. A second, byte-identical copy of an
    instance is dropped; two different objects with one SOP Instance UID are both kept, and
    `dicom.volume.stack_grid` refuses them as a doubled slice.

    Raises:
        EmptyInputError: No such folder, or no file in it.
        NotDicomError: Files, but none of them DICOM.
        UnreadableError: Only DICOM files that lack their identity or cannot be parsed.
        TruncatedFileError: Only DICOM files of which at least one ends too early.
    """
    paths = sorted(_files_below(folder)) if files is None else list(files)
    if not paths:
        raise EmptyInputError("the folder does not exist or holds no file")
    instances, unreadable = _read_all(paths)
    if not instances:
        raise _nothing_readable(unreadable)
    return Study(_group(instances, unreadable), tuple(unreadable))


def read_series(paths: Sequence[Path]) -> Series:
    """One series from its files, in any order.

    Raises:
        EmptyInputError: No file.
        TruncatedFileError, NotDicomError, MissingAttributeError, UnreadableError: Of any file.
        InconsistentSeriesError: The files are of more than one series.
    """
    study = read_study(Path(), files=paths)
    if study.unreadable:
        raise _nothing_readable(study.unreadable)
    if len(study.series) != 1:
        raise InconsistentSeriesError(f"files of {len(study.series)} series, expected one")
    return study.series[0]


def _files_below(folder: Path) -> Iterable[Path]:
    if folder.is_file():
        return [folder]
    return (path for path in folder.rglob("*") if path.is_file())


def _read_all(paths: Iterable[Path]) -> tuple[list[Instance], list[Unreadable]]:
    instances: list[Instance] = []
    unreadable: list[Unreadable] = []
    for path in paths:
        try:
            header = _read_header(path)
        except _UnusableFileError as error:
            unreadable.append(Unreadable(path, error.reason, error.series_instance_uid))
            continue
        if header is not None:
            instances.append(Instance(path, text(header, "SOPInstanceUID"), header))
    return instances, unreadable


def _nothing_readable(unreadable: Sequence[Unreadable]) -> StudyError:
    reasons = {entry.reason for entry in unreadable}
    counted = ", ".join(
        f"{sum(entry.reason == reason for entry in unreadable)} {reason}"
        for reason in sorted(reasons)
    )
    if not reasons:
        return EmptyInputError("a DICOMDIR and none of the objects it lists")
    if reasons <= {"not-dicom", "empty-file"}:
        return NotDicomError(f"no DICOM object among {len(unreadable)} files ({counted})")
    if "truncated-file" in reasons:
        return TruncatedFileError(f"unusable files: {counted}")
    if reasons == {"missing-attribute"}:
        return MissingAttributeError(f"objects without SOP, study or series UID: {counted}")
    return UnreadableError(f"unusable files: {counted}")


def _group(instances: Iterable[Instance], unreadable: Iterable[Unreadable]) -> tuple[Series, ...]:
    members: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        members[text(instance.header, "SeriesInstanceUID")].append(instance)
    damaged: defaultdict[str, list[Unreadable]] = defaultdict(list)
    for entry in unreadable:
        damaged[entry.series_instance_uid].append(entry)
    return tuple(
        Series(
            study_instance_uid=text(found[0].header, "StudyInstanceUID"),
            series_instance_uid=uid,
            instances=found,
            unreadable=tuple(damaged.get(uid, ())),
        )
        for uid, found in ((uid, _without_copies(members[uid])) for uid in sorted(members))
    )


def _without_copies(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    kept: list[Instance] = []
    for instance in sorted(instances, key=lambda one: (one.sop_instance_uid, str(one.path))):
        twins = [one for one in kept if one.sop_instance_uid == instance.sop_instance_uid]
        if not any(filecmp.cmp(one.path, instance.path, shallow=False) for one in twins):
            kept.append(instance)
    return tuple(kept)


def _read_header(path: Path) -> Dataset | None:
    """All attributes but the pixel data; None for a DICOMDIR."""
    try:
        with path.open("rb") as file:
            return _parse(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise _UnusableFileError("unreadable") from error


def _parse(file: BinaryIO, size: int) -> Dataset | None:
    if size == 0:
        raise _UnusableFileError("empty-file")
    if not _looks_like_dicom(file, size):
        raise _UnusableFileError("not-dicom")
    if inflates_too_far(file):
        raise _UnusableFileError("decoder-limits")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break their VR's rules
            header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
    except (zlib.error, EOFError) as error:
        raise _UnusableFileError("truncated-file") from error
    except (InvalidDicomError, *_PARSE_ERRORS) as error:
        raise _UnusableFileError("unreadable") from error
    if text(header, "SOPClassUID") == MediaStorageDirectoryStorage or "FileSetID" in header:
        return None
    _refuse_if_cut_short(file, size, header)
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not text(header, keyword):
            raise _UnusableFileError("missing-attribute", text(header, "SeriesInstanceUID"))
    return header


def _looks_like_dicom(file: BinaryIO, size: int) -> bool:
    start = file.read(_MAGIC_OFFSET + len(_MAGIC))
    file.seek(0)
    return start[_MAGIC_OFFSET:] == _MAGIC or _starts_with_an_element(start[:8], size)


def _starts_with_an_element(start: bytes, size: int) -> bool:
    """A file without preamble begins with group 2 or 8, a VR or a length that fits the file."""
    if len(start) < 8:
        return False
    for order in ("<", ">"):
        group, element = struct.unpack(f"{order}HH", start[:4])
        if group not in (0x0002, 0x0008) or element > 0x0100:
            continue
        if start[4:6].isalpha() and start[4:6].isupper():
            return True
        if struct.unpack(f"{order}I", start[4:])[0] <= size:
            return True
    return False


def _refuse_if_cut_short(file: BinaryIO, size: int, header: Dataset) -> None:
    meta = getattr(header, "file_meta", None)
    if meta is not None and text(meta, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return  # inflated as a whole: a file cut short has failed already
    sop_classes = {text(header, "SOPClassUID")}
    if meta is not None:
        sop_classes.add(text(meta, "MediaStorageSOPClassUID"))
    needs_pixels = "Rows" in header or bool(sop_classes & _IMAGE_CLASSES)
    whole = _pixels_are_whole(file, size, header)
    if whole is False or (whole is None and needs_pixels) or len(header) == 0:
        raise _UnusableFileError("truncated-file", text(header, "SeriesInstanceUID"))


def _pixels_are_whole(file: BinaryIO, size: int, header: Dataset) -> bool | None:
    """Do the pixel data end before the file does? None if there are none.

    The parser stopped at the pixel data element, and the file stands there. Only lengths are
    looked at, so this costs a few reads whatever the size of the image.
    """
    implicit, little = header.original_encoding
    order = "<" if little is not False else ">"
    start = file.read(8)
    if len(start) < 8 or struct.unpack(f"{order}H", start[:2])[0] != _PIXEL_GROUP:
        return None
    (length,) = struct.unpack(f"{order}I", start[4:])
    if not implicit and start[4:6] in _LONG_FORM_VRS:
        long_length = file.read(4)
        if len(long_length) < 4:
            return False
        (length,) = struct.unpack(f"{order}I", long_length)
    if length == _UNDEFINED_LENGTH:
        return _fragments_are_whole(file, size)
    return file.tell() + int(length) <= size


def _fragments_are_whole(file: BinaryIO, size: int) -> bool:
    """Encapsulated pixel data end with a sequence delimiter (PS3.5 A.4, always little endian)."""
    while len(item := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", item)
        if (group, element) == _SEQUENCE_END:
            return True
        if (group, element) != _ITEM or file.tell() + length > size:
            return False
        file.seek(length, os.SEEK_CUR)
    return False
