"""The recipe of the starter model: five small 2-D members, from the project's data folder.

What it is and is not good for: `pipeline/packs/starter/card.md`. Two patients have full lesion
masks, so all members see both, and the members are no folds of a validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.preprocess import Array, CanvasSpec
from training.augment import sample
from training.sources import (
    HOST,
    LABELLED,
    NATIVE,
    NATIVE_PATIENTS,
    SYNTHETIC_VARIANTS,
    Stack,
    donors,
    load_stack,
    native_name,
    synthetic_name,
)

CANVAS = CanvasSpec()
"""Of the pack: room for a very large head."""
TRAINING_CANVAS = CanvasSpec(rows=208, columns=160)
"""All heads of the training data fit; a quarter less work. On four heads the wider margin of
`CANVAS` moved what the five members mark by 1 to 12 %, up and down (Aera 10.7 for 12.1 ml before
the leak rule, Rorden 2.64 for 2.67; patient19 at 5 mm, seen in training: Dice .871 for .870)."""
MEMBERS = (0, 1, 2, 3, 4)

DRAW_WEIGHTS: Mapping[str, float] = {
    "patient07": 0.26,
    "patient19": 0.38,
    "synthetic": 0.14,
    "native": 0.22,
}
"""How often a training image comes from each source; without the Rorden and the Aera FLAIR, which
are kept to look at the result with."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one member is trained."""

    iterations: int = 1750
    """On a left-out patient the curve is flat after about 400. What goes on to fall is what is
    marked in heads without lesions: 1.95 and 2.41 ml in Aera and Rorden with 600 iterations (and
    more semi-synthetic slices), .95 and .29 ml with 1,750."""
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    warm_up_iterations: int = 30
    gradient_norm: float = 5.0
    average_decay: float = 0.99
    """Of the running average of the weights, which is what a member is."""
    scale_weights: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    """Deep supervision, full scale first."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 halves the time on a CPU with avx512_bf16 or AMX, and takes 20 times as long without."""
    seed: int = 2026


ARCHITECTURE: Mapping[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 5,
        "features_per_stage": [16, 32, 64, 128, 128],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 5,
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2]],
        "n_conv_per_stage": [2, 2, 2, 2, 2],
        "n_conv_per_stage_decoder": [1, 1, 1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
"""As nnU-Net's plans spell it; 1,091,544 parameters."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of the five, or a model that one patient was kept from."""

    number: int
    leave_out: tuple[str, ...] = ()
    """Labelled patients that this model must not see in any form."""
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the stacks behind each key of `DRAW_WEIGHTS`."""

    @property
    def name(self) -> str:
        """Of its folder."""
        without = "".join(f"-without-{patient}" for patient in self.leave_out)
        return f"member_{self.number}{without}"


def member(number: int, data: Path, leave_out: tuple[str, ...] = ()) -> Member:
    """What member `number` sees.

    Member k of the pack leaves out the donors d with d mod 5 = k and one patient with clinical
    scans. A model without a labelled patient also leaves out that patient's lesions as donor and
    anatomy as host.
    """
    unknown = set(leave_out) - set(LABELLED)
    if unknown:
        raise ValueError(f"only {LABELLED} have full masks to be left out, not {sorted(unknown)}")
    seen = [
        donor
        for index, donor in enumerate(donors(data))
        if index % len(MEMBERS) != number and donor not in leave_out
    ]
    absent = NATIVE_PATIENTS[number % len(NATIVE_PATIENTS)]
    sources = {
        **{patient: (patient,) for patient in LABELLED if patient not in leave_out},
        "native": tuple(native_name(p, study) for p, study in NATIVE if p != absent),
    }
    if HOST not in leave_out:
        sources["synthetic"] = tuple(
            synthetic_name(donor, variant)
            for donor in seen
            for variant in range(SYNTHETIC_VARIANTS)
        )
    return Member(number, leave_out, sources)


class StarterBatches:
    """Batches of the starter recipe: batch i is a function of (seed, member, i) alone."""

    def __init__(self, one: Member, cache: Path, recipe: Recipe) -> None:
        self._stacks: dict[str, list[Stack]] = {
            key: [load_stack(cache, name) for name in names] for key, names in one.sources.items()
        }
        self._keys = sorted(self._stacks)
        weights = np.array([DRAW_WEIGHTS[key] for key in self._keys])
        self._weights = weights / weights.sum()
        self._seed = [
            recipe.seed,
            one.number,
            *(int(p.removeprefix("patient")) for p in one.leave_out),
        ]
        self._batch_size = recipe.batch_size

    def __call__(self, iteration: int) -> tuple[Array, npt.NDArray[np.uint8]]:
        """Images (batch, rows, columns) and targets (batch, rows, columns)."""
        rng = np.random.default_rng([*self._seed, iteration])
        pairs = []
        for _ in range(self._batch_size):
            stacks = self._stacks[self._keys[int(rng.choice(len(self._keys), p=self._weights))]]
            pairs.append(sample(stacks[int(rng.integers(len(stacks)))], TRAINING_CANVAS, rng))
        images, targets = zip(*pairs, strict=True)
        return np.stack(images), np.stack(targets)
