"""The rules that ship, and what a site may change of them: wrong ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from config.loader import SettingsError, load_settings
from config.selection import (
    FACTS,
    Condition,
    RuleFile,
    SelectionSettings,
    rules_in_force,
    shipped_rules,
)


def site(tmp_path: Path, text: str) -> SelectionSettings:
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path).selection


def test_the_shipped_rules_load_and_every_id_is_used_once() -> None:
    rules = shipped_rules()
    ids = [rule.id for rule in (*rules.object, *rules.refuse, *rules.score)]
    assert len(ids) == len(set(ids))
    assert {rule.reason for rule in rules.refuse} >= {
        "projection",
        "mosaic",
        "derived-reformat",
        "parametric-map",
        "diffusion",
        "not-magnitude",
        "localizer",
        "body-part",
        "missing-attribute",
        "not-flair-no-parameters",
        "not-flair-echo-planar",
        "not-flair-gradient-echo",
        "not-flair-echo-time",
        "not-flair-repetition-time",
        "not-flair-inversion-time",
        "not-flair-no-inversion",
    }


def test_an_unknown_key_in_the_rules_is_refused_by_name() -> None:
    whole = shipped_rules().model_dump()
    with pytest.raises(ValidationError, match="surprise"):
        RuleFile.model_validate({**whole, "surprise": 1})
    with pytest.raises(ValidationError, match="csf_t1_ms"):
        RuleFile.model_validate({**whole, "thresholds": {"csf_t1_ms": 0}})


def test_settings_survive_being_written_and_read_again(tmp_path: Path) -> None:
    given = site(
        tmp_path,
        """
        [selection]
        prefer = "3d"
        disable = ["reformat"]
        words = { flair = ["dunkelwasser"] }
        thresholds = { shortest_echo_ms = 50 }
        [[selection.refuse]]
        id = "not-station-3"
        when = [{ fact = "station", equals = ["MR3"] }]
        [[selection.favour]]
        id = "the-good-one"
        points = 2
        when = [{ fact = "description", matches = "ms[ _]protokoll" }]
        """,
    )
    assert SelectionSettings.model_validate(given.model_dump()) == given
    assert rules_in_force(given).thresholds["shortest_echo_ms"] == 50
    assert [rule.reason for rule in rules_in_force(given).site_refuse] == ["refused-by-site"]


REFUSED = {
    "an unknown fact": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "echo_tim", below = 5 }]',
        "unknown fact 'echo_tim'",
    ),
    "an unknown key of a rule": (
        '[[selection.refuse]]\nid = "a"\nwen = 1\nwhen = [{ fact = "echo_ms", below = 5 }]',
        "wen: unknown key",
    ),
    "an unknown threshold": (
        "[selection]\nthresholds = { shortest_ekko_ms = 5 }",
        "shortest_ekko_ms",
    ),
    "a condition that says nothing": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "echo_ms" }]',
        "says nothing",
    ),
    "no condition at all": ('[[selection.refuse]]\nid = "a"\nwhen = []', "at least 1 item"),
    "a pattern on a number": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "echo_ms", matches = "5" }]',
        "echo_ms is a number: matches does not apply",
    ),
    "no pattern": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "station", matches = "(" }]',
        "is no pattern",
    ),
    "an empty pattern": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "station", lacks = "" }]',
        "found in everything",
    ),
    "no list of words": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "station", matches = "@stations" }]',
        "no list of words is called 'stations'",
    ),
    "an empty range": (
        '[[selection.refuse]]\nid = "a"\n'
        'when = [{ fact = "echo_ms", at_least = 200 }, { fact = "echo_ms", below = 100 }]',
        "rule a: can never match: echo_ms cannot be at least 200 and below 100",
    ),
    "below zero": (
        '[[selection.favour]]\nid = "a"\nwhen = [{ fact = "slices", below = 0 }]',
        "rule a: can never match: slices",
    ),
    "a flag both ways": (
        '[[selection.refuse]]\nid = "a"\n'
        'when = [{ fact = "spin_echo", holds = true }, { fact = "spin_echo", holds = false }]',
        "rule a: can never match: spin_echo cannot hold and not hold",
    ),
    "what is settled before": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "mr_image", holds = false }]',
        "rule a: can never match: mr_image is true",
    ),
    "geometry that is always known": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "slices", known = false }]',
        "rule a: can never match: slices is always known",
    ),
    "no value that meets all": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "station", equals = ["A", "B"] },'
        ' { fact = "station", matches = "^C" }]',
        "rule a: can never match: station has no value",
    ),
    "not known, and yet more": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "echo_ms", known = false, below = 5 }]',
        "can never match",
    ),
    "an id twice": (
        '[[selection.refuse]]\nid = "a"\nwhen = [{ fact = "echo_ms", below = 90 }]\n'
        '[[selection.favour]]\nid = "a"\nwhen = [{ fact = "echo_ms", below = 90 }]',
        r"used twice: \['a'\]",
    ),
    "an id that ships": (
        '[[selection.refuse]]\nid = "mosaic"\nwhen = [{ fact = "echo_ms", below = 90 }]',
        r"used twice: \['mosaic'\]",
    ),
    "a rule that is not there": ('[selection]\ndisable = ["mosiac"]', "no rule is called 'mosiac'"),
    "a rule that must hold": ('[selection]\ndisable = ["mosaic"]', "'mosaic' cannot be disabled"),
    "our own results": ('[selection]\ndisable = ["own-result"]', "'own-result' cannot be disabled"),
    "words that are no pattern": ('[selection]\nwords = { flair = ["("] }', r"words\.flair"),
    "a why that could name a person": (
        '[[selection.refuse]]\nid = "a"\nwhy = "it is {description}"\n'
        'when = [{ fact = "echo_ms", below = 90 }]',
        "may name a person",
    ),
    "nulling upside down": (
        "[selection]\nthresholds = { nulling_low = 1.4 }",
        "nulling_low must be less",
    ),
    "a preference nobody has": ('[selection]\nprefer = "4d"', r"selection\.prefer"),
}


@pytest.mark.parametrize(("text", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_when_it_is_loaded(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        site(tmp_path, text)


def test_the_digest_tells_every_change_of_the_rules() -> None:
    usual = rules_in_force(SelectionSettings())
    assert rules_in_force(SelectionSettings()).digest == usual.digest
    changed = [
        SelectionSettings(minimum_slices=9),
        SelectionSettings(prefer="2d"),
        SelectionSettings(post_contrast="equal"),
        SelectionSettings(post_contrast="refuse"),
        SelectionSettings(disable=("body-part",)),
        SelectionSettings(thresholds={"shortest_echo_ms": 61}),
        SelectionSettings(words={"flair": ("x",)}),
    ]
    digests = {rules_in_force(one).digest for one in changed} | {usual.digest}
    assert len(digests) == 1 + len(changed)


@pytest.mark.parametrize("fact", sorted(FACTS))
def test_every_fact_can_be_asked_for(fact: str) -> None:
    Condition(fact=fact, known=True)
