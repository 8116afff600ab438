"""What a worker does with an order, and what it remembers of its own deaths."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.settings import NodeSettings, PipelineSettings, Settings
from dicom.errors import MissingSliceError, Outcome
from node import worker as worker_module
from node.outcome import Order, ResultsFolder
from node.pause import PauseSwitch
from node.worker import Analyser, Attempts, Worker, waiting_for_the_disk

JOB, PACK = "job-1", "5" * 64


def analysed(paths: Sequence[Path], output: Path) -> Any:  # noqa: ANN401  # AnalysisOutcome's shape
    (output / "sr.dcm").write_bytes(b"".join(path.read_bytes() for path in paths))
    entry = {"kind": "sr", "sop_instance_uid": "2.25.1", "path": str(output / "sr.dcm")}
    return SimpleNamespace(
        outcome=Outcome.ANALYSED,
        reason="",
        explanation="",
        outputs=[SimpleNamespace(kind="sr", sop_instance_uid="2.25.1", path=output / "sr.dcm")],
        report={"outputs": [entry]},
    )


def told(paths: Sequence[Path], output: Path, reason: str, explanation: str) -> Any:  # noqa: ANN401
    (output / "note.dcm").write_text(f"{len(paths)} file: {reason}: {explanation}")
    note = {"kind": "note", "sop_instance_uid": "2.25.2", "path": output / "note.dcm"}
    return SimpleNamespace(
        outcome=Outcome.NOT_ANALYSED,
        reason=reason,
        explanation=explanation,
        outputs=[SimpleNamespace(**note)],
        report={"outputs": [{**note, "path": str(note["path"])}]},
    )


@pytest.fixture
def results(tmp_path: Path) -> ResultsFolder:
    (tmp_path / "a.dcm").write_bytes(b"pixels")
    results = ResultsFolder(tmp_path)
    order(results)
    return results


def order(results: ResultsFolder, workflow_id: str = JOB, pack: str = PACK) -> None:
    results.write_order(JOB, Order(workflow_id, {"pack_digest": pack}, ("a.dcm",)))


def make_worker(
    results: ResultsFolder,
    analyse: Callable[[Sequence[Path], Path], Any] = analysed,
    run: str = "run-1",
    time_limit_s: float = 60.0,
) -> Worker:
    settings = Settings(
        node=NodeSettings(data_dir=results.data_dir),
        pipeline=PipelineSettings(time_limit_s=time_limit_s),
    )
    return Worker(settings, Analyser(PACK, research=True, analyse=analyse, tell_why=told), run)


def test_a_result_appears_whole_with_its_outcome(results: ResultsFolder) -> None:
    assert make_worker(results).analyse(JOB) is Outcome.ANALYSED
    found = results.read(JOB)
    assert found is not None
    assert found.research
    assert [one.path.read_bytes() for one in found.objects] == [b"pixels"]
    assert not list(results.folder.glob("*.part"))
    assert not results.attempts(JOB).exists()
    assert results.of(JOB).stat().st_mode & 0o077 == 0
    assert found.objects[0].path.stat().st_mode & 0o077 == 0


def test_a_result_that_is_there_is_not_built_again(results: ResultsFolder) -> None:
    make_worker(results).analyse(JOB)

    def never(_paths: Sequence[Path], _output: Path) -> None:
        raise AssertionError("analysed twice")

    order(results, workflow_id=f"{JOB}.1")  # not even when an operator asks for the job again
    assert make_worker(results, never).analyse(JOB) is Outcome.ANALYSED


def test_leftovers_of_a_crash_do_not_enter_a_result(results: ResultsFolder) -> None:
    part = results.begin(JOB)
    (part / "half.dcm").write_bytes(b"half")
    make_worker(results).analyse(JOB)
    assert sorted(path.name for path in results.of(JOB).iterdir()) == ["outcome.json", "sr.dcm"]


def test_a_refusal_keeps_its_reason_and_no_object(results: ResultsFolder) -> None:
    def refuse(_paths: Sequence[Path], output: Path) -> None:
        (output / "seg.dcm").write_bytes(b"half a result")
        raise MissingSliceError("a gap of 13.0 mm among gaps of 6.5 mm")

    assert make_worker(results, refuse).analyse(JOB) is Outcome.NOT_ANALYSED
    found = results.read(JOB)
    assert found is not None
    assert (found.reason, found.objects) == ("missing-slice", ())
    assert [path.name for path in results.of(JOB).iterdir()] == ["outcome.json"]


def test_what_we_did_not_expect_fails_the_case_without_quoting_it(results: ResultsFolder) -> None:
    def fail(_paths: Sequence[Path], _output: Path) -> None:
        raise KeyError("Nobody^Knows")

    assert make_worker(results, fail).analyse(JOB) is Outcome.FAILED
    found = results.read(JOB)
    assert found is not None
    assert found.reason == "internal-error"
    assert "Nobody" not in (results.of(JOB) / "outcome.json").read_text()


def test_a_failed_case_is_done_again_only_when_an_operator_asks(results: ResultsFolder) -> None:
    def fail(_paths: Sequence[Path], _output: Path) -> None:
        raise KeyError

    make_worker(results, fail).analyse(JOB)
    assert make_worker(results).analyse(JOB) is Outcome.FAILED
    order(results, workflow_id=f"{JOB}.1")
    assert make_worker(results).analyse(JOB) is Outcome.ANALYSED
    assert sorted(path.name for path in results.of(JOB).iterdir()) == ["outcome.json", "sr.dcm"]


def test_a_job_of_another_model_is_held_not_answered_with_ours(results: ResultsFolder) -> None:
    order(results, pack="6" * 64)
    assert make_worker(results).analyse(JOB) is Outcome.HELD
    found = results.read(JOB)
    assert found is not None
    assert found.reason == "model-changed"


def order_a_note(results: ResultsFolder, pack: str = PACK) -> None:
    refusal = {"reason": "missing-slice", "explanation": "a gap"}
    results.write_order(JOB, Order(JOB, {"pack_digest": pack, "refusal": refusal}, ("a.dcm",)))


@pytest.mark.parametrize("pack", [PACK, "6" * 64])  # whichever model: the reason is the same
def test_an_order_with_a_refusal_is_told_and_not_analysed(
    results: ResultsFolder, pack: str
) -> None:
    def never(_paths: Sequence[Path], _output: Path) -> None:
        raise AssertionError("analysed")

    order_a_note(results, pack)
    assert make_worker(results, never).analyse(JOB) is Outcome.NOT_ANALYSED
    found = results.read(JOB)
    assert found is not None
    assert (found.reason, found.explanation) == ("missing-slice", "a gap")
    assert [one.kind for one in found.objects] == ["note"]
    assert found.objects[0].path.read_text() == "1 file: missing-slice: a gap"


def test_a_note_that_is_there_is_not_made_again(results: ResultsFolder) -> None:
    order_a_note(results)
    make_worker(results).analyse(JOB)
    before = (results.of(JOB) / "note.dcm").stat().st_mtime_ns
    make_worker(results, run="run-2").analyse(JOB)
    assert (results.of(JOB) / "note.dcm").stat().st_mtime_ns == before


def die(results: ResultsFolder, times: int, run: str, workflow_id: str = JOB) -> None:
    for _ in range(times):
        Attempts(results.attempts(JOB), workflow_id, run).begin()


def test_three_deaths_of_the_worker_end_the_case(results: ResultsFolder) -> None:
    die(results, 2, "run-1")
    assert make_worker(results).analyse(JOB) is Outcome.ANALYSED
    results.remove(JOB)
    order(results)
    die(results, 3, "run-1")
    assert make_worker(results).analyse(JOB) is Outcome.FAILED
    found = results.read(JOB)
    assert found is not None
    assert found.reason == "poison"


def test_a_case_is_not_blamed_for_the_end_of_the_whole_node(results: ResultsFolder) -> None:
    for number in range(10):  # ten restarts of the service in the middle of the same case
        die(results, 1, f"run-{number}")
    assert make_worker(results, run="run-10").analyse(JOB) is Outcome.ANALYSED


def test_deaths_of_earlier_runs_of_the_node_count_but_for_the_last_of_each(
    results: ResultsFolder,
) -> None:
    die(results, 3, "run-1")  # two deaths, and perhaps the node's own
    die(results, 2, "run-2")  # one death, and perhaps the node's own
    assert Attempts(results.attempts(JOB), JOB, "run-3").deaths() == 3


def test_a_retry_by_an_operator_starts_the_count_anew(results: ResultsFolder) -> None:
    die(results, 3, "run-1")
    order(results, workflow_id=f"{JOB}.1")
    assert make_worker(results).analyse(JOB) is Outcome.ANALYSED


def test_an_orderly_end_takes_the_attempt_back(results: ResultsFolder) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(paths: Sequence[Path], output: Path) -> Any:  # noqa: ANN401
        begun.set()
        go.wait(30)
        return analysed(paths, output)

    worker = make_worker(results, slow)
    thread = threading.Thread(target=worker.analyse, args=(JOB,))
    thread.start()
    begun.wait(30)
    assert Attempts(results.attempts(JOB), JOB, "run-1").deaths() == 1
    worker.leave()
    assert Attempts(results.attempts(JOB), JOB, "run-1").deaths() == 0
    go.set()
    thread.join()


class Exited(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The status of every end of the process, which does not happen."""
    statuses: list[int] = []

    def exit_instead(code: int) -> None:
        statuses.append(code)
        if threading.current_thread() is threading.main_thread():
            raise Exited

    monkeypatch.setattr(worker_module.os, "_exit", exit_instead)
    return statuses


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: you tried")]
)
def test_a_case_beyond_its_memory_is_tried_in_a_new_worker_and_then_fails(
    results: ResultsFolder, exits: list[int], error: Exception
) -> None:
    def fail(_paths: Sequence[Path], _output: Path) -> None:
        raise error

    for run in ("run-1", "run-2"):
        with pytest.raises(Exited):
            make_worker(results, fail, run=run).analyse(JOB)
        assert results.read(JOB) is None
    assert exits == [125, 125]
    assert make_worker(results, fail, run="run-2").analyse(JOB) is Outcome.FAILED
    found = results.read(JOB)
    assert found is not None
    assert found.reason == "memory-limit"
    assert "6144 MB" in found.explanation
    order(results, workflow_id=f"{JOB}.1")  # an operator raised the limit, and asks again
    assert make_worker(results).analyse(JOB) is Outcome.ANALYSED


