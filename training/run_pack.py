"""A finished run as a model pack: its members, how they are fed, and what they did unseen."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import JsonValue

from dicom.errors import StudyError
from pipeline.brain import SURFACE_REFINE_VERSION
from pipeline.model_pack import (
    Canvas,
    Extractor,
    LeakRule,
    ModelPack,
    ModelPackError,
    NnUNetInput,
    Summary,
    ValidatedGeometry,
    Weights,
)
from pipeline.nnunet_import import fitting_weights
from pipeline.nnunet_plans import Json
from training.checkpoints import FINAL, read_checkpoint
from training.dataset import RUN, Dataset, open_dataset
from training.fold import fold_folder
from training.fold_validation import Judged, figures, judge, spacing_seen, test_figures
from training.prepared import PreparedCohort, read_prepared
from training.run_card import card
from training.splits import TEST
from training.trained_pack import TrainedRun, write_trained_pack
from training.validate import OnRow

MINIMUM_LESION_MM3 = 5.0  # as the starter's: 10 mm3 costs lesion F1 on small lesions

LIMITS = (
    "Trained and tried at one site: other scanners, protocols and patients may give other results.",
    "Fold validation is no test: every recipe that was tried on these folds has seen them.",
    "Not for diagnosis or follow-up; every site must validate on its own cases.",
)
INTENDED_USE = (
    "Research: to find lesions on FLAIR at the site whose cohort it was trained on. "
    "Not for diagnosis or follow-up."
)


class RunUnfinishedError(StudyError):
    """A fold that the pack is to hold is not trained to its end."""

    reason: ClassVar[str] = "run-unfinished"


class OtherCohortError(StudyError):
    """The prepared cohort is not the one that the run was trained on."""

    reason: ClassVar[str] = "other-cohort"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the person who makes the pack decides."""

    name: str
    version: str
    folds: tuple[int, ...] | None = None
    """None: all of the run."""
    threshold: float = 0.5
    minimum_lesion_mm3: float = MINIMUM_LESION_MM3
    licence: str = "Not stated: ask whoever trained it"
    test: Literal["closed", "opened"] = "closed"
    device: str = "auto"
    commands: tuple[str, ...] = ()
    """That made it, for the card."""


def pack_run(
    run: Path, prepared: Path, output: Path, wanted: Wanted, on_row: OnRow | None = None
) -> ModelPack:
    """Judge every member on its own validation patients, and write the pack.

    Args:
        run: Of `flairnode train run`.
        prepared: The cohort it was trained on.
        output: Folder of the pack; must not exist.
        wanted: Name, version, rules.
        on_row: Told of each case that is judged.

    Raises:
        RunUnfinishedError: A fold is not trained to its end.
        OtherCohortError: Cohort or splits are not those of the run.
        ModelPackError: The pack exists, or cannot be written.
    """
    if output.exists():
        raise ModelPackError(f"{output} exists: a pack is never overwritten")
    dataset = open_dataset(run)
    cohort = read_prepared(prepared, patient_folds=dataset.recipe.patient_folds)
    facts: dict[str, Any] = json.loads((run / RUN).read_text(encoding="utf-8"))
    _refuse_other_cohort(facts, cohort)
    members = _members(run, dataset, wanted.folds)
    folds = tuple(members)
    described = _described(run, dataset, cohort, wanted, facts)

    judged: list[Judged] = []
    test: Judged | None = None
    with tempfile.TemporaryDirectory(prefix="flairnode-") as scratch:

        def packed(chosen: Sequence[int]) -> ModelPack:
            return write_trained_pack(
                Path(scratch) / f"pack-{'-'.join(map(str, chosen))}",
                described,
                {fold: members[fold] for fold in chosen},
                card="For the time of measuring.\n",
            )

        if dataset.recipe.patient_folds:
            for fold in folds:
                cases = [case for case in cohort.cases if case.part == f"fold {fold}"]
                folder = run / "validation" / f"fold_{fold}"
                judged.append(judge(folder, fold, packed([fold]), cases, wanted.device, on_row))
        if wanted.test == "opened":
            cases = [case for case in cohort.cases if case.part == TEST]
            folder = run / "validation" / "test"
            test = judge(folder, None, packed(folds), cases, wanted.device, on_row)
    seen = spacing_seen([*judged, *([test] if test else [])])
    described = replace(
        described,
        validation=_validation(dataset, judged, test),
        validated_geometry=None
        if seen is None
        else ValidatedGeometry(slice_spacing_mm=seen[0], pixel_spacing_mm=seen[1]),
    )
    return write_trained_pack(
        output, described, members, card=card(described, folds, dataset.recipe, wanted.commands)
    )


def _refuse_other_cohort(facts: Mapping[str, Any], cohort: PreparedCohort) -> None:
    if (facts["cohort"], facts["splits"]) != (cohort.digest, cohort.splits_digest):
        raise OtherCohortError(
            "the prepared cohort or its splits are not those that this run was trained on"
        )


