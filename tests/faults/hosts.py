"""Two hosts on one PostgreSQL: two services, two workers, and one of them gone for good.

Both hosts are this machine under two names, so that every process has an identity of its own. One
service runs, the other stands by on the same data; one worker is the service's own, the other runs
by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from node.ledger import SeriesState
from tests.faults.bench import Bench, NotHereError
from tests.faults.images import Sent
from tests.faults.site import LAUNCHER, Site
from tests.integration.node_process import PATIENCE_S
from tests.integration.postgres import Cluster, programs

RESULTS_EACH = 2
PATIENTS = 6
RESTART_S = 1.0  # as systemd: Restart=always, RestartSec=1


@dataclass
class Member:
    """A process of a host, started again when it ends, unless it was killed for good."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    gone: bool = False
    not_before: float = 0.0

    def tick(self) -> None:
        """What systemd does."""
        if self.gone:
            return
        if self.process is not None and self.process.poll() is not None:
            self.process, self.not_before = None, time.monotonic() + RESTART_S
        if self.process is None and time.monotonic() >= self.not_before:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )

    def kill(self) -> None:
        """For good."""
        self.gone = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Hosts:
    """The members, and the site that they serve."""

    site: Site
    cluster: Cluster
    members: dict[str, Member] = field(default_factory=dict)

    def add(self, name: str, host: str, *arguments: str) -> None:
        """One more process."""
        python = [sys.executable, str(LAUNCHER), arguments[0], "--config"]
        command = ["/usr/bin/env", f"FAULTS_HOST={host}", *python, str(self.site.node.config)]
        log = self.site.node.log_file
        self.members[name] = Member([*command, *arguments[1:]], log)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """With every member kept alive meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            for member in self.members.values():
                member.tick()
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s{self.site.node}")
            time.sleep(0.05)

    def wait(self, seconds: float) -> None:
        """So long."""
        ends = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() > ends)

    def says(self, event: str, since: int = 0) -> bool:
        """Does the log hold that event?"""
        return any(one["event"] == event for one in self.site.node.events(since))

    def states(self) -> list[SeriesState]:
        """Of all series."""
        with self.site.node.ledger() as ledger:
            return [row.state for row in ledger.all_series()]

    def send(self, series: list[Sent]) -> None:
        """Until acknowledged."""
        for one in series:
            self.site.sender.send_until_acknowledged(one.paths)

    def settle(self, count: int) -> None:
        """Until all are delivered."""
        self.wait_until(lambda: self.states() == [SeriesState.DELIVERED] * count, 2 * PATIENCE_S)


@contextmanager
def two_hosts(bench: Bench) -> Iterator[Hosts]:
    """One service, one standing by, two workers."""
    folder = programs()
    if folder is None:
        raise NotHereError("PostgreSQL is not installed (apt-get install postgresql)")
    with Cluster(folder) as cluster:
        sections = {"engine": {"database_url": cluster.url, "poll_s": 0.2}}
        with bench.fresh_site(sections=sections) as site:
            site.node.folder.mkdir()
            site.node.data_dir.mkdir(mode=0o700)
            site.node.write_config()
            site.node.log_file.touch()
            site.node.fault("slow", "1.0")
            hosts = Hosts(site, cluster)
            hosts.add("service-a", "host-a", "serve")
            hosts.add("worker-b", "host-b", "worker", "--index", "1")
            try:
                hosts.wait_until(lambda: hosts.says("service.ready"))
                hosts.add("service-b", "host-b", "serve", "--standby")
                hosts.wait_until(lambda: hosts.says("service.standby"))
                events = site.node.events
                hosts.wait_until(lambda: sum(e["event"] == "worker.ready" for e in events()) >= 2)
                yield hosts
            finally:
                for member in hosts.members.values():
                    member.kill()


def a_worker_is_gone(bench: Bench) -> None:
    """The worker of the other host dies in a case, and does not come back."""
    with two_hosts(bench) as hosts:
        flairs = _with_both_at_work(hosts)
        _gone(bench, hosts, "worker-b")
        hosts.settle(len(flairs))
        _conclude(bench, hosts, "")


def a_service_is_gone(bench: Bench) -> None:
    """The service dies with its worker, for good: the one that stood by takes its place."""
    with two_hosts(bench) as hosts:
        flairs = _with_both_at_work(hosts)
        since = hosts.site.node.log_file.stat().st_size
        _gone(bench, hosts, "service-a")
        hosts.wait_until(lambda: hosts.says("service.ready", since))
        ready_s = time.monotonic() - hosts.site.began_recovery
        late = [hosts.site.flair("LATE")]
        hosts.send(late)
        hosts.settle(len(flairs) + 1)
        _conclude(bench, hosts, f"listening again after {ready_s:.1f} s, ")


def the_database_restarts(bench: Bench) -> None:
    """PostgreSQL ends at once, is away for three seconds, and comes back."""
    with two_hosts(bench) as hosts:
        flairs = _with_both_at_work(hosts)
        hosts.site.began_recovery = time.monotonic()
        hosts.cluster.stop()
        hosts.wait(3.0)
        hosts.cluster.start()
        late = [hosts.site.flair("LATE")]
        for _ in range(100):  # the members have to be looked after between attempts
            if hosts.site.sender.send(late[0].paths) == len(late[0].paths):
                break
            hosts.wait(0.3)
        hosts.settle(len(flairs) + 1)
        _conclude(bench, hosts, "")


def _with_both_at_work(hosts: Hosts) -> list[Sent]:
    """Series on their way, one of them with each worker."""
    flairs = [hosts.site.flair(f"PATIENT{number}") for number in range(PATIENTS)]
    hosts.send(flairs)
    hosts.wait_until(lambda: hosts.states().count(SeriesState.RUNNING) >= 2)
    return flairs


def _gone(bench: Bench, hosts: Hosts, name: str) -> None:
    hosts.site.began_recovery = time.monotonic()
    hosts.members[name].kill()
    since = hosts.site.node.log_file.stat().st_size
    hosts.wait_until(lambda: hosts.says("engine.takeover", since))
    taken_s = time.monotonic() - hosts.site.began_recovery
    bench.row.note = f"work taken over after {taken_s:.1f} s"


def _conclude(bench: Bench, hosts: Hosts, note: str) -> None:
    site = hosts.site
    site.recovery_s = time.monotonic() - site.began_recovery
    count = len(hosts.states())
    bench.check(site, objects=RESULTS_EACH * count, ends=[("delivered", "")] * count)
    bench.row.note = note + bench.row.note


POSTGRES: dict[str, Callable[[Bench], None]] = {
    "postgres-worker-gone": a_worker_is_gone,
    "postgres-service-gone": a_service_is_gone,
    "postgres-restarts": the_database_restarts,
}
