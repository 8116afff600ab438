"""What a case is given to, and what counts as a failure."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Self

from pydicom.uid import ExplicitVRLittleEndian

from config.selection import SelectionSettings
from dicom.decoding import Decoder
from dicom.errors import StudyError, UndecodableError
from dicom.series import read_study
from dicom.volume import read_volume
from node.spool import (
    RefusedObjectError,
    _careful_identity,
    _encoded_meta,
    _quick_identity,
    identify,
    is_uid,
)
from pipeline.selection import choose
from tests.fuzz.cases import conversation, damaged_header, damaged_stream
from tests.raw_peer import ACCEPTED, RELEASED, RawPeer, dataset_of

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
LISTENER = ROOT / "tests" / "integration" / "intake_process.py"
DCMSEND = "/usr/bin/dcmsend"


class Headers:
    """The reader that intake, selection and analysis use, on series of three slices."""

    def __init__(self, paths: list[Path], folder: Path) -> None:
        self.folder = folder / "series"
        self.folder.mkdir()
        self._sop_class, self._uid, self._dataset = dataset_of(paths[0])
        for number, path in enumerate(paths[:3]):
            shutil.copy(path, self.folder / f"{number}.dcm")
        self.outcomes: Counter[str] = Counter()

    def case(self, seed: int) -> bytes:
        return damaged_header(random.Random(seed), self._dataset)  # noqa: S311  # repeatable

    def judge(self, dataset: bytes) -> None:
        """Raises whatever is no coded reason."""
        announced = (self._sop_class, self._uid, ExplicitVRLittleEndian)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                identify(dataset, *announced)
            except RefusedObjectError as error:
                self.outcomes[f"intake: {error.reason}"] += 1
            self._compare(dataset)
        meta = _encoded_meta(*announced, "SENDER")
        (self.folder / "0.dcm").write_bytes(meta + dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                study = read_study(self.folder)
            except StudyError as error:
                self.outcomes[error.reason] += 1
                return
            choose(study, SelectionSettings())
            for series in study.series:
                try:
                    read_volume(series)
                    self.outcomes["volume"] += 1
                except StudyError as error:
                    self.outcomes[error.reason] += 1

    def _compare(self, dataset: bytes) -> None:
        """Where the quick reader answers, the careful one says the same."""
        quick = _quick_identity(dataset, ExplicitVRLittleEndian)
        if quick is None or (quick.sop_class_uid, quick.sop_instance_uid) != (
            self._sop_class,
            self._uid,
        ):
            return
        if not (is_uid(quick.study_instance_uid) and is_uid(quick.series_instance_uid)):
            return
        careful = _careful_identity(dataset, self._sop_class, self._uid, ExplicitVRLittleEndian)
        if careful != quick:
            raise AssertionError(f"quick {quick}, careful {careful}")


class Pixels:
    """The decoders, in their process."""

    def __init__(self, paths: list[Path], folder: Path) -> None:
        self._contents = [path.read_bytes() for path in paths]
        self._starts = [content.rindex(b"\xe0\x7f\x10\x00") + 12 for content in self._contents]
        self._file = folder / "pixels.dcm"
        self.decoder = Decoder(seconds_per_frame=20)
        self.outcomes: Counter[str] = Counter()

    def case(self, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311  # repeatable
        which = chance.randrange(len(self._contents))
        return damaged_stream(chance, self._contents[which], self._starts[which])

    def judge(self, content: bytes) -> None:
        """Raises whatever is no coded reason."""
        self._file.write_bytes(content)
        try:
            list(self.decoder.frames(self._file, None))
            self.outcomes["decoded"] += 1
        except UndecodableError as error:
            self.outcomes[error.reason] += 1


class Listener:
    """A real listener in a process of its own; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "node"
        self.outcomes: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self.log = self._folder.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(LISTENER), str(self._folder), "none", "0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()

    def case(self, seed: int) -> bytes:
        return conversation(random.Random(seed))  # noqa: S311  # repeatable

    def judge(self, content: bytes) -> None:
        """Say it all, and see the connection end."""
        with RawPeer(self.port, timeout_s=120) as peer:  # a busy machine is no hang
            try:
                peer.send(content)
                peer.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.outcomes["cut off"] += 1
                return
            answers = []
            while (kind := peer.receive()[0]) != 0:
                answers.append(kind)
            self.outcomes[f"answered {len(answers)}"] += 1

    def serves(self, path: Path | None = None) -> None:
        """A real sender gets through, and the log tells of no fault of ours."""
        assert self.process.poll() is None, "the listener died"
        with RawPeer(self.port, timeout_s=60) as peer:
            assert peer.associate() == ACCEPTED
            assert peer.echo() == 0
            assert peer.release() == RELEASED
        if path is not None:
            command = [DCMSEND, "-aet", "SENDER", "-aec", "FLAIRNODE", "127.0.0.1", str(self.port)]
            subprocess.run([*command, str(path)], check=True, capture_output=True, timeout=120)
        told = self.log.read_text()
        assert "internal-error" not in told, told[-2000:]
        assert "Traceback" not in told, told[-2000:]

    def rss_mb(self) -> float:
        said = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", said)[0]) / 1024


def keep(kind: str, seed: int, content: bytes) -> Path:
    """A case that failed, for the corpus."""
    path = CORPUS / f"{kind}-{seed}.bin"
    path.write_bytes(content)
    return path
