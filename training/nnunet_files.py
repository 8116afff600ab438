"""Cases and plans in the forms that nnU-Net 2.8.1 reads: `nnUNetDatasetBlosc2`, `PlansManager`.

A case is encoded in memory and written by us: blosc2 reports a full disk in its own way, and a
file's digest is known before it is there.
"""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251  # nnU-Net reads a case's properties from one; written here only
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.network_topology import (
    get_pool_and_conv_props,
)
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from pipeline.morphology import Mask
from training.recipe import Recipe, RecipeError
from training.whole_files import write_text

PLANS_NAME = "nnUNetPlans"
DATASET_NAME = "dataset"
"""nnU-Net's `nnUNet_preprocessed` is the folder of a run, and this its data set."""
MOST_FEATURES = 512  # nnU-Net's planner, 2d
SMALLEST_MAP = 4  # pixels along an edge; nnU-Net's planner
INTENSITIES_PER_CASE = 10_000  # nnU-Net's fingerprint, default of analyze_case

Json = dict[str, Any]
Image = npt.NDArray[np.float32]


# --- one case -----------------------------------------------------------------------------------


def encode_case(
    images: Image, masks: npt.NDArray[Any], properties: Json, patch_size: Sequence[int]
) -> dict[str, bytes]:
    """The three files of a case, by what follows its name.

    Args:
        images: (1, slices, rows, columns).
        masks: Likewise; -1 is outside of what nnU-Net looks at.
        properties: With `class_locations`.
        patch_size: Decides how the arrays are cut into blocks.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        ".b2nd": images.astype(np.float32),
        "_seg.b2nd": masks.astype(np.int16),
    }
    files = {suffix: _encode(array, patch_size) for suffix, array in arrays.items()}
    files[".pkl"] = pickle.dumps(properties, protocol=4)
    return files


def _encode(array: npt.NDArray[Any], patch_size: Sequence[int]) -> bytes:
    # As nnUNetDatasetBlosc2.save_case, and one thread.
    array = np.ascontiguousarray(array)
    blocks, chunks = comp_blosc2_params(array.shape, tuple(patch_size), array.itemsize)
    codec, level = blosc2.Codec.LZ4HC, 5
    chosen = nnUNetDatasetBlosc2._select_filter(array, blocks, chunks, codec, level)
    encoded = blosc2.asarray(
        array,
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": codec, "clevel": level, "nthreads": 1, "filters": [chosen]},
        contiguous=True,
    )
    frame: bytes = encoded.to_cframe()
    return frame


def lesion_locations(masks: Mask) -> dict[int, Any]:
    """`class_locations` of a case (1, slices, rows, columns): nnU-Net oversamples from them."""
    sample = DefaultPreprocessor._sample_foreground_locations
    found: dict[int, Any] = sample(masks.astype(np.int8), [1])
    return found


def canvas_properties(masks: Mask, spacing_mm: tuple[float, float, float]) -> Json:
    """What nnU-Net keeps beside a case, for one that was not cropped and not resampled."""
    shape = masks.shape[1:]
    return {
        "spacing": list(spacing_mm),
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, length] for length in shape],
        "shape_after_cropping_and_before_resampling": shape,
        "class_locations": lesion_locations(masks),
    }


def fingerprint_of_case(
    image: Image, mask: Mask, spacing_mm: tuple[float, float, float]
) -> tuple[Json, Image]:
    """What nnU-Net's fingerprint takes from a case, and a sample of its lesion intensities."""
    data, seg, _ = crop_to_nonzero(image[None].astype(np.float32), mask[None].astype(np.int8))
    found, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        seg, data, num_samples=INTENSITIES_PER_CASE
    )
    facts = {
        "shape": [int(length) for length in data.shape[1:]],
        "spacing": [float(step) for step in spacing_mm],
        "relative_size": float(np.prod(data.shape[1:]) / image.size),
    }
    return facts, np.asarray(found[0], np.float32)


def fingerprint(facts: Sequence[Json], intensities: Sequence[Image]) -> Json:
    """`dataset_fingerprint.json`, as DatasetFingerprintExtractor.run puts it together."""
    pooled = np.concatenate(list(intensities)) if intensities else np.zeros(0, np.float32)
    if not pooled.size:
        pooled = np.zeros(1, np.float32)
    low, median, high = np.percentile(pooled, (0.5, 50.0, 99.5))
    return {
        "spacings": [one["spacing"] for one in facts],
        "shapes_after_crop": [one["shape"] for one in facts],
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": float(np.mean(pooled)),
                "median": float(median),
                "std": float(np.std(pooled)),
                "min": float(np.min(pooled)),
                "max": float(np.max(pooled)),
                "percentile_99_5": float(high),
                "percentile_00_5": float(low),
            }
        },
        "median_relative_size_after_cropping": float(
            np.median([one["relative_size"] for one in facts])
        ),
    }


def preprocess_case(
    image: Image, mask: Mask, spacing_mm: tuple[float, float, float], plans: Json, dataset: Json
) -> tuple[Image, npt.NDArray[Any], Json]:
    """A case by nnU-Net's own preprocessor: images, masks and properties for `encode_case`."""
    manager = PlansManager(deepcopy(plans))
    (name,) = plans["configurations"]
    images, masks, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image[None],
        mask[None].astype(np.int8),
        {"spacing": list(spacing_mm)},
        manager,
        manager.get_configuration(name),
        dataset,
    )
    return images, masks, properties


