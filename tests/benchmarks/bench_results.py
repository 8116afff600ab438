"""Time and size of the results of 60 lesions on 24 slices of 512 x 512: building and checking.

.venv/bin/python tests/benchmarks/bench_results.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dicom.series import Instance, Series
from dicom.volume import Grid, Volume
from pipeline.results import build_results
from tests.pipeline.analysed import SETTINGS, analysis_of, pack

SHAPE = (24, 512, 512)
SPACING_MM = (6.5, 0.45, 0.45)


def series() -> Series:
    instances = []
    for index in range(SHAPE[0]):
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 100"
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, f"1.2.3.{index}"
        header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.1", "1.2.2"
        header.FrameOfReferenceUID = "1.2.4"
        header.PatientName, header.PatientID = "Bench^Mark", "B"
        header.Modality, header.InstanceNumber = "MR", index + 1
        header.Rows, header.Columns = SHAPE[1:]
        header.PixelSpacing = list(SPACING_MM[1:])
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [0, 0, index * SPACING_MM[0]]
        instances.append(Instance(Path(f"{index}.dcm"), header.SOPInstanceUID, header))
    return Series("1.2.1", "1.2.2", tuple(instances))


def labels() -> np.ndarray[tuple[int, int, int], np.dtype[np.int32]]:
    """Discs of 2 to 8 pixels radius, each on three slices."""
    random = np.random.default_rng(1)
    made = np.zeros(SHAPE, np.int32)
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    for number in range(60):
        centre, radius = random.integers(1, 22), random.integers(2, 9)
        row, column = number // 8 * 60 + 20, number % 8 * 60 + 20
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        made[centre - 1 : centre + 2, disc] = number + 1
    return made


def main() -> None:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = (*SPACING_MM, 1.0)
    grid = Grid(affine, SHAPE, "1.2.4")
    one = series()
    uids = tuple(instance.sop_instance_uid for instance in one.instances)
    volume = Volume(np.zeros(SHAPE, np.float32), grid, uids, "pixels")
    analysis = analysis_of(volume, labels())
    wall, used = [], []
    for _ in range(4):
        start, start_cpu = time.perf_counter(), time.process_time()
        results = build_results(one, analysis, pack(), SETTINGS)
        wall.append(time.perf_counter() - start)
        used.append(time.process_time() - start_cpu)
    start_cpu = time.process_time()
    sum(index for index in range(20_000_000))
    loop = time.process_time() - start_cpu
    print(f"60 lesions: wall {min(wall):.2f} s, CPU {min(used):.2f} s (least of 4)")
    print(f"for comparison between runs: 20 million additions {loop:.2f} s of CPU")
    for result in results:
        print(f"{result.kind}: {len(result.content):,} bytes")


if __name__ == "__main__":
    main()
