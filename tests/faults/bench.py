"""What a scenario works with, and the row of the table that it leaves."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.archive import Orthanc
from tests.faults.oracle import Verdict
from tests.faults.sender import AE_TITLE
from tests.faults.site import Site, empty, seeded


class NotHereError(Exception):
    """A scenario that needs what this machine does not have. The message says what."""


@dataclass
class Row:
    """One line of the table."""

    fault: str
    rounds: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    recovery_s: float | None = None
    """The longest of all rounds: from the restart to the last end."""
    took_s: float = 0.0
    note: str = ""
    trouble: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    """Instances by the end of their series, over all rounds."""
    ran: bool = True

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing doubled, nothing wrong."""
        return not (self.lost or self.doubled or self.wrong)


@dataclass(frozen=True)
class Profile:
    """How much of everything."""

    name: str
    random_kills: int
    real_kills: int
    stop_s: float
    queued: int
    locked_s: float


CORE = Profile("core", random_kills=4, real_kills=1, stop_s=6.0, queued=200, locked_s=2.0)
CI = Profile("ci", random_kills=20, real_kills=2, stop_s=8.0, queued=5000, locked_s=3.0)
LONG = Profile("long", random_kills=200, real_kills=20, stop_s=60.0, queued=5000, locked_s=35.0)
PROFILES = {profile.name: profile for profile in (CORE, CI, LONG)}


class Bench:
    """One node that most scenarios happen to in turn, archives for the others, a folder."""

    def __init__(self, folder: Path, profile: Profile, seed: int) -> None:
        self.folder = folder
        self.profile = profile
        self.seed = seed
        self.row = Row("")
        self._archives: list[Orthanc] = []
        self._standing: Site | None = None
        self._rounds = 0

    def close(self) -> None:
        """End the standing node and the archives."""
        if self._standing is not None:
            self._standing.close()
        for archive in self._archives:
            archive.kill()

    def run(self, fault: str, scenario: Callable[[Bench], None]) -> Row:
        """One scenario; whatever it trips over becomes a line of its row."""
        self.row = Row(fault)
        began = time.monotonic()
        try:
            scenario(self)
        except NotHereError as error:
            self.row.ran, self.row.note = False, f"not run: {error}"
        except Exception as error:  # noqa: BLE001  # the others are to run all the same
            self.row.wrong += 1
            self.row.trouble.append(f"{type(error).__name__}: {error}")
        self.row.took_s = time.monotonic() - began
        return self.row

    def chance(self) -> random.Random:
        """Of this scenario, the same for the same seed."""
        return seeded(self.seed, self.row.fault)

    def archives(self, count: int) -> list[Orthanc]:
        """So many, running and empty; not the one of the standing site."""
        while len(self._archives) < count + 1:
            folder = self.folder / f"orthanc{len(self._archives)}"
            modalities = {"flairnode": ("FLAIRNODE", 1), "sender": (AE_TITLE, 1)}
            archive = Orthanc(folder, modalities=modalities)
            archive.start()
            self._archives.append(archive)
        for archive in self._archives[1 : count + 1]:
            empty(archive)
        return self._archives[1 : count + 1]

    @contextmanager
    def site(self) -> Iterator[Site]:
        """The standing node, running: what earlier faults left there must stay right, too."""
        if self._standing is None:
            self.archives(0)
            empty(self._archives[0])
            self._standing = Site(self._next_folder(), self._archives[:1])
        self._rounds += 1
        try:
            self._standing.begin(f"R{self._rounds}")
            yield self._standing
        except BaseException:
            self._keep_log(self._standing)
            self._standing.close()
            self._standing = None
            raise

    @contextmanager
    def fresh_site(
        self,
        *,
        archives: int = 1,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,  # noqa: ANN401  # NodeProcess'
    ) -> Iterator[Site]:
        """A node of this scenario's own, with empty archives, not started yet."""
        site = Site(self._next_folder(), self.archives(archives), sections or {}, options)
        try:
            yield site
        except BaseException:
            self._keep_log(site)
            raise
        finally:
            site.close()

    def _next_folder(self) -> Path:
        self._rounds += 1
        return self.folder / f"round{self._rounds}"

    def _keep_log(self, site: Site) -> None:
        if site.node.log_file.exists():
            shutil.copy(site.node.log_file, self.folder / f"{self.row.fault}.log")

    def check(
        self,
        site: Site,
        *,
        objects: int | None = None,
        ends: Sequence[tuple[str, str]] | None = None,
        settled: bool = True,
    ) -> Verdict:
        """One round is over: ask the oracle, and enter its answer.

        Args:
            site: With its node at rest.
            objects: That the archives are to hold more than before the scenario.
            ends: State and reason of every series of the scenario, in any order.
            settled: Every series must have come to its end.
        """
        found = site.judge(settled=settled)
        wrong = list(found.wrong)
        more = found.objects - site.before.objects
        if objects is not None and more != objects:
            wrong.append(f"{more} objects came to the archives, expected {objects}")
        if ends is not None:
            seen = sorted((row.state.value, row.reason) for row in site.own_series())
            if seen != sorted(ends):
                wrong.append(f"ended {seen}, expected {sorted(ends)}")
        row = self.row
        row.rounds += 1
        row.acknowledged += found.acknowledged - site.before.acknowledged
        row.lost += len(found.lost)
        row.doubled += len(found.doubled)
        row.wrong += len(wrong)
        row.trouble += [*found.lost, *found.doubled, *wrong]
        for one in site.own_series():
            row.ends[one.state.value] = row.ends.get(one.state.value, 0) + one.instances
        if site.recovery_s:
            row.recovery_s = max(row.recovery_s or 0.0, site.recovery_s)
        return found


def table(rows: Sequence[Row]) -> str:
    """As it is printed: fault, rounds, acknowledged, lost, doubled, recovery seconds."""
    head = ("fault", "rounds", "acknowledged", "lost", "doubled", "wrong", "recovery s", "")
    lines = [head]
    for row in rows:
        recovery = "-" if row.recovery_s is None else f"{row.recovery_s:.1f}"
        counts = (row.rounds, row.acknowledged, row.lost, row.doubled, row.wrong)
        note = row.note if row.clean else f"FAULT {row.note}"
        lines.append((row.fault, *map(str, counts), recovery, note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:7], widths[1:7], strict=True)]
        text.append("  ".join([*cells, line[7]]).rstrip())
    return "\n".join(text)


def say(line: str) -> None:
    """To whoever watches."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
