"""Lesions of one patient inserted into another: semi-synthetic cases, for training alone.

A real mask of a donor is laid on the white matter of a host by where it lies in the brain, and
painted with the contrast and the edges of real lesions. What it is not: a lesion. Its edge is by
construction its label; dirty white matter, disagreement of readers and another scanner are missing.
So such a case has `semi-synthetic` in its name and in every table, is trained on only where host
and donor both are, and nobody is judged on it (`training.dataset.refuse_leaks`).

Figures: contrast and edges of lesions of two real patients (the project's data_facts.md).
`training.sources` paints alike into the heads of the starter, whose hosts have a T1 or a template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom.errors import StudyError
from dicom.volume import Volume
from pipeline.brain import BrainMask
from pipeline.morphology import (
    Mask,
    SpacingMm,
    close_in_plane_mm,
    depth_in_plane_mm,
    dilate_in_plane_mm,
    dilate_mm,
    erode_in_plane_mm,
)
from pipeline.orientation import axial_view
from training.prepared import PreparedCase
from training.splits import TEST, PatientInTwoPartsError

Array = npt.NDArray[np.float32]

CONTRAST = (0.22, 0.09, 0.10)
"""Of white matter: at 1 mm3, for ten times the volume, sd."""
FAINTEST, BRIGHTEST = 0.08, 0.8
BRIGHTEST_INSERTED = 0.45
"""Nine of ten real lesions stand out by no more; a confluent one of 40 ml would get 0.63."""
TEXTURE_SD = 0.09
TEXTURE_MM = 0.8
EDGE_MM = 0.6  # in the plane; a slice's own thickness blurs along its normal

CORE_MM = 12.0  # as pipeline.preprocess: deep brain, mostly white matter
DEEP_MM = 4.0  # from the edge of the brain: below the cortex, mostly
DARKEST_WHITE, BRIGHTEST_WHITE = 0.82, 1.16
"""Of the median of deep brain. Grey matter has 0.98 to 1.20 of white: some of it looks alike."""
DARKEST_NEAR = 0.70  # fluid has 0.27 to 0.49
FURROW = 0.80
"""Darker than this and thin is a furrow, and what lies within `CORTEX_MM` of it is cortex."""
FURROW_MM, CORTEX_MM = 2.5, 3.0
SMALLEST_FURROW_MM2 = 4.0
SMOOTH_MM = 1.0
RIM_MM = 1.0
"""Lesions may reach this far over white matter: to the wall of a ventricle."""
AWAY_FROM_LESIONS_MM = 2.0
KEPT_SHARE = 0.5
"""Of a lesion's voxels that fall on insertable tissue; with fewer it is left out, not mutilated."""
SMALLEST_MM3, SMALLEST_MM2 = 5.0, 4.0
"""Of what is inserted, as a whole and in one slice: less is a splinter of a lesion cut in two."""

DONORS_PER_HOST = 3


