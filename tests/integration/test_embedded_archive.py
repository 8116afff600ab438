"""The archive of a demo without Orthanc: it keeps, it counts, it answers, to whom it knows."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from config.settings import Peer
from dicom.network.embedded_archive import EmbeddedArchive
from dicom.network.scu import (
    PeerRefusedError,
    count_series_instances,
    echo,
    find_instances,
    store,
)
from dicom.series import read_study
from pipeline.phantom import Acquisition, synthetic_head
from pipeline.phantom_study import write_study

TINY = Acquisition(
    slices=6, rows=40, columns=32, row_mm=6.0, column_mm=6.5, thickness_mm=20.0, gap_mm=6.0
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(synthetic_head(1, TINY), folder)
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[EmbeddedArchive]:
    with EmbeddedArchive(tmp_path / "archive", "ARCHIVE", ["FLAIRNODE"]) as running:
        yield running


def peer(archive: EmbeddedArchive) -> Peer:
    return Peer(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=archive.dicom_port)


def test_what_was_stored_is_found_by_query_and_kept_as_it_was_sent(
    archive: EmbeddedArchive, study: Path
) -> None:
    paths = sorted((study / "flair").glob("*.dcm"))
    answers = store(peer(archive), paths, calling_ae_title="FLAIRNODE")
    assert all(answer.stored for answer in answers)
    uids = {answer.sop_instance_uid for answer in answers}
    header = dcmread(paths[0])
    found = find_instances(
        peer(archive),
        header.StudyInstanceUID,
        header.SeriesInstanceUID,
        calling_ae_title="FLAIRNODE",
    )
    assert found == uids == set(archive.sop_instance_uids())
    kept = {
        one.SOPInstanceUID: one
        for one in (dcmread(BytesIO(c)) for c in archive.files_of(header.SeriesInstanceUID))
    }
    assert all(kept[sent.SOPInstanceUID] == sent for sent in map(dcmread, paths))


def test_series_of_a_study_are_counted(archive: EmbeddedArchive, study: Path) -> None:
    store(peer(archive), sorted(study.rglob("*.dcm")), calling_ae_title="FLAIRNODE")
    series = read_study(study).series
    counts = count_series_instances(
        peer(archive), series[0].study_instance_uid, calling_ae_title="FLAIRNODE"
    )
    assert counts == {one.series_instance_uid: len(one.instances) for one in series}


def test_a_second_copy_changes_nothing(archive: EmbeddedArchive, study: Path) -> None:
    paths = sorted((study / "flair").glob("*.dcm"))
    store(peer(archive), paths, calling_ae_title="FLAIRNODE")
    before = archive.sop_instance_uids()
    again = store(peer(archive), paths, calling_ae_title="FLAIRNODE")
    assert all(answer.stored for answer in again)
    assert archive.sop_instance_uids() == before


def test_a_stranger_is_refused(archive: EmbeddedArchive) -> None:
    echo(peer(archive), calling_ae_title="FLAIRNODE")
    with pytest.raises(PeerRefusedError, match="Calling AE title not recognised"):
        echo(peer(archive), calling_ae_title="STRANGER")
