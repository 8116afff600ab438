from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from node.spool import (
    RefusedObjectError,
    Spool,
    dataset_digest,
    identify,
    is_uid,
    same_content,
)

Make = Callable[..., Any]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_a_written_file_is_read_back_as_what_it_is(
    spool: Spool, make_flair_series: Make, sent: Make
) -> None:
    received = sent(make_flair_series().paths[0], "LONG_AE_TITLE_16")
    path = Path("1.2", "1.2.3", "1.2.3.4.dcm")
    spool.write(received, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = dcmread(spool.folder / path)
    assert kept.file_meta.FileMetaInformationVersion == b"\0\1"
    assert kept.file_meta.MediaStorageSOPInstanceUID == received.sop_instance_uid
    assert kept.file_meta.TransferSyntaxUID == received.transfer_syntax_uid
    described = spool.describe(path)
    assert described.identity.sop_instance_uid == kept.SOPInstanceUID
    assert described.identity.series_instance_uid == kept.SeriesInstanceUID
    assert described.calling_ae_title == "LONG_AE_TITLE_16"


@pytest.mark.parametrize("title", ["A", "AB", ""])
def test_titles_of_any_length_are_kept(
    spool: Spool, make_flair_series: Make, sent: Make, title: str
) -> None:
    spool.write(sent(make_flair_series().paths[0], title), Path("1.2", "1.3", "1.4.dcm"))
    assert spool.describe(Path("1.2", "1.3", "1.4.dcm")).calling_ae_title == title


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_the_identity_is_read_in_every_encoding(
    make_flair_series: Make, sent: Make, tmp_path: Path, syntax: str
) -> None:
    dataset = dcmread(make_flair_series().paths[0])
    dataset.file_meta.TransferSyntaxUID = syntax
    dcmwrite(
        tmp_path / "other.dcm",
        dataset,
        force_encoding=True,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
    )
    received = sent(tmp_path / "other.dcm")
    found = identify(
        received.dataset,
        received.sop_class_uid,
        received.sop_instance_uid,
        received.transfer_syntax_uid,
    )
    assert found.study_instance_uid == dataset.StudyInstanceUID
    assert found.series_instance_uid == dataset.SeriesInstanceUID


def test_what_a_crash_left_half_written_is_removed(
    spool: Spool, make_flair_series: Make, sent: Make
) -> None:
    path = Path("1.2", "1.2.3", "1.2.3.4.dcm")
    spool.write(sent(make_flair_series().paths[0]), path)
    (spool.folder / path).with_suffix(".dcm.0a.part").write_bytes(b"half")
    assert spool.remove_parts() == 1
    assert list(spool.files()) == [path]


def test_files_that_are_not_ours_are_no_objects(spool: Spool) -> None:
    strange = spool.folder / "1.2" / "1.2.3"
    strange.mkdir(parents=True)
    (strange / "notes.dcm").write_bytes(b"x")
    (strange / "1.2.3.4.dcm").write_bytes(b"not dicom at all")
    assert list(spool.files()) == [Path("1.2", "1.2.3", "1.2.3.4.dcm")]
    with pytest.raises(RefusedObjectError):
        spool.describe(Path("1.2", "1.2.3", "1.2.3.4.dcm"))


def test_damaged_files_are_never_the_same_object(tmp_path: Path, make_flair_series: Make) -> None:
    (path, other, *_) = make_flair_series().paths
    (tmp_path / "damaged.dcm").write_bytes(path.read_bytes()[:500])
    assert same_content(path, path)
    assert not same_content(path, other)
    assert not same_content(path, tmp_path / "damaged.dcm")


@pytest.mark.parametrize(
    "value", ["", ".", "..", "1..2", ".1", "1.", "1.2\n", "1.2 ", "1/2", "1.٢", "a", "1" * 65]
)
def test_what_is_no_uid_is_refused_as_a_name(value: str) -> None:
    assert not is_uid(value)


@given(st.text(alphabet="0123456789./\\\0\n", max_size=70))
def test_a_uid_is_always_one_plain_name(value: str) -> None:
    if is_uid(value):
        assert Path("spool", value).parent == Path("spool")
        assert not value.startswith(".")


# --- what is fetched piece by piece --------------------------------------------------------------


def pieces_of(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 143, 1 << 20])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_file_that_comes_in_pieces_is_kept_as_if_it_had_been_sent(
    spool: Spool, make_flair_series: Make, sent: Make, tmp_path: Path, size: int, syntax: str
) -> None:
    dataset = dcmread(make_flair_series().paths[0])
    dataset.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "other.dcm"
    dcmwrite(
        path,
        dataset,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=True,
        force_encoding=True,
    )
    arrival = spool.receive(pieces_of(path.read_bytes(), size), dataset.SOPInstanceUID, "PACS")
    received = sent(path, "PACS")
    assert arrival.digest == dataset_digest(received.dataset)
    assert arrival.identity.series_instance_uid == dataset.SeriesInstanceUID
    spool.adopt(arrival, arrival.identity.path)
    spool.write(received, Path("1.2", "1.3", "1.4.dcm"))
    fetched = spool.folder / arrival.identity.path
    assert fetched.read_bytes() == (spool.folder / "1.2" / "1.3" / "1.4.dcm").read_bytes()
    assert fetched.stat().st_mode & 0o077 == 0
    assert not list(spool.incoming.iterdir())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:100], "not-dicom"),
        (lambda content: content[132:], "not-dicom"),
        (lambda content: content[:200], "not-dicom"),
        (lambda content: content[:140] + b"\xff\xff\xff\x7f" + content[144:], "not-dicom"),
        (lambda content: b"<html>" + b" " * 500, "not-dicom"),
    ],
    ids=["short", "no preamble", "head cut off", "absurd head", "a web page"],
)
def test_what_is_no_object_leaves_nothing_behind(
    spool: Spool, make_flair_series: Make, change: Callable[[bytes], bytes], reason: str
) -> None:
    path = make_flair_series().paths[0]
    uid = dcmread(path).SOPInstanceUID
    with pytest.raises(RefusedObjectError) as refused:
        spool.adopt(spool.receive([change(path.read_bytes())], uid, "PACS"), Path("1/2/3.dcm"))
    assert refused.value.reason == reason
    assert not list(spool.incoming.iterdir())


def test_another_object_than_the_one_asked_for_is_refused(
    spool: Spool, make_flair_series: Make
) -> None:
    first, second = make_flair_series().paths[:2]
    with pytest.raises(RefusedObjectError) as refused:
        spool.receive([first.read_bytes()], dcmread(second).SOPInstanceUID, "PACS")
    assert refused.value.reason == "does-not-match"


def test_what_a_crash_left_of_a_fetch_is_removed(spool: Spool) -> None:
    (spool.incoming / "fetch-1").mkdir(parents=True)
    (spool.incoming / "fetch-1" / "1.2.3.dcm").write_bytes(b"half")
    (spool.incoming / "00.part").write_bytes(b"half")
    assert spool.remove_parts() == 1
    assert not spool.incoming.exists()
    assert not list(spool.files())
