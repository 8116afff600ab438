"""Time and memory of the regions of lesions, one thread, a fresh process a case.

Cases: 24 thick axial slices of 512 x 512, goal 5 s; a sagittal 3-D acquisition of 176 slices of
256 x 256, goal 10 s. The atlas, made once a process, is counted apart.
Run: .venv/bin/python tests/benchmarks/bench_regions.py [--case thick|sagittal]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time

import numpy as np
from scipy import ndimage

from pipeline.atlas import mni_atlas
from pipeline.brain import BrainMask
from pipeline.findings import measure
from pipeline.lesions import LesionMap
from pipeline.phantom import Acquisition
from pipeline.regions import Anatomy, locate_structures, name_regions
from tests.pipeline.planted import PlantedHead, planted_head, sagittal

CASES = {
    "thick": (Acquisition(24, 512, 512, 0.43, 0.43), 5.0),
    "sagittal": (Acquisition(256, 256, 176, 1.0, 1.0, 1.0, 0.0), 10.0),
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> int:
    """Print the figures beside their goals; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=tuple(CASES))
    case = parser.parse_args().case
    if case is not None:
        return _one(case)
    return max(
        subprocess.run(  # this file itself
            [sys.executable, __file__, "--case", name],
            env={**os.environ, **ONE_THREAD},
            check=False,
        ).returncode
        for name in CASES
    )


def _one(case: str) -> int:
    acquisition, goal_s = CASES[case]
    head = planted_head(1, acquisition)
    if case == "sagittal":
        head = sagittal(head)
    lesions = _lesions(head)
    brain = BrainMask(head.brain, head.volume.grid, "supplied", "", {})
    findings = measure(lesions)
    mni_atlas.cache_clear()  # the head of the test needed it, too
    start = time.process_time()
    mni_atlas()
    atlas_s = time.process_time() - start
    start = time.process_time()
    anatomy = locate_structures(head.volume, brain)
    named = name_regions(findings, head.labels, anatomy)
    taken_s = time.process_time() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert isinstance(anatomy, Anatomy)
    right = sum(one.region == two for one, two in zip(named.lesions, head.regions, strict=True))
    print(
        f"{case}: {taken_s:.1f} s CPU (goal {goal_s:g} s), atlas {atlas_s:.1f} s, peak of the"
        f" process {peak_mb:.0f} MB, the head of the test included; {right} of"
        f" {len(named.lesions)} lesions right, Dice {anatomy.placement.dice:.3f}"
    )
    return int(taken_s > goal_s)


def _lesions(head: PlantedHead) -> LesionMap:
    soft = ndimage.gaussian_filter((head.labels > 0).astype(np.float32), (0, 1, 1))
    return LesionMap(soft, soft * np.float32(0.1), head.labels, head.volume.grid, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
