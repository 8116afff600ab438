"""A node whose network is replaced by something small: everything else is the real program.

`standin.py serve --config FILE` and `standin.py worker ...`. The analyser reads the headers it was
given and writes two real DICOM objects (Comprehensive 3D SR), so that a real archive stores them.
Files in `data_dir/standin/` make it misbehave for a series: `slow.<uid>`, `kill.<uid>`,
`hang.<uid>`, `raise.<uid>`, `memory.<uid>`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ExplicitVRLittleEndian

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import MissingSliceError, Outcome
from dicom.uids import result_uid

if TYPE_CHECKING:
    from node.worker import Analyser

PACK_DIGEST = "5" * 64


def analyser(settings: Settings) -> Analyser:
    from node.worker import Analyser  # torch-free, but the service must not import it

    faults = settings.node.data_dir / "standin"

    def analyse(paths: Sequence[Path], output: Path) -> Any:  # noqa: ANN401  # an AnalysisOutcome by its attributes
        source = dcmread(paths[0], stop_before_pixels=True)
        uid = str(source.SeriesInstanceUID)
        misbehave(faults, uid, source)
        instances = sorted(
            str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in paths
        )
        outputs = [write(output, kind, source, instances) for kind in ("seg", "sr")]
        report = {
            "outputs": [
                {"kind": o.kind, "sop_instance_uid": o.sop_instance_uid, "path": str(o.path)}
                for o in outputs
            ],
        }
        return SimpleNamespace(
            outcome=Outcome.ANALYSED, reason="", explanation="", outputs=outputs, report=report
        )

    return Analyser(pack_digest=PACK_DIGEST, research=True, analyse=analyse)


def misbehave(faults: Path, uid: str, source: Dataset) -> None:
    def asked(fault: str) -> bool:
        return (faults / f"{fault}.{uid}").exists()

    time.sleep(float((faults / "slow").read_text()) if (faults / "slow").exists() else 0.05)
    if asked("slow"):
        time.sleep(2.0)
    if asked("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked("hang"):
        time.sleep(600)
    if asked("memory"):
        bytearray(64 * 2**30)
    if asked("raise"):
        raise RuntimeError(f"no result for {source.PatientName}")
    if asked("refuse"):
        raise MissingSliceError("a gap of 13.0 mm among gaps of 6.5 mm")


def write(output: Path, kind: str, source: Dataset, instances: Sequence[str]) -> SimpleNamespace:
    """A small SR; the archive keeps it as it would keep a real result."""
    sr = Dataset()
    sr.SOPClassUID = Comprehensive3DSRStorage
    sr.SOPInstanceUID = result_uid(*instances, PACK_DIGEST, kind, "instance")
    sr.StudyInstanceUID = source.StudyInstanceUID
    sr.SeriesInstanceUID = result_uid(*instances, PACK_DIGEST, kind, "series")
    sr.PatientID, sr.PatientName = source.PatientID, source.PatientName
    sr.Modality, sr.SeriesNumber, sr.InstanceNumber = "SR", "900", "1"
    sr.ValueType, sr.ContinuityOfContent = "CONTAINER", "SEPARATE"
    sr.CompletionFlag, sr.VerificationFlag = "COMPLETE", "UNVERIFIED"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = Comprehensive3DSRStorage
    meta.MediaStorageSOPInstanceUID = UID(sr.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    sr.file_meta = meta
    path = output / f"{kind}.dcm"
    sr.save_as(path, enforce_file_format=True)
    return SimpleNamespace(kind=kind, sop_instance_uid=str(sr.SOPInstanceUID), path=path)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("serve", "worker"))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--run")
    arguments = parser.parse_args()
    if arguments.role == "serve":
        from node.service import serve

        return serve(
            load_settings(arguments.config),
            arguments.config,
            worker_command=(sys.executable, __file__, "worker"),
            model_digest=lambda _settings: PACK_DIGEST,
        )
    from node.worker import die_with, run_worker

    if arguments.parent is not None:
        die_with(arguments.parent)
    settings = load_settings(arguments.config)
    return run_worker(settings, arguments.index, load=analyser, run=arguments.run)


if __name__ == "__main__":
    sys.exit(main())
