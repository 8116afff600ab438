"""Is this an image of a head, and is what was found in it to be trusted?

`gate` refuses, before any work, what no result can come of. `judge` looks at the brain mask and the
lesions afterwards: *pass*, *review* (the result goes out and carries the flags) or *fail* (no mask
is sent, and a note says why). Flags are sentences a radiologist reads, with their figures.

The limits were set on clinical FLAIR volumes, native (2 to 4 mm slices) and averaged to 6.5 mm, and
on masks known to be wrong; the comment beside each limit gives what good masks showed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nan
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from scipy import ndimage

from config.selection import SelectionSettings, rules_in_force
from dicom.errors import (
    BlankImageError,
    ImplausibleGeometryError,
    IncompleteSeriesError,
    NotFiniteError,
    PixelsError,
)
from dicom.series import Series
from dicom.volume import Grid, Volume
from pipeline.brain import BrainMask, EmptyImageError, outer_surface
from pipeline.findings import Findings
from pipeline.header_facts import stated_contrast
from pipeline.lesions import LesionMap
from pipeline.model_pack import Manifest
from pipeline.morphology import (
    Mask,
    SpacingMm,
    dilate_in_plane_mm,
    erode_in_plane_mm,
    fill_holes_in_plane,
)
from pipeline.orientation import AxialView, axial_view
from pipeline.regions import Anatomy, NotPlaced
from pipeline.resample import coarser_in_plane

Severity = Literal["review", "fail"]
Verdict = Literal["pass", "review", "fail"]
Image = npt.NDArray[np.float32]

FEWEST_SLICES = 8  # 8 slices of 6.5 mm are 52 mm: less is a localizer or a test
FEWEST_PIXELS = 64  # a head at 3 mm pixels; fewer is a thumbnail or an icon
PIXEL_MM = (0.2, 3.0)
SLICE_MM = (0.4, 10.0)
IN_PLANE_FIELD_MM = (120.0, 400.0)
"""A stripped brain cut out closely is 130 mm wide; a whole-body picture is wider than 400."""
SLICE_FIELD_MM = (50.0, 400.0)
LARGEST_SHEAR = 0.02
"""Cosine between axes that should be at right angles: voxels are bricks everywhere in here."""

NEIGHBOUR_MM = 4.0
LEAST_CORRELATION = 0.3
"""Of voxels 4 mm apart in the plane. Every head here shows .58 to .93, native and thick; random
pixels show 0.00, also when a scanner has interpolated them (that reaches 1 to 2 mm)."""

MEASURE_PIXEL_MM = 2.0
"""Masks are measured at this pixel: their limits are far wider than it."""
STRIPPED_SHARE = 0.01
"""An image with fewer voxels than this share of the mask outside it, not zero, came stripped."""
BORDER_MM = 3.0
RIM_MM = 3.0
CORE_DEPTH_MM = 12.0
BRIGHT_RIM_MM = 6.0
BRIGHT = 1.6
"""Of the median of the deep brain: fat and scalp are brighter, cortex is not, and juxtacortical
lesions that are fill a small part of the rim. It flags a mask; nothing is ever cut from one."""

MOST_DISAGREEMENT = 0.30
"""Mean standard deviation of the members' probabilities over all lesion voxels. Of five members two
that say 0 and three that say 1 make 0.49; five spread evenly from .4 to .8 make 0.14."""
SPLIT_ML = 2.0
"""Brain that some members call lesion and the mean does not: more than this, and more than
`SPLIT_SHARE` of what was reported, is worth a look."""
SPLIT_SHARE = 0.25
LARGEST_LOAD = 0.12
"""Of the brain. 10 % of a brain in MS lesions is rare; more is a leak or another disease."""


class NoiseImageError(PixelsError):
    """Neighbouring pixels have nothing to do with each other: noise, or scrambled pixel data."""

    reason = "noise-image"


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing a reader of the result should know."""

    code: str
    """Stable, kebab-case."""
    message: str
    severity: Severity


