"""A small training run shows the mechanism; that the recipe works is `test_starter_smoke`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from training.augment import IGNORE
from training.starter import Recipe
from training.trainer import Progress, learning_rate, segmentation_loss, train

RECIPE = Recipe(iterations=40, batch_size=2, warm_up_iterations=5)


def bright_disc(iteration: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy images of a bright disc, which is the lesion."""
    rng = np.random.default_rng(iteration)
    row, column = np.ogrid[:size, :size]
    images, targets = [], []
    for _ in range(2):
        centre = rng.uniform(11, size - 11, 2)
        disc = np.hypot(row - centre[0], column - centre[1]) < 7
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), 1)
        images.append((0.4 + 0.3 * disc + 0.1 * noise).astype(np.float32))
        targets.append(disc.astype(np.uint8))
    return np.stack(images), np.stack(targets)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_loss_falls(tmp_path: Path) -> None:
    reports: list[Progress] = []
    train(tmp_path / "m", bright_disc, RECIPE, 1, reports.append)
    assert [one.iteration for one in reports] == [25, 40]
    assert reports[1].dice_loss < 0.75 * reports[0].dice_loss
    assert reports[1].cross_entropy < reports[0].cross_entropy


def test_a_member_that_was_stopped_and_resumed_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, iterations=12)
    monkeypatch.setattr("training.trainer.CHECKPOINT_EVERY", 5)
    whole = train(tmp_path / "whole", bright_disc, recipe, 1, lambda _: None)

    def killed(iteration: int) -> tuple[np.ndarray, np.ndarray]:
        if iteration == 8:
            raise KeyboardInterrupt
        return bright_disc(iteration)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", killed, recipe, 1, lambda _: None)
    resumed = train(tmp_path / "resumed", bright_disc, recipe, 1, lambda _: None)

    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_member_is_not_trained_again(tmp_path: Path) -> None:
    recipe = replace(RECIPE, iterations=2)
    first = train(tmp_path / "m", bright_disc, recipe, 1, lambda _: None)

    def never(iteration: int) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError(iteration)

    again = train(tmp_path / "m", never, recipe, 1, lambda _: None)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "m", bright_disc, replace(RECIPE, iterations=2), 1, lambda _: None)
    with pytest.raises(ValueError, match="another recipe"):
        train(tmp_path / "m", bright_disc, replace(RECIPE, iterations=3), 1, lambda _: None)


def test_other_seeds_give_other_weights(tmp_path: Path) -> None:
    recipe = replace(RECIPE, iterations=1)
    one, other = (
        train(tmp_path / str(seed), bright_disc, recipe, seed, lambda _: None) for seed in (1, 2)
    )
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_ignored_pixels_change_neither_loss_nor_gradient() -> None:
    target = torch.zeros(1, 6, 6, dtype=torch.uint8)
    target[0, 1:3, 1:3] = 1
    target[0, 4:] = IGNORE
    results = []
    for value in (0.0, 7.0, -7.0):
        logits = torch.linspace(-2, 2, 72).reshape(1, 2, 6, 6).clone()
        logits[:, 1, 4:] = value
        logits.requires_grad_()
        cross_entropy, dice = segmentation_loss(logits, target)
        (cross_entropy + dice).backward()
        assert logits.grad is not None
        assert not logits.grad[:, :, 4:].any()
        results.append((float(cross_entropy.detach()), float(dice.detach())))
    assert results[0] == results[1] == results[2]


def test_the_dice_loss_is_of_the_whole_batch() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.uint8)
    target[0, :2] = 1  # 8 pixels in the first image, none in the second
    logits = torch.full((2, 2, 4, 4), -20.0)
    logits[:, 1][target == 1] = 20.0
    logits[:, 0][target == 0] = 20.0
    logits[1, 1, 0, 0], logits[1, 0, 0, 0] = 20.0, -20.0  # one false pixel
    _, dice = segmentation_loss(logits, target)
    assert float(dice) == pytest.approx(1 - 2 * 8 / (9 + 8), abs=1e-4)


def test_the_learning_rate_is_a_function_of_the_iteration() -> None:
    recipe = Recipe(iterations=130, warm_up_iterations=30, learning_rate=1.0)
    assert learning_rate(0, recipe) == pytest.approx(1 / 30)
    assert learning_rate(29, recipe) == pytest.approx(1.0)
    assert learning_rate(80, recipe) == pytest.approx(0.5)
    assert learning_rate(130, recipe) == pytest.approx(0.0)
