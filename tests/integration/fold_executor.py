"""One host of a training run, for `test_fold_launcher.py`: `CONFIG INDEX launch|work RUN`.

Its folds are processes that take the real lock, count epochs slowly and go on where they were.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from node.launcher import DbosLauncher
from training.fold import die_with, fold_folder, locked
from training.fold_log import FoldProgress, read_progress, write_progress
from training.launcher import FoldProcesses
from training.run_command import stopped_by_signals

EPOCHS, EPOCH_S, FOLDS = 8, 0.3, (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Counting(FoldProcesses):
    """Folds that count."""

    def command(self, run: Path, fold: int, device: str) -> list[str]:
        parent = str(os.getpid())
        return [sys.executable, __file__, "count", str(run), str(fold), sys.argv[2], parent]


def count(run: Path, fold: int, host: str) -> None:
    folder = fold_folder(run, fold)
    with locked(folder):
        now = replace(read_progress(folder, fold), state="training", epochs=EPOCHS)
        while now.epoch < EPOCHS:
            time.sleep(EPOCH_S)
            with (folder / "epochs").open("a") as file:
                file.write(f"{now.epoch} {host}\n")
            now = FoldProgress(fold, "training", epoch=now.epoch + 1, epochs=EPOCHS)
            write_progress(folder, now)
        write_progress(folder, replace(now, state="done"))


def main() -> None:
    config, index, action, run = sys.argv[1:5]
    launcher = DbosLauncher(Path(config), int(index))
    with stopped_by_signals() as stop:
        train = Counting(stop)
        if action == "launch":
            launcher.launch(Path(run), FOLDS, train, ["cpu"], stop)
        else:
            launcher.work(train, ["cpu"], stop)


if __name__ == "__main__":
    if sys.argv[1] == "count":
        die_with(int(sys.argv[5]))
        count(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
