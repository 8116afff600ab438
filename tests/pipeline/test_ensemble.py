"""Five members say what nnU-Net says, quickly, repeatably, and never NaN without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from safetensors.torch import load

from dicom.errors import Outcome
from pipeline.ensemble import DeviceError, Ensemble, Mirroring, NetworkOutputError, build_network
from pipeline.model_pack import (
    ModelPack,
    ModelPackError,
    ModelPackUnsupportedError,
    weights_path,
    write_pack,
)
from tests.pipeline.tiny_pack import (
    DATASET_JSON,
    STARTER_FEATURES,
    describe,
    heads,
    make_pack,
    make_plans,
    parameter_shapes,
    random_weights,
)

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> ModelPack:
    """Five random members of the starter's architecture."""
    path = tmp_path_factory.mktemp("packs") / "tiny"
    return make_pack(path, make_plans(features=STARTER_FEATURES))


@pytest.fixture(scope="module")
def images() -> Array:
    return heads(slices=3)


@pytest.fixture(scope="module")
def ensemble(pack: ModelPack) -> Ensemble:
    return Ensemble.load(pack, device="cpu", threads=1)


def foreground(logits: Array) -> npt.NDArray[np.float64]:
    """Softmax over two classes, written out."""
    exponent = np.exp(logits.astype(np.float64))
    return exponent[1] / exponent.sum(axis=0)


def nnunet_logits(pack: ModelPack, images: Array, axes: tuple[int, ...] | None) -> Array:
    """What `nnUNetPredictor` says, with its defaults, of the same preprocessed array."""
    network = build_network(pack)
    states = []
    for fold in pack.manifest.folds:
        weights = load(pack.read(weights_path(fold)))
        for name, parameter in network.named_parameters():
            parameter.data.copy_(weights[name])
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    plans = PlansManager(pack.read_json("plans.json"))
    predictor = nnUNetPredictor(
        use_mirroring=axes is not None,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration("2d"),
        states,
        pack.read_json("dataset.json"),
        "tiny",
        axes,
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(images[None]))
    result: Array = logits.float().numpy()
    return result


@pytest.mark.parametrize("mirroring", ["off", "on"])
def test_the_ensemble_says_what_nnunet_predictor_says(
    pack: ModelPack, images: Array, mirroring: Mirroring
) -> None:
    ours = foreground(
        Ensemble.load(pack, device="cpu", mirroring=mirroring, threads=1).logits(images)
    )
    axes = pack.manifest.mirroring_axes if mirroring == "on" else None
    theirs = foreground(nnunet_logits(pack, images, axes))
    assert np.abs(ours - theirs).max() <= 2e-3
    assert np.mean((ours > 0.5) == (theirs > 0.5)) >= 0.9999
    assert 0 < np.mean(ours > 0.5) < 0.1  # the comparison is not one of empty masks


def test_the_result_is_softmax_of_the_mean_of_logits_one_slice_at_a_time(
    pack: ModelPack, ensemble: Ensemble, images: Array
) -> None:
    network = build_network(pack).eval()
    members = []
    for fold in pack.manifest.folds:
        weights = load(pack.read(weights_path(fold)))
        for name, parameter in network.named_parameters():
            parameter.data.copy_(weights[name])
        with torch.inference_mode():
            single = [network(torch.from_numpy(one[None, None]))[0] for one in images]
        members.append(torch.stack(single, dim=1).numpy())
    segmentation = ensemble.segment(images)
    expected = foreground(np.mean(members, axis=0))
    np.testing.assert_allclose(segmentation.probability, expected, atol=1e-5)
    spread = np.std([foreground(member) for member in members], axis=0)
    np.testing.assert_allclose(segmentation.disagreement, spread, atol=1e-5)


def test_the_same_images_give_the_same_bits(pack: ModelPack, images: Array) -> None:
    first, second = (Ensemble.load(pack, device="cpu", threads=1).segment(images) for _ in range(2))
    assert first.probability.tobytes() == second.probability.tobytes()
    assert first.disagreement.tobytes() == second.disagreement.tobytes()


def test_a_slice_does_not_depend_on_its_neighbours(ensemble: Ensemble, images: Array) -> None:
    together = ensemble.segment(images).probability
    alone = ensemble.segment(images[2:3]).probability
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)


