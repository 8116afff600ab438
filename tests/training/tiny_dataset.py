"""A dataset of bright blobs in nnU-Net's preprocessed form, small enough to train on in seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy import ndimage

from training.dataset import DATASET_REVISION
from training.recipe import Recipe

IDENTIFIER = "tinyPlans_2d"
PATCH = (32, 48)


@dataclass(frozen=True)
class TinyDataset:
    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    recipe: Recipe
    splits: list[dict[str, list[str]]]
    seed: int = 7
    digest: str = "0" * 64

    def plain_train(self, fold: int) -> list[str]:
        return self.splits[fold]["train"]


def recipe(**training: Any) -> Recipe:  # noqa: ANN401
    return Recipe.model_validate(
        {
            "name": "tiny",
            "summary": "for tests",
            "preprocessing": "canvas",
            "canvas": {
                "rows": PATCH[0],
                "columns": PATCH[1],
                "pixel_mm": 4.0,
                "normalisation": "starter",
                "dilation_mm": 2.0,
            },
            "augmentation": "nnunet",
            "mirroring_axes": [1],
            "training": {
                "epochs": 3,
                "iterations_per_epoch": 4,
                "validation_iterations": 2,
                "batch_size": 2,
                **training,
            },
        }
    )


def architecture() -> dict[str, Any]:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * 3,
            "strides": [[1, 1], [2, 2], [2, 2]],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans(batch_size: int = 2) -> dict[str, Any]:
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "tinyPlans",
        "original_median_spacing_after_transp": [4.0, 4.0, 4.0],
        "original_median_shape_after_transp": [5, 40, 56],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "test",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "2d": {
                "data_identifier": IDENTIFIER,
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": batch_size,
                "patch_size": list(PATCH),
                "median_image_size_in_voxels": [40, 56],
                "spacing": [4.0, 4.0],
                "normalization_schemes": ["NoNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
                "batch_dice": True,
                "architecture": architecture(),
            }
        },
    }


def put_dataset(
    folder: Path, one: Recipe | None = None, cases: int = 4, brightness: float = 0.4
) -> TinyDataset:
    """Cases of (1, 5, 40, 56): a blob brighter than noise in slices 1 to 3."""
    one = one or recipe()
    data = folder / IDENTIFIER
    data.mkdir(parents=True)
    names = [f"case{number}" for number in range(cases)]
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        image = ndimage.gaussian_filter(rng.random((5, 40, 56)), (0, 1, 1))
        row, column = np.ogrid[:40, :56]
        disc = np.hypot(row - rng.uniform(12, 28), column - rng.uniform(12, 44)) < 6
        mask = np.zeros((5, 40, 56), np.bool_)
        mask[1:4] = disc
        image[mask] += brightness
        seg = mask.astype(np.int8)[None]
        locations = DefaultPreprocessor._sample_foreground_locations(seg, [1])
        blosc2.set_nthreads(1)
        nnUNetDatasetBlosc2.save_case(
            np.clip(image, 0, 1).astype(np.float32)[None],
            seg,
            {"class_locations": locations, "spacing": [4.0, 4.0, 4.0]},
            str(data / name),
            chunks=(1, 1, 40, 56),
            blocks=(1, 1, 40, 56),
        )
    dataset_json = {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    splits = [
        {"train": names[: cases // 2], "val": names[cases // 2 :]},
        {"train": names[cases // 2 :], "val": names[: cases // 2]},
    ]
    return TinyDataset(folder, plans(one.training.batch_size or 2), dataset_json, one, splits)


def put_run(run: Path, one: Recipe | None = None) -> TinyDataset:
    """A run as `training.dataset.open_dataset` reads it, of the same cases."""
    made = put_dataset(run / "dataset", one)
    origins = {
        name: {
            "case": name,
            "patients": [name],
            "parts": [f"fold {fold}"],
            "copy": 0,
            "semi_synthetic": False,
            "lesions": True,
        }
        for fold, lists in enumerate(made.splits)
        for name in lists["val"]
    }
    contents: dict[str, Any] = {
        "run.json": {"recipe": made.recipe.digest, "seed": made.seed},
        "dataset/plans.json": made.plans,
        "dataset/dataset.json": made.dataset_json,
        "dataset/splits_final.json": made.splits,
        "dataset/index.json": {
            "revision": DATASET_REVISION,
            "digest": made.digest,
            "origins": origins,
        },
    }
    for name, content in contents.items():
        (run / name).write_text(json.dumps(content))
    (run / "recipe.json").write_text(made.recipe.model_dump_json())
    return made
