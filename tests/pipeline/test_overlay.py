"""The picture: the right slices, the right way round, and never without its warning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from dicom.volume import Grid, Volume
from pipeline.overlay import Caption, draw_overlay
from tests.conftest import oblique_affine

SHAPE = (16, 80, 64)
SPACING_MM = (6.0, 2.5, 2.8)
ORANGE = (1.0, 0xB0 / 255, 0.0)  # of the warning


def head(*, upside_down: bool = False, right_to_left: bool = True) -> Volume:
    """An ellipse, brighter in the patient's left half."""
    row, column = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    plane = np.where((row / 0.9) ** 2 + (column / 0.85) ** 2 < 1, 100.0, 0.0)
    plane[:, SHAPE[2] // 2 :] *= 1.4
    affine = oblique_affine(SPACING_MM, (4.0, -2.0, 3.0))
    if upside_down:
        affine = affine @ np.diag([-1.0, 1, 1, 1])
    if not right_to_left:
        affine = affine @ np.diag([1.0, 1, -1, 1])
        plane = plane[:, ::-1]
    voxels = np.repeat(plane[None].astype(np.float32), SHAPE[0], axis=0)
    return Volume(voxels, Grid(affine, SHAPE, "1.2.3"))


def drawn(
    tmp_path: Path, volume: Volume, labels: np.ndarray, *, research: bool = True
) -> np.ndarray:
    path = tmp_path / "overlay.png"
    draw_overlay(path, volume, labels, Caption("2 lesions", ("model x",), research))
    picture: np.ndarray = imread(path)[:, :, :3]
    return picture


def pixels_of(picture: np.ndarray, colour: tuple[float, ...]) -> np.ndarray:
    return np.argwhere(np.abs(picture - colour).max(axis=2) < 0.02)


def lesions(*slices: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    for index in slices:
        labels[index, 30:40, 44:52] = 1
    return labels


def test_a_research_result_is_burned_in_as_such_and_a_clinical_one_is_not(tmp_path: Path) -> None:
    marked = pixels_of(drawn(tmp_path, head(), lesions(3)), ORANGE)
    assert len(marked) > 200
    assert len(pixels_of(drawn(tmp_path, head(), lesions(3), research=False), ORANGE)) < 20


def test_the_patients_right_is_at_the_left_however_the_scanner_ordered_it(tmp_path: Path) -> None:
    """The left half of the head is the brighter one, so the right half of the picture."""
    for right_to_left in (True, False):
        labels = np.zeros(SHAPE, np.int32)
        picture = drawn(tmp_path, head(right_to_left=right_to_left), labels)
        tile = picture[120:400, : picture.shape[1] // 4].mean(axis=2)
        middle = tile.shape[1] // 2
        assert tile[:, middle:].mean() > 1.2 * tile[:, :middle].mean()


def test_only_slices_with_lesions_are_shown(tmp_path: Path) -> None:
    one = drawn(tmp_path, head(), lesions(3))
    three = drawn(tmp_path, head(), lesions(3, 4, 9))
    assert three.shape[1] == 3 * one.shape[1]
    assert three.shape[0] == one.shape[0]


def test_without_lesions_the_middle_of_the_head_is_shown(tmp_path: Path) -> None:
    picture = drawn(tmp_path, head(), np.zeros(SHAPE, np.int32))
    assert picture.shape[1] == 4 * drawn(tmp_path, head(), lesions(3)).shape[1]


def test_slices_sent_from_the_vertex_down_give_the_same_picture(tmp_path: Path) -> None:
    upward = drawn(tmp_path, head(), lesions(3, 5))
    downward = drawn(tmp_path, head(upside_down=True), lesions(3, 5))
    # The same two slices in the other order, with the numbers that a viewer shows.
    assert upward.shape == downward.shape


def test_sagittal_slices_are_shown_as_axial_ones(tmp_path: Path) -> None:
    volume = head()
    grid = Grid(volume.grid.affine[:, [2, 0, 1, 3]], (SHAPE[2], SHAPE[0], SHAPE[1]), "")
    turned = Volume(volume.voxels.transpose(2, 0, 1), grid)
    sagittal = drawn(tmp_path, turned, lesions(3, 5).transpose(2, 0, 1))
    axial = drawn(tmp_path, volume, lesions(3, 5))
    # But for the word above each tile: no viewer numbers these slices.
    assert np.count_nonzero(sagittal != axial) < 0.01 * axial.size
