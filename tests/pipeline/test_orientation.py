"""The axial view: exact, and named after the patient's axes."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dicom.volume import Grid
from pipeline.orientation import axial_view

SHAPE = (4, 5, 7)
SPACING_MM = (6.5, 0.5, 0.4)
ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]
"""All 48: which patient axis (L, P, S) each of slice, row, column follows, and which way."""


def grid_of(
    order: tuple[int, ...], signs: tuple[int, ...], turn: npt.NDArray[np.float64] | None = None
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * SPACING_MM[axis]
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (11.0, -23.0, 37.0)
    return Grid(affine, SHAPE, "1.2.3")


def test_a_plain_axial_stack_is_left_as_it_is() -> None:
    grid = grid_of((2, 1, 0), (1, 1, 1))
    view = axial_view(grid)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert np.array_equal(view.apply(array), array)
    assert np.array_equal(view.grid.affine, grid.affine)


def test_slices_sent_from_the_vertex_down_are_turned_over() -> None:
    view = axial_view(grid_of((2, 1, 0), (-1, 1, 1)))
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert np.array_equal(view.apply(array), array[::-1])


def test_rows_that_run_left_to_right_are_exchanged_with_columns() -> None:
    view = axial_view(grid_of((2, 0, 1), (1, 1, -1)))
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    # Source columns run posterior to anterior: flipped, they are the rows of the view.
    assert np.array_equal(view.apply(array), array[:, :, ::-1].transpose(0, 2, 1))
    assert view.grid.shape == (4, 7, 5)
    assert view.grid.spacing_mm == pytest.approx((6.5, 0.4, 0.5))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_is_turned_exactly(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    view = axial_view(grid_of(order, signs))
    assert view.acquired == {2: "axial", 1: "coronal", 0: "sagittal"}[order[0]]
    steps = view.grid.affine[:3, :3]
    assert steps[2, 0] > 0, "slices run inferior to superior"
    assert steps[1, 1] > 0, "rows run anterior to posterior"
    assert steps[0, 2] > 0, "columns run from the patient's right to the left"
    assert view.grid.frame_of_reference_uid == "1.2.3"


@given(
    st.sampled_from(ORIENTATIONS),
    st.floats(-40, 40),
    st.floats(-30, 30),
    st.floats(-30, 30),
)
def test_invert_undoes_apply_and_every_voxel_keeps_its_place(
    orientation: tuple[tuple[int, ...], tuple[int, ...]], spin: float, nod: float, tilt: float
) -> None:
    turn = Rotation.from_euler("zxy", (spin, nod, tilt), degrees=True).as_matrix()
    view = axial_view(grid_of(*orientation, turn))
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turned = view.apply(array)
    assert np.array_equal(view.invert(turned), array)
    index = (1, 2, 3)
    here = view.grid.position_lps_mm(index)
    source = np.unravel_index(int(turned[index]), SHAPE)
    assert view.source.position_lps_mm((int(source[0]), int(source[1]), int(source[2]))) == (
        pytest.approx(here)
    )


def test_leading_axes_are_carried_along() -> None:
    view = axial_view(grid_of((2, 0, 1), (-1, 1, -1)))
    members = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    turned = view.apply(members)
    assert np.array_equal(turned[1], view.apply(members[1]))
    assert np.array_equal(view.invert(turned), members)


@pytest.mark.parametrize(("nod_deg", "axial"), [(44.9, True), (45.0, True), (45.1, False)])
def test_the_limit_is_45_degrees_from_superior_inferior(nod_deg: float, axial: bool) -> None:
    turn = Rotation.from_euler("x", nod_deg, degrees=True).as_matrix()
    view = axial_view(grid_of((2, 1, 0), (1, 1, 1), turn))
    assert view.acquired == ("axial" if axial else "coronal")


def test_a_sagittal_stack_is_seen_from_the_feet_up() -> None:
    # Slices from the patient's right to left, rows from the head down, columns to the back: as
    # scanners send a sagittal 3-D acquisition.
    view = axial_view(grid_of((0, 2, 1), (1, -1, 1)))
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert np.array_equal(view.apply(array), array[:, ::-1].transpose(1, 2, 0))
    assert view.grid.shape == (5, 7, 4)
    assert view.grid.spacing_mm == pytest.approx((0.5, 0.4, 6.5))


def test_an_array_of_another_grid_is_refused() -> None:
    view = axial_view(grid_of((2, 0, 1), (1, 1, 1)))
    with pytest.raises(ValueError, match="shape"):
        view.apply(np.zeros((4, 7, 5)))
