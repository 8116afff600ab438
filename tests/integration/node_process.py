"""Starts a whole node as a process, sends to it with DCMTK, and looks at what became of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from node.archive import LOOPBACK, Orthanc, free_port
from node.ledger import ENDS, Ledger, SeriesState

STANDIN = Path(__file__).with_name("standin.py")
SENDER = "SENDER"
PATIENCE_S = 120.0  # only a failing test waits so long; two loaded cores are slow


class Sent(Protocol):
    """A series on disk that was sent (the `FlairSeries` of `tests/conftest.py`)."""

    folder: Path
    series_instance_uid: str


def toml(sections: Mapping[str, Mapping[str, Any]], lists: Mapping[str, Sequence[Any]]) -> str:
    lines = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    for name, entries in lists.items():
        for entry in entries:
            lines += [f"[[{name}]]", *(f"{k} = {json.dumps(v)}" for k, v in entry.items())]
    return "\n".join(lines) + "\n"


def alive(pid: int) -> bool:
    """Does the process run? One that ended and waits for its parent to notice does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@dataclass
class NodeProcess:
    """A service with its workers, on one data directory; `start` again continues it."""

    folder: Path
    archives: Mapping[str, Orthanc]
    """Peer name -> archive; each is a research destination."""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    follows: Sequence[str] = ()
    """Names of archives that are followed, so that nothing has to be sent."""
    destination: Mapping[str, Any] = field(default_factory=dict)
    """More keys for every destination."""
    peer: Mapping[str, Any] = field(default_factory=dict)
    """More keys for every archive's peer."""
    command: Sequence[str] = (sys.executable, str(STANDIN), "serve")
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def config(self) -> Path:
        return self.folder / "site.toml"

    @property
    def log_file(self) -> Path:
        return self.folder / "service.log"

    def write_config(self) -> None:
        base: dict[str, dict[str, Any]] = {
            "node": {
                "port": self.port,
                "data_dir": str(self.data_dir),
                "reserve_mb": 10,
                "daily_self_test": False,
            },
            "completeness": {"quiet_period_s": 1.0},
            "delivery": {"first_pause_s": 0.2, "attempts": 3, "retry_held_every_s": 1.0},
            "engine": {"poll_s": 0.1},
        }
        for name, section in self.sections.items():
            base[name] = {**base.get(name, {}), **section}
        peers: list[dict[str, Any]] = [
            {
                "name": n,
                "ae_title": a.ae_title,
                "host": LOOPBACK,
                "port": a.dicom_port,
                **self.peer,
            }
            for n, a in self.archives.items()
        ]
        for peer in peers:
            if peer["name"] in self.follows:
                archive = self.archives[str(peer["name"])]
                password = self.folder / f"{peer['name']}.password"
                password.write_text(archive.password)
                peer |= {"orthanc_url": archive.url, "user": archive.user}
                peer |= {"password_file": str(password)}
        sources = [{"peer": name, "poll_s": 0.2, "reconcile_every_s": 5.0} for name in self.follows]
        peers.append({"name": "scanner", "ae_title": SENDER, "host": LOOPBACK, "port": 1})
        destinations = [
            {"peer": name, "research": True, **self.destination} for name in self.archives
        ]
        lists = {"peers": peers, "destinations": destinations, "sources": sources}
        self.config.write_text(toml(base, lists))

    def start(self, timeout_s: float = PATIENCE_S) -> None:
        self.folder.mkdir(exist_ok=True)
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        self.write_config()
        seen = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.wait_until(
            lambda: any(e["event"] == "service.ready" for e in self.events(seen)), timeout_s
        )

    def events(self, offset: int = 0) -> list[dict[str, Any]]:
        with self.log_file.open("rb") as file:
            file.seek(offset)
            lines = file.read().decode(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def worker_pids(self) -> list[int]:
        """Living workers, from the process table."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return [int(pid) for pid in children.read_text().split()]
        except FileNotFoundError:
            return []

    def kill(self) -> None:
        """SIGKILL to the service; its workers must die of it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self, timeout_s: float = PATIENCE_S) -> float:
        """SIGTERM; how many seconds it took to end."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(timeout_s)
        self.process = None
        return time.monotonic() - began

    def end(self) -> None:
        if self.process is not None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()

    def send(self, folder: Path, *, ae_title: str = SENDER) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "/usr/bin/dcmsend",
                *("-aet", ae_title, "-aec", "FLAIRNODE"),
                *("--no-uid-checks", "+sd", "+r"),
                *(LOOPBACK, str(self.port), str(folder)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the service ended with {self.process.returncode}{self}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s{self}")
            time.sleep(0.05)

    def wait_for_ends(self, series: int, timeout_s: float = PATIENCE_S) -> None:
        """Until that many series are known and every one has come to an end."""

        def ended() -> bool:
            with self.ledger() as ledger:
                rows = ledger.all_series()
            return len(rows) >= series and all(row.state in ENDS for row in rows)

        self.wait_until(ended, timeout_s)

    def wait_for_state(
        self, series_instance_uid: str, state: SeriesState, timeout_s: float = PATIENCE_S
    ) -> None:
        def there() -> bool:
            with self.ledger() as ledger:
                row = ledger.series(series_instance_uid)
            return row is not None and row.state is state

        self.wait_until(there, timeout_s)

    def ledger(self) -> Ledger:
        return Ledger(self.data_dir / "intake.sqlite")

    def fault(self, name: str, content: str = "") -> Path:
        """Make the stand-in misbehave (`standin.py`)."""
        folder = self.data_dir / "standin"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(content)
        return path

    def __str__(self) -> str:
        tail = self.log_file.read_text(errors="replace")[-4000:] if self.log_file.exists() else ""
        states = []
        if (self.data_dir / "intake.sqlite").exists():
            with self.ledger() as ledger:
                states = [
                    (row.series_instance_uid[-12:], row.state.value, row.reason)
                    for row in ledger.all_series()
                ]
        return f"\nseries: {states}\nlog:\n{tail}"
