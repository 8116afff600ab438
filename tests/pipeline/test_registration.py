from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom.volume import Grid, Volume
from pipeline.atlas import Structure, mni_atlas
from pipeline.brain import BrainMask
from pipeline.registration import (
    RegistrationFailedError,
    place_template,
    refuse_implausible,
    resample_structures,
)
from tests.pipeline.heads import THICK_MM, averaged, flair, mask_of


def placed(turn_deg: float = 0.0, scale: float = 1.0) -> np.ndarray:
    turn = np.radians(turn_deg)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    matrix[:3, :3] *= scale
    return matrix


def a_piece_of_template(to_mni: np.ndarray, spacing_mm: tuple[float, float, float]) -> Volume:
    """The template itself as an acquisition of a head that lies elsewhere."""
    atlas = mni_atlas()
    shape = (int(190 / spacing_mm[0]), int(260 / spacing_mm[1]), int(220 / spacing_mm[2]))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_mm, 1
    affine[:3, 3] = (-110, -110, -105)
    structures = resample_structures(atlas, to_mni, affine, shape)
    level = np.zeros(max(Structure) + 1, np.float32)
    for structure in Structure:
        fluid = structure.name.endswith("VENTRICLE") or structure == Structure.FLUID
        level[structure] = 0.3 if fluid else 1.0
    level[Structure.OUTSIDE], level[Structure.CORTEX] = 0, 1.15
    return Volume(level[structures], Grid(affine, shape))


@pytest.mark.parametrize("spacing_mm", [(6.5, 1.5, 1.3), (2.0, 2.0, 2.0)])
def test_a_turned_and_smaller_head_is_found_where_it_lies(
    spacing_mm: tuple[float, float, float],
) -> None:
    truth = placed(turn_deg=9, scale=1.2)
    truth[:3, 3] = (6, -9, 4)
    volume = a_piece_of_template(truth, spacing_mm)
    brain = BrainMask(volume.voxels > 0, volume.grid, "supplied", "", {})
    found = place_template(volume, brain)
    # Corners of a cube of 80 mm about the middle of the head.
    corners = np.array([[x, y, z, 1] for x in (-40, 40) for y in (-40, 40) for z in (-40, 40)])
    apart_mm = np.linalg.norm((corners @ found.to_mni.T - corners @ truth.T)[:, :3], axis=1)
    assert apart_mm.max() < 4  # it was found on voxels of 3 mm, and the template is 1.2 times wider
    assert found.dice > 0.96


def test_the_same_image_gives_the_same_place_bit_for_bit() -> None:
    volume = a_piece_of_template(placed(9, 1.2), (6.5, 1.5, 1.3))
    noise = np.random.default_rng(0).normal(0, 0.05, volume.voxels.shape) * (volume.voxels > 0)
    noisy = Volume((volume.voxels + noise).astype(np.float32), volume.grid)
    brain = BrainMask(volume.voxels > 0, volume.grid, "supplied", "", {})
    first, *others = (place_template(noisy, brain).to_mni for _ in range(4))
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_place_that_no_head_has_is_refused_with_its_figures() -> None:
    refuse_implausible(placed(turn_deg=20, scale=1.2))
    with pytest.raises(RegistrationFailedError, match="turned by 60 degrees"):
        refuse_implausible(placed(turn_deg=60, scale=1.2))
    with pytest.raises(RegistrationFailedError, match=r"scaled by 2\.00"):
        refuse_implausible(placed(scale=2.0))
    with pytest.raises(RegistrationFailedError, match=r"scaled by 1\.50, 0\.90, 0\.90"):
        refuse_implausible(np.diag((1.5, 0.9, 0.9, 1)))
    with pytest.raises(RegistrationFailedError, match="inside out"):
        refuse_implausible(np.diag((-1.2, 1.2, 1.2, 1)))
    with pytest.raises(RegistrationFailedError, match="no number"):
        refuse_implausible(np.full((4, 4), np.nan))


def test_an_empty_mask_is_refused() -> None:
    volume = a_piece_of_template(placed(), (6.5, 4.0, 4.0))
    nothing = BrainMask(np.zeros(volume.grid.shape, bool), volume.grid, "supplied", "", {})
    with pytest.raises(RegistrationFailedError, match="empty or dark"):
        place_template(volume, nothing)


@pytest.mark.parametrize("slice_mm", [None, THICK_MM])
def test_real_heads_are_placed_thin_and_thick(shared_data: Path, slice_mm: float | None) -> None:
    scan = "patient01/study1"
    volume, mask = flair(shared_data, scan), mask_of(shared_data, scan, "brain")
    inside = Volume((mask.voxels > 0.5).astype(np.float32), volume.grid)
    if slice_mm is not None:
        volume, inside = averaged(volume, slice_mm), averaged(inside, slice_mm)
    brain = BrainMask(inside.voxels > 0.5, volume.grid, "supplied", "", {})
    assert place_template(volume, brain).dice > 0.94
