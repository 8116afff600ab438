"""Limits of one case, on real processes and real memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from node.limits import LimitWatch, family, resident_mb

GROWS = "import time; held = bytearray(200 * 2**20); print('grown', flush=True); time.sleep(60)"


def watch(time_limit_s: float, memory_limit_mb: int, wait_s: float) -> list[str]:
    said: list[str] = []
    one = LimitWatch(time_limit_s, memory_limit_mb, said.append)
    one.start()
    one.join(wait_s)
    one.cancel()
    one.join()
    return said


def test_a_case_within_its_limits_is_left_alone() -> None:
    assert watch(60.0, 100_000, wait_s=0.6) == []


def test_time_is_up_once() -> None:
    assert watch(0.3, 0, wait_s=10.0) == ["time-limit"]


def test_what_a_program_of_ours_holds_counts_as_well() -> None:
    """A skull strip is a process of its own; its 200 MB are of this case."""
    mine = resident_mb(os.getpid())
    limit = int(max(mine, 150)) + 20
    with subprocess.Popen([sys.executable, "-c", GROWS], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in family(os.getpid())
        assert resident_mb(child.pid) > 200
        said = watch(60.0, min(limit, 190) if mine < 150 else 10, wait_s=10.0)
        child.kill()
    assert said == ["memory-limit"]


def test_a_process_that_has_ended_holds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    time.sleep(0.01)
    assert resident_mb(child.pid) == 0.0
