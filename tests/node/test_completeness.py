from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find

from config.settings import CompletenessSettings, NodeSettings, Peer, Settings
from node.archive import free_port
from node.completeness import NOT_ASKED, QuietClock, query_peer
from node.ledger import Counts, SeriesState

STUDY, FLAIR, T1 = "1.2", "1.2.3", "1.2.4"
Bench = Any  # IntakeBench of conftest.py
Make = Callable[..., Any]


@contextmanager
def archive(holding: dict[str, int], *, tells_counts: bool = True) -> Iterator[Peer]:
    """A query provider on loopback that holds so many instances of each series."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        for series, count in holding.items():
            answer = Dataset()
            answer.QueryRetrieveLevel = query.QueryRetrieveLevel
            answer.StudyInstanceUID = query.StudyInstanceUID
            answer.SeriesInstanceUID = series
            if query.QueryRetrieveLevel == "SERIES":
                if tells_counts:
                    answer.NumberOfSeriesRelatedInstances = count
                yield 0xFF00, answer
            elif query.SeriesInstanceUID == series:
                for number in range(count):
                    answer.SOPInstanceUID = f"{series}.{number}"
                    yield 0xFF00, answer
        yield 0x0000, None

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(Find)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)]
    )
    assert server is not None
    try:
        yield Peer(
            name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=server.server_address[1]
        )
    finally:
        server.shutdown()


def asking(peer: Peer) -> Settings:
    return Settings(
        node=NodeSettings(),
        peers=(peer,),
        completeness=CompletenessSettings(query_peer=peer.name),
    )


def test_the_peer_tells_how_many_instances_it_holds() -> None:
    with archive({FLAIR: 24, T1: 5}) as peer:
        found = query_peer(asking(peer), STUDY, [FLAIR, "1.2.99"])
    assert found.by_series == {FLAIR: 24, "1.2.99": 0}


def test_a_peer_that_does_not_count_is_asked_for_the_instances() -> None:
    with archive({FLAIR: 7}, tells_counts=False) as peer:
        assert query_peer(asking(peer), STUDY, [FLAIR]).by_series == {FLAIR: 7}


def test_an_unreachable_peer_confirms_nothing() -> None:
    nobody = Peer(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=free_port())
    assert query_peer(asking(nobody), STUDY, [FLAIR]) == NOT_ASKED


def test_without_a_configured_peer_nobody_is_asked() -> None:
    assert query_peer(Settings(), STUDY, [FLAIR]) == NOT_ASKED


def test_a_study_waits_for_the_rest_that_the_archive_holds(
    make_bench: Make, make_flair_series: Make
) -> None:
    flair = make_flair_series()
    with archive({flair.series_instance_uid: 11}) as peer:
        bench: Bench = make_bench(peers=(peer,), query_peer="archive")
        assert bench.close(*flair.paths) == []
        assert bench.only_series().state is SeriesState.RECEIVING
    with archive({flair.series_instance_uid: 10}) as peer:
        bench = make_bench(peers=(peer,), query_peer="archive")
        bench.intake.reconcile()
        bench.pass_time(0.0)
        (job,) = bench.pass_time(30.0)
    assert job.counts is Counts.CONFIRMED


def test_one_question_without_answer_is_enough_for_a_sweep(
    make_bench: Make, make_flair_series: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unanswered(_: object, study: str, __: object) -> object:
        asked.append(study)
        return NOT_ASKED

    monkeypatch.setattr("node.intake.query_peer", unanswered)
    nobody = Peer(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=1)
    bench: Bench = make_bench(peers=(nobody,), query_peer="archive")
    paths = [
        path for number in range(3) for path in make_flair_series(patient_id=f"P{number}").paths
    ]
    assert len(bench.close(*paths)) == 3
    assert len(asked) == 1


def test_silence_is_counted_from_the_last_arrival() -> None:
    now = [100.0]
    clock = QuietClock(lambda: now[0])
    clock.touch(STUDY)
    now[0] += 12.5
    assert clock.silence_s(STUDY) == 12.5
    clock.touch(STUDY)
    assert clock.silence_s(STUDY) == 0.0


def test_a_study_that_the_clock_does_not_know_begins_to_be_silent_now() -> None:
    now = [100.0]
    clock = QuietClock(lambda: now[0])
    assert clock.silence_s(STUDY) == 0.0
    now[0] += 3.0
    assert clock.silence_s(STUDY) == 3.0
    assert clock.incomplete_s(STUDY) == 0.0
    now[0] += 2.0
    assert clock.incomplete_s(STUDY) == 2.0
    clock.forget(STUDY)
    assert clock.silence_s(STUDY) == clock.incomplete_s(STUDY) == 0.0
