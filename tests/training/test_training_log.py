"""How the folds were trained, read from what the trainer wrote, and shown in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom.errors import EmptyInputError, UnreadableError
from tests.training.pictures import row
from tests.training.runs import case_row, write_run
from tests.training.test_report import table, words
from training.content import Plot
from training.drawing import Line
from training.report import build, read_run
from training.training_log import COLUMNS, read_training

HEAD = ",".join(COLUMNS)


def write_log(run: Path, fold: int, *lines: str) -> None:
    (run / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
    (run / f"fold_{fold}/log.csv").write_text("\n".join([HEAD, *lines]) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_log(
        tmp_path / "t",
        0,
        "0,1800,.01,.9,1.0,.8,.5",
        "1,1800,.009,.7,.8,,",  # validated every second epoch
        "2,1800,.008,.5,.6,.6,.7",
        "3,1800,.007,.4,.5,.7,.6",
    )
    write_log(tmp_path / "t", 10, "0,,.01,.9,,.8,.4", "0,,.01,.8,,nan,.5")
    return tmp_path / "t"


def test_folds_are_in_the_order_of_their_numbers_and_know_their_best_epoch(run: Path) -> None:
    first, tenth = read_training(run)
    assert (first.number, tenth.number) == (0, 10)
    assert first.best is not None
    assert (first.best.number, first.best.val_dice) == (2, 0.7)
    assert first.last is not None
    assert first.last.val_dice == 0.6
    assert first.hours == 2
    # The epoch was done again after a stop; a loss that is no number is none.
    (only,) = tenth.epochs
    assert (only.train_loss, only.val_loss, tenth.hours) == (0.8, None, None)


def test_the_report_shows_curves_and_the_table_of_folds(run: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [case_row("a", row("##"), row("##"))])
    report = build(read_run(folder), folds=read_training(run), draws=50)
    lines = table(report.document, "Training")
    assert lines[0] == ["0", "4", "0.600", "0.700", "2", "0.700", "2.00"]
    # Of 0.6 and 0.5: SD = 0.1 / sqrt 2.
    assert lines[-1][:3] == ["mean ± SD of 2 folds", "-", "0.550 ± 0.071"]
    assert "were not measured on their own patients" in words(report.document)
    (section,) = (one for one in report.document.sections if one.title == "Training")
    plots = [block for block in section.blocks if isinstance(block, Plot)]
    assert [plot.caption for plot in plots] == [
        "Fold 0: loss of 4 epochs.",
        "Fold 10: loss of 1 epoch. Not measured: training, augmented, validation.",
    ]
    # Three losses of fold 0, each one line through all its epochs.
    curves = [
        shape for shape in plots[0].drawing.shapes if isinstance(shape, Line) and shape.width == 1.6
    ]
    assert [len(curve.points) for curve in curves] == [4, 4, 3]
    assert report.content["training"][0]["epochs"][1]["val_loss"] is None  # type: ignore[index,call-overload]


def test_the_table_of_folds_is_of_each_member_on_its_own_patients(
    run: Path, tmp_path: Path
) -> None:
    write_run(
        run / "validation/fold_0",
        [case_row("a", row("####"), row("####")), case_row("b", row("####"), row("##.."))],
    )
    empty = case_row("d", row("...."), row("...."))
    write_run(run / "validation/fold_10", [case_row("c", row("####"), row("....")), empty])
    folder = write_run(tmp_path / "run", [case_row("a", row("##"), row("##"))])
    report = build(read_run(folder), folds=read_training(run), draws=50)
    lines = table(report.document, "Training")
    # Dice 1 and 2 x 2 / 6; 0 and not defined: n is 1.
    assert [line[:2] for line in lines[:2]] == [["0", "0.833 [2]"], ["10", "0.000 [1]"]]
    assert lines[1][-2:] == ["2 of 2", "2"]
    spread = (5 / 6) / 2**0.5
    assert lines[2][:2] == ["mean ± SD of 2 folds", f"{5 / 12:.3f} ± {spread:.3f}"]
    assert table(report.document, "Training", 1)[0][:3] == ["0", "4", "0.600"]


def test_a_folder_without_logs_and_a_damaged_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyInputError, match=r"fold_K/log\.csv"):
        read_training(tmp_path)
    write_log(tmp_path, 0, "0,1,.01,high,1,1,1")
    with pytest.raises(UnreadableError, match=r"fold_0/log\.csv, line 2"):
        read_training(tmp_path)
    write_log(tmp_path, 0, "0,1,.01,1,1,1,1", "1,1,.0")  # just being written
    assert len(read_training(tmp_path)[0].epochs) == 1
    write_log(tmp_path, 0, "1,1,.0", "0,1,.01,1,1,1,1")
    with pytest.raises(UnreadableError, match="no train_loss"):
        read_training(tmp_path)
