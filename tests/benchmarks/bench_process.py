"""Whole `flairnode process`, cold start included, by stage: 512 x 512 x 24, five members.

Goal: <= 30 s and <= 2 GB on two cores with the starter pack, mirroring off.
Use: .venv/bin/python tests/benchmarks/bench_process.py [--runs N]
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
from pathlib import Path

from pipeline.phantom import Acquisition, synthetic_head
from pipeline.phantom_study import write_study

FLAIRNODE = Path(sys.executable).with_name("flairnode")
GOAL_S, GOAL_MB = 30.0, 2048.0
ACQUISITION = Acquisition(slices=24, rows=512, columns=512, row_mm=0.43, column_mm=0.43)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        study = Path(scratch) / "study"
        write_study(synthetic_head(1, ACQUISITION), study)
        walls = []
        for run in range(runs):
            started = time.perf_counter()
            done = subprocess.run(
                [FLAIRNODE, "process", study, "--output", Path(scratch) / f"out{run}", "--json"],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"FLAIRNODE_PIPELINE__MIRRORING": "off"},
            )
            walls.append(time.perf_counter() - started)
            report = json.loads(done.stdout)
            stages = ", ".join(f"{k} {v:.2f}" for k, v in report["timing_s"].items())
            print(f"run {run}: {walls[-1]:.1f} s wall; {stages}")
            print(
                f"       {report['findings']['lesion_count']} lesions, "
                f"quality {report['quality']['verdict']}"
            )
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"median {sorted(walls)[len(walls) // 2]:.1f} s (goal {GOAL_S:.0f} s)")
    print(f"peak {peak_mb:.0f} MB (goal {GOAL_MB:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
