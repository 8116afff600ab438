"""The synthetic head: plausible, known to the voxel, and the same every time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from scipy import ndimage

from config.settings import SelectionSettings
from dicom.series import Study, read_study
from dicom.volume import read_volume
from pipeline.brain import strip_skull
from pipeline.orientation import axial_view
from pipeline.phantom import Acquisition, Floats, Mask, Phantom, synthetic_head
from pipeline.phantom_study import flair_series_uid, study_uid, write_study
from pipeline.selection import choose

COARSE = Acquisition(
    slices=12, rows=72, columns=60, row_mm=3.2, column_mm=3.5, thickness_mm=10.0, gap_mm=3.0
)
EVERY_NEIGHBOUR = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return synthetic_head(7)


@pytest.fixture(scope="module")
def folder(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    write_study(phantom, place)
    return place


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return read_study(folder)


def level(phantom: Phantom, mask: Mask) -> float:
    return float(np.median(phantom.volume.voxels[mask]))


def test_the_stack_is_oblique_and_thick_and_not_square(phantom: Phantom) -> None:
    grid = phantom.volume.grid
    assert grid.shape == (24, 256, 224)
    assert grid.spacing_mm == pytest.approx((6.5, 0.9, 0.9))
    normal = grid.affine[:3, 0] / 6.5
    assert normal[2] == pytest.approx(np.cos(np.radians(7.15)), abs=2e-3)
    # Axial all the same, and already in the order of the axial view.
    assert axial_view(grid).axes == (0, 1, 2)


def test_the_brain_is_of_adult_size_and_wholly_inside_the_stack(phantom: Phantom) -> None:
    assert 1350 < phantom.brain_ml < 1650
    assert not phantom.brain[0].any()
    assert not phantom.brain[-1].any()
    for axis in (1, 2):
        assert not phantom.brain.take([0, -1], axis).any()


def test_tissue_levels_are_those_measured_on_real_flair(phantom: Phantom) -> None:
    """White matter = 1: grey 0.98 to 1.20, CSF 0.27 to 0.49, lesions 1.28 to 1.55 (quartiles)."""
    head, volume = phantom.head, phantom.volume
    to_head = np.linalg.inv(head.affine) @ volume.grid.affine

    def pure(fraction: Floats) -> Mask:
        sampled = ndimage.affine_transform(
            fraction, to_head[:3, :3], to_head[:3, 3], output_shape=volume.grid.shape, order=1
        )
        eroded: Mask = ndimage.binary_erosion(sampled > 0.9, np.ones((1, 3, 3), bool))
        return eroded & ~phantom.lesions

    white = level(phantom, pure(head.white))
    assert 0.98 <= level(phantom, pure(head.grey)) / white <= 1.20
    assert 0.27 <= level(phantom, pure(head.fluid)) / white <= 0.49
    assert 1.28 <= level(phantom, phantom.lesions) / white <= 1.55


def test_lesions_lie_in_the_brain_in_every_size(phantom: Phantom) -> None:
    assert not (phantom.lesions & ~phantom.brain).any()
    volumes = sorted(lesion.volume_ml for lesion in phantom.planted)
    assert len(volumes) >= 18
    assert volumes[0] < 0.1
    assert volumes[-1] > 1.5
    assert {lesion.kind for lesion in phantom.planted} == {
        "confluent",
        "periventricular",
        "deep",
        "juxtacortical",
    }


def test_the_truth_on_the_grid_adds_up_to_what_was_planted(phantom: Phantom) -> None:
    planted_ml = sum(lesion.volume_ml for lesion in phantom.planted)
    assert phantom.lesions_ml == pytest.approx(planted_ml, rel=0.15)  # thick slices lose rims
    _, separate = ndimage.label(phantom.lesions, EVERY_NEIGHBOUR)
    assert separate >= 0.6 * len(phantom.planted)


def test_a_planted_lesion_is_found_at_its_stated_place(phantom: Phantom) -> None:
    largest = max(phantom.planted, key=lambda lesion: lesion.volume_ml)
    here = np.linalg.inv(phantom.volume.grid.affine) @ (*largest.centre_lps_mm, 1)
    distance = ndimage.distance_transform_edt(
        ~phantom.lesions, sampling=phantom.volume.grid.spacing_mm
    )
    assert distance[tuple(np.rint(here[:3]).astype(int))] < largest.long_axis_mm / 2


def test_the_skull_strip_finds_the_brain_of_the_phantom(phantom: Phantom) -> None:
    found = strip_skull(phantom.volume).mask
    dice = 2 * np.count_nonzero(found & phantom.brain) / (found.sum() + phantom.brain.sum())
    assert dice > 0.97
    assert np.count_nonzero(phantom.lesions & ~found) == 0


@pytest.fixture(scope="module")
def coarse() -> Phantom:
    return synthetic_head(3, COARSE)


def test_a_head_without_lesions_is_the_same_head(coarse: Phantom) -> None:
    well = synthetic_head(3, COARSE, lesions=False)
    assert well.lesions.sum() == 0
    assert well.planted == ()
    assert np.array_equal(well.brain, coarse.brain)
    assert coarse.lesions.any()


def test_a_stack_from_the_vertex_down_holds_the_same_head(coarse: Phantom) -> None:
    downward = synthetic_head(3, replace(COARSE, first="superior"))
    assert downward.volume.grid.affine[2, 0] < 0
    assert np.array_equal(downward.brain[::-1], coarse.brain)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_uids(
    tmp_path: Path, coarse: Phantom
) -> None:
    def digests(seed: int, place: str) -> list[str]:
        files = write_study(synthetic_head(seed, COARSE), tmp_path / place)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    assert digests(1, "one") == digests(1, "again")
    write_study(coarse, tmp_path / "other")
    uids = [
        {
            instance.sop_instance_uid
            for s in read_study(tmp_path / place).series
            for instance in s.instances
        }
        for place in ("one", "other")
    ]
    assert uids[0].isdisjoint(uids[1])


def test_what_is_read_back_is_the_phantom(phantom: Phantom, study: Study) -> None:
    flair = next(s for s in study.series if s.series_instance_uid == flair_series_uid(phantom))
    volume = read_volume(flair)
    assert np.array_equal(volume.voxels, phantom.volume.voxels)
    assert volume.grid.affine == pytest.approx(phantom.volume.grid.affine, abs=1e-6)
    assert volume.sop_instance_uids == phantom.volume.sop_instance_uids
    assert volume.grid.frame_of_reference_uid == phantom.volume.grid.frame_of_reference_uid


def test_the_flair_is_chosen_and_every_other_series_has_its_reason(
    phantom: Phantom, study: Study
) -> None:
    selection = choose(study, SelectionSettings())
    assert selection.selected == flair_series_uid(phantom)
    names = {s.series_instance_uid: s.header.SeriesDescription for s in study.series}
    assert {names[d.series_instance_uid]: d.reason for d in selection.decisions} == {
        "LOCALIZER": "localizer",
        "T2 FLAIR TRA": "selected",
        "T1 SE TRA": "not-flair-echo-time",
        "T2 TSE TRA": "not-flair-no-inversion",
        "DWI ADC": "parametric-map",
        "T2 FLAIR COR MPR": "derived-reformat",
        "FLAIR MIP": "projection",
    }


def test_every_file_says_that_it_is_a_phantom(phantom: Phantom, folder: Path) -> None:
    for path in folder.rglob("*.dcm"):
        header = dcmread(path, stop_before_pixels=True)
        assert header.PatientName == "PHANTOM^SYNTHETIC"
        assert header.QualityControlImage == "YES"
        assert header.StudyInstanceUID == study_uid(phantom)
        # Ours, but not a result: a node must not take it for one of its own.
        assert "flairnode" not in f"{header.Manufacturer} {header.ManufacturerModelName}".lower()
