"""A results folder of nnU-Net becomes a pack to the bit, or is refused for a stated reason."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from pipeline.ensemble import load_ensemble
from pipeline.model_pack import ModelPack, ModelPackError, load_pack, weights_path
from pipeline.nnunet_import import (
    CheckpointTooLargeError,
    CheckpointUnreadableError,
    CheckpointUnsafeError,
    FoldsDifferError,
    FoldsMissingError,
    LinkInResultsError,
    NotNnUNetResultsError,
    Wanted,
    WeightsDoNotFitError,
    WeightsNotFiniteError,
    import_results,
    read_checkpoint,
)
from pipeline.nnunet_plans import (
    ConfigurationNotSupportedError,
    NetworkNotSupportedError,
    PreprocessingNotSupportedError,
    SeveralChannelsError,
    SeveralClassesError,
)
from tests.pipeline.hand_results import (
    DATASET_JSON,
    UNET,
    make_checkpoint,
    make_plans,
    network_of,
    random_state,
    write_results,
)

WANTED = Wanted(name="hand", version="1.0", image="brain")
CHECKPOINT = "fold_0/checkpoint_final.pth"


def write(folder: Path, plans: dict[str, Any] | None = None, **changes: object) -> Path:
    plans = plans or make_plans()
    return write_results(folder / "results", plans, {0: random_state(make_plans(), 0)}, **changes)


def take(results: Path, packs: Path, **changes: object) -> ModelPack:
    return import_results(results, packs, WANTED, **({"folds": (0,)} | changes))


def refused(
    error: type[ModelPackError], match: str, results: Path, packs: Path, **changes: object
) -> None:
    """With the reason, and with nothing left behind."""
    with pytest.raises(error, match=match):
        take(results, packs, **changes)
    assert not packs.exists() or not list(packs.iterdir())
    assert error.reason not in {"unspecified", "model-pack-invalid"}


def test_weights_are_those_of_the_checkpoints_to_the_bit(tmp_path: Path) -> None:
    plans = make_plans()
    states = {fold: random_state(plans, fold) for fold in range(5)}
    results = write_results(tmp_path, plans, states)
    pack = import_results(results, tmp_path / "packs", WANTED)
    assert pack.path == tmp_path / "packs" / "hand-1.0"
    assert pack.manifest.folds == (0, 1, 2, 3, 4)
    for fold, state in states.items():
        stored = load(pack.read(weights_path(fold)))
        assert all(torch.equal(stored[name], state[name]) for name in stored)
        assert stored.keys() == dict(network_of(plans).named_parameters()).keys()


def test_the_pack_says_that_it_was_imported_and_what_is_not_known(tmp_path: Path) -> None:
    pack = take(write(tmp_path), tmp_path / "packs")
    manifest = pack.manifest
    assert (manifest.status, manifest.preprocessing, manifest.configuration) == (
        "research",
        "nnunet",
        "2d",
    )
    assert manifest.nnunet is not None
    assert (manifest.nnunet.image, manifest.nnunet.orientation) == ("brain", "LPS")
    assert manifest.mirroring_axes == (0, 1)
    assert manifest.patient_folds is None
    assert manifest.leak_rule is None
    assert manifest.training_data.figures["trainer"] == "nnUNetTrainer"
    assert manifest.training_data.text.startswith("Not known.")
    card = pack.read("card.md").decode()
    assert "`nnUNetTrainer`" in card
    assert "`nnUNetPlans`" in card
    assert "flairnode did not train it" in card


def test_names_of_cases_stay_behind(tmp_path: Path) -> None:
    pack = take(write(tmp_path), tmp_path / "packs")
    for file in ("manifest.json", *pack.manifest.files):
        assert b"smith" not in (pack.path / file).read_bytes()


def test_the_same_folder_gives_the_same_pack(tmp_path: Path) -> None:
    results = write(tmp_path)
    first = take(results, tmp_path / "packs")
    again = take(results, tmp_path / "packs")
    elsewhere = take(results, tmp_path / "others")
    assert first.digest == again.digest == elsewhere.digest


def test_another_model_of_the_same_version_is_refused(tmp_path: Path) -> None:
    take(write(tmp_path), tmp_path / "packs")
    other = write_results(tmp_path / "b", make_plans(), {0: random_state(make_plans(), 1)})
    with pytest.raises(ModelPackError, match="new version"):
        take(other, tmp_path / "packs")


def test_a_member_trained_on_every_case_is_taken_by_name(tmp_path: Path) -> None:
    plans = make_plans()
    results = write_results(tmp_path, plans, {"all": random_state(plans, 0)})
    pack = take(results, tmp_path / "packs", folds=("all",))
    assert pack.manifest.folds == (0,)
    assert pack.manifest.training_data.figures["folds"] == ["all"]


def test_a_reorienting_reader_decides_the_orientation(tmp_path: Path) -> None:
    plans = make_plans() | {"image_reader_writer": "SimpleITKIOWithReorient"}
    pack = take(write(tmp_path, plans), tmp_path / "packs")
    assert pack.manifest.nnunet is not None
    assert pack.manifest.nnunet.orientation == "RAS"


def test_residual_encoders_are_taken(tmp_path: Path) -> None:
    plans = make_plans()
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["network_class_name"] = f"{UNET}.ResidualEncoderUNet"
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    results = write_results(tmp_path, plans, {0: random_state(plans, 0)})
    pack = take(results, tmp_path / "packs")
    assert load_ensemble(pack, device="cpu").pack.digest == pack.digest


def test_plans_of_early_v2_are_brought_up_to_date(tmp_path: Path) -> None:
    plans = make_plans()
    old = json.loads(json.dumps(plans))
    configuration = old["configurations"]["2d"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 2,
        "unet_max_num_features": 2,
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
        "num_pool_per_axis": [2, 2],
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
    }
    results = write_results(tmp_path, old, {0: random_state(plans, 0)})
    pack = take(results, tmp_path / "packs")
    stored = pack.read_json("plans.json")["configurations"]["2d"]
    assert stored["architecture"]["network_class_name"] == f"{UNET}.PlainConvUNet"


# --- a stranger's file ----------------------------------------------------------------------


class Program:
    """What a malicious checkpoint holds: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["beside", "in the weights", "alone"])