def test_a_case_beyond_its_time_is_tried_in_a_new_worker_and_then_fails(
    results: ResultsFolder, exits: list[int]
) -> None:
    def hang(paths: Sequence[Path], output: Path) -> Any:  # noqa: ANN401
        seen = len(exits)
        while len(exits) == seen:
            time.sleep(0.01)
        raise Exited  # here the process has ended

    for _ in range(2):
        with pytest.raises(Exited):
            make_worker(results, hang, time_limit_s=0.05).analyse(JOB)
    assert exits == [124, 124]
    assert make_worker(results, hang, time_limit_s=0.05).analyse(JOB) is Outcome.FAILED
    found = results.read(JOB)
    assert found is not None
    assert (found.reason, found.explanation) == (
        "time-limit",
        "it took longer than pipeline.time_limit_s (0.05 s), in each of 2 attempts",
    )


def test_one_overrun_and_a_death_are_no_poison_yet(
    results: ResultsFolder, exits: list[int]
) -> None:
    die(results, 1, "run-1")
    Attempts(results.attempts(JOB), JOB, "run-1").overran("time-limit")
    die(results, 1, "run-1")
    attempts = Attempts(results.attempts(JOB), JOB, "run-1")
    assert (attempts.deaths(), attempts.overruns()) == (2, ["time-limit"])
    assert make_worker(results).analyse(JOB) is Outcome.ANALYSED
    assert exits == []