class NothingInsertedError(StudyError):
    """No lesion of the donor falls on lesion-free white matter of the host."""

    reason = "nothing-inserted"


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A volume with its lesions and its brain, all on one grid."""

    volume: Volume
    lesions: Mask
    brain: BrainMask


@dataclass(frozen=True, slots=True)
class Pair:
    """Lesions of a donor for a host: two patients of the training part."""

    host: PreparedCase
    donor: PreparedCase

    @property
    def name(self) -> str:
        """Of the case: it says what it is."""
        return f"semi-synthetic-{self.host.name}-with-{self.donor.name}"


def plan_pairs(cases: Sequence[PreparedCase], seed: int) -> list[Pair]:
    """Who lends lesions to whom.

    Hosts are the cases with no more lesion volume than the median: in others too little white
    matter is free. Each gets `DONORS_PER_HOST` donors, drawn among the other patients with lesions.

    Raises:
        PatientInTwoPartsError: A test patient among the cases.
    """
    tested = sorted({case.patient for case in cases if case.part == TEST})
    if tested:
        raise PatientInTwoPartsError(f"lesions of or for test patients: {', '.join(tested)}")
    if not cases:
        return []
    limit = float(np.median([case.lesion_ml for case in cases]))
    pairs = []
    for host in sorted((one for one in cases if one.lesion_ml <= limit), key=_name):
        others = [one for one in cases if one.patient != host.patient and one.lesion_ml > 0]
        drawn = sorted(others, key=lambda one: _draw(seed, host.name, one.name))
        pairs += [Pair(host, donor) for donor in drawn[:DONORS_PER_HOST]]
    return pairs


def insert_case(host: Labelled, donor: Labelled, key: str) -> Labelled:
    """The host with its own lesions and what of the donor's falls on free white matter.

    Args:
        host: Keeps its grid and its brain.
        donor: Only its mask and where it lies in the brain are used.
        key: The same key, the same lesions.

    Raises:
        NothingInsertedError: Nothing does.
    """
    digest = hashlib.sha256(key.encode()).digest()
    rng = np.random.default_rng(list(digest))
    view = axial_view(host.volume.grid)
    spacing_mm = view.grid.spacing_mm
    voxels = view.apply(host.volume.voxels)
    brain, own = view.apply(host.brain.mask), view.apply(host.lesions)
    free, white_matter = insertable(voxels, brain, own, spacing_mm)
    carried = carry(donor, host, mirrored=bool(rng.random() < 0.5))
    added = _worth_keeping(carried, free, spacing_mm)
    if not added.any():
        raise NothingInsertedError("no lesion of the donor falls on free white matter of the host")
    painted = paint_lesions(voxels, added, spacing_mm, white_matter, rng, BRIGHTEST_INSERTED)
    return Labelled(
        Volume(view.invert(painted), host.volume.grid), view.invert(own | added), host.brain
    )


def paint_lesions(
    image: Array,
    lesions: Mask,
    spacing_mm: SpacingMm,
    white_matter: float,
    rng: np.random.Generator,
    brightest: float = BRIGHTEST,
) -> Array:
    """The image with lesions in it, each with its own contrast.

    Amplitude ~ N(0.22 + 0.09 log10(mm3), 0.10) of white matter, at most `brightest`; texture sd
    9 %, edges of 0.6 mm.
    """
    labels, count = ndimage.label(lesions, np.ones((3, 3, 3)))
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(spacing_mm))
    start, slope, spread = CONTRAST
    amplitudes = rng.normal(start + slope * np.log10(np.maximum(volumes, 1)), spread)
    amplitudes = np.clip(amplitudes, FAINTEST, brightest)
    amplitudes[0] = 0.0
    noise = rng.standard_normal(labels.shape, dtype=np.float32)
    texture = ndimage.gaussian_filter(noise, [TEXTURE_MM / step for step in spacing_mm])
    texture *= TEXTURE_SD / texture.std()
    added = amplitudes[labels].astype(np.float32) + np.where(lesions, texture, 0.0)
    edged = ndimage.gaussian_filter(added, [EDGE_MM / step for step in spacing_mm])
    out: Array = (image + white_matter * edged).astype(np.float32)
    return out


def insertable(
    voxels: Array, brain: Mask, lesions: Mask, spacing_mm: SpacingMm
) -> tuple[Mask, float]:
    """Where lesions may go, in the axial view, and the intensity of white matter there.

    White matter and 1 mm around it, 4 mm inside the brain, 3 mm away from furrows and 2 mm from the
    host's own lesions. Told from the FLAIR alone: deep grey matter that is as bright as white, and
    cortex whose furrow is too narrow to be seen, are taken for white.
    """
    core = erode_in_plane_mm(brain, spacing_mm, CORE_MM) & ~lesions
    if not core.any():
        raise NothingInsertedError("no deep brain in the host")
    level = _level_of_slices(voxels, core)
    blurred = ndimage.gaussian_filter(voxels, (0.0, *(SMOOTH_MM / step for step in spacing_mm[1:])))
    relative = blurred / level[:, None, None]
    deep = depth_in_plane_mm(brain, spacing_mm) > DEEP_MM
    deep &= ~dilate_in_plane_mm(
        _furrows(brain & (relative < FURROW), spacing_mm), spacing_mm, CORTEX_MM
    )
    white = deep & (relative > DARKEST_WHITE) & (relative < BRIGHTEST_WHITE)
    white = dilate_in_plane_mm(erode_in_plane_mm(white, spacing_mm, 1.0), spacing_mm, 1.0)
    near = dilate_in_plane_mm(close_in_plane_mm(white, spacing_mm, 2.0), spacing_mm, RIM_MM)
    own = dilate_mm(lesions, spacing_mm, AWAY_FROM_LESIONS_MM)
    free: Mask = near & deep & (relative > DARKEST_NEAR) & ~own
    white_matter = float(np.median(voxels[white & core])) if (white & core).any() else 0.0
    return free, white_matter


def carry(donor: Labelled, host: Labelled, *, mirrored: bool = False) -> Mask:
    """The donor's lesions at the same place of the host's brain, in the host's axial view.

    Same place: as many standard deviations of the brain from its centre, along each axis. Slices
    are not interpolated: a slice of the host gets the donor's nearest one.
    """
    there, here = _frame(donor.brain), _frame(host.brain)
    lesions = axial_view(donor.volume.grid).apply(donor.lesions)
    shape = axial_view(host.volume.grid).grid.shape
    scale = there.spread / here.spread
    offset = there.centre - here.centre * scale
    at = np.rint(offset[0] + scale[0] * np.arange(shape[0])).astype(int)
    direction = -1.0 if mirrored else 1.0
    matrix = np.array([scale[1], scale[2] * direction])
    start = np.array([offset[1], there.centre[2] - direction * here.centre[2] * scale[2]])
    out = np.zeros(shape, np.bool_)
    for index, source in enumerate(at):
        if 0 <= source < len(lesions) and lesions[source].any():
            section = lesions[source].astype(np.float32)
            out[index] = (
                ndimage.affine_transform(section, matrix, start, output_shape=shape[1:], order=1)
                > 0.5
            )
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """Centre and extent of a brain in voxels of its axial view."""

    centre: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]


def _frame(brain: BrainMask) -> _Frame:
    inside = np.argwhere(axial_view(brain.grid).apply(brain.mask))
    return _Frame(inside.mean(axis=0), np.maximum(inside.std(axis=0), 1e-6))


def _worth_keeping(carried: Mask, free: Mask, spacing_mm: SpacingMm) -> Mask:
    """Of each lesion what lies on free tissue, if that is most of it and enough."""
    labels, count = ndimage.label(carried, np.ones((3, 3, 3)))
    whole = np.bincount(labels.ravel(), minlength=count + 1)
    left = np.bincount(labels[free].ravel(), minlength=count + 1)
    enough = (left >= KEPT_SHARE * whole) & (left * float(np.prod(spacing_mm)) >= SMALLEST_MM3)
    enough[0] = False
    kept: Mask = enough[labels] & free
    for index, section in enumerate(kept):
        kept[index] = _of_area(section, spacing_mm, SMALLEST_MM2)
    return kept


def _furrows(dark: Mask, spacing_mm: SpacingMm) -> Mask:
    """What is dark and thin: a ventricle is not, and lesions may reach it."""
    wide = dilate_in_plane_mm(
        erode_in_plane_mm(dark, spacing_mm, FURROW_MM), spacing_mm, FURROW_MM + 1.0
    )
    thin = dark & ~wide
    for index, section in enumerate(thin):
        thin[index] = _of_area(section, spacing_mm, SMALLEST_FURROW_MM2)
    return thin


def _of_area(section: Mask, spacing_mm: SpacingMm, smallest_mm2: float) -> Mask:
    """The components of a slice that are not smaller."""
    labels, _ = ndimage.label(section, np.ones((3, 3)))
    large = np.bincount(labels.ravel()) * spacing_mm[1] * spacing_mm[2] >= smallest_mm2
    large[0] = False
    out: Mask = large[labels]
    return out


def _level_of_slices(voxels: Array, core: Mask) -> Array:
    """Median of deep brain, slice by slice where there is enough of it: coils lose signal."""
    whole = float(np.median(voxels[core]))
    if whole <= 0:
        raise NothingInsertedError("the deep brain of the host has no signal")
    level = np.full(len(voxels), whole, np.float32)
    enough = 0.25 * max(int(np.count_nonzero(section)) for section in core)
    for index, section in enumerate(core):
        if np.count_nonzero(section) >= enough:
            level[index] = np.median(voxels[index][section])
    return np.clip(level, 0.6 * whole, 1.8 * whole)


def _draw(seed: int, host: str, donor: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{host}\0{donor}".encode()).digest()


def _name(case: PreparedCase) -> str:
    return case.name
