from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from dicom.volume import Grid, Volume
from pipeline.brain import BrainMask, strip_skull
from pipeline.findings import (
    DEEP_WHITE_MATTER,
    INFRATENTORIAL,
    JUXTACORTICAL,
    NOT_ASSESSED,
    PERIVENTRICULAR,
    REGIONS,
    Findings,
    measure,
)
from pipeline.lesions import LesionMap
from pipeline.phantom import Acquisition
from pipeline.quality import region_flags
from pipeline.regions import Anatomy, NotPlaced, contact_mm, locate_structures, name_regions
from pipeline.registration import Placement
from tests.conftest import oblique_affine
from tests.pipeline.planted import PlantedHead, planted_head, sagittal

SHAPE = (5, 20, 16)
THICK = (6.5, 0.5, 0.75)


def drawn(spacing_mm: tuple[float, float, float] = THICK, **masks: np.ndarray) -> Anatomy:
    """An anatomy on an oblique grid; what is not given is not there."""
    empty = np.zeros(SHAPE, bool)
    return Anatomy(
        lateral_ventricles=masks.get("ventricles", empty),
        cortex=masks.get("cortex", empty),
        infratentorial=masks.get("below", empty),
        grid=Grid(oblique_affine(spacing_mm), SHAPE),
        placement=Placement(np.eye(4), 0.96),
        own_ventricles=True,
    )