def test_a_checkpoint_that_holds_a_program_is_refused_and_nothing_runs(
    tmp_path: Path, where: str
) -> None:
    results, made = write(tmp_path), tmp_path / "made"
    checkpoint = make_checkpoint(random_state(make_plans(), 0), make_plans(), "2d", 0)
    program = Program(made)
    if where == "beside":
        checkpoint["_best_ema"] = program
    elif where == "in the weights":
        checkpoint["network_weights"]["encoder.stages.0.0.convs.0.conv.bias"] = program
    torch.save(program if where == "alone" else checkpoint, results / CHECKPOINT)
    refused(CheckpointUnsafeError, "pathlib", results, tmp_path / "packs")
    assert not made.exists()
    torch.load(results / CHECKPOINT, weights_only=False)
    assert made.exists()  # it would have


def test_an_old_pickle_that_is_no_zip_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    results, made = write(tmp_path), tmp_path / "made"
    torch.save({"a": Program(made)}, results / CHECKPOINT, _use_new_zipfile_serialization=False)
    refused(CheckpointUnreadableError, "no checkpoint of torch", results, tmp_path / "packs")
    assert not made.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    results = write(tmp_path)
    whole = (results / CHECKPOINT).read_bytes()
    (results / CHECKPOINT).write_bytes(whole[: int(len(whole) * share)])
    refused(CheckpointUnreadableError, "fold_0", results, tmp_path / "packs")


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    results = write(tmp_path)
    with zipfile.ZipFile(results / CHECKPOINT) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(results / CHECKPOINT, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data[:40] if name.endswith("data.pkl") else data)
    refused(CheckpointUnreadableError, "cannot be read", results, tmp_path / "packs")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    results = write(tmp_path)
    with zipfile.ZipFile(results / CHECKPOINT, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(50_000_000))
    assert (results / CHECKPOINT).stat().st_size < 1_000_000
    refused(CheckpointTooLargeError, "unpack", results, tmp_path / "packs")


