"""The faults, one function each: prepare, act, break something, restart once, settle, ask."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom.errors import Outcome
from node.intake import received_instance
from node.ledger import Ledger, SeriesDecision, SeriesState
from node.spool import Spool
from tests.faults.bench import Bench, NotHereError
from tests.faults.gate import Moment
from tests.faults.hosts import POSTGRES
from tests.faults.images import Sent
from tests.faults.sender import AE_TITLE
from tests.faults.shim import Shim
from tests.faults.site import LAUNCHER, QUIET_S, Site, signal_tree
from tests.integration.kills import Kills
from tests.integration.node_process import PATIENCE_S
from tests.integration.standin import PACK_DIGEST

DELIVERED = ("delivered", "")
RESULTS_EACH = 2  # objects that the stand-in makes of a series
Scene = Callable[[Bench], None]


@dataclass(frozen=True)
class Scenario:
    """A row of the table."""

    fault: str
    scene: Scene
    core: bool = False
    """Part of what the test suite runs."""


# --- kill -9 at each point -----------------------------------------------------------------------


def killed_on_the_wire(bench: Bench, moment: Moment, number: int) -> None:
    """K0, K1, K5: what travels between sender and node is stopped, and the node killed then."""
    with bench.site() as site:
        flair = site.flair("PATIENT")
        site.door.stop_at(moment, number)
        sending = site.sender.in_background(flair.paths)
        _wait(site.door.stopped)
        site.kill()
        site.door.cut()
        sending.join()
        _recover(bench, site, flair)


def killed_in_the_service(bench: Bench, point: str, number: int) -> None:
    """K2, K3, K4, K6, K11: the service dies of its own hand at a call."""
    with bench.site() as site:
        flair = site.flair("PATIENT")
        site.arm(point, number)
        sending = site.sender.in_background(flair.paths)
        site.wait_fired()
        site.wait_dead()
        site.door.cut()
        sending.join()
        _recover(bench, site, flair)


def killed_in_the_worker(bench: Bench, point: str, deed: str) -> None:
    """K7, K8, K9: the worker dies alone, or takes the service along."""
    with bench.site() as site:
        flair = site.flair("PATIENT")
        site.arm(point, 1, deed)
        site.send(flair)
        site.wait_fired()
        if deed == "kill-node":
            site.wait_dead()
        _recover(bench, site, flair)


def killed_between_two_sends(bench: Bench) -> None:
    """K10: the archive has answered for the first object, and is not given the second."""
    with bench.site() as site:
        flair = site.flair("PATIENT")
        site.gate.stop_at(Moment.AFTER_ANSWER)
        site.send(flair)
        _wait(site.gate.stopped)
        site.kill()
        _recover(bench, site, flair)


def killed_while_discarding(bench: Bench) -> None:
    """K12: four of ten images are deleted when the power goes."""
    with bench.fresh_site(sections={"retention": {"keep_days": 0.0, "least_days": 0.0}}) as site:
        site.trap("hourly", "1.0")
        site.node.start()
        flair = site.flair("PATIENT")
        site.arm("discarding", 5)
        site.send(flair)
        site.wait_fired()
        site.wait_dead()
        spool = site.node.data_dir / "spool"
        left = len(list(spool.glob("*/*/*.dcm")))
        site.restart()
        site.settle(1)
        site.node.wait_until(lambda: not list(spool.glob("*/*/*.dcm")), 15.0)
        bench.row.note = f"{left} of 10 images left by the crash, none after the restart"
        bench.check(site, objects=RESULTS_EACH, ends=[DELIVERED])


def _recover(bench: Bench, site: Site, *series: Sent) -> None:
    """Restart, send what was not acknowledged, and expect every series delivered, once."""
    site.restart()
    site.send(*series)
    site.settle(len(series))
    ends = [DELIVERED] * len(series)
    bench.check(site, objects=RESULTS_EACH * len(series), ends=ends)


# --- kill -9 at random ---------------------------------------------------------------------------


def killed_at_random(bench: Bench) -> None:
    """Service or worker, at seeded moments, while studies keep coming."""
    rounds = bench.profile.random_kills
    with bench.site() as site:
        site.node.fault("slow", "0.3")
        flairs = [site.flair(f"PATIENT{number}") for number in range(rounds)]

        def send_all() -> None:
            for flair in flairs:
                site.send(flair)

        sending = threading.Thread(target=send_all)
        sending.start()
        kills = Kills(site.node, bench.chance(), longest_pause_s=2.0)
        for _ in range(rounds):
            kills.round()
        site.restart()
        sending.join()
        site.settle(rounds)
        bench.row.note = ", ".join(f"{whom} {n}" for whom, n in sorted(kills.done.items()))
        bench.check(site, objects=RESULTS_EACH * rounds, ends=[DELIVERED] * rounds)
        bench.row.rounds = rounds


def killed_at_random_with_the_real_pipeline(bench: Bench) -> None:
    """The synthetic head through skull strip, network and real result objects."""
    from pipeline.phantom import synthetic_head
    from pipeline.phantom_study import write_study
    from tests.integration.bright_pack import make_bright_pack

    rounds, chance = bench.profile.real_kills, bench.chance()
    pack = bench.folder / "bright"
    if not pack.exists():
        make_bright_pack(pack)
    with bench.fresh_site(
        sections={"pipeline": {"model": str(pack), "time_limit_s": 300.0}},
        command=(sys.executable, "-m", "node.cli", "serve"),
    ) as site:
        study = site.folder / "study"
        write_study(synthetic_head(11), study)
        paths = sorted(path for path in study.rglob("*") if path.is_file())
        site.node.start()
        site.sender.send_until_acknowledged(paths)
        for _ in range(rounds):
            time.sleep(chance.uniform(1.0, 12.0))
            site.kill()
            site.restart()
        site.sender.send_until_acknowledged(paths)
        site.settle(2, timeout_s=4 * PATIENCE_S)
        found = bench.check(site)
        bench.row.rounds = rounds
        if found.ends.get("delivered", 0) == 0:
            bench.row.wrong += 1
            bench.row.trouble.append(f"nothing was delivered: {found.ends}")
        bench.row.note = f"{found.objects} objects of a whole study"


def a_case_that_kills(bench: Bench) -> None:
    """Three deaths of a worker end the case; its neighbour goes on."""
    with bench.site() as site:
        poison, healthy = site.flair("POISON"), site.flair("HEALTHY")
        site.node.fault(f"kill.{poison.series_instance_uid}")
        site.send(poison, healthy)
        site.settle(2)
        bench.check(site, objects=RESULTS_EACH, ends=[("failed", "poison"), DELIVERED])


# --- standing still ------------------------------------------------------------------------------


def stopped_for_longer_than_a_case_may_take(bench: Bench) -> None:
    """SIGSTOP to service and worker in the middle of a case, past its time limit."""
    limit_s = bench.profile.stop_s / 2
    with bench.fresh_site(sections={"pipeline": {"time_limit_s": limit_s}}) as site:
        site.node.start()
        running, coming = site.flair("RUNNING"), site.flair("COMING")
        hold = site.trap(f"hold.{running.series_instance_uid}")
        site.send(running)
        site.wait_for(running, SeriesState.RUNNING)
        sending = site.sender.in_background(coming.paths)
        signal_tree(site, signal.SIGSTOP)
        time.sleep(bench.profile.stop_s)
        hold.unlink()
        site.began_recovery = time.monotonic()
        signal_tree(site, signal.SIGCONT)
        sending.join()
        site.send(coming)
        site.settle(2)
        bench.row.note = f"{bench.profile.stop_s:g} s, time limit of a case {limit_s:g} s"
        bench.check(site, objects=2 * RESULTS_EACH, ends=[DELIVERED] * 2)


def stopped_before_it_answers(bench: Bench) -> None:
    """SIGSTOP at K4: the object is recorded, and the sender gives up waiting."""
    with bench.site() as site:
        flair = site.flair("PATIENT")
        site.arm("recorded", 4, "stop")
        sending = threading.Thread(
            target=site.sender.send, args=(flair.paths,), kwargs={"timeout_s": 2.0}
        )
        sending.start()
        caught = site.wait_fired()
        time.sleep(bench.profile.stop_s)
        sending.join()
        site.began_recovery = time.monotonic()
        os.kill(caught, signal.SIGCONT)
        site.send(flair)
        site.settle(1)
        bench.check(site, objects=RESULTS_EACH, ends=[DELIVERED])


def two_services_with_one_identity(bench: Bench) -> None:
    """A second one on the same data refuses to start, also while the first stands still."""
    with bench.site() as site:
        first, second = site.flair("FIRST"), site.flair("SECOND")
        sending = site.sender.in_background(first.paths)
        refused = [_second_service(site)]
        sending.join()
        signal_tree(site, signal.SIGSTOP)
        refused.append(_second_service(site))
        site.began_recovery = time.monotonic()
        signal_tree(site, signal.SIGCONT)
        site.send(first, second)
        site.settle(2)
        if refused != [1, 1]:
            raise AssertionError(f"the second service ended with {refused}")
        bench.check(site, objects=2 * RESULTS_EACH, ends=[DELIVERED] * 2)


def _second_service(site: Site) -> int:
    command = [sys.executable, str(LAUNCHER), "serve", "--config", str(site.node.config)]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    return done.returncode


def another_service_stands_by(bench: Bench) -> None:
    """The one that runs is killed for good; the one that waited goes on where it was."""
    with bench.fresh_site() as site:
        site.node.start()
        running, late = site.flair("RUNNING"), site.flair("LATE")
        hold = site.trap("hold")
        site.send(running)
        site.wait_for(running, SeriesState.RUNNING)
        seen = site.node.log_file.stat().st_size
        command = [*site.node.command, "--config", str(site.node.config), "--standby"]
        with site.node.log_file.open("ab") as log:
            second = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        site.node.wait_until(lambda: _said(site, "service.standby", seen), PATIENCE_S)
        site.kill()
        site.node.process = second
        site.began_recovery = began = time.monotonic()
        hold.unlink()
        site.node.wait_until(lambda: _said(site, "service.ready", seen), PATIENCE_S)
        bench.row.note = f"listening again after {time.monotonic() - began:.1f} s"
        site.send(late)
        site.settle(2)
        bench.check(site, objects=2 * RESULTS_EACH, ends=[DELIVERED] * 2)


def _said(site: Site, event: str, since: int) -> bool:
    return any(one["event"] == event for one in site.node.events(since))


# --- disk ----------------------------------------------------------------------------------------

DISK_MB = 48


def disk_below_its_reserve(bench: Bench) -> None:
    """New objects are refused with A700 while the case under way finishes; then there is room."""
    with bench.fresh_site() as site, _small_disk(site) as fill:
        site.node.start()
        running, refused = site.flair("RUNNING"), site.flair("REFUSED")
        hold = site.trap("hold")
        site.send(running)
        site.wait_for(running, SeriesState.RUNNING)
        filler = fill(4_000_000)
        taken = site.sender.send(refused.paths)
        hold.unlink()
        site.wait_for(running, SeriesState.DELIVERED)
        if taken or not any("OutOfResources" in answer for answer in site.sender.answers):
            raise AssertionError(f"{taken} taken; {site.sender.answers[-2:]}")
        site.kill()
        filler.unlink()
        _recover(bench, site, running, refused)


def disk_full_while_receiving(bench: Bench) -> None:
    """No reserve is set: the kernel says ENOSPC in the middle of a series."""
    with bench.fresh_site(sections={"node": {"reserve_mb": 0}}) as site, _small_disk(site) as fill:
        site.node.start()
        flair = site.flair("PATIENT", slices=40, rows=96, columns=96)
        filler = fill(250_000)
        taken = site.sender.send(flair.paths)
        if taken == len(flair.paths):
            raise AssertionError("the disk was not full")
        site.kill()
        filler.unlink()
        bench.row.note = f"{taken} of {len(flair.paths)} acknowledged before it was full"
        _recover(bench, site, flair)


def disk_full_while_analysing(bench: Bench, *, restart: bool) -> None:
    """The result cannot be written, nor its end; once there is room, the case ends all the same."""
    with bench.fresh_site(sections={"node": {"reserve_mb": 0}}) as site, _small_disk(site) as fill:
        site.node.start()
        flair = site.flair("PATIENT")
        hold = site.trap("hold")
        site.send(flair)
        site.wait_for(flair, SeriesState.RUNNING)
        filler = fill(0)
        hold.unlink()
        time.sleep(4.0)
        if restart:
            site.kill()
        filler.unlink()
        _recover(bench, site, flair)


class _small_disk:  # noqa: N801  # used as a function
    """A small file system of its own under the node's data."""

    def __init__(self, site: Site) -> None:
        self._folder = site.node.data_dir

    def __enter__(self) -> Callable[[int], Path]:
        self._folder.mkdir(parents=True, mode=0o700)
        size = f"size={DISK_MB}m,mode=0700"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self._folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise NotHereError("no mount program") from error
        if done.returncode != 0:
            raise NotHereError("a small file system cannot be mounted (not root)")
        return self._fill

    def __exit__(self, *_: object) -> None:
        # Lazily: the node of this round still runs, and is ended in a moment.
        subprocess.run(["umount", "-l", str(self._folder)], check=True)

    def _fill(self, leave: int) -> Path:
        """A file that leaves so many bytes free."""
        filler = self._folder / "filler"
        left = os.statvfs(self._folder)
        with filler.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, max(1, left.f_bavail * left.f_frsize - leave))
        return filler


