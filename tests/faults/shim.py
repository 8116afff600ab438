"""The wall clock and fsync of a process, in the hand of the harness (`shim.c`)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


class Shim:
    """A library that a program is started with, and the file that tells it what to do."""

    def __init__(self, folder: Path) -> None:
        """Compile it.

        Raises:
            LookupError: There is no C compiler on this machine.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            raise LookupError("no C compiler (apt-get install gcc libc6-dev)")
        folder.mkdir(parents=True, exist_ok=True)
        self._library = folder / "shim.so"
        self._control = folder / "shim.control"
        self._values = [0, 0]
        self._write()
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(SOURCE)]
        subprocess.run([*command, "-ldl"], check=True)

    @property
    def command(self) -> Sequence[str]:
        """To be put before the program."""
        preload = f"LD_PRELOAD={self._library}"
        return ("/usr/bin/env", preload, f"FAULTS_SHIM={self._control}")

    def move_clock(self, seconds: int) -> None:
        """The wall clock of the program jumps, its monotonic clock does not."""
        self._values[0] = seconds
        self._write()

    def fail_fsync(self, number: int) -> None:
        """Every fsync ends with this errno; 0: with what the kernel says."""
        self._values[1] = number
        self._write()

    def _write(self) -> None:
        content = struct.pack("qq", *self._values)
        if not self._control.exists():
            self._control.write_bytes(content)
        with self._control.open("r+b") as file:  # in place: it is mapped
            file.write(content)
