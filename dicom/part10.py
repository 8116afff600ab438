"""Our objects as files: the same dataset always gives the same bytes."""

from __future__ import annotations

from io import BytesIO

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom.uids import result_uid

IMPLEMENTATION_CLASS_UID = UID(result_uid("implementation class", "flairnode"))
IMPLEMENTATION_VERSION_NAME = "FLAIRNODE_1"
"""SH, 16 characters. Of the way files are written, not of the program's version: a rebuilt object
must have the bytes of the first."""


def part10_bytes(dataset: Dataset) -> bytes:
    """The dataset as a DICOM file with our file meta information. The dataset stays as it is.

    Source:
        PS3.10 7.1 (file meta information); always Explicit VR Little Endian.
    """
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    file = Dataset(dataset)
    file.file_meta = meta
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def read_part10(content: bytes) -> Dataset:
    """The object in a file: it shares no element with any other object."""
    return pydicom.dcmread(BytesIO(content))
