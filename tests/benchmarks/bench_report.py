"""Time and memory of the report of a cohort, from stored predictions.

Measures made cases with `validate run`, then builds the report of them; and the report of four
times as many. The memory of both must hardly grow with the number of cases.

Run: .venv/bin/python tests/benchmarks/bench_report.py [--cases 100]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dicom.volume import Grid, write_nifti

SHAPE = (24, 128, 128)
SPACING_MM = (6.5, 1.6, 1.6)
GOAL_S = 60.0
GROWTH_GOAL_MIB_PER_CASE = 0.5
RUN_GROWTH_GOAL_MIB_PER_CASE = 0.25  # a row without its lesions; a volume of these is 1.5 MiB
SELF = Path(__file__)


def make_cases(folder: Path, count: int) -> None:
    """Discs on a grey head; the prediction is the reference, moved, with some left out."""
    random = np.random.default_rng(1)
    grid = Grid(np.diag([*SPACING_MM, 1.0]), SHAPE)
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    head = ((rows - 64) ** 2 + (columns - 64) ** 2 < 50**2) * np.float32(100)
    lines = ["case,patient,centre,fold,scanner,sex,age,phenotype"]
    for number in range(count):
        reference, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
        for _ in range(20):
            first, row, column = random.integers((2, 30, 30), (20, 98, 98))
            disc = (rows - row) ** 2 + (columns - column) ** 2 <= random.integers(1, 20)
            reference[first : first + 2, disc] = True
            if random.random() < 0.8:
                prediction[first : first + 2, np.roll(disc, 1, axis=1)] = True
        name = f"case{number:04}"
        (folder / name).mkdir(parents=True)
        write_nifti(folder / name / "reference.nii.gz", reference, grid)
        write_nifti(folder / name / "prediction.nii.gz", prediction, grid)
        texture = random.normal(0, 6, SHAPE).astype(np.float32)
        write_nifti(folder / name / "flair.nii.gz", head + texture * (head > 0), grid)
        lines.append(
            f"{name},P{number * 4 // 5:04},{'NS'[number % 2]},{number % 5},S{number % 3},"
            f"{'FM'[number % 2]},{20 + number % 45},RR"
        )
    (folder / "patients.csv").write_text("\n".join(lines) + "\n")


def copy_run(run: Path, copy: Path, times: int) -> None:
    """The same rows again under other names: the time of measuring is not what is looked at."""
    (copy / "cases").mkdir(parents=True)
    (copy / "pictures").symlink_to(run / "pictures")
    for path in sorted((run / "cases").glob("*.json")):
        row = json.loads(path.read_text())
        for index in range(times):
            again = row | {"case": f"{row['case']}-{index}", "patient": f"{row['patient']}-{index}"}
            (copy / "cases" / f"{again['case']}.json").write_text(json.dumps(again))


def in_a_process(*arguments: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of a process of its own."""
    started = time.perf_counter()
    said = subprocess.run(
        [sys.executable, str(SELF), *arguments], check=True, capture_output=True, text=True
    ).stdout.split()
    return time.perf_counter() - started, float(said[0]), float(said[1])


def report(run: Path) -> tuple[float, float, float]:
    return in_a_process("--report", str(run))


def measure(cases: Path, output: Path, count: int) -> tuple[float, float, float]:
    """`validate run` of the first of the cases."""
    return in_a_process("--measure", str(cases), str(output), "--cases", str(count))


def measure_here(cases: Path, output: Path, count: int) -> None:
    from training.validate import read_cases, run

    run(read_cases(cases)[:count], output)
    _tell_usage()


def report_here(run: Path) -> None:
    from training.report import write

    write(run, run / "report")
    _tell_usage()


def _tell_usage() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def main() -> int:
    """Print the figures beside the goals; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.report is not None:
        report_here(arguments.report)
        return 0
    if arguments.measure is not None:
        measure_here(*arguments.measure, arguments.cases)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cases(folder / "cases", arguments.cases)
        few = max(1, arguments.cases // 4)
        _, _, few_mib = measure(folder / "cases", folder / "few", few)
        run_s, run_cpu_s, run_mib = measure(folder / "cases", folder / "run", arguments.cases)
        run_growth = (run_mib - few_mib) / max(1, arguments.cases - few)
        print(
            f"{arguments.cases} cases measured in {run_s:.1f} s, CPU {run_cpu_s:.1f} s, "
            f"{run_mib:.0f} MiB: {run_growth:.2f} MiB more per case than of {few}    "
            f"goal {RUN_GROWTH_GOAL_MIB_PER_CASE} MiB"
        )
        wall_s, cpu_s, mib = report(folder / "run")
        size = (folder / "run/report/report.html").stat().st_size / 2**20
        print(
            f"report of {arguments.cases} cases: {wall_s:.1f} s, CPU {cpu_s:.1f} s, {mib:.0f} MiB, "
            f"page {size:.1f} MiB    goal {GOAL_S:.0f} s"
        )
        copy_run(folder / "run", folder / "large", 4)
        large_s, large_cpu_s, large_mib = report(folder / "large")
        growth = (large_mib - mib) / (3 * arguments.cases)
        print(
            f"report of {4 * arguments.cases} cases: {large_s:.1f} s, CPU {large_cpu_s:.1f} s, "
            f"{large_mib:.0f} MiB: {growth:.2f} MiB more per case    "
            f"goal {GROWTH_GOAL_MIB_PER_CASE} MiB"
        )
    return int(
        wall_s > GOAL_S
        or growth > GROWTH_GOAL_MIB_PER_CASE
        or run_growth > RUN_GROWTH_GOAL_MIB_PER_CASE
    )


if __name__ == "__main__":
    sys.exit(main())
