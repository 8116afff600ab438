"""A whole node over a study with a name that nobody else has: where does it end up?"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_process import NodeProcess
from pydicom import dcmread

from node.archive import Orthanc
from node.ledger import SeriesState

Make = Callable[..., Any]
HEAD_MM = (6.5, 0.9, 0.9)
SECRETS = {
    "name": "Zebrafink",
    "given name": "Quirina",
    "identifier": "QX-77120-Y",
    "birth date": "19431117",
    "accession": "ACC998877",
    "physician": "Wunderlich",
    "password": "hunter-of-secrets-42",
}
_IMAGES = {".dcm", ".png", ".pdf", ".slot"}


def secrets_in(content: bytes) -> set[str]:
    return {what for what, secret in SECRETS.items() if secret.encode() in content}


def with_secrets(paths: tuple[Path, ...]) -> None:
    for path in paths:
        image = dcmread(path)
        image.PatientName = f"{SECRETS['name']}^{SECRETS['given name']}"
        image.PatientID = SECRETS["identifier"]
        image.PatientBirthDate = SECRETS["birth date"]
        image.AccessionNumber = SECRETS["accession"]
        image.ReferringPhysicianName = SECRETS["physician"]
        image.save_as(path)


def files_that_are_no_images(data_dir: Path) -> Iterator[Path]:
    for path in sorted(data_dir.rglob("*")):
        received = path.is_relative_to(data_dir / "spool")
        if path.is_file() and not received and path.suffix not in _IMAGES:
            yield path


@pytest.mark.pacs
def test_names_and_passwords_are_in_images_alone_and_every_file_is_private(
    orthanc: Orthanc, tmp_path: Path, make_flair_series: Make
) -> None:
    password = tmp_path / "password"
    password.write_text(SECRETS["password"])
    peer = {"orthanc_url": orthanc.url, "user": "flairnode", "password_file": str(password)}
    node = NodeProcess(tmp_path / "site", {"pacs": orthanc}, peer=peer)
    good, failing = (
        make_flair_series(spacing_mm=HEAD_MM, patient_id=name) for name in ("one", "two")
    )
    for flair in (good, failing):
        with_secrets(flair.paths)
    node.fault(f"raise.{failing.series_instance_uid}")
    node.start()
    try:
        for flair in (good, failing):
            assert node.send(flair.folder).returncode == 0
        assert node.send(good.folder, ae_title="STRANGER").returncode != 0
        node.wait_for_state(good.series_instance_uid, SeriesState.DELIVERED)
        node.wait_for_ends(2)
        assert node.process is not None
        processes = [node.process.pid, *node.worker_pids()]
        for pid in processes:
            for part in ("cmdline", "environ"):
                found = secrets_in(Path(f"/proc/{pid}/{part}").read_bytes())
                assert not found, f"{part} of {pid}"
        looked_at = list(files_that_are_no_images(node.data_dir))
        assert {"engine.sqlite", "intake.sqlite", "audit.jsonl"} <= {p.name for p in looked_at}
        for path in (*looked_at, node.log_file):
            assert not secrets_in(path.read_bytes()), path.name
        received = list((node.data_dir / "spool").rglob("*.dcm"))
        assert secrets_in(received[0].read_bytes()) >= {"name", "identifier"}
        open_to_others = [
            path.relative_to(node.data_dir)
            for path in node.data_dir.rglob("*")
            if not path.is_relative_to(node.data_dir / "standin")  # the test's own
            and stat.S_IMODE(path.lstat().st_mode) & 0o077
        ]
        assert open_to_others == []
    finally:
        node.end()