def test_a_number_that_claims_to_be_a_tensor_is_refused(tmp_path: Path) -> None:
    results = write(tmp_path)
    state = dict(random_state(make_plans(), 0))
    name = "encoder.stages.0.0.convs.0.conv.bias"
    state[name] = torch.zeros(1).expand(1 << 40)
    checkpoint = make_checkpoint(state, make_plans(), "2d", 0)
    torch.save(checkpoint, results / CHECKPOINT)
    refused(WeightsDoNotFitError, "1099511627776", results, tmp_path / "packs")
    state[name] = torch.zeros(1).expand(2)
    torch.save(make_checkpoint(state, make_plans(), "2d", 0), results / CHECKPOINT)
    refused(WeightsDoNotFitError, "plain weight", results, tmp_path / "packs")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, OrderedDict(), {}])
def test_another_programs_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    results = write(tmp_path)
    torch.save(content, results / CHECKPOINT)
    refused(CheckpointUnreadableError, "no checkpoint of nnU-Net", results, tmp_path / "packs")


@pytest.mark.parametrize("what", ["folder", "fold_0", CHECKPOINT, "plans.json"])
def test_links_are_not_followed(tmp_path: Path, what: str) -> None:
    results = write(tmp_path)
    if what == "folder":
        link = tmp_path / "link"
        link.symlink_to(results)
        take(link, tmp_path / "packs")  # the folder itself is what the user named
        return
    moved = tmp_path / "moved"
    (results / what).rename(moved)
    (results / what).symlink_to(moved)
    refused(LinkInResultsError, "is a link", results, tmp_path / "packs")


# --- what cannot be run ---------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["dataset.json", "plans.json"])
def test_a_folder_that_is_no_results_folder_is_refused(tmp_path: Path, missing: str) -> None:
    results = write(tmp_path)
    (results / missing).unlink()
    refused(NotNnUNetResultsError, missing, results, tmp_path / "packs")
    refused(NotNnUNetResultsError, "holds no", tmp_path / "nowhere", tmp_path / "packs")


@pytest.mark.parametrize("file", ["dataset.json", "plans.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', "\x00\xff"])
def test_wrong_json_is_refused(tmp_path: Path, file: str, content: str) -> None:
    results = write(tmp_path)
    (results / file).write_text(content)
    refused(NotNnUNetResultsError, file, results, tmp_path / "packs")


def test_plans_without_the_configuration_are_refused(tmp_path: Path) -> None:
    results = write(tmp_path)
    (results / "plans.json").write_text('{"configurations": {}}')
    refused(NotNnUNetResultsError, r"plans\.json", results, tmp_path / "packs")


def test_folds_that_are_not_there_are_named(tmp_path: Path) -> None:
    plans = make_plans()
    states = {fold: random_state(plans, fold) for fold in (0, 2)}
    results = write_results(tmp_path, plans, states)
    refused(FoldsMissingError, r"fold_1.*fold_0, fold_2", results, tmp_path / "packs", folds=(0, 1))
    refused(FoldsMissingError, "not the name", results, tmp_path / "packs", checkpoint="../a.pth")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"trainer_name": "nnUNetTrainerBN"}, "trainer"),
        ({"inference_allowed_mirroring_axes": (1,)}, "mirroring_axes"),
    ],
)
def test_folds_of_different_trainings_are_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    plans = make_plans()
    results = write_results(tmp_path, plans, {n: random_state(plans, n) for n in (0, 1)})
    other = make_checkpoint(random_state(plans, 1), plans, "2d", 1) | changes
    torch.save(other, results / "fold_1" / "checkpoint_final.pth")
    refused(FoldsDifferError, match, results, tmp_path / "packs", folds=(0, 1))


