"""Which series of a study is the FLAIR to analyse, and why each other one is not.

Physics decides: a FLAIR is a spin echo with a long echo time, whose inversion time leaves no signal
of cerebrospinal fluid at its repetition time. Names differ by vendor, country and technologist;
they support what the physics allows, and never overrule it.

What decides is data: `config/selection_rules.toml`, changed by `[selection]` of a site's settings.
Here the rules are asked in their order, the stack is tried, and of several FLAIR one is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from config.selection import RefuseRule, RuleSet, SelectionSettings, rules_in_force
from dicom.attributes import number, text
from dicom.errors import (
    IncompleteSeriesError,
    MixedOrientationError,
    MultiFrameError,
    Outcome,
    RepeatedStackError,
    StudyError,
    TruncatedFileError,
)
from dicom.frames import as_classic
from dicom.series import Series, Study, Unreadable
from dicom.volume import Grid, stack_grid
from pipeline.header_facts import (
    MR_IMAGES,
    Contrast,
    Facts,
    acquired_at,
    facts_of,
    stated_contrast,
    with_geometry,
)
from pipeline.orientation import axial_view

SELECTED = "selected"
OTHER_FLAIR_CHOSEN = "other-flair-chosen"
CHOICE = "choice"
"""Rule of a decision that weighed one FLAIR against others, or had only the one."""
STACK = "stack"
"""Rule of a decision that the geometry made: `dicom.volume.stack_grid`, at its reasons."""
READABLE = "readable"
"""Rule of a decision on a series of which no object can be read."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one series."""

    series_instance_uid: str
    score: float
    """How much speaks for the FLAIR we want, 0 to 1; half of it where something rules it out."""
    reason: str
    """Stable, kebab-case; `selected` for the one to analyse."""
    explanation: str
    """One sentence with the values that decided. Names no patient and quotes no description."""
    outcome: Outcome
    """`ANALYSED` for the selected one, which is yet to be analysed; `SKIPPED` for what is not for
    us; `NOT_ANALYSED` for a FLAIR that cannot be used."""
    rule: str = ""
    """Id of the rule that decided, or `choice`, `stack`, `readable`."""
    change: str = ""
    """What would have to be otherwise; "" for the selected one."""
    evidence: tuple[tuple[str, float], ...] = ()
    """The rules of the score that were met, and their points."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The FLAIR of a study, and the reasons for every series."""

    selected: str | None
    """Series Instance UID, or None if there is no usable FLAIR."""
    decisions: tuple[Decision, ...]
    """One per series, damaged ones included, in order of Series Instance UID."""
    unreadable: tuple[Unreadable, ...] = ()
    """Files that are no usable object."""
    rules_digest: str = ""
    """Of the rules in force (`config.selection.RuleSet`)."""

    def as_json(self) -> dict[str, Any]:
        """What `flairnode select --json` prints."""
        return {
            "selected": self.selected,
            "rules_digest": self.rules_digest,
            "series": [
                {
                    "series_instance_uid": decision.series_instance_uid,
                    "score": decision.score,
                    "reason": decision.reason,
                    "outcome": None if decision.reason == SELECTED else decision.outcome.value,
                    "explanation": decision.explanation,
                    "rule": decision.rule,
                    "change": decision.change,
                    "evidence": [
                        {"rule": rule, "points": points} for rule, points in decision.evidence
                    ],
                }
                for decision in self.decisions
            ],
            "unreadable": [
                {"file": entry.path.name, "reason": entry.reason} for entry in self.unreadable
            ],
        }


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A FLAIR that can be analysed."""

    series: Series
    score: float
    evidence: tuple[tuple[str, float], ...]
    grid: Grid
    facts: Facts
    contrast: Contrast
    ranked_by_contrast: bool
    """Does a FLAIR after contrast medium come behind any before it here?"""
    favour: float
    """Points of the site's own rules."""
    favoured_by: tuple[str, ...]
    preferred: bool
    """2-D or 3-D as the site prefers; True for all where it does not say."""

    @property
    def extent_mm(self) -> float:
        """From bottom to top, whatever the plane of the slices."""
        axial = axial_view(self.grid).grid
        return axial.shape[0] * axial.spacing_mm[0]

    @property
    def preference(self) -> tuple[bool, float, bool, float, float, float, float, str]:
        """The greatest is chosen.

        Before contrast medium; the site's favour; 2-D or 3-D as the site prefers; score; then
        coverage, to the centimetre; then the smaller voxels; then the later series, since a repeat
        is made where the first was not good; then anything that never changes.
        """
        return (
            not (self.ranked_by_contrast and self.contrast.given),
            self.favour,
            self.preferred,
            self.score,
            round(round(self.extent_mm, 1) / 10),
            -round(self.grid.voxel_volume_ml, 6),
            number(self.series.header, "SeriesNumber") or 0.0,
            self.series.series_instance_uid,
        )


