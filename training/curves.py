"""The curves of a run: losses and validation Dice by epoch, as in the paper's figure 3.

The figure shows training and validation loss with and without augmentation. Of one fold, here, the
batches that the weights are moved by are augmented, and a few that are not are watched beside them;
what it is validated on is never augmented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.fold_log import EpochLine, best_epoch, smoothed
from training.whole_files import write_whole

CURVES = "curves"
_SERIES = (
    ("train_loss_augmented", "training, augmented", "#1F5F99", "-"),
    ("train_loss", "training, not augmented", "#1F5F99", "--"),
    ("val_loss", "validation", "#B5650A", "-"),
)
_SHAPE = (10.0, 4.2)  # inches


def draw_curves(folder: Path, folds: Mapping[int, Sequence[EpochLine]], title: str) -> list[Path]:
    """`curves.png` and `curves.svg` of one fold or of several.

    Args:
        folder: Where.
        folds: The log of each.
        title: What the curves are of.

    Returns:
        The files; none, where no epoch is finished.
    """
    logs = {fold: lines for fold, lines in sorted(folds.items()) if lines}
    if not logs:
        return []
    # Text stays text, and neither a date nor a random id makes two equal figures differ.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flairnode"}):
        figure = Figure(figsize=_SHAPE, layout="constrained")
        losses, dice = figure.subplots(1, 2)
        _draw_losses(losses, logs)
        _draw_dice(dice, logs)
        figure.suptitle(title)
        written = []
        for suffix, about in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = folder / f"{CURVES}.{suffix}"
            write_whole(
                path,
                lambda part, suffix=suffix, about=about: figure.savefig(  # type: ignore[misc]
                    part, format=suffix, dpi=120, metadata=about
                ),
            )
            written.append(path)
    return written


def _draw_losses(axes: Axes, logs: Mapping[int, Sequence[EpochLine]]) -> None:
    for name, label, colour, dash in _SERIES:
        for lines in logs.values():
            axes.plot(
                _epochs(lines),
                [getattr(line, name) for line in lines],
                dash,
                color=colour,
                alpha=0.3 if len(logs) > 1 else 0.9,
                linewidth=1.0 if len(logs) > 1 else 1.6,
                label=label if len(logs) == 1 else None,
                marker="." if len(lines) < 4 else None,
            )
        if len(logs) > 1:
            mean = _mean_over_folds([[getattr(one, name) for one in x] for x in logs.values()])
            axes.plot(
                np.arange(1, len(mean) + 1),
                mean,
                dash,
                color=colour,
                linewidth=2.0,
                label=f"{label}, mean of {len(logs)} folds",
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (-Dice + cross-entropy)")
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _draw_dice(axes: Axes, logs: Mapping[int, Sequence[EpochLine]]) -> None:
    for number, (fold, lines) in enumerate(logs.items()):
        colour = ("#1F5F99", "#B5650A", "#3C7A3C", "#7A4E8C", "#5B6875")[number % 5]
        epochs = _epochs(lines)
        axes.plot(epochs, [line.val_dice for line in lines], color=colour, alpha=0.25)
        axes.plot(epochs, smoothed(lines), color=colour, linewidth=1.8, label=f"fold {fold}")
        best = best_epoch(lines)
        if best is not None:
            axes.plot(best + 1, smoothed(lines)[best], "o", color=colour, markersize=4)
    axes.set_xlabel("epoch")
    axes.set_ylabel("Dice of drawn validation batches")
    axes.set_ylim(0.0, 1.0)
    axes.set_title("faint: each epoch; line: smoothed; dot: best. No validation.", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _epochs(lines: Sequence[EpochLine]) -> list[int]:
    return [line.epoch + 1 for line in lines]


def _mean_over_folds(values: Sequence[Sequence[float]]) -> list[float]:
    """Of the epochs that every fold has."""
    shortest = min(map(len, values))
    return [float(np.mean([one[epoch] for one in values])) for epoch in range(shortest)]


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E3E8EC", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