def test_folds_of_different_plans_are_refused(tmp_path: Path) -> None:
    plans = make_plans()
    results = write_results(tmp_path, plans, {n: random_state(plans, n) for n in (0, 1)})
    other = make_plans(spacing=[0.9, 1.0])
    torch.save(
        make_checkpoint(random_state(plans, 1), other, "2d", 1),
        results / "fold_1" / "checkpoint_final.pth",
    )
    refused(FoldsDifferError, "fold 1", results, tmp_path / "packs", folds=(0, 1))


def test_plans_that_are_not_those_of_the_training_are_refused(tmp_path: Path) -> None:
    results = write(tmp_path)
    (results / "plans.json").write_text(json.dumps(make_plans(spacing=[0.5, 0.5])))
    refused(FoldsDifferError, "other plans", results, tmp_path / "packs")


@pytest.mark.parametrize(
    ("dataset", "error", "match"),
    [
        ({"channel_names": {"0": "FLAIR", "1": "T1"}}, SeveralChannelsError, "2 image channels"),
        ({"labels": {"background": 0, "a": 1, "b": 2}}, SeveralClassesError, "other classes"),
        ({"labels": {"background": 0, "lesion": [1, 2]}}, SeveralClassesError, "regions .lesion"),
        ({"regions_class_order": [1]}, SeveralClassesError, "regions"),
        ({"labels": {"background": 1, "lesion": 0}}, SeveralClassesError, "other classes"),
    ],
)
def test_only_one_channel_and_one_kind_of_lesion_are_run(
    tmp_path: Path, dataset: dict[str, Any], error: type[ModelPackError], match: str
) -> None:
    results = write(tmp_path, dataset=DATASET_JSON | dataset)
    refused(error, match, results, tmp_path / "packs")


def test_a_label_that_is_ignored_in_training_is_no_class(tmp_path: Path) -> None:
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    pack = take(write(tmp_path, dataset=DATASET_JSON | {"labels": labels}), tmp_path / "packs")
    assert pack.read_json("dataset.json")["labels"] == {"background": 0, "lesion": 1}


@pytest.mark.parametrize("name", ["3d_lowres", "3d_cascade_fullres", "2d_bs8"])
def test_other_configurations_are_refused(tmp_path: Path, name: str) -> None:
    plans = make_plans()
    plans["configurations"][name] = plans["configurations"]["2d"]
    results = write(tmp_path, plans)
    checkpoint = make_checkpoint(random_state(make_plans(), 0), plans, name, 0)
    torch.save(checkpoint, results / CHECKPOINT)
    refused(ConfigurationNotSupportedError, name, results, tmp_path / "packs")


def test_a_stage_of_a_cascade_is_refused(tmp_path: Path) -> None:
    results = write(tmp_path, make_plans(previous_stage="3d_lowres"))
    refused(ConfigurationNotSupportedError, "cascade", results, tmp_path / "packs")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"normalization_schemes": ["HistogramNormalization"]}, "HistogramNormalization"),
        ({"normalization_schemes": ["RGBTo01Normalization"]}, "RGBTo01Normalization"),
        ({"preprocessor_name": "os"}, "preprocessor 'os'"),
        ({"resampling_fn_data": "eval"}, "'eval'"),
        ({"resampling_fn_data_kwargs": {"is_seg": False, "device": "cuda"}}, "device"),
        ({"spacing": [999.0, 1.0]}, "pictures"),
    ],
)
def test_preprocessing_that_is_not_nnunets_is_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    results = write(tmp_path, make_plans(**changes))
    refused(PreprocessingNotSupportedError, match, results, tmp_path / "packs")


