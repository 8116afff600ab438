"""Whole `flairnode process` with the starter pack, mirroring off, cold start included, by stage.

Two cases, on two cores: 24 thick axial slices of 512 x 512, goal 30 s and 2 GB; and a sagittal 3-D
acquisition of 176 slices of 256 x 256, 1 mm, goal 120 s and 4 GB.
Use: .venv/bin/python tests/benchmarks/bench_process.py [--runs N] [--case thick|sagittal]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dicom.volume import Grid, Volume
from pipeline.phantom import Acquisition, Phantom, instance_uid, synthetic_head
from pipeline.phantom_study import write_flair, write_study

FLAIRNODE = Path(sys.executable).with_name("flairnode")


@dataclass(frozen=True, slots=True)
class Case:
    """An input, and what its analysis may take."""

    write: Callable[[Path], object]
    goal_s: float
    goal_mb: float


def thick(folder: Path) -> None:
    """The paper's geometry, with the other series of its study."""
    acquisition = Acquisition(slices=24, rows=512, columns=512, row_mm=0.43, column_mm=0.43)
    write_study(synthetic_head(1, acquisition), folder)


def sagittal(folder: Path) -> None:
    """A 3-D acquisition: slices from right to left, rows from the vertex down."""
    acquisition = Acquisition(256, 256, 176, 1.0, 1.0, thickness_mm=1.0, gap_mm=0.0)
    write_flair(_turned(synthetic_head(1, acquisition)), folder)


def _turned(axial: Phantom) -> Phantom:
    grid = axial.volume.grid
    voxels = np.ascontiguousarray(axial.volume.voxels[::-1].transpose(2, 0, 1))
    affine = grid.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += grid.affine[:3, 0] * (grid.shape[0] - 1)
    affine[:3, 1] *= -1
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    uids = tuple(
        instance_uid(voxels[index], axial.seed, "sagittal", index) for index in range(shape[0])
    )
    volume = Volume(voxels, Grid(affine, shape, grid.frame_of_reference_uid), uids)
    return replace(axial, volume=volume)


CASES = {"thick": Case(thick, 30.0, 2048.0), "sagittal": Case(sagittal, 120.0, 4096.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--case", choices=CASES, default="thick")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    with tempfile.TemporaryDirectory() as scratch:
        study = Path(scratch) / "study"
        case.write(study)
        walls = []
        for run in range(arguments.runs):
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [FLAIRNODE, "process", study, "--output", Path(scratch) / f"out{run}", "--json"],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"FLAIRNODE_PIPELINE__MIRRORING": "off"},
            )
            walls.append(time.perf_counter() - started)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            report = json.loads(done.stdout)
            stages = ", ".join(f"{k} {v:.2f}" for k, v in report["timing_s"].items())
            print(f"run {run}: {walls[-1]:.1f} s wall, {cpu_s:.1f} s of CPU; {stages}")
            print(
                f"       {report['findings']['lesion_count']} lesions, "
                f"{report['findings']['total_volume_ml']:.2f} ml, "
                f"quality {report['quality']['verdict']} "
                f"{[flag['code'] for flag in report['quality']['flags']]}"
            )
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"median {sorted(walls)[len(walls) // 2]:.1f} s (goal {case.goal_s:.0f} s)")
    print(f"peak {peak_mb:.0f} MB (goal {case.goal_mb:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
