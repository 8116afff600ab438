"""A node, its archives behind gates, and a sender in front: what every fault happens to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.archive import Orthanc
from node.ledger import ENDS, SeriesRow, SeriesState
from tests.faults.gate import Gate
from tests.faults.images import Sent, write_flair
from tests.faults.oracle import Verdict, judge
from tests.faults.refuser import Refuser
from tests.faults.sender import PATIENCE_S, Sender
from tests.integration.node_process import NodeProcess, alive

LAUNCHER = Path(__file__).with_name("launcher.py")
QUIET_S = 2.0
"""Longer than a sender needs to begin again after a restart; else half a series looks whole."""
IMPATIENT: Mapping[str, Any] = {
    "completeness": {"quiet_period_s": QUIET_S},
    "delivery": {
        "attempts": 40,
        "first_pause_s": 0.3,
        "backoff": 1.1,
        "timeout_s": 3.0,
        "retry_held_every_s": 1.0,
    },
    "pipeline": {"time_limit_s": 60.0},
}


@dataclass
class GatedArchive:
    """An archive that the node reaches only through its gate."""

    archive: Orthanc
    gate: Gate
    ae_title: str = ""

    def __post_init__(self) -> None:
        self.ae_title = self.archive.ae_title

    @property
    def dicom_port(self) -> int:
        """The gate's: what the node is told."""
        return self.gate.port


@dataclass(frozen=True)
class Before:
    """How much there was when a scenario began."""

    acknowledged: int = 0
    objects: int = 0
    series: frozenset[str] = frozenset()


