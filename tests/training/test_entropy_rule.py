"""The paper's rule on small masks, on areas that a reader can count."""

from __future__ import annotations

import numpy as np
import pytest

from training.entropy_rule import entropy_bits, fewest_kept_pixels, keeps, select_slices


def marked(pixels: int, rows: int = 512, columns: int = 512) -> np.ndarray:
    mask = np.zeros(rows * columns, np.bool_)
    mask[:pixels] = True
    return mask.reshape(rows, columns)


def test_entropy_is_in_bits() -> None:
    assert entropy_bits(marked(2, 2, 2)) == 1.0  # half and half: one bit; in nats 0.69
    assert entropy_bits(marked(1, 2, 2)) == pytest.approx(0.25 * 2 + 0.75 * np.log2(4 / 3))
    assert entropy_bits(marked(0)) == entropy_bits(marked(512 * 512)) == 0.0


def test_225_pixels_of_512_by_512_are_removed_and_226_are_kept() -> None:
    assert not keeps(marked(225))
    assert keeps(marked(226))
    assert fewest_kept_pixels(512, 512) == 226


def test_the_rule_is_one_of_the_share_not_of_the_count() -> None:
    assert fewest_kept_pixels(256, 256) == 57  # 226 / 4 = 56.5
    assert not keeps(marked(56, 256, 256))


def test_what_is_removed_is_told_in_square_millimetres() -> None:
    masks = np.stack([marked(0), marked(38), marked(226), marked(225)])
    found = select_slices(masks, pixel_mm2=0.4297**2)
    assert (found.kept, found.empty, found.removed) == ((2,), (0,), (1, 3))
    assert found.removed_mm2 == pytest.approx((7.017, 41.545), abs=0.001)
    assert found.as_json() == {
        "kept": 1,
        "empty": 1,
        "removed_with_lesion": 2,
        "removed_mm2": 48.56,
        "largest_removed_mm2": 41.54,
    }
