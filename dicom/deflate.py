"""A deflated dataset is measured before anybody unpacks it: a thousandth may pose as a whole."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from pydicom.uid import DeflatedExplicitVRLittleEndian

INFLATED_BYTES = 256 << 20
"""The largest real one is an Enhanced MR of some 100 MB; pydicom unpacks all of it for a header."""
_CHUNK_BYTES = 1 << 16
_HEAD_BYTES = 2048
_META_START = 144  # preamble, "DICM" and (0002,0000), which counts from behind itself


def inflates_too_far(file: BinaryIO) -> bool:
    """Is it a deflated DICOM file that unpacks to more than `INFLATED_BYTES`? Rewinds the file."""
    try:
        head = file.read(_HEAD_BYTES)
        if DeflatedExplicitVRLittleEndian.encode() not in head or head[128:132] != b"DICM":
            return False
        file.seek(_META_START + int.from_bytes(head[140:144], "little"))
        return _unpacks_beyond(file)
    finally:
        file.seek(0)


def dataset_inflates_too_far(dataset: BinaryIO) -> bool:
    """The same of the encoded dataset alone."""
    return _unpacks_beyond(dataset)


def _unpacks_beyond(packed: BinaryIO) -> bool:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    total, waiting = 0, b""
    while not inflate.eof:
        waiting = waiting or packed.read(_CHUNK_BYTES)
        if not waiting:
            return False
        try:
            total += len(inflate.decompress(waiting, 1 << 20))
        except zlib.error:
            return False  # no bomb: what else it is, its reader says
        waiting = inflate.unconsumed_tail
        if total > INFLATED_BYTES:
            return True
    return False