def fsync_fails(bench: Bench) -> None:
    """EIO from every fsync: nothing is acknowledged that may not be on disk."""
    shim = _shim(bench)
    with bench.fresh_site(command=(*shim.command, sys.executable, str(LAUNCHER), "serve")) as site:
        site.node.start()
        before, during = site.flair("BEFORE"), site.flair("DURING")
        site.send(before)
        site.settle(1)
        shim.fail_fsync(errno.EIO)
        taken = site.sender.send(during.paths)
        site.kill()
        shim.fail_fsync(0)
        if taken:
            raise AssertionError(f"{taken} objects were acknowledged without an fsync")
        _recover(bench, site, before, during)


def fsync_fails_while_analysing(bench: Bench) -> None:
    """EIO for the result: nothing half written is sent, and the case ends once it is gone."""
    shim = _shim(bench)
    with bench.fresh_site(command=(*shim.command, sys.executable, str(LAUNCHER), "serve")) as site:
        site.node.start()
        flair = site.flair("PATIENT")
        hold = site.trap("hold")
        site.send(flair)
        site.wait_for(flair, SeriesState.RUNNING)
        shim.fail_fsync(errno.EIO)
        hold.unlink()
        time.sleep(4.0)
        site.kill()
        shim.fail_fsync(0)
        _recover(bench, site, flair)