@dataclass(frozen=True, slots=True)
class Quality:
    """The verdict on one analysis."""

    flags: tuple[Flag, ...] = ()
    """The worst first."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the flags were decided on, by name."""

    @property
    def verdict(self) -> Verdict:
        """The severity of the worst flag; *pass* without any."""
        severities = {flag.severity for flag in self.flags}
        if "fail" in severities:
            return "fail"
        return "review" if severities else "pass"

    def as_json(self) -> dict[str, JsonValue]:
        """The `quality` of `process --json` and `result.json`."""
        return {
            "verdict": self.verdict,
            "flags": [
                {"code": flag.code, "message": flag.message, "severity": flag.severity}
                for flag in self.flags
            ],
            "measures": {
                name: round(value, 4) for name, value in self.measures.items() if isfinite(value)
            },
        }


# --- before any work ------------------------------------------------------------------------


def gate(volume: Volume) -> None:
    """Refuse a volume that cannot be the FLAIR of a head.

    Raises:
        IncompleteSeriesError: Fewer than `FEWEST_SLICES` slices.
        ImplausibleGeometryError: Size, spacing or field of view is not that of a head.
        NotFiniteError: NaN or infinity among the voxels: networks turn NaN into "no lesion".
        BlankImageError: All voxels alike, or nearly.
        NoiseImageError: Random pixels.
    """
    _gate_geometry(volume.grid)
    bad = volume.voxels.size - np.count_nonzero(np.isfinite(volume.voxels))
    if bad:
        raise NotFiniteError(f"{bad} of {volume.voxels.size} voxels are NaN or infinite")
    low, high = np.percentile(volume.voxels, (1, 99))
    if low == high:
        raise BlankImageError(f"98 % of all voxels have the value {low:g}")
    correlation = neighbour_correlation(volume)
    if correlation < LEAST_CORRELATION:
        raise NoiseImageError(
            f"voxels {NEIGHBOUR_MM:g} mm apart correlate by {correlation:.2f};"
            f" in an image of a head by more than {LEAST_CORRELATION:g}"
        )


def _gate_geometry(grid: Grid) -> None:
    slices, *in_plane = grid.shape
    if slices < FEWEST_SLICES:
        raise IncompleteSeriesError(f"{slices} slices; at least {FEWEST_SLICES} are needed")
    if min(in_plane) < FEWEST_PIXELS:
        raise ImplausibleGeometryError(
            f"{in_plane[0]} x {in_plane[1]} pixels; at least {FEWEST_PIXELS} each way are needed"
        )
    if not np.isfinite(grid.affine).all():
        raise ImplausibleGeometryError("the position of the voxels is not finite")
    names = ("slice", "row", "column")
    spacing_limits = (SLICE_MM, PIXEL_MM, PIXEL_MM)
    for name, spacing, limits in zip(names, grid.spacing_mm, spacing_limits, strict=True):
        _refuse_outside(f"the {name} spacing", spacing, limits)
    field_limits = (SLICE_FIELD_MM, IN_PLANE_FIELD_MM, IN_PLANE_FIELD_MM)
    for name, length, spacing, limits in zip(
        names, grid.shape, grid.spacing_mm, field_limits, strict=True
    ):
        _refuse_outside(f"the field of view along the {name} index", length * spacing, limits)
    axes = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > LARGEST_SHEAR:
        raise ImplausibleGeometryError(
            f"the axes of the voxels are not at right angles (cosine {shear:.3f})"
        )


def _refuse_outside(what: str, value_mm: float, limits_mm: tuple[float, float]) -> None:
    low, high = limits_mm
    if not low <= value_mm <= high:
        raise ImplausibleGeometryError(
            f"{what} is {value_mm:.4g} mm; of a head it is {low:g} to {high:g} mm"
        )


def neighbour_correlation(volume: Volume) -> float:
    """Correlation of voxels `NEIGHBOUR_MM` apart in the plane, the lower of the two directions."""
    deviation = volume.voxels - volume.voxels.mean(dtype=np.float64).astype(np.float32)
    variance = float(np.square(deviation).mean(dtype=np.float64))
    correlations = []
    for axis in (1, 2):
        step = max(1, round(NEIGHBOUR_MM / volume.grid.spacing_mm[axis]))
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
        product = deviation[tuple(ahead)] * deviation[tuple(behind)]
        correlations.append(float(product.mean(dtype=np.float64)) / variance)
    return min(correlations)


