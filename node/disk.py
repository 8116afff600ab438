"""Room on the disk: when senders are told to come back later, and when they are welcome again.

Below the reserve a C-STORE is answered 0xA700, out of resources. The association stays open, and a
new one is accepted: a sender that is rejected cannot tell a full disk from a wrong AE title and
many give the study up, whereas A700 is what they repeat; a C-ECHO is still answered; and reports of
Storage Commitment, which let something be deleted, come in by the same door. What is here already
is answered as stored, since it needs no room.

The reserve is for what was taken before: its results, the ledger, the engine, the audit trail.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from config.settings import NodeSettings

log = structlog.get_logger(__name__)

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Room:
    """How much is free, and how much must be."""

    free_mb: int
    total_mb: int
    reserve_mb: int
    reopens_mb: int
    """So much must be free again before senders are taken from."""

    @property
    def below_reserve(self) -> bool:
        """Is nothing new to be taken?"""
        return self.free_mb < self.reserve_mb

    @property
    def free_bytes(self) -> int:
        """To a megabyte."""
        return self.free_mb * MEBIBYTE

    @property
    def total_bytes(self) -> int:
        """To a megabyte."""
        return self.total_mb * MEBIBYTE

    @property
    def reserve_bytes(self) -> int:
        """Below it senders are refused."""
        return self.reserve_mb * MEBIBYTE

    @property
    def text(self) -> str:
        """For people."""
        said = f"{self.free_mb} MB free of {self.total_mb} MB, reserve {self.reserve_mb} MB"
        if self.below_reserve:
            return f"{said}: senders are refused (0xA700) until {self.reopens_mb} MB are free"
        if self.free_mb < self.reopens_mb:
            return f"{said}; once refused, senders are taken from again at {self.reopens_mb} MB"
        return said


def room(settings: NodeSettings) -> Room:
    """Of the disk that `data_dir` is on, or will be."""
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return Room(
        free_mb=usage.free // MEBIBYTE,
        total_mb=usage.total // MEBIBYTE,
        reserve_mb=settings.reserve_mb,
        reopens_mb=settings.reopens_mb,
    )


class Reserve:
    """Decides whether there is room. Safe from several threads."""

    def __init__(self, folder: Path, settings: NodeSettings) -> None:
        self._free_bytes: Callable[[], int] = lambda: shutil.disk_usage(folder).free
        self._reserve_mb = settings.reserve_mb
        self._reopens_mb = settings.reopens_mb
        self._lock = threading.Lock()
        self._short = False
        self._refused = 0

    @property
    def short(self) -> bool:
        """Are senders refused at present?"""
        return self._short

    def has_room_for(self, size: int) -> bool:
        """May an object of so many bytes be taken, as far as the disk is concerned?"""
        free_mb = (self._free_bytes() - size) // MEBIBYTE
        with self._lock:
            enough = free_mb >= (self._reopens_mb if self._short else self._reserve_mb)
            changed, self._short = enough is self._short, not enough
            refused = self._refused = 0 if enough else self._refused + 1
        if changed:
            # Once, not for each slice of a study that is refused.
            say = log.info if enough else log.error
            say(
                "disk.enough" if enough else "disk.short",
                free_mb=free_mb,
                reserve_mb=self._reserve_mb,
                count=refused,
            )
        return enough

    def look(self) -> bool:
        """The same without an object: is the disk short? Opens again when there is room."""
        return not self.has_room_for(0)
