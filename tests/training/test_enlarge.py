"""Inserted lesions: where they go, how bright they are, and who is trained on them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dicom.volume import Grid, Volume
from pipeline.brain import BrainMask
from tests.conftest import oblique_affine
from tests.training.brains import SITE, prepared_cohort, recipe_file
from training.dataset import build_dataset, in_words
from training.enlarge import (
    DONORS_PER_HOST,
    Labelled,
    NothingInsertedError,
    carry,
    insert_case,
    insertable,
    paint_lesions,
    plan_pairs,
)
from training.prepared import PreparedCase
from training.recipe import load_recipe
from training.site_batches import SiteBatches
from training.splits import PatientInTwoPartsError

SPACING_MM = (4.0, 1.5, 1.25)
SHAPE = (13, 104, 100)
"""156 x 125 mm: neither square nor isotropic."""


def person(
    lesions: npt.NDArray[np.bool_] | None = None,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    shape: tuple[int, int, int] = SHAPE,
) -> Labelled:
    """White matter of 500, a ventricle of 150 in the middle, in an ellipse that fills the slice."""
    grid = Grid(oblique_affine(spacing_mm), shape)
    rows, columns = (np.linspace(-1, 1, length) for length in shape[1:])
    radius = rows[:, None] ** 2 + columns[None, :] ** 2
    brain = np.broadcast_to(radius < 0.96, shape).copy()
    voxels = np.where(brain, 500.0, 0.0)
    voxels[:, (radius < 0.04)] = 150.0
    noise = np.random.default_rng(1).normal(0, 10, shape) * brain
    mask = np.zeros(shape, np.bool_) if lesions is None else lesions
    return Labelled(
        Volume((voxels + noise).astype(np.float32), grid), mask, BrainMask(brain, grid, "", "")
    )


def spot(rows: slice, columns: slice, slices: slice = slice(5, 8)) -> npt.NDArray[np.bool_]:
    mask = np.zeros(SHAPE, np.bool_)
    mask[slices, rows, columns] = True
    return mask


def case(name: str, lesion_ml: float, part: str) -> PreparedCase:
    return PreparedCase(name, name.split("_", maxsplit=1)[0], part, lesion_ml, Path(), {})


# --- who ------------------------------------------------------------------------------------


def test_hosts_have_little_lesion_and_donors_are_other_patients() -> None:
    cases = [case(f"P{n}_{s}", float(n), f"fold {n % 5}") for n in range(8) for s in (1, 2)]
    pairs = plan_pairs(cases, 5)
    assert {pair.host.patient for pair in pairs} == {"P0", "P1", "P2", "P3"}  # median 3.5 ml
    assert len(pairs) == 8 * DONORS_PER_HOST
    assert all(pair.host.patient != pair.donor.patient for pair in pairs)
    assert all(pair.donor.lesion_ml > 0 for pair in pairs)
    assert all(pair.name.startswith("semi-synthetic-") for pair in pairs)
    assert plan_pairs(cases[::-1], 5) == pairs
    assert plan_pairs(cases, 6) != pairs


def test_a_test_patient_neither_lends_nor_gets_lesions() -> None:
    cases = [case("P1", 1.0, "fold 0"), case("P2", 2.0, "test"), case("P3", 3.0, "fold 1")]
    with pytest.raises(PatientInTwoPartsError, match="P2"):
        plan_pairs(cases, 5)


# --- where ----------------------------------------------------------------------------------


def test_in_the_same_head_lesions_stay_where_they_are_or_change_sides() -> None:
    mask = spot(slice(30, 40), slice(20, 28))
    one = person(mask)
    np.testing.assert_array_equal(carry(one, person()), mask)
    mirrored = carry(one, person(), mirrored=True)
    np.testing.assert_array_equal(mirrored, mask[:, :, ::-1])


def test_in_a_larger_head_of_other_voxels_lesions_lie_at_the_same_share() -> None:
    one = person(spot(slice(26, 37), slice(20, 30)))
    shape = (20, 136, 160)  # a head of 80 x 163 x 160 mm, against 52 x 156 x 125
    host = person(spacing_mm=(4.0, 1.2, 1.0), shape=shape)
    carried = carry(one, host)
    centre = (np.argwhere(carried).mean(axis=0) + 0.5) / shape
    expected = (np.array([6.0, 31.0, 24.5]) + 0.5) / SHAPE
    np.testing.assert_allclose(centre, expected, atol=0.03)
    grown = (80 / 52) * (163.2 / 156) * (160 / 125)
    ratio = (carried.sum() * 4.0 * 1.2) / (3 * 11 * 10 * 4.0 * 1.5 * 1.25)
    assert ratio == pytest.approx(grown, rel=0.2)  # 12 mm become 18.5: 4 or 5 slices of 4 mm


def test_lesions_go_on_white_matter_away_from_the_rim_fluid_and_lesions() -> None:
    own = spot(slice(28, 34), slice(44, 52))
    one = person(own)
    voxels = one.volume.voxels.copy()
    voxels[own] = 750
    free, white_matter = insertable(voxels, one.brain.mask, own, SPACING_MM)
    assert white_matter == pytest.approx(500, rel=0.02)
    middle = free[6]
    assert middle[75, 50]
    assert not middle[52, 50]  # ventricle
    assert not middle[1, 50]  # 1.5 mm inside the brain
    assert not middle[30, 48]  # the own lesion
    assert not middle[30, 52]  # 1.25 mm beside it
    assert middle[30, 56]


# --- how ------------------------------------------------------------------------------------


def test_what_is_inserted_is_labelled_and_nothing_else_changes() -> None:
    own = spot(slice(24, 28), slice(60, 64))
    host, donor = person(own), person(spot(slice(70, 80), slice(45, 53)))
    made = insert_case(host, donor, "seed/a")
    added = made.lesions & ~own
    assert added.sum() == 3 * 10 * 8
    assert (made.lesions & own).sum() == own.sum()
    change = made.volume.voxels - host.volume.voxels
    rise = float(change[added].mean()) / 500
    assert 0.08 <= rise <= 0.5
    far = np.ones(SHAPE, np.bool_)
    rows, columns = (np.flatnonzero(added.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    far[5:8, rows[0] - 3 : rows[-1] + 4, columns[0] - 3 : columns[-1] + 4] = False
    assert np.abs(change[far]).max() == 0
    assert made.brain is host.brain


def test_the_same_key_gives_the_same_lesions() -> None:
    host, donor = person(), person(spot(slice(70, 80), slice(45, 53)))
    one, two, other = (insert_case(host, donor, key).volume.voxels for key in ("a", "a", "b"))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_larger_lesion_stands_out_more_and_none_beyond_the_limit() -> None:
    flat = np.zeros((20, 20, 60), np.float32)
    mask = np.zeros(flat.shape, np.bool_)
    mask[9:11, 9:11, 5:7] = True  # 8 mm3
    mask[2:18, 2:18, 30:46] = True  # 4096 mm3
    rises: list[tuple[float, float]] = []
    for seed in range(30):
        out = paint_lesions(flat, mask, (1, 1, 1), 1.0, np.random.default_rng(seed), 0.45)
        rises.append((float(out[9:11, 9:11, 5:7].mean()), float(out[5:15, 5:15, 33:43].mean())))
    small, large = np.mean(rises, axis=0)
    assert small < large
    assert max(rise for _, rise in rises) < 0.5


def test_a_lesion_that_falls_mostly_off_white_matter_is_left_out() -> None:
    host = person()
    in_ventricle = person(spot(slice(48, 56), slice(46, 54)))
    for donor in (person(), in_ventricle):
        with pytest.raises(NothingInsertedError):
            insert_case(host, donor, "a")


# --- in a data set --------------------------------------------------------------------------


def test_semi_synthetic_cases_are_named_trained_on_and_never_judged_on(tmp_path: Path) -> None:
    text = SITE + "\n[cases]\nsemi_synthetic = 1.0\n"
    recipe = load_recipe(recipe_file(tmp_path, text))
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", recipe)
    made = {name for name, one in dataset.origins.items() if one.semi_synthetic}
    assert made
    assert all(name.startswith("semi-synthetic-") for name in made)
    with (dataset.folder / "preparation.csv").open() as file:
        marked = {row["case"]: row["donor"] for row in csv.DictReader(file) if row["donor"]}
    assert made <= marked.keys()
    for fold, lists in enumerate(dataset.splits):
        assert not made & set(lists["val"])
        for name in made & set(lists["train"]):
            assert f"fold {fold}" not in dataset.origins[name].parts
        assert not made & set(dataset.plain_train(fold))
    assert f"semi-synthetic: {len(made)} cases, for training alone" in in_words(tmp_path / "run")
    fold = next(f for f, lists in enumerate(dataset.splits) if made & set(lists["train"]))
    batches = SiteBatches(dataset, fold, "train")
    assert batches._made_up is not None
    used = {one.stack.name for stacks in batches._made_up._all for one in stacks}
    assert used == made & set(dataset.splits[fold]["train"])
    assert SiteBatches(dataset, fold, "val")._made_up is None
    again = build_dataset(prepared_cohort(), tmp_path / "run", recipe)
    assert again.digest == dataset.digest
