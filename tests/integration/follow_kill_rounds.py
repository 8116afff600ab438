"""kill -9 of the node and of the Orthanc that it follows, at seeded moments.

    .venv/bin/python tests/integration/follow_kill_rounds.py --rounds 10 --seed 7

Series are stored in the Orthanc slice by slice while one of the two is killed and started again.
Every series must then have been analysed once, with every slice, and its result be back in the
Orthanc once. The network is a stand-in (`standin.py`), everything else is the real program.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from kills import balance
from node_process import PATIENCE_S, NodeProcess
from pydicom import dcmread, dcmwrite
from pydicom.uid import generate_uid

from node.archive import ArchiveError, Orthanc
from node.ledger import SeriesState

QUIET_S = 3.0
"""Longer than the Orthanc is away for, or half a series would look quiet."""
RESULTS_EACH = 2  # objects that the stand-in makes of a series


@dataclass
class FollowKills:
    """A node and the Orthanc that it follows; series are stored while either is killed."""

    node: NodeProcess
    archive: Orthanc
    series: Sequence[Any]
    """Of `FlairSeries`' kind: paths, series_instance_uid."""
    random: random.Random
    longest_pause_s: float = 2.5
    slice_pause_s: float = 0.05
    say: Callable[[str], None] = lambda _: None
    done: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)
    starting: threading.Lock = field(default_factory=threading.Lock)

    def run(self, rounds: int) -> list[str]:
        """All rounds; what is wrong afterwards."""
        modality = threading.Thread(target=self._store_all, daemon=True)
        modality.start()
        for number in range(rounds):
            time.sleep(self.random.uniform(0.0, self.longest_pause_s))
            whom = self.random.choice(("node", "orthanc", "both"))
            self.say(f"round {number + 1} of {rounds}: {whom}; {self._states()}")
            self.done[whom] += 1
            if whom in ("node", "both"):
                self.node.kill()
            if whom in ("orthanc", "both"):
                self.archive.kill()
                time.sleep(self.random.uniform(0.0, 0.5))
                self.archive.start()
            if whom in ("node", "both"):
                self.node.start()
        modality.join(PATIENCE_S)
        for one in self.series:
            self.node.wait_for_state(one.series_instance_uid, SeriesState.DELIVERED)
        time.sleep(1.5 * QUIET_S)  # a second job would show now
        return [*self.trouble, *self._faults()]

    def _store_all(self) -> None:
        for one in self.series:
            for path in one.paths:
                self._store(path)
                time.sleep(self.slice_pause_s)

    def _store(self, path: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                self.archive.request("POST", "/instances", path.read_bytes())
            except (ArchiveError, OSError, HTTPException):  # the last: half an answer
                time.sleep(0.1)
            else:
                return
        self.trouble.append(f"{path.name} could not be stored")

    def _states(self) -> dict[str, int]:
        with self.node.ledger() as ledger:
            return dict(Counter(row.state.value for row in ledger.all_series()))

    def _faults(self) -> list[str]:
        slices = sum(len(one.paths) for one in self.series)
        sources = {
            str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
            for one in self.series
            for path in one.paths
        }
        found = balance(self.node, self.archive)
        faults = [fault for fault in found.faults(slices) if not fault.startswith("strange")]
        faults += [f"strange: {uid}" for uid in found.strange if uid not in sources]
        expected = slices + RESULTS_EACH * len(self.series)
        if found.in_archive != expected:
            faults.append(f"{found.in_archive} objects in the archive, expected {expected}")
        with self.node.ledger() as ledger:
            for one in self.series:
                jobs = ledger.jobs_of(one.series_instance_uid)
                if [job.counts.value for job in jobs] != ["confirmed"]:
                    faults.append(f"jobs: {[(job.state.value, job.counts.value) for job in jobs]}")
                    continue
                held = len(ledger.sop_instances_of(jobs[0].job_id))
                if held != len(one.paths):
                    faults.append(f"analysed with {held} of {len(one.paths)} slices")
        self.say(
            f"{slices} slices stored, {found.received} received, series {dict(found.ends)}; "
            f"{found.in_archive} objects in Orthanc, {len(found.missing)} missing, "
            f"{len(found.doubled)} doubled; kills {dict(self.done)}"
        )
        return faults


@dataclass(frozen=True)
class CopiedSeries:
    """A real series under new UIDs, so that one study on disk makes many."""

    series_instance_uid: str
    paths: tuple[Path, ...]


def copies(study: Path, folder: Path, count: int) -> list[CopiedSeries]:
    """The one FLAIR series of a study of `dicom_wrapped_ms`, as `count` studies."""
    made = []
    files = sorted(path for path in study.rglob("*") if path.is_file())
    for number in range(count):
        paths = []
        target = folder / f"copy{number}"
        target.mkdir(parents=True)
        for path in files:
            image = dcmread(path)
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                old = str(getattr(image, keyword))
                setattr(image, keyword, generate_uid(entropy_srcs=[old, str(number)]))
            image.PatientID = f"COPY{number}"
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            paths.append(target / path.name)
            dcmwrite(paths[-1], image)
        made.append(CopiedSeries(str(image.SeriesInstanceUID), tuple(paths)))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--longest-pause-s", type=float, default=2.5)
    parser.add_argument("--data", type=Path, required=True, help="the shared test data")
    arguments = parser.parse_args()
    study = arguments.data.resolve() / "dicom_wrapped_ms" / "patient01_study1"
    if not study.is_dir():
        parser.error(f"no study at {study}")
    began = time.monotonic()

    def say(message: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {message}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="flairnode-follow-") as name:
        folder = Path(name)
        series = copies(study, folder / "copies", arguments.series)
        archive = Orthanc(folder / "orthanc", modalities={"flairnode": ("FLAIRNODE", 1)})
        with archive:
            node = NodeProcess(
                folder / "node",
                {"pacs": archive},
                {"completeness": {"quiet_period_s": QUIET_S}},
                follows=("pacs",),
            )
            node.start()
            try:
                plan = random.Random(arguments.seed)  # noqa: S311  # repeated, not secret
                pause_s = arguments.longest_pause_s
                kills = FollowKills(node, archive, series, plan, pause_s, say=say)
                faults = kills.run(arguments.rounds)
            finally:
                node.end()
    for fault in faults:
        say(f"FAULT {fault}")
    say("FAILED" if faults else "every series analysed once, nothing doubled")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
