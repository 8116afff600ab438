"""Files that are whole or not there, on a disk that may be full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from dicom.errors import Outcome, StudyError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskFullError(StudyError):
    """No space is left where the work is written. What is finished stays."""

    retry = True
    reason = "disk-full"
    outcome = Outcome.FAILED


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written so that a stop at any moment leaves the old one or the whole new one.

    Args:
        path: The file.
        write: Writes it to the path that it is given, which has the same ending.

    Raises:
        DiskFullError: No space, or no quota.
    """
    part = path.with_name(f".part-{path.name}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise DiskFullError("no space is left in the output folder") from error
        raise


def write_text(path: Path, text: str) -> None:
    """A text file, whole; line ends stay as they are."""
    write_whole(path, lambda part: _write(part, text))


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
