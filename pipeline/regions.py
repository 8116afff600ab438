"""The region of every lesion: periventricular, juxtacortical, infratentorial or deep. Approximate.

The MNI152 template is laid over the brain by an affine map (`registration`), and what the image
shows itself is preferred: cerebrospinal fluid is dark on FLAIR, so the lateral ventricles are the
dark voxels where the template has them, and cortex is where the template has it *and* dark fluid or
the brain's edge is near. A lesion is named by what it touches in the plane of its slices, as they
were acquired: a voxel 6.5 mm high above a ventricle does not touch it. Slices of a 3-D acquisition
are as near to one another as pixels are, and count as their neighbours.

LST-AI (annotate.py) has the same regions but other rules: it dilates each lesion by a voxel in all
directions, and asks for the ventricle first. Here the space below the tentorium comes first, since
the fourth ventricle is no lateral one and the cerebellum has a cortex of its own.

What this cannot say: cortical and juxtacortical lesions are not told apart on FLAIR, and the gyri
are those of an average, often one off. Juxtacortical is the weakest of the four: against cortex
from T1 of two patients (a rough mask, trimmed by this same template) its sensitivity was .40 and
.76 and its PPV .50 and .72, over 23 and 83 lesions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import hypot

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from dicom.volume import Grid, Volume
from pipeline.atlas import Structure, mni_atlas
from pipeline.brain import BrainMask
from pipeline.findings import (
    DEEP_WHITE_MATTER,
    INFRATENTORIAL,
    JUXTACORTICAL,
    PERIVENTRICULAR,
    Findings,
    Lesion,
)
from pipeline.lesions import Labels
from pipeline.morphology import (
    Mask,
    SpacingMm,
    close_in_plane_mm,
    dilate_in_plane_mm,
    dilate_mm,
    fill_holes_in_plane,
)
from pipeline.orientation import axial_view
from pipeline.registration import (
    Image,
    Placement,
    RegistrationFailedError,
    place_template,
    resample_structures,
)
from pipeline.resample import coarser_in_plane, resample_in_plane

CONTACT_MM = 1.0
"""A lesion touches what is this near in its slice, and neighbouring pixels if they lie farther
apart: also over a corner, for so do the pixels of one lesion (`pipeline.lesions`)."""
THIN_MM = 1.5
"""Slices this near one another are those of a 3-D acquisition: what touches may lie on the next."""

WORK_PIXEL_MM = 1.0
"""In plane; the atlas is not finer."""
DARK = 0.66
"""Of the brain's median: half way from the fluid of a FLAIR (.2 to .5) to its white matter."""
WALL_MM = 8.0
"""So far from the template's lateral ventricles those of a patient may reach. It binds in the
widest of eight volumes (31 ml); at 16 mm that leaks to 51 ml, and a narrow one from 14 to 18 ml."""
OWN_SHARE = 0.15
"""Dark voxels that hang together are ventricle if this share of them is in the template's."""
LEAST_OWN = 0.25
"""Of the template's volume. With less dark fluid (fluid that is not suppressed, slices that hardly
reach the ventricles) the template's are taken as they are. Eight native volumes: .31 to 2.3; one of
them, averaged to 6.5 mm, fell below."""
WALL_DARK = 0.85
WALL_PIXEL_MM = 1.5
"""Voxels beside a ventricle that are partly fluid belong to its wall. Half way from fluid to a
bright lesion is .9: without them a gap of one or two pixels would part a lesion from the ventricle
it lies at, in thick slices above all."""
PLEXUS_MM = 2.0
"""Closing of the ventricles: choroid plexus is bright and lies inside them."""
CORTEX_MM = 4.0
"""From fluid or the brain's edge to the white matter: 2 to 4.5 mm."""
BESIDE_VENTRICLE_MM = 6.0
"""Dark voxels this near the template's ventricles are not taken for fluid of a sulcus."""


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """Structures of one brain, on the grid of its image."""

    lateral_ventricles: Mask
    cortex: Mask
    infratentorial: Mask
    grid: Grid
    placement: Placement
    own_ventricles: bool
    """Seen in the image. Otherwise they are the template's."""


