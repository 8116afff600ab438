"""Our figures against SimpleITK's, MONAI's and scipy's, where their definitions are ours.

They are not where a mask is empty: there the table in `training/metrics.py` holds.
"""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import (
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from scipy import ndimage

from training.lesion_metrics import compare_any_overlap, compare_lesions
from training.voxel_metrics import nsd, overlap, surface_distances

SPACING_MM = (6.5, 0.9, 0.4)
TOLERANCE_MM = 1.0

masks = arrays(bool, (4, 7, 9), elements=st.sampled_from([True, False, False]))
not_empty = masks.filter(np.any)


def image(mask: np.ndarray) -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    made.SetSpacing(SPACING_MM[::-1])
    return made


def one_hot(mask: np.ndarray) -> torch.Tensor:
    """Batch, class, then space, as MONAI wants it."""
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(not_empty, not_empty)
def test_overlap_is_simpleitks_and_monais(reference: np.ndarray, prediction: np.ndarray) -> None:
    ours = overlap(reference, prediction)
    measures = SimpleITK.LabelOverlapMeasuresImageFilter()
    measures.Execute(image(prediction), image(reference))
    assert ours.dsc == pytest.approx(measures.GetDiceCoefficient())
    assert ours.iou == pytest.approx(measures.GetJaccardCoefficient())
    theirs = one_hot(prediction), one_hot(reference)
    assert ours.dsc == pytest.approx(compute_dice(*theirs, include_background=False).item())
    assert ours.iou == pytest.approx(compute_iou(*theirs, include_background=False).item())


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")  # it calls what it has deprecated
@settings(max_examples=25, deadline=None)
@given(not_empty, not_empty)
def test_hd95_and_nsd_are_monais(reference: np.ndarray, prediction: np.ndarray) -> None:
    distances = surface_distances(reference, prediction, SPACING_MM)
    theirs = one_hot(prediction), one_hot(reference)
    for percent in (95, 100):
        expected = compute_hausdorff_distance(*theirs, percentile=percent, spacing=SPACING_MM)
        assert distances.percentile_mm(percent) == pytest.approx(expected.item(), rel=1e-5)
    # 6.5, 0.9 and 0.4 mm: no distance lies on the tolerance, where float32 would decide.
    expected = compute_surface_dice(*theirs, class_thresholds=[TOLERANCE_MM], spacing=SPACING_MM)
    assert nsd(reference, prediction, SPACING_MM, TOLERANCE_MM) == pytest.approx(expected.item())


boxes = st.tuples(*[st.tuples(st.integers(0, size - 1), st.integers(1, 3)) for size in (4, 7, 5)])


@settings(max_examples=40, deadline=None)
@given(boxes, boxes)
def test_the_hausdorff_distance_of_boxes_apart_is_simpleitks(
    first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]
) -> None:
    # SimpleITK measures to the whole mask, we to its surface: the same where neither enters the
    # other, and where nothing inside is farther than the surface, as in a box.
    reference, prediction = np.zeros((7, 10, 8), bool), np.zeros((7, 10, 8), bool)
    for mask, box in ((reference, first), (prediction, second)):
        mask[tuple(slice(start, start + size) for start, size in box)] = True
    assume(not (reference & prediction).any())
    distance = SimpleITK.HausdorffDistanceImageFilter()
    distance.Execute(image(reference), image(prediction))
    ours = surface_distances(reference, prediction, SPACING_MM).percentile_mm(100)
    assert ours == pytest.approx(distance.GetHausdorffDistance(), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(not_empty, not_empty)
def test_surface_distances_are_those_of_a_distance_transform(
    reference: np.ndarray, prediction: np.ndarray
) -> None:
    def surface(mask: np.ndarray) -> np.ndarray:
        return mask & ~ndimage.binary_erosion(mask)

    ours = surface_distances(reference, prediction, SPACING_MM)
    for distances, here, there in (
        (ours.of_reference, reference, prediction),
        (ours.of_prediction, prediction, reference),
    ):
        field = ndimage.distance_transform_edt(~surface(there), sampling=SPACING_MM)
        assert distances == pytest.approx(field[surface(here)], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(masks)
def test_lesions_that_share_faces_are_simpleitks_components(mask: np.ndarray) -> None:
    # 6.5 x 0.9 x 0.4 = 2.34 mm3: two voxels are more than 3 mm3.
    components = SimpleITK.RelabelComponent(
        SimpleITK.ConnectedComponent(image(mask)), minimumObjectSize=2
    )
    found = int(SimpleITK.GetArrayViewFromImage(components).max())
    assert compare_lesions(mask, mask, SPACING_MM).reference_count == found


@settings(max_examples=40, deadline=None)
@given(masks)
def test_any_overlap_lesions_are_in_one_slice_simpleitks_fully_connected_ones(
    mask: np.ndarray,
) -> None:
    # In one slice 18 and 26 neighbours are the same 8.
    section = mask[:1]
    components = SimpleITK.ConnectedComponent(image(section), True)
    found = int(SimpleITK.GetArrayViewFromImage(components).max())
    result = compare_any_overlap(section, section, SPACING_MM).all_sizes
    assert (result.reference_count, result.found_count) == (found, found)
