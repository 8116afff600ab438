"""An imported pack says what nnU-Net says of the same file, on the grid of the source."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813  # as everywhere
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from dicom.volume import Grid, Volume, write_nifti
from pipeline.brain import BrainMask, EmptyMaskError
from pipeline.ensemble import Ensemble, Mirroring, NetworkOutputError, load_ensemble
from pipeline.flow import analyse
from pipeline.model_pack import ModelPack, ModelPackUnsupportedError, load_pack
from pipeline.morphology import dilate_in_plane_mm
from pipeline.nnunet_import import Wanted, import_results
from pipeline.nnunet_volume import TooFineError, VolumeEnsemble
from tests.conftest import oblique_affine
from tests.pipeline.hand_results import (
    bright_plans,
    bright_state,
    make_plans,
    random_state,
    write_results,
)
from tests.pipeline.heads import ellipsoid_head
from tests.pipeline.stock_results import FOLDS, blob_case, make, results_folder
from tests.pipeline.tiny_pack import make_pack

Array = npt.NDArray[np.float32]
CONFIGURATIONS = ("2d", "3d_fullres")
SPACING_MM = (3.4, 0.8, 1.6)
"""Not that of the training: (3, 1, 1.25). Anisotropic, pixels not square."""

pytestmark = pytest.mark.timeout(900)  # nnU-Net plans, preprocesses and trains first: 25 s of CPU


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nnU-Net itself left after two folds of two configurations."""
    folder = tmp_path_factory.mktemp("stock")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def packs(stock: Path) -> dict[str, ModelPack]:
    return {
        name: import_results(
            results_folder(stock, name),
            stock / "packs",
            Wanted(name=name, version="1", image="head"),
            folds=FOLDS,
        )
        for name in CONFIGURATIONS
    }


def axial(voxels: Array) -> tuple[Volume, BrainMask]:
    return placed(voxels, oblique_affine(SPACING_MM))


def placed(voxels: Array, affine: npt.NDArray[np.float64]) -> tuple[Volume, BrainMask]:
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    volume = Volume(voxels, Grid(affine, shape))
    return volume, BrainMask(voxels > 0, volume.grid, "supplied", "")


