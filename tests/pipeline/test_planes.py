"""Sagittal and coronal acquisitions: the same head gives the same lesions, on the source grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dicom.checks import check_header
from dicom.identity import normalised_header
from dicom.volume import Grid, Volume, read_volume, slice_headers
from pipeline.flow import Analysis, analyse
from pipeline.model_pack import Canvas
from pipeline.regions import NotPlaced
from pipeline.results import build_results
from tests.enhanced import write_enhanced
from tests.pipeline.analysed import SETTINGS, pack
from tests.pipeline.heads import ellipsoid_head
from tests.pipeline.tiny_pack import manifest

Make = Callable[..., Any]
SHAPE = (78, 104, 86)
PLANES = {"sagittal": (2, 0, 1), "coronal": (1, 0, 2)}
"""Axis of the axial head behind slice, row and column."""


@dataclass(frozen=True, slots=True)
class Said:
    probability: npt.NDArray[np.float32]
    disagreement: npt.NDArray[np.float32]


class Bright:
    """Calls lesion what is much brighter than the brain."""

    def segment(self, images: npt.NDArray[np.float32]) -> Said:
        return Said((images > 0.85).astype(np.float32), np.zeros_like(images))


WHOLE_HEAD = manifest(
    canvas=Canvas(rows=224, columns=192, pixel_mm=1, normalisation="starter", dilation_mm=2)
)


def head_with_lesions() -> Volume:
    """Nearly isotropic, as 3-D acquisitions are; no two axes alike."""
    volume, truth = ellipsoid_head(shape=SHAPE, spacing_mm=(2.0, 1.9, 1.8))
    voxels = volume.voxels.copy()
    level = float(np.median(voxels[truth]))
    for where in (np.s_[50:53, 55:60, 30:36], np.s_[30:32, 60:64, 50:53]):
        assert truth[where].all()
        voxels[where] = 1.8 * level
    return Volume(voxels, volume.grid)


def turned(volume: Volume, axes: tuple[int, int, int]) -> Volume:
    affine = volume.grid.affine[:, [*axes, 3]]
    shape = (SHAPE[axes[0]], SHAPE[axes[1]], SHAPE[axes[2]])
    voxels = np.ascontiguousarray(volume.voxels.transpose(axes))
    return Volume(voxels, Grid(affine, shape, "1.2.3"))


@cache
def axial() -> Analysis:
    return analyse(head_with_lesions(), Bright(), WHOLE_HEAD)


@cache
def analysed_in(plane: str) -> Analysis:
    return analyse(turned(head_with_lesions(), PLANES[plane]), Bright(), WHOLE_HEAD)


def test_regions_are_a_stage_of_their_own_that_no_lesion_skips() -> None:
    assert "regions" in axial().timing_s
    # An ellipsoid with ventricles is no brain to the template.
    assert isinstance(axial().anatomy, NotPlaced)
    assert {lesion.region for lesion in axial().findings.lesions} == {"not-assessed"}
    assert "regions-not-assessed" in {flag.code for flag in axial().quality.flags}
    healthy, _ = ellipsoid_head(shape=SHAPE, spacing_mm=(2.0, 1.9, 1.8))
    analysis = analyse(healthy, Bright(), WHOLE_HEAD)
    assert not analysis.findings.lesions
    assert "regions" not in analysis.timing_s
    assert analysis.anatomy is None


@pytest.mark.parametrize("plane", PLANES)
def test_lesions_of_another_plane_are_those_of_the_axial_slices(plane: str) -> None:
    axes = PLANES[plane]
    analysis = analysed_in(plane)
    expected = axial().lesions
    assert axial().findings.lesion_count == 2
    np.testing.assert_array_equal(analysis.brain.mask, axial().brain.mask.transpose(axes))
    np.testing.assert_array_equal(analysis.lesions.labels, expected.labels.transpose(axes))
    np.testing.assert_allclose(
        analysis.lesions.probability, expected.probability.transpose(axes), atol=1e-6
    )
    volumes = [lesion.volume_ml for lesion in analysis.findings.lesions]
    assert volumes == pytest.approx([lesion.volume_ml for lesion in axial().findings.lesions])
    # The brain's measures are those of its axial view, whatever the order of its voxels.
    assert analysis.quality.measures == pytest.approx(axial().quality.measures, nan_ok=True)


@pytest.mark.parametrize("plane", PLANES)
def test_slices_of_lesions_are_counted_as_they_were_acquired(plane: str) -> None:
    analysis = analysed_in(plane)
    for lesion in analysis.findings.lesions:
        box = np.argwhere(analysis.lesions.labels == lesion.label)
        assert (lesion.first_slice, lesion.last_slice) == (box[:, 0].min(), box[:, 0].max())


@pytest.mark.parametrize(
    ("plane", "enhanced"), [("sagittal", True), ("coronal", False)], ids=PLANES
)
def test_results_lie_on_the_slices_that_were_sent(
    make_flair_series: Make, tmp_path: Path, plane: str, *, enhanced: bool
) -> None:
    sent = turned(head_with_lesions(), PLANES[plane])
    made = make_flair_series(affine=sent.grid.affine, voxels=np.rint(sent.voxels).astype(np.uint16))
    series = write_enhanced(made, tmp_path / "e") if enhanced else made.series
    volume = read_volume(series)
    analysis = analyse(volume, Bright(), WHOLE_HEAD)
    results = build_results(series, analysis, pack(), SETTINGS)  # checks what it built
    sources = [normalised_header(header) for header in slice_headers(series, volume)]
    (seg,) = [result.dataset for result in results if result.kind == "seg"]
    check_header(seg, sources)
    assert analysis.findings.lesion_count == 2
    assert (seg.Rows, seg.Columns) == sent.grid.shape[1:]
