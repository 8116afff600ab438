"""Which FLAIR series a site wants analysed: rules over facts of the headers, as data.

`selection_rules.toml` beside this file holds the rules that ship. A site changes them in
`[selection]` of its own file: thresholds, words, rules of its own, rules it does not want. Both are
checked here when they are loaded: an unknown fact, a word that is no pattern and a rule that can
never match are errors that name the rule. What a fact is, `pipeline.header_facts` computes.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

RULES_FILE = Path(__file__).with_name("selection_rules.toml")

Kind = Literal["text", "number", "flag"]
Value = str | float | bool | None
"""Of a fact. None or "": the headers do not tell."""

NUMBERS: Mapping[str, str] = {
    "repetition_ms": "RepetitionTime",
    "echo_ms": "the shortest EchoTime of the series",
    "inversion_ms": "InversionTime; 0 counts as not stated",
    "nulling_ms": "inversion time that would null cerebrospinal fluid at this repetition time",
    "b_value": "the highest DiffusionBValue",
    "field_tesla": "MagneticFieldStrength",
    "instances": "images in the series",
    "series_number": "SeriesNumber",
    "slices": "slices of the stack",
    "slice_mm": "distance of the slices",
    "pixel_mm": "the larger side of a pixel",
    "extent_mm": "slices x distance",
}
TEXTS: Mapping[str, str] = {
    "sop_class": "name of the SOP Class",
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "station": "StationName",
    "description": "SeriesDescription",
    "protocol": "ProtocolName",
    "study_description": "StudyDescription",
    "sequence_name": "SequenceName or PulseSequenceName",
    "scan_options": "ScanOptions and SequenceVariant",
    "image_type": "every value of ImageType of every image, underscores as spaces",
    "image_part": "third value of ImageType: magnitude, phase, real or imaginary part",
    "body_part": "BodyPartExamined",
    "acquisition": "MRAcquisitionType: 2D or 3D",
}
FLAGS: Mapping[str, str] = {
    "mr_image": "classic or Enhanced MR image storage",
    "image_object": "another storage class of images",
    "secondary_capture": "a secondary capture",
    "own_result": "made by flairnode",
    "spin_echo": "spin echo (true) or gradient echo (false)",
    "echo_planar": "an echo planar sequence",
    "states_inversion": "the header states an inversion pulse, with or without its time",
    "inverts": "an inversion is stated, or long times and a name tell of one",
    "nulls_csf": "the inversion time suppresses cerebrospinal fluid",
    "flair_physics": "echo, repetition, inversion and sequence are those of a FLAIR",
    "many_orientations": "the images of the series point in different directions",
    "post_contrast": "after contrast medium, as far as headers, description and order tell",
    "names_flair": "description, protocol or sequence name holds a word of the list flair",
    "names_inversion": "... of the list inversion",
    "names_other": "... of the list other",
    "names_localizer": "description or protocol holds a word of the list localizer",
}
FACTS: Mapping[str, Kind] = {
    **dict.fromkeys(NUMBERS, "number"),
    **dict.fromkeys(TEXTS, "text"),
    **dict.fromkeys(FLAGS, "flag"),
}
GEOMETRY_FACTS = frozenset({"slices", "slice_mm", "pixel_mm", "extent_mm"})
"""Known once the series is a stack; a rule that looks at one is asked after that."""
ALWAYS = {"mr_image": True, "own_result": False, "secondary_capture": False}
"""What holds of every series that a site's rules are asked of."""

QUOTABLE = frozenset(
    {*NUMBERS, "sop_class", "modality", "image_type", "image_part", "body_part", "told"}
)
"""What an explanation may quote. Descriptions and names of stations can name a person; `told` is
the sentence with the three times."""

