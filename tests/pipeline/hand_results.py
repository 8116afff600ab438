"""A results folder as nnU-Net v2 writes it, with weights that are made up: no training.

Every file has the shape of nnU-Net 2.8.1's (`nnUNetTrainer.save_checkpoint`), numpy numbers in the
log and all. `test_nnunet_volume.py` looks at folders that nnU-Net wrote itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

UNET = "dynamic_network_architectures.architectures.unet"
DATASET_JSON: dict[str, Any] = {
    "channel_names": {"0": "FLAIR"},
    "labels": {"background": 0, "lesion": 1},
    "numTraining": 12,
    "file_ending": ".nii.gz",
    "training": [{"image": "smith_john.nii.gz", "label": "smith_john.nii.gz"}],
}
PATCH = {"2d": [64, 48], "3d_fullres": [8, 32, 24]}
SPACING = {"2d": [1.0, 1.0], "3d_fullres": [3.0, 1.0, 1.0]}
FEATURES = (2, 2, 2)


def make_plans(configuration: str = "2d", **changes: object) -> dict[str, Any]:
    """Plans of one configuration, `changes` made to it; as `nnUNetv2_plan_experiment` has them."""
    dimensions = len(PATCH[configuration])
    stages = len(FEATURES)
    resampling = {
        f"resampling_fn_{use}{kwargs}": (
            {"is_seg": use == "seg", "order": order, "order_z": 0, "force_separate_z": None}
            if kwargs
            else "resample_data_or_seg_to_shape"
        )
        for use, order in (("data", 3), ("seg", 1), ("probabilities", 1))
        for kwargs in ("", "_kwargs")
    }
    return {
        "dataset_name": "Dataset007_Hand",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "original_median_shape_after_transp": [24, 200, 170],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 200.0, "std": 20.0, "percentile_00_5": 120.0, "percentile_99_5": 240.0}
        },
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": PATCH[configuration],
                "median_image_size_in_voxels": [24, 200, 170],
                "spacing": SPACING[configuration],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [True],
                **resampling,
                "batch_dice": True,
                "architecture": {
                    "network_class_name": f"{UNET}.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(FEATURES),
                        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                        "kernel_sizes": [[3] * dimensions] * stages,
                        "strides": [[1] * dimensions] + [[2] * dimensions] * (stages - 1),
                        "n_conv_per_stage": [2] * stages,
                        "n_conv_per_stage_decoder": [2] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
            | changes
        },
    }


def network_of(plans: Mapping[str, Any], configuration: str = "2d") -> torch.nn.Module:
    architecture = plans["configurations"][configuration]["architecture"]
    network: torch.nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        allow_init=False,
        deep_supervision=True,
    )
    return network


def random_state(
    plans: Mapping[str, Any], seed: int, configuration: str = "2d"
) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return network_of(plans, configuration).state_dict()


def bright_plans(configuration: str = "2d", **changes: object) -> dict[str, Any]:
    """Of a network without normalisation: brightness itself counts."""
    plans = make_plans(configuration, **changes)
    arguments = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    arguments |= {"norm_op": None, "norm_op_kwargs": {}}
    return plans


def bright_state(
    plans: Mapping[str, Any], threshold: float, configuration: str = "2d", steepness: float = 20.0
) -> dict[str, torch.Tensor]:
    """A voxel is lesion where what the network sees is above a threshold.

    The image passes the first stage and the last decoder stage unchanged; the rest is dark. The
    same by hand as `tests.integration.bright_pack`.
    """
    network = network_of(plans, configuration)
    centre = (1,) * len(PATCH[configuration])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name, parameter in network.named_parameters():
            if name.startswith("encoder.stages.0.") and name.endswith("conv.weight"):
                parameter[(0, 0, *centre)] = 1
            # The last decoder stage sees [from below, from the first stage]: take the second.
            if name == "decoder.stages.1.convs.0.conv.weight":
                parameter[(0, FEATURES[0], *centre)] = 1
            if name == "decoder.stages.1.convs.1.conv.weight":
                parameter[(0, 0, *centre)] = 1
            if name == "decoder.seg_layers.1.weight":
                parameter[1, 0] = steepness
            if name == "decoder.seg_layers.1.bias":
                parameter[1] = -steepness * threshold
    return network.state_dict()


def make_checkpoint(
    state: Mapping[str, torch.Tensor], plans: Mapping[str, Any], configuration: str, fold: int
) -> dict[str, Any]:
    return {
        "network_weights": dict(state),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.1), np.float32(0.2)],
            "dice_per_class_or_region": [[np.float32(0.1)], np.array([0.2], np.float32)],
            "epoch_start_timestamps": [1.7e9],
            "worst": np.int64(3),
        },
        "_best_ema": np.float64(0.1),
        "current_epoch": 1,
        "init_args": {
            "plans": deepcopy(dict(plans)),
            "configuration": configuration,
            "fold": fold,
            "dataset_json": DATASET_JSON,
            "device": torch.device("cuda", 0),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def write_results(
    folder: Path,
    plans: Mapping[str, Any],
    states: Mapping[int | str, Mapping[str, torch.Tensor]],
    configuration: str = "2d",
    dataset: Mapping[str, Any] = DATASET_JSON,
    **changes: object,
) -> Path:
    """The folder `nnUNetTrainer__nnUNetPlans__...`; `changes` are made to every checkpoint."""
    results = folder / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    results.mkdir(parents=True)
    (results / "plans.json").write_text(json.dumps(plans))
    (results / "dataset.json").write_text(json.dumps(dataset))
    for fold, state in states.items():
        (results / f"fold_{fold}").mkdir()
        checkpoint = make_checkpoint(state, plans, configuration, 0) | changes
        torch.save(checkpoint, results / f"fold_{fold}" / "checkpoint_final.pth")
    return results