def at(*index: int | slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[index] = True
    return mask


def found(labels: np.ndarray, grid: Grid) -> Findings:
    flat = np.full(labels.shape, 0.75, np.float32)
    return measure(LesionMap(flat, flat, labels.astype(np.int32), grid, 0, 0))


def named(lesion: np.ndarray, anatomy: Anatomy | NotPlaced, grid: Grid | None = None) -> Findings:
    grid = grid or (anatomy.grid if isinstance(anatomy, Anatomy) else Grid(np.eye(4), SHAPE))
    labels = lesion.astype(np.int32)
    return name_regions(found(labels, grid), labels, anatomy)


def region(lesion: np.ndarray, anatomy: Anatomy) -> str:
    return named(lesion, anatomy).lesions[0].region


# The rule ----------------------------------------------------------------------------------------


def test_a_lesion_one_pixel_beside_a_ventricle_touches_it_and_two_pixels_do_not() -> None:
    anatomy = drawn(ventricles=at(2, slice(5, 15), 8))
    assert region(at(2, 10, 9), anatomy) == PERIVENTRICULAR
    far = named(at(2, 10, 10), anatomy).lesions[0]
    assert far.region == DEEP_WHITE_MATTER
    assert far.ventricle_mm == pytest.approx(1.5)  # two columns of .75 mm; contact is 1 mm
    assert far.cortex_mm is None


def test_contact_is_a_millimetre_or_a_neighbouring_pixel_if_that_is_farther() -> None:
    assert contact_mm((6.5, 0.43, 0.43)) == 1.0
    assert contact_mm((6.5, 0.9, 1.2)) == pytest.approx(1.5)  # .9 and 1.2 over the corner
    assert contact_mm((1.2, 0.5, 0.5)) == 1.2
    assert contact_mm((1.6, 0.5, 0.5)) == 1.0


def test_a_neighbour_through_a_thick_slice_is_no_contact() -> None:
    over = at(3, 10, 8)
    assert region(over, drawn(ventricles=at(2, slice(5, 15), slice(6, 11)))) == DEEP_WHITE_MATTER
    assert named(over, drawn(ventricles=at(2, 10, 8))).lesions[0].ventricle_mm is None


def test_a_neighbour_through_a_slice_of_a_3d_acquisition_is_a_contact() -> None:
    thin = (1.2, 0.5, 0.75)
    lesion = named(at(3, 10, 8), drawn(thin, ventricles=at(2, 10, 8))).lesions[0]
    assert (lesion.region, lesion.ventricle_mm) == (PERIVENTRICULAR, pytest.approx(1.2))
    assert region(at(4, 10, 8), drawn(thin, ventricles=at(2, 10, 8))) == DEEP_WHITE_MATTER


def test_infratentorial_comes_before_periventricular_before_juxtacortical() -> None:
    everywhere = np.ones(SHAPE, bool)
    lesion = at(2, 10, slice(4, 8))
    assert region(lesion, drawn(ventricles=everywhere, cortex=everywhere, below=everywhere)) == (
        INFRATENTORIAL
    )
    assert region(lesion, drawn(ventricles=everywhere, cortex=everywhere)) == PERIVENTRICULAR
    assert region(lesion, drawn(cortex=everywhere)) == JUXTACORTICAL
    assert region(lesion, drawn()) == DEEP_WHITE_MATTER


def test_infratentorial_is_where_half_of_a_lesion_lies() -> None:
    lesion = at(2, 10, slice(4, 8))  # columns 4 to 7
    assert region(lesion, drawn(below=at(2, 10, slice(0, 6)))) == INFRATENTORIAL
    assert region(lesion, drawn(below=at(2, 10, slice(0, 5)))) == DEEP_WHITE_MATTER


def test_counts_and_volumes_of_the_regions_add_up_to_the_findings() -> None:
    anatomy = drawn(ventricles=at(2, slice(5, 15), 8), cortex=at(slice(None), 0))
    labels = np.zeros(SHAPE, np.int32)
    labels[2, 5:9, 9] = 1
    labels[3, 1, 3:6] = 2
    labels[1, 14, 3] = 3
    findings = name_regions(found(labels, anatomy.grid), labels, anatomy)
    assert [lesion.region for lesion in findings.lesions] == [
        PERIVENTRICULAR, JUXTACORTICAL, DEEP_WHITE_MATTER,
    ]  # fmt: skip
    voxel_ml = 6.5 * 0.5 * 0.75 / 1000
    written = findings.as_json()["regions"]
    assert written == {
        PERIVENTRICULAR: {"count": 1, "volume_ml": pytest.approx(4 * voxel_ml, abs=1e-6)},
        JUXTACORTICAL: {"count": 1, "volume_ml": pytest.approx(3 * voxel_ml, abs=1e-6)},
        INFRATENTORIAL: {"count": 0, "volume_ml": 0.0},
        DEEP_WHITE_MATTER: {"count": 1, "volume_ml": pytest.approx(voxel_ml, abs=1e-6)},
    }


def test_without_a_place_of_the_template_nothing_is_guessed() -> None:
    failed = NotPlaced("template and brain mask overlap by Dice 0.50; 0.92 is the least")
    findings = named(at(2, 10, 8), failed)
    assert [lesion.region for lesion in findings.lesions] == [NOT_ASSESSED]
    assert set(findings.as_json()["regions"]) == {NOT_ASSESSED}
    (flag,) = region_flags(failed)
    assert (flag.code, flag.severity) == ("regions-not-assessed", "review")
    assert "overlap by Dice 0.50" in flag.message
    assert region_flags(None) == region_flags(drawn()) == ()


# Heads -------------------------------------------------------------------------------------------


@cache
def thick() -> PlantedHead:
    """6.5 mm, turned far, from the vertex down."""
    turned = (-20.0, 6.0, -8.0)
    return planted_head(
        12, Acquisition(row_mm=0.8, column_mm=0.8, angles_deg=turned, first="superior")
    )


def sagittal_3d() -> PlantedHead:
    """1.2 mm, sagittal."""
    return sagittal(planted_head(14, Acquisition(150, 190, 160, 1.2, 1.2, 1.2, 0.0)))


@pytest.mark.timeout(300)  # ten seconds a head on a free core
@pytest.mark.parametrize("make", [thick, sagittal_3d])
def test_nine_of_ten_planted_lesions_get_their_region(
    make: Callable[[], PlantedHead], record_property: Callable[[str, str], None]
) -> None:
    head = make()
    anatomy = locate_structures(head.volume, strip_skull(head.volume))
    assert isinstance(anatomy, Anatomy)
    assert anatomy.own_ventricles
    findings = name_regions(found(head.labels, head.volume.grid), head.labels, anatomy)
    told = [lesion.region for lesion in findings.lesions]
    right = {
        one: (
            sum(a == b == one for a, b in zip(told, head.regions, strict=True)),
            head.regions.count(one),
        )
        for one in REGIONS
    }
    record_property("right_of_planted", str(right))  # in a report of pytest --junit-xml
    assert all(planted >= 5 for _, planted in right.values())
    assert all(named_right >= 0.8 * planted for named_right, planted in right.values())
    assert sum(n for n, _ in right.values()) >= 0.9 * len(told)


@pytest.fixture(scope="module")
def head() -> tuple[Volume, BrainMask]:
    planted = thick()
    return planted.volume, BrainMask(planted.brain, planted.volume.grid, "supplied", "", {})


def test_the_same_image_gives_the_same_structures(
    head: tuple[Volume, BrainMask],
) -> None:
    volume, brain = head
    one, other = (locate_structures(volume, brain) for _ in range(2))
    assert isinstance(one, Anatomy)
    assert isinstance(other, Anatomy)
    np.testing.assert_array_equal(one.placement.to_mni, other.placement.to_mni)
    for name in ("lateral_ventricles", "cortex", "infratentorial"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_ventricles_are_those_of_the_image_and_of_the_template_where_it_shows_none(
    head: tuple[Volume, BrainMask],
) -> None:
    volume, brain = head
    seen = locate_structures(volume, brain)
    # Fluid that is not suppressed: as bright as the brain.
    level = np.float32(np.median(volume.voxels[brain.mask]))
    bright = np.where(brain.mask, np.maximum(volume.voxels, level * 0.9), volume.voxels)
    unseen = locate_structures(Volume(bright.astype(np.float32), volume.grid), brain)
    assert isinstance(seen, Anatomy)
    assert isinstance(unseen, Anatomy)
    assert (seen.own_ventricles, unseen.own_ventricles) == (True, False)
    inside = volume.voxels[seen.lateral_ventricles]
    assert np.median(inside) < 0.66 * level
    assert unseen.lateral_ventricles.any()


def test_a_mask_that_is_no_brain_leaves_regions_untold(
    head: tuple[Volume, BrainMask],
) -> None:
    volume, brain = head
    half = brain.mask.copy()
    half[:, :, half.shape[2] // 2 :] = False  # one hemisphere
    kept = ndimage.binary_erosion(half, iterations=2)
    anatomy = locate_structures(volume, BrainMask(kept, volume.grid, "supplied", "", {}))
    assert isinstance(anatomy, NotPlaced)
    assert any(figure.isdigit() for figure in anatomy.explanation)
