"""The training commands of the `flairnode` console script."""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from training.metrics_command import register_metrics
from training.pack_command import register_pack
from training.prepare_command import register_prepare
from training.recipe_command import register_recipes
from training.run_command import register_runs
from training.validate_command import register_validate

if TYPE_CHECKING:
    from training.starter import Recipe  # torch: not for `flairnode --help`

DEFAULT_DATA = Path("../shared/data")
PATIENTS = ("patient07", "patient19")
LEFT_OUT_SHARE = 0.4  # of the iterations: the curve on a left-out patient is flat by then


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add every command of training."""
    train = subparsers.add_parser("train", help="train models", description="Train models.")
    commands = train.add_subparsers(title="commands", dest="train_command", required=True)
    register_prepare(commands)
    register_runs(commands)
    register_pack(commands)
    _register_starter(commands)
    register_recipes(commands)
    register_metrics(subparsers)
    register_validate(subparsers)


def _register_starter(subparsers: Any) -> None:  # noqa: ANN401
    starter = subparsers.add_parser(
        "starter",
        help="train the starter pack",
        description=(
            "Trains the five members of the starter pack, and two models that one labelled patient "
            "is kept from, measures these two on that patient, and writes DIR/pack. Every model "
            "goes on from its last checkpoint when the command is given again. One CPU thread per "
            "model gives the same weights every time on the same kind of machine."
        ),
    )
    starter.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, help="the project's data (%(default)s)"
    )
    starter.add_argument("--output", type=Path, required=True, metavar="DIR")
    starter.add_argument(
        "--members",
        type=int,
        nargs="+",
        choices=range(5),
        metavar="K",
        help="train these members only, and write no pack",
    )
    starter.add_argument(
        "--leave-out",
        choices=PATIENTS,
        help="train only the model that never sees this patient, and write no pack",
    )
    starter.add_argument("--iterations", type=int, help="of a member (default: as in the recipe)")
    starter.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 halves the time on CPUs that have it and takes far longer on others",
    )
    starter.add_argument(
        "--processes", type=int, default=2, help="models trained at a time (%(default)s)"
    )
    starter.set_defaults(run=run_starter)


def run_starter(arguments: argparse.Namespace) -> int:
    """Train what is asked for; the exit status."""
    from training.sources import prepare_sources
    from training.starter import MEMBERS, Recipe

    if not (arguments.data / "MANIFEST.csv").is_file():
        _say(f"no data at {arguments.data}: give --data")
        return 2
    recipe = Recipe(precision=arguments.precision)
    if arguments.iterations is not None:
        recipe = replace(recipe, iterations=arguments.iterations)
    prepare_sources(arguments.data, arguments.output / "cache", lambda n: _say(f"prepared {n}"))

    everything = arguments.members is None and arguments.leave_out is None
    members = MEMBERS if everything else tuple(arguments.members or ())
    left_out = PATIENTS if everything else tuple(filter(None, [arguments.leave_out]))
    models: list[tuple[int, tuple[str, ...]]] = [(number, ()) for number in members]
    models += [(0, (patient,)) for patient in left_out]
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        tasks = [
            pool.submit(train_one, number, leave_out, arguments.data, arguments.output, recipe)
            for number, leave_out in models
        ]
        for task in tasks:
            _say(f"trained {task.result()}")
    if everything:
        pack = _write_pack(arguments.data, arguments.output, recipe)
        sys.stdout.write(f"{pack}\n")
    return 0


def shortened(recipe: Recipe, leave_out: tuple[str, ...]) -> Recipe:
    """The recipe of a model: fewer iterations when it is only measured, not shipped."""
    if not leave_out:
        return recipe
    return replace(recipe, iterations=int(recipe.iterations * LEFT_OUT_SHARE))


def train_one(
    number: int, leave_out: tuple[str, ...], data: Path, output: Path, recipe: Recipe
) -> str:
    """Train one model to its end, in a process of its own; its name."""
    import torch

    from training.starter import StarterBatches, member
    from training.trainer import train

    torch.set_num_threads(1)  # the order of sums is part of "the same weights every time"
    one, recipe = member(number, data, leave_out), shortened(recipe, leave_out)
    train(
        output / one.name,
        StarterBatches(one, output / "cache", recipe),
        recipe,
        recipe.seed + number,
        lambda progress: _say(
            f"{one.name} {progress.iteration}/{recipe.iterations}"
            f" cross entropy {progress.cross_entropy:.3f} 1-Dice {progress.dice_loss:.3f}"
            f" {progress.seconds:.0f} s"
        ),
    )
    return one.name


def _write_pack(data: Path, output: Path, recipe: Recipe) -> Path:
    """Measure, and write the pack with what was measured on its card."""
    from training.card import card, validation_summary
    from training.measure import measure_guards, measure_left_out
    from training.pack import starter_pack
    from training.starter import MEMBERS, member

    members = {number: output / member(number, data).name for number in MEMBERS}
    measured: dict[str, JsonValue] = {
        "left_out": {
            patient: measure_left_out(
                output / member(0, data, (patient,)).name,
                patient,
                data,
                shortened(recipe, (patient,)),
            )
            for patient in PATIENTS
        },
        "guards": measure_guards(members, data, recipe),
    }
    _say(json.dumps(measured, indent=2))
    path = output / "pack"
    starter_pack(
        path,
        members,
        validation=validation_summary(measured),
        card=card(measured, recipe),
        recipe=recipe,
    )
    return path


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
