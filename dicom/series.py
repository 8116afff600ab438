"""A study on disk, read into series. Headers only: pixels are decoded by `dicom.volume`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One DICOM object on disk."""

    path: Path
    sop_instance_uid: str
    header: Dataset
    """All attributes but the pixel data. Shared: nobody assigns on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """All instances of one Series Instance UID, in order of SOP Instance UID."""

    study_instance_uid: str
    series_instance_uid: str
    instances: tuple[Instance, ...]

    @property
    def header(self) -> Dataset:
        """The header of the first instance, for attributes that the whole series shares."""
        return self.instances[0].header


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is no usable DICOM object, and why."""

    path: Path
    reason: str
