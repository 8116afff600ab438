"""Fewer pixels, the same field of view."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.resample import coarser_in_plane, resample_in_plane


def test_the_field_of_view_stays_the_same() -> None:
    image = np.zeros((3, 100, 60), np.float32)
    coarse, spacing_mm = coarser_in_plane(image, (6.5, 0.5, 0.9), pixel_mm=2.0)
    assert coarse.shape == (3, 25, 27)
    assert spacing_mm == pytest.approx((6.5, 2.0, 60 * 0.9 / 27))


def test_pixels_that_are_coarse_already_stay_as_they_are() -> None:
    image = np.random.default_rng(0).normal(size=(2, 30, 20)).astype(np.float32)
    coarse, spacing_mm = coarser_in_plane(image, (4.0, 2.5, 2.0), pixel_mm=2.0)
    assert np.array_equal(coarse, image)
    assert spacing_mm == (4.0, 2.5, 2.0)


def test_a_ramp_stays_where_it_is() -> None:
    # Pixel centres at 0.5, 1.5, ... mm hold their own position; so must those of 2 mm.
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32) + 0.5, (1, 10, 40)).copy()
    coarse, _ = coarser_in_plane(ramp, (5.0, 1.0, 1.0), pixel_mm=2.0)
    assert coarse[0, 2, 2:-2] == pytest.approx(np.arange(20)[2:-2] * 2 + 1.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(2, 13, 9), (2, 61, 50), (2, 30, 20)])
def test_interpolation_equals_that_of_scipy(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(1).normal(size=(2, 30, 20)).astype(np.float32)
    factors = [new / old for new, old in zip(shape, image.shape, strict=True)]
    expected = ndimage.zoom(image, factors, order=1, grid_mode=True, mode="nearest")
    assert resample_in_plane(image, shape) == pytest.approx(expected, abs=1e-5)
