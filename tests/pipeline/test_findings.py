"""Measurements that can be checked by hand, on an oblique grid of 6.5 x 0.5 x 0.25 mm voxels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dicom.volume import Grid
from pipeline.findings import Findings, long_axis_mm, measure
from pipeline.lesions import LesionMap
from tests.pipeline.test_lesions import SHAPE, oblique_grid

VOXEL_MM3 = 6.5 * 0.5 * 0.25


def findings_of(labels: np.ndarray, grid: Grid | None = None) -> Findings:
    probability = np.full(labels.shape, 0.75, np.float32)
    return measure(
        LesionMap(
            probability=probability,
            disagreement=probability / 10,
            labels=labels.astype(np.int32),
            grid=grid or oblique_grid(),
            dropped_small=3,
            dropped_leaks=1,
        )
    )


@pytest.fixture
def two_lesions() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    labels[1:4, 20:24, 30:35] = 1  # 3 slices of 4 rows and 5 columns
    labels[2, 24, 30:35] = 1  # one row more in slice 2
    labels[5, 40, 60] = 2
    return labels


def test_volume_is_voxels_times_voxel_volume(two_lesions: np.ndarray) -> None:
    findings = findings_of(two_lesions)
    first, second = findings.lesions
    assert (first.voxels, second.voxels) == (65, 1)
    assert first.volume_ml == pytest.approx(65 * VOXEL_MM3 / 1000)
    assert second.volume_ml == pytest.approx(VOXEL_MM3 / 1000)
    assert findings.total_volume_ml == pytest.approx(66 * VOXEL_MM3 / 1000)
    assert findings.lesion_count == 2


def test_volume_of_a_sheared_grid_is_its_determinant() -> None:
    affine = np.diag([5.0, 1.0, 1.0, 1.0])
    affine[1, 0] = 3.0  # the slices are pushed sideways: each is 5 mm thick as before
    labels = np.zeros((3, 4, 5), np.int32)
    labels[1, 1, 1] = 1
    assert findings_of(labels, Grid(affine, labels.shape)).total_volume_ml == pytest.approx(0.005)


def test_slices_are_counted_from_zero_in_code_and_from_one_in_json(
    two_lesions: np.ndarray,
) -> None:
    lesion = findings_of(two_lesions).lesions[0]
    assert (lesion.first_slice, lesion.last_slice, lesion.largest_slice) == (1, 3, 2)
    assert lesion.as_json()["slices"] == [2, 4]
    assert lesion.as_json()["largest_slice"] == 3


def test_long_axis_is_the_longest_of_any_slice_and_never_across_slices(
    two_lesions: np.ndarray,
) -> None:
    first, second = findings_of(two_lesions).lesions
    # Slice 2 holds 5 rows x 5 columns. Between the centres of opposite corners: 4 rows of 0.5 mm,
    # 4 columns of 0.25 mm. The pixel along that line: (2 x 0.5 + 1 x 0.25) / sqrt(5).
    assert first.long_axis_mm == pytest.approx(np.sqrt(2**2 + 1**2) + 1.25 / np.sqrt(5))
    assert second.long_axis_mm == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("area", "length_mm"),
    [
        (np.ones((1, 7), bool), 7 * 0.25),
        (np.ones((7, 1), bool), 7 * 0.5),
        (np.ones((1, 1), bool), 0.5),
        (np.zeros((3, 3), bool), 0.0),
        (np.array([[1, 0, 1]], bool), 3 * 0.25),
        # One row down, two columns right: 0.5 and 0.5 mm, a line of 45 degrees.
        (np.array([[1, 0, 0], [0, 0, 1]], bool), np.sqrt(0.5) + (0.5 + 0.25) / np.sqrt(2)),
    ],
)
def test_long_axis_counts_whole_pixels(area: np.ndarray, length_mm: float) -> None:
    assert long_axis_mm(area, (0.5, 0.25)) == pytest.approx(length_mm)


def test_long_axis_does_not_depend_on_where_the_area_lies() -> None:
    random = np.random.default_rng(4)
    area = random.random((9, 13)) > 0.7
    moved = np.pad(area, ((5, 2), (1, 8)))
    assert long_axis_mm(area, (0.5, 0.25)) == long_axis_mm(moved, (0.5, 0.25))
    assert long_axis_mm(area[::-1, ::-1], (0.5, 0.25)) == pytest.approx(
        long_axis_mm(area, (0.5, 0.25))
    )


def test_long_axis_is_that_of_all_pairs_of_pixels() -> None:
    random = np.random.default_rng(5)
    pixel = np.array([0.5, 0.25])
    for _ in range(20):
        area = random.random((6, 12)) > 0.8
        points = np.argwhere(area) * pixel
        lengths = [0.5 * len(points[:1])] + [
            np.hypot(*(a - b)) + np.abs(a - b) @ pixel / np.hypot(*(a - b))
            for a in points
            for b in points
            if (a != b).any()
        ]
        assert long_axis_mm(area, (0.5, 0.25)) == pytest.approx(max(lengths))


def test_probability_and_disagreement_are_means_over_the_lesion() -> None:
    labels = np.zeros((2, 4, 5), np.int32)
    labels[0, 1, 1:4] = 1
    probability = np.zeros(labels.shape, np.float32)
    probability[0, 1, :] = [9, 0.6, 0.7, 0.8, 9]
    disagreement = np.zeros(labels.shape, np.float32)
    disagreement[0, 1, :] = [9, 0.1, 0.2, 0.3, 9]
    lesions = LesionMap(probability, disagreement, labels, oblique_grid(labels.shape), 0, 0)
    lesion = measure(lesions).lesions[0]
    assert lesion.mean_probability == pytest.approx(0.7)
    assert lesion.disagreement == pytest.approx(0.2)


def test_no_lesion_is_a_finding() -> None:
    findings = findings_of(np.zeros(SHAPE))
    assert findings.as_json() == {
        "lesion_count": 0,
        "total_volume_ml": 0.0,
        "lesions": [],
        "regions": {
            region: {"count": 0, "volume_ml": 0.0}
            for region in (
                "periventricular",
                "juxtacortical",
                "infratentorial",
                "deep-white-matter",
            )
        },
        "dropped_small": 3,
        "dropped_leaks": 1,
    }


def test_json_holds_what_the_command_line_promises(two_lesions: np.ndarray) -> None:
    written = json.loads(json.dumps(findings_of(two_lesions).as_json()))
    assert written["lesion_count"] == 2
    assert written["total_volume_ml"] == pytest.approx(0.053625)
    assert written["lesions"][1] == {
        "label": 2,
        "volume_ml": pytest.approx(0.0008125, abs=1e-6),
        "voxels": 1,
        "long_axis_mm": 0.5,
        "slices": [6, 6],
        "largest_slice": 6,
        "mean_probability": 0.75,
        "disagreement": 0.075,
        "region": "not-assessed",
        "ventricle_mm": None,
        "cortex_mm": None,
    }
    # No 0 in a region that nobody looked for.
    assert written["regions"] == {
        "not-assessed": {"count": 2, "volume_ml": pytest.approx(0.053625)}
    }