def _shim(bench: Bench) -> Shim:
    try:
        return Shim(bench.folder / "shim")
    except LookupError as error:
        raise NotHereError(str(error)) from error


# --- the archive ---------------------------------------------------------------------------------


def archive_misbehaves(bench: Bench, misbehave: Callable[[Site], None]) -> None:
    """It is down, silent, rejecting, cutting off or refusing; the node is killed meanwhile."""
    with bench.site() as site:
        flairs = [site.flair(f"PATIENT{number}") for number in range(2)]
        misbehave(site)
        site.send(*flairs)
        site.wait_for(flairs[0], SeriesState.DELIVERING, SeriesState.DELIVERED)
        time.sleep(3.0)
        site.kill()
        _recover(bench, site, *flairs)


def archive_will_not_have_it(bench: Bench) -> None:
    """C000: held with its reason over a restart, delivered when a person says so."""
    with bench.site() as site:
        flair = site.flair("PATIENT")
        site.refuse_with(0xC000)
        site.send(flair)
        site.wait_for(flair, SeriesState.HELD)
        site.kill()
        site.restart()
        site.settle(1)
        bench.check(site, objects=0, ends=[("held", "destination-refused")])
        _retry(site, flair)
        site.wait_for(flair, SeriesState.DELIVERED)
        bench.check(site, objects=RESULTS_EACH, ends=[DELIVERED])
        bench.row.note = "held as it should; delivered after `jobs retry`"


