"""A stock nnU-Net v2 results folder, made by nnU-Net itself: plan, preprocess, train, two folds.

Run as a script, in a process of its own, because nnU-Net reads its folders from the environment
and has a say in torch's threads. The networks are tiny and hardly trained: what is looked at is
whether another program computes the same from the same files.

    python tests/pipeline/stock_results.py FOLDER

leaves FOLDER/results/Dataset501_Bright/nnUNetTrainer__nnUNetPlans__{2d,3d_fullres}.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

DATASET = "Dataset501_Bright"
FOLDS = (0, 1)
CASES = 4
SPACING_MM = (3.0, 1.0, 1.25)
"""Of the cases, (slice, row, column): anisotropic, and pixels that are not square."""
PATCH = {"2d": [32, 24], "3d_fullres": [6, 24, 20]}
STRIDES = {"2d": [[1, 1], [2, 2], [2, 2]], "3d_fullres": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
ITERATIONS = {"2d": 60, "3d_fullres": 40}  # until it marks some voxels


def results_folder(folder: Path, configuration: str) -> Path:
    """Where nnU-Net leaves what it trained."""
    return folder / "results" / DATASET / f"nnUNetTrainer__nnUNetPlans__{configuration}"


def make(folder: Path) -> None:
    """Run this file in a process that has nnU-Net's folders in its environment."""
    environment = os.environ | {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(  # our own script
        [sys.executable, __file__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"nnU-Net made no results:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )


def blob_case(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """A textured ellipsoid in nothing, with bright blobs in it, and the blobs."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    shape = (12, 44 + 2 * seed, 34 + seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (place**2).sum(axis=0) < 0.8
    image = 100 + 40 * ndimage.gaussian_filter(random.normal(size=shape), (0.7, 2, 2)) * 3
    blobs = ndimage.gaussian_filter(random.normal(size=shape), (0.6, 1.5, 1.5))
    lesion = inside & (blobs > np.quantile(blobs[inside], 0.94))
    image = np.where(lesion, image * 1.7, image) * inside
    return image.astype(np.float32), lesion.astype(np.uint8)


def _write_raw(raw: Path) -> None:
    import SimpleITK as sitk  # noqa: N813  # as everywhere

    for sub in ("imagesTr", "labelsTr"):
        (raw / sub).mkdir(parents=True)
    for case in range(CASES):
        for array, file in zip(
            blob_case(case), (f"imagesTr/c{case}_0000", f"labelsTr/c{case}"), strict=True
        ):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(SPACING_MM[::-1])
            sitk.WriteImage(image, str(raw / f"{file}.nii.gz"))
    _write_json(
        raw / "dataset.json",
        {
            "channel_names": {"0": "FLAIR"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": CASES,
            "file_ending": ".nii.gz",
        },
    )


def _tiny(configuration: dict[str, Any], name: str) -> None:
    """A small patch, three stages, few features: nnU-Net's own kind of network, in seconds."""
    strides = STRIDES[name]
    configuration["patch_size"] = PATCH[name]
    configuration["batch_size"] = 2
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [6, 8, 12],
        "kernel_sizes": [[3] * len(strides[0])] * 3,
        "strides": strides,
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _run(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    # nnU-Net asks for pools of new processes, each of which imports torch; for four tiny cases
    # threads of this one do.
    multiprocessing.get_context = lambda _method: SimpleNamespace(Pool=ThreadPool)  # type: ignore[assignment]
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
    )
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    _write_raw(folder / "raw" / DATASET)
    extract_fingerprint_dataset(501, num_processes=1)
    plan_experiment_dataset(501)
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  # batches in this process; planning had one
    preprocessed = folder / "preprocessed" / DATASET
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    for name in PATCH:
        _tiny(plans["configurations"][name], name)
    _write_json(preprocessed / "nnUNetPlans.json", plans)
    cases = [f"c{case}" for case in range(CASES)]
    splits = [{"train": cases[:2], "val": cases[2:]}, {"train": cases[2:], "val": cases[:2]}]
    _write_json(preprocessed / "splits_final.json", splits)
    dataset = json.loads((folder / "raw" / DATASET / "dataset.json").read_text())
    _write_json(preprocessed / "dataset.json", dataset)
    for name in PATCH:
        DefaultPreprocessor(verbose=False).run(501, name, "nnUNetPlans", num_processes=1)
        for fold in FOLDS:
            torch.manual_seed(fold)
            np.random.seed(fold)  # noqa: NPY002  # nnU-Net's loaders draw from it
            fresh = json.loads(json.dumps(plans)) | {"continue_training": False}
            trainer = nnUNetTrainer(fresh, name, fold, dataset, torch.device("cpu"))
            trainer.num_epochs = 1
            trainer.num_iterations_per_epoch = ITERATIONS[name]
            trainer.num_val_iterations_per_epoch = 1
            trainer.run_training()


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