# --- plans --------------------------------------------------------------------------------------


def dataset_json(recipe: Recipe, cases: int, more: Json) -> Json:
    """`dataset.json`. Nothing but lesion and background; the image normalised by us, or z-scored.

    Args:
        recipe: Of the run.
        cases: Number of training cases.
        more: Of ours; nnU-Net leaves what it does not know alone.
    """
    return {
        "channel_names": {"0": "noNorm" if recipe.preprocessing == "canvas" else "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        **more,
    }


def canvas_plans(recipe: Recipe, prints: Json) -> Json:
    """`plans.json` for slices of a canvas: nothing is cropped, resampled or normalised.

    Raises:
        RecipeError: The network does not fit the canvas.
    """
    canvas = recipe.canvas
    if canvas is None:
        raise ValueError("the recipe has no canvas")
    patch = (canvas.rows, canvas.columns)
    spacing_mm = (canvas.pixel_mm, canvas.pixel_mm)
    resampling: Json = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": f"{PLANS_NAME}_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": recipe.training.batch_size,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing_mm),
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": _architecture(recipe, patch, spacing_mm),
        "batch_dice": True,
    }
    return _plain(
        {
            "dataset_name": DATASET_NAME,
            "plans_name": PLANS_NAME,
            "original_median_spacing_after_transp": [
                *_median(prints["spacings"])[:1],
                *spacing_mm,
            ],
            "original_median_shape_after_transp": [
                round(_median(prints["shapes_after_crop"])[0]),
                *patch,
            ],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"2d": configuration},
            "experiment_planner_used": "flairnode",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": prints[
                "foreground_intensity_properties_per_channel"
            ],
        }
    )


def _architecture(recipe: Recipe, patch: tuple[int, int], spacing_mm: tuple[float, float]) -> Json:
    """The recipe's own, or what nnU-Net's planner makes of the patch.

    Source: nnunetv2 2.8.1, ExperimentPlanner.get_plans_for_configuration.
    """
    if recipe.architecture is not None:
        given = deepcopy(recipe.architecture)
        # TOML has no null.
        given["arch_kwargs"] = {"dropout_op": None, "dropout_op_kwargs": None} | given[
            "arch_kwargs"
        ]
        shrink = np.prod(given["arch_kwargs"]["strides"], axis=0)
        if any(size % factor for size, factor in zip(patch, shrink, strict=True)):
            raise RecipeError(f"a canvas of {patch} pixels is no multiple of {list(shrink)}")
        return given
    _, strides, kernels, padded, multiple = get_pool_and_conv_props(
        spacing_mm, patch, SMALLEST_MAP, 999_999
    )
    if tuple(int(length) for length in padded) != patch:
        raise RecipeError(
            f"a canvas of {patch} pixels: nnU-Net's network for it wants multiples of "
            f"{[int(one) for one in multiple]}"
        )
    stages = len(strides)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(MOST_FEATURES, 32 * 2**stage) for stage in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": kernels,
            "strides": strides,
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def nnunet_plans(recipe: Recipe, prints: Json, dataset: Json, names: Sequence[str]) -> Json:
    """`plans.json` by nnU-Net's planner, with the recipe's configuration alone.

    In a scratch folder and in this process: the planner wants a raw data set and starts pools.

    Raises:
        RecipeError: nnU-Net plans no such configuration for these cases.
    """
    name = "Dataset001_flairnode"
    with TemporaryDirectory() as scratch:
        raw, preprocessed = Path(scratch) / "raw", Path(scratch) / "preprocessed"
        for folder in (raw, preprocessed):
            (folder / name).mkdir(parents=True)
        # Names alone: it never opens an image, since the reader is named.
        listed = {
            one: {"images": [f"{one}.nii.gz"], "label": f"{one}_mask.nii.gz"} for one in names
        }
        write_text(raw / name / "dataset.json", _json({**dataset, "dataset": listed}))
        write_text(preprocessed / name / "dataset_fingerprint.json", _json(prints))
        folders = {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(preprocessed)}
        # One process: with 0 it stops, and a network is built only to be measured.
        with _environment(**folders, nnUNet_n_proc_DA="1"), redirect_stdout(StringIO()):
            plans: Json = _plain(ExperimentPlanner(name).plan_experiment())
    if recipe.configuration not in plans["configurations"]:
        raise RecipeError(f"nnU-Net plans no {recipe.configuration} for these images")
    chosen = plans["configurations"][recipe.configuration]
    if recipe.training.batch_size is not None:
        chosen["batch_size"] = recipe.training.batch_size
    if recipe.architecture is not None:
        chosen["architecture"] = recipe.architecture
    return {
        **plans,
        "dataset_name": DATASET_NAME,
        "configurations": {recipe.configuration: chosen},
    }


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _median(rows: Sequence[Sequence[float]]) -> list[float]:
    return [float(value) for value in np.median(np.asarray(rows, np.float64), axis=0)]


def _plain(plans: Json) -> Json:
    """Without numpy's numbers."""
    recursive_fix_for_json_export(plans)
    out: Json = json.loads(json.dumps(plans))
    return out


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