def one_of_two_archives_is_dead(bench: Bench) -> None:
    """The living one has everything long before the other comes back."""
    with bench.fresh_site(archives=2) as site:
        site.node.start()
        site.gates[1].shut()
        flairs = [site.flair(f"PATIENT{number}") for number in range(3)]
        site.send(*flairs)
        living = site.archives[0]
        site.node.wait_until(lambda: len(living.sop_instance_uids()) == 3 * RESULTS_EACH)
        site.kill()
        site.restart()
        site.settle(3)
        bench.check(site, objects=2 * 3 * RESULTS_EACH, ends=[DELIVERED] * 3)


# --- what senders do -----------------------------------------------------------------------------


def late_slices_in_every_state(bench: Bench) -> None:
    """The last slice of ten comes when the other nine stand in each of the states."""
    with bench.site() as site:
        stands = _in_every_state(site, slices=range(9))
        late = [site.flair(name, only=(9,), number=5, **_of(name)) for name in stands]
        for one in late:
            site.sender.send_until_acknowledged(one.paths)
        _let_go(site, stands)
        site.settle(len(stands))
        ends = [("skipped", "not-flair-echo-time")] + [DELIVERED] * (len(stands) - 1)
        # Delivered before: nine slices' result stays, and is superseded. Nowhere else was one sent.
        bench.check(site, objects=RESULTS_EACH * (len(stands) - 1) + RESULTS_EACH, ends=ends)
        _whole(site, stands)


