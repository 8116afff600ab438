"""The starter recipe: its network, who sees what, and that it learns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training.sources import HOST, NATIVE_PATIENTS, prepare_sources
from training.starter import (
    ARCHITECTURE,
    DRAW_WEIGHTS,
    MEMBERS,
    Member,
    Recipe,
    StarterBatches,
    member,
)
from training.trainer import Progress, build_network, train


def test_the_network_has_1_091_544_parameters_in_72_tensors() -> None:
    parameters = dict(build_network().named_parameters())
    assert sum(value.numel() for value in parameters.values()) == 1_091_544
    assert len(parameters) == 72
    assert ARCHITECTURE["network_class_name"].endswith("unet.PlainConvUNet")


def test_the_draw_weights_add_up_to_one() -> None:
    assert sum(DRAW_WEIGHTS.values()) == pytest.approx(1.0)


def test_every_member_sees_both_labelled_patients(shared_data: Path) -> None:
    for number in MEMBERS:
        one = member(number, shared_data)
        assert one.sources["patient07"] == ("patient07",)
        assert one.sources["patient19"] == ("patient19",)


def test_each_donor_and_each_clinical_patient_is_left_out_by_one_member(shared_data: Path) -> None:
    members = [member(number, shared_data) for number in MEMBERS]
    for source, count in (("synthetic", 22 * 2), ("native", 8)):
        seen = [set(one.sources[source]) for one in members]
        everything = set().union(*seen)
        assert len(everything) == count
        left_out = [everything - one for one in seen]
        assert sum(map(len, left_out)) == count
        assert set().union(*left_out) == everything
    for number, patient in enumerate(NATIVE_PATIENTS):
        assert not any(patient in name for name in members[number].sources["native"])


@pytest.mark.parametrize("patient", ["patient07", "patient19"])
def test_a_left_out_patient_is_neither_source_nor_donor_nor_host(
    patient: str, shared_data: Path
) -> None:
    sources = dict(member(0, shared_data, (patient,)).sources)
    # The clinical scans are numbered apart: "native-patient19" is not known to be patient19.
    native = sources.pop("native")
    assert all(name.startswith("native-") for name in native)
    assert not any(patient in name for names in sources.values() for name in names)
    assert ("synthetic" in sources) == (patient != HOST)


def test_only_labelled_patients_can_be_left_out(shared_data: Path) -> None:
    with pytest.raises(ValueError, match="patient01"):
        member(0, shared_data, ("patient01",))


def test_the_aera_and_rorden_scans_are_not_trained_on(shared_data: Path) -> None:
    names = {
        name
        for number in MEMBERS
        for stacks in member(number, shared_data).sources.values()
        for name in stacks
    }
    assert {name.split("-")[0] for name in names} == {"native", "patient07", "patient19"}


def test_training_leaves_torchvision_unimported() -> None:
    code = (
        "import sys, training.trainer, training.starter, training.pack, training.commands;"
        "training.trainer.build_network();"
        "print(sorted({'torchvision', 'timm'} & set(sys.modules)))"
    )
    found = subprocess.run(  # our own interpreter and code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def labelled_cache(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Member]:
    """The two labelled patients alone: they are read in two seconds."""
    cache = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setattr("training.sources.NATIVE", ())
    patch.setattr("training.sources.donors", lambda data: [])
    prepare_sources(shared_data, cache, lambda name: None)
    patch.undo()
    sources = {name: (name,) for name in ("patient07", "patient19")}
    return cache, Member(0, (), sources)


def test_a_batch_is_a_function_of_seed_member_and_iteration(
    labelled_cache: tuple[Path, Member],
) -> None:
    cache, one = labelled_cache
    batches = [StarterBatches(one, cache, Recipe()) for _ in range(2)]
    other = StarterBatches(Member(1, (), one.sources), cache, Recipe())
    assert np.array_equal(batches[0](5)[0], batches[1](5)[0])
    assert not np.array_equal(batches[0](5)[0], batches[0](6)[0])
    assert not np.array_equal(batches[0](5)[0], other(5)[0])


def test_a_batch_holds_images_from_0_to_1_and_many_lesions(
    labelled_cache: tuple[Path, Member],
) -> None:
    images, targets = StarterBatches(labelled_cache[1], labelled_cache[0], Recipe(batch_size=32))(0)
    assert images.shape == targets.shape == (32, 208, 160)
    assert (images.min(), images.max()) == (0.0, pytest.approx(1.0, abs=0.3))
    assert np.mean([(one == 1).any() for one in targets]) > 0.65


@pytest.mark.training
@pytest.mark.timeout(900)
def test_the_recipe_learns_within_200_iterations(shared_data: Path, tmp_path: Path) -> None:
    """Minutes: `pytest -m training`. A shorter run proves nothing (starter_model.md)."""
    torch.set_num_threads(1)
    prepare_sources(shared_data, tmp_path / "cache", lambda name: None)
    reports: list[Progress] = []
    recipe = Recipe(iterations=200)
    batches = StarterBatches(member(0, shared_data), tmp_path / "cache", recipe)
    train(tmp_path / "member_0", batches, recipe, recipe.seed, reports.append)
    assert min(one.dice_loss for one in reports) < 0.65
