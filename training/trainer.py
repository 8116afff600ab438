"""Train one small segmentation network, repeatably, and go on where it was stopped.

Everything that changes the weights is a function of the recipe and the iteration: the batch, the
learning rate, the order of sums (one thread). So a run that was killed and resumed gives the same
weights as one that was not, and no schedule depends on how busy the machine was.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from training.augment import IGNORE
from training.starter import ARCHITECTURE, Recipe

Batches = Callable[[int], tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]]

CHECKPOINT_EVERY = 100  # iterations; about a minute of work is lost at most
REPORT_EVERY = 25


@dataclass(frozen=True, slots=True)
class Progress:
    """Means over the iterations since the last report."""

    iteration: int
    seconds: float
    """Since this run began; a resumed run counts from its own start."""
    cross_entropy: float
    dice_loss: float
    """1 - batch soft Dice of the foreground at full scale."""


def build_network(*, deep_supervision: bool = True) -> nn.Module:
    """The untrained network, built by nnU-Net from what the plans of the pack say."""
    network: nn.Module = get_network_from_plans(
        ARCHITECTURE["network_class_name"],
        ARCHITECTURE["arch_kwargs"],
        ARCHITECTURE["_kw_requires_import"],
        1,
        2,
        allow_init=True,
        deep_supervision=deep_supervision,
    )
    return network


def train(
    folder: Path,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    report: Callable[[Progress], None],
    device: str = "cpu",
) -> dict[str, torch.Tensor]:
    """Train to the last iteration, from the checkpoint in `folder` if there is one.

    Args:
        folder: Of this member: checkpoint and progress.
        batches: Images and targets of an iteration.
        recipe: How to train.
        seed: Of the first weights.
        report: Told every `REPORT_EVERY` iterations.
        device: cpu or cuda. Only a CPU with one thread repeats the weights bit by bit.

    Returns:
        The running average of the weights, by the name of the parameter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = build_network().to(device).train()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    average = {name: value.detach().clone() for name, value in network.named_parameters()}
    first = _resume(folder, network, optimiser, average, recipe)
    sums, started = np.zeros(3), time.monotonic()
    for iteration in range(first, recipe.iterations):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(iteration, recipe)
        cross_entropy, dice = _step(network, optimiser, *batches(iteration), recipe)
        _move_average(average, network, iteration, recipe.average_decay)
        sums += (cross_entropy, dice, 1.0)
        done = iteration + 1
        if done % REPORT_EVERY == 0 or done == recipe.iterations:
            now = Progress(done, time.monotonic() - started, sums[0] / sums[2], sums[1] / sums[2])
            _log(folder, now)
            report(now)
            sums[:] = 0.0
        if done % CHECKPOINT_EVERY == 0 or done == recipe.iterations:
            _save(folder, network, optimiser, average, done, recipe)
    return average


def learning_rate(iteration: int, recipe: Recipe) -> float:
    """A linear warm-up, then a cosine to zero over iterations."""
    if iteration < recipe.warm_up_iterations:
        return recipe.learning_rate * (iteration + 1) / recipe.warm_up_iterations
    along = (iteration - recipe.warm_up_iterations) / max(
        1, recipe.iterations - recipe.warm_up_iterations
    )
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * along))


def segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross entropy, 1 - batch soft Dice of the foreground); ignored pixels enter neither.

    Args:
        logits: (batch, 2, rows, columns).
        target: (batch, rows, columns) of 0, 1 or `IGNORE`.
    """
    logits = logits.float()
    cross_entropy = nn.functional.cross_entropy(logits, target.long(), ignore_index=IGNORE)
    known = (target != IGNORE).float()
    lesion = (target == 1).float()
    probability = logits.softmax(dim=1)[:, 1] * known
    overlap = (probability * lesion).sum()
    dice = (2.0 * overlap + 1e-5) / (probability.sum() + lesion.sum() + 1e-5)
    return cross_entropy, 1.0 - dice


def _step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: npt.NDArray[np.float32],
    targets: npt.NDArray[np.uint8],
    recipe: Recipe,
) -> tuple[float, float]:
    device = next(network.parameters()).device
    target = torch.from_numpy(targets).to(device)
    image = torch.from_numpy(images)[:, None].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        outputs = network(image)
    parts = [
        # Every 2^k-th pixel: where the centres of the strided convolutions lie.
        segmentation_loss(logits, target[:, :: 2**scale, :: 2**scale])
        for scale, logits in enumerate(outputs)
    ]
    loss = sum(
        (weight * (cross_entropy + dice))
        for weight, (cross_entropy, dice) in zip(recipe.scale_weights, parts, strict=True)
    )
    optimiser.zero_grad(set_to_none=True)
    torch.as_tensor(loss).backward()  # type: ignore[no-untyped-call]  # torch's own annotation
    nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_norm)
    optimiser.step()
    return float(parts[0][0].detach()), float(parts[0][1].detach())


@torch.no_grad()
def _move_average(
    average: dict[str, torch.Tensor], network: nn.Module, iteration: int, decay: float
) -> None:
    # Faster at first, so that the random start is forgotten.
    rate = 1.0 - min(decay, (1.0 + iteration) / (10.0 + iteration))
    for name, value in network.named_parameters():
        average[name].lerp_(value, rate)


def _save(
    folder: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: dict[str, torch.Tensor],
    done: int,
    recipe: Recipe,
) -> None:
    partial = folder / "checkpoint.partial"
    torch.save(
        {
            "network": dict(network.named_parameters()),
            "optimiser": optimiser.state_dict(),
            "average": average,
            "done": done,
            "recipe": json.dumps(asdict(recipe)),
        },
        partial,
    )
    partial.replace(folder / "checkpoint.pt")


def _resume(
    folder: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: dict[str, torch.Tensor],
    recipe: Recipe,
) -> int:
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return 0
    checkpoint: dict[str, Any] = torch.load(
        path, map_location=next(network.parameters()).device, weights_only=True
    )
    if checkpoint["recipe"] != json.dumps(asdict(recipe)):
        raise ValueError(
            f"{path} was begun with another recipe; give another --output or remove it"
        )
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(checkpoint["network"][name])
    optimiser.load_state_dict(checkpoint["optimiser"])
    average.update(checkpoint["average"])
    return int(checkpoint["done"])


def _log(folder: Path, progress: Progress) -> None:
    with (folder / "progress.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(progress)) + "\n")