def test_a_slice_without_brain_is_not_asked_about(ensemble: Ensemble, images: Array) -> None:
    with_gap = images.copy()
    with_gap[1] = 0
    segmentation = ensemble.segment(with_gap)
    assert not segmentation.probability[1].any()
    assert not segmentation.disagreement[1].any()
    np.testing.assert_allclose(
        segmentation.probability[[0, 2]],
        ensemble.segment(images).probability[[0, 2]],
        atol=1e-5,
    )


def test_a_volume_without_brain_holds_no_lesion(ensemble: Ensemble, images: Array) -> None:
    segmentation = ensemble.segment(np.zeros_like(images))
    assert segmentation.probability.shape == images.shape
    assert not segmentation.probability.any()


def test_members_that_are_alike_do_not_disagree(tmp_path: Path, images: Array) -> None:
    plans = make_plans()
    same = random_weights(parameter_shapes(plans), seed=7)
    pack = write_pack(
        tmp_path / "p",
        describe(folds=(0, 1)),
        plans=plans,
        dataset_json=DATASET_JSON,
        weights={0: same, 1: same},
        card="",
    )
    segmentation = Ensemble.load(pack, device="cpu", threads=1).segment(images)
    assert segmentation.disagreement.max() < 1e-6


def test_mirroring_makes_the_answer_mirror_with_the_image(pack: ModelPack, images: Array) -> None:
    ensemble = Ensemble.load(pack, device="cpu", mirroring="on", threads=1)
    flipped = np.ascontiguousarray(images[:, :, ::-1])
    np.testing.assert_allclose(
        ensemble.segment(flipped).probability[:, :, ::-1],
        ensemble.segment(images).probability,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("mirroring", "allowed", "axes"),
    [("auto", (1,), ()), ("off", (1,), ()), ("on", (1,), (1,)), ("on", (), ())],
)
def test_mirroring_is_off_on_a_cpu_unless_asked_for_and_never_beyond_the_pack(
    tmp_path: Path, mirroring: Mirroring, allowed: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    pack = make_pack(tmp_path / "p", folds=(0,), mirroring_axes=allowed)
    ensemble = Ensemble.load(pack, device="cpu", mirroring=mirroring)
    assert ensemble.mirroring_axes == axes
    assert ensemble.settings() == {"mirroring_axes": list(axes), "precision": "fp32"}


def test_threads_are_set_for_the_network_and_given_back(pack: ModelPack, images: Array) -> None:
    before = torch.get_num_threads()
    two = Ensemble.load(pack, device="cpu", threads=2).segment(images[:1])
    one = Ensemble.load(pack, device="cpu", threads=1).segment(images[:1])
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(one.probability, two.probability, atol=1e-5)


def test_bf16_is_close_but_not_the_default(pack: ModelPack, images: Array) -> None:
    exact = Ensemble.load(pack, device="cpu", threads=1)
    fast = Ensemble.load(pack, device="cpu", threads=1, precision="bf16")
    assert exact.precision == "fp32"
    difference = np.abs(
        exact.segment(images[:1]).probability - fast.segment(images[:1]).probability
    )
    assert 0 < difference.mean() < 0.02


def test_nan_never_passes_for_no_lesion(ensemble: Ensemble, images: Array) -> None:
    with_nan = images.copy()
    with_nan[1, 40, 30] = np.nan
    with pytest.raises(NetworkOutputError, match="not finite") as error:
        ensemble.segment(with_nan)
    assert error.value.outcome is Outcome.FAILED


@pytest.mark.parametrize("shape", [(2, 96, 60), (96, 64), (1, 2, 96, 64)])
def test_images_of_another_size_than_the_canvas_are_a_mistake(
    ensemble: Ensemble, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="canvas"):
        ensemble.segment(np.zeros(shape, np.float32))


def test_a_device_that_is_not_there_is_a_coded_error(pack: ModelPack) -> None:
    with pytest.raises(DeviceError) as error:
        Ensemble.load(pack, device="cuda:97")
    assert error.value.reason == "device-unavailable"


def test_a_pack_with_nnunets_own_preprocessing_is_refused_in_plain_words(tmp_path: Path) -> None:
    feeding = {"preprocessing": "nnunet", "nnunet": {"image": "brain"}}
    pack = make_pack(tmp_path / "p", folds=(0,), canvas=None, leak_rule=None, **feeding)
    with pytest.raises(ModelPackUnsupportedError, match="no canvas") as error:
        Ensemble.load(pack)
    assert error.value.reason == "model-pack-unsupported"


def change(plans: dict[str, Any], **changes: object) -> dict[str, Any]:
    plans["configurations"]["2d"] |= changes
    return plans


def test_a_pack_that_would_be_normalised_twice_is_refused(tmp_path: Path) -> None:
    plans = change(make_plans(), normalization_schemes=["ZScoreNormalization"])
    with pytest.raises(ModelPackUnsupportedError, match="noNorm"):
        Ensemble.load(make_pack(tmp_path / "p", plans, folds=(0,)))


def test_a_patch_that_is_not_the_canvas_is_refused(tmp_path: Path) -> None:
    plans = change(make_plans(), patch_size=[64, 64])
    with pytest.raises(ModelPackUnsupportedError, match="patch"):
        Ensemble.load(make_pack(tmp_path / "p", plans, folds=(0,)))


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("network_class_name", "os.system"),
        (
            "network_class_name",
            "dynamic_network_architectures.initialization.weight_init.Init",
        ),
        ("conv_op", "builtins.eval"),
    ],
)
def test_plans_cannot_name_any_class_that_python_can_import(
    tmp_path: Path, where: str, name: str
) -> None:
    plans = make_plans()
    pack = make_pack(tmp_path / "good", plans, folds=(0,))
    weights = load_numpy(pack)
    architecture = plans["configurations"]["2d"]["architecture"]
    (architecture if where in architecture else architecture["arch_kwargs"])[where] = name
    changed = write_pack(
        tmp_path / "bad",
        describe(folds=(0,)),
        plans=plans,
        dataset_json=DATASET_JSON,
        weights={0: weights},
        card="",
    )
    with pytest.raises(ModelPackUnsupportedError, match=name.split(".")[0]):
        Ensemble.load(changed)


