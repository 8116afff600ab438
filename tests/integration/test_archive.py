"""The archive that demo and tests start: ours alone, on loopback, with a password."""

from __future__ import annotations

import http.client
import subprocess
from pathlib import Path

import pytest

from node.archive import LOOPBACK, ArchiveError, Orthanc

pytestmark = pytest.mark.pacs


def echo(archive: Orthanc, calling: str, called: str) -> int:
    command = ["/usr/bin/echoscu", "-aet", calling, "-aec", called, LOOPBACK]
    done = subprocess.run([*command, str(archive.dicom_port)], capture_output=True, check=False)
    return done.returncode


def test_only_known_ae_titles_are_spoken_with(orthanc: Orthanc) -> None:
    assert echo(orthanc, "SENDER", "ORTHANC") == 0
    assert echo(orthanc, "STRANGER", "ORTHANC") != 0
    assert echo(orthanc, "SENDER", "SOMEBODY") != 0
    orthanc.allow("guest", "GUEST", 1)
    assert echo(orthanc, "GUEST", "ORTHANC") == 0


def test_http_without_the_password_is_refused(orthanc: Orthanc) -> None:
    connection = http.client.HTTPConnection(LOOPBACK, orthanc.http_port, timeout=10)
    connection.request("GET", "/instances")
    assert connection.getresponse().status == http.HTTPStatus.UNAUTHORIZED
    connection.close()


def test_it_speaks_dicomweb(orthanc: Orthanc) -> None:
    assert orthanc.get("/dicom-web/studies") == []


def test_it_comes_back_after_a_power_cut_with_ports_and_password_kept(orthanc: Orthanc) -> None:
    before = (orthanc.http_port, orthanc.dicom_port, orthanc.password)
    orthanc.kill()
    with pytest.raises(ArchiveError, match="does not answer"):
        orthanc.get("/system")
    orthanc.start()
    assert (orthanc.http_port, orthanc.dicom_port, orthanc.password) == before
    assert orthanc.sop_instance_uids() == []
    assert orthanc.stored_count() == 0


def test_the_password_is_readable_by_its_owner_alone(orthanc: Orthanc) -> None:
    assert (Path(orthanc.folder) / "orthanc.json").stat().st_mode & 0o077 == 0
    assert orthanc.password not in repr(orthanc)
