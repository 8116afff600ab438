"""The adapter to DBOS: what SQLite keeps, who may be which executor, what an id means."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos import DBOS

from config.settings import EngineSettings, NodeSettings, Settings
from node.engine import (
    Engine,
    FileIdentity,
    IdentityTakenError,
    WorkQueue,
    advisory_key,
    set_damaged_aside,
)
from node.engine import sqlite_engine as make_sqlite_engine

QUEUE = WorkQueue("unit", worker_concurrency=1)
IGNORED = WorkQueue("ignored", worker_concurrency=1)
ran: list[str] = []
gate = threading.Event()


@DBOS.workflow(name="unit-note")
def note(key: str) -> str:
    ran.append(key)
    return key


@DBOS.workflow(name="unit-wait")
def wait(key: str) -> str:
    gate.wait(30)
    return note_step(key)


@DBOS.step(name="unit-note-step")
def note_step(key: str) -> str:
    ran.append(key)
    return key


def settings_in(folder: Path) -> Settings:
    return Settings(node=NodeSettings(data_dir=folder), engine=EngineSettings(poll_s=0.05))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    ran.clear()
    gate.clear()
    engine = Engine(settings_in(tmp_path), "unit", "version-1")
    engine.launch([QUEUE], know=[IGNORED])
    yield engine
    gate.set()
    engine.destroy()


def test_a_commit_is_on_disk_before_it_is_believed(tmp_path: Path) -> None:
    engine = make_sqlite_engine(tmp_path / "engine.sqlite")
    with engine.connect() as connection:
        pragmas = {
            name: connection.execute(sa.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    engine.dispose()
    full = 2
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": full,
        "busy_timeout": 30_000,
        "foreign_keys": 1,
    }


def test_a_damaged_database_is_set_aside_and_a_sound_one_is_left(tmp_path: Path) -> None:
    path = tmp_path / "engine.sqlite"
    assert not set_damaged_aside(path)  # there is none yet
    engine = make_sqlite_engine(path)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE workflows (id TEXT)"))
    engine.dispose()
    assert not set_damaged_aside(path)
    content = path.read_bytes()
    path.write_bytes(b"Z" * len(content))
    assert set_damaged_aside(path)
    assert not path.exists()
    (kept,) = tmp_path.glob("engine.*.damaged.sqlite")
    assert kept.read_bytes() == b"Z" * len(content)


def test_the_database_is_readable_by_its_owner_alone(engine: Engine, tmp_path: Path) -> None:
    engine.enqueue(QUEUE.name, "k", 10, note, "k").get_result(polling_interval_sec=0.05)
    files = list(tmp_path.glob("engine.sqlite*"))
    assert len(files) >= 2  # the write-ahead log too
    assert not any(path.stat().st_mode & 0o077 for path in files)


def test_the_same_id_once_more_runs_nothing(engine: Engine) -> None:
    for _ in range(3):
        handle = engine.enqueue(QUEUE.name, "once", 10, note, "once")
        assert handle.get_result(polling_interval_sec=0.05) == "once"
    assert ran == ["once"]


def test_a_forgotten_id_runs_again(engine: Engine) -> None:
    engine.enqueue(QUEUE.name, "again", 10, note, "again").get_result(polling_interval_sec=0.05)
    assert engine.states("again") == {"again": "SUCCESS"}
    engine.forget(["again"])
    engine.enqueue(QUEUE.name, "again", 10, note, "again").get_result(polling_interval_sec=0.05)
    assert ran == ["again", "again"]


def test_a_lower_priority_number_runs_first(engine: Engine) -> None:
    engine.enqueue(QUEUE.name, "blocker", 1, wait, "blocker")
    while engine.states("blocker") != {"blocker": "PENDING"}:
        time.sleep(0.02)
    handles = [
        engine.enqueue(QUEUE.name, key, priority, note, key)
        for key, priority in (("routine", 10), ("urgent", 5))
    ]
    gate.set()
    for handle in handles:
        handle.get_result(polling_interval_sec=0.05)
    assert ran == ["blocker", "urgent", "routine"]


def test_work_of_another_version_is_found_and_forgotten_not_left_waiting(engine: Engine) -> None:
    engine.enqueue(IGNORED.name, "old", 10, note, "old")
    with sqlite3.connect(str(engine._sqlite.url.database)) as connection:  # type: ignore[union-attr]
        connection.execute("UPDATE workflow_status SET application_version = 'version-0'")
    connection.close()
    assert engine.active() == ["old"]
    assert engine.forget_other_versions() == 1
    assert engine.active() == []


def test_running_work_of_a_worker_that_was_configured_away_is_given_back(engine: Engine) -> None:
    engine.enqueue(QUEUE.name, "mine", 10, wait, "mine")
    while engine.states("mine") != {"mine": "PENDING"}:
        time.sleep(0.02)
    assert list(engine.running(QUEUE.name)) == ["mine"]
    assert engine.forget_strangers(QUEUE.name, {"unit"}) == []
    assert engine.forget_strangers(QUEUE.name, {"worker-0"}) == ["mine"]


def test_nothing_in_the_database_is_pickled(engine: Engine, tmp_path: Path) -> None:
    engine.enqueue(QUEUE.name, "json", 10, note, "json").get_result(polling_interval_sec=0.05)
    connection = sqlite3.connect(tmp_path / "engine.sqlite")
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert "portable_json" in dump
    assert '{"namedArgs":{},"positionalArgs":["json"]}' in dump
    assert "pickle" not in dump


def test_old_history_is_deleted_and_work_is_not(engine: Engine) -> None:
    engine.enqueue(QUEUE.name, "done", 10, note, "done").get_result(polling_interval_sec=0.05)
    engine.enqueue(IGNORED.name, "owed", 10, note, "owed")
    assert engine.forget_finished_before(time.time() - 60) == 0
    assert engine.forget_finished_before(time.time() + 60) == 1
    assert engine.states("") == {"owed": "ENQUEUED"}


def test_a_living_process_keeps_its_identity_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    path = tmp_path / "service.lock"
    code = (
        "import sys, time; from pathlib import Path; from node.engine import FileIdentity\n"
        f"lock = FileIdentity(Path({str(path)!r}), 0, ''); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(IdentityTakenError, match=f"a node runs here .*process {other.pid}"):
            FileIdentity(path, wait_s=0.1, taken="a node runs here")
        other.kill()
    FileIdentity(path, wait_s=5.0, taken="a node runs here").release()


def test_a_second_executor_of_one_name_is_refused(engine: Engine, tmp_path: Path) -> None:
    assert engine.executor_id == "unit"
    with pytest.raises(IdentityTakenError, match=r"executor 'unit'.*is running already"):
        FileIdentity(
            tmp_path / "engine.unit.lock",
            wait_s=0.0,
            taken=f"the executor 'unit' of {tmp_path} is running already",
        )


def test_a_child_process_does_not_prolong_the_lock(tmp_path: Path) -> None:
    lock = FileIdentity(tmp_path / "lock", 0.0, "")
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        lock.release()
        FileIdentity(tmp_path / "lock", 0.0, "taken").release()
        child.kill()


def test_advisory_keys_are_signed_64_bit_and_differ() -> None:
    keys = {advisory_key(f"host-worker-{index}") for index in range(1000)}
    assert len(keys) == 1000
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert os.environ.get("DBOS__APPVERSION") is None  # it would override the pinned version
