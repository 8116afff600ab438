"""Folds of a training run over several hosts: what `train run --launcher dbos` finds.

Each fold is a durable workflow in a queue. Every host that works (`flairnode train worker`, and the
one that launched) takes as many folds at a time as it has devices. A host that dies is noticed by
the others, which put its folds back into the queue; a fold goes on from its last checkpoint in the
run folder, which is shared and has the same path on every host.

Two processes never train one fold: its own lock sees to that, and a child dies with its parent.

The tables are apart from those of the node: a file of their own beside its SQLite file, a schema of
their own in its PostgreSQL. Into them go the path of the run folder, the number of the fold, and
how it ended.

`training` finds this class by the entry-point group `flairnode.launchers`; this room knows of
training only what it is handed: a function that trains a fold and comes back when that has ended.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from dbos import DBOS

from config.loader import SettingsError, load_settings
from config.settings import Settings
from node.engine import (
    ACTIVE,
    TAKEOVER_PERIOD_S,
    Engine,
    FileIdentity,
    IdentityTakenError,
    WorkQueue,
    take_over,
)

log = structlog.get_logger(__name__)

TABLES = "training"
QUEUE = "folds"
VERSION = "fold-1"
"""Raised when the workflow changes its steps; unfinished ones of another version are let lie."""
RECOVERIES = 20
"""Of one fold, by other hosts: after so many deaths it is not the hosts."""
PRIORITY = 10
LOOK_EVERY_S = 0.5

TrainFold = Callable[[Path, int, str], Any]
"""(run, fold, device) -> its end, with `state`, `reason` and `explanation`."""


class _Here:
    """What this process works with: DBOS calls plain functions, one executor in a process."""

    train: TrainFold | None = None
    devices: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop: threading.Event = threading.Event()


class _LeavingError(BaseException):
    """This process was asked to end. No `Exception`: DBOS would write it down as the end."""


@DBOS.step(name="train-fold")
def _train(run: str, fold: int) -> dict[str, str]:
    """Train it in a process of its own, on the device that is free."""
    if _Here.train is None:
        raise RuntimeError("this process trains no folds")
    device = _Here.devices.get()
    try:
        end = _Here.train(Path(run), fold, device)
    finally:
        _Here.devices.put(device)
    if _Here.stop.is_set() and end.state != "done":
        raise _LeavingError  # not an end: the fold stays owed
    return {"state": end.state, "reason": end.reason}


@DBOS.workflow(name="fold", max_recovery_attempts=RECOVERIES)
def _fold(run: str, fold: int) -> dict[str, str]:
    """One fold of one run."""
    return _train(run, fold)


class DbosLauncher:
    """Folds through a queue in the site's database."""

    def __init__(self, config: Path | None, index: int = 0) -> None:
        """Read the settings; nothing is opened yet.

        Args:
            config: Settings of the site: `engine.database_url`, or `node.data_dir` for SQLite.
            index: Of this process on this host.

        Raises:
            SettingsError: None were named, or they cannot be used.
        """
        if config is None:
            raise SettingsError("the dbos launcher needs --config, the settings of the site")
        self._settings: Settings = load_settings(config)
        self._executor_id = f"{os.uname().nodename}-train-{index}"

    def launch(
        self,
        run: Path,
        folds: Sequence[int],
        train: TrainFold,
        devices: Sequence[str],
        stop: threading.Event,
    ) -> None:
        """Put folds into the queue, work on them too, and come back when all have ended."""
        run = run.resolve()
        with self._working(train, devices, stop) as engine:
            names = {fold: f"{_run_key(run)}-fold-{fold}" for fold in folds}
            states = engine.states(_run_key(run))
            # What ended before is asked for anew; what is under way stays, whoever works on it.
            engine.forget(
                [name for name in names.values() if states.get(name) not in (None, *ACTIVE)]
            )
            for fold, name in names.items():
                if states.get(name) not in ACTIVE:
                    engine.enqueue(QUEUE, name, PRIORITY, _fold, str(run), fold)
            while not stop.wait(LOOK_EVERY_S):
                found = engine.states(_run_key(run))
                if not any(found.get(name) in ACTIVE for name in names.values()):
                    return

    def work(self, train: TrainFold, devices: Sequence[str], stop: threading.Event) -> None:
        """Take folds that others launched, until `stop` is set."""
        with self._working(train, devices, stop):
            stop.wait()

    @contextmanager
    def _working(
        self, train: TrainFold, devices: Sequence[str], stop: threading.Event
    ) -> Iterator[Engine]:
        busy = _Counted(train)
        _Here.train, _Here.stop, _Here.devices = busy, stop, queue.SimpleQueue()
        for device in devices:
            _Here.devices.put(device)
        engine = Engine(self._settings, self._executor_id, VERSION, tables=TABLES)
        try:
            engine.launch([WorkQueue(QUEUE, len(devices))])
            if engine.url is None:
                threading.Thread(
                    target=self._watch_files, args=(engine, stop), name="takeover", daemon=True
                ).start()
            yield engine
        finally:
            # Ended by a person: the processes of the folds end first, each keeping its last epoch.
            stop.set()
            busy.wait_until_idle()
            engine.destroy()

    def _watch_files(self, engine: Engine, stop: threading.Event) -> None:
        """SQLite: an executor whose lock file nobody holds is dead, and its folds are ours."""
        while not stop.wait(TAKEOVER_PERIOD_S):
            running = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
            owners = {one.executor_id for one in running} - {None, engine.executor_id}
            self._take_over(engine, sorted(filter(None, owners)))

    def _take_over(self, engine: Engine, owners: Iterable[str]) -> None:
        for owner in owners:
            try:
                identity = FileIdentity(engine.lock_file(owner), wait_s=0.0, taken="it is alive")
            except IdentityTakenError:
                continue
            try:
                count = take_over(owner)
            finally:
                identity.release()
            log.warning("train.takeover", executor=owner, workflows=count)


class _Counted:
    """A `TrainFold` that knows how many folds it has under way."""

    def __init__(self, train: TrainFold) -> None:
        self._train = train
        self._changed = threading.Condition()
        self._count = 0

    def __call__(self, run: Path, fold: int, device: str) -> Any:  # noqa: ANN401
        with self._changed:
            self._count += 1
        try:
            return self._train(run, fold, device)
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def wait_until_idle(self, patience_s: float = 60.0) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0, patience_s)


def _run_key(run: Path) -> str:
    """Of a run: the same on every host that sees the folder under this path."""
    return f"run-{hashlib.sha256(str(run).encode()).hexdigest()[:16]}"