def repeated_slices_in_every_state(bench: Bench) -> None:
    """A whole series comes again when it stands in each of the states: nothing is done twice."""
    with bench.site() as site:
        stands = _in_every_state(site, slices=range(10))
        for one in stands.values():
            site.sender.send(one.paths)
        _let_go(site, stands)
        for name in ("FAILED", "REFUSED", "HELD"):
            _retry(site, stands[name])
        site.settle(len(stands))
        time.sleep(1.5 * QUIET_S)  # a second job would show now
        ends = [("skipped", "not-flair-echo-time")] + [DELIVERED] * (len(stands) - 1)
        bench.check(site, objects=RESULTS_EACH * (len(stands) - 1), ends=ends)
        with site.node.ledger() as ledger:
            jobs = [len(ledger.jobs_of(one.series_instance_uid)) for one in stands.values()]
        if max(jobs) != 1:
            raise AssertionError(f"jobs of a series: {jobs}")


def _of(name: str) -> dict[str, str]:
    return {"contrast": "t1"} if name == "SKIPPED" else {}


def _in_every_state(site: Site, slices: range) -> dict[str, Sent]:
    """A series in each of the states, with these slices of ten; the archive is left shut."""
    only = tuple(slices)
    names = ("SKIPPED", "FAILED", "REFUSED", "DELIVERED", "HELD", "DELIVERING", "RUNNING", "QUEUED")
    stands: dict[str, Sent] = {}
    for name in (*names, "RECEIVING"):
        stands[name] = site.flair(name, only=only, number=5, **_of(name))
        uid = stands[name].series_instance_uid
        if name == "FAILED":
            site.node.fault(f"raise.{uid}")
        elif name == "REFUSED":
            site.node.fault(f"refuse.{uid}")
        elif name == "HELD":
            site.refuse_with(0xC000)
        elif name == "DELIVERING":
            site.gate.shut()
        elif name == "RUNNING":
            site.trap(f"hold.{uid}")
        site.send(stands[name])
        states = {
            "REFUSED": SeriesState.NOT_ANALYSED,
            **{n: SeriesState(n.lower()) for n in (*names, "RECEIVING") if n != "REFUSED"},
        }
        site.wait_for(stands[name], states[name])
    return stands


def _let_go(site: Site, stands: dict[str, Sent]) -> None:
    """The faults are over, and the node is killed and started once."""
    for path in chain(
        (site.node.data_dir / "faults").glob("hold*"), (site.node.data_dir / "standin").iterdir()
    ):
        path.unlink()
    site.kill()
    site.restart()


def _retry(site: Site, series: Sent) -> None:
    with site.node.ledger() as ledger:
        row = ledger.series(series.series_instance_uid)
        assert row is not None
        ledger.retry(row.job_id)


def _whole(site: Site, stands: dict[str, Sent]) -> None:
    with site.node.ledger() as ledger:
        for name, one in stands.items():
            row = ledger.series(one.series_instance_uid)
            assert row is not None
            if row.job_id and len(ledger.sop_instances_of(row.job_id)) != 10:
                raise AssertionError(f"{name} was analysed with fewer than ten slices")


