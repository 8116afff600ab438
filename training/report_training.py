"""How the folds were trained: the paper's figure 3 and its table 4, of this pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from training.content import Block, Cell, Column, Plot, Section, Table, Words, number
from training.drawing import Role
from training.plots import Curve, loss_plot
from training.report_words import plural
from training.statistics import mean
from training.training_log import FoldLog

LOSSES: Final[tuple[tuple[str, str, Role], ...]] = (
    ("train_loss", "training", "one"),
    ("train_loss_augmented", "training, augmented", "three"),
    ("val_loss", "validation", "two"),
)


def training(folds: Sequence[FoldLog]) -> Section:
    """Curves and table of the folds."""
    blocks: list[Block] = [
        Words(
            f"{plural(len(folds), 'fold')}. The Dice of a fold is of the patients that it was not "
            "trained on, as the trainer measured it while it trained. It is no figure of the pack: "
            "those stand in the main figures."
        ),
        _table(folds),
    ]
    for fold in folds:
        curves = _curves(fold)
        if curves:
            epochs = len(fold.epochs)
            missing = [words for name, words, _ in LOSSES if name not in {c[0] for c in curves}]
            lacking = f" Not measured: {', '.join(missing)}." if missing else ""
            blocks.append(
                Plot(
                    loss_plot([curve for _, curve in curves], f"Losses of fold {fold.number}"),
                    f"Fold {fold.number}: loss of {plural(epochs, 'epoch')}.{lacking}",
                )
            )
        else:
            blocks.append(Words(f"Fold {fold.number}: no loss was measured: no curve."))
    return Section("Training", tuple(blocks))


def _curves(fold: FoldLog) -> list[tuple[str, Curve]]:
    found = []
    for name, words, role in LOSSES:
        values = tuple((float(one.number), getattr(one, name)) for one in fold.epochs)
        # An epoch between two that were measured is no gap: the loss is taken every few epochs.
        measured = tuple(one for one in values if one[1] is not None)
        if measured:
            found.append((name, Curve(words, role, measured)))
    return found


def _table(folds: Sequence[FoldLog]) -> Table:
    last = mean([fold.last.val_dice if fold.last else None for fold in folds])
    best = mean([fold.best.val_dice if fold.best else None for fold in folds])
    lines: list[tuple[Cell | str, ...]] = [
        (
            str(fold.number),
            Cell(str(len(fold.epochs))),
            Cell(number(fold.last.val_dice if fold.last else None)),
            Cell(number(fold.best.val_dice if fold.best else None)),
            Cell(str(fold.best.number) if fold.best else "-"),
            Cell(number(fold.last.val_loss if fold.last else None)),
            Cell(number(fold.hours, 2)),
        )
        for fold in folds
    ]
    lines.append(
        (
            f"mean ± SD of {plural(last.n, 'fold')}",
            Cell("-"),
            Cell(f"{number(last.value)} ± {number(last.sd)}"),
            Cell(f"{number(best.value)} ± {number(best.sd)}"),
            Cell("-"),
            Cell("-"),
            Cell("-"),
        )
    )
    return Table(
        (
            Column("fold", number=False),
            Column("epochs"),
            Column("Dice, last"),
            Column("Dice, best"),
            Column("best epoch"),
            Column("validation loss, last"),
            Column("hours"),
        ),
        tuple(lines),
        "SD with n - 1, of the folds' values. Folds share training data: it is no standard error. "
        "The best epoch was chosen by the value that stands there, so that value is too good.",
    )


def as_json(folds: Sequence[FoldLog]) -> list[dict[str, Any]]:
    """Every epoch of every fold."""
    return [
        {
            "fold": fold.number,
            "epochs": [{name: getattr(one, name) for name in one.__slots__} for one in fold.epochs],
        }
        for fold in folds
    ]
