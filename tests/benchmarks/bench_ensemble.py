"""How long five members take over a head of 24 slices, and how much memory.

`.venv/bin/python -m tests.benchmarks.bench_ensemble` prints a table; every row is a process of its
own, so that its memory is its own. Random weights of the starter's architecture: the time does not
depend on them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLICES, ROWS, COLUMNS = 24, 224, 192
REPEATS = 2
CASES = [
    {"threads": 1, "mirroring": "off", "precision": "fp32"},
    {"threads": 2, "mirroring": "off", "precision": "fp32"},
    {"threads": 1, "mirroring": "on", "precision": "fp32"},
    {"threads": 2, "mirroring": "on", "precision": "fp32"},
    {"threads": 1, "mirroring": "off", "precision": "bf16"},
    {"threads": 2, "mirroring": "off", "precision": "bf16"},
]


def measure(pack_path: Path, case: dict[str, object]) -> dict[str, object]:
    """One row: import, load and the best of a few runs over one head."""
    start = time.perf_counter()
    from pipeline.ensemble import Ensemble
    from pipeline.model_pack import load_pack
    from tests.pipeline.tiny_pack import heads

    imported = time.perf_counter()
    ensemble = Ensemble.load(load_pack(pack_path), device="cpu", **case)
    loaded = time.perf_counter()
    images = heads(SLICES, ROWS, COLUMNS)
    runs, cpu = [], []
    for _ in range(REPEATS):
        before, cpu_before = time.perf_counter(), time.process_time()
        ensemble.segment(images)
        runs.append(time.perf_counter() - before)
        cpu.append(time.process_time() - cpu_before)
    return case | {
        "import_s": round(imported - start, 2),
        "load_s": round(loaded - imported, 2),
        "first_s": round(runs[0], 2),
        "best_s": round(min(runs), 2),
        "best_cpu_s": round(min(cpu), 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Make the pack, run every case in its own process, print."""
    from tests.pipeline.tiny_pack import STARTER_FEATURES, make_pack, make_plans

    with tempfile.TemporaryDirectory() as folder:
        pack_path = Path(folder) / "pack"
        make_pack(
            pack_path,
            make_plans(ROWS, COLUMNS, STARTER_FEATURES),
            canvas={
                "rows": ROWS,
                "columns": COLUMNS,
                "pixel_mm": 1,
                "normalisation": "starter",
                "dilation_mm": 2,
            },
            mirroring_axes=(1,),
        )
        size_mb = sum(file.stat().st_size for file in pack_path.rglob("*.safetensors")) / 1e6
        print(f"five members, {SLICES} x {ROWS} x {COLUMNS}, weights {size_mb:.1f} MB")
        for case in CASES:
            result = subprocess.run(
                [sys.executable, "-m", __spec__.name, str(pack_path), json.dumps(case)],
                capture_output=True,
                text=True,
                check=True,
            )
            row = json.loads(result.stdout)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]), json.loads(sys.argv[2]))))
    else:
        main()