def interleaved_series(bench: Bench) -> None:
    """Two studies of two series, slice by slice on one association, and a kill in the middle."""
    with bench.site() as site:
        series = [
            site.flair(patient, number=number, contrast=contrast)
            for patient in ("ONE", "TWO")
            for number, contrast in ((4, "flair"), (5, "t1"))
        ]
        mixed = [*chain.from_iterable(zip(*(one.paths for one in series), strict=True))]
        site.door.stop_at(Moment.AFTER_ANSWER, bench.chance().randint(10, 30))
        sending = site.sender.in_background(mixed)
        _wait(site.door.stopped)
        site.kill()
        site.door.cut()
        sending.join()
        site.restart()
        site.sender.send_until_acknowledged(mixed)
        site.settle(4)
        skipped = ("skipped", "not-flair-echo-time")
        bench.check(site, objects=2 * RESULTS_EACH, ends=[DELIVERED, DELIVERED, skipped, skipped])


def slow_sender(bench: Bench) -> None:
    """One slice at a time, each well within the quiet period of the one before."""
    with bench.fresh_site(sections={"completeness": {"quiet_period_s": 3.0}}) as site:
        site.node.start()
        flair = site.flair("SLOW", slices=8)
        for path in flair.paths[:4]:
            site.sender.send_until_acknowledged([path])
            time.sleep(1.2)
        site.kill()
        site.restart()
        for path in flair.paths[4:]:
            site.sender.send_until_acknowledged([path])
            time.sleep(1.2)
        site.settle(1)
        bench.check(site, objects=RESULTS_EACH, ends=[DELIVERED])
        with site.node.ledger() as ledger:
            if len(ledger.jobs_of(flair.series_instance_uid)) != 1:
                raise AssertionError("half a series was analysed")


def same_uid_with_other_pixels(bench: Bench) -> None:
    """While it is received, and after it was delivered: both contents are kept, a person looks."""
    with bench.site() as site:
        held = ("held", "conflicting-instance")
        first, second = site.flair("FIRST"), site.flair("SECOND")
        other = site.flair("FIRST", brighter=100, only=(3,))
        later = site.flair("SECOND", brighter=100, only=(3,))
        site.send(second)
        site.wait_for(second, SeriesState.DELIVERED)
        site.send(first)
        taken = site.sender.send(other.paths) + site.sender.send(later.paths)
        site.wait_for(second, SeriesState.HELD)
        site.kill()
        site.restart()
        site.settle(2)
        if taken != 2:
            raise AssertionError(f"{taken} of 2 contradictions were acknowledged")
        bench.check(site, objects=RESULTS_EACH, ends=[held, held])


# --- clocks and databases ------------------------------------------------------------------------


def clock_jumps(bench: Bench) -> None:
    """An hour ahead while receiving, two back while running, ahead again while delivering."""
    shim = _shim(bench)
    with bench.fresh_site(command=(*shim.command, sys.executable, str(LAUNCHER), "serve")) as site:
        site.node.start()
        flair = site.flair("PATIENT")
        hold = site.trap("hold")
        site.sender.send_until_acknowledged(flair.paths[:5])
        shim.move_clock(3600)
        site.sender.send_until_acknowledged(flair.paths)
        site.wait_for(flair, SeriesState.RUNNING)
        shim.move_clock(-3600)
        site.gate.shut()
        hold.unlink()
        site.wait_for(flair, SeriesState.DELIVERING)
        shim.move_clock(7200)
        time.sleep(1.0)
        site.kill()
        shim.move_clock(-7200)
        _recover(bench, site, flair)
        with site.node.ledger() as ledger:
            if len(ledger.jobs_of(flair.series_instance_uid)) != 1:
                raise AssertionError("the jump closed half a series")


def ledger_is_locked(bench: Bench) -> None:
    """Another process holds the ledger's write lock while a series comes in."""
    with bench.site() as site:
        flair = site.flair("PATIENT")
        with closing(sqlite3.connect(site.node.data_dir / "intake.sqlite")) as other:
            other.isolation_level = None
            other.execute("BEGIN EXCLUSIVE")
            sending = site.sender.in_background(flair.paths)
            time.sleep(bench.profile.locked_s)
            other.execute("ROLLBACK")
        sending.join()
        site.kill()
        bench.row.note = f"{bench.profile.locked_s:g} s"
        _recover(bench, site, flair)


