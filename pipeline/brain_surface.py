"""A closed surface that grows onto the brain: the deformable model of BET.

Source: S. M. Smith, "Fast robust automated brain extraction", Human Brain Mapping 17:143-155, 2002.
The names t2, t98, t, tm, bt, d1, d2, E, F, s_t, s_n, f2, f3, I_min and I_max below are those of the
paper. Written from its equations; departures, all measured on clinical FLAIR:

- Works in millimetres on anisotropic slices. A sample above or below the stack is taken from the
  end slice, so that a head cut off by the stack does not open the surface.
- The centre of gravity is that of the upper 150 mm, so that a neck in the picture does not pull it.
- A fixed number of iterations and no second pass for self-intersection: the result does not depend
  on a stopping rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.morphology import Mask, SpacingMm, fill_holes_in_plane

Image = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
"""(3, n): slice, row and column coordinates of n points."""

FOREGROUND_FRACTION = 0.1
"""t lies this far from t2 to t98 (Smith 2002)."""
FLAT = 1e-5
"""t2 and t98 closer than this differ by rounding only."""
HEAD_BELOW_VERTEX_MM = 150.0
"""The brain ends about here; below are jaw and neck."""
VERTEX_SLICE_FRACTION = 0.03
"""The topmost slice with more foreground than this holds the vertex; less is noise."""
START_RADIUS = 0.5
"""Of the radius of the sphere of the head's volume: inside the brain (Smith 2002)."""
CENTRAL_RADIUS = 0.8
"""tm is the median this far around the centre: brain, hardly scalp."""
SMALLEST_RADIUS_MM = 3.33
LARGEST_RADIUS_MM = 10.0
"""Curvatures between these are smoothed more and more (Smith 2002, r_min and r_max)."""
SEARCH_MM = 20
"""d1: how far inwards the darkest voxel is looked for (Smith 2002)."""
BRIGHT_SEARCH_MM = 10
"""d2: how far inwards the brightest is."""
IMAGE_STEP = 0.05
"""Weight of the image force, in mean vertex distances (Smith 2002)."""
TRIANGLE_STEPS = 12
"""Points per triangle edge when the surface is drawn: 0.5 mm apart on a brain."""


class NoHeadError(ValueError):
    """Nothing in the image stands out from its background."""


@dataclass(frozen=True, slots=True)
class SurfaceParameters:
    """How the surface is grown."""

    fraction: float
    """bt: how dark, between t2 and the local maximum, ends the brain. Smaller: larger brain."""
    iterations: int = 600
    """It never comes quite to rest: rounding alone moves the mask by Dice .998, 100 more
    iterations by .99."""
    subdivisions: int = 4
    """Of the icosahedron: 4 gives 2562 vertices, 6 mm apart on a brain."""


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A sphere of triangles and the neighbours of each vertex."""

    vertices: Points
    """(3, n), on the unit sphere."""
    triangles: npt.NDArray[np.intp]
    """(3, t), vertex numbers, counter-clockwise seen from outside."""
    rings: npt.NDArray[np.intp]
    """(6, n), the neighbours of each vertex in counter-clockwise order. The twelve vertices of
    the icosahedron have five; the last is repeated."""
    ring_weights: npt.NDArray[np.float64]
    """(6, n), 1 / number of neighbours; 0 for a repeated one."""


@dataclass(frozen=True, slots=True)
class HeadEstimate:
    """What the image says before the surface starts (Smith 2002, "basic parameters")."""

    t2: float
    """2nd percentile: the darkest that counts."""
    t: float
    """Foreground begins here."""
    tm: float
    """Median of the brain's centre."""
    centre_mm: npt.NDArray[np.float64]
    """(3,), (slice, row, column)."""
    radius_mm: float
    """Of a sphere as large as the head."""


def surface_mask(image: Image, spacing_mm: SpacingMm, parameters: SurfaceParameters) -> Mask:
    """The voxels inside a surface grown onto the brain.

    Args:
        image: Axial, slices inferior to superior. 2 mm pixels are fine enough.
        spacing_mm: Of (slice, row, column).
        parameters: How the surface is grown.

    Raises:
        NoHeadError: Nothing stands out from the background.
    """
    head = estimate_head(image, spacing_mm)
    mesh = icosphere(parameters.subdivisions)
    spacing = np.asarray(spacing_mm)[:, np.newaxis]
    start = mesh.vertices * (START_RADIUS * head.radius_mm) + head.centre_mm[:, np.newaxis]
    surface = _grow(start, mesh, _Samples(image, spacing_mm), head, parameters)
    return _inside(surface / spacing, mesh, image.shape)


