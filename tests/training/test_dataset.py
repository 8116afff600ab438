"""A cohort made ready: counts, lists, digests, resumption, and what is refused."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from dicom.volume import Grid, Volume, read_nifti, write_nifti
from pipeline.brain import BrainMask
from pipeline.orientation import axial_view
from pipeline.phantom import Acquisition, synthetic_head
from pipeline.preprocess import Placement, prepare
from tests.conftest import oblique_affine
from tests.training.brains import (
    PAPER,
    SEED,
    SITE,
    lesion,
    prepared_cohort,
    put_brain,
    put_prepared,
    recipe_file,
)
from training import dataset as module
from training.cohort import read_cohort
from training.dataset import (
    CasesRefusedError,
    Dataset,
    FoldEmptyError,
    JudgedOnMadeUpError,
    NoDatasetError,
    Origin,
    RunDiffersError,
    build_dataset,
    in_words,
    list_folds,
    open_dataset,
    refuse_leaks,
)
from training.dataset_cases import canvas_case, nearest_on_canvas
from training.enlarge import Labelled
from training.nnunet_files import canvas_plans, fingerprint
from training.paper_augment import apply_draw, draw_copy
from training.prepare import Refusals, Rules
from training.prepare import prepare as prepare_cohort
from training.prepared import NotPreparedError
from training.recipe import Recipe, load_recipe
from training.splits import PatientInTwoPartsError, SplitsDifferError, read_splits
from training.whole_files import DiskFullError


def recipe_of(folder: Path, text: str, **changes: int) -> Recipe:
    return load_recipe(recipe_file(folder, text), changes)


@pytest.fixture
def paper(tmp_path: Path) -> Recipe:
    return recipe_of(tmp_path, PAPER)


def files_of(dataset: Dataset) -> dict[str, str]:
    return {
        path.relative_to(dataset.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.folder.rglob("*"))
        if path.is_file()
    }


def load(dataset: Dataset, name: str) -> tuple[Any, Any, dict[str, Any]]:
    """Image, mask and properties, as nnU-Net reads them."""
    folder = nnUNetDatasetBlosc2(str(dataset.cases_folder), [name])
    image, mask, _, properties = folder.load_case(name)
    return image[:], mask[:], properties


# --- paper-2d -------------------------------------------------------------------------------


def test_25_slice_volumes_give_exactly_five_extra_images_per_kept_slice(
    tmp_path: Path, paper: Recipe
) -> None:
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", paper)
    table = json.loads((dataset.folder / "preparation.json").read_text())
    assert [row["slices"] for row in table["cases"]] == [25] * 6  # of 8 patients 2 are tested on
    for row in table["cases"]:
        # Slice 12 has at least 4 pixels, slice 14 has 2; of 64 x 48 the rule keeps 3 and more.
        assert (row["kept"], row["removed_with_lesion"], row["empty"]) == (1, 1, 23)
        assert row["copies"] == 5 * row["kept"]
        assert row["removed_mm2"] == 2 * 4.0 * 4.0
        names = [n for n, one in dataset.origins.items() if one.case == row["case"]]
        plain = f"{row['case']}_s012"
        assert sorted(names) == [plain, *(f"{plain}_a{copy}" for copy in range(1, 6))]
    assert table["total"]["images"] == 6 * 6
    assert (
        "6 of 150 slices kept, 6 with lesions removed, together 192.0 mm2 of lesion; "
        "30 augmented copies"
    ) in in_words(tmp_path / "run")
    with (dataset.folder / "preparation.csv").open() as file:
        assert [row["copies"] for row in csv.DictReader(file)] == ["5"] * 6


@pytest.mark.parametrize(("pixels", "kept"), [(225, 0), (226, 1)])
def test_225_lesion_pixels_of_512_x_512_are_removed_and_226_are_kept(
    pixels: int, kept: int
) -> None:
    paper = load_recipe("paper-2d")
    grid = Grid(oblique_affine((6.5, 0.4297, 0.4297), (0, 0, 0)), (3, 512, 512))
    brain, lesions = np.zeros(grid.shape, np.bool_), np.zeros(grid.shape, np.bool_)
    brain[:, 60:452, 100:412] = True
    lesions[1, 200:215, 200:215] = True  # 15 x 15 = 225
    lesions[1, 215, 200] = pixels == 226
    image = np.where(lesions, 900, 500).astype(np.float32) * brain
    row, files = canvas_case(
        "P01", Labelled(Volume(image, grid), lesions, BrainMask(brain, grid, "", "")), paper, 1
    )
    assert row["kept"] == kept
    assert row["removed_mm2"] == pytest.approx(0 if kept else 225 * 0.4297**2, abs=0.01)
    assert len(list(files)) == kept * 6 * 3  # a slice and five copies, three files each


def test_copies_are_in_training_lists_only_and_test_patients_in_none(
    tmp_path: Path, paper: Recipe
) -> None:
    prepared = prepared_cohort()
    dataset = build_dataset(prepared, tmp_path / "run", paper)
    splits = read_splits(prepared / "splits.json")
    written = json.loads((dataset.folder / "splits_final.json").read_text())
    assert written == list(dataset.splits)
    for fold, lists in enumerate(dataset.splits):
        patients = {kind: {name[:3] for name in names} for kind, names in lists.items()}
        assert patients["val"] == set(splits.folds[fold])
        assert not patients["train"] & (patients["val"] | set(splits.test))
        assert not [name for name in lists["val"] if "_a" in name]
        assert dataset.plain_train(fold) == [n for n in lists["train"] if "_a" not in n]
        assert len(lists["train"]) == 6 * len(patients["train"])
    stored = {path.name[:3] for path in dataset.cases_folder.iterdir()}
    assert stored == {patient for fold in splits.folds for patient in fold}


def test_a_slice_is_what_the_node_gives_the_network_and_a_copy_is_drawn_from_it(
    tmp_path: Path, paper: Recipe
) -> None:
    prepared = prepared_cohort()
    dataset = build_dataset(prepared, tmp_path / "run", paper)
    name = min(dataset.origins)
    case = dataset.origins[name].case
    image, mask, properties = load(dataset, name)
    assert image.shape == mask.shape == (1, 1, 64, 48)
    volume = read_nifti(prepared / f"cases/{case}/image.nii.gz")
    truth = read_nifti(prepared / f"cases/{case}/mask.nii.gz").voxels > 0.5
    brain = BrainMask(volume.voxels != 0, volume.grid, "", "")
    assert paper.canvas is not None
    made = prepare(volume, brain, paper.canvas.spec())
    np.testing.assert_array_equal(image[0, 0], made.images[12])
    on_canvas = nearest_on_canvas(axial_view(volume.grid).apply(truth), made.placement)
    np.testing.assert_array_equal(mask[0, 0], on_canvas[12])
    # 4 mm pixels on a canvas of 4 mm: every pixel is copied.
    assert mask.sum() == truth[12].sum()
    assert image.max() <= 1.0
    assert len(properties["class_locations"][1]) == mask.sum()
    other, moved, _ = load(dataset, f"{name}_a3")
    expected, expected_mask = apply_draw(
        made.images[12], on_canvas[12], draw_copy(f"{SEED}/{case}/12/3")
    )
    np.testing.assert_array_equal(other[0, 0], expected)
    np.testing.assert_array_equal(moved[0, 0], expected_mask)


def test_masks_are_moved_to_the_canvas_by_their_nearest_pixel() -> None:
    mask = np.zeros((1, 4, 6), np.bool_)
    mask[0, 1, 2] = True
    view = axial_view(Grid(oblique_affine((5.0, 1.0, 1.0)), (1, 4, 6)))
    placement = Placement(view, (1, 4, 6), canvas=(8, 5), first=(-1.0, 0.0), step=(0.5, 1.0))
    found = nearest_on_canvas(mask, placement)
    # Rows at -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5: 0.5 and 1 are nearest to row 1 (halves go up).
    assert np.argwhere(found[0]).tolist() == [[3, 2], [4, 2]]


# --- what nnU-Net makes of it -----------------------------------------------------------------


def test_nnunet_reads_cases_plans_and_lists(tmp_path: Path, paper: Recipe) -> None:
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", paper)
    plans = PlansManager(str(dataset.folder / "plans.json"))
    configuration = plans.get_configuration("2d")
    assert plans.dataset_name == dataset.folder.name  # nnUNet_preprocessed is the run
    assert dataset.cases_folder.name == configuration.data_identifier
    assert infer_dataset_class(str(dataset.cases_folder)) is nnUNetDatasetBlosc2
    assert configuration.normalization_schemes == ["NoNormalization"]
    assert (list(configuration.patch_size), configuration.batch_size) == ([64, 48], 2)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        2,
        allow_init=False,
        deep_supervision=True,
    )
    assert len(network.encoder.stages) == 4  # 48 / 2^3 = 6: nnU-Net stops at an edge of 4
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(dataset.cases_folder), dataset.splits[0]["train"]),
        4,
        configuration.patch_size,
        configuration.patch_size,
        plans.get_label_manager(dataset.dataset_json),
        oversample_foreground_percent=1.0,
    )
    batch = next(loader)
    assert tuple(batch["data"].shape) == (4, 1, 64, 48)
    assert (batch["target"] == 1).any()


def test_a_volume_is_one_case_with_all_its_slices(tmp_path: Path) -> None:
    cases = 'unit = "slice"\nentropy_rule = true\ncopies = 5'
    recipe = recipe_of(tmp_path, PAPER.replace(cases, 'unit = "volume"'))
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", recipe)
    assert len(dataset.origins) == 6
    name = min(dataset.origins)
    image, mask, properties = load(dataset, name)
    assert image.shape == mask.shape == (1, 25, 64, 48)
    assert set(properties["class_locations"][1][:, 1]) == {12, 14}  # also the two pixels of 14


def test_plans_of_paper_2d_are_those_of_nnunet_for_512_x_512(tmp_path: Path) -> None:
    facts = {"spacing": [6.5, 0.4297, 0.4297], "shape": [25, 512, 512], "relative_size": 0.5}
    plans = canvas_plans(load_recipe("paper-2d"), fingerprint([facts], []))
    kwargs = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == [32, 64, 128, 256, 512, 512, 512, 512]
    assert kwargs["strides"] == [[1, 1], *[[2, 2]] * 7]
    assert plans["configurations"]["2d"]["batch_size"] == 12


@pytest.mark.parametrize("name", ["nnunet-2d", "nnunet-3d_fullres"])
def test_nnunet_plans_and_preprocesses_in_its_own_way(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name).model_copy(update={"skull_strip": False})
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", recipe)
    configuration = dataset.plans["configurations"][recipe.configuration]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
    assert configuration["batch_size"] >= 2
    case = dataset.splits[0]["val"][0]
    image, mask, properties = load(dataset, case)
    assert (
        image.shape[1:]
        == mask.shape[1:]
        == tuple(properties["shape_before_cropping"][:1]) + (image.shape[2:])
    )
    inside = mask[0] >= 0  # nnU-Net marks what it cropped around as -1
    assert float(image[0][inside].mean()) == pytest.approx(0, abs=0.05)
    assert float(image[0][inside].std()) == pytest.approx(1, abs=0.05)
    assert (mask == 1).sum() == len(properties["class_locations"][1])


# --- the same again ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", [PAPER, SITE])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, text: str) -> None:
    recipe = recipe_of(tmp_path, text)
    one, two = (build_dataset(prepared_cohort(), tmp_path / n, recipe) for n in ("one", "two"))
    assert files_of(one) == files_of(two)
    assert one.digest == two.digest


def test_another_seed_gives_other_copies_of_the_same_slices(tmp_path: Path, paper: Recipe) -> None:
    one = build_dataset(prepared_cohort(), tmp_path / "one", paper)
    two = build_dataset(prepared_cohort(), tmp_path / "two", paper, seed=SEED + 1)
    first, second = files_of(one), files_of(two)
    differ = {name for name in first if first[name] != second[name]}
    images = {name for name in first if name.endswith(".b2nd")}
    assert differ & images
    assert all("_a" in name for name in differ & images)
    assert one.digest != two.digest


def test_a_killed_build_goes_on_where_it_was(
    tmp_path: Path, paper: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_dataset(prepared_cohort(), tmp_path / "whole", paper)
    made: list[str] = []

    class KilledError(BaseException):
        pass

    def die_at_the_third(row: dict[str, Any], *, kept: bool) -> None:
        assert not kept
        made.append(row["case"])
        if len(made) == 3:
            raise KilledError

    run = tmp_path / "run"
    with pytest.raises(KilledError):
        build_dataset(prepared_cohort(), run, paper, die_at_the_third)
    with pytest.raises(NoDatasetError):
        open_dataset(run)
    stray = run / "dataset/nnUNetPlans_2d/.part-P99_s001.b2nd"  # of a write that was cut off
    stray.write_bytes(b"half")
    again: list[tuple[str, bool]] = []
    dataset = build_dataset(
        prepared_cohort(), run, paper, lambda row, *, kept: again.append((row["case"], kept))
    )
    assert [case for case, kept in again if kept] == made
    assert len(again) == 6
    assert files_of(dataset) == files_of(whole)
    assert open_dataset(run) == dataset


def test_a_damaged_file_is_made_again(tmp_path: Path, paper: Recipe) -> None:
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", paper)
    before = files_of(dataset)
    name = min(dataset.origins)
    (dataset.cases_folder / f"{name}.b2nd").write_bytes(b"half")
    again: list[str] = []

    def stop(row: dict[str, Any], *, kept: bool) -> None:
        if not kept:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build_dataset(prepared_cohort(), tmp_path / "run", paper, stop)
    with pytest.raises(NoDatasetError):  # while it is mended it is not whole
        open_dataset(tmp_path / "run")
    (dataset.cases_folder / f"{name}.b2nd").write_bytes(b"half")
    build_dataset(
        prepared_cohort(),
        tmp_path / "run",
        paper,
        lambda row, *, kept: None if kept else again.append(row["case"]),
    )
    assert again == [dataset.origins[name].case]
    assert files_of(dataset) == before


def test_on_a_full_disk_the_finished_cases_stay(
    tmp_path: Path, paper: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    really = module.write_whole

    def until_full(path: Path, write: Callable[[Path], None]) -> None:
        def full(part: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        written.append(path)
        # A case has 18 files: the third case fails in its middle.
        really(path, full if len(written) > 40 else write)

    monkeypatch.setattr(module, "write_whole", until_full)
    with pytest.raises(DiskFullError, match="2 of 6 cases are ready and stay"):
        build_dataset(prepared_cohort(), tmp_path / "run", paper)
    monkeypatch.undo()
    kept: list[bool] = []
    build_dataset(
        prepared_cohort(), tmp_path / "run", paper, lambda _row, **how: kept.append(how["kept"])
    )
    assert kept == [True] * 2 + [False] * 4


# --- another recipe, another cohort ----------------------------------------------------------


def test_a_run_goes_on_with_its_own_recipe_cohort_and_seed_only(
    tmp_path: Path, paper: Recipe
) -> None:
    run = tmp_path / "run"
    build_dataset(prepared_cohort(), run, paper)
    longer = recipe_of(tmp_path, PAPER, epochs=3)
    with pytest.raises(RunDiffersError, match=r"another recipe \(training.epochs\)"):
        build_dataset(prepared_cohort(), run, longer)
    with pytest.raises(RunDiffersError, match="another seed"):
        build_dataset(prepared_cohort(), run, paper, seed=5)
    other = put_prepared(tmp_path / "other", 9)
    with pytest.raises(RunDiffersError, match="another cohort, another splits"):
        build_dataset(other, run, paper)
    facts = json.loads((run / "run.json").read_text())
    assert facts["seed"] == SEED
    assert facts["software"]["nnunetv2"] == "2.8.1"


def copied(folder: Path) -> Path:
    shutil.copytree(prepared_cohort(), folder)
    return folder


def a_trained_case(prepared: Path) -> str:
    return min(patient for fold in read_splits(prepared / "splits.json").folds for patient in fold)


def test_a_tampered_file_is_refused_by_name(tmp_path: Path, paper: Recipe) -> None:
    prepared = copied(tmp_path / "prepared")
    case = a_trained_case(prepared)
    path = prepared / f"cases/{case}/mask.nii.gz"
    mask = read_nifti(path)
    write_nifti(path, lesion(9), mask.grid)
    with pytest.raises(CasesRefusedError, match=f"{case}: case-changed: mask.nii.gz was changed"):
        build_dataset(prepared, tmp_path / "run", paper)
    with pytest.raises(NoDatasetError):
        open_dataset(tmp_path / "run")


def test_a_mask_on_another_grid_is_refused_even_with_its_digest(
    tmp_path: Path, paper: Recipe
) -> None:
    prepared = copied(tmp_path / "prepared")
    case = a_trained_case(prepared)
    path = prepared / f"cases/{case}/mask.nii.gz"
    mask = read_nifti(path)
    affine = mask.grid.affine.copy()
    affine[0, 3] += 4.0
    write_nifti(path, mask.voxels > 0.5, Grid(affine, mask.grid.shape))
    row = prepared / f"cases/{case}/case.json"
    content = json.loads(row.read_text())
    content["files"]["mask.nii.gz"] = hashlib.sha256(path.read_bytes()).hexdigest()
    row.write_text(json.dumps(content))
    with pytest.raises(CasesRefusedError, match=f"{case}: grid-mismatch"):
        build_dataset(prepared, tmp_path / "run", paper)


def test_a_brain_larger_than_the_canvas_stops_all_or_is_left_out(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, PAPER.replace("columns = 48", "columns = 32"))
    cohort = tmp_path / "cohort"
    for number in range(1, 9):
        put_brain(cohort / f"P{number:02d}/first", number, (6.5, 4.0, 4.0))
    # 128 mm of canvas hold brains of 120 mm, not of 150.
    put_brain(cohort / "P02/second", 2, (6.5, 4.0, 5.0))
    report = prepare_cohort(read_cohort(cohort), tmp_path / "prepared", SEED, Rules())
    assert report["outcome"] == "prepared"
    odd = next(row["case"] for row in report["cases"] if row["session"] == "second")
    assert next(row["part"] for row in report["cases"] if row["case"] == odd) != "test"
    run = tmp_path / "run"
    with pytest.raises(CasesRefusedError, match=f"{odd}: does-not-fit-canvas"):
        build_dataset(tmp_path / "prepared", run, recipe)
    dataset = build_dataset(tmp_path / "prepared", run, recipe, refusals=Refusals.GO_ON)
    assert odd not in {one.case for one in dataset.origins.values()}
    with (dataset.folder / "preparation.csv").open() as file:
        told = {row["case"]: row["reason"] for row in csv.DictReader(file)}
    assert told[odd] == "does-not-fit-canvas"


def test_an_unprepared_or_other_cohort_is_refused(tmp_path: Path, paper: Recipe) -> None:
    with pytest.raises(NotPreparedError, match="no whole output"):
        build_dataset(tmp_path, tmp_path / "run", paper)
    prepared = copied(tmp_path / "prepared")
    case = a_trained_case(prepared)
    row = prepared / f"cases/{case}/case.json"
    row.write_text(row.read_text().replace('"image_digest": "', '"image_digest": "0'))
    with pytest.raises(SplitsDifferError, match=case):
        build_dataset(prepared, tmp_path / "run", paper)


# --- who is judged on what --------------------------------------------------------------------

REAL = {f"P{fold}": Origin(f"P{fold}", (f"P{fold}",), (f"fold {fold}",)) for fold in range(5)}


def test_an_image_with_inserted_lesions_is_trained_on_where_both_patients_are() -> None:
    made = Origin("X", ("P0", "P3"), ("fold 0", "fold 3"), semi_synthetic=True)
    splits = list_folds({**REAL, "X": made}, patient_folds=True)
    assert ["X" in lists["train"] for lists in splits] == [False, True, True, False, True]
    assert not any("X" in lists["val"] for lists in splits)


def test_nobody_is_judged_on_made_up_images() -> None:
    copy = Origin("P0", ("P0",), ("fold 0",), copy=1)
    made = Origin("X", ("P0", "P0"), ("fold 0", "fold 0"), semi_synthetic=True)
    for name, one in (("P0_a1", copy), ("X", made)):
        origins = {**REAL, name: one}
        splits = list_folds(origins, patient_folds=True)
        splits[0]["val"].append(name)
        for patient_folds in (True, False):
            with pytest.raises(JudgedOnMadeUpError, match=f"fold 0 is validated on {name}"):
                refuse_leaks(splits, origins, patient_folds=patient_folds)


def test_a_patient_on_both_sides_or_of_the_test_set_is_refused() -> None:
    splits = list_folds(REAL, patient_folds=True)
    refuse_leaks(splits, REAL, patient_folds=True)
    splits[1]["train"].append("P1")
    with pytest.raises(PatientInTwoPartsError, match="fold 1: P1"):
        refuse_leaks(splits, REAL, patient_folds=True)
    tested = {**REAL, "P9": Origin("P9", ("P9",), ("test",))}
    with pytest.raises(PatientInTwoPartsError, match="P9"):
        refuse_leaks(list_folds(tested, patient_folds=True), tested, patient_folds=True)


def test_lists_that_were_changed_by_hand_are_refused_when_opened(
    tmp_path: Path, paper: Recipe
) -> None:
    dataset = build_dataset(prepared_cohort(), tmp_path / "run", paper)
    path = dataset.folder / "splits_final.json"
    lists = json.loads(path.read_text())
    lists[0]["val"].append(next(name for name in lists[0]["train"] if "_a" in name))
    path.write_text(json.dumps(lists))
    with pytest.raises(JudgedOnMadeUpError):
        open_dataset(tmp_path / "run")


def test_a_fold_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    # On 256 x 256 pixels of 4 mm the rule keeps slices with 57 pixels or more: none.
    text = PAPER.replace("rows = 64", "rows = 256").replace("columns = 48", "columns = 256")
    with pytest.raises(FoldEmptyError, match="fold 0 has no image"):
        build_dataset(prepared_cohort(), tmp_path / "run", recipe_of(tmp_path, text))


# --- without folds by patient, with the skull -------------------------------------------------


def test_one_patient_with_the_skull_on_makes_a_starter_data_set(tmp_path: Path) -> None:
    small = Acquisition(slices=20, rows=64, columns=56, row_mm=3.6, column_mm=3.6)
    phantom = synthetic_head(1, small)
    folder = tmp_path / "cohort/P01"
    folder.mkdir(parents=True)
    write_nifti(folder / "flair.nii.gz", phantom.volume.voxels, phantom.volume.grid)
    write_nifti(folder / "lesion.nii.gz", phantom.lesions, phantom.volume.grid)
    report = prepare_cohort(read_cohort(tmp_path / "cohort"), tmp_path / "prepared", SEED, Rules())
    assert report["reason"] == "too-few-patients"
    with pytest.raises(NotPreparedError, match="too-few-patients"):
        build_dataset(tmp_path / "prepared", tmp_path / "run", recipe_of(tmp_path, SITE))
    text = SITE.replace("skull_strip = false", "skull_strip = true\npatient_folds = false")
    dataset = build_dataset(tmp_path / "prepared", tmp_path / "run", recipe_of(tmp_path, text))
    assert dataset.splits == ({"train": ["P01"], "val": ["P01"]},) * 5
    table = json.loads((dataset.folder / "preparation.json").read_text())
    for row in table["cases"]:
        assert row["brain_ml"] == pytest.approx(1500, rel=0.2)
        assert row["lesion_outside_brain_ml"] < 0.1 * row["lesion_ml"]