ThresholdName = Literal[
    "shortest_echo_ms",
    "shortest_repetition_ms",
    "long_repetition_ms",
    "localizer_repetition_ms",
    "csf_t1_ms",
    "nulling_low",
    "nulling_high",
    "low_field_tesla",
    "low_field_shortest_repetition_ms",
    "low_field_long_repetition_ms",
    "low_field_csf_t1_ms",
]
WordList = Literal[
    "flair",
    "inversion",
    "other",
    "localizer",
    "head",
    "elsewhere",
    "post_contrast",
    "pre_contrast",
    "no_agent",
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
RuleId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
Reason = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(_Data):
    """One look at one fact. What the headers do not tell meets no condition but `known = false`."""

    fact: str
    known: bool | None = None
    """Do the headers tell it?"""
    holds: bool | None = None
    """For flags."""
    equals: tuple[str, ...] | None = None
    """For texts: one of these, whatever the case."""
    matches: str | None = None
    """For texts: a pattern that is found in it, whatever the case; "@list": a word of that list."""
    lacks: str | None = None
    """For texts: a pattern that is not found in it."""
    below: float | ThresholdName | None = None
    at_least: float | ThresholdName | None = None

    @model_validator(mode="after")
    def _fits_its_fact(self) -> Self:
        kind = FACTS.get(self.fact)
        if kind is None:
            raise ValueError(f"unknown fact {self.fact!r}; facts are {', '.join(sorted(FACTS))}")
        allowed = {
            "flag": {"holds"},
            "text": {"equals", "matches", "lacks"},
            "number": {"below", "at_least"},
        }[kind] | {"known"}
        given = set(self.model_dump(exclude_none=True)) - {"fact"}
        if not given:
            raise ValueError(f"{self.fact}: says nothing; one of {sorted(allowed)} is wanted")
        if given - allowed:
            wrong = ", ".join(sorted(given - allowed))
            raise ValueError(
                f"{self.fact} is a {kind}: {wrong} does not apply, only {sorted(allowed)}"
            )
        if self.known is False and len(given) > 1:
            raise ValueError(f"{self.fact}: can never match: not known, and yet more is asked")
        for pattern in (self.matches, self.lacks):
            if pattern is not None:
                _checked_pattern(pattern)
        return self


def _checked_pattern(pattern: str) -> None:
    if pattern.startswith("@"):
        if pattern[1:] not in get_args(WordList):
            raise ValueError(f"no list of words is called {pattern[1:]!r}")
        return
    if not pattern:
        raise ValueError("an empty pattern is found in everything")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from error


class _Rule(_Data):
    id: RuleId
    when: Annotated[tuple[Condition, ...], Field(min_length=1)]
    """All must be met."""


class RefuseRule(_Rule):
    """What is not analysed."""

    reason: Reason
    """Stable: dashboards and tests rely on it. Several rules may share one."""
    why: str
    """With facts and thresholds in braces; only what names nobody may be quoted."""
    change: str
    """What would have to be otherwise."""
    outcome: Literal["skipped", "not_analysed"] = "skipped"
    locked: bool = False
    """No site can disable it: the pixels of such a series are no acquisition of a head."""

    @model_validator(mode="after")
    def _quotes_what_it_may(self) -> Self:
        for text in (self.why, self.change):
            _checked_template(text)
        return self


def _checked_template(text: str) -> None:
    try:
        names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    strange = names - QUOTABLE - set(get_args(ThresholdName))
    if strange:
        raise ValueError(
            f"{text!r} quotes {sorted(strange)}, which is unknown or may name a person"
        )


class ScoreRule(_Rule):
    """What speaks for or against a series."""

    points: Annotated[float, Field(ge=-1, le=1)]


class SiteRefusal(_Rule):
    """`[[selection.refuse]]`: FLAIR series that this site does not want analysed."""

    why: str = "the site's rule {rule} does not want it"
    outcome: Literal["skipped", "not_analysed"] = "skipped"
    """`not_analysed` where a reader should be told that this FLAIR has no result."""

    @model_validator(mode="after")
    def _quotes_what_it_may(self) -> Self:
        _checked_template(self.why.replace("{rule}", ""))
        return self


class SiteFavour(_Rule):
    """`[[selection.favour]]`: of several FLAIR, the one with the most points is chosen."""

    points: Annotated[float, Field(ge=-10, le=10)] = 1.0


class RuleFile(_Data):
    """`selection_rules.toml`."""

    thresholds: Mapping[ThresholdName, Positive]
    words: Mapping[WordList, tuple[str, ...]]
    object: tuple[RefuseRule, ...]
    """Asked first, of every object; they end with a score of 0."""
    refuse: tuple[RefuseRule, ...]
    """Asked in this order of every MR image; the first that matches is the reason."""
    score: tuple[ScoreRule, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for name, wanted, found in (
            ("thresholds", get_args(ThresholdName), self.thresholds),
            ("words", get_args(WordList), self.words),
        ):
            if missing := set(wanted) - set(found):
                raise ValueError(f"{name}: {sorted(missing)} is missing")
        return self


class SelectionSettings(_Data):
    """Which FLAIR series a site wants analysed. None of it enters the UIDs of results."""

    minimum_slices: Annotated[int, Field(ge=3)] = 8
    """A stack of fewer slices is no examination of a head (`reference/brain_extraction.md` 5)."""
    prefer: Literal["2d", "3d"] | None = None
    """Of several usable FLAIR, the 2-D or the 3-D one. None: score, coverage, smaller voxels."""
    post_contrast: Literal["below", "equal", "refuse"] = "below"
    """A FLAIR after contrast medium: `below` any before it, used when it is the only one; `equal`;
    or `refuse` it (`not_analysed`, reason `post-contrast`)."""
    disable: tuple[RuleId, ...] = ()
    """Ids of shipped rules that are not asked here."""
    thresholds: Mapping[ThresholdName, Positive] = Field(default_factory=dict)
    """Other values for the shipped ones."""
    words: Mapping[WordList, tuple[str, ...]] = Field(default_factory=dict)
    """More words for the shipped lists, as patterns."""
    refuse: tuple[SiteRefusal, ...] = ()
    favour: tuple[SiteFavour, ...] = ()

    @model_validator(mode="after")
    def _makes_a_set_of_rules(self) -> Self:
        # The defaults are made at import, and nothing is read then.
        if self.disable or self.thresholds or self.words or self.refuse or self.favour:
            rules_in_force(self)
        return self


@dataclass(frozen=True, slots=True, eq=False)
class RuleSet:
    """The shipped rules with a site's changes: everything a selection depends on."""

    thresholds: Mapping[ThresholdName, float]
    words: Mapping[WordList, re.Pattern[str]]
    object: tuple[RefuseRule, ...]
    refuse: tuple[RefuseRule, ...]
    site_refuse: tuple[RefuseRule, ...]
    score: tuple[ScoreRule, ...]
    favour: tuple[SiteFavour, ...]
    minimum_slices: int
    prefer: Literal["2d", "3d"] | None
    post_contrast: Literal["below", "equal", "refuse"]
    digest: str
    """SHA-256 of all of it: decisions with the same digest were made by the same rules."""

    def at_field(self, field_tesla: float | None) -> Mapping[ThresholdName, float]:
        """The thresholds for a scanner of that field: T1 and sequence times are others at 0.06 T.

        `shortest_repetition_ms`, `long_repetition_ms` and `csf_t1_ms` are the ones that hold there.
        """
        if field_tesla is None or field_tesla >= self.thresholds["low_field_tesla"]:
            return self.thresholds
        return {
            **self.thresholds,
            "shortest_repetition_ms": self.thresholds["low_field_shortest_repetition_ms"],
            "long_repetition_ms": self.thresholds["low_field_long_repetition_ms"],
            "csf_t1_ms": self.thresholds["low_field_csf_t1_ms"],
        }

    def met(
        self,
        rule: RefuseRule | ScoreRule | SiteFavour,
        facts: Mapping[str, Value],
        thresholds: Mapping[ThresholdName, float],
    ) -> bool:
        """Are all conditions of a rule met?"""
        return all(
            _met(condition, facts.get(condition.fact), thresholds, self.words)
            for condition in rule.when
        )


@cache
def shipped_rules() -> RuleFile:
    """The rules that come with flairnode."""
    return RuleFile.model_validate(tomllib.loads(RULES_FILE.read_text(encoding="utf-8")))


def rules_in_force(settings: SelectionSettings) -> RuleSet:
    """The shipped rules with the changes of a site.

    Raises:
        ValueError: A rule is disabled that does not exist or must hold, an id is used twice, a rule
            can never match, or a word is no pattern. The message names it.
    """
    shipped = shipped_rules()
    disabled = _disabled(settings, shipped)
    thresholds: dict[ThresholdName, float] = {**shipped.thresholds, **settings.thresholds}
    if thresholds["nulling_low"] >= thresholds["nulling_high"]:
        raise ValueError("thresholds: nulling_low must be less than nulling_high")
    words = {
        name: _one_of((*listed, *settings.words.get(name, ())), name)
        for name, listed in shipped.words.items()
    }
    site_refuse = tuple(_of_site(rule) for rule in settings.refuse)
    own = [*settings.refuse, *settings.favour]
    _refuse_doubled_ids((*_shipped_ids(shipped), *(rule.id for rule in own)))
    for rule in own:
        _refuse_if_never_met(rule, thresholds, words)
    rules = RuleSet(
        thresholds=thresholds,
        words=words,
        object=shipped.object,
        refuse=tuple(rule for rule in shipped.refuse if rule.id not in disabled),
        site_refuse=site_refuse,
        score=tuple(rule for rule in shipped.score if rule.id not in disabled),
        favour=settings.favour,
        minimum_slices=settings.minimum_slices,
        prefer=settings.prefer,
        post_contrast=settings.post_contrast,
        digest="",
    )
    return _with_digest(rules)


def _disabled(settings: SelectionSettings, shipped: RuleFile) -> frozenset[str]:
    known = {rule.id: rule for rule in (*shipped.refuse, *shipped.score)}
    for wanted in settings.disable:
        if wanted not in known and wanted not in {rule.id for rule in shipped.object}:
            raise ValueError(f"disable: no rule is called {wanted!r}; rules are {sorted(known)}")
        rule = known.get(wanted)
        if rule is None or (isinstance(rule, RefuseRule) and rule.locked):
            raise ValueError(f"disable: {wanted!r} cannot be disabled: it guards what is no image")
    by_setting = set()
    if settings.post_contrast != "refuse":
        by_setting.add("post-contrast")
    if settings.post_contrast == "equal":
        by_setting.add("score-post-contrast")
    return frozenset({*settings.disable, *by_setting})


def _of_site(rule: SiteRefusal) -> RefuseRule:
    return RefuseRule(
        id=rule.id,
        when=rule.when,
        reason="refused-by-site",
        why=rule.why.replace("{rule}", rule.id),
        change=f"The rule {rule.id} in [[selection.refuse]] of the site's settings would have to"
        " go.",
        outcome=rule.outcome,
    )


def _shipped_ids(shipped: RuleFile) -> Iterator[str]:
    for rules in (shipped.object, shipped.refuse, shipped.score):
        yield from (rule.id for rule in rules)


def _refuse_doubled_ids(ids: Sequence[str]) -> None:
    doubled = sorted({one for one in ids if ids.count(one) > 1})
    if doubled:
        raise ValueError(f"rule ids are used twice: {doubled}")


def _one_of(listed: Iterable[str], name: str) -> re.Pattern[str]:
    for word in listed:
        try:
            _checked_pattern(word if not word.startswith("@") else "")
        except ValueError as error:
            raise ValueError(f"words.{name}: {error}") from error
    return re.compile("|".join(f"(?:{word})" for word in listed), re.IGNORECASE)


def _refuse_if_never_met(
    rule: _Rule,
    thresholds: Mapping[ThresholdName, float],
    words: Mapping[WordList, re.Pattern[str]],
) -> None:
    """Refuse what contradicts itself, or what holds of every series a rule is asked of.

    A pattern that no name ever holds cannot be told from one that waits for its first.
    """
    for fact in {condition.fact for condition in rule.when}:
        looks = [condition for condition in rule.when if condition.fact == fact]
        where = f"rule {rule.id}: can never match: {fact}"
        if {True, False} <= {look.holds for look in looks}:
            raise ValueError(f"{where} cannot hold and not hold")
        if fact in ALWAYS and any(look.holds is (not ALWAYS[fact]) for look in looks):
            raise ValueError(f"{where} is {str(ALWAYS[fact]).lower()} for every series it is asked")
        unknown = any(look.known is False for look in looks)
        if unknown and (len(looks) > 1 or fact in GEOMETRY_FACTS or fact in ALWAYS):
            raise ValueError(f"{where} is always known there, or is asked for more")
        low = max((_limit(look.at_least, thresholds, 0.0) for look in looks), default=0.0)
        high = min(_limit(look.below, thresholds, float("inf")) for look in looks)
        if low >= high:
            raise ValueError(f"{where} cannot be at least {low:g} and below {high:g}")
        texts = [set(look.equals) for look in looks if look.equals is not None]
        if texts and not any(
            all(_met(look, text, thresholds, words) for look in looks) for text in set.union(*texts)
        ):
            raise ValueError(f"{where} has no value that meets all of it")


def _limit(
    value: float | ThresholdName | None, thresholds: Mapping[ThresholdName, float], default: float
) -> float:
    if value is None:
        return default
    return thresholds[value] if isinstance(value, str) else value


def _met(
    condition: Condition,
    value: Value,
    thresholds: Mapping[ThresholdName, float],
    words: Mapping[WordList, re.Pattern[str]],
) -> bool:
    known = value is not None and value != ""
    if condition.known is not None and condition.known is not known:
        return False
    if not known:
        return condition.known is False or (condition.lacks is not None and value == "")
    if condition.holds is not None and value is not condition.holds:
        return False
    if isinstance(value, str):
        return _text_met(condition, value, words)
    if isinstance(value, float) and condition.holds is None:
        low = _limit(condition.at_least, thresholds, float("-inf"))
        return low <= value < _limit(condition.below, thresholds, float("inf"))
    return True


def _text_met(condition: Condition, value: str, words: Mapping[WordList, re.Pattern[str]]) -> bool:
    if condition.equals is not None and value.lower() not in {
        one.lower() for one in condition.equals
    }:
        return False
    if condition.matches is not None and not _found(condition.matches, value, words):
        return False
    return condition.lacks is None or not _found(condition.lacks, value, words)


def _found(pattern: str, value: str, words: Mapping[WordList, re.Pattern[str]]) -> bool:
    for name, listed in words.items():
        if pattern == f"@{name}":
            return listed.search(value) is not None
    return re.search(pattern, value, re.IGNORECASE) is not None


def _with_digest(rules: RuleSet) -> RuleSet:
    said = {
        "thresholds": dict(rules.thresholds),
        "words": {name: pattern.pattern for name, pattern in rules.words.items()},
        **{
            name: [rule.model_dump(exclude_none=True) for rule in listed]
            for name, listed in (
                ("object", rules.object),
                ("refuse", rules.refuse),
                ("site_refuse", rules.site_refuse),
                ("score", rules.score),
                ("favour", rules.favour),
            )
        },
        "minimum_slices": rules.minimum_slices,
        "prefer": rules.prefer,
        "post_contrast": rules.post_contrast,
    }
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return replace(rules, digest=digest)