@dataclass(frozen=True, slots=True)
class NotPlaced:
    """The template does not fit this brain: no region is named, for it would be a guess."""

    explanation: str


def locate_structures(volume: Volume, brain: BrainMask) -> Anatomy | NotPlaced:
    """Ventricles, cortex and the space below the tentorium in one brain.

    The same image gives the same structures, voxel for voxel, on one machine.

    Args:
        volume: FLAIR, with or without skull.
        brain: Mask on the grid of the volume.
    """
    try:
        placement = place_template(volume, brain)
    except RegistrationFailedError as error:
        return NotPlaced(str(error))
    view = axial_view(volume.grid)
    pixels, spacing_mm = coarser_in_plane(
        view.apply(volume.voxels), view.grid.spacing_mm, WORK_PIXEL_MM
    )
    inside = _resized(view.apply(brain.mask), pixels.shape)
    template = _template(placement, view.grid, pixels.shape)
    level = float(np.median(pixels[inside]))
    dark: Mask = pixels < DARK * level
    ventricles = _own_ventricles(dark & inside, template, spacing_mm)
    expected = template == Structure.LATERAL_VENTRICLE
    own = np.count_nonzero(ventricles) >= LEAST_OWN * np.count_nonzero(expected)
    if own:
        partly = pixels < WALL_DARK * level
        ventricles |= partly & dilate_in_plane_mm(ventricles, spacing_mm, WALL_PIXEL_MM)
        ventricles = inside & fill_holes_in_plane(
            close_in_plane_mm(ventricles, spacing_mm, PLEXUS_MM)
        )
    else:
        ventricles = expected
    cortex = _cortex(dark & ~ventricles, inside, template, spacing_mm)
    below = (template == Structure.INFRATENTORIAL) | (template == Structure.FOURTH_VENTRICLE)
    lateral, ribbon, infratentorial = (
        view.invert(_resized(mask, view.grid.shape)) for mask in (ventricles, cortex, below)
    )
    return Anatomy(lateral, ribbon, infratentorial, volume.grid, placement, bool(own))


def name_regions(
    findings: Findings, labels: Labels, anatomy: Anatomy | NotPlaced | None
) -> Findings:
    """Findings with the region of every lesion, and its distances in the plane.

    In this order: *infratentorial*, most of it lies below the tentorium; *periventricular*, it
    touches a lateral ventricle; *juxtacortical*, it touches the cerebral cortex or lies in it;
    *deep-white-matter*, none of these (deep grey matter, too). Without an anatomy the region stays
    *not-assessed*.

    Args:
        findings: As measured.
        labels: The lesions they were measured on.
        anatomy: On the same grid.
    """
    if not isinstance(anatomy, Anatomy):
        return findings
    boxes = ndimage.find_objects(labels)
    to_ventricle = _Nearest(anatomy.lateral_ventricles, anatomy.grid.spacing_mm)
    to_cortex = _Nearest(anatomy.cortex, anatomy.grid.spacing_mm)
    named = []
    for lesion in findings.lesions:
        box = boxes[lesion.label - 1]
        mask = labels[box] == lesion.label
        measured = replace(
            lesion,
            ventricle_mm=to_ventricle.distance_mm(mask, box),
            cortex_mm=to_cortex.distance_mm(mask, box),
        )
        below = float(anatomy.infratentorial[box][mask].mean())
        region = region_of(measured, below, anatomy.grid.spacing_mm)
        named.append(replace(measured, region=region))
    return replace(findings, lesions=tuple(named))


def region_of(lesion: Lesion, infratentorial_share: float, spacing_mm: SpacingMm) -> str:
    """The rule, on what was measured: see `name_regions`."""
    touching = contact_mm(spacing_mm) + 1e-6  # distances are roots, and not exact
    if infratentorial_share >= 0.5:
        return INFRATENTORIAL
    if lesion.ventricle_mm is not None and lesion.ventricle_mm <= touching:
        return PERIVENTRICULAR
    if lesion.cortex_mm is not None and lesion.cortex_mm <= touching:
        return JUXTACORTICAL
    return DEEP_WHITE_MATTER


