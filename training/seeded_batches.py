"""Batches that follow from the seed, the fold, the part and their number alone.

nnU-Net's loader draws from the global random numbers of numpy and torch, in as many processes as
the machine allows and in the order in which they finish. Here each batch is drawn from generators
that were seeded for it, and comes in its turn: the same batches with no worker process or with
eight, before and after a stop.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch.utils.data import DataLoader, Dataset

Part = Literal["train", "val", "train-plain"]
"""Training cases with augmentation, validation cases, training cases without augmentation."""
Batch: TypeAlias = tuple[npt.NDArray[np.float32], list[npt.NDArray[np.integer[Any]]]]
"""Images (batch, 1, *patch) and targets (batch, 1, ...), one array per scale of supervision."""


class DrawnBatches(Protocol):
    """Batch `index`, a pure function of it."""

    def __call__(self, index: int) -> Batch:
        """Draw it."""


def seed_of(*words: object) -> int:
    """64 bits from what a draw is for. Through SHA-256: neighbours have nothing in common."""
    text = "\0".join(map(str, words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of python, numpy and torch from this seed; afterwards as if nothing happened.

    On one thread, since some of torch's sums depend on the number.
    """
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002  # nnU-Net draws from the global state
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed & 0xFFFF_FFFF)  # noqa: NPY002
            torch.default_generator.manual_seed(seed >> 1)
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class NNUNetBatches:
    """nnU-Net's own loader and transforms, seeded for each batch."""

    def __init__(self, loader: Any, words: Sequence[object]) -> None:  # noqa: ANN401
        """A loader of one part.

        Args:
            loader: `nnUNetDataLoader` with its transforms.
            words: What the batches are for: seed, fold, part.
        """
        self._loader = loader
        self._words = tuple(words)
        without_timing(loader.transforms)

    def __call__(self, index: int) -> Batch:
        """Draw batch `index`."""
        with seeded(seed_of(*self._words, index)):
            batch = self._loader.generate_train_batch()
        target = batch["target"]
        scales = target if isinstance(target, list) else [target]
        return batch["data"].numpy(), [scale.numpy() for scale in scales]


def without_timing(transforms: Any) -> None:  # noqa: ANN401
    """Blur one way. nnU-Net times two and takes the faster; they differ in the last bits."""
    for transform in transforms.transforms if isinstance(transforms, ComposeTransforms) else ():
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False


class SiteScales:
    """Batches of `training.site_batches` with their targets at every scale of deep supervision."""

    def __init__(
        self,
        batches: Callable[[int], tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]],
        steps: Sequence[tuple[int, int]],
    ) -> None:
        """Add the scales.

        Args:
            batches: Images and targets (batch, rows, columns) of an index.
            steps: Pixels of the full scale per pixel of each scale, (row, column).
        """
        self._batches = batches
        self._steps = tuple(steps)

    def __call__(self, index: int) -> Batch:
        """Draw batch `index`."""
        images, targets = self._batches(index)
        # Every step-th pixel: where the centres of the strided convolutions lie.
        return images[:, None], [
            np.ascontiguousarray(targets[:, None, ::row, ::column]) for row, column in self._steps
        ]


class _ByIndex(Dataset[Batch]):
    def __init__(self, batches: DrawnBatches) -> None:
        self._batches = batches

    def __getitem__(self, index: int) -> Batch:
        return self._batches(index)


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401  # torch expects a list here, and gives one item
    # Arrays, not tensors: those would travel through /dev/shm, of which a container has 64 MB.
    return batch


def in_turn(batches: DrawnBatches, indices: Sequence[int], workers: int) -> Iterator[Batch]:
    """The batches of these indices, in this order, drawn ahead by worker processes.

    Args:
        batches: A pure function of the index.
        indices: In the order in which they are wanted.
        workers: Processes; 0: drawn here, when asked for. They end with this process.
    """
    if workers == 0 or not indices:
        return (batches(index) for index in indices)
    return iter(
        DataLoader(
            _ByIndex(batches),
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=2,
        )
    )
