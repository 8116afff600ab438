"""The paper's rule on small masks: a slice whose mask has an entropy below 0.01 bit is removed.

Shannon entropy of a mask with a share p of lesion pixels, in bits:
H(p) = -p log2 p - (1 - p) log2 (1 - p). In nats the same threshold would remove up to 343 pixels
instead of 225; the paper says Shannon entropy and bits are its unit.

What the rule does is more than it seems: on 512 x 512 pixels of 0.4297 mm it removes every slice
with 225 lesion pixels or fewer, 41.5 mm2, a disc of 7.3 mm. McDonald's smallest lesion, 3 mm, has
38. So this is a rule for the paper's recipe in training; nothing else uses it, a test set never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import numpy as np
from pydantic import JsonValue

from pipeline.morphology import Mask

LOWEST_ENTROPY_BITS = 0.01  # the paper, "Data preparation": below it a mask is removed


@dataclass(frozen=True, slots=True)
class EntropySelection:
    """Which slices of a case the rule keeps, and what it removes."""

    kept: tuple[int, ...]
    empty: tuple[int, ...]
    """Removed; no lesion (H = 0)."""
    removed: tuple[int, ...]
    """Removed though there is a lesion."""
    removed_mm2: tuple[float, ...]
    """Lesion area of each of these."""

    def as_json(self) -> dict[str, JsonValue]:
        """Counts and areas, for a table and a log."""
        return {
            "kept": len(self.kept),
            "empty": len(self.empty),
            "removed_with_lesion": len(self.removed),
            "removed_mm2": round(sum(self.removed_mm2), 2),
            "largest_removed_mm2": round(max(self.removed_mm2, default=0.0), 2),
        }


def entropy_bits(mask: Mask) -> float:
    """Shannon entropy of the mask of a slice."""
    share = np.count_nonzero(mask) / mask.size
    if share in (0, 1):
        return 0.0
    return -share * log2(share) - (1 - share) * log2(1 - share)


def keeps(mask: Mask) -> bool:
    """Does the rule keep this slice?"""
    return entropy_bits(mask) >= LOWEST_ENTROPY_BITS


def fewest_kept_pixels(rows: int, columns: int) -> int:
    """The smallest lesion area that is kept, in pixels of a canvas: 226 of 512 x 512."""
    flat = np.zeros(rows * columns, np.bool_)
    for count in range(1, flat.size):
        flat[count - 1] = True
        if keeps(flat):
            return count
    raise ValueError(f"no mask of {rows} x {columns} pixels is kept")


def select_slices(masks: Mask, pixel_mm2: float) -> EntropySelection:
    """Apply the rule to the slices of a case.

    Args:
        masks: (slices, rows, columns), on the canvas of the recipe.
        pixel_mm2: Area of one pixel.
    """
    kept = [index for index, mask in enumerate(masks) if keeps(mask)]
    others: Sequence[int] = [index for index in range(len(masks)) if index not in set(kept)]
    removed = [index for index in others if masks[index].any()]
    return EntropySelection(
        tuple(kept),
        tuple(index for index in others if index not in set(removed)),
        tuple(removed),
        tuple(float(np.count_nonzero(masks[index]) * pixel_mm2) for index in removed),
    )