@dataclass
class Site:
    """A node with everything around it; `close` ends it all but the archives."""

    folder: Path
    archives: Sequence[Orthanc]
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for the node."""
    began_recovery: float = 0.0
    recovery_s: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.name = "R"
        self.before = Before()
        self.gates = [Gate(lambda a=archive: a.dicom_port) for archive in self.archives]
        self.refusers: list[Refuser] = []
        doors = {
            f"pacs{number}": GatedArchive(archive, gate)
            for number, (archive, gate) in enumerate(zip(self.archives, self.gates, strict=True))
        }
        sections = {name: dict(section) for name, section in IMPATIENT.items()}
        for name, section in self.sections.items():
            sections[name] = {**sections.get(name, {}), **section}
        options = {"command": (sys.executable, str(LAUNCHER), "serve"), **self.options}
        self.node = NodeProcess(self.folder / "node", doors, sections, **options)  # type: ignore[arg-type]
        self.door = Gate(lambda: self.node.port)
        self.sender = Sender(self.door.port)

    @property
    def gate(self) -> Gate:
        """Of the first archive."""
        return self.gates[0]

    def begin(self, name: str) -> None:
        """For another scenario: the node runs, nothing is armed, and what is there is counted."""
        for refuser in self.refusers:
            refuser.stop()
        self.refusers.clear()
        for folder in ("faults", "standin"):
            shutil.rmtree(self.node.data_dir / folder, ignore_errors=True)
        self.restart()
        self.began_recovery = self.recovery_s = 0.0
        self.name = name
        with self.node.ledger() as ledger:
            rows = ledger.all_series(limit=100_000)
        objects = sum(len(archive.sop_instance_uids()) for archive in self.archives)
        series = frozenset(row.series_instance_uid for row in rows)
        self.before = Before(len(self.sender.acknowledged), objects, series)

    def close(self) -> None:
        """End the node and shut every gate."""
        for gate in (*self.gates, self.door):
            gate.shut()
        for refuser in self.refusers:
            refuser.stop()
        self.node.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- acting ------------------------------------------------------------------------------

    def flair(self, patient: str, **options: Any) -> Sent:  # noqa: ANN401  # write_flair's
        """A series that was not sent yet."""
        return write_flair(self.folder / "images", f"{self.name}-{patient}", **options)

    def send(self, *series: Sent) -> None:
        """Send each until it is acknowledged as a whole."""
        for one in series:
            self.sender.send_until_acknowledged(one.paths)

    def arm(self, point: str, number: int = 1, deed: str = "kill") -> None:
        """Set the launcher's trap."""
        self.trap("arm", f"{point} {number} {deed}")

    def trap(self, name: str, content: str = "") -> Path:
        """A file that the launcher looks at."""
        folder = self.node.data_dir / "faults"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(content)
        return path

    def refuse_with(self, status: int) -> None:
        """The first archive stores nothing any more, and says so with this status."""
        self.refusers.append(Refuser(status))
        self.gate.target = lambda: self.refusers[-1].port

    def wait_fired(self, timeout_s: float = PATIENCE_S) -> int:
        """Until the trap snapped; the process that it caught."""
        fired = self.node.data_dir / "faults" / "fired"
        _until(lambda: fired.exists() and fired.read_text().endswith("\n"), timeout_s, self)
        return int(fired.read_text().split()[1])

    def wait_dead(self) -> None:
        """Until the service is dead of what was done to it, and its workers with it."""
        assert self.node.process is not None
        workers = self.node.worker_pids()
        self.node.process.wait(PATIENCE_S)
        _until(lambda: not any(alive(pid) for pid in workers), 30.0, self)
        self.node.process = None

    def kill(self) -> None:
        """kill -9 of the service; its workers die of it."""
        workers = self.node.worker_pids()
        self.node.kill()
        _until(lambda: not any(alive(pid) for pid in workers), 30.0, self)

    # --- afterwards --------------------------------------------------------------------------

    def restart(self) -> None:
        """Begin to recover: the gates open, the node starts."""
        self.began_recovery = time.monotonic()
        self.gate.target = lambda: self.archives[0].dicom_port
        for gate in (*self.gates, self.door):
            gate.open()
        if self.node.process is None:
            self.node.start(PATIENCE_S)

    def settle(self, series: int, timeout_s: float = PATIENCE_S) -> None:
        """Until so many series of the scenario are known, and every one stands at its end."""

        def settled() -> bool:
            rows = self.own_series()
            return (
                len(rows) >= series
                and all(row.state in ENDS for row in rows)
                and not any(row.reason == "destination-unreachable" for row in rows)
            )

        self.node.wait_until(settled, timeout_s)
        if self.began_recovery:
            self.recovery_s = max(self.recovery_s, time.monotonic() - self.began_recovery)
            self.began_recovery = 0.0

    def wait_for(self, series: Sent, *states: SeriesState) -> None:
        """Until a series stands in one of these states."""

        def there() -> bool:
            with self.node.ledger() as ledger:
                row = ledger.series(series.series_instance_uid)
            return row is not None and row.state in states

        self.node.wait_until(there, PATIENCE_S)

    def own_series(self) -> list[SeriesRow]:
        """Of the scenario."""
        with self.node.ledger() as ledger:
            rows = ledger.all_series(limit=100_000)
        return [row for row in rows if row.series_instance_uid not in self.before.series]

    def judge(self, *, settled: bool = True) -> Verdict:
        """The oracle, with the node at rest."""
        return judge(self.node.data_dir, self.archives, self.sender.acknowledged, settled=settled)


def empty(archive: Orthanc) -> None:
    """An archive as new."""
    if archive.pid is None:
        archive.start()
    for instance in archive.get("/instances"):
        archive.request("DELETE", f"/instances/{instance}")
    archive.request("DELETE", "/changes")


def _until(condition: Callable[[], bool], timeout_s: float, site: Site) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s{site.node}")
        time.sleep(0.02)


def signal_tree(site: Site, number: signal.Signals) -> None:
    """Send a signal to the service and its workers."""
    assert site.node.process is not None
    for pid in (*site.node.worker_pids(), site.node.process.pid):
        os.kill(pid, number)


def seeded(seed: int, name: str) -> random.Random:
    """Chance that a scenario can repeat."""
    return random.Random(f"{seed} {name}")  # noqa: S311  # to be repeated, not to be secret