def test_a_network_trained_on_pictures_is_refused(tmp_path: Path) -> None:
    plans = make_plans() | {"image_reader_writer": "NaturalImage2DIO"}
    refused(
        PreprocessingNotSupportedError, "NaturalImage2DIO", write(tmp_path, plans), tmp_path / "p"
    )


@pytest.mark.parametrize(
    ("where", "name", "match"),
    [
        ("network_class_name", "os.system", "'os.system'"),
        (
            "network_class_name",
            "dynamic_network_architectures.architectures.primus.Primus",
            "Primus",
        ),
        ("network_class_name", f"{UNET}.torch.hub.load", "hub"),
        ("nonlin", "torch.nn.modules.module.warnings.sys.exit", "no layer of torch"),
        ("conv_op", "builtins.eval", "no layer of torch"),
        ("n_stages", 10**9, "1000000000 stages"),
        ("features_per_stage", [2, 10**9, 2], "up to 1000000000"),
    ],
)
def test_plans_cannot_name_or_size_what_nnunet_has_not(
    tmp_path: Path, where: str, name: object, match: str
) -> None:
    plans = make_plans()
    architecture = plans["configurations"]["2d"]["architecture"]
    (architecture if where in architecture else architecture["arch_kwargs"])[where] = name
    refused(NetworkNotSupportedError, match, write(tmp_path, plans), tmp_path / "packs")


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"patch_size": [63, 48]}, "its own patch"), ({"patch_size": [4, 4]}, "its own patch")],
)
def test_a_network_that_cannot_take_its_own_patch_is_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    results = write(tmp_path, make_plans(**changes))
    refused(NetworkNotSupportedError, match, results, tmp_path / "packs")


def test_a_sparse_tensor_is_no_weight(tmp_path: Path) -> None:
    state = dict(random_state(make_plans(), 0))
    name = "encoder.stages.0.0.convs.0.conv.bias"
    state[name] = torch.zeros(2).to_sparse()
    results = write_results(tmp_path, make_plans(), {0: state})
    refused(WeightsDoNotFitError, "plain weight", results, tmp_path / "packs")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    plans = make_plans()
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [2, 4, 4]
    refused(WeightsDoNotFitError, "fold 0", write(tmp_path, plans), tmp_path / "packs")


def test_one_layer_with_two_versions_is_refused(tmp_path: Path) -> None:
    plans = make_plans()
    state = {name: value.clone() for name, value in random_state(plans, 0).items()}
    state["decoder.encoder.stages.0.0.convs.0.conv.bias"] += 1
    results = write_results(tmp_path, plans, {0: state})
    refused(WeightsDoNotFitError, "one layer", results, tmp_path / "packs")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    plans = make_plans()
    state = random_state(plans, 0)
    state["decoder.seg_layers.1.bias"][0] = value
    results = write_results(tmp_path, plans, {0: state})
    refused(WeightsNotFiniteError, "seg_layers", results, tmp_path / "packs")


def test_what_a_training_log_holds_is_read(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path) / CHECKPOINT)
    assert checkpoint.trainer == "nnUNetTrainer"
    assert checkpoint.configuration == "2d"


def test_a_file_that_numpy_1_wrote_is_read(tmp_path: Path) -> None:
    """There, the module of numpy's numbers has another name."""
    results = write(tmp_path)
    with zipfile.ZipFile(results / CHECKPOINT) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(results / CHECKPOINT, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data.replace(b"cnumpy._core.", b"cnumpy.core."))
    assert any(b"cnumpy._core." in data for data in contents.values())
    assert read_checkpoint(results / CHECKPOINT).configuration == "2d"


def test_a_changed_imported_pack_does_not_load(tmp_path: Path) -> None:
    pack = take(write(tmp_path), tmp_path / "packs")
    (pack.path / "plans.json").write_text("{}")
    with pytest.raises(ModelPackError, match=r"plans\.json"):
        load_pack(pack.path)
