"""The exported pack: nnU-Net builds from it exactly the network that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from pipeline.ensemble import Ensemble
from pipeline.model_pack import ModelPack, Summary
from training.pack import dataset_json, plans, read_member, starter_pack
from training.starter import Recipe
from training.trainer import build_network, train

RECIPE = Recipe(iterations=1, batch_size=1)


def noise(iteration: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(iteration)
    image = rng.random((1, 32, 32), dtype=np.float32)
    return image, (image > 0.9).astype(np.uint8)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("members")
    for number in range(2):
        train(folder / str(number), noise, RECIPE, number, lambda _: None)
    return {number: folder / str(number) for number in range(2)}


@pytest.fixture(scope="module")
def pack(members: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> ModelPack:
    return starter_pack(
        tmp_path_factory.mktemp("packs") / "starter",
        members,
        validation=Summary(text="None."),
        card="# test\n",
        recipe=RECIPE,
    )


def test_the_pack_says_what_the_members_are(pack: ModelPack) -> None:
    manifest = pack.manifest
    assert manifest.status == "research"
    assert manifest.patient_folds is False
    assert manifest.folds == (0, 1)
    assert manifest.mirroring_axes == (1,)
    assert manifest.threshold == 0.5
    assert manifest.minimum_lesion_mm3 == 5
    assert [one.method for one in manifest.extractors] == ["surface-refine"]
    assert any("Lesjak" in line for line in manifest.attributions)


def test_weights_are_stored_once_in_half_precision(
    pack: ModelPack, members: dict[int, Path]
) -> None:
    file = pack.path / "fold_0" / "weights.safetensors"
    assert file.stat().st_size < 2.4e6
    assert len(read_member(members[0])) == 72


def test_nnunet_builds_the_trained_network_from_the_plans(pack: ModelPack) -> None:
    configuration = PlansManager(pack.read_json("plans.json")).get_configuration("2d")
    assert list(configuration.patch_size) == [224, 192]
    assert list(configuration.spacing) == [1.0, 1.0]
    trained = dict(build_network().named_parameters())
    architecture = configuration.configuration["architecture"]
    assert sum(p.numel() for p in trained.values()) == 1_091_544
    assert architecture["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 128, 128]


def test_nnunet_predicts_what_the_ensemble_predicts(
    pack: ModelPack, members: dict[int, Path]
) -> None:
    images = np.zeros((2, 224, 192), np.float32)
    images[:, 40:180, 40:150] = np.random.default_rng(0).random((2, 140, 110), dtype=np.float32)
    ours = Ensemble.load(pack, device="cpu", mirroring="off", threads=1).logits(images)

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), verbose=False)
    network = build_network(deep_supervision=False)
    weights = []
    for folder in members.values():
        trained = read_member(folder)
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(torch.from_numpy(trained[name]).half().float())
        weights.append({key: value.clone() for key, value in network.state_dict().items()})
    predictor.manual_initialization(
        network, PlansManager(plans()), configuration(), weights, dataset_json(10), "x", (1,)
    )
    predictor.allow_tqdm = False
    theirs = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(images[None]))

    # Theirs are weighted and summed in fp16: in the corners the weights are subnormal there.
    head = (slice(None), slice(None), slice(40, 180), slice(40, 150))
    assert np.abs(ours - theirs.float().numpy())[head].max() < 5e-3


def configuration() -> Any:  # noqa: ANN401  # nnU-Net's ConfigurationManager is not typed
    return PlansManager(plans()).get_configuration("2d")


def test_the_channel_is_not_normalised_again() -> None:
    assert dataset_json(10)["channel_names"] == {"0": "noNorm"}
    assert dataset_json(10)["labels"] == {"background": 0, "lesion": 1}
    assert plans()["configurations"]["2d"]["normalization_schemes"] == ["NoNormalization"]
    json.dumps(plans())


def test_an_unfinished_member_is_not_exported(members: dict[int, Path], tmp_path: Path) -> None:
    checkpoint = torch.load(members[0] / "checkpoint.pt", weights_only=True)
    checkpoint["done"] = 0
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="iteration 0 of 1"):
        read_member(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint"):
        read_member(tmp_path / "nowhere")
