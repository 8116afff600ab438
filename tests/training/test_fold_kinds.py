"""Each kind of recipe, from a cohort to a trained fold; the same seed gives the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom.volume import Grid, Volume
from pipeline.brain import BrainMask
from tests.conftest import oblique_affine
from tests.training.brains import (
    PAPER,
    SITE,
    brain,
    head,
    lesion,
    prepared_cohort,
    recipe_file,
)
from training.dataset import build_dataset
from training.dataset_cases import in_axial_view
from training.enlarge import Labelled
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


def test_nnunets_preprocessing_sees_a_head_one_way_however_it_was_stored() -> None:
    mask = lesion(5)
    grid = Grid(oblique_affine((6.5, 4.0, 4.0), (0.0, 0.0, 0.0)), mask.shape)
    one = Labelled(Volume(head(mask, 1), grid), mask, BrainMask(brain(), grid, "", ""))
    # Stored as sagittal slices from left to right, heads down.
    affine = grid.affine @ np.array(
        [
            [0.0, 0.0, -1.0, mask.shape[0] - 1],
            [0.0, 1.0, 0.0, 0.0],
            [-1.0, 0.0, 0.0, mask.shape[2] - 1],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )

    def stored(array: np.ndarray) -> np.ndarray:
        return np.flip(array.transpose(2, 1, 0), (0, 2))

    other_grid = Grid(affine, (mask.shape[2], mask.shape[1], mask.shape[0]))
    other = Labelled(
        Volume(stored(one.volume.voxels), other_grid),
        stored(one.lesions),
        BrainMask(stored(one.brain.mask), other_grid, "", ""),
    )
    seen = [in_axial_view(head_) for head_ in (one, other)]
    np.testing.assert_array_equal(seen[0].volume.voxels, seen[1].volume.voxels)
    np.testing.assert_array_equal(seen[0].lesions, seen[1].lesions)
    np.testing.assert_array_equal(seen[0].brain.mask, seen[1].brain.mask)
    assert seen[1].volume.grid.spacing_mm == pytest.approx((6.5, 4.0, 4.0))