def database_is_corrupt(bench: Bench, name: str) -> None:
    """Its file is overwritten while the node is down, with work in every state."""
    with bench.fresh_site() as site:
        site.node.start()
        everything = _killed_in_every_state(site, SeriesState.DELIVERED)
        path = site.node.data_dir / name
        for log in ("-wal", "-shm"):  # or SQLite would mend the file from it
            path.with_name(name + log).unlink(missing_ok=True)
        with path.open("r+b") as file:
            file.write(b"\x5a" * max(8192, path.stat().st_size))
        _recover(bench, site, *everything)


def upgrade_with_work_in_flight(bench: Bench) -> None:
    """The next version of the workflows starts on what this one left."""
    with bench.fresh_site() as site:
        site.node.start()
        site.gate.shut()
        everything = _killed_in_every_state(site, SeriesState.DELIVERING)
        site.trap("version", "flairnode-next")
        _recover(bench, site, *everything)


def _killed_in_every_state(site: Site, farthest: SeriesState) -> list[Sent]:
    """Three series: one that came as far as that, one running, one queued; the node is down."""
    first, running, queued = (site.flair(n) for n in (farthest.name, "RUNNING", "QUEUED"))
    site.send(first)
    site.wait_for(first, farthest)
    hold = site.trap("hold")
    site.send(running)
    site.wait_for(running, SeriesState.RUNNING)
    site.send(queued)
    site.wait_for(queued, SeriesState.QUEUED)
    site.kill()
    hold.unlink()
    return [first, running, queued]


def thousands_queued(bench: Bench) -> None:
    """So many series stand queued in the ledger, and the engine's database is gone."""
    count = bench.profile.queued
    with bench.fresh_site() as site:
        queue_series(site, count)
        site.trap("hold")
        site.began_recovery = began = time.monotonic()
        site.node.start(timeout_s=600.0)
        ready_s = time.monotonic() - began
        fresh = site.flair("FRESH")
        site.send(fresh)
        taken_s = time.monotonic() - began
        (site.node.data_dir / "faults" / "hold").unlink()
        site.node.wait_until(lambda: site.archives[0].stored_count() >= 10 * RESULTS_EACH, 600.0)
        site.recovery_s = time.monotonic() - began
        assert site.node.process is not None
        memory_mb = _peak_memory_mb(site.node.process.pid)
        site.kill()
        bench.check(site, settled=False)
        bench.row.note = (
            f"{count}: ready after {ready_s:.1f} s, a new series taken after {taken_s:.1f} s,"
            f" ten delivered after {site.recovery_s:.1f} s, peak {memory_mb:.0f} MB"
        )


def queue_series(site: Site, count: int) -> None:
    """Series of one image each, received and decided, with the node's own ledger and spool."""
    template = site.flair("TEMPLATE", slices=1)
    header = dcmread(template.paths[0])
    data_dir = site.node.data_dir
    data_dir.mkdir(parents=True, mode=0o700)
    spool = Spool(data_dir / "spool")
    with Ledger(data_dir / "intake.sqlite") as ledger:
        for number in range(count):
            study, series, image = (generate_uid(entropy_srcs=[k, str(number)]) for k in "abc")
            header.StudyInstanceUID, header.SeriesInstanceUID = study, series
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = image
            header.PatientID = f"QUEUED{number}"
            path = Path(study, series, f"{image}.dcm")
            (spool.folder / path).parent.mkdir(parents=True)
            header.save_as(spool.folder / path, enforce_file_format=True)
            file = spool.describe(path)
            ledger.record(received_instance(file.identity, file.digest, path, AE_TITLE))
            site.sender.acknowledged[str(image)] = spool.folder / path
            decision = SeriesDecision(series, chosen=True, outcome=Outcome.SKIPPED, reason="")
            ledger.close_study(study, [decision], PACK_DIGEST, "0" * 64)


def _peak_memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _wait(event: threading.Event) -> None:
    if not event.wait(PATIENCE_S):
        raise AssertionError("the moment did not come")


# --- the table -----------------------------------------------------------------------------------


def refusing(status: int) -> Callable[[Site], None]:
    """The archive stores nothing and answers so."""
    return lambda site: site.refuse_with(status)


def storing_but_saying(status: int) -> Callable[[Site], None]:
    """The archive stores it and answers so."""
    return lambda site: site.gate.answer_with(status)


