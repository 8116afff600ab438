"""The intake beside Orthanc and DCMTK's storescp: images per second, and how long an answer takes.

    python -m tests.benchmarks.bench_intake [--images 60] [--repeats 3] [--associations 10000]

Every repeat sends the same images to each receiver in turn, from /usr/bin/storescu (DCMTK, Nagle's
algorithm on, as it is delivered), so that a busy machine slows all of them alike. The others get
TCP_NODELAY=1, without which they wait 40 ms per image for nothing. `intake` and Orthanc synchronise
each file before they answer; storescp does not. The answer is timed from the last byte sent, by a
sender of our own. Goals: Orthanc's rate, and 225 images/s on one association (1 Gbit/s), where the
disk allows it: an image cannot be answered before its synchronising ends, whose cost is printed.

Before Orthanc and storescp measure, they are found under their usual names, or left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from node.archive import Orthanc, find_orthanc, free_port
from tests.raw_peer import ACCEPTED, RELEASED, RawPeer, dataset_of

STORESCU, STORESCP = "/usr/bin/storescu", "/usr/bin/storescp"
HERE = Path(__file__).resolve().parents[2]
GOAL_PER_S = 225.0


@dataclass
class Receiver:
    """Somebody who takes images."""

    name: str
    ae_title: str
    port: int
    pid: int
    rates: dict[int, list[float]] = field(default_factory=dict)
    answers_ms: list[float] = field(default_factory=list)
    taken: int = 0


def write_images(folder: Path, count: int, size: int, *, study: str) -> list[Path]:
    """Square MR images of 16 bits; 512 x 512 are 525 kB, as most FLAIR are sent."""
    noise = np.random.default_rng(1).integers(0, 4096, (size, size), dtype=np.uint16).tobytes()
    series, paths = generate_uid(), []
    folder.mkdir(exist_ok=True)
    for number in range(count):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.PatientID, image.PatientName = "BENCH", "Bench"
        image.Modality, image.InstanceNumber = "MR", number + 1
        image.Rows = image.Columns = size
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = noise
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        paths.append(folder / f"{number:04d}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


@contextmanager
def our_intake(folder: Path) -> Iterator[Receiver]:
    """Listener, spool and ledger in a process of their own."""
    command = [sys.executable, str(HERE / "tests/integration/intake_process.py")]
    with subprocess.Popen(
        [*command, str(folder / "intake"), "none", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    ) as process:
        try:
            assert process.stdout is not None
            yield Receiver("intake", "FLAIRNODE", int(process.stdout.readline()), process.pid)
        finally:
            process.kill()


@contextmanager
def orthanc(folder: Path) -> Iterator[Receiver]:
    """Orthanc with its own fsync, which is on."""
    os.environ["TCP_NODELAY"] = "1"
    (folder / "orthanc").mkdir()
    try:
        archive = Orthanc(folder / "orthanc", modalities={"sender": ("SENDER", free_port())})
        with archive:
            yield Receiver("Orthanc", archive.ae_title, archive.dicom_port, archive.pid or 0)
    finally:
        del os.environ["TCP_NODELAY"]


@contextmanager
def storescp(folder: Path) -> Iterator[Receiver]:
    """DCMTK's, which synchronises nothing."""
    place, port = folder / "storescp", free_port()
    place.mkdir()
    with subprocess.Popen(
        [STORESCP, "-od", str(place), str(port)], env={**os.environ, "TCP_NODELAY": "1"}
    ) as process:
        try:
            time.sleep(1)
            yield Receiver("storescp", "ANY", port, process.pid)
        finally:
            process.kill()


def send(receiver: Receiver, paths: list[Path], associations: int) -> float:
    """Images per second from DCMTK's storescu."""
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}

    def part(start: int) -> None:
        command = [STORESCU, "-aet", "SENDER", "-aec", receiver.ae_title]
        command += ["127.0.0.1", str(receiver.port), *map(str, paths[start::associations])]
        subprocess.run(command, check=True, capture_output=True, env=environment)

    begin = time.perf_counter()
    with ThreadPoolExecutor(associations) as pool:
        list(pool.map(part, range(associations)))
    return len(paths) / (time.perf_counter() - begin)


