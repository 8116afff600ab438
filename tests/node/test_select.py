"""`flairnode select`: a dry run on a folder, and on a study the node decided before."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.cli import main
from node.ledger import Ledger

Bench = Any  # IntakeBench of conftest.py
Make = Callable[..., Any]
Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def config(bench: Bench, tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(f'[node]\ndata_dir = "{bench.settings.node.data_dir}"\n')
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`flairnode ...`: exit status and what it printed, parsed when it is JSON."""

    def call(*arguments: object) -> tuple[int, Any]:
        capsys.readouterr()
        status = main([str(one) for one in arguments])
        said = capsys.readouterr()
        return status, json.loads(said.out) if "--json" in arguments else said.out + said.err

    return call


@pytest.fixture
def study(bench: Bench, make_flair_series: Make) -> str:
    """A 2-D FLAIR (chosen), a derived one and a T1, received and closed."""
    made = [
        make_flair_series(series_instance_uid="1.2.1", overrides={"MRAcquisitionType": "2D"}),
        make_flair_series(
            series_instance_uid="1.2.2",
            overrides={"MRAcquisitionType": "3D", "ImageType": ["DERIVED", "PRIMARY"]},
        ),
        make_flair_series(series_instance_uid="1.2.3", overrides={"EchoTime": "10"}),
    ]
    bench.close(*(path for one in made for path in one.paths))
    return str(made[0].study_instance_uid)


def test_every_decision_is_stored_with_rule_words_and_the_rules_in_force(
    bench: Bench, study: str
) -> None:
    stored = {uid: bench.ledger.decisions_of(uid)[0] for uid in ("1.2.1", "1.2.2", "1.2.3")}
    assert [one.reason for one in stored.values()] == [
        "selected",
        "other-flair-chosen",
        "not-flair-echo-time",
    ]
    assert [one.rule for one in stored.values()] == ["choice", "choice", "short-echo-time"]
    assert [one.chosen for one in stored.values()] == [True, False, False]
    assert len({one.rules_digest for one in stored.values()}) == 1
    assert all(len(one.rules_digest) == 64 and one.explanation for one in stored.values())
    assert "chosen of 2 usable FLAIR" in stored["1.2.1"].explanation
    assert "60 ms" in stored["1.2.3"].change
    assert {one.study_instance_uid for one in stored.values()} == {study}


def test_a_past_study_is_judged_again_and_nothing_differs_under_the_same_rules(
    run: Run, config: Path, study: str
) -> None:
    status, told = run("select", "--config", config, "--study", study, "--json")
    assert status == 0
    assert (told["selected"], told["missing_files"]) == ("1.2.1", 0)
    assert [one["differs"] for one in told["series"]] == [False] * 3
    assert all(one["stored"]["rules_digest"] == told["rules_digest"] for one in told["series"])
    said = run("select", "--config", config, "--study", study)[1]
    assert said.count("as decided on") == 3
    assert "DIFFERS" not in said


def test_changed_rules_show_where_the_answer_would_differ_and_change_nothing(
    run: Run, bench: Bench, config: Path, study: str
) -> None:
    config.write_text(
        config.read_text()
        + '[selection]\nprefer = "3d"\n[selection.thresholds]\nshortest_echo_ms = 5\n'
    )
    before = [(row.series_instance_uid, row.state) for row in bench.ledger.all_series()]
    status, told = run("select", "--config", config, "--study", study, "--json")
    assert status == 0
    assert told["selected"] == "1.2.2"
    assert [one["differs"] for one in told["series"]] == [True, True, True]
    assert told["series"][2]["reason"] == "other-flair-chosen"
    assert told["series"][2]["stored"]["reason"] == "not-flair-echo-time"
    said = run("select", "--config", config, "--study", study)[1]
    assert said.count("DIFFERS") == 3
    assert "it was selected (choice)" in said
    assert [(row.series_instance_uid, row.state) for row in bench.ledger.all_series()] == before
    assert len(bench.ledger.decisions_of("1.2.1")) == 1


def test_explain_shows_the_same_words_as_select(run: Run, config: Path, study: str) -> None:
    _, told = run("select", "--config", config, "--study", study, "--json")
    for series in told["series"]:
        uid = series["series_instance_uid"]
        _, explained = run("jobs", "explain", uid, "--config", config, "--json")
        for key in ("reason", "rule", "explanation", "change", "score"):
            assert explained["decision"][key] == series[key], (uid, key)
    said = run("jobs", "explain", "1.2.3", "--config", config)[1]
    assert "Rule: short-echo-time" in said
    assert "What would have to change: TE would have to be at least 60 ms" in said


def test_a_folder_is_judged_with_a_sites_rules(
    run: Run, tmp_path: Path, make_flair_series: Make
) -> None:
    made = make_flair_series()
    config = tmp_path / "rules.toml"
    config.write_text(
        '[[selection.refuse]]\nid = "no-thick"\nwhen = [{ fact = "slice_mm", at_least = 6 }]\n'
    )
    assert run("select", made.folder, "--json")[1]["selected"] == made.series_instance_uid
    status, told = run("select", made.folder, "--config", config, "--json")
    assert (status, told["selected"]) == (3, None)
    (series,) = told["series"]
    assert (series["reason"], series["rule"]) == ("refused-by-site", "no-thick")
    assert "stored" not in series
    assert "no-thick" in run("select", made.folder, "--config", config)[1]


def test_files_that_were_discarded_are_counted(
    run: Run, bench: Bench, config: Path, study: str
) -> None:
    for instance in bench.ledger.instances_of("1.2.3")[:4]:
        (bench.spool.folder / instance.path).unlink()
    _, told = run("select", "--config", config, "--study", study, "--json")
    assert told["missing_files"] == 4
    for uid in ("1.2.1", "1.2.2", "1.2.3"):
        for instance in bench.ledger.instances_of(uid):
            (bench.spool.folder / instance.path).unlink(missing_ok=True)
    status, told = run("select", "--config", config, "--study", study, "--json")
    assert (status, told["reason"]) == (3, "empty-input")
    assert "discarded" in told["explanation"]


def test_a_study_that_never_came_and_wrong_arguments_are_told(
    run: Run, config: Path, study: str, tmp_path: Path
) -> None:
    status, told = run("select", "--config", config, "--study", "1.2.3.4", "--json")
    assert (status, told["reason"]) == (3, "empty-input")
    assert run("select")[0] == 2
    assert run("select", tmp_path, "--study", study, "--config", config)[0] == 2
    assert run("select", "--study", study)[0] == 2


def test_what_the_intake_held_on_its_own_is_no_difference_of_the_rules(
    run: Run, bench: Bench, config: Path, make_flair_series: Make
) -> None:
    made = make_flair_series()
    bench.send(*made.paths)
    for instance in bench.ledger.instances_of(made.series_instance_uid)[:2]:
        (bench.spool.folder / instance.path).unlink()
    bench.pass_time(30.0)
    (stored,) = bench.ledger.decisions_of(made.series_instance_uid)
    assert (stored.reason, stored.rule, stored.chosen) == ("missing-files", "", False)
    _, told = run("select", "--config", config, "--study", made.study_instance_uid, "--json")
    assert told["series"][0]["differs"] is False


def test_a_ledger_of_an_earlier_flairnode_gets_the_table_of_decisions(tmp_path: Path) -> None:
    path = tmp_path / "intake.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as old:
        old.execute("DROP TABLE decisions")
    old.close()
    with Ledger(path) as ledger:
        assert ledger.decisions_of("1.2.3") == []
