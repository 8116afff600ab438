"""Time and memory of the skull strip: 512 x 512 x 24, one thread, a fresh process, no torch.

Run: .venv/bin/python tests/benchmarks/bench_brain.py [--volume FLAIR.nii.gz]
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom.volume import Grid, Volume, read_nifti
from pipeline.brain import outer_surface, strip_skull

SHAPE = (24, 512, 512)
SPACING_MM = (6.5, 0.43, 0.43)
HALF_AXES_MM = (62.0, 80.0, 64.0)
GOAL_S = 5.0
GOAL_MB = 500.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> int:
    """Print the figures beside their goals; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volume", type=Path, help="a NIfTI FLAIR, resampled to that size")
    path = parser.parse_args().volume
    voxels = _ellipsoids() if path is None else _resampled(path)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = SPACING_MM
    affine[3, 3] = 1
    volume = Volume(voxels, Grid(affine, SHAPE))

    before_mb = _peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    brain = strip_skull(volume)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_mb = _peak_mb()
    second = time.process_time()
    outer_surface(volume)
    second = time.process_time() - second

    print(f"strip_skull, {SHAPE[1]} x {SHAPE[2]} x {SHAPE[0]}: {brain.volume_ml:.0f} ml")
    print(f"  CPU          {cpu:6.2f} s    goal {GOAL_S:.0f} s")
    print(f"  wall         {wall:6.2f} s    a crowded machine adds to it")
    print(f"  peak memory  {peak_mb:6.0f} MB   goal {GOAL_MB:.0f} MB; {before_mb:.0f} MB before")
    print(f"  torch loaded {'torch' in sys.modules!s:>6}")
    print(f"outer_surface, the second answer of pipeline.quality: CPU {second:.2f} s")
    return int(cpu > GOAL_S or peak_mb > GOAL_MB or "torch" in sys.modules)


def _resampled(path: Path) -> npt.NDArray[np.float32]:
    stored = read_nifti(path).voxels
    factors = [wanted / length for wanted, length in zip(SHAPE, stored.shape, strict=True)]
    zoomed = ndimage.zoom(stored, factors, order=1, grid_mode=True, mode="nearest")
    return np.ascontiguousarray(zoomed)


def _ellipsoids() -> npt.NDArray[np.float32]:
    """Brain, CSF, skull and scalp: enough to keep the surface busy."""
    radius = np.zeros(SHAPE, np.float32)
    for axis, length in enumerate(SHAPE):
        offset_mm = (np.arange(length, dtype=np.float32) - length / 2) * SPACING_MM[axis]
        others = [other for other in range(3) if other != axis]
        radius += np.expand_dims((offset_mm / HALF_AXES_MM[axis]) ** 2, others)
    np.sqrt(radius, out=radius)
    voxels = np.full(SHAPE, 4.0, np.float32)
    for limit, level in ((1.18, 90), (1.10, 12), (1.05, 30), (1.0, 100)):
        voxels[radius < limit] = level
    voxels += np.random.default_rng(0).standard_normal(SHAPE, np.float32) * 4
    return np.abs(voxels)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if any(os.environ.get(name) != count for name, count in ONE_THREAD.items()):
        # Threads are counted when numpy is imported: start once more.
        again = [sys.executable, *sys.argv]
        os.execve(sys.executable, again, os.environ | ONE_THREAD)  # noqa: S606  # ourselves
    sys.exit(main())
