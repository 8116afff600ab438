"""A pack with a small random network, made on the spot: nothing trained, but real in every file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model_pack import (
    CARD,
    DATASET,
    PLANS,
    Canvas,
    Description,
    LeakRule,
    Manifest,
    ModelPack,
    Summary,
    Weights,
    weights_path,
    write_pack,
)

ROWS, COLUMNS = 96, 64
STARTER_FEATURES = (16, 32, 64, 128, 128)
"""1.09 million parameters, as in `reference/starter_model.md`."""


def describe(**changes: object) -> Description:
    fields: dict[str, Any] = {
        "name": "tiny",
        "version": "1.0",
        "status": "research",
        "canvas": Canvas(
            rows=ROWS, columns=COLUMNS, pixel_mm=1, normalisation="starter", dilation_mm=2
        ),
        "mirroring_axes": (0, 1),
        "minimum_lesion_mm3": 5,
        "leak_rule": LeakRule(),
        "folds": (0, 1, 2, 3, 4),
        "patient_folds": False,
        "training_data": Summary(text="Nothing: random numbers.", figures={"patients": 0}),
        "validation": Summary(text="None."),
        "intended_use": "Tests.",
        "limits": ("Useless.",),
        "licence": "Apache-2.0",
    }
    return Description.model_validate(fields | changes)


def make_plans(
    rows: int = ROWS, columns: int = COLUMNS, features: tuple[int, ...] = (8, 16, 32)
) -> dict[str, Any]:
    """nnU-Net's plans of a plain 2-D U-Net, as far as a predictor reads them."""
    stages = len(features)
    return {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "tiny",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "2d": {
                "data_identifier": "tiny_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [rows, columns],
                "spacing": [1.0, 1.0],
                "normalization_schemes": ["NoNormalization"],
                "use_mask_for_norm": [False],
                "batch_dice": True,
                "architecture": {
                    "network_class_name": (
                        "dynamic_network_architectures.architectures.unet.PlainConvUNet"
                    ),
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "conv_op": "torch.nn.modules.conv.Conv2d",
                        "kernel_sizes": [[3, 3]] * stages,
                        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
                        "n_conv_per_stage": [2] * stages,
                        "n_conv_per_stage_decoder": [1] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }


DATASET_JSON = {
    "channel_names": {"0": "noNorm"},
    "labels": {"background": 0, "lesion": 1},
    "numTraining": 0,
    "file_ending": ".nii.gz",
}


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Random weights that mark a few per cent of the pixels, as trained ones do."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in sorted(shapes.items()):
        if len(shape) == 4:
            # A steep last layer: most pixels are decided, as they are once a network is trained.
            scale = np.sqrt(2 / np.prod(shape[1:])) * (2 if "seg_layers" in name else 1)
            weights[name] = random.normal(0, scale, shape).astype(np.float32)
        elif name.endswith("norm.weight"):
            weights[name] = np.ones(shape, np.float32)
        else:
            weights[name] = random.normal(0, 0.05, shape).astype(np.float32)
    last = max(name for name in shapes if "seg_layers" in name and name.endswith("bias"))
    weights[last] = np.array([1.2, -1.2], np.float32)
    return weights


def make_pack(path: Path, plans: dict[str, Any] | None = None, **changes: object) -> ModelPack:
    """A five-member pack of random weights (or as `changes` to the description say)."""
    plans = plans or make_plans()
    description = describe(**changes)
    shapes = parameter_shapes(plans)
    return write_pack(
        path,
        description,
        plans=plans,
        dataset_json=DATASET_JSON,
        weights={fold: random_weights(shapes, seed=fold) for fold in description.folds},
        card="# Tiny\n",
    )


def parameter_shapes(plans: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plans["configurations"]["2d"]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        allow_init=False,
        deep_supervision=False,
    )
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def heads(slices: int, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    """Prepared images: a smooth textured ellipse in each slice, zero around it."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    row, column = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    images = np.zeros((slices, rows, columns), np.float32)
    for index in range(slices):
        inside = (row / 0.8) ** 2 + (column / 0.85) ** 2 < 1 - 0.1 * index / slices
        texture = ndimage.gaussian_filter(random.normal(size=(rows, columns)), 2) * 1.5
        images[index][inside] = np.clip(0.53 + texture, 0, 1)[inside]
    return images


def manifest(**changes: object) -> Manifest:
    """A manifest without a pack behind it, for steps that only read its rules."""
    description = describe(**changes)
    names = [PLANS, DATASET, CARD, *(weights_path(fold) for fold in description.folds)]
    return Manifest(**dict(description), files=dict.fromkeys(names, "0" * 64))