def time_answers(receiver: Receiver, paths: list[Path]) -> None:
    """Milliseconds from the last byte of an image to its answer."""
    with RawPeer(receiver.port) as peer:
        if peer.associate(called=receiver.ae_title) != ACCEPTED:
            raise SystemExit(f"{receiver.name} takes no association")
        for path in paths:
            status, seconds = peer.store(*dataset_of(path))
            if status != 0:
                raise SystemExit(f"{receiver.name} answered {status}")
            receiver.answers_ms.append(seconds * 1000)
        peer.release()


def rss_mb(pid: int) -> float:
    """Memory of a process."""
    said = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", said)[0]) / 1024


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, which a busy machine spoils less than the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def synchronising_ms(folder: Path) -> float:
    """What this disk takes for the least that can be synchronised: one block of one file."""
    with (folder / "block").open("wb") as file:
        taken = []
        for _ in range(20):
            file.write(bytes(512))
            file.flush()
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1000


def many_associations(folder: Path, count: int) -> None:
    """Memory of the intake over so many associations in a row, a C-ECHO in each."""
    with our_intake(folder) as receiver:
        begin, marks = time.perf_counter(), []
        for number in range(count + 1):
            if number % max(1, count // 10) == 0:
                marks.append(f"{rss_mb(receiver.pid):.1f}")
            with RawPeer(receiver.port) as peer:
                if peer.associate() != ACCEPTED or peer.echo() != 0 or peer.release() != RELEASED:
                    raise SystemExit(f"association {number} was not served")
        seconds = time.perf_counter() - begin
        print(f"{count} associations in a row: all served, {count / seconds:.0f}/s")
        print(f"  RSS in MB from the first to the last: {' '.join(marks)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--associations", type=int, default=0, help="so many in a row as well")
    parser.add_argument("--folder", type=Path, help="where data lie; a temporary folder otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, ExitStack() as stack:
        folder = Path(name)
        if arguments.associations:
            many_associations(folder, arguments.associations)
        makers = [our_intake]
        makers += [orthanc] if find_orthanc() is not None else []
        makers += [storescp] if Path(STORESCP).exists() else []
        receivers = [stack.enter_context(make(folder)) for make in makers]
        begun = {receiver.name: cpu_s(receiver.pid) for receiver in receivers}
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for repeat in range(arguments.repeats):
            print(f"one block synchronised: {synchronising_ms(folder):.2f} ms")
            for receiver in receivers:
                place = folder / f"images{repeat}{receiver.name}"
                images = write_images(place, arguments.images, arguments.size, study=generate_uid())
                fresh = len(images) // 3
                time_answers(receiver, images[:fresh])
                half = fresh + (len(images) - fresh) // 2
                for associations, part in ((1, images[fresh:half]), (4, images[half:])):
                    rate = send(receiver, part, associations)
                    receiver.rates.setdefault(associations, []).append(rate)
                receiver.taken += len(images)
                shutil.rmtree(place)
        print("            1 assoc   4 assoc  answer p50     p99     RSS  CPU/image")
        for one in receivers:
            rates = [statistics.median(one.rates[count]) for count in (1, 4)]
            p50, p99 = np.percentile(one.answers_ms, [50, 99])
            print(
                f"{one.name:9} {rates[0]:7.1f}/s {rates[1]:7.1f}/s  {p50:7.2f} ms {p99:4.1f} ms"
                f"  {rss_mb(one.pid):3.0f} MB"
                f"  {(cpu_s(one.pid) - begun[one.name]) / one.taken * 1000:6.2f} ms"
            )
        ours = statistics.median(receivers[0].rates[1])
        print(f"goal {GOAL_PER_S:.0f}/s on one association: {ours / GOAL_PER_S:.2f} of it")


if __name__ == "__main__":
    main()