def choose(study: Study, settings: SelectionSettings) -> Selection:
    """The one FLAIR of a study to analyse, from headers alone.

    A usable FLAIR is a stack of at least `settings.minimum_slices` that
    `dicom.volume.stack_grid` accepts. Pixels are not looked at: noise with the header of a FLAIR is
    selected here and refused by the gate (`pipeline.quality`).
    """
    rules = rules_in_force(settings)
    contrast = _contrast_of(study, rules)
    decisions: list[Decision] = []
    candidates: list[_Candidate] = []
    for series in study.series:
        judged = _judge(series, rules, contrast[series.series_instance_uid])
        if isinstance(judged, Decision):
            decisions.append(judged)
        else:
            candidates.append(judged)
    decisions.extend(_damaged(study))
    best = max(candidates, key=lambda candidate: candidate.preference, default=None)
    if best is not None:
        others = [one for one in candidates if one is not best]
        decisions.append(_selected(best, others, study.unreadable))
        decisions.extend(_passed_over(one, best) for one in others)
    return Selection(
        selected=best.series.series_instance_uid if best is not None else None,
        decisions=tuple(sorted(decisions, key=lambda one: one.series_instance_uid)),
        unreadable=study.unreadable,
        rules_digest=rules.digest,
    )


def _contrast_of(study: Study, rules: RuleSet) -> dict[str, Contrast]:
    """By Series Instance UID: what tells that a series was acquired after contrast medium.

    Contrast medium stays for hours: what was acquired after a series that states it, in the same
    study, is after it too.
    """
    stated = {
        series.series_instance_uid: stated_contrast(series, rules)
        for series in study.series
        if text(series.header, "SOPClassUID") in MR_IMAGES
    }
    since: dict[str, str] = {}
    for series in study.series:
        given = stated.get(series.series_instance_uid)
        moment = acquired_at(series) if given is not None and given.given else None
        if moment is not None:
            uid = series.study_instance_uid
            since[uid] = min(moment, since.get(uid, moment))
    contrast = {}
    for series in study.series:
        told = stated.get(series.series_instance_uid, Contrast(""))
        first = since.get(series.study_instance_uid)
        if not told.given and first is not None and series.series_instance_uid in stated:
            moment = acquired_at(series)
            if moment is not None and moment > first:
                told = Contrast("it was acquired after a series that states contrast medium")
        contrast[series.series_instance_uid] = told
    return contrast


def _judge(series: Series, rules: RuleSet, contrast: Contrast) -> Decision | _Candidate:
    facts = facts_of(series, rules, contrast)
    if (rule := _first_met(rules.object, facts, rules)) is not None:
        return _refused(series, 0.0, rule, facts, ())
    score, evidence = _score(facts, rules)
    refusals = (*rules.refuse, *rules.site_refuse)
    if (rule := _first_met(refusals, facts, rules)) is not None:
        return _refused(series, round(score / 2, 2), rule, facts, evidence)
    try:
        grid = _usable_grid(series, rules.minimum_slices)
    except StudyError as error:
        return Decision(
            series.series_instance_uid,
            score,
            error.reason,
            f"a FLAIR ({facts.physics.in_words()}) that cannot be analysed: {error}",
            Outcome.NOT_ANALYSED,
            STACK,
            _change_of_stack(error, rules.minimum_slices),
            evidence,
        )
    facts = with_geometry(facts, grid)
    if (rule := _first_met(refusals, facts, rules)) is not None:
        return _refused(series, round(score / 2, 2), rule, facts, evidence)
    favours = [
        rule for rule in rules.favour if rules.met(rule, facts.values, facts.physics.thresholds)
    ]
    return _Candidate(
        series=series,
        score=score,
        evidence=evidence,
        grid=grid,
        facts=facts,
        contrast=contrast,
        ranked_by_contrast=rules.post_contrast != "equal",
        favour=sum(rule.points for rule in favours),
        favoured_by=tuple(rule.id for rule in favours),
        preferred=rules.prefer is None or facts.values["acquisition"] == rules.prefer.upper(),
    )


