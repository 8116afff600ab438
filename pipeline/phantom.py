"""A synthetic head with MS lesions whose truth is known: for the demo, the self-test and tests.

The anatomy is the MNI152 template (ICBM 152 2009a symmetric: T1, grey and white matter), read from
the files that ship inside nilearn, shrunk to a typical size and dressed with CSF, skull and scalp.
Tissue levels are multiples of white matter, as measured on two real MS patients (Lesjak et al.).
A phantom shows that the plumbing is right: voxels in their place, numbers that add up. It says
nothing about how well a model finds the lesions of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, NamedTuple
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dicom.volume import Affine, Grid, Volume
from pipeline.atlas import read_template_maps

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Point = npt.NDArray[np.float64]

TEMPLATE_SHRINK = 0.93
"""The template is an average of unequal heads, and large: 1890 ml filled, 1520 ml at this scale."""

WHITE_MATTER_LEVEL = 520.0
"""Stored value of white matter: the brightest tissue stays inside 12 bits."""

PLANES_PER_SLAB = 5
"""A thick slice is the mean of this many planes: 5.5 mm in steps of about the template's voxel."""

_ROOM = ((24, 18), (18, 18), (18, 18))  # template voxels around the brain, for scalp and neck
_MIDDLE_OF_BRAIN = (7.0, 18.0, 0.0)  # from the MNI origin (anterior commissure), 1 mm
_UID_NAMESPACE = UUID("5f1a4d1e-8b0c-5d63-9a55-0c7e2d7f4a10")  # of phantoms: never that of results

LesionKind = Literal["periventricular", "deep", "juxtacortical", "confluent"]


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How the scanner cuts the head."""

    slices: int = 24
    rows: int = 256
    columns: int = 224
    """Not square, so that an exchange of rows and columns shows."""
    row_mm: float = 0.9
    column_mm: float = 0.9
    thickness_mm: float = 5.5
    gap_mm: float = 1.0
    angles_deg: tuple[float, float, float] = (-7.0, 1.5, 2.0)
    """Turns of the stack about the patient's left, posterior and superior axes: slightly oblique,
    as a technologist sets it along the skull base."""
    first: Literal["inferior", "superior"] = "inferior"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of voxel centres along (slice, row, column)."""
        return self.thickness_mm + self.gap_mm, self.row_mm, self.column_mm


