"""The trained members of the starter recipe as a model pack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.brain import SURFACE_REFINE_VERSION
from pipeline.model_pack import (
    Canvas,
    Description,
    Extractor,
    LeakRule,
    ModelPack,
    Summary,
    ValidatedGeometry,
    Weights,
    write_pack,
)
from training.starter import ARCHITECTURE, CANVAS, DRAW_WEIGHTS, Recipe

PACK_VERSION = "1.1"  # other weights, other version: results name it
MINIMUM_LESION_MM3 = 5.0  # 10 mm3 costs lesion F1 on patient 19
LEFT_RIGHT: Literal[1] = (
    1  # axis of (row, column): a brain is nearly its own mirror image that way only
)

INTENDED_USE = (
    "Research only: to try the node with real weights, and as a start for a site's own training. "
    "Not for diagnosis or follow-up."
)
LIMITS = (
    "Trained on two patients with full expert lesion masks, partially labelled longitudinal scans "
    "of five patients, and semi-synthetic lesions.",
    "It underestimates volume, misses faint and periventricular lesions, and marks strip "
    "leftovers, hippocampus and tumours.",
    "When either labelled training patient was left out it did worse than a plain threshold there.",
    "Not validated, not for diagnosis or follow-up; every site must train or validate on its own "
    "cases.",
)
ATTRIBUTIONS = (
    "Trained on the MS image databases of the Laboratory of Imaging Technologies, University of "
    "Ljubljana, licence CC BY, as packaged in muschellij2/open_ms_data (commit 65704901): "
    "Žiga Lesjak, Franjo Pernuš, Boštjan Likar, and Žiga Špiclin. A Novel Public MR Image Dataset "
    "of Multiple Sclerosis Patients With Lesion Segmentations Based on Multi-rater Consensus. "
    "Neuroinformatics (2017), doi:10.1007/s12021-017-9348-7.",
    "Žiga Lesjak, Franjo Pernuš, Boštjan Likar, and Žiga Špiclin. Validation of White-Matter "
    "Lesion Change Detection Methods on a Novel Publicly Available MRI Image Database. "
    "Neuroinformatics (2016).",
    "Changes made to these data: resampled, masked, relabelled by intensity; lesions of one "
    "patient painted into images of another.",
)


def plans() -> dict[str, Any]:
    """nnU-Net's plans of the starter network, as far as a predictor reads them."""
    return {
        "dataset_name": "Dataset001_FlairnodeStarter",
        "plans_name": "flairnodeStarterPlans",
        "original_median_spacing_after_transp": [3.0, CANVAS.pixel_mm, CANVAS.pixel_mm],
        "original_median_shape_after_transp": [48, CANVAS.rows, CANVAS.columns],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "flairnode",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "2d": {
                "data_identifier": "flairnodeStarterPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": Recipe().batch_size,
                "patch_size": [CANVAS.rows, CANVAS.columns],
                "median_image_size_in_voxels": [CANVAS.rows, CANVAS.columns],
                "spacing": [CANVAS.pixel_mm, CANVAS.pixel_mm],
                "normalization_schemes": ["NoNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
                "batch_dice": True,
                "architecture": dict(ARCHITECTURE),
            }
        },
    }


def dataset_json(cases: int) -> dict[str, Any]:
    """nnU-Net's description of the training set; `noNorm` keeps it from normalising again."""
    return {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def read_member(folder: Path) -> Weights:
    """The averaged weights of a member that is trained to the end.

    Raises:
        ValueError: The member is not finished.
    """
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{folder} holds no checkpoint: train this member first")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    wanted = json.loads(checkpoint["recipe"])["iterations"]
    if checkpoint["done"] < wanted:
        raise ValueError(f"{folder} is at iteration {checkpoint['done']} of {wanted}: resume it")
    return {name: tensor.numpy() for name, tensor in checkpoint["average"].items()}


def describe(folds: Sequence[int], *, validation: Summary, recipe: Recipe) -> Description:
    """The manifest of a starter pack."""
    return Description(
        name="starter",
        version=PACK_VERSION,
        status="research",
        configuration="2d",
        preprocessing="canvas",
        canvas=Canvas(
            rows=CANVAS.rows,
            columns=CANVAS.columns,
            pixel_mm=CANVAS.pixel_mm,
            normalisation=CANVAS.normalisation,
            dilation_mm=CANVAS.dilation_mm,
        ),
        extractors=(Extractor(method="surface-refine", version=SURFACE_REFINE_VERSION),),
        mirroring_axes=(LEFT_RIGHT,),
        threshold=0.5,
        minimum_lesion_mm3=MINIMUM_LESION_MM3,
        leak_rule=LeakRule(),
        folds=tuple(folds),
        patient_folds=False,
        # Nothing is validated. These are the spacings that were looked at; beyond them: review.
        validated_geometry=ValidatedGeometry(
            slice_spacing_mm=(1.0, 5.0), pixel_spacing_mm=(0.55, 1.0)
        ),
        training_data=Summary(
            text=(
                "Two patients with full expert lesion masks (MNI space, 1 mm), eight clinical "
                "scans of five patients with partial labels made from change masks, and lesions "
                "of 22 further patients inserted in one of the two (semi-synthetic)."
            ),
            figures={
                "draw_weights": dict(DRAW_WEIGHTS),
                "iterations": recipe.iterations,
                "batch_size": recipe.batch_size,
                "seed": recipe.seed,
                "precision": recipe.precision,
            },
        ),
        validation=validation,
        intended_use=INTENDED_USE,
        limits=LIMITS,
        licence="Apache-2.0; attribution of the training data: see attributions",
        attributions=ATTRIBUTIONS,
        software={name: version(name) for name in ("torch", "nnunetv2", "numpy", "scipy")},
    )


def starter_pack(
    path: Path,
    members: Mapping[int, Path],
    *,
    validation: Summary,
    card: str,
    recipe: Recipe,
) -> ModelPack:
    """Write a pack of trained members.

    Args:
        path: Where; must not exist.
        members: Folder of every member, by number.
        validation: What was measured, and with which weights.
        card: Markdown, for people.
        recipe: That the members were trained with.
    """
    return write_pack(
        path,
        describe(sorted(members), validation=validation, recipe=recipe),
        plans=plans(),
        dataset_json=dataset_json(cases=10),
        weights={number: read_member(folder) for number, folder in members.items()},
        card=card,
    )
