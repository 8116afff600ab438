"""Which way up a slice stands, where a line lies, and that nothing is lost on the way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from dicom.volume import Grid, Volume
from pipeline.appearance import COLOURS_CIELAB, colour_rgb
from pipeline.slice_picture import Rgb, View, draw_slice, view_of

# Steps along (slice, row, column), LPS mm: not square, so that a swapped axis shows.
AXIAL = ((0, 0, 5), (0, 0.5, 0), (1, 0, 0))
UPSIDE_DOWN = ((0, 0, 5), (0, -0.5, 0), (1, 0, 0))
MIRRORED = ((0, 0, 5), (0, 0.5, 0), (-1, 0, 0))
TURNED = ((0, 0, -5), (1, 0, 0), (0, 0.5, 0))
CORONAL = ((0, 5, 0), (0, 0, -0.5), (1, 0, 0))
SAGITTAL = ((5, 0, 0), (0, 0, -0.5), (0, 1, 0))
SAGITTAL_OTHER_WAY = ((-5, 0, 0), (0, 0, 0.5), (0, -1, 0))


def volume_of(steps: tuple[tuple[float, ...], ...], voxels: npt.NDArray[np.float32]) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.array(steps, float).T
    shape = voxels.shape
    grid = Grid(affine, (shape[0], shape[1], shape[2]), "1.2.3")
    return Volume(voxels, grid, tuple(f"1.2.{index}" for index in range(shape[0])), "pixels")


def flat(steps: tuple[tuple[float, ...], ...], shape: tuple[int, int, int]) -> Volume:
    return volume_of(steps, np.full(shape, 100, np.float32))


def whole(volume: Volume, labels: npt.NDArray[np.int32] | None = None) -> View:
    labels = np.zeros(volume.grid.shape, np.int32) if labels is None else labels
    return view_of(volume, np.ones(volume.grid.shape, bool), labels)


def is_colour(picture: Rgb, label: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.all(picture == colour_rgb(label), axis=-1)
    return found


@pytest.mark.parametrize(
    ("steps", "marks"),
    [
        (AXIAL, "APRL"),
        (UPSIDE_DOWN, "APRL"),
        (MIRRORED, "APRL"),
        (TURNED, "APRL"),
        (CORONAL, "HFRL"),
        (SAGITTAL, "HFAP"),
        (SAGITTAL_OTHER_WAY, "HFAP"),
    ],
)
def test_every_plane_stands_as_a_radiologist_expects_however_it_was_sent(
    steps: tuple[tuple[float, ...], ...], marks: str
) -> None:
    view = whole(flat(steps, (3, 8, 6)))
    assert view.up + view.down + view.left + view.right == marks


def test_an_oblique_edge_has_two_letters() -> None:
    turned = np.deg2rad(40)
    steps = ((0, 0, 5), (-np.sin(turned), np.cos(turned), 0), (np.cos(turned), np.sin(turned), 0))
    view = whole(flat(steps, (3, 8, 6)))
    assert (view.right, view.left, view.down, view.up) == ("LP", "RA", "PR", "AL")


@pytest.mark.parametrize("steps", [AXIAL, UPSIDE_DOWN, MIRRORED, TURNED])
def test_a_spot_on_the_left_behind_is_below_on_the_right_of_the_picture(
    steps: tuple[tuple[float, ...], ...],
) -> None:
    shape = (3, 40, 20) if steps is not TURNED else (3, 20, 40)
    volume = flat(steps, shape)
    labels = np.zeros(shape, np.int32)
    places = np.indices(shape).reshape(3, -1)
    lps = volume.grid.affine[:3, :3] @ places
    lps -= lps.mean(axis=1, keepdims=True)
    spot = (lps[0] > 5) & (lps[1] > 5) & (places[0] == 1)
    labels[tuple(places[:, spot])] = 1
    picture = draw_slice(volume, labels, 1, whole(volume, labels), (200, 200), letters=10)
    rows, columns = np.nonzero(is_colour(picture, 1))
    assert rows.min() > picture.shape[0] / 2
    assert columns.min() > picture.shape[1] / 2


def test_pixels_that_are_not_square_are_shown_in_true_proportion() -> None:
    # 40 rows of 0.5 mm and 20 columns of 1 mm: 20 x 20 mm.
    assert whole(flat(AXIAL, (3, 40, 20))).size(300, 500) == (300, 300)
    # The same turned: 20 rows of 1 mm, 40 columns of 0.5 mm, and rows become columns.
    assert whole(flat(TURNED, (3, 20, 40))).size(500, 300) == (300, 300)


def test_the_line_lies_just_outside_the_very_pixels_of_the_lesion() -> None:
    """20 x 20 mm on 200 x 200 pixels: a pixel of 0.5 x 1 mm becomes 5 rows of 10."""
    volume = flat(AXIAL, (3, 40, 20))
    labels = np.zeros((3, 40, 20), np.int32)
    labels[1, 10:14, 6:8] = 1  # rows 50 to 69, columns 60 to 79
    picture = draw_slice(volume, labels, 1, whole(volume, labels), (200, 200), line=2, letters=10)
    expected = np.zeros((200, 200), bool)
    expected[48:72, 58:82] = True
    expected[50:70, 60:80] = False
    near = (slice(40, 80), slice(50, 84))  # the number stands farther right
    np.testing.assert_array_equal(is_colour(picture, 1)[near], expected[near])
    # The lesion itself is left as it was: 100 of a white at 190.
    assert np.all(picture[50:70, 60:80] == round(255 / 1.9))


def test_two_lesions_keep_their_own_colours() -> None:
    volume = flat(AXIAL, (3, 40, 20))
    labels = np.zeros((3, 40, 20), np.int32)
    labels[1, 10:14, 3:6], labels[1, 30:32, 12:15] = 1, 2
    picture = draw_slice(volume, labels, 1, whole(volume, labels), (200, 200), letters=10)
    assert is_colour(picture, 1)[:100].any()
    assert not is_colour(picture, 1)[100:].any()
    assert is_colour(picture, 2)[100:].any()
    assert not is_colour(picture, 2)[:100].any()


def test_a_lesion_of_one_pixel_shows_in_a_picture_of_fewer_pixels() -> None:
    volume = flat(AXIAL, (3, 400, 200))
    labels = np.zeros((3, 400, 200), np.int32)
    labels[1, 201, 101] = 1
    picture = draw_slice(volume, labels, 1, whole(volume, labels), (50, 50), letters=8, line=1)
    assert is_colour(picture, 1).any()


def test_the_head_is_shown_with_a_margin_and_no_lesion_is_cropped_away() -> None:
    volume = flat(AXIAL, (3, 200, 100))
    brain, labels = np.zeros((3, 200, 100), bool), np.zeros((3, 200, 100), np.int32)
    brain[:, 80:120, 40:60] = True
    labels[1, 125, 50] = 1
    view = view_of(volume, brain, labels)
    # 15 mm are 30 rows of 0.5 mm and 15 columns of 1 mm.
    assert view.box == (slice(50, 156), slice(25, 75))


def test_white_is_nearly_twice_the_brain_so_that_lesions_do_not_burn_out() -> None:
    voxels = np.full((3, 40, 20), 100, np.float32)
    voxels[:, :, 10:] = 300
    volume = volume_of(AXIAL, voxels)
    brain = np.zeros(voxels.shape, bool)
    brain[:, :, :10] = True
    assert view_of(volume, brain, np.zeros(voxels.shape, np.int32)).white == pytest.approx(190)


def test_colours_are_those_of_the_segmentation() -> None:
    assert colour_rgb(1) == (230, 159, 0)  # orange, #E69F00
    assert len({colour_rgb(label) for label in range(1, 11)}) == len(COLOURS_CIELAB)
    assert colour_rgb(11) == colour_rgb(1)
