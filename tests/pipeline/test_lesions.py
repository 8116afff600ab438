"""From probabilities to numbered lesions, on an oblique grid of 6.5 x 0.5 x 0.25 mm voxels."""

from __future__ import annotations

import numpy as np
import pytest

from dicom.volume import Grid, Volume
from pipeline.brain import BrainMask
from pipeline.lesions import LesionMap, find_lesions
from tests.pipeline.tiny_pack import manifest

SPACING_MM = (6.5, 0.5, 0.25)  # one voxel is 0.8125 mm3
SHAPE = (6, 60, 100)
CORE_MEDIAN = 100.0


def oblique_grid(
    shape: tuple[int, int, int] = SHAPE, spacing_mm: tuple[float, float, float] = SPACING_MM
) -> Grid:
    """Slices turned by 20 degrees about the patient's right-left axis."""
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, 0] = np.array([0, -np.sin(angle), np.cos(angle)]) * spacing_mm[0]
    affine[:3, 1] = np.array([0, np.cos(angle), np.sin(angle)]) * spacing_mm[1]
    affine[:3, 2] = np.array([1, 0, 0]) * spacing_mm[2]
    return Grid(affine, shape, "1.2.3")


def brain_of(
    grid: Grid, *, rows: slice = slice(10, 50), columns: slice = slice(20, 80)
) -> BrainMask:
    mask = np.zeros(grid.shape, bool)
    mask[:, rows, columns] = True
    return BrainMask(mask, grid, "supplied", "1")


def find(
    probability: np.ndarray, intensity: np.ndarray | float = CORE_MEDIAN, **changes: object
) -> LesionMap:
    grid = oblique_grid()
    voxels = np.broadcast_to(np.asarray(intensity, np.float32), SHAPE).copy()
    return find_lesions(
        probability.astype(np.float32),
        np.zeros(SHAPE, np.float32),
        Volume(voxels, grid),
        brain_of(grid),
        manifest(**({"minimum_lesion_mm3": 0, "leak_rule": None} | changes)),
        CORE_MEDIAN,
    )


def at(*voxels: tuple[int, int, int], value: float = 0.9) -> np.ndarray:
    probability = np.zeros(SHAPE)
    for voxel in voxels:
        probability[voxel] = value
    return probability


def test_a_voxel_belongs_to_a_lesion_only_above_the_threshold() -> None:
    assert find(at((2, 30, 50), value=0.5)).labels.max() == 0
    assert find(at((2, 30, 50), value=0.501)).labels.max() == 1
    assert find(at((2, 30, 50), value=0.6), threshold=0.7).labels.max() == 0


@pytest.mark.parametrize("other", [(2, 30, 51), (2, 31, 51), (3, 31, 51), (3, 30, 50)])
def test_voxels_that_share_a_face_an_edge_or_a_corner_are_one_lesion(
    other: tuple[int, int, int],
) -> None:
    assert find(at((2, 30, 50), other)).labels.max() == 1


@pytest.mark.parametrize("other", [(2, 30, 52), (4, 30, 50), (2, 32, 50)])
def test_voxels_with_a_gap_are_two_lesions(other: tuple[int, int, int]) -> None:
    assert find(at((2, 30, 50), other)).labels.max() == 2


def test_lesions_are_numbered_from_the_largest() -> None:
    lesions = find(at((0, 20, 30), (3, 30, 50), (3, 30, 51), (3, 30, 52), (5, 40, 60), (5, 40, 61)))
    assert lesions.labels[3, 30, 50] == 1
    assert lesions.labels[5, 40, 60] == 2
    assert lesions.labels[0, 20, 30] == 3
    assert lesions.labels.dtype == np.int32


def test_of_equal_lesions_the_first_voxel_decides() -> None:
    # The second begins in a lower row but a later slice.
    lesions = find(at((1, 40, 60), (4, 11, 21)))
    assert lesions.labels[1, 40, 60] == 1
    assert lesions.labels[4, 11, 21] == 2


