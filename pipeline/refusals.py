"""Why a FLAIR was not analysed, in words for people, and what they can do about it.

By the stable reason codes of `dicom.errors`, of the steps of the pipeline and of the quality check.
The note in the archive and `flairnode jobs explain` say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Words:
    """One reason, for a reader who has never heard of us."""

    what: str
    """Goes on after "Not analysed: "."""
    to_do: str
    """Whole sentences."""


_SEND_COMPLETE: Final = (
    "Send the whole series again: it is then looked at again, and analysed if it is complete."
)
_ASK_SCANNER: Final = (
    "Sending it again as it is changes nothing. Look at the images, and ask where they were made, "
    "or changed on their way."
)
_ANOTHER_SERIES: Final = (
    "Sending it again as it is changes nothing. A FLAIR of one even, straight stack of the whole "
    "head can be analysed."
)
_EACH_STACK: Final = "Send each stack as a series of its own."
_READ_WITHOUT: Final = "Read the images without this software."

UNKNOWN: Final = Words("the images could not be used", f"{_READ_WITHOUT} The detail says why.")
"""Of a reason that is not listed. It has its code and its detail all the same."""

REFUSALS: Final[Mapping[str, Words]] = {
    # --- the stack
    "missing-slice": Words("slices are missing in the stack", _SEND_COMPLETE),
    "too-few-slices": Words(
        "there are too few slices, or fewer than the images say there are", _SEND_COMPLETE
    ),
    "truncated-file": Words("images are damaged or cut short", _SEND_COMPLETE),
    "irregular-spacing": Words("the slices are not evenly spaced", _ASK_SCANNER),
    "duplicate-slice": Words("two images lie at one place", _EACH_STACK),
    "mixed-orientation": Words(
        "the images of the series point in different directions",
        _EACH_STACK,
    ),
    "inconsistent-series": Words("the images of the series are not of one kind", _ASK_SCANNER),
    "gantry-tilt": Words("the slices are tilted against the axis of their stack", _ANOTHER_SERIES),
    "unknown-multi-frame": Words(
        "an object holds many frames and is no Enhanced MR image", _ANOTHER_SERIES
    ),
    "several-stacks": Words("there are several stacks of slices in one series", _EACH_STACK),
    "several-time-points": Words("the same slices are there at several times", _EACH_STACK),
    "several-echoes": Words("the same slices are there at several echo times", _EACH_STACK),
    "several-inversion-times": Words(
        "the same slices are there at several inversion times", _EACH_STACK
    ),
    "several-diffusion-weightings": Words(
        "the same slices are there at several diffusion weightings", _EACH_STACK
    ),
    "several-image-types": Words(
        "the same slices are there as several kinds of image, as magnitude and phase", _EACH_STACK
    ),
    "implausible-geometry": Words(
        "size, spacing or field of view is not that of a head", _ASK_SCANNER
    ),
    "missing-attribute": Words(
        "the images lack what tells how or where they were made", _ASK_SCANNER
    ),
    # --- the site's own settings
    "post-contrast": Words(
        "the images were acquired after contrast medium, and this site analyses none such",
        "Send a FLAIR from before contrast medium.",
    ),
    "refused-by-site": Words(
        "a rule of this site does not want it", "Ask who looks after this software here."
    ),
    # --- the pixels
    "decoder-limits": Words(
        "decoding the pixels takes more memory or time than any real image does", _ASK_SCANNER
    ),
    "undecodable-pixels": Words(
        "the pixels cannot be decoded",
        "Send the series again uncompressed, or compressed in another way.",
    ),
    "not-finite": Words("pixels without a value are among the images", _ASK_SCANNER),
    "blank-image": Words("the images are blank, or nearly", _ASK_SCANNER),
    "noise-image": Words("the pixels are noise or scrambled", _ASK_SCANNER),
    "bad-pixels": Words("the pixels are not an image of a head", _ASK_SCANNER),
    # --- the brain
    "empty-image": Words("no head was found in the images", _READ_WITHOUT),
    "empty-mask": Words("no brain was found in the images", _READ_WITHOUT),
    "brain-extraction": Words("the brain could not be told from the rest", _READ_WITHOUT),
    "brain-tool-empty-mask": Words("no brain was found in the images", _READ_WITHOUT),
    "no-brain-core": Words("the brain that was found cannot be one", _READ_WITHOUT),
    "does-not-fit-canvas": Words(
        "the head is larger than the field that the model knows", _READ_WITHOUT
    ),
}


def in_words(reason: str) -> Words:
    """What to say of a reason code."""
    return REFUSALS.get(reason, UNKNOWN)


def withheld_in_words() -> Words:
    """What to say when the analysis ran and the quality check did not let its result pass."""
    return Words("the quality check did not let the result pass", _READ_WITHOUT)
