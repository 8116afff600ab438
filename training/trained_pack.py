"""Any trained run as a model pack: members, plans, what is known of them.

Whoever trained says what the network is fed (a canvas of ours, or nnU-Net's own preprocessing) and
what is known; the weights come from nnU-Net's checkpoints or from anywhere else, as named arrays.
The starter recipe has its own short form in `training.pack`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue, ValidationError

from pipeline.ensemble import load_ensemble
from pipeline.model_pack import (
    Canvas,
    Description,
    Extractor,
    LeakRule,
    ModelPack,
    ModelPackError,
    NnUNetInput,
    Summary,
    ValidatedGeometry,
    Weights,
    write_pack,
)
from pipeline.nnunet_import import fitting_weights, plain_dataset, plain_plans, read_checkpoint

Configuration = Literal["2d", "3d_fullres"]


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What a trained run says of itself. The figures of the recipe go into the pack as they are."""

    name: str
    version: str
    feeding: Canvas | NnUNetInput
    """What the network is shown: a canvas of `pipeline.preprocess`, or nnU-Net's own."""
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    training_data: str
    """In words: how many patients, of which scanners, labelled by whom."""
    recipe: Mapping[str, JsonValue]
    """Its facts: name, epochs, iterations, batch size, seed, departures."""
    validation: Summary
    intended_use: str
    limits: Sequence[str]
    licence: str
    patient_folds: bool
    """True: member k never saw the patients of fold k."""
    minimum_lesion_mm3: float
    configuration: Configuration = "2d"
    mirroring_axes: Sequence[int] = ()
    threshold: float = 0.5
    extractors: Sequence[Extractor] = ()
    leak_rule: LeakRule | None = None
    validated_geometry: ValidatedGeometry | None = None
    attributions: Sequence[str] = ()


def read_fold(checkpoint: Path, plans: Mapping[str, Any], configuration: Configuration) -> Weights:
    """The weights of a fold that an nnU-Net trainer left, one array per parameter, checked.

    Raises:
        ModelPackError: The file is damaged, or its weights are not those of the plans.
    """
    found = read_checkpoint(checkpoint)
    if found.configuration != configuration:
        raise ModelPackError(
            f"{checkpoint.parent.name} was trained as {found.configuration!r},"
            f" not {configuration!r}"
        )
    described = plain_plans(plans, configuration)["configurations"][configuration]
    return fitting_weights(found.weights, described, checkpoint.parent.name)


def write_trained_pack(
    path: Path,
    run: TrainedRun,
    weights: Mapping[int, Weights],
    *,
    card: str,
    stored: Literal["fp16", "fp32"] = "fp16",
) -> ModelPack:
    """Write the pack of a run, and see that it can be run, before anything lies at `path`.

    Args:
        path: Where; must not exist.
        run: What is known.
        weights: Of every member, by fold: named parameters of the network.
        card: Markdown, for people.
        stored: fp16 halves the pack and moves probabilities by less than 0.002.

    Raises:
        ModelPackError: The description is not consistent, or weights and plans do not fit.
    """
    canvas = run.feeding if isinstance(run.feeding, Canvas) else None
    nnunet = run.feeding if isinstance(run.feeding, NnUNetInput) else None
    fields: dict[str, Any] = {
        "name": run.name,
        "version": run.version,
        "status": "research",
        "configuration": run.configuration,
        "preprocessing": "nnunet" if canvas is None else "canvas",
        "canvas": canvas,
        "nnunet": nnunet,
        "extractors": tuple(run.extractors),
        "mirroring_axes": tuple(run.mirroring_axes),
        "threshold": run.threshold,
        "minimum_lesion_mm3": run.minimum_lesion_mm3,
        "leak_rule": run.leak_rule,
        "folds": tuple(sorted(weights)),
        "patient_folds": run.patient_folds,
        "validated_geometry": run.validated_geometry,
        "training_data": Summary(text=run.training_data, figures=dict(run.recipe)),
        "validation": run.validation,
        "intended_use": run.intended_use,
        "limits": tuple(run.limits),
        "licence": run.licence,
        "attributions": tuple(run.attributions),
        "software": {name: version(name) for name in ("torch", "nnunetv2", "numpy", "scipy")},
    }
    try:
        description = Description.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'run'}: {one['msg']}" for one in error.errors()
        )
        raise ModelPackError(f"the run cannot be described as a pack: {problems}") from error
    return write_pack(
        path,
        description,
        plans=plain_plans(run.plans, run.configuration),
        dataset_json=plain_dataset(run.dataset_json),
        weights=weights,
        card=card,
        stored=stored,
        check=lambda pack: load_ensemble(pack, device="cpu"),
    )