@dataclass(frozen=True, slots=True)
class PlantedLesion:
    """One lesion of the truth."""

    number: int
    kind: LesionKind
    centre_lps_mm: tuple[float, float, float]
    long_axis_mm: float
    """Of the largest ovoid it is made of."""
    volume_ml: float
    """On the fine head, before it is cut into slices."""
    contrast: float
    """Above its surroundings, in multiples of white matter."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The fine head that every series of the study is cut from."""

    white: Floats
    grey: Floats
    fluid: Floats
    """Fractions inside the brain, from 0 to 1; all three are 0 outside it."""
    brain: Mask
    surroundings: npt.NDArray[np.uint8]
    """0 air and brain, or an index into `SURROUNDINGS`."""
    lesion: Floats
    """Lesion contrast in multiples of white matter, edges softened."""
    truth: Mask
    texture: Floats
    """Smooth deviation, mean 0, standard deviation 1."""
    affine: Affine
    """(4, 4), maps (slice, row, column) indices of these maps to LPS millimetres."""


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A synthetic FLAIR volume with its truth, all on one grid."""

    volume: Volume
    brain: Mask
    lesions: Mask
    """Voxels of which more than half is lesion."""
    planted: tuple[PlantedLesion, ...]
    head: Head = field(repr=False)
    acquisition: Acquisition
    seed: int

    @property
    def brain_ml(self) -> float:
        """Volume of the true brain on the acquired grid."""
        return float(self.brain.sum()) * self.volume.grid.voxel_volume_ml

    @property
    def lesions_ml(self) -> float:
        """Volume of the true lesions on the acquired grid."""
        return float(self.lesions.sum()) * self.volume.grid.voxel_volume_ml


class Contrast(NamedTuple):
    """Signal of each tissue in one sequence, in multiples of white matter on FLAIR."""

    white: float
    grey: float
    fluid: float
    around: tuple[float, float, float, float, float]
    """Of `SURROUNDINGS`."""
    lesion: float
    """What a lesion adds, as a multiple of what it adds on FLAIR."""


SURROUNDINGS = ("outer fluid", "skull", "scalp", "muscle", "air cells")
FLAIR = Contrast(1.00, 1.12, 0.33, (0.33, 0.13, 1.10, 0.52, 0.05), 1.0)
T1 = Contrast(1.10, 0.78, 0.30, (0.30, 0.15, 1.60, 0.60, 0.05), -0.5)
T2 = Contrast(0.75, 1.00, 2.10, (2.10, 0.12, 1.20, 0.40, 0.05), 1.4)
ADC = Contrast(0.75, 0.85, 2.90, (2.90, 0.0, 0.0, 0.0, 0.0), 0.8)


def synthetic_head(
    seed: int = 0, acquisition: Acquisition = Acquisition(), *, lesions: bool = True
) -> Phantom:
    """A FLAIR volume of a synthetic head with MS-like lesions, and the truth.

    The same arguments give the same voxels. `lesions=False` gives the same head without any.

    Raises:
        FileNotFoundError: nilearn is installed without its MNI152 maps.
    """
    rng = np.random.default_rng(seed)
    head, planted = _build_head(rng, with_lesions=lesions)
    grid = _scan_grid(acquisition, uid_of("frame-of-reference", seed, repr(acquisition)))
    brain = acquire(head.brain, head, grid, acquisition.thickness_mm) > 0.5
    truth = acquire(head.truth, head, grid, acquisition.thickness_mm) > 0.5
    voxels = scan(head, FLAIR, grid, acquisition.thickness_mm, rng)
    uids = tuple(instance_uid(voxels, seed, "flair", index) for index in range(grid.shape[0]))
    return Phantom(
        volume=Volume(voxels, grid, uids),
        brain=brain,
        lesions=truth,
        planted=planted,
        head=head,
        acquisition=acquisition,
        seed=seed,
    )


# The head ----------------------------------------------------------------------------------------


def _build_head(
    rng: np.random.Generator, *, with_lesions: bool
) -> tuple[Head, tuple[PlantedLesion, ...]]:
    white, grey, brain, origin = _template()
    affine = _head_affine(origin, rng)
    # Tissue fractions of an average over 152 people are blurred; squaring them again gives a
    # cortex as crisp as one person's.
    fluid = np.where(brain, np.clip(1 - white - grey, 0, 1), 0).astype(np.float32)
    total = white**2 + grey**2 + fluid**2 + np.float32(1e-6)
    white, grey, fluid = (np.where(brain, m**2 / total, 0) for m in (white, grey, fluid))
    texture = _smooth_noise(brain.shape, 2.5, rng)
    surroundings = _dress(brain, texture)
    # Turned about, one noise field serves as several that have nothing to do with each other.
    planted, contrast, truth = _plant(
        white, _Sites.of(white, fluid, brain, origin, affine), texture[::-1, ::-1], affine, rng
    )
    if not with_lesions:
        planted, contrast, truth = (), np.zeros_like(white), np.zeros_like(brain)
    return (
        Head(white, grey, fluid, brain, surroundings, contrast, truth, texture, affine),
        planted,
    )


def _template() -> tuple[Floats, Floats, Mask, Point]:
    """White and grey matter fractions, the filled brain, and the index of the MNI origin.

    (slice, row, column) run to superior, posterior, left; 1 mm; cut to the brain and `_ROOM`.
    """
    maps = read_template_maps()
    stored = {"t1": maps.t1, "wm": maps.white, "gm": maps.grey}
    (box,) = ndimage.find_objects((maps.t1 > 0).astype(np.uint8))

    def cut(name: str) -> npt.NDArray[np.uint8]:
        return np.pad(stored[name][box], _ROOM)

    # Filled: everything that cannot be reached from the corner (seven times faster than
    # binary_fill_holes, the same answer).
    outside, _ = ndimage.label(cut("t1") == 0)
    brain = np.asarray(outside != outside[0, 0, 0], bool)
    white, grey = (cut(name).astype(np.float32) / np.float32(255) for name in ("wm", "gm"))
    start = np.array([side.start for side in box]) - [before for before, _ in _ROOM]
    return white, grey, brain, np.asarray(maps.origin - start, float)


def _head_affine(origin: Point, rng: np.random.Generator) -> Affine:
    """Index of the template to LPS mm: shrunk, a little long or broad, turned in the coil."""
    scale = TEMPLATE_SHRINK * rng.uniform(0.98, 1.02, 3)
    turn = Rotation.from_euler("xyz", rng.normal(0, 2.0, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, 0] = (0, 0, scale[0])
    affine[:3, 1] = (0, scale[1], 0)
    affine[:3, 2] = (scale[2], 0, 0)
    affine[:3, :3] = turn @ affine[:3, :3]
    middle = origin + _MIDDLE_OF_BRAIN
    affine[:3, 3] = -affine[:3, :3] @ middle + rng.normal(0, 1.0, 3)
    return affine


def _dress(brain: Mask, texture: Floats) -> npt.NDArray[np.uint8]:
    """Outer CSF, skull and scalp as distance shells, neck and face muscle with air cells below."""
    # Half resolution: distances are smooth, and eight times fewer voxels take a tenth of the time.
    outside = np.asarray(ndimage.distance_transform_edt(~brain[::2, ::2, ::2]), np.float32) * 2
    head = outside <= 15
    # A head does not get narrower towards the neck: what lies above an index is head below, too.
    head = np.logical_or.accumulate(head[::-1], axis=0)[::-1]
    # The neck goes on below the last slice: only the sides and the vertex are skin.
    below = np.pad(head, ((8, 0), (0, 0), (0, 0)), mode="edge")
    depth = np.asarray(ndimage.distance_transform_edt(below))[8:]
    outside = _doubled(outside, brain.shape)
    depth = _doubled(depth.astype(np.float32) * 2, brain.shape)
    inside_head = depth > 1.0
    parts = np.zeros(brain.shape, np.uint8)
    parts[inside_head] = 4
    parts[inside_head & (texture > 1.2)] = 5
    parts[inside_head & (depth <= 7.0)] = 3
    parts[outside <= 8.5] = 2
    parts[outside <= 2.5] = 1
    parts[brain] = 0
    return parts


def _smooth_noise(shape: Sequence[int], sigma: float, rng: np.random.Generator) -> Floats:
    noise = ndimage.gaussian_filter(
        rng.standard_normal(tuple(-(-n // 2) for n in shape), dtype=np.float32), sigma / 2
    )
    noise /= noise.std()
    return _doubled(noise, shape)


def _doubled(half: Floats, shape: Sequence[int]) -> Floats:
    """Twice the resolution, linear between the points of `half` (index 2i holds half[i])."""
    full = half
    for axis, size in enumerate(shape):
        after = np.take(
            full, np.minimum(np.arange(full.shape[axis]) + 1, full.shape[axis] - 1), axis
        )
        both = np.stack((full, (full + after) / 2), axis=axis + 1)
        merged = (*full.shape[:axis], 2 * full.shape[axis], *full.shape[axis + 1 :])
        full = np.take(both.reshape(merged), np.arange(size), axis)
    return full


# Lesions -----------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """So many lesions of one kind, and how large: half the long axis in mm."""

    kind: LesionKind
    wanted: int
    half_length_mm: tuple[float, float]
    ovoids: int


_PLANS = (
    _Plan("confluent", 2, (8.0, 11.0), 4),
    _Plan("periventricular", 8, (5.0, 9.0), 1),
    _Plan("deep", 7, (3.0, 7.0), 1),
    _Plan("juxtacortical", 4, (3.0, 5.5), 1),
)
"""Large ones first, so that they find room. Together about 10 ml, a middling load of MS."""

_SLENDER = (0.5, 0.7)
"""Short to long axis of a plaque: ovoid, pointing away from the ventricle (Dawson's fingers)."""

_APART_MM = 9.0
"""From a lesion to the middle of the next one, so that most stay separate in thick slices."""

_LEAST_MM3 = 10.0
"""What grey matter cuts down to less is not planted."""


def _plant(
    white: Floats, sites: _Sites, texture: Floats, affine: Affine, rng: np.random.Generator
) -> tuple[tuple[PlantedLesion, ...], Floats, Mask]:
    """The lesions, their contrast with softened edges, and their voxels."""
    voxel_mm = _voxel_mm(affine)
    truth = np.zeros(white.shape, bool)
    contrast = np.zeros_like(white)
    planted: list[PlantedLesion] = []
    for plan in _PLANS:
        for _ in range(plan.wanted):
            ovoids = _place(plan, sites, rng)
            drawn = _draw(ovoids, texture, white)
            volume_mm3 = float(drawn.mask.sum()) * voxel_mm**3
            if volume_mm3 < _LEAST_MM3:
                continue
            level = _lesion_contrast(volume_mm3, rng)
            truth[drawn.box] |= drawn.mask
            mottled = level * (1 + 0.09 * texture[::-1][drawn.box])
            contrast[drawn.box][drawn.mask] = mottled[drawn.mask]
            sites.take(drawn)
            centre = affine[:3, :3] @ ovoids[0].centre + affine[:3, 3]
            planted.append(
                PlantedLesion(
                    number=len(planted) + 1,
                    kind=plan.kind,
                    centre_lps_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
                    long_axis_mm=2 * max(o.half_length for o in ovoids) * voxel_mm,
                    volume_ml=volume_mm3 / 1000,
                    contrast=level,
                )
            )
    # Measured edges are about 1 mm wide.
    softened = ndimage.gaussian_filter(contrast, 0.6 / voxel_mm)
    return tuple(planted), np.asarray(softened, np.float32), truth


def _voxel_mm(affine: Affine) -> float:
    return float(np.cbrt(abs(np.linalg.det(affine[:3, :3]))))


def _lesion_contrast(volume_mm3: float, rng: np.random.Generator) -> float:
    """Small lesions lose contrast: fitted on lesions of real patients (with less spread here)."""
    return float(np.clip(0.22 + 0.09 * np.log10(volume_mm3) + rng.normal(0, 0.05), 0.24, 0.55))


class _Ovoid(NamedTuple):
    centre: Point
    direction: Point
    half_length: float
    half_width: float


class _Drawn(NamedTuple):
    box: tuple[slice, slice, slice]
    mask: Mask


@dataclass(frozen=True, slots=True, eq=False)
class _Sites:
    """Where lesions of each kind may start, at half resolution; taken places are crossed out."""

    allowed: Mapping[LesionKind, Mask]
    away: Floats
    """(3, ...) direction away from the ventricle."""
    voxel_mm: float

    @classmethod
    def of(cls, white: Floats, fluid: Floats, brain: Mask, origin: Point, affine: Affine) -> _Sites:
        half_mm = 2 * _voxel_mm(affine)
        inside = brain[::2, ::2, ::2]
        depth = np.asarray(ndimage.distance_transform_edt(inside), np.float32) * half_mm
        labels, _ = ndimage.label((fluid[::2, ::2, ::2] > 0.5) & (depth > 25))
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        ventricle = labels == int(sizes.argmax())
        distance = np.asarray(ndimage.distance_transform_edt(~ventricle), np.float32) * half_mm
        slopes: list[Floats] = list(np.gradient(ndimage.gaussian_filter(distance, 1.5)))
        away = np.stack(slopes).astype(np.float32)
        pure = white[::2, ::2, ::2] > 0.9
        # Above the brain stem: no higher than the lower end of the ventricles.
        pure[: int(np.argwhere(ventricle)[:, 0].min())] = False
        lateral = np.abs(2 * np.arange(pure.shape[2]) - origin[2]) * half_mm / 2
        beside = pure & (lateral > 10) & (depth > 15)  # not the corpus callosum between them
        return cls(
            {
                "confluent": beside & (lateral > 18) & (distance > 4) & (distance < 9),
                "periventricular": beside & (distance > 2) & (distance < 7),
                "deep": pure & (distance > 13) & (depth > 14),
                "juxtacortical": pure & (distance > 13) & (depth > 5) & (depth < 11),
            },
            away,
            _voxel_mm(affine),
        )

    def draw(self, kind: LesionKind, rng: np.random.Generator) -> Point:
        candidates = np.argwhere(self.allowed[kind])
        chosen: Point = 2.0 * candidates[rng.integers(len(candidates))]
        return chosen + rng.uniform(-0.5, 0.5, 3)

    def direction(self, centre: Point) -> Point:
        at = tuple(np.clip(np.rint(centre / 2).astype(int), 0, np.array(self.away.shape[1:]) - 1))
        vector = self.away[(slice(None), *at)].astype(np.float64)
        vector[0] *= 0.3  # the medullary veins, and plaques along them, run nearly in the plane
        return np.asarray(vector / (np.linalg.norm(vector) + 1e-9))

    def take(self, drawn: _Drawn) -> None:
        """No other lesion starts within `_APART_MM` of this one."""
        reach = round(_APART_MM / (2 * self.voxel_mm))
        taken = np.zeros(self.away.shape[1:], bool)
        points = np.argwhere(drawn.mask) + [side.start for side in drawn.box]
        taken[tuple((points // 2).T)] = True
        around = tuple(
            slice(max(0, side.start // 2 - reach), side.stop // 2 + reach + 1) for side in drawn.box
        )
        free = ndimage.distance_transform_edt(~taken[around]) > reach
        for allowed in self.allowed.values():
            allowed[around] &= free


def _place(plan: _Plan, sites: _Sites, rng: np.random.Generator) -> list[_Ovoid]:
    """One ovoid, or a row of overlapping ones along the ventricle wall."""
    centre = sites.draw(plan.kind, rng)
    ovoids: list[_Ovoid] = []
    for _ in range(plan.ovoids):
        half_length = rng.uniform(*plan.half_length_mm) / sites.voxel_mm
        direction = sites.direction(centre)
        if plan.kind not in ("confluent", "periventricular"):
            direction = rng.normal(size=3) * (0.4, 1, 1)
            direction /= np.linalg.norm(direction)
        ovoids.append(_Ovoid(centre, direction, half_length, half_length * rng.uniform(*_SLENDER)))
        along = np.cross(direction, (1.0, 0.0, 0.0))  # of the wall, in the plane
        along = along / (np.linalg.norm(along) + 1e-9) + rng.normal(0, 0.25, 3)
        centre = centre + along * half_length * 0.75
    return ovoids


def _draw(ovoids: Sequence[_Ovoid], roughness: Floats, white: Floats) -> _Drawn:
    """Voxels of a lesion: ovoids with a wavy edge, inside white matter and its border."""
    reach = max(o.half_length for o in ovoids) * 1.4 + 1
    low = np.floor(np.min([o.centre for o in ovoids], axis=0) - reach).astype(int)
    high = np.ceil(np.max([o.centre for o in ovoids], axis=0) + reach).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, white.shape)
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    index = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), -1)
    mask = np.zeros(index.shape[:3], bool)
    for ovoid in ovoids:
        offset = index - ovoid.centre
        along = offset @ ovoid.direction
        across = np.maximum((offset**2).sum(-1) - along**2, 0)
        radius = np.sqrt((along / ovoid.half_length) ** 2 + across / ovoid.half_width**2)
        mask |= radius < 1 + 0.10 * roughness[box]
    mask &= white[box] > 0.35
    labels, count = ndimage.label(mask)
    if count > 1:  # crumbs behind a strip of grey matter belong to nobody
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = labels == int(sizes.argmax())
    return _Drawn(box, mask)


# The scan ----------------------------------------------------------------------------------------


def _scan_grid(acquisition: Acquisition, frame_of_reference_uid: str) -> Grid:
    """The stack, its middle at the isocentre."""
    turn = Rotation.from_euler("xyz", acquisition.angles_deg, degrees=True).as_matrix()
    upward = 1.0 if acquisition.first == "inferior" else -1.0
    spacing = acquisition.spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = turn @ (0, 0, upward * spacing[0])
    affine[:3, 1] = turn @ (0, spacing[1], 0)
    affine[:3, 2] = turn @ (spacing[2], 0, 0)
    shape = (acquisition.slices, acquisition.rows, acquisition.columns)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(affine, shape, frame_of_reference_uid)


def acquire(
    image: npt.NDArray[np.bool_ | np.float32], head: Head, grid: Grid, thickness_mm: float
) -> Floats:
    """Mean of the head over each slab of the grid."""
    source = image.astype(np.float32, copy=False)
    to_head = np.linalg.inv(head.affine) @ grid.affine
    total = np.zeros(grid.shape, np.float32)
    steps = (np.arange(PLANES_PER_SLAB) + 0.5) / PLANES_PER_SLAB - 0.5
    for step in steps * thickness_mm / grid.spacing_mm[0]:
        offset = to_head[:3, 3] + to_head[:3, 0] * step
        total += ndimage.affine_transform(
            source, to_head[:3, :3], offset, output_shape=grid.shape, order=1, output=np.float32
        )
    return total / np.float32(PLANES_PER_SLAB)


def signal(head: Head, contrast: Contrast) -> Floats:
    """The fine head as one sequence sees it, without noise."""
    levels = np.array((0.0, *contrast.around), np.float32)
    image = levels[head.surroundings]
    image += contrast.white * head.white + contrast.grey * head.grey + contrast.fluid * head.fluid
    image += contrast.lesion * head.lesion
    image *= 1 + 0.025 * head.texture
    return image


def scan(
    head: Head, contrast: Contrast, grid: Grid, thickness_mm: float, rng: np.random.Generator
) -> Floats:
    """Stored values of an acquisition: coil gain, Rician noise, whole numbers of 12 bits."""
    clean = acquire(signal(head, contrast), head, grid, thickness_mm) * _gain(grid, rng)
    sd = np.float32(0.035)
    noise = rng.standard_normal((2, *grid.shape), dtype=np.float32) * sd
    magnitude = np.sqrt((clean + noise[0]) ** 2 + noise[1] ** 2)
    stored: Floats = np.clip(np.rint(magnitude * WHITE_MATTER_LEVEL), 0, 4095).astype(np.float32)
    return stored


def _gain(grid: Grid, rng: np.random.Generator) -> Floats:
    """A smooth coil sensitivity: the signal falls off by some 20 % over the head."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in grid.shape]
    s, r, c = np.meshgrid(*axes, indexing="ij", sparse=True)
    a = rng.normal(0, 0.06, 6).astype(np.float32)
    log_gain = a[0] * s + a[1] * r + a[2] * c + a[3] * s * r + a[4] * r * r + a[5] * s * s
    return np.asarray(np.exp(log_gain), np.float32)


def uid_of(*parts: object) -> str:
    """The UID that these parts always give: PS3.5 B.2, in a namespace of phantoms alone."""
    return f"2.25.{uuid5(_UID_NAMESPACE, repr(parts)).int}"


def instance_uid(voxels: Floats, seed: int, series: str, index: int) -> str:
    """SOP Instance UID of one image of a series."""
    # With the pixels in it: another version of this code never gives one UID two images.
    return uid_of(seed, series, index, sha256(voxels.tobytes()).hexdigest())
