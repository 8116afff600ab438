"""What every result looks like: the banner and the colours of the lesions."""

from __future__ import annotations

from typing import Final

import numpy as np
from skimage.color import lab2rgb

RESEARCH_BANNER: Final = "RESEARCH - NOT FOR CLINICAL USE"

COLOURS_CIELAB: Final = (
    (70.6, 16.5, 74.7),  # orange
    (69.8, -12.0, -34.8),  # sky blue
    (70.8, -66.2, 46.2),  # green
    (89.1, -13.3, 75.5),  # yellow
    (54.2, 43.3, 63.3),  # vermilion
    (68.5, 60.6, -17.4),  # pink
    (54.4, 25.4, -71.4),  # blue
    (83.3, -42.9, 74.2),  # lime
    (83.6, -36.5, -25.5),  # cyan
    (65.3, 40.6, -53.5),  # violet
)
"""Told apart from each other and from grey; neighbours in number differ most. They start again
after the last. A colour says nothing of a lesion."""


def colour_cielab(label: int) -> tuple[float, float, float]:
    """Of a lesion, as the Segmentation says it."""
    return COLOURS_CIELAB[(label - 1) % len(COLOURS_CIELAB)]


def colour_rgb(label: int) -> tuple[int, int, int]:
    """The same colour in sRGB (D65, as OHIF converts it), for what we draw ourselves."""
    red, green, blue = np.rint(255 * lab2rgb(np.array(colour_cielab(label)))).astype(int).tolist()
    return red, green, blue
