"""What the trainer wrote of its folds: `RUN/fold_K/log.csv`, a line for each epoch.

And, where the pack was measured, `RUN/validation/fold_K/cases/*.json`: each member alone on the
patients it was not trained on, rows as `training.validate` writes them.

Columns: `epoch,seconds,learning_rate,train_loss,train_loss_augmented,val_loss,val_dice`. An empty
cell was not measured then. `train_loss` is of the slices as they are, `train_loss_augmented` of
what the network was fed: the two of the paper's figure 3.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

from dicom.errors import EmptyInputError, UnreadableError
from training.validate import MEASURES_REVISION, ROWS, Row, slim

LOG: Final = "log.csv"
COLUMNS: Final = (
    "epoch",
    "seconds",
    "learning_rate",
    "train_loss",
    "train_loss_augmented",
    "val_loss",
    "val_dice",
)
_FOLD = re.compile(r"fold_(\d+)")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line. None: not measured."""

    number: int
    seconds: float | None
    learning_rate: float | None
    train_loss: float | None
    train_loss_augmented: float | None
    val_loss: float | None
    val_dice: float | None


@dataclass(frozen=True, slots=True)
class FoldLog:
    """The epochs of one fold, in order."""

    number: int
    epochs: tuple[Epoch, ...]
    rows: tuple[Row, ...] = ()
    """Of its own patients, by its member alone; empty where it was not measured."""

    @property
    def best(self) -> Epoch | None:
        """The epoch of the highest Dice on the fold's own patients."""
        measured = [one for one in self.epochs if one.val_dice is not None]
        return max(measured, key=lambda one: (one.val_dice or 0.0, -one.number), default=None)

    @property
    def last(self) -> Epoch | None:
        """The last epoch whose Dice was measured: of the weights that go into a pack."""
        return next((one for one in reversed(self.epochs) if one.val_dice is not None), None)

    @property
    def hours(self) -> float | None:
        """Of all epochs whose time was measured."""
        known = [one.seconds for one in self.epochs if one.seconds is not None]
        return sum(known) / 3600 if known else None


def read_training(run: Path) -> tuple[FoldLog, ...]:
    """The logs of all folds that have one, in the order of their numbers.

    Raises:
        EmptyInputError: None has.
        UnreadableError: A log lacks a column, or holds something that is no number.
    """
    found = [
        (int(match[1]), path)
        for path in sorted(run.glob(f"fold_*/{LOG}"))
        if (match := _FOLD.fullmatch(path.parent.name))
    ]
    if not found:
        raise EmptyInputError(f"{run} holds no fold_K/{LOG}: give the folder of a training run")
    return tuple(
        FoldLog(number, tuple(_epochs(path)), _rows(run / "validation" / f"fold_{number}"))
        for number, path in sorted(found)
    )


def _rows(folder: Path) -> tuple[Row, ...]:
    """The measured cases of a fold; what is of other measures than ours is left out."""
    rows = []
    for path in sorted((folder / ROWS).glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UnreadableError(f"{folder.name}/{path.name} is no JSON") from error
        if row.get("measures_revision") == MEASURES_REVISION:
            rows.append(slim(row))
    return tuple(rows)


def _epochs(path: Path) -> Sequence[Epoch]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    epochs: dict[int, Epoch] = {}
    for number, line in enumerate(lines, 2):
        where = f"{path.parent.name}/{LOG}, line {number}"
        if missing := [name for name in COLUMNS if line.get(name) is None]:
            if number == len(lines) + 1:
                break  # the trainer is writing it
            raise UnreadableError(f"{where}: no {', '.join(missing)}")
        try:
            epoch = int(line["epoch"])
            values = [_number(line[name]) for name in COLUMNS[1:]]
        except ValueError as error:
            raise UnreadableError(f"{where}: {error}") from error
        epochs[epoch] = Epoch(epoch, *values)  # one that was done again after a stop replaces it
    return [epochs[number] for number in sorted(epochs)]


def _number(cell: str) -> float | None:
    """None for an empty cell, and for NaN: a loss that is none is a gap in the curve."""
    if not cell.strip():
        return None
    value = float(cell)
    return value if isfinite(value) else None
