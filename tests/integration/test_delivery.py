"""Three protocols, one archive: what a real Orthanc holds afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_dicomweb import web_peer

from config.settings import Destination
from dicom.network.orthanc import OrthancInbox
from dicom.network.scu import DUPLICATE, PeerRefusedError
from node.archive import Orthanc
from node.check import check_peer
from node.delivery import deliver
from node.outcome import ResultFile

Make = Callable[..., Any]


def test_three_protocols_leave_the_same_set_in_one_archive(
    make_archive: Callable[[str], Orthanc], make_flair_series: Make, tmp_path: Path
) -> None:
    """Each archive holds the same files; a second attempt, by any protocol, changes nothing."""
    series = make_flair_series(slices=3)
    files = [path.read_bytes() for path in series.paths]
    objects = [ResultFile("seg", uid, path) for path in series.paths for uid in [_uid(path)]]
    archive = make_archive("archive")
    for protocol in ("c-store", "stow-rs", "orthanc-rest"):
        destination = Destination.model_validate({"peer": "archive", "protocol": protocol})
        peer = web_peer(archive, tmp_path)
        for _ in range(2):
            delivered = deliver(objects, destination, peer, ae_title="FLAIRNODE", timeout_s=30.0)
            assert delivered.arrived, (protocol, delivered)
        assert archive.stored_count() == 3
        held = archive.files_of(series.series_instance_uid)
        ends = {content[-1000:] for content in files}  # a C-STORE writes its own file meta
        assert {content[-1000:] for content in held} == ends, protocol
        for instance in archive.get("/instances"):
            archive.request("DELETE", f"/instances/{instance}")
        archive.request("DELETE", "/changes")


def _uid(path: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def test_an_orthanc_says_what_it_holds_and_that_it_held_it(
    orthanc: Orthanc, make_flair_series: Make, tmp_path: Path
) -> None:
    (path, *_) = make_flair_series(slices=3).paths
    peer = web_peer(orthanc, tmp_path)
    with OrthancInbox(peer) as inbox:
        inbox.ping()
        assert not inbox.holds(_uid(path))
        assert inbox.store(path).stored
        assert inbox.holds(_uid(path))
        assert inbox.store(path).status == DUPLICATE
    (tmp_path / "password").write_text("wrong")
    with OrthancInbox(peer) as inbox, pytest.raises(PeerRefusedError, match="HTTP 401"):
        inbox.holds(_uid(path))


def test_check_knocks_in_every_way_a_peer_is_spoken_with(orthanc: Orthanc, tmp_path: Path) -> None:
    from config.settings import Settings

    peer = web_peer(orthanc, tmp_path)
    settings = Settings(peers=(peer,))
    assert [finding.ok for finding in check_peer(peer, settings)] == [True, True, True]
    (tmp_path / "password").unlink()
    found = check_peer(peer, settings)
    assert [finding.ok for finding in found] == [True, False, False]
    assert "password file of archive cannot be read" in found[1].text
