"""Compressed pixels, decoded in a process of their own that may take so much memory and time.

A decoder is a large piece of C that reads what a stranger wrote. Whatever it does with it, it costs
the series it was given and nothing else: it gets a child process with limits, one for all objects
of a series, which is ended when it asks for more, crashes, or does not come to an end.

    python -m dicom.decoding        what the child runs; paths on stdin, pixels on stdout
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.utils import iter_pixels

from dicom.errors import DecoderLimitsError, UndecodableError

MEMORY_MB = 3072
"""Address space of the child: itself some 500 MB, an object of the largest size, its pixels."""
SECONDS_PER_FRAME = 60.0
"""The slowest real frame (JPEG 2000, 1024 x 1024) takes less than one, on a busy machine."""
DECODED_BYTES = 2 << 30
"""Of a series as 32-bit voxels: 800 slices of 800 x 800. More is declared by a corrupt header."""
_LONGEST_LINE = 4096
_PR_SET_PDEATHSIG = 1


class Decoder:
    """A child process, started when the first object needs it; a context manager that ends it."""

    def __init__(
        self, *, memory_mb: int = MEMORY_MB, seconds_per_frame: float = SECONDS_PER_FRAME
    ) -> None:
        self._memory_mb = memory_mb
        self._seconds_per_frame = seconds_per_frame
        self._process: subprocess.Popen[bytes] | None = None
        self._received = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._end()

    def frames(
        self, path: Path, numbers: Sequence[int] | None
    ) -> Iterator[npt.NDArray[np.generic]]:
        """Frames of an object as they were stored, one at a time.

        Args:
            path: A file with compressed pixel data.
            numbers: Which frames, from 1; None: the only one.

        Raises:
            DecoderLimitsError: It takes too long or too much memory, or the decoder crashed.
            UndecodableError: It does not decode.
        """
        process = self._process or self._start()
        wanted = {"path": str(path), "frames": None if numbers is None else list(numbers)}
        assert process.stdin is not None  # noqa: S101  # it has pipes, as we asked
        with suppress(BrokenPipeError):  # a child that is gone: `_more` says why
            process.stdin.write(json.dumps(wanted).encode() + b"\n")
            process.stdin.flush()
        for _ in numbers or (1,):
            deadline = time.monotonic() + self._seconds_per_frame
            said = json.loads(self._line(process, deadline))
            if "error" in said:
                if said["error"] == "memory":
                    raise DecoderLimitsError(
                        f"decoding asks for more than {self._memory_mb} MB of memory"
                    )
                raise UndecodableError(f"pixel data do not decode ({said['error']})")
            dtype, shape = np.dtype(said["dtype"]), tuple(said["shape"])
            size = dtype.itemsize * int(np.prod(shape, dtype=object))
            if size > DECODED_BYTES:
                self._end()
                raise DecoderLimitsError(f"a frame of {size} bytes")
            content = self._exactly(process, size, deadline)
            yield np.frombuffer(content, dtype=dtype).reshape(shape)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("FLAIRNODE_")
        }
        self._process = subprocess.Popen(  # noqa: S603  # our own program, no shell
            [sys.executable, "-P", "-m", "dicom.decoding", str(self._memory_mb), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Each thread of a numerical library reserves address space of its own.
            env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._received = bytearray()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        process.wait()

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        while b"\n" not in self._received:
            if len(self._received) > _LONGEST_LINE:
                self._end()
                raise UndecodableError("the decoder answers nonsense")
            self._more(process, deadline)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        return line

    def _exactly(self, process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            self._more(process, deadline)
        content = bytes(self._received[:size])
        del self._received[:size]
        return content

    def _more(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        assert process.stdout is not None  # noqa: S101  # as above
        left_s = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], left_s)[0]:
            self._end()
            raise DecoderLimitsError(
                f"decoding one frame takes longer than {self._seconds_per_frame:g} s"
            )
        received = os.read(process.stdout.fileno(), 1 << 20)
        if not received:
            status = process.wait()
            self._end()
            died = signal.Signals(-status).name if status < 0 else f"exit {status}"
            raise DecoderLimitsError(f"the decoder died ({died})")
        self._received += received


# --- the child ------------------------------------------------------------------------------------


def main(memory_mb: int, parent: int) -> None:
    """Decode what stdin names until it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the image of a patient
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not spoil the pixels
    for line in sys.stdin.buffer:
        _answer(out, json.loads(line))


def _answer(out: IO[bytes], wanted: dict[str, Any]) -> None:
    try:
        for pixels in _decoded(Path(wanted["path"]), wanted["frames"]):
            content = np.ascontiguousarray(pixels)
            said = {"dtype": content.dtype.str, "shape": content.shape}
            out.write(json.dumps(said).encode() + b"\n")
            out.write(content.tobytes())
            out.flush()
    except MemoryError:
        out.write(b'{"error": "memory"}\n')
    except Exception as error:  # noqa: BLE001  # a decoder on hostile bytes raises anything
        out.write(json.dumps({"error": type(error).__name__}).encode() + b"\n")
    out.flush()


def _decoded(path: Path, frames: list[int] | None) -> Iterator[npt.NDArray[np.generic]]:
    dataset = pydicom.dcmread(path, force=True)
    if frames is None:
        yield dataset.pixel_array
    else:
        yield from iter_pixels(dataset, indices=[number - 1 for number in frames])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
