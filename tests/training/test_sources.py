"""What the sources say of the voxels, on cases small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom.volume import Grid
from pipeline.orientation import axial_view
from pipeline.preprocess import Placement
from training.sources import (
    Host,
    donors,
    insert_lesions,
    load_stack,
    partial_labels,
    prepare_sources,
    running_sum,
)


def test_a_changed_bright_voxel_is_lesion_and_a_dark_one_is_not() -> None:
    intensity = np.full((1, 21, 21), 1.3, np.float32)
    intensity[0, 10, 8] = 1.0
    changed = np.zeros(intensity.shape, np.bool_)
    changed[0, 10, 8:11] = True
    brain = np.ones(intensity.shape, np.bool_)

    lesion, ignored = partial_labels(intensity, changed, brain)

    assert lesion[0, 10, 8:11].tolist() == [False, True, True]
    assert not ignored[0, 10, 8:11].any()


def test_bright_and_unchanged_is_unknown_only_deep_in_the_brain() -> None:
    intensity = np.full((1, 21, 21), 1.3, np.float32)
    nothing = np.zeros(intensity.shape, np.bool_)
    brain = np.ones(intensity.shape, np.bool_)

    lesion, ignored = partial_labels(intensity, nothing, brain)

    assert not lesion.any()
    # Depth is 1 at the outermost voxel: 1, 2 and 3 mm are edge, 4 mm is not.
    assert ignored[0, 10].tolist() == [False] * 3 + [True] * 15 + [False] * 3


@pytest.mark.parametrize(("intensity", "known"), [(1.11, True), (1.13, False), (1.96, True)])
def test_normal_brain_and_fat_are_known_not_to_be_lesion(intensity: float, known: bool) -> None:
    image = np.full((1, 21, 21), intensity, np.float32)
    nothing, brain = np.zeros(image.shape, np.bool_), np.ones(image.shape, np.bool_)
    assert partial_labels(image, nothing, brain)[1][0, 10, 10] == (not known)


def test_the_mean_of_a_slab_is_a_difference_of_running_sums() -> None:
    values = np.random.default_rng(0).random((7, 2, 3, 1), dtype=np.float32)
    sums = running_sum(values)
    assert sums[5] - sums[2] == pytest.approx(values[2:5].sum(axis=0), rel=1e-5)


def test_inserted_lesions_are_brighter_exactly_where_their_label_is() -> None:
    host = make_host()
    donor = np.zeros(host.placement.shape, np.bool_)
    donor[2:5, 100:106, 60:68] = True

    values = insert_lesions(host, donor, np.random.default_rng(1))

    assert values[..., 1].sum() == donor.sum()
    added = values[..., 0] - values[..., 2] * host.white_matter
    inside = values[..., 1] > 0.5
    assert added[inside].mean() > 0.1
    assert np.abs(added[~inside & (values[..., 2] > 0.5)]).mean() < 0.01


def test_lesions_are_not_inserted_on_the_hosts_own() -> None:
    host = make_host()
    host.insertable[:, :, :80] = False
    donor = np.zeros(host.placement.shape, np.bool_)
    donor[3, 100:110, 75:85] = True
    values = insert_lesions(host, donor, np.random.default_rng(1))
    assert values[..., 1].sum() == 10 * 5


def make_host() -> Host:
    """A uniform brain on a 1 mm grid of the canvas's own size."""
    shape = (8, 224, 192)
    affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    row, column = np.ogrid[:224, :192]
    brain = ((row - 112) / 80) ** 2 + ((column - 96) / 60) ** 2 < 1
    values = np.zeros((*shape, 3), np.float32)
    values[..., 2] = brain
    values[..., 0] = 0.9 * brain
    return Host(
        values=values,
        white_matter=0.9,
        insertable=np.broadcast_to(brain, shape).copy(),
        placement=Placement(
            axial_view(Grid(affine, shape)), shape, (224, 192), (0.0, 0.0), (1.0, 1.0)
        ),
    )


def test_the_host_is_no_donor(shared_data: Path) -> None:
    names = donors(shared_data)
    assert len(names) == 22
    assert "patient07" not in names


def test_prepared_stacks_are_kept_and_share_one_scale(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.sources.NATIVE", (("patient04", "study1"),))
    monkeypatch.setattr("training.sources.LABELLED", ())
    monkeypatch.setattr("training.sources.donors", lambda data: [])
    names: list[str] = []

    prepare_sources(shared_data, tmp_path, names.append)
    prepare_sources(shared_data, tmp_path, names.append)

    assert names == ["native-patient04-study1"]
    stack = load_stack(tmp_path, names[0])
    intensity, lesion, brain, ignored = np.moveaxis(np.asarray(stack.values), -1, 0)
    assert stack.kind == "slices"
    assert len(stack.values) == 48
    assert np.median(intensity[brain > 0.5]) == pytest.approx(1.0, abs=0.1)
    assert not (lesion * ignored).any()
    assert 0.1 < ignored[brain > 0.5].mean() < 0.4  # the recipe: about a quarter
    assert stack.lesion_slices.tolist() == np.flatnonzero(lesion.any(axis=(1, 2))).tolist()