WIRE, SERVICE, WORKER = killed_on_the_wire, killed_in_the_service, killed_in_the_worker
ARCHIVE = archive_misbehaves

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("kill-K0-accepted", partial(WIRE, moment=Moment.ACCEPTED, number=1)),
    Scenario("kill-K1-mid-pdu", partial(WIRE, moment=Moment.BYTES, number=30_000), core=True),
    Scenario("kill-K2-written", partial(SERVICE, point="written", number=4)),
    Scenario("kill-K3-renamed", partial(SERVICE, point="renamed", number=4), core=True),
    Scenario("kill-K4-recorded", partial(SERVICE, point="recorded", number=4)),
    Scenario("kill-K5-answered", partial(WIRE, moment=Moment.AFTER_ANSWER, number=4)),
    Scenario("kill-K6-closed", partial(SERVICE, point="closed", number=1)),
    Scenario("kill-K7-leased", partial(WORKER, point="leased", deed="kill-node")),
    Scenario("kill-K8-inferring", partial(WORKER, point="inferring", deed="kill-node")),
    Scenario("kill-K8-worker-alone", partial(WORKER, point="inferring", deed="kill")),
    Scenario("kill-K9-half-written", partial(WORKER, point="half-written", deed="kill-node")),
    Scenario("kill-K9-worker-alone", partial(WORKER, point="half-written", deed="kill")),
    Scenario("kill-K10-half-sent", killed_between_two_sends, core=True),
    Scenario("kill-K11-unrecorded", partial(SERVICE, point="unrecorded", number=1)),
    Scenario("kill-K12-discarding", killed_while_discarding, core=True),
    Scenario("kill-random", killed_at_random),
    Scenario("kill-random-real-pipeline", killed_at_random_with_the_real_pipeline),
    Scenario("case-kills-worker", a_case_that_kills),
    Scenario("stop-node", stopped_for_longer_than_a_case_may_take),
    Scenario("stop-K4-recorded", stopped_before_it_answers),
    Scenario("two-services", two_services_with_one_identity),
    Scenario("service-standby", another_service_stands_by),
    Scenario("disk-reserve", disk_below_its_reserve),
    Scenario("disk-full-receiving", disk_full_while_receiving),
    Scenario("disk-full-analysing", partial(disk_full_while_analysing, restart=True)),
    Scenario("disk-full-then-room", partial(disk_full_while_analysing, restart=False)),
    Scenario("fsync-fails", fsync_fails, core=True),
    Scenario("fsync-fails-analysing", fsync_fails_while_analysing),
    Scenario("pacs-down", partial(ARCHIVE, misbehave=lambda site: site.gate.shut())),
    Scenario("pacs-hangs", partial(ARCHIVE, misbehave=lambda site: site.gate.hang())),
    Scenario("pacs-rejects", partial(ARCHIVE, misbehave=lambda site: site.gate.reject())),
    Scenario("pacs-cuts-mid-pdu", partial(ARCHIVE, misbehave=lambda s: s.gate.abort_after(900))),
    Scenario("pacs-A700", partial(ARCHIVE, misbehave=refusing(0xA700))),
    Scenario("pacs-A700-but-stored", partial(ARCHIVE, misbehave=storing_but_saying(0xA700))),
    Scenario("pacs-B000", partial(ARCHIVE, misbehave=storing_but_saying(0xB000))),
    Scenario("pacs-0110", partial(ARCHIVE, misbehave=refusing(0x0110))),
    Scenario("pacs-C000", archive_will_not_have_it),
    Scenario("pacs-one-of-two-dead", one_of_two_archives_is_dead),
    Scenario("slices-late", late_slices_in_every_state),
    Scenario("slices-repeated", repeated_slices_in_every_state),
    Scenario("series-interleaved", interleaved_series),
    Scenario("sender-slow", slow_sender),
    Scenario("same-uid-other-pixels", same_uid_with_other_pixels),
    Scenario("clock-jumps", clock_jumps),
    Scenario("ledger-locked", ledger_is_locked),
    Scenario("ledger-corrupt", partial(database_is_corrupt, name="intake.sqlite"), core=True),
    Scenario("engine-corrupt", partial(database_is_corrupt, name="engine.sqlite")),
    Scenario("upgrade", upgrade_with_work_in_flight),
    Scenario("queued-at-start", thousands_queued),
    *(Scenario(fault, scene) for fault, scene in POSTGRES.items()),
)
