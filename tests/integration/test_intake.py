"""The intake with senders that are not ours, and with a power that fails."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from listening import Node
from pydicom import dcmread

from config.settings import CompletenessSettings, Peer, Settings
from dicom.network.orthanc import OrthancClient
from dicom.network.scu import PeerRefusedError, store
from node.archive import Orthanc
from node.completeness import query_peer
from node.ledger import Ledger, SeriesState

Make = Callable[..., Any]
DCMSEND, STORESCU = Path("/usr/bin/dcmsend"), Path("/usr/bin/storescu")
HERE = Path(__file__).parent

needs_dcmtk = pytest.mark.skipif(
    not (DCMSEND.exists() and STORESCU.exists()), reason="apt-get install dcmtk"
)


@needs_dcmtk
def test_dcmsend_sends_a_study_and_sends_it_again(node: Node, make_flair_series: Make) -> None:
    flair = make_flair_series()
    said = node.dcmtk(DCMSEND, "+sd", str(flair.folder))
    assert "exit 0" in said
    assert node.ledger.oracle().balanced
    (job,) = node.close_studies()
    assert len(node.ledger.paths_of(job.job_id)) == 10
    before = node.ledger.counts()
    assert "exit 0" in node.dcmtk(DCMSEND, "+sd", str(flair.folder))
    assert node.close_studies() == []
    assert node.ledger.counts() == before
    stored = {dcmread(path).SOPInstanceUID for path in node.ledger.paths_of(job.job_id)}
    assert stored == set(flair.sop_instance_uids)


@needs_dcmtk
def test_a_stranger_is_rejected_and_noted(node: Node, make_flair_series: Make) -> None:
    said = node.dcmtk(DCMSEND, "+sd", str(make_flair_series().folder), calling="STRANGER")
    assert "exit 0" not in said
    assert "Association Rejected" in said
    assert node.ledger.counts()["instances"] == 0
    (entry,) = [entry for entry in node.audit.entries() if entry]
    assert (entry["event"], entry["calling_ae_title"]) == ("refused", "STRANGER")


@needs_dcmtk
def test_twelve_senders_at_once_lose_nothing(node: Node, make_flair_series: Make) -> None:
    flair = make_flair_series(slices=24, rows=32, columns=24)
    with ThreadPoolExecutor(12) as pool:
        said = list(
            pool.map(
                lambda start: node.dcmtk(STORESCU, *(str(path) for path in flair.paths[start::12])),
                range(12),
            )
        )
    assert all("exit 0" in one for one in said)
    balance = node.ledger.oracle()
    assert (balance.received, balance.balanced) == (24, True)
    assert len(node.close_studies()) == 1


@needs_dcmtk
def test_a_whole_real_study_ends_series_by_series(node: Node, shared_data: Path) -> None:
    folder = shared_data / "dicom_samples" / "siemens_aera_study"
    assert "exit 0" in node.dcmtk(DCMSEND, "+sd", "+r", str(folder))
    (job,) = node.close_studies()
    rows = node.ledger.series_of(job.study_instance_uid)
    assert len(rows) == 7
    assert [row.state for row in rows].count(SeriesState.SKIPPED) == 6
    assert all(row.reason and row.explanation for row in rows if row.job_id == "")
    assert node.ledger.oracle().received == sum(row.instances for row in rows)


@needs_dcmtk
def test_odd_real_objects_all_get_a_row(node: Node, shared_data: Path) -> None:
    node.dcmtk(DCMSEND, "+sd", "+r", str(shared_data / "dicom_samples" / "reference_objects_dcmqi"))
    node.close_studies()
    rows = node.ledger.all_series()
    assert {row.reason for row in rows} == {"not-image"}
    assert {row.state for row in rows} == {SeriesState.SKIPPED}
    assert len(rows) == 3


# --- kill -9 --------------------------------------------------------------------------------------


class IntakeProcess:
    """`intake_process.py`: an intake that will die at a chosen moment."""

    def __init__(self, data_dir: Path, point: str = "none", number: int = 0) -> None:
        command = [sys.executable, str(HERE / "intake_process.py"), str(data_dir)]
        self.process = subprocess.Popen(
            [*command, point, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=HERE.parents[1],
            env={"PYTHONPATH": str(HERE.parents[1])},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process died before it listened"
        self.peer = Peer(name="node", ae_title="FLAIRNODE", host="127.0.0.1", port=int(line))

    def end(self) -> int:
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait()


def acknowledged(peer: Peer, paths: tuple[Path, ...]) -> set[str]:
    results = store(peer, paths, calling_ae_title="SENDER", timeout_s=8)
    return {one.sop_instance_uid for one in results if one.stored}


@pytest.mark.timeout(300)  # seven processes, on a machine that may be busy
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(
    tmp_path: Path, make_flair_series: Make
) -> None:
    data_dir, chance = tmp_path / "data", random.Random(20261122)  # noqa: S311  # seeded on purpose
    promised: set[str] = set()
    sent: dict[str, Path] = {}
    for point in ("pdu", "part", "renamed", "row", "answered"):
        flair = make_flair_series(slices=6, rows=32, columns=24, patient_id=point)
        sent |= {dcmread(path).SOPInstanceUID: path for path in flair.paths}
        process = IntakeProcess(data_dir, point, number := chance.randint(2, 5))
        try:
            got = acknowledged(process.peer, flair.paths)
            assert process.process.wait(timeout=60) == -9, f"{point} {number}: it lives"
        finally:
            process.end()
        assert len(got) < 6
        if point != "pdu":
            assert len(got) == number - 1, point
        promised |= got
    restarted = IntakeProcess(data_dir)  # reconciles
    try:
        with Ledger(data_dir / "intake.sqlite") as ledger:
            assert promised <= ledger.sop_instance_uids()
            assert ledger.oracle().balanced
        assert not list(data_dir.rglob("*.part"))
        assert acknowledged(restarted.peer, tuple(sent.values())) == set(sent)
    finally:
        restarted.end()
    with Ledger(data_dir / "intake.sqlite") as ledger:
        balance = ledger.oracle()
        assert (balance.received, balance.balanced, balance.conflicts) == (30, True, 0)
        for uid, path in sent.items():
            row = ledger.instance(uid)
            assert row is not None
            assert dcmread(ledger.spool / row.path) == dcmread(path)


# --- a real archive -------------------------------------------------------------------------------


@pytest.mark.pacs
def test_the_archive_counts_finds_and_returns_what_it_was_sent(
    orthanc: Orthanc, make_flair_series: Make, tmp_path: Path
) -> None:
    flair = make_flair_series()
    peer = Peer(
        name="archive", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.dicom_port
    )
    results = store(peer, flair.paths, calling_ae_title="FLAIRNODE")
    assert all(one.stored for one in results)
    settings = Settings(peers=(peer,), completeness=CompletenessSettings(query_peer="archive"))
    found = query_peer(settings, flair.study_instance_uid, [flair.series_instance_uid])
    assert found.by_series == {flair.series_instance_uid: 10}

    client = OrthancClient(orthanc.url, orthanc.user, orthanc.password)
    assert client.holds_study(flair.study_instance_uid)
    assert not client.holds_study("1.2.3")
    assert client.instances(flair.study_instance_uid) == {
        flair.series_instance_uid: tuple(sorted(flair.sop_instance_uids))
    }
    client.download(flair.sop_instance_uids[0], tmp_path / "back.dcm")
    assert dcmread(tmp_path / "back.dcm").SOPInstanceUID == flair.sop_instance_uids[0]
    with pytest.raises(LookupError):
        client.download("1.2.3", tmp_path / "none.dcm")
    with pytest.raises(PeerRefusedError, match="401"):
        OrthancClient(orthanc.url, orthanc.user, "wrong").holds_study("1.2.3")
