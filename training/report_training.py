"""How the folds were trained: the paper's figure 3 and its table 4, of this pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from training.cohort_figures import MEASURES, analysed
from training.content import Block, Cell, Column, Plot, Section, Table, Words, number
from training.drawing import Role
from training.plots import Curve, loss_plot
from training.report_words import label_and_unit, plural
from training.statistics import Mean, mean
from training.training_log import FoldLog

LOSSES: Final[tuple[tuple[str, str, Role], ...]] = (
    ("train_loss", "training", "one"),
    ("train_loss_augmented", "training, augmented", "three"),
    ("val_loss", "validation", "two"),
)


def training(folds: Sequence[FoldLog]) -> Section:
    """Curves and table of the folds."""
    blocks: list[Block] = []
    if any(fold.rows for fold in folds):
        blocks += [
            Words(
                "Each member alone on the patients that it was not trained on, through the node's "
                "pipeline: the paper's table of folds. It chose the recipe, so it is no test of "
                "the pack; that is the test set's, in the main figures."
            ),
            _validated(folds),
        ]
    else:
        blocks.append(
            Words(
                "The folds were not measured on their own patients (flairnode train pack does "
                "it): there is no table of folds, only the course of training."
            )
        )
    blocks.append(_table(folds))
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


def _validated(folds: Sequence[FoldLog]) -> Table:
    """The paper's table 4: of the members, one by one."""
    measures = ("dsc", "ppv", "sensitivity", "lesion_f1", "hd95_mm")
    means = {name: [_mean_of(fold, name) for fold in folds] for name in measures}
    lines: list[tuple[Cell | str, ...]] = []
    for index, fold in enumerate(folds):
        done = analysed(fold.rows)
        lines.append(
            (
                str(fold.number),
                *(
                    Cell(f"{number(found[index].value)} [{found[index].n}]")
                    for found in means.values()
                ),
                Cell(f"{len(done)} of {len(fold.rows)}"),
                Cell(str(len({row["patient"] for row in done}))),
            )
        )
    over = {name: mean([one.value for one in found]) for name, found in means.items()}
    some = max(one.n for one in over.values())
    lines.append(
        (
            f"mean ± SD of {plural(some, 'fold')}",
            *(Cell(f"{number(one.value)} ± {number(one.sd)}") for one in over.values()),
            Cell(str(sum(len(analysed(fold.rows)) for fold in folds))),
            Cell("-"),
        )
    )
    return Table(
        (
            Column("fold", number=False),
            *(Column(f"{label_and_unit(name)} [n]") for name in measures),
            Column("cases"),
            Column("patients"),
        ),
        tuple(lines),
        "Mean of the cases of a fold where it is defined, how many in brackets. SD with n - 1, of "
        "the folds' means. Folds share training data: it is no standard error.",
    )


def _mean_of(fold: FoldLog, name: str) -> Mean:
    parts = [MEASURES[name].of(row) for row in analysed(fold.rows)]
    return mean([value if there else None for value, there in parts])


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
            Column("Dice of batches, last"),
            Column("best"),
            Column("best epoch"),
            Column("validation loss, last"),
            Column("hours"),
        ),
        tuple(lines),
        "As the trainer saw it: Dice of the batches that it drew from the fold's own patients, "
        "many of whose images were drawn because they hold a lesion. It shows whether training "
        "went on. SD with n - 1.",
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
