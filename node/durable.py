"""Files that are either whole and on disk, or not there."""

from __future__ import annotations

import os
from pathlib import Path

SERVICE_LOCK = "service.lock"
"""In a data directory: the service that runs on it holds an flock on this file."""
PRIVATE = 0o077
"""Mask of a process that writes here: every file 0600, every directory 0700, whoever makes it."""
PART_SUFFIX = ".part"
"""A name that ends so is unfinished work of a process that may be dead; nobody reads it."""


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one, or none, or the whole new one.

    Readable by the owner alone: everything the node writes may identify a patient.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Make names in a folder durable: a rename is on disk only once its directory is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