# --- after the analysis ---------------------------------------------------------------------


def region_flags(anatomy: Anatomy | NotPlaced | None) -> tuple[Flag, ...]:
    """That no region was told, where there were lesions to tell it of."""
    if not isinstance(anatomy, NotPlaced):
        return ()
    return (
        Flag(
            "regions-not-assessed",
            "The regions of the lesions could not be told: the template of a brain does not fit"
            f" this one ({anatomy.explanation}). The brain may be unusual, incomplete, or its mask"
            " wrong.",
            "review",
        ),
    )


def judge(
    volume: Volume,
    brain: BrainMask,
    lesions: LesionMap,
    findings: Findings,
    manifest: Manifest,
    also: Sequence[Flag] = (),
) -> Quality:
    """The verdict on one analysis; `also` are flags that were raised before it.

    A brain mask with a *fail* flag means that nothing found within it can be trusted.
    """
    measures = measure_brain(volume, brain)
    view = axial_view(volume.grid)
    flags = [
        *_brain_flags(measures),
        *_origin_flags(brain, manifest),
        *_geometry_flags(view.grid, manifest),
        *_input_flags(volume, view),
        *_lesion_flags(brain, lesions, findings),
        *also,
    ]
    # The worst first; of equals in the order of the checks.
    flags.sort(key=lambda flag: flag.severity != "fail")
    return Quality(tuple(flags), asdict(measures))


def header_flags(series: Series) -> tuple[Flag, ...]:
    """What the headers of a series say that a reader of its result should know.

    Contrast medium, by the series' own words: that it follows another series with contrast, only
    the selection can see, and says.
    """
    contrast = stated_contrast(series, rules_in_force(SelectionSettings()))
    if not contrast.given:
        return ()
    return (
        Flag(
            "after-contrast",
            f"The images were acquired after contrast medium ({contrast.why}). Enhancement is"
            " bright on FLAIR too; the model is not known to have been tried on such images.",
            "review",
        ),
    )


@dataclass(frozen=True, slots=True)
class BrainMeasures:
    """What is looked at to trust a brain mask."""

    volume_ml: float
    largest_area_cm2: float
    extent_mm: float
    """From the lowest slice with brain to the highest."""
    empty_slices: float
    """Between those two."""
    largest_step: float
    """Of the area from one slice to the next, as a share of the largest area."""
    lowest_slice_share: float
    """Area on the lowest slice of the stack, as a share of the largest."""
    highest_slice_share: float
    border_slices: float
    """Slices on which the mask comes within `BORDER_MM` of the border of the image."""
    main_share: float
    """Of the largest component in the whole mask."""
    hole_share: float
    """Enclosed in a slice but not in the mask, as a share of the mask."""
    rim_contrast: float
    """Median just inside minus median just outside, in medians of the brain."""
    bright_rim_share: float
    """Of the outermost `BRIGHT_RIM_MM` of the mask, how much is brighter than `BRIGHT` medians of
    the deep brain. The second answer follows a bright scalp as the first does; this does not."""
    left_right_dice: float
    """Of the mask and its mirror image about its own middle."""
    tissue_spread: float
    """Interquartile range of the deep brain, in its medians."""
    darkest_share: float
    """1st percentile of the deep brain, in its medians: cerebrospinal fluid."""
    inside_surface: float
    """Share of the mask inside the second answer: the plain surface of Smith 2002. NaN if the
    image was stripped before it came: then there is no second answer."""
    share_of_surface: float
    """Volume of the mask in volumes of that surface."""