def contact_mm(spacing_mm: SpacingMm) -> float:
    """The longest distance that is a contact, of pixel centres in slices as they were acquired."""
    between_slices_mm = spacing_mm[0] if spacing_mm[0] <= THIN_MM else 0.0
    return max(CONTACT_MM, hypot(*spacing_mm[1:]), between_slices_mm)


# The anatomy -------------------------------------------------------------------------------------


def _template(placement: Placement, grid: Grid, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The atlas on the view's field of view, with other pixels."""
    size = np.array(grid.shape) / shape
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((size - 1) / 2)  # borders meet, not centres
    affine[:3, :3] *= size
    return resample_structures(mni_atlas(), placement.to_mni, affine, shape)


def _own_ventricles(fluid: Mask, template: npt.NDArray[np.uint8], spacing_mm: SpacingMm) -> Mask:
    """Dark voxels of the image in and around the template's lateral ventricles."""
    expected = template == Structure.LATERAL_VENTRICLE
    elsewhere = np.isin(template, (Structure.FLUID, Structure.THIRD_VENTRICLE))
    room = dilate_mm(expected, spacing_mm, WALL_MM) & ~elsewhere
    parts, count = ndimage.label(fluid & room)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    shared = np.bincount(parts[expected], minlength=count + 1)
    kept = (shared > 0) & (shared >= OWN_SHARE * sizes)
    kept[0] = False
    found: Mask = kept[parts]
    return found


def _cortex(
    dark: Mask, inside: Mask, template: npt.NDArray[np.uint8], spacing_mm: SpacingMm
) -> Mask:
    """The template's cortex, as far as the image has fluid or the edge of the brain beside it."""
    beside = dilate_in_plane_mm(
        template == Structure.LATERAL_VENTRICLE, spacing_mm, BESIDE_VENTRICLE_MM
    )
    outer = (dark & ~beside) | ~inside
    near = dilate_in_plane_mm(outer, spacing_mm, CORTEX_MM)
    ribbon: Mask = near & inside & (template == Structure.CORTEX)
    return ribbon


def _resized(mask: Mask, shape: tuple[int, ...]) -> Mask:
    if mask.shape == shape:
        return mask
    share: Image = resample_in_plane(mask.astype(np.float32), shape)
    resized: Mask = share > 0.5
    return resized


# Distances ---------------------------------------------------------------------------------------


class _Nearest:
    """Distances to a structure in the slice, and on the next ones where slices are thin."""

    def __init__(self, mask: Mask, spacing_mm: SpacingMm) -> None:
        self._mask = mask
        self._slice_mm = spacing_mm[0]
        self._steps = (-1, 0, 1) if spacing_mm[0] <= THIN_MM else (0,)
        self._pixel_mm = np.asarray(spacing_mm[1:])
        self._trees: dict[int, cKDTree | None] = {}

    def distance_mm(self, lesion: Mask, box: tuple[slice, ...]) -> float | None:
        """Least distance of voxel centres, 0 where both overlap; None: not on these slices."""
        corner = np.array((box[1].start, box[2].start))
        found = []
        for offset, area in enumerate(lesion):
            points = (np.argwhere(area) + corner) * self._pixel_mm
            for step in self._steps:
                tree = self._tree(box[0].start + offset + step)
                if tree is not None and len(points):
                    nearest_mm = float(np.min(tree.query(points)[0]))
                    found.append(hypot(nearest_mm, step * self._slice_mm))
        return min(found, default=None)

    def _tree(self, index: int) -> cKDTree | None:
        if index not in self._trees:
            known = 0 <= index < len(self._mask)
            points = np.argwhere(self._mask[index]) if known else np.empty((0, 2))
            self._trees[index] = cKDTree(points * self._pixel_mm) if len(points) else None
        return self._trees[index]
