"""`flairnode train recipes`: which recipes there are, and what one of them says."""

from __future__ import annotations

import argparse
import sys
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.recipe import Recipe


def register_recipes(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type
    """Add the command to those of `train`."""
    recipes = subparsers.add_parser(
        "recipes",
        help="list the recipes a model can be trained with, or show one",
        description="Without a name: every recipe that ships, in a line. With one: all that it "
        "says, and each departure from the paper or from nnU-Net with its reason. A recipe of your "
        "own is a TOML file: give its path.",
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="of a recipe, or a .toml file")
    recipes.add_argument("--json", action="store_true", help="print one JSON object")
    recipes.set_defaults(run=run_recipes)


def run_recipes(arguments: argparse.Namespace) -> int:
    """Print what is asked for."""
    from training.recipe import load_recipe, shipped_recipes

    if arguments.name is None:
        every = [load_recipe(name) for name in shipped_recipes()]
        width = max(len(recipe.name) for recipe in every)
        text = "\n".join(f"{recipe.name:{width}}  {recipe.summary}" for recipe in every)
    else:
        recipe = load_recipe(arguments.name)
        text = recipe.model_dump_json(indent=1) if arguments.json else in_words(recipe)
    sys.stdout.write(f"{text}\n")
    return 0


def in_words(recipe: Recipe) -> str:
    """A recipe for a person: what it sets, then where it departs and why."""
    lines = [f"{recipe.name}: {recipe.summary}", f"digest {recipe.digest}", ""]
    content = recipe.model_dump(mode="json", exclude={"name", "summary", "departures"})
    for key, value in content.items():
        if key == "architecture":
            lines.append(f"{key}: {'as nnU-Net plans it' if value is None else 'its own'}")
        elif isinstance(value, dict):
            lines += [f"{key}.{inner} = {_plain(one)}" for inner, one in value.items()]
        elif value is not None:
            lines.append(f"{key} = {_plain(value)}")
    for departure in recipe.departures:
        told = f"otherwise than {departure.of}: {departure.what}. Reason: {departure.reason}."
        lines += ["", fill(told, 100, subsequent_indent="  ")]
    return "\n".join(lines)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "as nnU-Net" if value is None else f"{value}"
