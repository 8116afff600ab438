"""What a fold tells while it is trained: a line per epoch, and where it is.

    RUN/fold_K/log.csv         a line per finished epoch
    RUN/fold_K/progress.json   where it is now; rewritten every few seconds

Both are whole or not there. The lines live in the checkpoint too, so that a fold that goes on after
a stop has no line twice and none of an epoch that was lost.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from training.whole_files import write_text

LOG, PROGRESS = "log.csv", "progress.json"
SMOOTHING = 0.9
"""Of the validation Dice: nnU-Net's running mean, by which it chooses `checkpoint_best`."""
PROGRESS_EVERY_S = 3.0

State = Literal["waiting", "training", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class EpochLine:
    """Means over one epoch. NaN: nothing to tell, an empty field in the file."""

    epoch: int
    """The first is 0."""
    seconds: float
    learning_rate: float
    """At the end of the epoch."""
    train_loss: float
    """Of training cases without augmentation: the paper's figure 3 shows both."""
    train_loss_augmented: float
    """Of the batches that the weights were moved by."""
    val_loss: float
    val_dice: float
    """Of all drawn validation batches together, many of whose images hold a lesion for certain:
    it shows whether training goes on, and is no validation of the fold."""


@dataclass(frozen=True, slots=True)
class FoldProgress:
    """Where a fold is. No name of a machine, no path."""

    fold: int
    state: State
    epoch: int = 0
    """Finished ones."""
    epochs: int = 0
    iteration: int = 0
    """In this epoch."""
    iterations: int = 0
    seconds_left: float | None = None
    """By the pace of the last epochs."""
    val_dice: float | None = None
    """Smoothed over epochs."""
    best_val_dice: float | None = None
    best_epoch: int | None = None
    plateau_since: int | None = None
    """The epoch since which nothing got better, once that is long. Nothing is stopped."""
    waiting_share: float | None = None
    """Of the time of this session: waiting for batches."""
    reason: str = ""
    explanation: str = ""
    weights_digest: str = ""
    """Once it is done."""


def write_log(folder: Path, lines: Iterable[EpochLine]) -> None:
    """Write the log of a fold anew."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(EpochLine)])
    for line in lines:
        table.writerow([_written(value) for value in asdict(line).values()])
    write_text(folder / LOG, text.getvalue())


def read_log(folder: Path) -> list[EpochLine]:
    """The lines of a fold; none where there is no log yet."""
    path = folder / LOG
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [line_of(row) for row in csv.DictReader(file)]


def line_of(row: Mapping[str, Any]) -> EpochLine:
    """A line as it was written: to the log or to a checkpoint."""
    values = {
        field.name: float("nan") if row[field.name] in ("", None) else float(row[field.name])
        for field in fields(EpochLine)
        if field.name != "epoch"
    }
    return EpochLine(epoch=int(row["epoch"]), **values)


def write_progress(folder: Path, progress: FoldProgress) -> None:
    """Replace the progress of a fold. NaN is no JSON and becomes null."""
    content = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(progress).items()
    }
    write_text(folder / PROGRESS, json.dumps(content) + "\n")


def read_progress(folder: Path, fold: int) -> FoldProgress:
    """Where a fold is; waiting, if nothing was written yet or it cannot be read."""
    try:
        content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return FoldProgress(**content)
    except (OSError, ValueError, TypeError):
        return FoldProgress(fold, "waiting")


def smoothed(lines: Iterable[EpochLine]) -> list[float]:
    """The validation Dice of each epoch, smoothed as nnU-Net does; epochs without one repeat."""
    out: list[float] = []
    for line in lines:
        before = out[-1] if out else math.nan
        if math.isnan(line.val_dice):
            out.append(before)
        elif math.isnan(before):
            out.append(line.val_dice)
        else:
            out.append(SMOOTHING * before + (1.0 - SMOOTHING) * line.val_dice)
    return out


def best_epoch(lines: Iterable[EpochLine]) -> int | None:
    """The first epoch with the highest smoothed validation Dice."""
    values = smoothed(lines)
    known = [(value, -epoch) for epoch, value in enumerate(values) if not math.isnan(value)]
    return -max(known)[1] if known else None


def plateau_since(lines: Iterable[EpochLine], plateau_epochs: int) -> int | None:
    """The epoch after which nothing got better, if that is `plateau_epochs` ago or more."""
    kept = list(lines)
    best = best_epoch(kept)
    if best is None or len(kept) - 1 - best < plateau_epochs:
        return None
    return best


class Clock:
    """Time left by the pace so far, and when to write the next progress."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._written = -math.inf
        self.waited_s = 0.0

    def due(self) -> bool:
        """Time for another progress?"""
        now = time.monotonic()
        if now - self._written < PROGRESS_EVERY_S:
            return False
        self._written = now
        return True

    def seconds(self) -> float:
        """Since this session began."""
        return time.monotonic() - self._begun

    def waiting_share(self) -> float:
        """Of this session's time: waiting for batches."""
        return self.waited_s / max(self.seconds(), 1e-9)


def _written(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"
