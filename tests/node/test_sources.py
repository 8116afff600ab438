"""What is remembered of the peers that studies are fetched from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dicom.network.orthanc_source import System
from node.sources import SOURCES_FILE, Noted, RequestState, SourceBook

SERIES = Noted("orthanc-1", "1.2.1", "1.2")
ONE = System("pacs", "ORTHANC", "1.10.1", 6)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[SourceBook]:
    with SourceBook(tmp_path) as book:
        yield book


def test_cursor_and_series_are_remembered_together(book: SourceBook, tmp_path: Path) -> None:
    book.advance("pacs", 17, "anchor", [SERIES])
    with SourceBook(tmp_path) as again:
        standing = again.standing("pacs")
        (series,) = again.open_series("pacs", 10)
    assert standing is not None
    assert (standing.cursor, standing.anchor) == (17, "anchor")
    assert (series.remote_id, series.open, series.again) == ("orthanc-1", True, False)


def test_a_settled_series_is_open_again_once_it_is_noted(book: SourceBook) -> None:
    book.note("pacs", [SERIES])
    (series,) = book.open_series("pacs", 10)
    book.settle(series, listed=3, stamp="s")
    assert book.count_open("pacs") == 0
    book.note("pacs", [SERIES])
    (series,) = book.open_series("pacs", 10)
    assert (series.listed, series.stamp) == (3, "s")


def test_a_series_that_was_noted_while_it_was_fetched_stays_open(book: SourceBook) -> None:
    book.note("pacs", [SERIES])
    (series,) = book.open_series("pacs", 10)
    book.note("pacs", [SERIES])
    book.settle(series, listed=3, stamp="s")
    assert book.count_open("pacs") == 1


def test_a_series_under_a_second_patient_is_fetched_although_it_is_here(book: SourceBook) -> None:
    book.note("pacs", [SERIES])
    book.note("pacs", [Noted("orthanc-2", "1.2.1", "1.2")])
    again = {one.remote_id: one.again for one in book.open_series("pacs", 10)}
    assert again == {"orthanc-1": False, "orthanc-2": True}


def test_another_orthanc_under_the_same_address_is_told_from_a_newer_version(
    book: SourceBook,
) -> None:
    assert book.meet("pacs", ONE)
    assert book.meet("pacs", System("pacs", "ORTHANC", "1.12.9", 6))
    assert not book.meet("pacs", System("other", "ORTHANC", "1.12.9", 6))


def test_trouble_keeps_its_beginning_until_all_is_well(book: SourceBook) -> None:
    book.looked("pacs", "no answer")
    first = book.standing("pacs")
    book.looked("pacs", "still none")
    second = book.standing("pacs")
    assert first is not None
    assert second is not None
    assert second.trouble == "still none"
    assert second.trouble_since == first.trouble_since != ""
    book.looked("pacs")
    well = book.standing("pacs")
    assert well is not None
    assert (well.trouble, well.trouble_since) == ("", "")
    assert well.looked_at


def test_a_request_is_asked_once_and_again_after_its_end(book: SourceBook) -> None:
    first = book.ask("1.2", "pacs")
    assert book.ask("1.2", "pacs") == first
    assert book.asked() == [first]
    book.answer(type(first)(**{**_fields(first), "state": RequestState.REFUSED}))
    assert book.asked() == []
    assert book.ask("1.2", "pacs").number != first.number


def _fields(request: object) -> dict[str, object]:
    return {name: getattr(request, name) for name in request.__slots__}  # type: ignore[attr-defined]


def test_a_refusal_is_remembered_until_it_is_forgiven(book: SourceBook) -> None:
    book.refuse("pacs", "1.2.1.5", "1.2.1", "unreadable")
    assert book.refusals("pacs", "1.2.1") == {"1.2.1.5": "unreadable"}
    assert book.refusals("other", "1.2.1") == {}
    book.forgive("pacs", "1.2.1")
    assert book.refusals("pacs", "1.2.1") == {}


def test_old_series_are_forgotten_and_open_ones_never(book: SourceBook, tmp_path: Path) -> None:
    book.note("pacs", [SERIES, Noted("orthanc-2", "1.2.2", "1.2")])
    (series,) = [one for one in book.open_series("pacs", 10) if one.remote_id == "orthanc-1"]
    book.settle(series, listed=1, stamp="s")
    with closing(sqlite3.connect(tmp_path / SOURCES_FILE)) as connection:
        connection.execute("UPDATE series SET noted_at = '2020-01-01T00:00:00+00:00'")
        connection.commit()
    book.reconciled("pacs", "20260101T000000", keep_days=30)
    assert [one.remote_id for one in book.series_of_study("1.2")] == ["orthanc-2"]


@pytest.mark.parametrize("version", ["damaged", "foreign"])
def test_a_damaged_or_foreign_book_is_put_aside(tmp_path: Path, version: str) -> None:
    path = tmp_path / SOURCES_FILE
    if version == "damaged":
        path.write_bytes(b"no database" * 1000)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 99")
            connection.commit()
    with SourceBook(tmp_path) as book:
        assert book.standing("pacs") is None
        book.note("pacs", [SERIES])
    assert len(list(tmp_path.glob("sources.*.damaged.sqlite"))) == 1
    assert path.stat().st_mode & 0o077 == 0
