"""Batch i is a function of (seed, fold, part, i), however many processes draw it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from tests.training.tiny_dataset import PATCH, TinyDataset, put_dataset
from training.nnunet_trainer import FoldTrainer
from training.seeded_batches import (
    Batch,
    DrawnBatches,
    Part,
    SiteScales,
    in_turn,
    seed_of,
    seeded,
    without_timing,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    return put_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


def batches(dataset: TinyDataset, fold: int = 0, part: Part = "train") -> DrawnBatches:
    return FoldTrainer.of(dataset, dataset.folder.parent / "run", fold).drawn_batches(part)


def same(one: Batch, other: Batch) -> bool:
    return np.array_equal(one[0], other[0]) and all(
        np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True)
    )


def test_a_batch_is_the_same_whatever_was_drawn_before(dataset: TinyDataset) -> None:
    first, again = batches(dataset), batches(dataset)
    drawn = [first(index) for index in range(6)]
    assert all(same(again(index), drawn[index]) for index in (5, 0, 3))
    images, targets = drawn[0]
    assert images.shape == (2, 1, *PATCH)
    assert [target.shape[2:] for target in targets] == [PATCH, (16, 24)]


def test_fold_part_and_index_each_give_other_batches(dataset: TinyDataset) -> None:
    train = batches(dataset)(0)
    assert not same(train, batches(dataset)(1))
    assert not same(train, batches(dataset, part="train-plain")(0))
    assert not same(train, batches(dataset, fold=1)(0))


def test_worker_processes_give_the_same_batches_in_order(dataset: TinyDataset) -> None:
    drawn = batches(dataset)
    here = list(in_turn(drawn, range(3, 9), workers=0))
    elsewhere = list(in_turn(drawn, range(3, 9), workers=2))
    assert len(here) == 6
    assert all(same(one, other) for one, other in zip(here, elsewhere, strict=True))


def test_the_last_images_of_a_batch_hold_a_lesion(dataset: TinyDataset) -> None:
    # 2 images, a third for certain: round(2 x 0.67) = 1 is drawn anywhere, the last one is sure.
    drawn = batches(dataset, part="val")
    assert all(drawn(index)[1][0][1].any() for index in range(20))


def test_drawing_leaves_no_trace_in_the_global_random_numbers() -> None:
    def state() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002, S311

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = state()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with seeded(5):
        drawn = state()
    assert state() == expected
    with seeded(5):
        assert state() == drawn


def test_no_draw_depends_on_a_stopwatch() -> None:
    blur = GaussianBlurTransform(benchmark=True)
    without_timing(ComposeTransforms([RandomTransform(blur, apply_probability=0.2)]))
    assert blur.benchmark is False


def test_site_targets_are_every_second_pixel_per_scale() -> None:
    target = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)
    scales = SiteScales(
        lambda index: (np.full((2, 4, 6), index, np.float32), target), [(1, 1), (2, 2)]
    )
    images, targets = scales(3)
    assert images.shape == (2, 1, 4, 6)
    assert (images == 3).all()
    assert targets[1][0, 0].tolist() == [[0, 2, 4], [12, 14, 16]]


def test_neighbouring_seeds_have_nothing_in_common() -> None:
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of(1, 0, "train", 1) == seed_of(1, 0, "train", 1)
