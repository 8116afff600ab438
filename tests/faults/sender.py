"""A sender that is DCMTK's, and that keeps what it was promised."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydicom import dcmread

from node.archive import LOOPBACK

STORESCU = Path("/usr/bin/storescu")
AE_TITLE = "SENDER"
PATIENCE_S = 240.0  # only a failing round waits so long; two loaded cores are slow
_FILE = re.compile(r"Sending file: (.+)$")
_SUCCESS = "Received Store Response (Success)"


@cache
def sop_instance_uid(path: Path) -> str:
    """Of a file that does not change."""
    return str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


@dataclass
class Sender:
    """Sends with `storescu` to one port."""

    port: int
    acknowledged: dict[str, Path] = field(default_factory=dict)
    """SOP Instance UID -> the file of which the sender was told 0x0000."""
    answers: list[str] = field(default_factory=list)
    """What it was told otherwise, in DCMTK's words."""

    def send(
        self, paths: Iterable[Path], *, port: int | None = None, timeout_s: float = PATIENCE_S
    ) -> int:
        """One association for all files, in order; how many were acknowledged."""
        command = [str(STORESCU), "-v", "-aet", AE_TITLE, "-aec", "FLAIRNODE"]
        # A dead peer is noticed by the sockets; a silent one by these.
        command += ["-to", "5", "-ta", "5", "-td", str(int(timeout_s)), LOOPBACK]
        given = [str(path) for path in paths]
        try:
            done = subprocess.run(
                [*command, str(port or self.port), *given],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                timeout=timeout_s + 10,
            )
            said = done.stdout
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
        return self._hear(said)

    def send_until_acknowledged(
        self, paths: Sequence[Path], *, port: int | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        """As a PACS does: what was not acknowledged is sent again, as a whole, until it is."""
        deadline = time.monotonic() + patience_s
        while missing := [p for p in paths if sop_instance_uid(p) not in self.acknowledged]:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(missing)} files were not taken: {self.answers[-3:]}")
            if self.send(paths, port=port) < len(paths):
                time.sleep(0.2)

    def in_background(self, paths: Sequence[Path], *, port: int | None = None) -> threading.Thread:
        """`send` in a thread, for a conversation that is to be interrupted."""
        thread = threading.Thread(target=self.send, args=(paths,), kwargs={"port": port})
        thread.start()
        return thread

    def _hear(self, said: str) -> int:
        current, count = None, 0
        for line in said.splitlines():
            if found := _FILE.search(line):
                current = Path(found[1])
            elif _SUCCESS in line and current is not None:
                self.acknowledged[sop_instance_uid(current)] = current
                current, count = None, count + 1
            elif "Received Store Response" in line or line.startswith(("E:", "F:")):
                self.answers.append(line.strip())
        return count