def nnunet_says(
    results: Path, voxels: Array, spacing_mm: list[float], *, mirroring: bool
) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Probability and labels of `nnUNetPredictor`, from the folder, as its users call it."""
    predictor = nnUNetPredictor(
        use_mirroring=mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(results), FOLDS)
    labels, probability = predictor.predict_single_npy_array(
        voxels[None], {"spacing": spacing_mm}, None, None, True
    )
    return probability[1], labels


@pytest.mark.parametrize("mirroring", ["off", "on"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_imported_pack_says_what_nnunet_predictor_says(
    stock: Path, packs: Mapping[str, ModelPack], name: str, mirroring: Mirroring
) -> None:
    voxels, _ = blob_case(7)
    volume, brain = axial(voxels)
    ensemble = load_ensemble(packs[name], device="cpu", mirroring=mirroring, threads=1)
    assert isinstance(ensemble, VolumeEnsemble)
    ours, disagreement = ensemble.segment_volume(volume, brain)
    theirs, labels = nnunet_says(
        results_folder(stock, name), voxels, list(SPACING_MM), mirroring=mirroring == "on"
    )
    assert np.abs(ours - theirs).max() <= 2e-3
    assert np.mean((ours > 0.5) == (labels > 0)) >= 0.9999
    assert 0.001 < np.mean(ours > 0.5) < 0.2  # the comparison is not one of empty masks
    assert 0.05 < disagreement.max() <= 0.5


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_a_series_that_does_not_lie_as_the_training_is_turned_and_turned_back(
    stock: Path, tmp_path: Path, orientation: str
) -> None:
    """Sagittal slices from left to right, rows from the vertex down.

    The way there and back of the reference is SimpleITK's, from a file.
    """
    voxels, _ = blob_case(6)
    affine = np.eye(4)
    affine[:3, :3] = [[-1.2, 0, 0], [0, 0, 1.1], [0, -1.3, 0]]
    affine[:3, 3] = [40, -30, 25]
    volume, brain = placed(np.ascontiguousarray(voxels.transpose(2, 0, 1)), affine)
    pack = import_results(
        results_folder(stock, "2d"),
        tmp_path,
        Wanted(name="turned", version="1", image="head", orientation=orientation),
        folds=FOLDS,
    )
    ensemble = load_ensemble(pack, device="cpu", mirroring="off", threads=1)
    assert isinstance(ensemble, VolumeEnsemble)
    ours, _ = ensemble.segment_volume(volume, brain)

    with tempfile.NamedTemporaryFile(suffix=".nii") as file:
        write_nifti(Path(file.name), volume.voxels, volume.grid)
        image = sitk.ReadImage(file.name)
    source = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    turned = sitk.DICOMOrient(image, orientation)
    assert source not in {"LPS", "RAS"}
    theirs, labels = nnunet_says(
        results_folder(stock, "2d"),
        sitk.GetArrayFromImage(turned),
        list(turned.GetSpacing()[::-1]),
        mirroring=False,
    )
    back = sitk.GetImageFromArray(theirs)
    back.CopyInformation(turned)
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(back, source))
    assert ours.shape == expected.shape == volume.grid.shape
    assert np.abs(ours - expected).max() <= 2e-3
    assert labels.any()


def test_nnunets_own_checkpoints_are_read_and_say_their_axes(
    packs: Mapping[str, ModelPack],
) -> None:
    assert packs["2d"].manifest.mirroring_axes == (0, 1)
    assert packs["3d_fullres"].manifest.mirroring_axes == (0, 1, 2)
    assert packs["3d_fullres"].manifest.configuration == "3d_fullres"
    assert packs["2d"].manifest.training_data.figures["trainer"] == "nnUNetTrainer"


def test_the_same_volume_gives_the_same_bits(packs: Mapping[str, ModelPack]) -> None:
    volume, brain = axial(blob_case(3)[0])
    first, second = (load_volume(packs["2d"]).segment_volume(volume, brain) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


# --- by hand --------------------------------------------------------------------------------


def load_volume(pack: ModelPack, mirroring: Mirroring = "off") -> VolumeEnsemble:
    ensemble = load_ensemble(pack, device="cpu", mirroring=mirroring, threads=1)
    assert isinstance(ensemble, VolumeEnsemble)
    return ensemble


def bright_pack(
    folder: Path, thresholds: tuple[float, ...] = (200.0,), name: str = "2d", **wanted: object
) -> ModelPack:
    """Voxels above a raw intensity, as acquired: no scale, no change of spacing needed."""
    plans = bright_plans(name, normalization_schemes=["NoNormalization"], use_mask_for_norm=[False])
    states: dict[int | str, Any] = {
        fold: bright_state(plans, threshold, name, steepness=0.5)
        for fold, threshold in enumerate(thresholds)
    }
    results = write_results(folder / "results", plans, states, name)
    asked = replace(Wanted(name="bright", version="1", image="head"), **wanted)
    return import_results(results, folder / "packs", asked, folds=tuple(states))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_network_that_marks_bright_voxels_marks_them_where_they_are(
    tmp_path: Path, name: str
) -> None:
    """Spacing and orientation are those of the plans: nothing is resampled, every voxel counts."""
    voxels = np.full((10, 70, 50), 100, np.float32)
    voxels[4:6, 20:25, 30:34] = 300
    volume, brain = placed(voxels, np.eye(4)[:, [2, 1, 0, 3]] * [3, 1, 1, 1])
    probability, _ = load_volume(bright_pack(tmp_path, name=name)).segment_volume(volume, brain)
    np.testing.assert_array_equal(probability > 0.5, voxels > 200)


def test_members_that_differ_disagree_as_on_a_canvas(tmp_path: Path) -> None:
    """Two members, one of which marks a voxel: p = .5, and the deviation of 0 and 1 is .5."""
    voxels = np.full((8, 70, 50), 10, np.float32)
    voxels[4, 20, 30] = 250
    volume, brain = placed(voxels, np.eye(4)[:, [2, 1, 0, 3]] * [3, 1, 1, 1])
    pack = bright_pack(tmp_path, thresholds=(200.0, 300.0))
    probability, disagreement = load_volume(pack).segment_volume(volume, brain)
    assert probability[4, 20, 30] == pytest.approx(0.5, abs=1e-5)
    assert disagreement[4, 20, 30] == pytest.approx(0.5, abs=1e-5)
    disagreement[4, 20, 30] = 0
    assert disagreement.max() < 1e-5


def test_a_network_for_brains_does_not_see_the_skull(tmp_path: Path) -> None:
    voxels = np.full((8, 70, 60), 100, np.float32)
    voxels[3, 30, 10] = voxels[3, 30, 30] = 300  # outside and inside
    volume, _ = placed(voxels, np.eye(4)[:, [2, 1, 0, 3]] * [3, 1, 1, 1])
    mask = np.zeros(voxels.shape, np.bool_)
    mask[2:6, 20:50, 20:50] = True
    brain = BrainMask(mask, volume.grid, "supplied", "")
    for image, seen in (("brain", False), ("head", True)):
        pack = bright_pack(tmp_path / image, name="2d", image=image, dilation_mm=0.0)
        probability, _ = load_volume(pack).segment_volume(volume, brain)
        assert bool(probability[3, 30, 10] > 0.5) is seen
        assert probability[3, 30, 30] > 0.5


def test_whatever_the_network_saw_only_the_brain_holds_lesions(tmp_path: Path) -> None:
    volume, truth = ellipsoid_head()
    level = float(np.median(volume.voxels[truth]))
    voxels = volume.voxels.copy()
    inside = tuple(int(index) for index in np.argwhere(truth).mean(axis=0))
    block = tuple(slice(index - 2, index + 3) for index in inside)
    voxels[block] = 3 * level
    head = Volume(voxels, volume.grid)
    pack = bright_pack(tmp_path, thresholds=(2.5 * level,))
    analysis = analyse(head, load_volume(pack), pack.manifest)
    assert analysis.lesions.probability.shape == head.grid.shape
    found = analysis.lesions.labels > 0
    assert found[inside]
    assert np.count_nonzero(found[block]) > 100  # of 125: resampling rounds corners
    assert not (found & ~dilate_in_plane_mm(analysis.brain.mask, head.grid.spacing_mm, 2.0)).any()
    assert {"preprocess", "segment", "restore", "lesions"} <= analysis.timing_s.keys()
    assert "geometry-not-validated" in {flag.code for flag in analysis.quality.flags}


def test_nothing_left_for_the_network_is_a_coded_error(tmp_path: Path) -> None:
    volume, brain = placed(np.zeros((8, 70, 60), np.float32), oblique_affine((3, 1, 1)))
    with pytest.raises(EmptyMaskError):
        load_volume(bright_pack(tmp_path)).segment_volume(volume, brain)


def test_nan_never_passes_for_no_lesion(tmp_path: Path) -> None:
    voxels = np.full((8, 70, 60), 100, np.float32)
    voxels[4, 30, 30] = np.nan
    volume, brain = placed(voxels, oblique_affine((3, 1, 1)))
    with pytest.raises(NetworkOutputError):
        load_volume(bright_pack(tmp_path)).segment_volume(volume, brain)


def test_a_volume_that_would_not_fit_in_memory_is_refused_before(tmp_path: Path) -> None:
    plans = make_plans(spacing=[0.06, 0.06])
    results = write_results(tmp_path, plans, {0: random_state(plans, 0)})
    pack = import_results(
        results, tmp_path / "packs", Wanted(name="fine", version="1", image="head"), folds=(0,)
    )
    volume, brain = placed(np.ones((24, 256, 256), np.float32), oblique_affine((3, 1, 1)))
    with pytest.raises(TooFineError, match="4267"):
        load_volume(pack).segment_volume(volume, brain)


def test_settings_say_what_changes_a_result(tmp_path: Path) -> None:
    pack = bright_pack(tmp_path)
    assert load_volume(pack).settings() == {"mirroring_axes": [], "precision": "fp32"}
    mirrored = load_volume(pack, "on").settings()
    assert mirrored == {"mirroring_axes": [0, 1], "precision": "fp32"}


def test_each_kind_of_pack_has_its_ensemble(tmp_path: Path) -> None:
    imported, canvas = bright_pack(tmp_path), make_pack(tmp_path / "canvas", folds=(0,))
    assert isinstance(load_ensemble(load_pack(imported.path), device="cpu"), VolumeEnsemble)
    assert isinstance(load_ensemble(canvas, device="cpu"), Ensemble)
    with pytest.raises(ModelPackUnsupportedError, match="not 'nnunet'"):
        VolumeEnsemble.load(canvas, device="cpu")
    with pytest.raises(ModelPackUnsupportedError, match="no canvas"):
        Ensemble.load(imported, device="cpu")