def test_a_worker_whose_device_failed_ends_once_the_result_is_on_disk(
    results: ResultsFolder, exits: list[int]
) -> None:
    worker = make_worker(results)
    worn = Analyser(PACK, research=True, analyse=analysed, tell_why=told, worn=lambda: True)
    worker._analyser = worn
    with pytest.raises(Exited):
        worker.analyse(JOB)
    assert exits == [75]
    assert make_worker(results, run="run-2").analyse(JOB) is Outcome.ANALYSED
    assert not results.attempts(JOB).exists(), "it is nothing to blame the case for"


def test_while_paused_a_case_waits_unbegun_and_then_goes_on(results: ResultsFolder) -> None:
    switch = PauseSwitch(results.data_dir)
    assert switch.turn_on("somebody")
    thread = threading.Thread(target=make_worker(results).analyse, args=(JOB,))
    thread.start()
    time.sleep(0.3)
    assert results.read(JOB) is None
    assert not results.attempts(JOB).exists()
    assert switch.turn_off()
    thread.join(30)
    assert results.read(JOB) is not None


DIE_WITH_PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "import os, sys, time\\n"
    "from node.worker import die_with\\n"
    "die_with(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)",
    str(os.getpid())], stdout=sys.stdout)
time.sleep(600)
"""


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DIE_WITH_PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # The pipe ends when the last of the two has ended.
        assert parent.stdout.read() == ""
    deadline = time.monotonic() + 10.0
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_worker_whose_parent_is_gone_already_ends(tmp_path: Path) -> None:
    code = "from node.worker import die_with; die_with(1 << 30); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_memory_beyond_the_limit_fails_inside_the_process(tmp_path: Path) -> None:
    code = (
        "from config.settings import PipelineSettings, Settings\n"
        "from node.worker import _limit_memory\n"
        "_limit_memory(Settings(pipeline=PipelineSettings(memory_limit_mb=512)))\n"
        "try:\n    bytearray(2**30)\nexcept MemoryError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


# --- the disk -------------------------------------------------------------------------------------


def test_a_case_waits_for_a_full_disk_and_is_not_blamed_for_it(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, full, pauses = make_worker(results), 6, list[float]()
    real_finish = ResultsFolder.finish

    def finish(self: ResultsFolder, *arguments: Any) -> None:  # noqa: ANN401
        if len(pauses) < full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_finish(self, *arguments)

    monkeypatch.setattr(ResultsFolder, "finish", finish)
    analyse = waiting_for_the_disk(worker.analyse, pause=pauses.append)
    assert analyse(JOB) is Outcome.ANALYSED  # after more failures than a case may kill workers
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_disk_that_fails_within_the_analysis_is_waited_for_as_well(
    results: ResultsFolder,
) -> None:
    tries = iter([errno.ENOSPC, errno.EIO])

    def fail(paths: Sequence[Path], output: Path) -> Any:  # noqa: ANN401
        if (number := next(tries, None)) is not None:
            raise OSError(number, "the disk")
        return analysed(paths, output)

    analyse = waiting_for_the_disk(make_worker(results, fail).analyse, pause=lambda _: None)
    assert analyse(JOB) is Outcome.ANALYSED


def test_a_bad_sector_under_one_case_does_not_stop_the_others(results: ResultsFolder) -> None:
    pauses: list[float] = []

    def fail(_paths: Sequence[Path], _output: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    analyse = waiting_for_the_disk(make_worker(results, fail).analyse, pause=pauses.append)
    with pytest.raises(OSError, match="Input/output"):
        analyse(JOB)
    assert 240 < sum(pauses) < 400


def test_a_file_that_is_gone_is_the_cases_own_fault(results: ResultsFolder) -> None:
    (results.data_dir / "a.dcm").unlink()
    analyse = waiting_for_the_disk(make_worker(results).analyse, pause=lambda _: None)
    assert analyse(JOB) is Outcome.FAILED
