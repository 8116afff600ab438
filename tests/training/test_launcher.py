"""Folds in processes: killed, started again, taken, stopped; and dealt to devices."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.ensemble import DeviceError
from tests.training.tiny_dataset import put_run, recipe
from training.checkpoints import FINAL, LATEST, read_checkpoint
from training.fold import FoldTakenError, locked, train_fold
from training.fold_log import FoldProgress, read_log, read_progress, write_progress
from training.launcher import (
    FoldProcesses,
    LocalLauncher,
    UnknownLauncherError,
    find_launcher,
)
from training.run_command import devices_of, workers_of
from training.run_display import duration, in_words

PATIENCE_S = 300.0
pytestmark = pytest.mark.timeout(PATIENCE_S)


@dataclass(frozen=True)
class Scripted(FoldProcesses):
    """Processes that do what a line of Python says, in place of a fold."""

    script: str = field(default="pass")

    def command(self, run: Path, fold: int, device: str) -> list[str]:
        return [sys.executable, "-c", self.script, str(run), str(fold), device]


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE_S / 2
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_killed_in_mid_epoch_is_started_again_and_the_weights_are_the_same(
    tmp_path: Path,
) -> None:
    one = recipe(epochs=3, iterations_per_epoch=12)
    made = put_run(tmp_path / "killed", one)
    (tmp_path / "whole").mkdir()
    for name in ("recipe.json", "run.json", "dataset"):
        (tmp_path / "whole" / name).symlink_to(tmp_path / "killed" / name)
    folder = tmp_path / "killed" / "fold_0"
    train = FoldProcesses(threading.Event(), workers=1)
    ends: list[FoldProgress] = []
    thread = threading.Thread(
        target=lambda: ends.append(train(tmp_path / "killed", 0, "cpu")), daemon=True
    )
    thread.start()
    wait_until((folder / LATEST).exists)
    first = int((folder / "lock").read_text())
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    kept = read_checkpoint(folder / LATEST)["current_epoch"]
    thread.join(PATIENCE_S / 2)
    assert kept < made.recipe.training.epochs
    assert int((folder / "lock").read_text()) != first
    whole = train_fold(tmp_path / "whole", 0)
    assert [(end.state, end.weights_digest) for end in ends] == [("done", whole)]
    assert read_checkpoint(folder / FINAL)["flairnode"]["weights_digest"] == whole
    assert [line.epoch for line in read_log(folder)] == [0, 1, 2]


def test_a_process_that_always_dies_is_given_up_with_how_it_died(tmp_path: Path) -> None:
    script = "import os; os.write(2, b'the bus is on fire\\n'); os.kill(os.getpid(), 9)"
    end = Scripted(threading.Event(), script=script)(tmp_path, 1, "cpu")
    assert (end.state, end.reason) == ("failed", "process-died")
    assert "ended 4 times in the same epoch, at last by signal 9" in end.explanation
    assert end.explanation.endswith(": the bus is on fire")
    assert read_progress(tmp_path / "fold_1", 1) == end


def test_a_process_that_gets_on_may_die_more_often(tmp_path: Path) -> None:
    # It finishes one epoch each time, and dies: after five it is done.
    script = """
import json, sys, pathlib
path = pathlib.Path(sys.argv[1]) / "fold_0" / "progress.json"
epoch = json.loads(path.read_text())["epoch"] + 1 if path.exists() else 1
state = "done" if epoch == 6 else "training"
path.write_text(json.dumps({"fold": 0, "state": state, "epoch": epoch, "epochs": 6}))
sys.exit(0 if epoch == 6 else 1)
"""
    end = Scripted(threading.Event(), script=script)(tmp_path, 0, "cpu")
    assert (end.state, end.epoch) == ("done", 6)


def test_a_fold_that_says_why_is_not_tried_again(tmp_path: Path) -> None:
    script = """
import json, sys, pathlib
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as file:
    file.write("x")
(folder / "fold_0" / "progress.json").write_text(json.dumps(
    {"fold": 0, "state": "failed", "reason": "out-of-memory", "explanation": "try 1"}))
