"""Our DICOMweb client and the DICOMweb plugin of a real Orthanc."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, generate_uid

from config.settings import Peer
from dicom.network.dicomweb import DicomWebClient
from dicom.network.scu import PeerRefusedError, PeerUnreachableError
from node.archive import Orthanc

Make = Callable[..., Any]


def web_peer(archive: Orthanc, folder: Path, **changes: object) -> Peer:
    password = folder / "password"
    password.write_text(archive.password + "\n")
    password.chmod(0o600)
    content = {
        "name": "archive",
        "ae_title": archive.ae_title,
        "host": "127.0.0.1",
        "port": archive.dicom_port,
        "dicomweb_url": f"{archive.url}/dicom-web",
        "orthanc_url": archive.url,
        "user": archive.user,
        "password_file": password,
    }
    return Peer.model_validate({**content, **changes})


def test_what_was_stored_is_found_and_fetched_as_the_same_bytes(
    orthanc: Orthanc, make_flair_series: Make, tmp_path: Path
) -> None:
    """Compressed pixels too: nothing is decoded on the way in or out."""
    series = make_flair_series(slices=3, transfer_syntax_uid=JPEG2000Lossless)
    files = [path.read_bytes() for path in series.paths]
    sent = {str(dcmread(BytesIO(content)).SOPInstanceUID): content for content in files}
    wanted = series.sop_instance_uids[1]
    study, uid = series.study_instance_uid, series.series_instance_uid
    with DicomWebClient(web_peer(orthanc, tmp_path)) as client:
        client.ping()
        assert client.search_instances(study) == []
        assert [one.stored for one in client.store(series.paths)] == [True] * 3
        again = client.store(series.paths)  # held already: what was wanted
        assert [one.stored for one in again] == [True] * 3
        (found,) = client.search_studies({"PatientID": "TEST-1"})
        assert found.StudyInstanceUID == study
        assert [one.SeriesInstanceUID for one in client.search_series(study)] == [uid]
        found_uids = {one.SOPInstanceUID for one in client.search_instances(study, uid)}
        assert found_uids == set(sent)
        fetched = client.retrieve(tmp_path / "series", study, uid)
        one = client.retrieve_instance(tmp_path / "one", study, uid, wanted)
    assert orthanc.stored_count() == 3
    assert {path.stem: path.read_bytes() for path in fetched} == sent
    assert one.read_bytes() == sent[wanted]


def test_what_is_not_there_is_not_found(orthanc: Orthanc, tmp_path: Path) -> None:
    with DicomWebClient(web_peer(orthanc, tmp_path)) as client:
        assert client.search_studies({"PatientID": "NOBODY"}) == []
        assert client.search_series(generate_uid()) == []
        with pytest.raises(LookupError):
            client.retrieve(tmp_path / "none", generate_uid())
        with pytest.raises(LookupError):
            client.retrieve_instance(tmp_path, generate_uid(), generate_uid(), generate_uid())


def test_a_wrong_password_and_no_answer_are_told_apart(orthanc: Orthanc, tmp_path: Path) -> None:
    peer = web_peer(orthanc, tmp_path)
    (tmp_path / "password").write_text("s3cret-and-wrong")
    with pytest.raises(PeerRefusedError, match="archive answered HTTP 401") as refused:
        DicomWebClient(peer).ping()
    assert "s3cret" not in str(refused.value)
    orthanc.kill()
    with pytest.raises(PeerUnreachableError, match="archive cannot be reached"):
        DicomWebClient(peer).search_studies({"PatientName": "Nobody^Known"})
