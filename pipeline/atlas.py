"""Brain structures in MNI space, derived from the MNI152 maps that ship inside nilearn.

The maps (ICBM 152 2009a symmetric: T1, grey and white matter fractions, 1 mm) name no structure.
What they leave over of the brain is fluid, and fluid, depth and a few stated MNI coordinates are
enough for those that MS lesions are told apart by: lateral ventricles, third and fourth ventricle,
cerebral cortex, and the space below the tentorium.

An average of 152 people has smoother gyri than any one of them, and ventricles of a middling size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.segmentation import watershed

from pipeline.morphology import Mask

Floats = npt.NDArray[np.float32]
Point = npt.NDArray[np.float64]
Place = tuple[float, float, float]
"""MNI coordinates as the literature prints them: mm to the right, the front and the top."""

_ICBM = "mni_icbm152_{map}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True, slots=True, eq=False)
class TemplateMaps:
    """The maps as they are stored, (slice, row, column) to superior, posterior, left; 1 mm."""

    t1: npt.NDArray[np.uint8]
    grey: npt.NDArray[np.uint8]
    """Fraction of grey matter, 255 is all."""
    white: npt.NDArray[np.uint8]
    origin: Point
    """Index of the MNI origin, the anterior commissure."""


def read_template_maps() -> TemplateMaps:
    """The maps from the files inside nilearn.

    Raises:
        FileNotFoundError: nilearn is installed without its MNI152 maps, or not at all.
    """
    # Read by path: importing nilearn takes longer than everything else here.
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise FileNotFoundError("nilearn is not installed: it holds the MNI152 maps")
    folder = Path(package.origin).parent / "datasets" / "data"
    images = {
        name: nibabel.Nifti1Image.from_filename(folder / _ICBM.format(map=name))
        for name in ("t1", "gm", "wm")
    }
    # NIfTI indices run to the right, front and top (RAS): turned to LPS.
    t1, grey, white = (
        np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1] for image in images.values()
    )
    ras = -np.asarray(images["t1"].affine)[:3, 3]
    size = np.array(t1.shape)
    origin = np.array((ras[2], size[1] - 1 - ras[1], size[2] - 1 - ras[0]))
    return TemplateMaps(t1, grey, white, origin)


class Structure(IntEnum):
    """What a voxel of the atlas belongs to."""

    OUTSIDE = 0
    CEREBRUM = 1
    """White matter and deep nuclei: what is left."""
    LATERAL_VENTRICLE = 2
    CORTEX = 3
    """Of the cerebrum: neither deep grey nuclei nor the cerebellum."""
    FLUID = 4
    """Sulci and cisterns above the tentorium."""
    THIRD_VENTRICLE = 5
    INFRATENTORIAL = 6
    """Brain stem and cerebellum, with the fluid between them."""
    FOURTH_VENTRICLE = 7


@dataclass(frozen=True, slots=True, eq=False)
class Atlas:
    """Structures in MNI space, (slice, row, column) to superior, posterior, left; 1 mm."""

    structures: npt.NDArray[np.uint8]
    """`Structure` of every voxel."""
    image: Floats
    """White matter 1, grey matter .72, fluid .2, outside 0: what a T1 looks like, without noise."""
    affine: npt.NDArray[np.float64]
    """(4, 4), maps indices to MNI coordinates in LPS: mm to the left, the back and the top."""

    @property
    def brain(self) -> Mask:
        """Everything inside the skull-stripped template."""
        inside: Mask = self.structures > 0
        return inside


@cache
def mni_atlas() -> Atlas:
    """The atlas; made once per process, in about two seconds.

    Raises:
        FileNotFoundError: nilearn is installed without its MNI152 maps.
        ValueError: The maps are others than those these rules are made for.
    """
    maps = read_template_maps()
    (box,) = ndimage.find_objects((maps.t1 > 0).astype(np.uint8))
    t1, grey8, white8 = (np.pad(one[box], _MARGIN) for one in (maps.t1, maps.grey, maps.white))
    origin = maps.origin - [side.start - _MARGIN for side in box]
    outside, _ = ndimage.label(t1 == 0)
    brain: Mask = np.asarray(outside != outside[0, 0, 0], bool)
    full = np.float32(255)
    white, grey = (np.where(brain, one, 0).astype(np.float32) / full for one in (white8, grey8))
    fluid = np.where(brain, np.clip(1 - white - grey, 0, 1), 0).astype(np.float32)
    space = _Space.of(brain.shape, origin)
    below = _infratentorial(grey, fluid, brain, space)
    lateral, third, fourth = _ventricles(fluid, below, space)
    outer = (fluid > _FLUID) & ~(lateral | third | fourth)
    structures = brain.astype(np.uint8)
    for structure, mask in (
        (Structure.FLUID, outer),
        (Structure.CORTEX, _cortex(grey, brain & ~outer, space)),
        (Structure.INFRATENTORIAL, below),
        (Structure.LATERAL_VENTRICLE, lateral),
        (Structure.THIRD_VENTRICLE, third),
        (Structure.FOURTH_VENTRICLE, fourth),
    ):
        structures[mask] = structure
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1]
    affine[:3, 3] = -origin[::-1]
    return Atlas(structures, white + 0.72 * grey + 0.2 * fluid, affine)


_MARGIN = 4  # voxels around the brain, so that it does not touch the border


@dataclass(frozen=True, slots=True, eq=False)
class _Space:
    """MNI coordinates of every voxel, as open grids; left and right are alike in all rules."""

    aside: npt.NDArray[np.float64]
    """|x|: from the midline."""
    front: npt.NDArray[np.float64]
    top: npt.NDArray[np.float64]
    origin: Point

    @classmethod
    def of(cls, shape: Sequence[int], origin: Point) -> _Space:
        up, back, left = np.ogrid[tuple(slice(length) for length in shape)]
        return cls(np.abs(left - origin[2]), origin[1] - back, up - origin[0], origin)

    def ball(self, place: Place, radius_mm: float) -> Mask:
        """Around a place and around its mirror image."""
        x, y, z = place
        distance = (self.aside - x) ** 2 + (self.front - y) ** 2 + (self.top - z) ** 2
        return np.asarray(distance <= radius_mm**2)

    def index(self, place: Place) -> tuple[int, int, int]:
        x, y, z = place
        at = np.rint(self.origin + np.array((z, -y, -x))).astype(int)
        return int(at[0]), int(at[1]), int(at[2])


# Below the tentorium -----------------------------------------------------------------------------

_BELOW: tuple[tuple[Place, float], ...] = (
    ((22, -62, -38), 8), ((40, -62, -36), 5),  # cerebellar hemispheres
    ((0, -62, -24), 4), ((8, -52, -14), 3),  # vermis
    ((6, -23, -32), 7), ((5, -23, -24), 5), ((13, -30, -34), 5),  # pons
    ((10, -17, -14), 3), ((6, -26, -10), 4),  # midbrain
    ((4, -32, -44), 4), ((0, -38, -52), 3),  # medulla
)  # fmt: skip
"""Centre (right side; the left is its mirror image) and radius in mm of what surely lies below."""

_ABOVE: tuple[tuple[Place, float], ...] = (
    ((25, -72, 4), 5), ((14, -88, 0), 4), ((30, -84, -4), 4), ((12, -72, 0), 2),  # occipital
    ((20, -60, -4), 2), ((36, -62, -12), 2), ((50, -60, -8), 2), ((42, -42, -12), 3),  # lingual,
    # fusiform and inferior temporal gyri: what lies on the tentorium
    ((45, -22, -18), 4), ((40, 0, -34), 4), ((24, -40, -6), 2),  # temporal
    ((26, -24, -22), 2), ((26, -12, -26), 3),  # parahippocampal
    ((14, -18, 8), 4), ((22, 40, 0), 6),  # thalamus, frontal
)  # fmt: skip

_HIGHEST_BELOW = 20.0  # mm: the tentorium ends well below (its notch lies at about z = 5)


def _infratentorial(grey: Floats, fluid: Floats, brain: Mask, space: _Space) -> Mask:
    """Cerebellum and brain stem: where a flood from `_BELOW` meets one from `_ABOVE`.

    The floods meet on the ridge of fluid and grey matter between the cerebellum and the lobes above
    it: the tentorium. Nothing parts midbrain and thalamus but a plane, through the posterior
    commissure (y -27, z -2) and just below the mamillary bodies (y -10, z -14).
    """
    low = slice(0, space.index((0, 0, _HIGHEST_BELOW))[0])
    ridge = ndimage.gaussian_filter(fluid[low] + 0.5 * grey[low], 0.7)
    seeds = np.zeros(brain.shape, np.int32)
    for value, balls in ((2, _BELOW), (1, _ABOVE)):
        for place, radius_mm in balls:
            seeds[space.ball(place, radius_mm)] = value
    found = np.zeros(brain.shape, bool)
    flooded = watershed(ridge, seeds[low], mask=brain[low])  # type: ignore[no-untyped-call]
    found[low] = flooded == 2
    below_plane = space.top < -2 - 0.7 * (space.front + 27)
    # The pons is half grey in these maps, and the flood stops in it: cisterns bound it all around.
    stem = (space.aside < 18) & (space.front < -10) & (space.front > -45) & (space.top < -5)
    return np.asarray((found | (stem & brain)) & below_plane)


# Ventricles --------------------------------------------------------------------------------------

_FLUID = 0.4  # of a voxel: the wall, as the average of the maps puts it


def _ventricles(fluid: Floats, infratentorial: Mask, space: _Space) -> tuple[Mask, Mask, Mask]:
    """Lateral (bodies, horns, trigones), third and fourth: fluid in one piece in its room."""
    wet = fluid > _FLUID
    aside, front, top = space.aside, space.front, space.top
    # The third ventricle, and the cisterns behind it, are on the midline below the fornix.
    midline = ((aside <= 2) & (top < 9)) | ((aside <= 14) & (front < -26) & (top < 12))
    room = (aside < 42) & (front > -70) & (front < 45) & (top > -24) & (top < 40)
    lateral = _connected(
        wet & room & ~midline & ~infratentorial, [(12, -20, 24), (-12, -20, 24)], space
    )
    third = _connected(
        wet & ~lateral & ((aside <= 5) & (front > -28) & (front < 4) & (top > -14) & (top < 9)),
        [(0, -6, -4)],
        space,
    )
    fourth = _connected(
        wet
        & infratentorial
        & ((aside <= 10) & (front > -56) & (front < -36) & (top > -50) & (top < -22)),
        [(0, -44, -30)],
        space,
    )
    return lateral, third, fourth


def _connected(mask: Mask, places: Iterable[Place], space: _Space) -> Mask:
    labels, _ = ndimage.label(mask)
    wanted = [int(labels[space.index(place)]) for place in places]
    if 0 in wanted:
        raise ValueError("the MNI152 maps are not those of ICBM 2009a: no fluid where it must be")
    return np.isin(labels, wanted)


# Cortex ------------------------------------------------------------------------------------------

_CORTEX_MM = 5.0
"""From the fluid of the sulci to the white matter: 2 to 4.5 mm in a person, and the maps blur."""


def _cortex(grey: Floats, tissue: Mask, space: _Space) -> Mask:
    """Grey matter near outer fluid. Nuclei lie deeper or, as the thalamus, in the middle."""
    near = ndimage.distance_transform_edt(tissue) <= _CORTEX_MM
    nuclei = (space.aside < 24) & (space.front > -38) & (space.front < 25)
    nuclei = nuclei & (space.top > -8) & (space.top < 26)
    found: Mask = (grey > 0.5) & near & ~nuclei
    return found
