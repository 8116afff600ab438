"""Slices that arrive while a study is being judged."""

from __future__ import annotations

from pathlib import Path

from dicom.errors import Outcome
from node.ledger import Ledger, ReceivedInstance, SeriesDecision, SeriesState

STUDY, FLAIR, LATER = "1.2", "1.2.3", "1.2.4"


def arrive(ledger: Ledger, series: str, number: int) -> None:
    uid = f"{series}.{number}"
    sop_class = "1.2.840.10008.5.1.4.1.1.4"
    path = Path(STUDY, series, f"{uid}.dcm")
    ledger.record(ReceivedInstance(STUDY, series, uid, sop_class, f"digest {number}", path))


def decide(series: str) -> SeriesDecision:
    return SeriesDecision(
        series, chosen=False, outcome=Outcome.NOT_ANALYSED, reason="missing-slice"
    )


def test_a_decision_on_fewer_slices_than_are_there_now_is_not_taken(tmp_path: Path) -> None:
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        arrive(ledger, FLAIR, 1)
        arrive(ledger, FLAIR, 2)  # after the headers were read
        assert ledger.close_study(STUDY, [decide(FLAIR)], "a", "b", seen={FLAIR: 1}) == []
        row = ledger.series(FLAIR)
        assert row is not None
        assert row.state is SeriesState.RECEIVING


def test_nor_is_one_that_did_not_know_of_another_series(tmp_path: Path) -> None:
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        arrive(ledger, FLAIR, 1)
        arrive(ledger, LATER, 1)
        ledger.close_study(STUDY, [decide(FLAIR)], "a", "b", seen={FLAIR: 1})
        assert {row.state for row in ledger.series_of(STUDY)} == {SeriesState.RECEIVING}
        ledger.close_study(
            STUDY, [decide(FLAIR), decide(LATER)], "a", "b", seen={FLAIR: 1, LATER: 1}
        )
        assert {row.state for row in ledger.series_of(STUDY)} == {SeriesState.NOT_ANALYSED}
