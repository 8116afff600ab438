"""Overlap and surfaces of two masks, on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.pictures import MM, row, volume
from training.voxel_metrics import contour_distances, hd95_mm, nsd, surface_distances, union_box


@pytest.mark.parametrize(
    ("voxel", "distance_mm"),
    [
        ((1, 0, 0), 6.5),
        ((0, 1, 0), 0.5),
        ((0, 0, 1), 0.25),
        ((0, 3, 8), np.hypot(1.5, 2.0)),
        ((0, 0, 0), 0.0),
    ],
)
def test_hd95_is_in_mm_along_every_axis(voxel: tuple[int, int, int], distance_mm: float) -> None:
    first, second = np.zeros((2, 2, 5, 9), bool)
    first[0, 0, 0] = True
    second[voxel] = True
    assert hd95_mm(first, second, (6.5, 0.5, 0.25)) == pytest.approx(distance_mm)


def test_hd95_is_the_percentile_of_the_worse_direction() -> None:
    # Every voxel of a one-voxel-wide row is surface. From the reference to the prediction all is
    # 0; from the prediction, 20 voxels are at 0 and one is at 10 mm: with the linear percentile,
    # position 0.95 x 20 = 19 of 0..20 is the last 0.
    first = row("#" * 20 + "." * 10)
    second = first.copy()
    second[0, 0, 29] = True
    assert hd95_mm(first, second, MM) == 0.0
    # Two voxels at 9 and 10 mm of 22: position 0.95 x 21 = 19.95 lies between 0 and 9.
    second[0, 0, 28] = True
    assert hd95_mm(first, second, MM) == pytest.approx(0.95 * 9)
    assert hd95_mm(second, first, MM) == pytest.approx(0.95 * 9)


def test_hd95_is_between_surfaces_not_between_volumes() -> None:
    # A hollow cube in a full one: the surfaces of both are alike, whatever is inside.
    full = np.zeros((9, 9, 9), bool)
    full[1:8, 1:8, 1:8] = True
    smaller = np.zeros_like(full)
    smaller[2:7, 2:7, 2:7] = True
    # From the middle of a face of the full cube 1 mm, from its edges sqrt 2, its corners sqrt 3.
    # 218 surface voxels: 150 in faces, 60 on edges, 8 corners; the 95th percentile is an edge's.
    assert hd95_mm(full, smaller, MM) == pytest.approx(np.sqrt(2))


def test_nsd_counts_surface_voxels_within_the_tolerance_of_both() -> None:
    # 0.5 mm columns. Reference columns 0-3, prediction 2-7: the common ones at 0 (2 + 2); of the
    # reference 0.5 and 1 mm; of the prediction 0.5, 1, 1.5, 2 mm.
    first, second = row("####...."), row("..######")
    spacing_mm = (6.5, 1.0, 0.5)
    assert nsd(first, second, spacing_mm, 0.0) == pytest.approx((2 + 2) / 10)
    assert nsd(first, second, spacing_mm, 0.5) == pytest.approx((3 + 3) / 10)
    assert nsd(first, second, spacing_mm) == pytest.approx((4 + 4) / 10)  # 1 mm, inclusive
    assert nsd(first, second, spacing_mm, 2.0) == 1


def test_nsd_in_space_goes_through_slices_and_in_the_plane_it_does_not() -> None:
    # The same square in the next slice, 0.8 mm away.
    first = volume(["##", "##"], ["..", ".."])
    second = volume(["..", ".."], ["##", "##"])
    spacing_mm = (0.8, 0.5, 0.5)
    assert nsd(first, second, spacing_mm) == 1
    assert contour_distances(first, second, spacing_mm).share_within(1.0) == 0


def test_the_outline_of_a_thick_slice_leaves_out_what_lies_inside_it() -> None:
    # One slice: in space all 25 voxels have no neighbour above, in the plane 16 are outline.
    square = np.ones((1, 5, 5), bool)
    assert len(surface_distances(square, square, MM).of_reference) == 25
    assert len(contour_distances(square, square, MM).of_reference) == 16


def test_an_outline_is_measured_in_its_slice_alone() -> None:
    # Both mark slice 0, 2 columns apart; only the reference marks slice 1.
    first = volume(["#..."], ["#..."])
    second = volume(["..#."], ["...."])
    distances = contour_distances(first, second, (1.0, 1.0, 0.4))
    assert distances.share_within(0.8) == pytest.approx(2 / 3)
    assert distances.share_within(100.0) == pytest.approx(2 / 3)


def test_distances_to_an_empty_mask_are_infinite_and_have_no_percentile() -> None:
    distances = surface_distances(row("##"), row(".."), MM)
    assert distances.of_reference.tolist() == [np.inf, np.inf]
    assert distances.percentile_mm(95) is None
    assert distances.share_within(1e9) == 0
    assert surface_distances(row(".."), row(".."), MM).share_within(1.0) is None


def test_the_union_box_holds_both_masks_and_is_empty_for_none() -> None:
    box = union_box(volume(["#...", "...."]), volume(["....", "..#."]))
    assert box == (slice(0, 1), slice(0, 2), slice(0, 3))
    assert row("..")[union_box(row(".."), row(".."))].size == 0
