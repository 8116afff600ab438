"""A node whose network is replaced by something small: everything else is the real program.

`standin.py serve --config FILE` and `standin.py worker ...`. The analyser reads the headers it was
given and writes two real DICOM objects (Comprehensive 3D SR), so that a real archive stores them.
Files in `data_dir/standin/` make it misbehave for a series: `slow.<uid>`, `kill.<uid>`,
`segfault.<uid>`, `hang.<uid>`, `raise.<uid>`, `memory.<uid>`, `grow.<uid>` (takes
memory piece by piece), `refuse.<uid>`, `withhold.<uid>`. The last two are what
the gate and the quality check say; the note of such a refusal is the real one.
"""

from __future__ import annotations

import argparse
import ctypes
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
from dicom.errors import BlankImageError, Outcome
from dicom.series import read_series
from dicom.uids import result_uid

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script sees its own folder alone

from pipeline.model_pack import ModelPack

if TYPE_CHECKING:
    from node.worker import Analyser

PACK_DIGEST = "5" * 64


def analyser(settings: Settings) -> Analyser:
    from node.worker import Analyser  # torch-free, but the service must not import it
    from pipeline.note import Refusal, build_note
    from pipeline.quality import Flag
    from tests.pipeline.tiny_pack import manifest

    faults = settings.node.data_dir / "standin"
    pack = ModelPack(manifest(status="research"), Path("/no/such/pack"), PACK_DIGEST)

    def tell_why(paths: Sequence[Path], output: Path, reason: str, explanation: str) -> Any:  # noqa: ANN401
        misbehave(faults, "", Dataset())
        return noted(paths, output, Refusal(reason, explanation))

    def noted(paths: Sequence[Path], output: Path, refusal: Refusal) -> Any:  # noqa: ANN401
        note = build_note(read_series(paths), refusal, pack)
        path = output / "note.dcm"
        path.write_bytes(note.content)
        one = SimpleNamespace(kind="note", sop_instance_uid=note.sop_instance_uid, path=path)
        return ended(Outcome.NOT_ANALYSED, [one], refusal.reason, refusal.explanation)

    def analyse(paths: Sequence[Path], output: Path) -> Any:  # noqa: ANN401  # an AnalysisOutcome by its attributes
        source = dcmread(paths[0], stop_before_pixels=True)
        uid = str(source.SeriesInstanceUID)
        try:
            misbehave(faults, uid, source)
        except BlankImageError as error:
            return noted(paths, output, Refusal(error.reason, str(error)))
        if (faults / f"withhold.{uid}").exists():
            flag = Flag("no-tissue-contrast", "What was taken for a brain is uniform.", "fail")
            return noted(paths, output, Refusal(flag.code, flag.message, (flag,)))
        instances = sorted(
            str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in paths
        )
        outputs = [write(output, kind, source, instances) for kind in ("seg", "sr")]
        return ended(Outcome.ANALYSED, outputs)

    return Analyser(PACK_DIGEST, research=True, analyse=analyse, tell_why=tell_why)


def ended(
    outcome: Outcome,
    outputs: Sequence[SimpleNamespace],
    reason: str = "",
    explanation: str = "",
) -> SimpleNamespace:
    report = {
        "outputs": [
            {"kind": o.kind, "sop_instance_uid": o.sop_instance_uid, "path": str(o.path)}
            for o in outputs
        ],
    }
    return SimpleNamespace(
        outcome=outcome, reason=reason, explanation=explanation, outputs=outputs, report=report
    )


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
    if asked("segfault"):
        ctypes.string_at(0)
    if asked("grow"):
        held = [bytearray(16 * 2**20)]
        while True:  # touched, 16 MB at a time
            held.append(bytearray(b"x" * 16 * 2**20))
            time.sleep(0.01)
    if asked("memory"):
        bytearray(64 * 2**30)
    if asked("raise"):
        raise RuntimeError(f"no result for {source.PatientName}")
    if asked("refuse"):
        raise BlankImageError("98 % of all voxels have the value 0")


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
