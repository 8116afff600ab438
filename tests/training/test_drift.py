"""The node of today against what was validated: what is called outside, and what is not."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dicom.errors import Outcome
from node.outcome import JobOutcome, Order, ResultsFolder
from tests.training.pictures import row
from tests.training.runs import case_row, write_run
from tests.training.test_report import NO_NUMBER, read_page
from training import drift
from training.commands import register
from training.drift import (
    Compared,
    Drift,
    Live,
    NoLiveResultsError,
    NoSuchMonthError,
    Seen,
    compare,
    read_live,
    validated_cases,
)

ACQUIRED = {
    "scanner": "GE Signa",
    "spacing_mm": [6.5, 0.43, 0.43],
    "slices": 22,
    "field_strength_t": 1.5,
    "repetition_ms": 9000.0,
    "echo_ms": 120.0,
    "inversion_ms": None,
}
VALIDATED = [
    Seen("", "analysed", "", "5a", 1.0 + index / 10, index % 9, "pass", frozenset(), ACQUIRED)
    for index in range(40)
]


def month_of(seen: list[Seen], month: str = "2026-03") -> Live:
    return Live(tuple(replace(one, month=month) for one in seen), 0, 0)


def named(found: Drift, name: str) -> Compared:
    (one,) = (one for one in (*found.numbers, *found.rates) if one.name == name)
    return one


def test_the_same_cases_again_are_inside() -> None:
    found = compare(month_of(VALIDATED), VALIDATED)
    assert (found.judgement, found.month, found.live_n) == ("inside", "2026-03", 40)
    volume = named(found, "lesion volume")
    assert (volume.effect, volume.judgement) == (0, "inside")
    # Of 1.0, 1.1, ..., 4.9: one at each end is beyond the 2.5 and 97.5 percentiles.
    assert volume.low == pytest.approx(1.0 + 0.025 * 39 / 10)
    assert volume.beyond == 2
    assert named(found, "slice spacing").p == 1  # all alike: nothing to rank
    # The header did not say it: that is told, and is no alarm.
    assert named(found, "inversion time").judgement == "not known"
    assert found.because == ("not compared: inversion time",)


def test_twice_the_volume_is_outside() -> None:
    doubled = [replace(one, volume_ml=2 * (one.volume_ml or 0)) for one in VALIDATED]
    found = compare(month_of(doubled), VALIDATED)
    volume = named(found, "lesion volume")
    assert (found.judgement, volume.judgement) == ("outside", "outside")
    assert volume.because == "more than in the validated cases"
    now, before = ([one.volume_ml for one in some] for some in (doubled, VALIDATED))
    pairs = [(a > b) - (a < b) for a in now for b in before]  # type: ignore[operator]
    assert volume.effect == pytest.approx(np.mean(pairs))
    assert found.because[0] == "lesion volume: more than in the validated cases"


def test_a_thinner_protocol_is_outside_though_findings_are_alike() -> None:
    thin = [
        replace(one, acquisition={**ACQUIRED, "spacing_mm": [3.0, 0.43, 0.43]}) for one in VALIDATED
    ]
    found = compare(month_of(thin), VALIDATED)
    assert found.judgement == "outside"
    assert named(found, "slice spacing").because == "less than in the validated cases"
    assert named(found, "lesion volume").judgement == "inside"


def test_some_series_far_beyond_the_range_are_outside_though_ranks_hardly_differ() -> None:
    mixed = [
        replace(one, volume_ml=80.0 if index < 6 else 0.0 if index >= 34 else one.volume_ml)
        for index, one in enumerate(VALIDATED)
    ]
    volume = named(compare(month_of(mixed), VALIDATED), "lesion volume")
    assert abs(volume.effect or 0) < drift.LARGE_DELTA
    assert (volume.judgement, volume.because) == (
        "outside",
        "12 of 40 beyond the validated range",
    )


def test_more_reviews_and_more_series_without_a_result_are_outside() -> None:
    flagged = [
        replace(one, verdict="review", flags=frozenset({"motion"})) if index < 12 else one
        for index, one in enumerate(VALIDATED)
    ]
    failed = Seen("", "failed", "internal-error", "5a")
    found = compare(month_of([*flagged, *[failed] * 12]), VALIDATED)
    review = named(found, "verdict review")
    assert (review.judgement, review.live_n, review.live) == ("outside", 40, 12 / 40)
    assert named(found, "flag motion").judgement == "outside"
    assert named(found, "failed or held").live == 12 / 52
    assert found.judgement == "outside"
    # The flag and the verdict have the smallest p of all that were tested: m times its own.
    raw = stats.fisher_exact(np.array([[12, 28], [0, 40]])).pvalue
    tested = [one for one in (*found.numbers, *found.rates) if one.p is not None]
    assert review.p == pytest.approx(raw * len(tested))


def test_p_is_adjusted_step_by_step() -> None:
    raw = [0.001, 0.04, 0.03, 0.5, 0.9]
    compared = [Compared("x", "", "not known", "", 30, 30, 0.0, 0.0, effect=0.0, p=p) for p in raw]
    # 0.001 x 5; 0.03 x 4; 0.04 x 3, not smaller than that; 0.5 x 2; not smaller than that.
    assert [one.p for one in drift._holm(compared)] == pytest.approx([0.005, 0.12, 0.12, 1, 1])


@pytest.mark.parametrize(("live", "validated"), [(19, 40), (40, 19), (1, 1)])
def test_with_fewer_than_twenty_nothing_is_called_outside(live: int, validated: int) -> None:
    doubled = [replace(one, volume_ml=100.0, verdict="fail") for one in VALIDATED[:live]]
    found = compare(month_of(doubled), VALIDATED[:validated])
    assert found.judgement == "too few to say"
    few = min(live, validated)
    assert f"lesion volume: {few} " in found.because[0]
    assert "fewer than 20" in found.because[0]


def test_a_scanner_that_was_never_validated_is_named_and_many_of_it_are_outside() -> None:
    other = {**ACQUIRED, "scanner": "Siemens Aera"}
    new = [replace(one, acquisition=other) for one in VALIDATED]
    one_of_it = compare(month_of([*VALIDATED, new[0]]), VALIDATED)
    assert (one_of_it.judgement, one_of_it.new_scanners) == ("inside", {"Siemens Aera": 1})
    assert one_of_it.because[0].startswith("1 of 41 series are of scanners")
    assert compare(month_of([*VALIDATED[:20], *new[:20]]), VALIDATED).judgement == "outside"


def test_results_of_another_pack_are_counted_and_not_compared() -> None:
    other = [replace(one, pack_digest="77", volume_ml=500.0) for one in VALIDATED]
    found = compare(month_of([*VALIDATED, *other]), VALIDATED)
    assert (found.judgement, found.live_n, found.other_pack) == ("inside", 40, 40)


# --- what the node stores ------------------------------------------------------------------------


def store(data_dir: Path, number: int, created: str, series: str = "", **report: Any) -> None:  # noqa: ANN401
    """A result, written by the node itself."""
    results, job_id = ResultsFolder(data_dir), f"job{number:03}"
    outcome = report.pop("outcome", "analysed")
    job = {
        "job_id": job_id,
        "study_instance_uid": f"1.2.{number}",
        "series_instance_uid": series or f"1.2.{number}.1",
        "pack_digest": "5a",
        "created_at": created,
    }
    order = Order(f"w{number}", job, ())
    results.begin(job_id)
    ended = JobOutcome(Outcome(outcome), "", "", f"w{number}", research=True, objects=())
    results.finish(job_id, ended, order, report or None)


def put_node(data_dir: Path) -> None:
    for number in range(24):
        store(
            data_dir,
            number,
            f"2026-0{2 + (number >= 2)}-{1 + number:02}T10:00:00+00:00",
            findings={"lesion_count": number % 4, "total_volume_ml": number / 10},
            quality={"verdict": "review", "flags": [{"code": "motion", "severity": "review"}]},
            acquisition=ACQUIRED,
        )
    store(data_dir, 30, "2026-03-20T10:00:00+00:00", outcome="failed")
    # Series 5 again, with an image more: the later result counts.
    store(
        data_dir,
        31,
        "2026-03-28T10:00:00+00:00",
        series="1.2.5.1",
        findings={"lesion_count": 9, "total_volume_ml": 9.0},
    )
    (data_dir / "results/job099").mkdir()
    (data_dir / "results/job099/outcome.json").write_text("{")


def test_what_the_node_stores_is_read_by_month_and_each_series_once(tmp_path: Path) -> None:
    put_node(tmp_path)
    live = read_live(tmp_path)
    assert live.months == ("2026-02", "2026-03")
    assert (len(live.seen), live.unreadable, live.replaced) == (25, 1, 1)
    first = live.seen[0]
    assert (first.volume_ml, first.lesions, first.verdict) == (0.0, 0, "review")
    assert first.flags == {"motion"}
    assert first.acquisition["scanner"] == "GE Signa"
    assert live.seen[-1].volume_ml == 9.0
    assert [one.outcome for one in live.seen].count("failed") == 1
    with pytest.raises(NoSuchMonthError, match="2026-02, 2026-03"):
        compare(live, VALIDATED, "2025-12")


def test_what_retention_removed_is_compared_all_the_same(tmp_path: Path) -> None:
    put_node(tmp_path)
    before = read_live(tmp_path)
    results = ResultsFolder(tmp_path)
    for number in (3, 4, 5, 31):
        results.remove(f"job{number:03}")
    assert read_live(tmp_path) == before
    results.remove("job099")  # damaged: nothing to keep, and no error
    kept = (tmp_path / "history/job003.json").read_text()
    assert "1.2.3" not in kept
    assert len(list((tmp_path / "history").iterdir())) == 4


def test_a_node_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoLiveResultsError, match="no history"):
        read_live(tmp_path)


def run_folder(tmp_path: Path) -> Path:
    rows = [
        case_row(
            f"c{index:02}",
            row("##"),
            row("##"),
            findings={"lesion_count": index % 4, "total_volume_ml": index / 10},
            quality={"verdict": "pass", "flags": []},
            acquisition=ACQUIRED,
        )
        for index in range(24)
    ]
    painted = case_row(
        "painted", row("##"), row("##"), about={"semi_synthetic": "yes"}, acquisition=ACQUIRED
    )
    return write_run(tmp_path / "run", [*rows, painted])


def test_a_validated_range_comes_from_real_cases(tmp_path: Path) -> None:
    from training.report import read_run

    seen = validated_cases(read_run(run_folder(tmp_path)).rows)
    assert len(seen) == 24
    assert seen[7].volume_ml == 0.7


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(dest="command"))
    arguments = parser.parse_args(["validate", "drift", *words])
    status: int = arguments.run(arguments)
    return status


def test_the_command_writes_a_report_without_identifiers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_node(tmp_path / "data")
    words = ("--live", str(tmp_path / "data"), "--validated", str(run_folder(tmp_path)))
    output = tmp_path / "out"
    assert call(*words, "--output", str(output), "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert (said["month"], said["verdict"]) == ("2026-03", "outside")
    assert "verdict review: more than in the validated cases" in said["because"]
    content = json.loads((output / "drift.json").read_text(), parse_constant=pytest.fail)
    assert content["validated_cases"] == 24
    assert content["months"][1]["failed_or_held"] == 1
    assert {path.name for path in output.iterdir()} == {
        "drift.html",
        "drift.pdf",
        "drift.json",
        "drift.csv",
        "months.csv",
    }
    page = " ".join(read_page(output / "drift.html").text)
    assert "In 2026-03 the node left what it was validated on" in page
    assert "1 stored result was damaged and not read." in page
    assert not re.search(NO_NUMBER, page)
    for path in output.iterdir():
        text = path.read_bytes()
        for identifier in (b"1.2.5.1", b"job0", b"w12"):
            assert identifier not in text or path.suffix == ".pdf", path
    before = (output / "drift.html").read_bytes()
    assert call(*words, "--output", str(output), "--month", "2026-02") == 0
    assert "2026-02: too few to say" in capsys.readouterr().out
    assert (output / "drift.html").read_bytes() != before
