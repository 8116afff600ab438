"""The card of the starter pack: what it was and was not tested on, in words that may be used."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from pipeline.model_pack import Summary
from training.measure import GUARD_LIMITS_ML
from training.pack import ATTRIBUTIONS, PACK_VERSION
from training.starter import DRAW_WEIGHTS, Recipe

STATEMENT = (
    "Research-only starter weights, trained on two patients with full expert lesion masks, "
    "partially labelled longitudinal scans of five patients, and semi-synthetic lesions (Lesjak et "
    "al., CC BY). It underestimates volume, misses faint and periventricular lesions, and marks "
    "strip leftovers, hippocampus and tumours. {left_out} Not validated, not for diagnosis or "
    "follow-up; every site must train or validate on its own cases."
)

Measured = dict[str, Any]


def statement(measured: Measured) -> str:
    """What may be said of the pack, with the one clause that depends on what was measured."""
    left_out: Measured = measured["left_out"]
    worse = [
        thick["dice"] < thick["best_threshold_dice"]
        for patient in left_out.values()
        for thick in patient.values()
    ]
    if all(worse):
        clause = (
            "When either labelled training patient was left out it did worse than a plain "
            "threshold there."
        )
    elif any(worse):
        clause = (
            "When a labelled training patient was left out it did not dependably beat a plain "
            "threshold there (figures below)."
        )
    else:
        clause = "Figures with a labelled training patient left out are below: one patient each."
    return STATEMENT.format(left_out=clause)


def validation_summary(measured: dict[str, JsonValue]) -> Summary:
    """For the manifest."""
    return Summary(
        text=(
            "None. Figures: separately trained models on the one labelled patient that each never "
            "saw, and volumes marked in two heads without known lesions."
        ),
        figures=measured,
    )


def card(measured: Measured, recipe: Recipe) -> str:
    """Markdown, for people."""
    return "\n".join(
        [
            f"# starter {PACK_VERSION}",
            "",
            statement(measured),
            "",
            "RESEARCH - NOT FOR CLINICAL USE.",
            "",
            "## What it is",
            "",
            "Five small 2-D U-Nets (nnU-Net's `PlainConvUNet`, 1,091,544 parameters each) over "
            "axial slices of 1.0 mm pixels. They differ by seed, and each leaves out a fifth of "
            "the inserted donors and one patient with clinical scans. Every member saw both "
            "labelled patients: the members are not the folds of a cross-validation.",
            "",
            f"{recipe.iterations} iterations of {recipe.batch_size} slices per member, "
            f"{recipe.precision}, cosine schedule over iterations. One command makes it again: "
            f"`flairnode train starter --data DATA --output DIR{_precision(recipe)}`.",
            "",
            "| source | share of the slices |",
            "|---|---|",
            *(f"| {name} | {share:.2f} |" for name, share in DRAW_WEIGHTS.items()),
            "",
            "`native`: clinical scans with partial labels; what they leave open does not enter the "
            "loss. `synthetic`: lesions of 22 other patients painted into patient07; their edge is "
            "by construction the label.",
            "",
            "## With one labelled patient left out",
            "",
            f"Separately trained models ({shortened_iterations(recipe)} iterations, one member, "
            "left-right mirroring), threshold 0.5. The left-out patient was neither a source, nor "
            "a donor of lesions, nor the host. The archive numbers its cohorts separately; whether "
            "a left-out patient is among the clinical scans under another number is not known.",
            "",
            "| left out | slices | Dice | best plain threshold | PPV | sensitivity | "
            "volume, reference / found | lesion F1 |",
            "|---|---|---|---|---|---|---|---|",
            *_left_out_rows(measured["left_out"]),
            "",
            "The threshold was chosen on the patient itself: a floor, not a rival.",
            "",
            "## In heads without known lesions",
            "",
            "Never trained on; not read by an expert. Threshold 0.5, components of at least 5 mm3, "
            "leak rule of the manifest, which was made with the Aera head in view.",
            "",
            "| head | limit, set beforehand | ml marked, mirroring on | off | |",
            "|---|---|---|---|---|",
            *_guard_rows(measured["guards"]),
            "",
            "## Not tested",
            "",
            "Any patient with a full lesion mask that the members did not see; other vendors, 1.5 "
            "T scans of 6.5 mm slices, coronal and sagittal acquisitions, motion, tumours, "
            "strokes, surgery, children; change between studies.",
            "",
            "## Data",
            "",
            *(f"- {one}" for one in ATTRIBUTIONS),
            "",
        ]
    )


def _precision(recipe: Recipe) -> str:
    return "" if recipe.precision == "fp32" else f" --precision {recipe.precision}"


def shortened_iterations(recipe: Recipe) -> int:
    """Iterations of the models that are only measured."""
    from training.commands import shortened

    return shortened(recipe, ("any",)).iterations


def _left_out_rows(left_out: Measured) -> list[str]:
    return [
        f"| {patient} | {slices.replace('_', ' ')} | {found['dice']:.2f} "
        f"| {found['best_threshold_dice']:.2f} | {found['ppv']:.2f} | {found['sensitivity']:.2f} "
        f"| {found['volume_reference_ml']:.1f} / {found['volume_prediction_ml']:.1f} ml "
        f"| {found['lesion_f1']:.2f} |"
        for patient, by_slices in left_out.items()
        for slices, found in by_slices.items()
    ]


def _guard_rows(guards: Measured) -> list[str]:
    return [
        f"| {name} | {GUARD_LIMITS_ML[name]:.1f} | {found['ml_mirroring_on']:.2f} "
        f"| {found['ml_mirroring_off']:.2f} "
        f"| {'held' if found['ml_mirroring_on'] <= GUARD_LIMITS_ML[name] else 'NOT HELD'} |"
        for name, found in guards.items()
    ]
