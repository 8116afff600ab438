"""The card of a pack that a site trained: what it is, what it did, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.fold_validation import MEASURES, mean_in_words
from training.recipe import Recipe
from training.trained_pack import TrainedRun

_NAMES = {
    "dice": "Dice",
    "lesion_f1": "lesion F1",
    "ppv": "PPV",
    "sensitivity": "sensitivity",
}


def card(run: TrainedRun, folds: Sequence[int], recipe: Recipe, commands: Sequence[str]) -> str:
    """Markdown, for people."""
    return "\n".join(
        [
            f"# {run.name} {run.version}",
            "",
            "RESEARCH - NOT FOR CLINICAL USE.",
            "",
            run.intended_use,
            "",
            "## What it is",
            "",
            *_what_it_is(run, folds, recipe),
            "",
            "## Cohort",
            "",
            run.training_data,
            "",
            *_table(run.recipe),
            "",
            "## Validation",
            "",
            run.validation.text,
            "",
            *_folds(run),
            *_test(run),
            "Semi-synthetic images: never validated on and never tested on. "
            + _semi_synthetic(run),
            "",
            "## Departures from the paper and from nnU-Net",
            "",
            *(_departures(recipe) or ["None is written in the recipe."]),
            "",
            "## Limits",
            "",
            *(f"- {limit}" for limit in run.limits),
            "",
            "## How it was made",
            "",
            *(f"    {command}" for command in commands),
            "",
            f"Recipe digest `{recipe.digest}`. The same commands on the same images and masks give "
            "the same folds and the same batches; on a CPU with one thread of the same kind, the "
            "same weights.",
            "",
            "| trained with | version |",
            "|---|---|",
            *(f"| {name} | {number} |" for name, number in _software(run).items()),
            "",
        ]
    )


def _what_it_is(run: TrainedRun, folds: Sequence[int], recipe: Recipe) -> list[str]:
    training, members = recipe.training, len(folds)
    feeding = (
        f"slices on a canvas of {recipe.canvas.rows} x {recipe.canvas.columns} pixels of "
        f"{recipe.canvas.pixel_mm:g} mm, normalisation `{recipe.canvas.normalisation}`"
        if recipe.canvas is not None
        else "nnU-Net's own preprocessing"
    )
    average = (
        f" The members are a running average of the weights (decay {training.average_decay:g})."
        if training.average_decay
        else ""
    )
    batch = run.recipe.get("batch_size")
    return [
        f"{members} member{'s' if members > 1 else ''} "
        f"(fold{'s' if members > 1 else ''} {', '.join(map(str, folds))}) of recipe "
        f"`{recipe.name}`: {recipe.summary}",
        "",
        f"nnU-Net configuration {recipe.configuration}, {feeding}"
        f"{', skull stripped' if recipe.skull_strip else ', with skull'}. {training.epochs} epochs "
        f"of {training.iterations_per_epoch} batches of {batch}, {training.optimiser}, learning "
        f"rate {training.learning_rate:g} ({training.schedule}), loss {training.loss}.{average}",
        "",
        f"A voxel is lesion above a probability of {run.threshold:g}; lesions below "
        f"{run.minimum_lesion_mm3:g} mm3 are dropped.",
    ]


def _software(run: TrainedRun) -> dict[str, Any]:
    versions: Any = run.recipe["trained_with"]
    return dict(versions)


def _table(figures: Mapping[str, Any]) -> list[str]:
    return [
        "| | |",
        "|---|---|",
        *(
            f"| {name.replace('_', ' ')} | {_plain(value)} |"
            for name, value in figures.items()
            if not isinstance(value, dict)
        ),
    ]


def _folds(run: TrainedRun) -> list[str]:
    found: Any = run.validation.figures.get("fold_validation")
    if not found:
        return []
    lines = [
        "| fold | cases | " + " | ".join(_NAMES[name] for name in MEASURES) + " | volume, "
        "reference / found |",
        "|---" * (len(MEASURES) + 3) + "|",
    ]
    lines += [
        f"| {fold['fold']} | {fold['cases']} | "
        + " | ".join(mean_in_words(fold[name]) for name in MEASURES)
        + f" | {fold['volume_reference_ml']:.2f} / {fold['volume_prediction_ml']:.2f} ml |"
        for fold in found["folds"]
    ]
    lines += [
        f"| mean of {len(found['folds'])} folds | {found['cases']} | "
        + " | ".join(mean_in_words(found["over_folds"][name]) for name in MEASURES)
        + " | |",
        "",
        "Mean over the cases of a fold, then over folds; SD of the sample. Dice of a case: 3-D, "
        "on the grid of the source.",
        "",
    ]
    refused = [
        f"- {one['case']} (fold {fold['fold']}): {one['reason']}"
        for fold in found["folds"]
        for one in fold["not_analysed"]
    ]
    return lines + (["Refused by the pipeline, in no mean:", "", *refused, ""] if refused else [])


def _test(run: TrainedRun) -> list[str]:
    found: Any = run.validation.figures.get("test")
    if not found:
        return ["The test set was not opened.", ""]
    return [
        f"Test set, all members together, {found['cases']} cases of {found['patients']} patients:",
        "",
        *(f"- {_NAMES[name]} {mean_in_words(found[name])}" for name in MEASURES),
        f"- volume {found['volume_reference_ml']:.2f} ml in the reference, "
        f"{found['volume_prediction_ml']:.2f} ml found",
        *(f"- refused: {one['case']}: {one['reason']}" for one in found["not_analysed"]),
        "",
    ]


def _semi_synthetic(run: TrainedRun) -> str:
    share: Any = run.recipe.get("semi_synthetic_share_drawn")
    if not share:
        return "None was trained on."
    return f"{share:.0%} of the training images drawn had lesions of another patient inserted."


def _departures(recipe: Recipe) -> list[str]:
    return [f"- {one.of}: {one.what}. Why: {one.reason}." for one in recipe.departures]


def _plain(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