def measure_brain(volume: Volume, brain: BrainMask) -> BrainMeasures:
    """Measure a brain mask against its image and against a second, independent answer."""
    view = axial_view(volume.grid)
    voxels = view.apply(volume.voxels)
    pixels, spacing_mm = coarser_in_plane(voxels, view.grid.spacing_mm, MEASURE_PIXEL_MM)
    mask = _coarse_mask(view.apply(brain.mask), view.grid.spacing_mm)
    pixel_cm2 = spacing_mm[1] * spacing_mm[2] / 100
    areas = np.count_nonzero(mask, axis=(1, 2)).astype(np.float64) * pixel_cm2
    present = np.flatnonzero(areas)
    largest = float(areas.max())
    within = areas[present[0] : present[-1] + 1]
    labels, _ = ndimage.label(mask)
    size = int(np.count_nonzero(mask))
    holes = np.count_nonzero(fill_holes_in_plane(mask)) - size
    spread, darkest = _tissue(pixels, mask, spacing_mm)
    inside, share = _against_second_answer(volume, brain.mask)
    return BrainMeasures(
        volume_ml=brain.volume_ml,
        largest_area_cm2=largest,
        extent_mm=float(len(within)) * spacing_mm[0],
        empty_slices=float(np.count_nonzero(within == 0)),
        largest_step=float(np.abs(np.diff(within)).max(initial=0.0)) / largest,
        lowest_slice_share=float(areas[0]) / largest,
        highest_slice_share=float(areas[-1]) / largest,
        border_slices=float(_slices_at_border(mask, spacing_mm)),
        main_share=float(np.bincount(labels[mask]).max()) / size,
        hole_share=holes / size,
        rim_contrast=_rim_contrast(pixels, mask, spacing_mm),
        bright_rim_share=_bright_rim_share(pixels, mask, spacing_mm),
        left_right_dice=_left_right_dice(mask),
        tissue_spread=spread,
        darkest_share=darkest,
        inside_surface=inside,
        share_of_surface=share,
    )


def _coarse_mask(mask: Mask, spacing_mm: SpacingMm) -> Mask:
    share, _ = coarser_in_plane(mask.astype(np.float32), spacing_mm, MEASURE_PIXEL_MM)
    coarse: Mask = share > 0.5
    # A mask of a few voxels: its volume will say enough, but it must not vanish.
    return coarse if coarse.any() else share > 0


def _slices_at_border(mask: Mask, spacing_mm: SpacingMm) -> int:
    rows, columns = (max(1, round(BORDER_MM / step)) for step in spacing_mm[1:])
    border = np.ones(mask.shape[1:], np.bool_)
    border[rows:-rows, columns:-columns] = False
    return int(np.count_nonzero((mask & border).any(axis=(1, 2))))


def _rim_contrast(pixels: Image, mask: Mask, spacing_mm: SpacingMm) -> float:
    inner = mask & ~erode_in_plane_mm(mask, spacing_mm, RIM_MM)
    outer = dilate_in_plane_mm(mask, spacing_mm, RIM_MM) & ~mask
    level = float(np.median(pixels[mask]))
    if not outer.any() or level <= 0:
        return 0.0
    return float(np.median(pixels[inner]) - np.median(pixels[outer])) / level


def _bright_rim_share(pixels: Image, mask: Mask, spacing_mm: SpacingMm) -> float:
    core = erode_in_plane_mm(mask, spacing_mm, CORE_DEPTH_MM)
    rim = mask & ~erode_in_plane_mm(mask, spacing_mm, BRIGHT_RIM_MM)
    level = float(np.median(pixels[core if core.any() else mask]))
    if not rim.any() or level <= 0:
        return 0.0
    return float(np.mean(pixels[rim] > BRIGHT * level))


def _left_right_dice(mask: Mask) -> float:
    columns = np.arange(mask.shape[2])
    middle = float(np.average(columns, weights=mask.sum(axis=(0, 1))))
    opposite = np.rint(2 * middle - columns).astype(np.intp)
    present = (opposite >= 0) & (opposite < len(columns))
    mirrored = np.zeros_like(mask)
    mirrored[:, :, present] = mask[:, :, opposite[present]]
    return float(np.count_nonzero(mirrored & mask)) / float(np.count_nonzero(mask))