def load_numpy(pack: ModelPack) -> dict[str, np.ndarray]:
    return {
        name: tensor.float().numpy() for name, tensor in load(pack.read(weights_path(0))).items()
    }


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = random_weights(parameter_shapes(make_plans(features=(4, 8, 16))), seed=0)
    pack = write_pack(
        tmp_path / "p",
        describe(folds=(0,)),
        plans=make_plans(),
        dataset_json=DATASET_JSON,
        weights={0: other},
        card="",
    )
    with pytest.raises(ModelPackError, match="does not fit"):
        Ensemble.load(pack)


@pytest.mark.parametrize("plans", [{}, {"configurations": {"2d": {}}}, {"configurations": []}])
def test_plans_that_describe_no_network_are_a_coded_error(
    tmp_path: Path, plans: dict[str, Any]
) -> None:
    pack = write_pack(
        tmp_path / "p",
        describe(folds=(0,)),
        plans=plans,
        dataset_json=DATASET_JSON,
        weights={0: {"a": np.zeros(1)}},
        card="",
    )
    with pytest.raises(ModelPackError):
        Ensemble.load(pack)


def test_only_one_channel_and_two_classes_are_run(tmp_path: Path) -> None:
    shapes = parameter_shapes(make_plans())
    for number, dataset in enumerate(
        [
            DATASET_JSON | {"channel_names": {"0": "noNorm", "1": "noNorm"}},
            DATASET_JSON | {"labels": {"background": 0, "active": 1, "inactive": 2}},
        ]
    ):
        pack = write_pack(
            tmp_path / str(number),
            describe(folds=(0,)),
            plans=make_plans(),
            dataset_json=dataset,
            weights={0: random_weights(shapes, seed=0)},
            card="",
        )
        with pytest.raises(ModelPackUnsupportedError):
            Ensemble.load(pack)


def test_the_ensemble_imports_neither_torchvision_nor_timm() -> None:
    code = (
        "import sys; import pipeline.ensemble; "
        "print([m for m in ('torchvision', 'timm', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run(  # our own interpreter, our own words
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


def test_a_layer_is_named_whole_and_not_reached_through_a_module(tmp_path: Path) -> None:
    """`torch.nn.modules.module.warnings.sys` begins as a layer does, and is the interpreter."""
    plans = make_plans()
    weights = random_weights(parameter_shapes(plans), seed=0)
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["nonlin"] = "torch.nn.modules.module.warnings.sys.exit"
    pack = write_pack(
        tmp_path / "p",
        describe(folds=(0,)),
        plans=plans,
        dataset_json=DATASET_JSON,
        weights={0: weights},
        card="",
    )
    with pytest.raises(ModelPackUnsupportedError, match="no layer"):
        Ensemble.load(pack)
