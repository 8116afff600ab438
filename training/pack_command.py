"""`flairnode train pack`: its arguments, and what it says."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.dataset import Dataset
    from training.validate import Row

EXIT_DONE = 0


def register_pack(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type
    """Add the command to those of `train`."""
    pack = subparsers.add_parser(
        "pack",
        help="make a model pack of a finished run",
        description="Judges each member alone on the patients of its fold, through the node's own "
        "pipeline, and writes the pack with these figures and a card. The test set stays closed "
        "unless --test: open it once, when nothing will be changed any more. Goes on where it was "
        "stopped. Exit 0 done, 3 refused, 1 failed.",
    )
    pack.add_argument("--run", type=Path, required=True, metavar="RUN", dest="folder")
    pack.add_argument(
        "--prepared", type=Path, required=True, metavar="DIR", help="the cohort of the run"
    )
    pack.add_argument("--name", required=True, metavar="N")
    pack.add_argument("--version", required=True, metavar="V")
    pack.add_argument("--output", type=Path, required=True, metavar="PACK")
    pack.add_argument(
        "--folds", type=int, nargs="+", metavar="K", help="pack these alone (default: all)"
    )
    pack.add_argument("--test", action="store_true", help="open the test set, and say how it went")
    pack.add_argument("--threshold", type=float, default=0.5, help="(%(default)s)")
    pack.add_argument(
        "--minimum-lesion-mm3", type=float, default=5.0, metavar="MM3", help="(%(default)s)"
    )
    pack.add_argument("--licence", default="Not stated: ask whoever trained it")
    pack.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    pack.add_argument("--json", action="store_true", help="print the end as one JSON object")
    pack.set_defaults(run=run_pack)


def run_pack(arguments: argparse.Namespace) -> int:
    """Judge, write, and say where it is."""
    from training.dataset import open_dataset
    from training.run_pack import Wanted, pack_run

    dataset = open_dataset(arguments.folder)
    wanted = Wanted(
        name=arguments.name,
        version=arguments.version,
        folds=None if arguments.folds is None else tuple(arguments.folds),
        threshold=arguments.threshold,
        minimum_lesion_mm3=arguments.minimum_lesion_mm3,
        licence=arguments.licence,
        test="opened" if arguments.test else "closed",
        device=arguments.device,
        commands=commands(dataset, arguments),
    )
    pack = pack_run(arguments.folder, arguments.prepared, arguments.output, wanted, _say)
    if arguments.json:
        content = {
            "outcome": "packed",
            "reason": "",
            "name": pack.name,
            "version": pack.version,
            "digest": pack.digest,
            "folds": list(pack.manifest.folds),
            "validation": pack.manifest.validation.model_dump(mode="json"),
        }
        sys.stdout.write(f"{json.dumps(content)}\n")
        return EXIT_DONE
    sys.stdout.write(
        f"{pack.path}: {pack.name} {pack.version}, {len(pack.manifest.folds)} members\n"
        f"{pack.manifest.validation.text}\n"
        f"use it with  flairnode process INPUT --model {pack.path}\n"
    )
    return EXIT_DONE


def commands(dataset: Dataset, arguments: argparse.Namespace) -> tuple[str, ...]:
    """What to type to make the pack again. Folders by what they hold: a path may hold a name."""
    from training.prepare import SPLITS
    from training.splits import read_splits

    run = ["train run --prepared PREPARED --recipe", *_recipe_words(dataset), "--output RUN"]
    if arguments.folds:
        run.append(f"--folds {' '.join(map(str, arguments.folds))}")
    run.append(f"--seed {dataset.seed}")
    pack = [f"train pack --run RUN --prepared PREPARED --name {shlex.quote(arguments.name)}"]
    pack.append(f"--version {shlex.quote(arguments.version)} --output PACK")
    for name, default in (("threshold", 0.5), ("minimum_lesion_mm3", 5.0)):
        value = getattr(arguments, name)
        if value != default:
            pack.append(f"--{name.replace('_', '-')} {value:g}")
    if arguments.folds:
        pack.append(f"--folds {' '.join(map(str, arguments.folds))}")
    if arguments.test:
        pack.append("--test")
    seed = dataset.seed
    if dataset.recipe.patient_folds:
        seed = read_splits(arguments.prepared / SPLITS).seed
    return (
        f"flairnode train prepare --cohort COHORT --output PREPARED --seed {seed}",
        f"flairnode {' '.join(run)}",
        f"flairnode {' '.join(pack)}",
    )


def _recipe_words(dataset: Dataset) -> list[str]:
    """The name of a recipe that ships, with what was changed; else its file, at the site."""
    from training.recipe import load_recipe, shipped_recipes

    recipe = dataset.recipe
    if recipe.name in shipped_recipes():
        training = recipe.training
        tries: list[dict[str, int]] = [{}, {"epochs": training.epochs}]
        if training.batch_size is not None:
            tries += [
                {"batch_size": training.batch_size},
                {"epochs": training.epochs, "batch_size": training.batch_size},
            ]
        for changes in tries:
            if load_recipe(recipe.name, changes).digest == recipe.digest:
                return [
                    recipe.name,
                    *(f"--{key.replace('_', '-')} {value}" for key, value in changes.items()),
                ]
    return [f"{recipe.name}.toml"]


def _say(row: Row, *, kept: bool) -> None:
    end = row["outcome"] + (f": {row['reason']}: {row['explanation']}" if row["reason"] else "")
    sys.stderr.write(f"{row['case']}: {end}{' (from an earlier run)' if kept else ''}\n")
    sys.stderr.flush()