def _tissue(pixels: Image, mask: Mask, spacing_mm: SpacingMm) -> tuple[float, float]:
    """Interquartile range and 1st percentile of the deep brain, in its medians."""
    core = erode_in_plane_mm(mask, spacing_mm, CORE_DEPTH_MM)
    inside = pixels[core if core.any() else mask]
    darkest, lower, median, upper = (float(x) for x in np.percentile(inside, (1, 25, 50, 75)))
    if median <= 0:
        return 0.0, 1.0
    return (upper - lower) / median, darkest / median


def _against_second_answer(volume: Volume, mask: Mask) -> tuple[float, float]:
    size = int(np.count_nonzero(mask))
    # Where the image is already stripped there is no skull to stop at, and the surface shrinks
    # from the dark rim: it held 75 % of a good mask (patient19 of `ms_mni`).
    if np.count_nonzero(volume.voxels[~mask]) < STRIPPED_SHARE * size:
        return nan, nan
    try:
        surface = outer_surface(volume)
    except EmptyImageError:
        return 0.0, nan
    both, whole = int(np.count_nonzero(mask & surface)), int(np.count_nonzero(surface))
    return both / size, size / max(1, whole)


@dataclass(frozen=True, slots=True)
class Limit:
    """One check of a brain mask: a measure, what is right, and what to tell the reader."""

    code: str
    measure: str
    message: str
    """`{value}` is the measure."""
    review_below: float = -inf
    review_above: float = inf
    fail_below: float = -inf
    fail_above: float = inf

    def flag(self, value: float) -> Flag | None:
        """The flag that a value of the measure raises; NaN, not measured, raises none."""
        if value < self.fail_below or value > self.fail_above:
            return Flag(self.code, self.message.format(value=value), "fail")
        if value < self.review_below or value > self.review_above:
            return Flag(self.code, self.message.format(value=value), "review")
        return None


