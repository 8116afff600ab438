"""Augmentation changes what scanners change, and keeps the labels where the lesions are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.preprocess import CanvasSpec
from training.augment import (
    IGNORE,
    RIM_INSIDE_PIXELS,
    RIM_OUTSIDE_PIXELS,
    Slice,
    add_bright_csf,
    add_ghost,
    add_noise,
    change_lesion_contrast,
    change_scale,
    change_sharpness,
    fail_to_strip,
    finish,
    leftover_rim,
    on_canvas,
    sample,
    signed_depth,
    slab_mean,
)
from training.sources import Stack, running_sum

CANVAS = CanvasSpec(rows=208, columns=160)
STEPS = (
    change_lesion_contrast,
    change_sharpness,
    change_scale,
    add_bright_csf,
    fail_to_strip,
    add_ghost,
    add_noise,
)


def ellipse(
    shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]
) -> np.ndarray:
    row, column = np.ogrid[: shape[0], : shape[1]]
    return ((row - centre[0]) / radii[0]) ** 2 + ((column - centre[1]) / radii[1]) ** 2 < 1


def make_stack(*, partial: bool = False) -> Stack:
    """A brain of 1.0 with a ventricle of 0.3 and one lesion of 2.5, far brighter than anything."""
    shape = (171, 133)
    brain = ellipse(shape, (85, 66), (80, 60))
    lesion = ellipse(shape, (60, 40), (9, 7))
    image = 1.0 * brain - 0.7 * ellipse(shape, (85, 66), (20, 12)) + 1.5 * lesion
    channels = [image, lesion, brain]
    if partial:
        channels.append(ellipse(shape, (110, 66), (12, 9)))
    values = np.broadcast_to(np.stack(channels, -1).astype(np.float32), (9, *shape, len(channels)))
    return Stack(
        name="phantom",
        kind="slices" if partial else "slab",
        values=values.copy() if partial else running_sum(values),
        lesion_slices=np.arange(9),
        brain_slices=np.arange(9),
    )


@pytest.mark.parametrize("partial", [False, True])
def test_the_label_stays_on_the_lesion_whatever_is_drawn(partial: bool) -> None:
    stack = make_stack(partial=partial)
    for seed in range(40):
        image, target = sample(stack, CANVAS, np.random.default_rng(seed))
        if (target == 1).sum() < 60:
            continue  # the slab or the strip cut it off
        # The lesion is the brightest thing near its label: moved labels lie on darker pixels.
        means = {
            (down, right): image[np.roll(target, (down, right), (0, 1)) == 1].mean()
            for down in range(-6, 7, 2)
            for right in range(-6, 7, 2)
        }
        best = max(means, key=lambda shift: means[shift])
        assert max(map(abs, best)) <= 2, (seed, best)


def test_a_slice_is_turned_scaled_and_mirrored_within_the_stated_limits() -> None:
    values = make_stack(partial=True).values[0]
    areas, sides = [], set()
    for seed in range(60):
        one = on_canvas(values, CANVAS, np.random.default_rng(seed), widen=True)
        row, column = np.array(ndimage.center_of_mass(one.lesion)) - (104, 80)
        # e^0.15 of scale, 4 % sd of stretch, 4 pixels of shift either way.
        assert 36 / 1.3 - 6 < np.hypot(row, column) < 36 * 1.3 + 6
        sides.add(column > 0)
        areas.append(one.brain.sum() / (np.pi * 80 * 60))
    assert sides == {True, False}
    assert min(areas) > 0.70  # e^-0.30
    assert max(areas) < 1.42  # e^0.30, clipped by the canvas


def test_what_is_not_known_is_marked_and_never_a_lesion() -> None:
    _, target = sample(make_stack(partial=True), CANVAS, np.random.default_rng(3))
    assert set(np.unique(target)) == {0, 1, IGNORE}


def test_a_volume_with_full_labels_leaves_nothing_open() -> None:
    for seed in range(8):
        _, target = sample(make_stack(), CANVAS, np.random.default_rng(seed))
        assert not (target == IGNORE).any()


def test_a_flat_slab_is_the_mean_of_its_slices() -> None:
    values = np.random.default_rng(0).random((9, 4, 5, 2), dtype=np.float32)
    slab = slab_mean(running_sum(values), centre=4.5, thickness=3.0, tilt=(0.0, 0.0))
    assert slab == pytest.approx(values[3:6].mean(axis=0), rel=1e-4)
    half = slab_mean(running_sum(values), centre=5.0, thickness=1.0, tilt=(0.0, 0.0))
    assert half == pytest.approx(values[4:6].mean(axis=0), rel=1e-4)


def test_a_tilted_slab_climbs_along_the_rows() -> None:
    heights = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None, None], (40, 21, 3, 1))
    slab = slab_mean(running_sum(heights), centre=20.5, thickness=1.0, tilt=(0.5, 0.0))
    assert slab[:, 1, 0] == pytest.approx(20 + 0.5 * np.arange(-10, 11), rel=1e-4)


def test_the_depth_is_right_to_about_a_pixel() -> None:
    brain = ellipse((208, 160), (104, 80), (60, 60))
    depth = signed_depth(brain)
    row, column = np.ogrid[:208, :160]
    exact = 60 - np.hypot(row - 104, column - 80)
    assert np.abs(depth - exact)[np.abs(exact) < 25].max() < 2.0
    assert not (depth[~brain] > 2).any()


def test_a_rim_stays_at_the_edge_and_never_paints_in_the_brain() -> None:
    brain = ellipse((208, 160), (104, 80), (80, 60))
    inside = ndimage.distance_transform_edt(brain)
    outside = ndimage.distance_transform_edt(~brain)
    painted = 0
    for seed in range(50):
        rim = leftover_rim(signed_depth(brain), np.random.default_rng(seed))
        painted += int(rim.sum())
        assert not (rim & (inside > RIM_INSIDE_PIXELS + 2)).any()
        assert not (rim & (outside > RIM_OUTSIDE_PIXELS + 2)).any()
    assert painted > 1000


def test_a_failed_strip_never_labels_what_it_painted_or_cut_away() -> None:
    values = make_stack(partial=True).values[0]
    for seed in range(40):
        rng = np.random.default_rng(seed)
        before = on_canvas(values, CANVAS, rng, widen=True)
        after = fail_to_strip(before, rng)
        assert not (after.lesion & ~before.lesion).any()
        deep = before.depth > 8
        assert np.array_equal(after.image[deep], before.image[deep])
        assert np.array_equal(after.lesion[deep], before.lesion[deep])
        assert not after.image[~after.visible].any()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_leaves_the_label_and_finite_values(step) -> None:  # noqa: ANN001
    one = make_slice()
    for seed in range(10):
        after: Slice = step(one, np.random.default_rng(seed))
        assert np.isfinite(after.image).all()
        assert after.image.dtype == np.float32
        assert not (after.lesion & ~one.lesion).any()


def make_slice() -> Slice:
    return on_canvas(
        make_stack(partial=True).values[0], CANVAS, np.random.default_rng(0), widen=True
    )


def test_an_image_ends_as_preprocessing_would_scale_it() -> None:
    one = make_slice()
    image, _ = finish(one)
    inside = one.visible & (one.image > 0)
    assert image[inside] == pytest.approx(np.clip(one.image[inside] / 1.9, 0, 1), rel=1e-5)
    assert not image[~one.visible].any()


def test_a_sample_is_a_function_of_its_seed() -> None:
    stack = make_stack()
    one, other = (sample(stack, CANVAS, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
