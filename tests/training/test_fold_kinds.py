"""Each kind of recipe, from a cohort to a trained fold; the same seed gives the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.brains import PAPER, SITE, prepared_cohort, recipe_file
from training.dataset import build_dataset
from training.fold import train_fold
from training.fold_log import read_log
from training.nnunet_trainer import FoldTrainer
from training.recipe import load_recipe

SHORT = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1, "batch_size": 2}
NNUNET = """
name = "nnunet-small"
summary = "nnU-Net's own preprocessing and plans."
preprocessing = "nnunet"
skull_strip = false
augmentation = "nnunet"
[training]
epochs = 1
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("text", [PAPER, SITE, NNUNET], ids=["paper", "site", "nnunet"])
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, text: str) -> None:
    recipe = load_recipe(recipe_file(tmp_path, text), SHORT)
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", recipe)
    digest = train_fold(tmp_path / "run", 1)
    (line,) = read_log(tmp_path / "run" / "fold_1")
    assert line.train_loss == line.train_loss  # not NaN: training images not augmented are there
    assert FoldTrainer.of(dataset, tmp_path / "again", 1).train() == digest
