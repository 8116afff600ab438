"""Kills a node at random moments and counts: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node_process import NodeProcess, alive

from node.archive import Orthanc
from node.ledger import ENDS, SeriesState
from node.outcome import ResultsFolder
from node.worker import DEATHS_ALLOWED


@dataclass
class Kills:
    """A seeded plan: whom to kill, and when."""

    node: NodeProcess
    random: random.Random
    longest_pause_s: float
    say: Callable[[str], None] = lambda _: None
    done: Counter[str] = field(default_factory=Counter)

    def round(self) -> None:
        """Wait a random while, kill the service or its worker, see that it goes on."""
        time.sleep(self.random.uniform(0.0, self.longest_pause_s))
        workers = self.node.worker_pids()
        if self.random.random() < 0.5 and workers and self._may_kill_the_worker():
            victim = self.random.choice(workers)
            os.kill(victim, signal.SIGKILL)
            self._end("worker", victim)
            return
        self.node.kill()
        self._end("service", 0)
        began = time.monotonic()
        while any(alive(pid) for pid in workers):
            if time.monotonic() - began > 10:
                raise AssertionError(f"workers outlived their service: {workers}")
            time.sleep(0.01)
        self.node.start()

    def _may_kill_the_worker(self) -> bool:
        """A third death at one case would be the case's fault, and end it: by design."""
        attempts = (self.node.data_dir / "results").glob("*.attempts")
        return all(_deaths_with_one_more(_lines(path)) < DEATHS_ALLOWED for path in attempts)

    def _end(self, whom: str, pid: int) -> None:
        with self.node.ledger() as ledger:
            states = Counter(row.state.value for row in ledger.all_series())
        self.done[whom] += 1
        self.say(f"killed the {whom} {pid or ''} with series {dict(states)}")


def _deaths_with_one_more(lines: Sequence[str]) -> int:
    """As `node.worker.Attempts` will count: each run of the node but for its last attempt."""
    return 1 + sum(count - 1 for count in Counter(lines).values())


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return ()


@dataclass(frozen=True)
class Balance:
    """What was sent, what became of it, and what the archive holds."""

    received: int
    ends: Mapping[str, int]
    """Instances by the end of their series."""
    series: Mapping[str, tuple[str, str]]
    """Series Instance UID -> (end, reason)."""
    missing: Sequence[str]
    """SOP Instance UIDs of results that the archive lacks."""
    doubled: Sequence[str]
    """SOP Instance UIDs that the archive holds or was given anew more than once."""
    strange: Sequence[str]
    """SOP Instance UIDs in the archive that no result of ours has."""
    in_archive: int
    unfinished: Sequence[str]

    def faults(self, sent: int) -> list[str]:
        """What is wrong; empty when nothing was lost and nothing doubled."""
        found = []
        if self.received != sent:
            found.append(f"{sent} instances were acknowledged, {self.received} are recorded")
        if sum(self.ends.values()) != self.received:
            found.append(f"{self.received} received, {dict(self.ends)} accounted for")
        named = {name: getattr(self, name) for name in ("missing", "doubled", "strange")}
        named["unfinished"] = self.unfinished
        found.extend(f"{name}: {uids}" for name, uids in named.items() if uids)
        return found


def balance(node: NodeProcess, archive: Orthanc) -> Balance:
    """Count by SOP Instance UID, in the ledger, in the results and in the archive."""
    results = ResultsFolder(node.data_dir)
    with node.ledger() as ledger:
        oracle = ledger.oracle()
        rows = ledger.all_series()
        jobs = ledger.jobs((SeriesState.DELIVERED, SeriesState.NOT_ANALYSED))
    expected: Counter[str] = Counter()
    for job in jobs:
        result = results.read(job.job_id)
        if result is None and job.state is SeriesState.NOT_ANALYSED:
            continue
        assert result is not None, job.job_id
        expected.update(one.sop_instance_uid for one in result.objects)
    held = Counter(archive.sop_instance_uids())
    doubled = [uid for uid, count in (held + Counter()).items() if count > 1]
    if archive.stored_count() != len(held):
        doubled.append(f"{archive.stored_count()} stores of {len(held)} objects")
    return Balance(
        received=oracle.received,
        ends={state.value: count for state, count in oracle.by_state.items()},
        series={row.series_instance_uid: (row.state.value, row.reason) for row in rows},
        missing=[*(uid for uid in expected if uid not in held), *oracle.missing_files],
        doubled=[*doubled, *(uid for uid, count in expected.items() if count > 1)],
        strange=[uid for uid in held if uid not in expected],
        in_archive=sum(held.values()),
        unfinished=[row.series_instance_uid for row in rows if row.state not in ENDS],
    )
