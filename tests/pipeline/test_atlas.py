from __future__ import annotations

import numpy as np
import pytest

from pipeline.atlas import Structure, mni_atlas


def structure_at(x: float, y: float, z: float) -> Structure:
    """At MNI coordinates as they are printed: right, front, top."""
    atlas = mni_atlas()
    index = np.linalg.inv(atlas.affine) @ (-x, -y, z, 1)
    return Structure(int(atlas.structures[tuple(np.rint(index[:3]).astype(int))]))


@pytest.mark.parametrize("side", [-1, 1])
def test_places_of_the_literature_are_what_they_are_called(side: int) -> None:
    for place, structure in (
        ((12, -20, 24), Structure.LATERAL_VENTRICLE),  # body
        ((26, -48, 6), Structure.LATERAL_VENTRICLE),  # trigone
        ((24, 30, 20), Structure.CEREBRUM),  # frontal white matter
        ((24, -20, 40), Structure.CEREBRUM),  # corona radiata
        ((12, -18, 8), Structure.CEREBRUM),  # thalamus: grey, and no cortex
        ((26, 4, 0), Structure.CEREBRUM),  # putamen
        ((42, -18, 58), Structure.CORTEX),  # hand area
        ((60, -20, 8), Structure.CORTEX),  # superior temporal gyrus
        ((50, -60, -8), Structure.CEREBRUM),  # inferior temporal gyrus, upon the tentorium
        ((22, -62, -38), Structure.INFRATENTORIAL),  # cerebellum
        ((6, -25, -32), Structure.INFRATENTORIAL),  # pons
        ((3, -38, -48), Structure.INFRATENTORIAL),  # medulla
        ((12, -84, 2), Structure.CORTEX),  # calcarine
    ):
        assert structure_at(side * place[0], *place[1:]) == structure, place
    assert structure_at(0, -6, -4) == Structure.THIRD_VENTRICLE
    assert structure_at(0, -44, -30) == Structure.FOURTH_VENTRICLE
    assert structure_at(0, 0, 86) == Structure.OUTSIDE


def test_volumes_are_those_of_a_large_adult_brain() -> None:
    # 1 mm voxels; the template is larger than most heads.
    ml = np.bincount(mni_atlas().structures.ravel(), minlength=8) / 1000
    assert 1700 < ml[1:].sum() < 2000
    assert 10 < ml[Structure.LATERAL_VENTRICLE] < 35
    assert 0.5 < ml[Structure.THIRD_VENTRICLE] < 3
    assert 1 < ml[Structure.FOURTH_VENTRICLE] < 5
    assert 140 < ml[Structure.INFRATENTORIAL] < 260
    assert 450 < ml[Structure.CORTEX] < 800


def test_left_and_right_are_nearly_alike() -> None:
    atlas = mni_atlas()
    middle = round(float(np.linalg.inv(atlas.affine)[2, 3]))
    reach = min(middle, atlas.structures.shape[2] - 1 - middle)
    left = atlas.structures[:, :, middle + 1 : middle + 1 + reach]
    right = atlas.structures[:, :, middle - reach : middle][:, :, ::-1]
    differing = np.count_nonzero(left != right) / np.count_nonzero(left)
    assert differing < 0.02  # the maps are symmetric; the floods break ties one way


def test_lateral_ventricle_and_infratentorial_space_do_not_touch_the_edge() -> None:
    structures = mni_atlas().structures
    assert not structures[[0, -1]].any()
    assert not structures[:, [0, -1]].any()
    assert not structures[:, :, [0, -1]].any()
