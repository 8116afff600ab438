"""Masks in millimetres, on slices of 6 mm with pixels of 1 x 0.5 mm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.morphology import (
    close_in_plane_mm,
    depth_in_plane_mm,
    dilate_in_plane_mm,
    dilate_mm,
    erode_in_plane_mm,
    fill_holes_in_plane,
    largest_component,
)

SPACING_MM = (6.0, 1.0, 0.5)
SHAPE = (5, 20, 40)


def block(slices: slice, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[slices, rows, columns] = True
    return mask


def test_depth_is_the_distance_to_the_nearest_voxel_outside_in_the_slice() -> None:
    depth = depth_in_plane_mm(block(slice(2, 3), slice(5, 14), slice(10, 21)), SPACING_MM)
    assert depth[2, 5, 15] == pytest.approx(1.0)  # next row up is outside
    assert depth[2, 9, 10] == pytest.approx(0.5)  # next column is outside
    assert depth[2, 9, 15] == pytest.approx(3.0)  # six columns of 0.5 mm, five rows of 1 mm
    assert depth[2, 4, 15] == 0
    assert not depth[1].any()


def test_beyond_the_border_of_the_image_is_outside() -> None:
    depth = depth_in_plane_mm(np.ones(SHAPE, bool), SPACING_MM)
    assert depth[0, 0, 20] == pytest.approx(1.0)
    assert depth[0, 10, 0] == pytest.approx(0.5)


def test_erosion_takes_what_is_within_the_radius_of_the_outside() -> None:
    eroded = erode_in_plane_mm(
        block(slice(1, 4), slice(5, 15), slice(10, 30)), SPACING_MM, radius_mm=2.0
    )
    assert np.array_equal(eroded, block(slice(1, 4), slice(7, 13), slice(14, 26)))


def test_dilation_in_plane_is_a_disc_in_millimetres_and_stays_in_its_slice() -> None:
    dilated = dilate_in_plane_mm(
        block(slice(2, 3), slice(10, 11), slice(20, 21)), SPACING_MM, radius_mm=2.0
    )
    assert dilated.sum(axis=(1, 2)).tolist() == [0, 0, dilated.sum(), 0, 0]
    rows, columns = np.nonzero(dilated[2])
    assert (rows.min(), rows.max()) == (8, 12)
    assert (columns.min(), columns.max()) == (16, 24)
    assert not dilated[2, 12, 24]


def test_dilation_in_space_reaches_the_next_slice_only_if_it_is_near_enough() -> None:
    point = block(slice(2, 3), slice(10, 11), slice(20, 21))
    assert not dilate_mm(point, SPACING_MM, radius_mm=5.9)[1].any()
    assert dilate_mm(point, SPACING_MM, radius_mm=6.0)[1].sum() == 1


def test_cropping_to_the_mask_changes_no_result() -> None:
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5) > 0.08
    for radius_mm in (0.6, 1.7, 40.0):
        distance = ndimage.distance_transform_edt(~mask, sampling=SPACING_MM)
        assert np.array_equal(dilate_mm(mask, SPACING_MM, radius_mm), distance <= radius_mm)
        for index, section in enumerate(mask):
            away = ndimage.distance_transform_edt(~section, sampling=SPACING_MM[1:])
            dilated = dilate_in_plane_mm(mask, SPACING_MM, radius_mm)[index]
            assert np.array_equal(dilated, (away <= radius_mm) & section.any())


def test_closing_fills_a_bay_that_is_narrower_than_twice_the_radius() -> None:
    mask = block(slice(2, 3), slice(3, 17), slice(5, 35))
    bay = block(slice(2, 3), slice(3, 12), slice(19, 21))  # 1 mm wide, open to the top
    assert close_in_plane_mm(mask & ~bay, SPACING_MM, radius_mm=1.5)[2, 8:12, 19:21].all()


def test_holes_are_filled_within_a_slice_only() -> None:
    ring = block(slice(2, 3), slice(5, 12), slice(5, 12))
    ring[2, 8, 8] = False
    assert fill_holes_in_plane(ring)[2, 8, 8]
    tunnel = block(slice(0, 5), slice(5, 12), slice(5, 12))
    tunnel[:, 8, 8] = False
    tunnel[2, 8, 5:9] = False  # open to the side in one slice
    filled = fill_holes_in_plane(tunnel)
    assert filled[:, 8, 8].tolist() == [True, True, False, True, True]


def test_the_largest_component_is_kept() -> None:
    small = block(slice(0, 1), slice(0, 3), slice(0, 3))
    large = block(slice(3, 5), slice(10, 15), slice(10, 15))
    assert np.array_equal(largest_component(small | large), large)


def test_empty_masks_stay_empty() -> None:
    empty = np.zeros(SHAPE, bool)
    assert not depth_in_plane_mm(empty, SPACING_MM).any()
    assert not dilate_mm(empty, SPACING_MM, 3).any()
    assert not fill_holes_in_plane(empty).any()
    assert not largest_component(empty).any()
