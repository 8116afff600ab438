"""Guards of the shipped starter weights: against a changed pack or pipeline. No validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.brain import strip_skull
from pipeline.ensemble import Ensemble
from pipeline.model_pack import ModelPack, find_pack, load_pack
from training.measure import GUARD_LIMITS_ML, guard_volumes, marked_ml, segment


@pytest.fixture(scope="module")
def pack() -> ModelPack:
    return load_pack(find_pack("starter"))


def test_the_pack_is_for_research_and_says_whom_it_was_trained_on(pack: ModelPack) -> None:
    assert pack.manifest.status == "research"
    assert pack.manifest.patient_folds is False
    assert len(pack.manifest.folds) == 5
    assert any("Lesjak" in one for one in pack.manifest.attributions)
    left_out = pack.manifest.validation.figures["left_out"]
    assert isinstance(left_out, dict)
    assert left_out.keys() == {"patient07", "patient19"}


def test_the_pack_is_small(pack: ModelPack) -> None:
    assert sum(file.stat().st_size for file in pack.path.rglob("*") if file.is_file()) < 15e6


def test_the_card_claims_nothing_that_may_not_be_said(pack: ModelPack) -> None:
    card = (pack.path / "card.md").read_text(encoding="utf-8").lower()
    assert "not validated" in card
    assert "research - not for clinical use" in card
    for claim in ("generalis", "comparable to the paper", "five-fold cross", "confidence"):
        assert claim not in card


@pytest.mark.timeout(240)
def test_little_is_marked_in_a_clinical_head_without_known_lesions(
    pack: ModelPack, shared_data: Path
) -> None:
    volume = guard_volumes(shared_data)["aera"]
    assert marked_ml(pack, volume, mirroring="on") <= GUARD_LIMITS_ML["aera"]


@pytest.mark.timeout(240)
def test_a_repeat_gives_the_same_mask(pack: ModelPack, shared_data: Path) -> None:
    volume = guard_volumes(shared_data)["aera"]
    brain = strip_skull(volume)
    labels = [
        segment(
            pack,
            Ensemble.load(pack, device="cpu", mirroring="off", threads=1),
            volume,
            brain,
        )[0].labels
        for _ in range(2)
    ]
    assert np.array_equal(*labels)


@pytest.mark.training
@pytest.mark.timeout(900)
def test_little_is_marked_in_a_1_mm_head_never_trained_on(
    pack: ModelPack, shared_data: Path
) -> None:
    """159 slices, five members, mirrored: a minute or more, so with `pytest -m training`."""
    volume = guard_volumes(shared_data)["rorden"]
    assert marked_ml(pack, volume, mirroring="on") <= GUARD_LIMITS_ML["rorden"]