def estimate_head(image: Image, spacing_mm: SpacingMm) -> HeadEstimate:
    """Intensity range, centre and size of the head in an axial image.

    Raises:
        NoHeadError: Nothing stands out from the background.
    """
    t2, t98 = (float(value) for value in np.percentile(image, (2, 98)))
    if t98 - t2 <= FLAT * max(abs(t2), abs(t98)):
        raise NoHeadError(f"96 % of the voxels have the value {t2:g}")
    t = t2 + FOREGROUND_FRACTION * (t98 - t2)
    foreground = image > t
    filled = np.flatnonzero(foreground.mean(axis=(1, 2)) > VERTEX_SLICE_FRACTION)
    if filled.size == 0:
        raise NoHeadError(f"no slice has {VERTEX_SLICE_FRACTION:.0%} of its pixels above {t:.4g}")
    heights_mm = np.arange(image.shape[0]) * spacing_mm[0]
    is_head = heights_mm > heights_mm[filled[-1]] - HEAD_BELOW_VERTEX_MM
    head = foreground & is_head[:, np.newaxis, np.newaxis]
    weights = np.clip(image, t2, t98) * head
    centre_mm = np.asarray(ndimage.center_of_mass(weights)) * np.asarray(spacing_mm)
    volume_mm3 = float(head.sum()) * float(np.prod(spacing_mm))
    radius_mm = float(np.cbrt(3 * volume_mm3 / (4 * np.pi)))
    central = _ball(image.shape, spacing_mm, centre_mm, CENTRAL_RADIUS * radius_mm) & foreground
    if not central.any():
        raise NoHeadError("the centre of the image holds no foreground")
    return HeadEstimate(t2, t, float(np.median(image[central])), centre_mm, radius_mm)


def _ball(
    shape: tuple[int, ...],
    spacing_mm: SpacingMm,
    centre_mm: npt.NDArray[np.float64],
    radius_mm: float,
) -> Mask:
    squared = np.zeros(shape)
    for axis, index in enumerate(np.ogrid[tuple(slice(length) for length in shape)]):
        squared = squared + (index * spacing_mm[axis] - centre_mm[axis]) ** 2
    ball: Mask = squared < radius_mm**2
    return ball


class _Samples:
    """The darkest and brightest voxels inwards of each vertex, fast: this is the inner loop."""

    def __init__(self, image: Image, spacing_mm: SpacingMm) -> None:
        self._values = image.ravel()
        self._per_mm = (1 / np.asarray(spacing_mm))[:, np.newaxis]
        self._last = [length - 1 for length in image.shape]
        self._strides = (image.shape[1] * image.shape[2], image.shape[2], 1)
        self._depths = np.arange(1, SEARCH_MM + 1, dtype=np.float32)[:, np.newaxis]

    def inwards(self, surface: Points, normals: Points) -> Image:
        """(depths, vertices): nearest voxels at 1, 2, ... `SEARCH_MM` mm below each vertex."""
        start = (surface * self._per_mm).astype(np.float32)
        step = (normals * self._per_mm).astype(np.float32)
        where = np.zeros((SEARCH_MM, surface.shape[1]), np.int32)
        for axis in range(3):
            index = start[axis] - self._depths * step[axis]
            np.rint(index, out=index)
            np.maximum(index, 0, out=index)
            np.minimum(index, self._last[axis], out=index)
            where += index.astype(np.int32) * np.int32(self._strides[axis])
        return self._values[where]


def _grow(
    surface: Points,
    mesh: Mesh,
    samples: _Samples,
    head: HeadEstimate,
    parameters: SurfaceParameters,
) -> Points:
    """Vertex positions in mm after all iterations (Smith 2002, "surface model evolution")."""
    rings = mesh.rings
    weights = mesh.ring_weights
    for _ in range(parameters.iterations):
        ring = surface[:, rings]
        normals = _normals(ring)
        to_mean = (ring * weights).sum(axis=1) - surface
        inwards = np.einsum("ij,ij->j", to_mean, normals)
        normal_part = inwards * normals
        edges = ring - surface[:, np.newaxis]
        distance = float((np.sqrt(np.einsum("ijk,ijk->jk", edges, edges)) * weights).sum(0).mean())
        smoothing = _curvature_weight(inwards, distance)
        image_force = _image_force(samples.inwards(surface, normals), head, parameters.fraction)
        surface = (
            surface
            + 0.5 * (to_mean - normal_part)
            + smoothing * normal_part
            + (IMAGE_STEP * distance * image_force) * normals
        )
    return surface


def _normals(ring: Points) -> Points:
    """Unit outward normals: the vector area of each vertex's ring of neighbours."""
    following = np.roll(ring, -1, axis=1)
    normals = np.empty((3, ring.shape[2]))
    for axis, (first, second) in enumerate(((1, 2), (2, 0), (0, 1))):
        normals[axis] = (ring[first] * following[second] - ring[second] * following[first]).sum(0)
    normals /= np.linalg.norm(normals, axis=0) + 1e-9
    return normals


