"""Any trained run becomes a pack that says what nnU-Net says of the same preprocessed array."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.special import softmax

from pipeline.ensemble import Ensemble, load_ensemble
from pipeline.model_pack import Canvas, ModelPackError, NnUNetInput, Summary, Weights, load_pack
from tests.pipeline.hand_results import make_plans as imported_plans
from tests.pipeline.hand_results import network_of, random_state, write_results
from tests.pipeline.tiny_pack import (
    COLUMNS,
    DATASET_JSON,
    ROWS,
    STARTER_FEATURES,
    heads,
    make_plans,
    parameter_shapes,
    random_weights,
)
from training.trained_pack import TrainedRun, read_fold, write_trained_pack

FOLDS = (0, 1)


def run(**changes: Any) -> TrainedRun:  # noqa: ANN401
    made = TrainedRun(
        name="site",
        version="1.0",
        feeding=Canvas(
            rows=ROWS, columns=COLUMNS, pixel_mm=1, normalisation="paper", dilation_mm=0
        ),
        plans=make_plans(features=(4, 8, 8)),
        dataset_json=DATASET_JSON,
        training_data="Two synthetic heads.",
        recipe={"recipe": "paper-2d", "epochs": 250, "seed": 7},
        validation=Summary(text="None.", figures={"dice": None}),
        intended_use="Tests.",
        limits=("Useless.",),
        licence="Apache-2.0",
        patient_folds=True,
        minimum_lesion_mm3=5,
        mirroring_axes=(0, 1),
    )
    return replace(made, **changes)


def members(plans: dict[str, Any]) -> dict[int, Weights]:
    shapes = parameter_shapes(plans)
    return {fold: random_weights(shapes, seed=fold) for fold in FOLDS}


def test_a_canvas_pack_says_what_nnunet_predictor_says_of_the_trained_weights(
    tmp_path: Path,
) -> None:
    """Against the weights as trained, in fp32: halving them is part of what is compared."""
    plans = make_plans(features=STARTER_FEATURES)
    trained = members(plans)
    pack = write_trained_pack(tmp_path / "site", run(plans=plans), trained, card="# Site\n")
    images = heads(slices=2)
    ours = Ensemble.load(pack, device="cpu", mirroring="on", threads=1).logits(images)

    network = network_of(plans)
    states = []
    for fold in FOLDS:
        for name, parameter in network.named_parameters():
            parameter.data.copy_(torch.from_numpy(trained[fold][name]))
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    network.decoder.deep_supervision = False  # type: ignore[union-attr, assignment]
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        network, manager, manager.get_configuration("2d"), states, DATASET_JSON, "site", (0, 1)
    )
    theirs = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(images[None]))
    p_ours, p_theirs = (softmax(one, axis=0)[1] for one in (ours, theirs.float().numpy()))
    assert np.abs(p_ours - p_theirs).max() <= 2e-3
    assert np.mean((p_ours > 0.5) == (p_theirs > 0.5)) >= 0.9999
    assert 0 < np.mean(p_ours > 0.5) < 0.5


def test_the_pack_holds_the_facts_of_the_recipe(tmp_path: Path) -> None:
    made = run()
    pack = write_trained_pack(tmp_path / "site", made, members(dict(made.plans)), card="# Site\n")
    manifest = load_pack(pack.path).manifest
    assert manifest.training_data.figures == {"recipe": "paper-2d", "epochs": 250, "seed": 7}
    assert (manifest.status, manifest.folds, manifest.patient_folds) == ("research", FOLDS, True)
    assert manifest.canvas is not None
    assert manifest.canvas.normalisation == "paper"
    assert pack.read("card.md") == b"# Site\n"


def test_a_fold_is_read_from_the_checkpoint_of_a_trainer(tmp_path: Path) -> None:
    plans = imported_plans()
    state = random_state(plans, 3)
    results = write_results(tmp_path, plans, {0: state})
    weights = read_fold(results / "fold_0" / "checkpoint_final.pth", plans, "2d")
    assert weights.keys() == dict(network_of(plans).named_parameters()).keys()
    made = run(plans=plans, feeding=NnUNetInput(image="brain"))
    pack = write_trained_pack(tmp_path / "site", made, {0: weights}, card="", stored="fp32")
    assert load_ensemble(pack, device="cpu").pack.manifest.preprocessing == "nnunet"


def test_a_fold_of_another_configuration_is_refused(tmp_path: Path) -> None:
    plans = imported_plans("3d_fullres")
    state = random_state(plans, 0, "3d_fullres")
    results = write_results(tmp_path, plans, {0: state}, "3d_fullres")
    with pytest.raises(ModelPackError, match="3d_fullres"):
        read_fold(results / "fold_0" / "checkpoint_final.pth", plans, "2d")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "No Name"}, "name"),
        ({"mirroring_axes": (2,)}, "mirroring_axes"),
        ({"configuration": "3d_fullres"}, "canvas"),
    ],
)
def test_a_run_that_does_not_add_up_leaves_nothing_behind(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    made = run(**changes)
    with pytest.raises(ModelPackError, match=match):
        write_trained_pack(tmp_path / "site", made, members(make_plans()), card="")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_the_plans_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ModelPackError, match="does not fit"):
        write_trained_pack(tmp_path / "site", run(), members(make_plans()), card="")
    assert list(tmp_path.iterdir()) == []
