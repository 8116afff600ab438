"""Images per second from /usr/bin/storescu (DCMTK) into the intake, on loopback.

    python tests/benchmarks/bench_intake.py [--images 60] [--size 512] [--repeats 3]

Three receivers, one after the other in every repeat, so that a busy machine slows all of them:
`stock`: pynetdicom's sockets as they are; `prompt`: ours (TCP_QUICKACK and TCP_NODELAY), nothing
kept; `intake`: prompt, and every image written, synchronised and recorded. Read the ratios, not the
absolute numbers.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom.transport import AssociationServer

from config.settings import NodeSettings, Settings
from dicom.network import scp
from dicom.network.scp import Admission, ReceivedObject, StorageServer
from node.audit import Audit
from node.intake import Intake
from node.ledger import Ledger
from node.sitekey import site_key
from node.spool import Spool

STORESCU = "/usr/bin/storescu"
SENDER = "BENCH"


def write_images(folder: Path, count: int, size: int, *, study: str) -> list[Path]:
    """Square MR images of 16 bits; 512 x 512 are 525 kB, as most FLAIR are sent."""
    noise = np.random.default_rng(1).integers(0, 4096, (size, size), dtype=np.uint16).tobytes()
    series, paths = generate_uid(), []
    for number in range(count):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
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


def images_per_second(
    on_store: Callable[[ReceivedObject], int], paths: list[Path], associations: int
) -> tuple[float, float]:
    """Images per second, and CPU seconds of this process per hundred images."""
    admission = Admission("FLAIRNODE", frozenset({SENDER}), (ipaddress.ip_network("127.0.0.1/32"),))
    # The sender's own default: Nagle's algorithm on.
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    with StorageServer("127.0.0.1", 0, admission, on_store, lambda _: None) as server:

        def send(part: list[Path]) -> None:
            command = [STORESCU, "-aet", SENDER, "-aec", "FLAIRNODE", "127.0.0.1", str(server.port)]
            command += [str(path) for path in part]
            subprocess.run(command, check=True, capture_output=True, env=environment)

        begin, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(associations) as pool:
            list(pool.map(send, [paths[start::associations] for start in range(associations)]))
        seconds = time.perf_counter() - begin
        return len(paths) / seconds, (time.process_time() - cpu) * 100 / len(paths)


def into_intake(folder: Path, paths: list[Path], associations: int) -> tuple[float, float]:
    """The same into a fresh spool and ledger."""
    with Ledger(folder / "intake.sqlite") as ledger:
        intake = Intake(
            Settings(node=NodeSettings(data_dir=folder, reserve_mb=0)),
            ledger,
            Spool(folder / "spool"),
            Audit(folder / "audit", site_key(folder)),
            pack_digest="a" * 64,
            settings_digest="b" * 64,
            enqueue=lambda _: None,
        )
        found = images_per_second(intake.on_store, paths, associations)
        balance = ledger.oracle()
        if balance.received != len(paths) or not balance.balanced:
            raise SystemExit(f"lost something: {balance}")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    prompt = scp._Listener.get_request
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, arguments.images, arguments.size, study=generate_uid())
        for associations in (1, 4):
            found: dict[str, list[tuple[float, float]]] = {}
            for repeat in range(arguments.repeats):
                scp._Listener.get_request = AssociationServer.get_request  # type: ignore[method-assign]
                found.setdefault("stock", []).append(
                    images_per_second(lambda _: 0x0000, paths, associations)
                )
                scp._Listener.get_request = prompt  # type: ignore[method-assign]
                found.setdefault("prompt", []).append(
                    images_per_second(lambda _: 0x0000, paths, associations)
                )
                data_dir = folder / f"data{associations}-{repeat}"
                found.setdefault("intake", []).append(into_intake(data_dir, paths, associations))
            print(
                f"{associations} association(s), "
                f"{arguments.images} images of {paths[0].stat().st_size / 1000:.0f} kB:"
            )
            slowest = statistics.median(rate for rate, _ in found["stock"])
            for receiver, runs in found.items():
                rate = statistics.median(rate for rate, _ in runs)
                cpu = statistics.median(cpu for _, cpu in runs)
                print(
                    f"  {receiver:<7} {rate:7.1f} images/s  x {rate / slowest:4.1f}"
                    f"  {cpu:5.2f} CPU s per 100 images"
                )


if __name__ == "__main__":
    main()