def _first_met(listed: Iterable[RefuseRule], facts: Facts, rules: RuleSet) -> RefuseRule | None:
    limits = facts.physics.thresholds
    return next((rule for rule in listed if rules.met(rule, facts.values, limits)), None)


def _usable_grid(series: Series, minimum_slices: int) -> Grid:
    count = len(as_classic(series).instances)
    try:
        grid, _ = stack_grid(series)
    except (MultiFrameError, TruncatedFileError, MixedOrientationError, RepeatedStackError):
        raise
    except StudyError:
        # Too few slices is the plainest thing to say of them, whatever else they lack.
        _require_slices(count, minimum_slices)
        raise
    _require_slices(count, minimum_slices)
    return grid


def _require_slices(count: int, minimum_slices: int) -> None:
    if count < minimum_slices:
        raise IncompleteSeriesError(f"{count} slices, at least {minimum_slices} wanted")


def _change_of_stack(error: StudyError, minimum_slices: int) -> str:
    if isinstance(error, IncompleteSeriesError):
        return (
            "The whole series would have to be sent: at least"
            f" {minimum_slices} slices (selection.minimum_slices), and as many as it says it has."
        )
    return _CHANGES.get(error.reason, "The series would have to be one even stack of slices.")


_CHANGES = {
    "missing-slice": "The missing slice would have to be sent.",
    "duplicate-slice": "One image per position would have to be sent: two stacks or two time points"
    " under one Series Instance UID cannot be told apart.",
    "truncated-file": "The damaged files would have to be sent again.",
    "missing-attribute": "The attribute would have to be there: ask why the PACS or a gateway"
    " removed it.",
    "inconsistent-series": "The images would have to be of one patient, one size and one place.",
}


