"""Batches for a site: repeatable, fair to patients, and without augmentation what the node sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom.volume import Grid, Volume, read_nifti
from pipeline.brain import BrainMask
from pipeline.preprocess import CanvasSpec, prepare
from tests.conftest import oblique_affine
from tests.training.brains import SITE, brain, head, lesion, prepared_cohort, recipe_file
from training.dataset import Dataset, build_dataset
from training.dataset_cases import stack_case
from training.enlarge import Labelled
from training.recipe import Recipe, load_recipe
from training.site_batches import (
    PARTS,
    SiteBatches,
    SiteStack,
    _Drawer,
    coarser,
    cut,
    plain_image,
    varied_image,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("site")
    recipe = load_recipe(recipe_file(folder, SITE))
    return build_dataset(prepared_cohort(), folder / "run", recipe)


def stack_of(folder: Path, slice_mm: float, recipe: Recipe) -> SiteStack:
    """A head of 25 slices, written as a stack."""
    mask = lesion(5)
    grid = Grid(oblique_affine((slice_mm, 4.0, 4.0)), mask.shape)
    inside = brain()
    one = Labelled(Volume(head(mask, 1), grid), mask, BrainMask(inside, grid, "", ""))
    _, files = stack_case("P01", one, recipe)
    (folder / "stacks").mkdir()
    (folder / "brains").mkdir()
    for name, content in files:
        (folder / name).write_bytes(content)
    return SiteStack.load(folder / "stacks", "P01")


def test_a_batch_is_a_function_of_seed_fold_part_and_index(site: Dataset) -> None:
    images, targets = SiteBatches(site, 0, "train")(7)
    assert images.shape == targets.shape == (4, 64, 48)
    assert (images.dtype, targets.dtype) == (np.float32, np.uint8)
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    again = SiteBatches(site, 0, "train")
    again(3)
    np.testing.assert_array_equal(again(7)[0], images)
    np.testing.assert_array_equal(again(7)[1], targets)
    for other in (SiteBatches(site, 0, "train")(8), SiteBatches(site, 1, "train")(7)):
        assert not np.array_equal(other[0], images)


def test_the_last_images_of_a_batch_hold_a_lesion(site: Dataset) -> None:
    for part in PARTS[1:]:
        for index in range(5):
            _, targets = SiteBatches(site, 0, part)(index)
            assert all((target == 1).any() for target in targets[2:])  # half of four


def test_without_augmentation_an_image_is_what_the_node_gives_the_network(site: Dataset) -> None:
    name = site.splits[0]["val"][0]
    volume = read_nifti(prepared_cohort() / f"cases/{name}/image.nii.gz")
    canvas = site.recipe.canvas
    assert canvas is not None
    inside = BrainMask(volume.voxels != 0, volume.grid, "", "")
    made = prepare(volume, inside, canvas.spec())
    one = SiteStack.load(site.cases_folder, name)
    for index in (0, 12, 20):
        image, target = plain_image(one, index, canvas.spec())
        np.testing.assert_allclose(image, made.images[index], atol=1e-6)
        truth = read_nifti(prepared_cohort() / f"cases/{name}/mask.nii.gz").voxels[index]
        assert target.sum() == truth.sum()  # canvas and image have pixels of 4 mm
    # One patient is validated on: every image of a batch is one of its slices.
    slices = [plain_image(one, index, canvas.spec())[0] for index in range(25)]
    images, _ = SiteBatches(site, 0, "val")(0)
    assert all(any(np.array_equal(image, known) for known in slices) for image in images)


def test_training_images_are_of_training_patients_only(site: Dataset) -> None:
    fold = 0
    canvas = site.recipe.canvas
    assert canvas is not None
    known = [
        plain_image(SiteStack.load(site.cases_folder, name), index, canvas.spec())[0]
        for name in site.splits[fold]["train"]
        for index in range(25)
    ]
    for index in range(3):
        for image in SiteBatches(site, fold, "train-plain")(index)[0]:
            assert any(np.array_equal(image, one) for one in known)


def test_a_patient_with_two_sessions_is_drawn_no_more_than_another(site: Dataset) -> None:
    drawer = _Drawer(site, ["P02", "P03"])
    first, second = drawer._all
    drawer._all = [[first[0], first[0]], second]
    rng = np.random.default_rng(1)
    drawn = [drawer.draw(rng, sure=False)[0].stack.name for _ in range(400)]
    assert drawn.count("P03") == pytest.approx(200, abs=40)  # 4 sd of a coin


def test_fine_slices_are_cut_thicker_and_a_thin_lesion_fades(tmp_path: Path, site: Dataset) -> None:
    canvas = CanvasSpec(rows=64, columns=48, pixel_mm=4.0)
    one = stack_of(tmp_path, 1.25, site.recipe)
    assert (one.stack.kind, one.slice_mm) == ("slab", 1.25)
    image, target = plain_image(one, 12, canvas)
    assert target.sum() == 16
    bright = image[target == 1].mean()
    rng = np.random.default_rng(0)
    cuts = [cut(one, 12, canvas, rng) for _ in range(40)]
    lesion_shares = [float(values[..., 1].max()) for values in cuts]
    # The lesion is 1.25 mm thick: whole as acquired (a quarter of the draws), faded in slabs.
    assert 3 <= sum(share > 0.999 for share in lesion_shares) <= 20
    faded = [values for values in cuts if 0.1 < values[..., 1].max() < 0.5]
    assert faded  # half of the slab or less: no lesion of that slice
    assert all(float(values[..., 0].max()) / 1.9 < bright for values in faded)


def test_thick_slices_stay_and_thin_ones_are_combined_with_a_neighbour(
    tmp_path: Path, site: Dataset
) -> None:
    canvas = CanvasSpec(rows=64, columns=48, pixel_mm=4.0)
    for slice_mm, combined in ((6.5, False), (3.0, True)):
        folder = tmp_path / f"{slice_mm}"
        folder.mkdir()
        one = stack_of(folder, slice_mm, site.recipe)
        assert one.stack.kind == "slices"
        rng = np.random.default_rng(0)
        shares = {float(cut(one, 12, canvas, rng)[..., 1].max()) for _ in range(40)}
        assert shares == ({1.0, 0.5} if combined else {1.0})


def test_larger_pixels_keep_the_mean_and_lose_detail() -> None:
    rng = np.random.default_rng(3)
    image = rng.normal(1.0, 0.2, (64, 48)).astype(np.float32)
    out = coarser(image, rng)
    assert out.shape == image.shape
    assert out.mean() == pytest.approx(1.0, abs=0.02)
    assert out.std() < image.std()


def test_images_are_varied_over_all_that_scanners_do(tmp_path: Path, site: Dataset) -> None:
    canvas = CanvasSpec(rows=64, columns=48, pixel_mm=4.0)
    one = stack_of(tmp_path, 6.5, site.recipe)
    made = [varied_image(one, 12, canvas, np.random.default_rng(seed)) for seed in range(30)]
    images = np.stack([image for image, _ in made])
    assert images.max() <= 1.0
    levels = [float(np.median(image[image > 0])) for image in images]
    assert max(levels) - min(levels) > 0.1
    # What was turned, scaled and bitten into is still there in nearly all.
    assert sum(bool((target == 1).any()) for _, target in made) >= 28
