"""Why nothing came stands in the archive, once: real Orthanc, DCMTK, kills of the node."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from node_process import PATIENCE_S, NodeProcess, alive
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.archive import Orthanc, find_orthanc
from node.ledger import SeriesState
from node.outcome import OUTCOME_FILE

Make = Callable[..., Any]

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(2 * PATIENCE_S)]

HEAD_MM = (6.5, 4.0, 5.0)  # 48 x 36 pixels of 4 x 5 mm make a field of view of a head
HOLE = 5  # of 12 slices; image 6
NOT_ANALYSED = SeriesState.NOT_ANALYSED


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("archive")
    archive = Orthanc(folder / "orthanc", modalities={"flairnode": ("FLAIRNODE", 1)})
    archive.start()
    yield archive
    archive.kill()


@pytest.fixture(scope="module")
def node(archive: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path_factory.mktemp("node") / "site", {"pacs": archive})
    node.start()
    yield node
    node.end()


def with_a_hole(make_flair_series: Make, patient_id: str) -> tuple[Any, Path]:
    """A study of 12 slices, of which one is kept back."""
    flair = make_flair_series(slices=12, spacing_mm=HEAD_MM, patient_id=patient_id)
    late = next(
        path
        for path in flair.paths
        if dcmread(path).SOPInstanceUID == flair.sop_instance_uids[HOLE]
    )
    aside = flair.folder.parent / f"late-{patient_id}"
    aside.mkdir()
    return flair, Path(shutil.move(late, aside / late.name))


def notes_in(archive: Orthanc, node: NodeProcess, series_instance_uid: str) -> list[Dataset]:
    """Every object in the archive that came from the series, notes or not."""
    held = set(archive.sop_instance_uids())
    found = []
    with node.ledger() as ledger:
        jobs = ledger.jobs_of(series_instance_uid)
    for job in jobs:
        for path in (node.data_dir / "results" / job.job_id).glob("*.dcm"):
            ours = dcmread(path)
            if str(ours.SOPInstanceUID) in held:
                (stored,) = archive.files_of(str(ours.SeriesInstanceUID))
                found.append(dcmread(BytesIO(stored)))
    return found


def said(note: Dataset) -> str:
    return "\n".join(str(item.get("TextValue", "")) for item in note.ContentSequence)


def send(node: NodeProcess, folder: Path) -> None:
    done = node.send(folder)
    assert done.returncode == 0, done.stderr


def test_a_study_with_a_hole_ends_not_analysed_and_its_one_note_names_the_reason(
    node: NodeProcess, archive: Orthanc, make_flair_series: Make
) -> None:
    before = len(archive.sop_instance_uids())
    flair, late = with_a_hole(make_flair_series, "HOLE")
    send(node, flair.folder)
    node.wait_for_state(flair.series_instance_uid, NOT_ANALYSED)
    (note,) = notes_in(archive, node, flair.series_instance_uid)
    assert note.SOPClassUID.name == "Basic Text SR Storage"
    assert note.StudyInstanceUID == flair.study_instance_uid
    assert note.PatientID == "HOLE"
    assert "Not analysed: 1 slice is missing between image 5 and image 7." in said(note)
    assert "Reason code: missing-slice." in said(note)
    assert len(archive.sop_instance_uids()) == before + 1

    send(node, flair.folder)
    time.sleep(2.5)  # longer than the quiet period and a sweep
    assert len(archive.sop_instance_uids()) == before + 1
    assert archive.stored_count() == len(archive.sop_instance_uids())

    send(node, late.parent)
    node.wait_for_state(flair.series_instance_uid, SeriesState.DELIVERED)
    kinds = sorted(
        str(one.SOPClassUID.name) for one in notes_in(archive, node, flair.series_instance_uid)
    )
    assert kinds == ["Basic Text SR Storage", *["Comprehensive 3D SR Storage"] * 2]
    with node.ledger() as ledger:
        told, analysed = ledger.jobs_of(flair.series_instance_uid)
        assert (told.state, told.reason) == (NOT_ANALYSED, "missing-slice")
        assert analysed.predecessor == told.job_id
        assert ledger.oracle().balanced


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("refuse", "blank-image", "No lesion was looked for"),
        ("withhold", "no-tissue-contrast", "its result was withheld"),
    ],
)
def test_a_series_that_the_gate_or_the_quality_check_refuses_has_its_note(
    node: NodeProcess,
    archive: Orthanc,
    make_flair_series: Make,
    fault: str,
    reason: str,
    words: str,
) -> None:
    flair = make_flair_series(spacing_mm=HEAD_MM, patient_id=fault.upper())
    node.fault(f"{fault}.{flair.series_instance_uid}")
    send(node, flair.folder)
    node.wait_for_state(flair.series_instance_uid, NOT_ANALYSED)
    (note,) = notes_in(archive, node, flair.series_instance_uid)
    assert f"Reason code: {reason}." in said(note)
    assert words in said(note)


def test_a_note_waits_for_a_dead_archive_and_its_series_is_not_analysed_all_the_while(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    make_flair_series: Make,
) -> None:
    archive = make_archive("orthanc")
    node = make_node(archives={"pacs": archive})
    node.start()
    archive.kill()
    flair, _ = with_a_hole(make_flair_series, "WAITS")
    send(node, flair.folder)
    node.wait_for_state(flair.series_instance_uid, NOT_ANALYSED)
    archive.start()
    node.wait_until(lambda: len(archive.sop_instance_uids()) == 1)
    node.wait_until(lambda: delivery_states(node, flair.series_instance_uid) == {"confirmed"})
    with node.ledger() as ledger:
        ends = {one.state.value for one in ledger.history(flair.series_instance_uid)}
    assert not ends & {"held", "delivered", "failed"}
    assert archive.stored_count() == 1


def delivery_states(node: NodeProcess, series_instance_uid: str) -> set[str]:
    with node.ledger() as ledger:
        return {
            one.state
            for job in ledger.jobs_of(series_instance_uid)
            for one in ledger.deliveries(job.job_id)
        }


@pytest.mark.parametrize("victim", ["worker", "service"])
def test_a_kill_between_the_note_and_its_delivery_leaves_one_note(
    make_archive: Callable[[str], Orthanc],
    make_node: Callable[..., NodeProcess],
    make_flair_series: Make,
    victim: str,
) -> None:
    archive = make_archive("orthanc")
    node = make_node(archives={"pacs": archive})
    node.start()
    flair, _ = with_a_hole(make_flair_series, "KILLED")
    if victim == "worker":
        node.fault("slow", "1.5")  # while the note is being made
        send(node, flair.folder)
        node.wait_until(lambda: any((node.data_dir / "results").glob("*.attempts")))
        os.kill(node.worker_pids()[0], signal.SIGKILL)
        node.fault("slow", "0")
    else:
        send(node, flair.folder)
        # The note is on disk, and perhaps on its way.
        node.wait_until(lambda: any((node.data_dir / "results").glob(f"*/{OUTCOME_FILE}")))
        workers = node.worker_pids()
        node.kill()
        node.wait_until(lambda: not any(alive(pid) for pid in workers))
        node.start()
    node.wait_for_state(flair.series_instance_uid, NOT_ANALYSED)
    assert len(notes_in(archive, node, flair.series_instance_uid)) == 1
    assert len(archive.sop_instance_uids()) == archive.stored_count() == 1
