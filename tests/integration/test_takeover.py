"""Contract of the one private call of DBOS: a dead executor's work goes on elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from postgres import postgres, programs

from node.engine import IdentityTakenError, PostgresIdentity

PATIENCE_S = 120.0
pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgres(folder) as address:
        yield address


@contextmanager
def executor(url: str, name: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("executor.py")
    with subprocess.Popen(
        [sys.executable, str(script), url, name, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for_lines(path: Path, count: int) -> list[str]:
    deadline = time.monotonic() + PATIENCE_S
    while len(found := lines(path)) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_the_work_of_a_killed_executor_is_finished_by_another_one(url: str, tmp_path: Path) -> None:
    keys = [f"case-{number}" for number in range(3)]
    with executor(url, "first", tmp_path) as first:
        assert first.stdin is not None
        first.stdin.write("".join(f"{key}\n" for key in keys))
        first.stdin.flush()
        begun = wait_for_lines(tmp_path / "begun", 3)
        assert {line.split()[1] for line in begun} == {"first"}
        with executor(url, "second", tmp_path) as second:
            time.sleep(5.0)  # two looks and more
            assert not lines(tmp_path / "finished")
            assert second.poll() is None
            first.kill()
            first.wait()
            (tmp_path / "go").touch()
            finished = wait_for_lines(tmp_path / "finished", 3)
            time.sleep(1.0)
            # What `first` had recorded is not done again; the rest is done once, by `second`.
            assert sorted(finished) == [f"{key} second" for key in keys]
            assert len(lines(tmp_path / "finished")) == 3
            assert len(lines(tmp_path / "begun")) == 3


def test_a_living_executors_name_is_taken_and_a_dead_ones_is_free(url: str) -> None:
    held = PostgresIdentity(url, "host-worker-0", wait_s=0.0)
    with pytest.raises(IdentityTakenError, match="host-worker-0"):
        PostgresIdentity(url, "host-worker-0", wait_s=0.1)
    held.check()
    held.release()
    again = PostgresIdentity(url, "host-worker-0", wait_s=5.0)
    again.release()


def test_a_lost_session_is_noticed(url: str) -> None:
    held = PostgresIdentity(url, "host-worker-1", wait_s=0.0)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    with pytest.raises(psycopg.OperationalError):
        held.check()
    held.release()


def test_an_executor_that_lost_its_identity_ends_itself(url: str, tmp_path: Path) -> None:
    with executor(url, "third", tmp_path) as third:
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            )
        assert third.wait(PATIENCE_S) == 75