BRAIN_LIMITS = (
    Limit(
        "brain-too-small",
        "volume_ml",
        "The brain mask holds {value:.0f} ml; adult brains hold 1000 to 1750 ml."
        " Part of the brain may be missing.",
        review_below=1000,  # good masks: 1287 to 1555
        fail_below=750,
    ),
    Limit(
        "brain-too-large",
        "volume_ml",
        "The brain mask holds {value:.0f} ml; adult brains hold 1000 to 1750 ml."
        " It may include scalp, orbits or neck.",
        review_above=1750,  # a large head without fat suppression, scalp in parts: 1821
        fail_above=2000,  # the same averaged to 6.5 mm, scalp all around the top: 2159
    ),
    Limit(
        "brain-area-small",
        "largest_area_cm2",
        "The largest slice of the brain mask measures {value:.0f} cm2; 110 to 230 are usual.",
        review_below=110,  # good masks: 162 to 183
    ),
    Limit(
        "brain-area-large",
        "largest_area_cm2",
        "The largest slice of the brain mask measures {value:.0f} cm2; 110 to 230 are usual.",
        review_above=230,
    ),
    Limit(
        "brain-short",
        "extent_mm",
        "The brain mask is {value:.0f} mm high; a whole brain is more than 95 mm."
        " The scan may not cover the brain.",
        review_below=95,  # good masks: 124 to 144
    ),
    Limit(
        "brain-gap",
        "empty_slices",
        "{value:.0f} slices inside the stack have no brain: they may be blank or damaged.",
        review_above=0,
    ),
    Limit(
        "brain-step",
        "largest_step",
        "From one slice to the next the brain changes by {value:.0%} of its largest area;"
        " up to 35 % is usual. A slice may be damaged or out of place.",
        review_above=0.35,  # good masks: .06 to .20
    ),
    Limit(
        "brain-cut-off-below",
        "lowest_slice_share",
        "The brain is cut off at the lowest slice: its area there is {value:.0%} of the largest."
        " Lesions below the stack cannot be found.",
        review_above=0.30,  # whole stacks: up to .21
    ),
    Limit(
        "brain-cut-off-above",
        "highest_slice_share",
        "The brain is cut off at the highest slice: its area there is {value:.0%} of the largest."
        " Lesions above the stack cannot be found.",
        review_above=0.30,  # whole stacks: up to .25; 20 % missing: more than .6
    ),
    Limit(
        "brain-at-border",
        "border_slices",
        "The brain mask reaches the border of the image on {value:.0f} slices:"
        " the field of view may cut the head.",
        review_above=0,
    ),
    Limit(
        "brain-in-pieces",
        "main_share",
        "The largest piece of the brain mask holds only {value:.0%} of it.",
        review_below=0.98,  # good masks: 1.00
    ),
    Limit(
        "brain-holes",
        "hole_share",
        "The brain mask has holes of {value:.1%} of its volume: ventricles or lesions may be"
        " missing from it.",
        review_above=0.005,
    ),
    Limit(
        "brain-edge-unclear",
        "rim_contrast",
        "The image changes by only {value:.2f} of the brain's level across the edge of the brain"
        " mask; 0.40 or more is usual. The mask may not follow the brain.",
        review_below=0.30,  # good masks: .40 to .79; frontal poles cut off: .19
        fail_below=0.15,  # outside the scalp: .01 to .02
    ),
    Limit(
        "brain-rim-bright",
        "bright_rim_share",
        "{value:.0%} of the outermost 6 mm of the brain mask is much brighter than brain; up to 2 %"
        " is usual. It may include scalp or fat.",
        review_above=0.06,  # good masks: 0 to .018; scalp within it in part: .24 to .43
        fail_above=0.40,  # with a bright scalp all around: .47 to .95
    ),
    Limit(
        "brain-lopsided",
        "left_right_dice",
        "The two sides of the brain mask agree by Dice {value:.2f} only; .93 or more is usual.",
        review_below=0.80,  # good masks: .95 to .97; a head turned by 20 degrees: below .85
    ),
    Limit(
        "brain-outside-second-answer",
        "inside_surface",
        "Only {value:.1%} of the brain mask lies inside a second, simpler outline of the brain;"
        " 99 % is usual.",
        review_below=0.98,  # good masks: .997 to 1.000
        fail_below=0.90,  # outside the scalp: .61 to .63
    ),
    Limit(
        "brain-smaller-than-second-answer",
        "share_of_surface",
        "The brain mask fills {value:.0%} of a second, simpler outline of the brain;"
        " 83 to 90 % is usual. Part of the brain may be missing.",
        review_below=0.78,  # good masks: .82 to .90; frontal poles cut off: .72
        fail_below=0.50,
    ),
    Limit(
        "brain-larger-than-second-answer",
        "share_of_surface",
        "The brain mask has {value:.0%} of the volume of a second, simpler outline of the brain;"
        " 83 to 90 % is usual. It may include scalp.",
        review_above=0.97,
        fail_above=1.15,  # outside the scalp: 1.6
    ),
)
"""In the order in which a reader is told. Figures: tests/pipeline/test_quality.py."""

UNIFORM_SPREAD = 0.10  # brains: .14 to .24; a ball of one fluid: .01, with 20 % noise .09
UNIFORM_DARKEST = 0.70  # brains: .10 to .49, for CSF is dark on FLAIR; a ball: .85 to 1.00


def _brain_flags(measures: BrainMeasures) -> Iterator[Flag]:
    for limit in BRAIN_LIMITS:
        flag = limit.flag(operator.attrgetter(limit.measure)(measures))
        if flag is not None:
            yield flag
    spread, darkest = measures.tissue_spread, measures.darkest_share
    if spread < UNIFORM_SPREAD and darkest > UNIFORM_DARKEST:
        yield Flag(
            "no-tissue-contrast",
            f"What was taken for a brain is nearly uniform: half of its voxels lie within"
            f" {spread:.0%} of its level (a brain: 14 % or more) and nothing in it is dark"
            f" (darkest {darkest:.0%} of its level). It may be a test object.",
            "fail",
        )


