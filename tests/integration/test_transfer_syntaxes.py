"""One real study in every transfer syntax a hospital sends: read, selected and received alike."""

from __future__ import annotations

import subprocess
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from listening import Node
from pydicom import dcmread
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from config.settings import Peer, SelectionSettings
from dicom.network.scp import TRANSFER_SYNTAXES
from dicom.network.scu import store
from dicom.series import read_series, read_study
from dicom.volume import read_volume
from pipeline.results import build_results
from pipeline.selection import choose
from tests.pipeline.analysed import SETTINGS, analysis_of, no_lesions, pack

DCMTK = Path("/usr/bin")
needs_dcmtk = pytest.mark.skipif(not (DCMTK / "dcmcjpls").exists(), reason="apt-get install dcmtk")
# DCMTK's encoders where it has one, pydicom's where it has none.
LOSSLESS: dict[str, list[str] | None] = {
    ExplicitVRLittleEndian: ["dcmconv", "+te"],
    ImplicitVRLittleEndian: ["dcmconv", "+ti"],
    ExplicitVRBigEndian: ["dcmconv", "+tb"],
    DeflatedExplicitVRLittleEndian: ["dcmconv", "+td"],
    RLELossless: ["dcmcrle"],
    JPEGLossless: ["dcmcjpeg", "+el"],
    JPEGLosslessSV1: ["dcmcjpeg", "+e1"],
    JPEGLSLossless: ["dcmcjpls", "+el"],
    JPEG2000Lossless: None,
}
LOSSY = {JPEGExtended12Bit: ["dcmcjpeg", "+ee"], JPEGLSNearLossless: ["dcmcjpls", "+en"]}
EVERY = 4
"""Nine slices of the real study are enough to be a stack, and take a quarter of the time."""

pytestmark = [needs_dcmtk, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is made of a study."""

    voxels: str
    uids: tuple[str, ...]
    lossy: bool


@cache
def seen(files: tuple[Path, ...]) -> Seen:
    study = read_study(Path(), files=files)
    selection = choose(study, SelectionSettings())
    series = read_series(files)
    assert selection.selected == series.series_instance_uid, selection.decisions
    volume = read_volume(series)
    results = build_results(
        series, analysis_of(volume, no_lesions(volume.grid.shape)), pack(), SETTINGS
    )
    return Seen(volume.pixel_digest, tuple(r.sop_instance_uid for r in results), volume.lossy)


def real_slices(shared_data: Path) -> tuple[Path, ...]:
    found = sorted((shared_data / "dicom_wrapped_ms" / "patient01_study1").glob("*.dcm"))
    assert len(found) == 36
    return tuple(found[::EVERY])


def transcoded(paths: tuple[Path, ...], syntax: str, folder: Path) -> tuple[Path, ...]:
    command = (LOSSLESS | LOSSY)[syntax]
    made = []
    for path in paths:
        target = folder / path.name
        made.append(target)
        if command is None:
            image = dcmread(path)
            image.compress(UID(syntax), generate_instance_uid=False)
            image.save_as(target)
        else:
            # A new UID for lossy copies is right for DCMTK, and here would be another study.
            never = ["+un"] if syntax in LOSSY else []
            program, *options = [str(DCMTK / command[0]), *command[1:], *never]
            subprocess.run([program, *options, path, target], check=True, timeout=60)
    assert {syntax_of(path) for path in made} == {syntax}
    return tuple(made)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: UID(uid).name)
def test_a_real_study_is_the_same_in_every_lossless_transfer_syntax(
    shared_data: Path, tmp_path: Path, node: Node, syntax: str
) -> None:
    paths = real_slices(shared_data)
    copies = transcoded(paths, syntax, tmp_path)
    assert seen(copies) == seen(paths)

    peer = Peer(name="node", ae_title="FLAIRNODE", host="127.0.0.1", port=node.server.port)
    answers = store(peer, copies, calling_ae_title="SENDER")
    assert [one.status for one in answers] == [0] * len(copies)
    (job,) = node.close_studies()
    spooled = {path.stem: path for path in node.ledger.paths_of(job.job_id)}
    for copy in copies:
        kept = spooled[str(dcmread(copy, stop_before_pixels=True).SOPInstanceUID)]
        assert syntax_of(kept) == syntax
        assert dataset_bytes(kept) == dataset_bytes(copy)


def syntax_of(path: Path) -> str:
    return str(dcmread(path, specific_tags=[], stop_before_pixels=True).file_meta.TransferSyntaxUID)


def dataset_bytes(path: Path) -> bytes:
    """All that follows the file meta information."""
    content = path.read_bytes()
    length = int.from_bytes(content[140:144], "little")  # (0002,0000), PS3.10 table 7.1-1
    return content[144 + length :]


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda uid: UID(uid).name)
def test_a_real_study_that_lost_something_is_read_and_marked(
    shared_data: Path, tmp_path: Path, syntax: str
) -> None:
    paths = real_slices(shared_data)[:3]
    copies = transcoded(paths, syntax, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume, original = read_volume(read_series(copies)), read_volume(read_series(paths))
    assert (volume.lossy, original.lossy) == (True, False)
    assert 0 < np.abs(volume.voxels - original.voxels).mean() < 0.02 * original.voxels.max()


def test_every_transfer_syntax_that_is_read_is_accepted() -> None:
    assert set(LOSSLESS) | set(LOSSY) <= set(TRANSFER_SYNTAXES)
