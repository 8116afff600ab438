"""Recipes: what ships, what is refused, and that each says why it departs."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.cli import main
from tests.training.brains import PAPER, SITE, recipe_file
from training.paper_augment import COPIES
from training.recipe import RecipeError, load_recipe, shipped_recipes
from training.starter import ARCHITECTURE, CANVAS
from training.starter import Recipe as StarterRecipe


def test_these_recipes_ship() -> None:
    assert shipped_recipes() == ["nnunet-2d", "nnunet-3d_fullres", "paper-2d", "site-2d", "starter"]
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.departures


def test_paper_2d_says_what_the_paper_says() -> None:
    recipe = load_recipe("paper-2d")
    assert recipe.canvas is not None
    assert (recipe.canvas.rows, recipe.canvas.columns, recipe.canvas.normalisation) == (
        512,
        512,
        "paper",
    )
    assert (recipe.cases.unit, recipe.cases.entropy_rule, recipe.cases.copies) == ("slice", True, 5)
    assert recipe.cases.copies == COPIES
    training = recipe.training
    assert (training.epochs, training.optimiser, training.learning_rate) == (250, "sgd", 0.01)
    assert (training.weight_decay, training.schedule, training.loss) == (3e-5, "poly", "dice-ce")
    assert recipe.patient_folds


def test_the_starter_recipe_and_the_starter_trainer_say_the_same() -> None:
    recipe, made = load_recipe("starter"), StarterRecipe()
    training = recipe.training
    assert training.epochs * training.iterations_per_epoch == made.iterations
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (
        made.batch_size,
        made.learning_rate,
        made.weight_decay,
    )
    assert (training.warm_up_iterations, training.gradient_norm, training.average_decay) == (
        made.warm_up_iterations,
        made.gradient_norm,
        made.average_decay,
    )
    assert training.scale_weights == made.scale_weights
    assert recipe.canvas is not None
    assert recipe.canvas.spec() == CANVAS
    given = recipe.architecture or {}
    # TOML has no null: what is left out is None.
    assert given["arch_kwargs"] == {
        key: value for key, value in ARCHITECTURE["arch_kwargs"].items() if value is not None
    }
    assert not recipe.patient_folds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PAPER.replace("copies = 5", "copies = 51"), "cases.copies"),
        (PAPER.replace('unit = "slice"', 'unit = "volume"'), "unit = 'slice'"),
        (PAPER.replace("copies = 5", "copies = 5\nsemi_synthetic = 0.1"), "augmentation = 'site'"),
        (PAPER.replace("batch_size = 2", ""), "training.batch_size"),
        (PAPER.replace("rows = 64", "rows = 60"), "canvas.rows"),
        (PAPER + "\nmomentum = 0.9", "training.momentum"),
        (SITE.replace('"starter"', '"paper"'), "core medians"),
        ("name = ", "no TOML"),
    ],
)
def test_what_does_not_hold_together_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe_file(tmp_path, text))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="paper-2d, site-2d, starter"):
        load_recipe("paper")


def test_a_change_of_the_command_line_is_another_recipe() -> None:
    plain, shorter = load_recipe("site-2d"), load_recipe("site-2d", {"epochs": 2})
    assert shorter.training.epochs == 2
    assert plain.digest != shorter.digest
    assert load_recipe("site-2d").digest == plain.digest


def test_the_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == shipped_recipes()
    assert main(["train", "recipes", "paper-2d"]) == 0
    shown = capsys.readouterr().out
    assert "cases.copies = 5" in shown
    assert "Reason: the paper's equation says log2" in " ".join(shown.split())