def _members(run: Path, dataset: Dataset, asked: tuple[int, ...] | None) -> dict[int, Weights]:
    """Of every fold: the averaged weights, where the recipe has an average."""
    folds = tuple(range(len(dataset.splits))) if asked is None else tuple(sorted(set(asked)))
    unfinished = [fold for fold in folds if not (fold_folder(run, fold) / FINAL).is_file()]
    if unfinished:
        raise RunUnfinishedError(
            f"fold {', '.join(map(str, unfinished))} is not trained to its end: give "
            "`flairnode train run` again, or pack the others with --folds"
        )
    configuration: Json = dataset.plans["configurations"][dataset.recipe.configuration]
    members: dict[int, Weights] = {}
    for fold in folds:
        content = read_checkpoint(fold_folder(run, fold) / FINAL)
        own = content["flairnode"]
        if (own["recipe"], own["dataset"]) != (dataset.recipe.digest, dataset.digest):
            raise RunUnfinishedError(f"fold {fold} was trained on another data set of this run")
        members[fold] = fitting_weights(content["network_weights"], configuration, f"fold_{fold}")
    return members


def _described(
    run: Path,
    dataset: Dataset,
    cohort: PreparedCohort,
    wanted: Wanted,
    facts: Mapping[str, Any],
) -> TrainedRun:
    """All but what is measured."""
    recipe = dataset.recipe
    canvas = None if recipe.canvas is None else Canvas(**dict(recipe.canvas))
    training_data = _training_data(dataset, cohort)
    return TrainedRun(
        name=wanted.name,
        version=wanted.version,
        feeding=canvas
        # Laid out as the node's axial view (`training.dataset_cases.in_axial_view`).
        or NnUNetInput(image="brain" if recipe.skull_strip else "head", orientation="LPS"),
        plans=dataset.plans,
        dataset_json=dataset.dataset_json,
        training_data=training_data.text,
        recipe={**training_data.figures, "trained_with": dict(facts["software"])},
        validation=Summary(text="Not measured yet."),
        intended_use=INTENDED_USE,
        limits=LIMITS,
        licence=wanted.licence,
        patient_folds=recipe.patient_folds,
        minimum_lesion_mm3=wanted.minimum_lesion_mm3,
        configuration=recipe.configuration,
        mirroring_axes=recipe.axes_mirrored,
        threshold=wanted.threshold,
        extractors=(Extractor(method="surface-refine", version=SURFACE_REFINE_VERSION),)
        if recipe.skull_strip
        else (),
        leak_rule=None if canvas is None else LeakRule(),
    )


def _training_data(dataset: Dataset, cohort: PreparedCohort) -> Summary:
    trained = [case for case in cohort.cases if case.part != TEST]
    test = [case for case in cohort.cases if case.part == TEST]
    loads = sorted(case.lesion_ml for case in trained)
    patients = {case.patient for case in trained}
    made_up = [one for one in dataset.origins.values() if not one.real]
    recipe = dataset.recipe
    figures_: dict[str, JsonValue] = {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "dataset_digest": dataset.digest,
        # By both `validate run --cohort` knows whom this pack has seen.
        "cohort_digest": cohort.digest,
        "splits_digest": cohort.splits_digest,
        "seed": dataset.seed,
        "patients": len(patients),
        "sessions": len(trained),
        "patients_kept_for_the_test": len({case.patient for case in test}),
        "lesion_ml_low": loads[0],
        "lesion_ml_median": float(np.median(loads)),
        "lesion_ml_high": loads[-1],
        "images": len(dataset.origins),
        "augmented_copies": sum(bool(one.copy) for one in made_up),
        "semi_synthetic_images": sum(one.semi_synthetic for one in made_up),
        "semi_synthetic_share_drawn": recipe.cases.semi_synthetic,
        "epochs": recipe.training.epochs,
        "iterations_per_epoch": recipe.training.iterations_per_epoch,
        "batch_size": dataset.plans["configurations"][recipe.configuration]["batch_size"],
    }
    return Summary(
        text=f"{len(patients)} patients in {len(trained)} sessions of one site, {loads[0]:.2f} to "
        f"{loads[-1]:.2f} ml of lesion; recipe {recipe.name}. Each member was trained on the "
        "patients of the other folds."
        if recipe.patient_folds
        else f"{len(patients)} patients in {len(trained)} sessions; recipe {recipe.name}. Every "
        "member saw every patient.",
        figures=figures_,
    )


def _validation(dataset: Dataset, judged: Sequence[Judged], test: Judged | None) -> Summary:
    found: dict[str, JsonValue] = {}
    if judged:
        found["fold_validation"] = figures(judged)
        folds: Any = found["fold_validation"]
        text = (
            f"Fold validation (no test): each member alone on the patients it never saw, through "
            f"the node's pipeline, {folds['cases']} cases of {folds['patients']} patients."
        )
        if folds["not_analysed"]:
            text += f" {folds['not_analysed']} of them were refused and are in no mean."
    else:
        text = (
            "None: every member saw every patient." if not dataset.recipe.patient_folds else "None."
        )
    if test is None:
        text += " The test set was not opened."
    else:
        found["test"] = test_figures(test)
        opened: Any = found["test"]
        text += (
            f" Test set, by all members together: {opened['cases']} cases of "
            f"{opened['patients']} patients."
        )
    return Summary(text=text, figures=found)