def test_a_lesion_of_exactly_the_minimum_volume_stays() -> None:
    six = at(*((2, 30, column) for column in range(50, 56)))  # 6 x 0.8125 = 4.875 mm3
    assert find(six, minimum_lesion_mm3=4.875).labels.max() == 1
    smaller = find(six, minimum_lesion_mm3=4.9)
    assert smaller.labels.max() == 0
    assert smaller.dropped_small == 1


def test_numbers_have_no_gap_where_small_components_were_dropped() -> None:
    lesions = find(
        at((0, 20, 30), (2, 30, 50), (2, 30, 51), (4, 40, 60), (4, 40, 61)), minimum_lesion_mm3=1.0
    )
    assert np.unique(lesions.labels).tolist() == [0, 1, 2]
    assert lesions.dropped_small == 1


def test_lesions_lie_within_the_dilation_of_the_brain_in_plane() -> None:
    # The brain ends with column 79; a column is 0.25 mm, so 2 mm reach column 87.
    inside = find(at((2, 30, 87)))
    outside = find(at((2, 30, 88)))
    assert inside.labels.max() == 1
    assert outside.labels.max() == 0
    # Rows are 0.5 mm: from row 49, 2 mm reach row 53.
    assert find(at((2, 53, 50))).labels.max() == 1
    assert find(at((2, 54, 50))).labels.max() == 0


def test_no_probability_gives_an_empty_map_not_an_error() -> None:
    lesions = find(np.zeros(SHAPE))
    assert lesions.labels.shape == SHAPE
    assert lesions.labels.max() == 0
    assert (lesions.dropped_small, lesions.dropped_leaks) == (0, 0)


LEAK = {"leak_rule": {"core_median_factor": 1.7, "outside_ml": 0.1}}


def bright_from(column: int, to: int, value: float = 300.0) -> np.ndarray:
    """Rows 20 to 39 of slice 2 bright between two columns; the brain ends before column 80."""
    intensity = np.full(SHAPE, CORE_MEDIAN)
    intensity[2, 20:40, column:to] = value
    return intensity


def test_a_component_of_bright_tissue_that_goes_on_outside_the_brain_is_a_leak() -> None:
    lesions = find(at((2, 30, 78)), intensity=bright_from(77, SHAPE[2]), **LEAK)
    assert lesions.labels.max() == 0
    assert lesions.dropped_leaks == 1


def test_a_bright_component_that_darkness_parts_from_the_scalp_stays() -> None:
    intensity = bright_from(70, SHAPE[2])
    intensity[2, :, 81:83] = 20.0  # fluid and bone
    assert find(at((2, 30, 78)), intensity=intensity, **LEAK).labels.max() == 1


def test_a_component_as_bright_as_a_lesion_may_be_stays_beside_the_scalp() -> None:
    intensity = bright_from(79, SHAPE[2])
    intensity[2, 30, 78] = 170.0
    assert find(at((2, 30, 78)), intensity=intensity, **LEAK).labels.max() == 1


def test_a_lesion_that_a_tight_mask_cuts_stays() -> None:
    # One column of 20 voxels lies outside: 16 mm3, where 100 would make it scalp.
    lesions = find(at((2, 30, 78)), intensity=bright_from(70, 81), **LEAK)
    assert lesions.labels.max() == 1


def test_a_bright_component_inside_the_brain_stays_however_bright() -> None:
    assert find(at((2, 30, 60)), intensity=bright_from(50, 75, 900.0), **LEAK).labels.max() == 1


def test_the_mean_of_the_component_decides_not_its_brightest_voxel() -> None:
    intensity = bright_from(79, SHAPE[2])
    intensity[2, 30, 78] = 30.0  # mean of the two: 165
    pair = at((2, 30, 78), (2, 30, 79))
    assert find(pair, intensity=intensity, **LEAK).labels.max() == 1
    intensity[2, 30, 78] = 50.0  # 175
    assert find(pair, intensity=intensity, **LEAK).labels.max() == 0


def test_without_a_leak_rule_nothing_is_dropped_for_its_brightness() -> None:
    assert find(at((2, 30, 79)), intensity=900.0).labels.max() == 1


def test_the_probability_is_kept_as_it_came() -> None:
    probability = at((2, 30, 50), value=0.25)
    np.testing.assert_array_equal(find(probability).probability, probability.astype(np.float32))