def _origin_flags(brain: BrainMask, manifest: Manifest) -> Iterator[Flag]:
    if brain.method == "supplied":
        yield Flag(
            "brain-mask-supplied",
            "The brain mask was supplied with the image and not made by flairnode.",
            "review",
        )
        return
    known = [(extractor.method, extractor.version) for extractor in manifest.extractors]
    if known and (brain.method, brain.version) not in known:
        names = ", ".join(f"{method} {version}".strip() for method, version in known)
        yield Flag(
            "other-brain-extractor",
            f"The brain was found by {brain.method} {brain.version}".rstrip()
            + f"; the model was trained with {names}.",
            "review",
        )


def _geometry_flags(grid: Grid, manifest: Manifest) -> Iterator[Flag]:
    validated = manifest.validated_geometry
    slice_mm, *pixel_mm = grid.spacing_mm
    if validated is None:
        if manifest.preprocessing == "nnunet":
            yield Flag(
                "geometry-not-validated",
                f"Slices are {slice_mm:.2f} mm apart, pixels"
                f" {' x '.join(f'{value:.2f}' for value in pixel_mm)} mm; nothing is known of the"
                " spacings that the model was tried on.",
                "review",
            )
        return
    checks = (
        ("slice-spacing-not-validated", "Slices are", [slice_mm], validated.slice_spacing_mm),
        ("pixel-spacing-not-validated", "Pixels are", pixel_mm, validated.pixel_spacing_mm),
    )
    for code, what, values, (low, high) in checks:
        # Spacing is derived from decimal strings and float32 affines: compare to 1 %.
        if min(values) < 0.99 * low or max(values) > 1.01 * high:
            figures = " x ".join(f"{value:.2f}" for value in values)
            yield Flag(
                code,
                f"{what} {figures} mm apart; the model was tried on {low:g} to {high:g} mm.",
                "review",
            )


def _lesion_flags(brain: BrainMask, lesions: LesionMap, findings: Findings) -> Iterator[Flag]:
    total_ml = findings.total_volume_ml
    share = total_ml / brain.volume_ml
    if share > LARGEST_LOAD:
        yield Flag(
            "lesion-load-implausible",
            f"Lesions make {total_ml:.0f} ml, {share:.0%} of the brain:"
            " probably not multiple sclerosis alone, or not lesions.",
            "review",
        )
    labelled = lesions.labels > 0
    if labelled.any():
        disagreement = float(lesions.disagreement[labelled].mean(dtype=np.float64))
        if disagreement > MOST_DISAGREEMENT:
            yield Flag(
                "models-disagree",
                f"The models of the ensemble differ by {disagreement:.2f} (standard deviation of"
                f" their probabilities) over the lesions; up to {MOST_DISAGREEMENT:.2f} is usual.",
                "review",
            )
    split = brain.mask & ~labelled & (lesions.disagreement > MOST_DISAGREEMENT)
    split_ml = float(np.count_nonzero(split)) * brain.grid.voxel_volume_ml
    if split_ml > max(SPLIT_ML, SPLIT_SHARE * total_ml):
        yield Flag(
            "models-split",
            f"{split_ml:.1f} ml were called lesion by some models of the ensemble and not by"
            " others, and are not reported as lesion.",
            "review",
        )


THICK_MM = 2.0
"""Sagittal or coronal slices farther apart are no 3-D acquisition: in the axial view, which the
network sees, pixels are as long as slices are apart."""
THICKER_THAN_WIDE = 1.5  # 1 mm slices of 0.5 mm pixels are 3-D; a little more is interpolation


def _input_flags(volume: Volume, view: AxialView) -> Iterator[Flag]:
    slice_mm, *pixel_mm = volume.grid.spacing_mm
    if (
        view.acquired != "axial"
        and slice_mm > THICK_MM
        and slice_mm > THICKER_THAN_WIDE * min(pixel_mm)
    ):
        yield Flag(
            "thick-slices-not-axial",
            f"The slices are {view.acquired}, {slice_mm:.1f} mm apart. The model looks at axial"
            f" slices, which were made of them with pixels {slice_mm:.1f} mm long:"
            " small lesions may be missed and edges are coarse.",
            "review",
        )
    if volume.lossy:
        yield Flag(
            "lossy-compression",
            "The images were compressed with loss before they came, or may have been:"
            " small or faint lesions may be altered.",
            "review",
        )