def _score(facts: Facts, rules: RuleSet) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Evidence for the FLAIR we want: what the physics says weighs 0.85, names and labels 0.15."""
    limits = facts.physics.thresholds
    evidence = tuple(
        (rule.id, rule.points) for rule in rules.score if rules.met(rule, facts.values, limits)
    )
    return round(max(0.0, sum(points for _, points in evidence)), 2), evidence


def _refused(
    series: Series,
    score: float,
    rule: RefuseRule,
    facts: Facts,
    evidence: tuple[tuple[str, float], ...],
) -> Decision:
    quoted = facts.quoted()
    return Decision(
        series.series_instance_uid,
        score,
        rule.reason,
        rule.why.format_map(quoted),
        Outcome(rule.outcome),
        rule.id,
        rule.change.format_map(quoted),
        evidence,
    )


def _selected(
    best: _Candidate, others: Sequence[_Candidate], unreadable: Sequence[Unreadable]
) -> Decision:
    physics = best.facts.physics
    if physics.nulls_csf and physics.nulling_ms is not None:
        why = f"cerebrospinal fluid is nulled at about {physics.nulling_ms:.0f} ms"
    elif physics.nulls_csf:
        why = "the inversion time nulls cerebrospinal fluid"
    elif physics.says_inversion:
        why = "the header states an inversion and gives no time"
    else:
        why = "no inversion is stated, but the description names it"
    explanation = (
        f"FLAIR: {physics.in_words()} ({why}); {axial_view(best.grid).acquired}, {_size(best)}"
    )
    if best.contrast.given:
        explanation += f"; after contrast medium: {best.contrast.why}"
        if best.ranked_by_contrast:
            explanation += ", used because no FLAIR before it can be"
    if others:
        runner_up = max(others, key=lambda one: one.preference)
        explanation += (
            f"; chosen of {1 + len(others)} usable FLAIR, before the next one"
            f" {_advantage(best, runner_up)}"
        )
    # A damaged slice of this series would have been refused; one too damaged to say where it
    # belongs could be the end slice of any.
    lost = sum(one.reason != "not-dicom" and not one.series_instance_uid for one in unreadable)
    if lost:
        explanation += f"; {lost} damaged files could not be told to belong to another series"
    uid = best.series.series_instance_uid
    return Decision(
        uid, best.score, SELECTED, explanation, Outcome.ANALYSED, CHOICE, "", best.evidence
    )


def _passed_over(candidate: _Candidate, best: _Candidate) -> Decision:
    physics = candidate.facts.physics
    explanation = f"also a FLAIR ({physics.in_words()}), {_comparison(candidate, best)}"
    return Decision(
        candidate.series.series_instance_uid,
        candidate.score,
        OTHER_FLAIR_CHOSEN,
        explanation,
        Outcome.SKIPPED,
        CHOICE,
        _change_of_choice(candidate, best),
        candidate.evidence,
    )


def _comparison(candidate: _Candidate, best: _Candidate) -> str:
    """What decided between the two, from the view of the one that was not chosen."""
    ours, theirs = candidate.preference, best.preference
    scores = f"its score is {ours[3]:.2f} and that of the chosen one {theirs[3]:.2f}"
    if ours[0] != theirs[0]:
        return f"but after contrast medium ({candidate.contrast.why}), the chosen one not; {scores}"
    if ours[1] != theirs[1]:
        rules = ", ".join((*best.favoured_by, *candidate.favoured_by))
        return f"but the site's settings favour the chosen one ({rules}); {scores}"
    if ours[2] != theirs[2]:
        return f"but the site prefers {_acquisition(best)} to {_acquisition(candidate)}; {scores}"
    if ours[3] != theirs[3]:
        return f"but {scores}"
    if ours[4] != theirs[4]:
        return f"but it covers {candidate.extent_mm:.0f} mm and the chosen one {best.extent_mm:.0f}"
    if ours[5] != theirs[5]:
        return f"but its voxels are larger: {_size(candidate)}; the chosen one has {_size(best)}"
    if ours[6] != theirs[6]:
        return "alike in all that counts; the later one (by SeriesNumber) was chosen"
    return "alike in all that counts; the one with the greater UID was chosen"


def _advantage(best: _Candidate, other: _Candidate) -> str:
    """The same, from the view of the chosen one."""
    ours, theirs = best.preference, other.preference
    if ours[0] != theirs[0]:
        return f"since that is after contrast medium ({other.contrast.why})"
    if ours[1] != theirs[1]:
        rules = ", ".join((*best.favoured_by, *other.favoured_by))
        return f"by the site's settings ({rules})"
    if ours[2] != theirs[2]:
        return f"since the site prefers {_acquisition(best)}"
    if ours[3] != theirs[3]:
        return f"by its score, {ours[3]:.2f} to {theirs[3]:.2f}"
    if ours[4] != theirs[4]:
        return f"by its coverage, {best.extent_mm:.0f} mm to {other.extent_mm:.0f}"
    if ours[5] != theirs[5]:
        return f"by its smaller voxels ({_acquisition(best)}, the other {_acquisition(other)})"
    if ours[6] != theirs[6]:
        return "as the later one of two that are alike"
    return "by its UID alone: they are alike"


def _change_of_choice(candidate: _Candidate, best: _Candidate) -> str:
    ours, theirs = candidate.preference, best.preference
    if ours[0] != theirs[0]:
        setting = 'selection.post_contrast = "equal", or a rule that refuses the chosen one'
    elif ours[1] != theirs[1]:
        setting = "another [[selection.favour]]"
    elif ours[2] != theirs[2]:
        setting = "another selection.prefer"
    else:
        setting = "selection.prefer or a rule in [[selection.favour]] or [[selection.refuse]]"
    return (
        f"The other FLAIR would have to be missing or refused, or the settings changed: {setting}."
        " `flairnode jobs retry` with the Series Instance UID analyses this one as well."
    )


def _acquisition(candidate: _Candidate) -> str:
    return str(candidate.facts.values["acquisition"] or "neither 2D nor 3D by its header")


def _size(candidate: _Candidate) -> str:
    slices, rows, columns = candidate.grid.spacing_mm
    return f"{candidate.grid.shape[0]} slices of {slices:.2f} x {rows:.2f} x {columns:.2f} mm"


def _damaged(study: Study) -> Iterator[Decision]:
    """Series of which no object could be read."""
    known = {series.series_instance_uid for series in study.series}
    lost: dict[str, int] = {}
    for entry in study.unreadable:
        if entry.series_instance_uid and entry.series_instance_uid not in known:
            lost[entry.series_instance_uid] = lost.get(entry.series_instance_uid, 0) + 1
    for uid, count in lost.items():
        yield Decision(
            uid,
            0.0,
            TruncatedFileError.reason,
            f"none of its {count} objects can be read",
            Outcome.NOT_ANALYSED,
            READABLE,
            _CHANGES["truncated-file"],
        )