sys.exit(1)
"""
    end = Scripted(threading.Event(), script=script)(tmp_path, 0, "cpu")
    assert (end.reason, end.explanation) == ("out-of-memory", "try 1")
    assert (tmp_path / "starts").read_text() == "x"


def test_a_run_without_a_dataset_is_told_by_the_fold(tmp_path: Path) -> None:
    end = FoldProcesses(threading.Event())(tmp_path, 0, "cpu")
    assert (end.state, end.reason) == ("failed", "no-dataset")


def test_two_processes_never_train_one_fold(tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    with locked(folder):
        write_progress(folder, FoldProgress(0, "training", epoch=4, epochs=9))
        with pytest.raises(FoldTakenError), locked(folder, wait_s=0.2):
            pass
        end = Scripted(threading.Event(), script="import sys; sys.exit(75)")(tmp_path, 0, "cpu")
        assert end.reason == "fold-taken"
        # What the living process says of itself is left alone.
        assert read_progress(folder, 0).state == "training"
    with locked(folder, wait_s=0.0):
        pass


def test_stopping_ends_the_process_and_is_no_failure(tmp_path: Path) -> None:
    stop = threading.Event()
    script = "import time; time.sleep(60)"
    threading.Timer(0.5, stop.set).start()
    begun = time.monotonic()
    end = Scripted(stop, script=script)(tmp_path, 0, "cpu")
    assert end.state == "stopped"
    assert time.monotonic() - begun < 20


# --- devices --------------------------------------------------------------------------------------


def test_each_device_trains_one_fold_at_a_time_and_no_fold_waits_for_a_busy_one(
    tmp_path: Path,
) -> None:
    lock, busy, seen = threading.Lock(), set[str](), list[tuple[int, str]]()

    def train(run: Path, fold: int, device: str) -> FoldProgress:
        with lock:
            assert device not in busy
            busy.add(device)
            seen.append((fold, device))
        time.sleep(0.6 if fold == 0 else 0.1)
        with lock:
            busy.remove(device)
        return FoldProgress(fold, "done")

    LocalLauncher().launch(tmp_path, range(5), train, ["cuda:0", "cuda:1"], threading.Event())
    assert sorted(fold for fold, _ in seen) == [0, 1, 2, 3, 4]
    slow = next(device for fold, device in seen if fold == 0)
    assert [device for _, device in seen].count(slow) == 1


def test_no_fold_is_begun_after_a_stop(tmp_path: Path) -> None:
    stop, seen = threading.Event(), list[int]()

    def train(run: Path, fold: int, device: str) -> FoldProgress:
        seen.append(fold)
        stop.set()
        return FoldProgress(fold, "stopped")

    LocalLauncher().launch(tmp_path, range(5), train, ["cpu"], stop)
    assert seen == [0]


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    assert devices_of(["cpu"], 3) == ["cpu", "cpu", "cpu"]
    with pytest.raises(DeviceError, match="device cuda:7"):
        devices_of(["cuda:7"], 1)
    with pytest.raises(DeviceError, match="'tpu': it is auto, cpu or cuda:N"):
        devices_of(["tpu"], 1)


def test_batches_are_drawn_ahead_where_a_core_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
    assert workers_of(None, ["cuda:0", "cuda:1"]) == 7
    assert workers_of(None, ["cuda:0"]) == 8
    assert workers_of(None, ["cpu"] * 5) == 1
    assert workers_of(None, ["cpu"] * 16) == 0
    assert workers_of(3, ["cpu"] * 16) == 3


def test_an_unknown_launcher_is_refused_with_those_there_are() -> None:
    assert isinstance(find_launcher("local", None), LocalLauncher)
    with pytest.raises(UnknownLauncherError, match="'slurm': there is local"):
        find_launcher("slurm", None)


# --- words ----------------------------------------------------------------------------------------


def test_time_left_is_told_in_two_units() -> None:
    assert duration(93_784) == "1 d 2 h"
    assert duration(3_900) == "1 h 5 min"
    assert duration(0.2) == "0 s"
    assert duration(None) == "unknown"


def test_a_fold_is_told_in_one_line() -> None:
    now = FoldProgress(
        2, "training", epoch=7, epochs=250, val_dice=0.6123, seconds_left=61, plateau_since=3
    )
    assert in_words(now) == (
        "fold 2: training, epoch 7/250, validation Dice 0.612 (drawn batches, smoothed), "
        "nothing better since epoch 4, 1 min 1 s left"
    )


def test_a_progress_that_is_half_written_reads_as_waiting(tmp_path: Path) -> None:
    write_progress(tmp_path, FoldProgress(0, "training", val_dice=float("nan")))
    assert json.loads((tmp_path / "progress.json").read_text())["val_dice"] is None
    (tmp_path / "progress.json").write_text('{"fold": 0,')
    assert read_progress(tmp_path, 0) == FoldProgress(0, "waiting")