def _curvature_weight(inwards: npt.NDArray[np.float64], distance: float) -> npt.NDArray[np.float64]:
    """f2: how much of s_n is undone; 1/r = 2 |s_n| / l^2."""
    curvature = 2 * np.abs(inwards) / distance**2
    middle = (1 / SMALLEST_RADIUS_MM + 1 / LARGEST_RADIUS_MM) / 2
    steepness = 6 / (1 / SMALLEST_RADIUS_MM - 1 / LARGEST_RADIUS_MM)
    weight: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(steepness * (curvature - middle)))
    return weight


def _image_force(samples: Image, head: HeadEstimate, fraction: float) -> npt.NDArray[np.float64]:
    """f3: outwards while it is bright as brain below the vertex, inwards once it is dark."""
    i_min = np.maximum(head.t2, np.minimum(head.tm, samples.min(axis=0)))
    brightest = samples[:BRIGHT_SEARCH_MM].max(axis=0)
    i_max = np.minimum(head.tm, np.maximum(head.t, brightest)).astype(np.float64)
    t_l = (i_max - head.t2) * fraction + head.t2
    force: npt.NDArray[np.float64] = 2 * (i_min - t_l) / np.maximum(i_max - head.t2, 1e-6)
    return force


def _inside(surface: Points, mesh: Mesh, shape: tuple[int, ...]) -> Mask:
    """Voxels on or within a surface given in voxel coordinates."""
    margin = 2  # so that a surface on the border of the image still encloses something
    drawn = np.zeros([length + 2 * margin for length in shape], np.bool_)
    last = np.asarray(drawn.shape)[:, np.newaxis] - 1
    first, second, third = (surface[:, corner] for corner in mesh.triangles)
    for i in range(TRIANGLE_STEPS + 1):
        for j in range(TRIANGLE_STEPS + 1 - i):
            u, v = i / TRIANGLE_STEPS, j / TRIANGLE_STEPS
            points = np.rint(first * (1 - u - v) + second * u + third * v).astype(np.intp) + margin
            drawn[tuple(np.clip(points, 0, last))] = True
    filled = fill_holes_in_plane(drawn)
    return np.ascontiguousarray(filled[margin:-margin, margin:-margin, margin:-margin])


@cache
def icosphere(subdivisions: int) -> Mesh:
    """A unit sphere of 10 x 4^n + 2 nearly even vertices: an icosahedron, each triangle in four."""
    vertices, triangles = _icosahedron()
    for _ in range(subdivisions):
        vertices, triangles = _subdivide(vertices, triangles)
    rings, weights = _rings(triangles, len(vertices))
    return Mesh(vertices.T.copy(), triangles.T.copy(), rings, weights)


def _icosahedron() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """(12, 3) vertices on the unit sphere and (20, 3) triangles, counter-clockwise from outside."""
    golden = (1 + 5**0.5) / 2
    corners = [(a, b * golden) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    vertices = np.array(
        [(a, b, 0.0) for a, b in corners]
        + [(0.0, a, b) for a, b in corners]
        + [(b, 0.0, a) for a, b in corners]
    ) / np.hypot(1, golden)
    edge = 2 / np.hypot(1, golden)
    triangles = []
    for first, second, third in combinations(range(12), 3):
        a, b, c = vertices[[first, second, third]]
        if np.allclose([np.linalg.norm(side) for side in (a - b, b - c, c - a)], edge):
            outward = np.cross(b - a, c - a) @ a > 0
            triangles.append((first, second, third) if outward else (first, third, second))
    return vertices, np.array(triangles, np.intp)


def _subdivide(
    vertices: npt.NDArray[np.float64], triangles: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Each triangle in four; the new vertices, one per edge, are lifted to the sphere."""
    first, second, third = triangles.T
    sides = np.stack([(first, second), (second, third), (third, first)])
    ends, of_side = np.unique(
        np.sort(sides.transpose(0, 2, 1).reshape(-1, 2), axis=1), axis=0, return_inverse=True
    )
    middles = vertices[ends].sum(axis=1)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    q, r, s = of_side.reshape(3, -1) + len(vertices)
    quarters = [(first, q, s), (second, r, q), (third, s, r), (q, r, s)]
    smaller = np.concatenate([np.stack(quarter, axis=1) for quarter in quarters])
    return np.concatenate([vertices, middles]), smaller


def _rings(
    triangles: npt.NDArray[np.intp], vertex_count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Neighbours of each vertex in order around it, (6, n), and their weights."""
    after: list[dict[int, int]] = [{} for _ in range(vertex_count)]
    for a, b, c in triangles.tolist():
        after[a][b] = c
        after[b][c] = a
        after[c][a] = b
    rings = np.empty((6, vertex_count), np.intp)
    weights = np.zeros((6, vertex_count))
    for vertex, following in enumerate(after):
        ring = [min(following)]
        while len(ring) < len(following):
            ring.append(following[ring[-1]])
        weights[: len(ring), vertex] = 1 / len(ring)
        rings[:, vertex] = ring + ring[-1:] * (6 - len(ring))
    return rings, weights
