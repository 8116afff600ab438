"""Is what the node sees and finds today still within what it was validated on?

The node's stored results (`data_dir/results/*/outcome.json`, and `data_dir/history/*.json` of those
that retention has removed) are compared, month by month, with the
cases of a validation run: what was found (volumes, counts), what quality said, how often there was
no result, and how images were acquired. Without a reference nobody can say whether a mask is right;
what can be said is that the node works on other images, or finds other amounts, than those that its
figures rest on. Then the figures no longer speak for it, and somebody has to look.

A difference is called *outside* only if it is both unlikely and large. Numbers: a rank test whose
p, adjusted for all measures of the month (Holm), is below `ALPHA`, with a Cliff's delta of at least
`LARGE_DELTA`; or more cases beyond the validated 2.5 to 97.5 % than can be chance
(`OUTSIDE_SHARE`). Rates: Fisher's exact test, adjusted likewise, and a difference of at least
`LARGE_DIFFERENCE`. With fewer than `FEWEST` cases on either side nothing is called anything.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import JsonValue
from scipy import stats

from dicom.errors import EmptyInputError, Outcome, StudyError
from training.cohort_figures import says
from training.statistics import proportion

ALPHA: Final = 0.01  # of a month: twelve looks a year, and a false alarm every eighth year
FEWEST: Final = 20  # as everywhere in the report: fewer say little of a spread
LARGE_DELTA: Final = 0.33
"""Of Cliff's delta: two thirds of pairs of cases differ in the same direction."""
LARGE_DIFFERENCE: Final = 0.10  # of a rate: one case in ten
OUTSIDE_SHARE: Final = 0.15
"""The lower Wilson bound of the share beyond the validated 2.5 to 97.5 % may be this: 5 % are
expected, and up to 10 % where the range comes from 20 cases."""
RANGE: Final = (2.5, 97.5)  # percentiles

Judgement = Literal["inside", "outside", "too few to say", "not known"]
Row = Mapping[str, Any]
OUTCOME_FILE: Final = "outcome.json"


class NoLiveResultsError(EmptyInputError):
    """The data directory holds no result to compare."""

    reason = "no-live-results"


class NoSuchMonthError(StudyError):
    """No result of that month is stored."""

    reason = "no-such-month"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is compared of one series, of the node or of the validation. It names nobody."""

    month: str
    """`2026-03`; "" of a validated case."""
    outcome: str
    reason: str = ""
    pack_digest: str = ""
    volume_ml: float | None = None
    lesions: int | None = None
    verdict: str = ""
    flags: frozenset[str] = frozenset()
    acquisition: Mapping[str, Any] = field(default_factory=dict)


# --- what there is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Live:
    """The results that a node has stored."""

    seen: tuple[Seen, ...]
    unreadable: int
    """Results whose `outcome.json` is damaged or of another form."""
    replaced: int
    """Earlier results of a series that has a later one: counted once."""

    @property
    def months(self) -> tuple[str, ...]:
        """In order."""
        return tuple(sorted({one.month for one in self.seen}))


def read_live(data_dir: Path) -> Live:
    """The stored results of a node, the latest of each series.

    Raises:
        NoLiveResultsError: There is none.
    """
    found: dict[str, tuple[str, Seen]] = {}
    total = unreadable = 0
    stored = sorted((data_dir / "results").glob(f"*/{OUTCOME_FILE}"))
    there = {path.parent.name for path in stored}
    kept = sorted((data_dir / "history").glob("*.json"))
    for path in (*(one for one in kept if one.stem not in there), *stored):
        try:
            created, series, seen = _read_result(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            unreadable += 1
            continue
        total += 1
        if series not in found or found[series][0] <= created:
            found[series] = created, seen
    if not found:
        raise NoLiveResultsError(
            "the data directory holds no readable results/*/outcome.json and no history: give "
            "node.data_dir of the site's settings"
        )
    seen_in_order = sorted((created, key) for key, (created, _) in found.items())
    return Live(tuple(found[key][1] for _, key in seen_in_order), unreadable, total - len(found))


def _read_result(content: Mapping[str, Any]) -> tuple[str, str, Seen]:
    """When it was ordered, of which series, and what is compared."""
    job, report = content["job"], content.get("report") or {}
    findings, quality = report.get("findings") or {}, report.get("quality") or {}
    created = str(job["created_at"])
    series = job.get("series_sha256")
    if series is None:
        series = hashlib.sha256(str(job["series_instance_uid"]).encode()).hexdigest()
    return (
        created,
        str(series),
        Seen(
            month=created[:7],
            outcome=str(Outcome(content["outcome"])),
            reason=str(content["reason"]),
            pack_digest=str(job["pack_digest"]),
            volume_ml=findings.get("total_volume_ml"),
            lesions=findings.get("lesion_count"),
            verdict=str(quality.get("verdict", "")),
            flags=_flags(quality),
            acquisition=report.get("acquisition") or {},
        ),
    )


def validated_cases(rows: Iterable[Row]) -> tuple[Seen, ...]:
    """The real cases of a validation run; painted lesions are no range of anything."""
    return tuple(_validated(row) for row in rows if not says(row, "semi_synthetic"))


def _validated(row: Row) -> Seen:
    findings, quality = row.get("findings") or {}, row["quality"] or {}
    acquisition = dict(row.get("acquisition") or {})
    if not acquisition and row.get("spacing_mm"):
        acquisition["spacing_mm"] = row["spacing_mm"]
    # What the site says of a case that came as NIfTI.
    about = row["about"]
    if acquisition.get("field_strength_t") is None and about.get("field_strength_t"):
        acquisition["field_strength_t"] = float(about["field_strength_t"])
    acquisition["scanner"] = acquisition.get("scanner") or about.get("scanner")
    return Seen(
        month="",
        outcome=str(row["outcome"]),
        reason=str(row["reason"]),
        pack_digest=str((row["model"] or {}).get("digest", "")),
        volume_ml=findings.get("total_volume_ml"),
        lesions=findings.get("lesion_count"),
        verdict=str(quality.get("verdict", "")),
        flags=_flags(quality),
        acquisition=acquisition,
    )


def _flags(quality: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(flag["code"]) for flag in quality.get("flags", ()))


# --- what is compared ------------------------------------------------------------------------


def _of_acquisition(name: str, index: int | None = None) -> Callable[[Seen], float | None]:
    def of(seen: Seen) -> float | None:
        value = seen.acquisition.get(name)
        if value is not None and index is not None:
            value = value[index]
        return None if value is None else float(value)

    return of


def _volume(seen: Seen) -> float | None:
    return seen.volume_ml if seen.outcome == Outcome.ANALYSED else None


def _lesions(seen: Seen) -> float | None:
    counted = seen.outcome == Outcome.ANALYSED and seen.lesions is not None
    return float(seen.lesions or 0) if counted else None


NUMBERS: Final[tuple[tuple[str, str, Callable[[Seen], float | None]], ...]] = (
    ("lesion volume", "ml", _volume),
    ("lesions", "", _lesions),
    ("slice spacing", "mm", _of_acquisition("spacing_mm", 0)),
    ("pixel spacing", "mm", _of_acquisition("spacing_mm", 1)),
    ("slices", "", _of_acquisition("slices")),
    ("field strength", "T", _of_acquisition("field_strength_t")),
    ("repetition time", "ms", _of_acquisition("repetition_ms")),
    ("echo time", "ms", _of_acquisition("echo_ms")),
    ("inversion time", "ms", _of_acquisition("inversion_ms")),
)
FINDINGS: Final = ("lesion volume", "lesions")


@dataclass(frozen=True, slots=True)
class Compared:
    """One number or rate of a month, held against the validated cases."""

    name: str
    unit: str
    judgement: Judgement
    because: str
    validated_n: int
    live_n: int
    validated: float | None
    """Median, or rate."""
    live: float | None
    low: float | None = None
    """Of the validated range (`RANGE`); numbers only."""
    high: float | None = None
    beyond: int | None = None
    """Live cases beyond it."""
    effect: float | None = None
    """Cliff's delta; of a rate the difference. Above 0: the node has more."""
    p: float | None = None
    """Adjusted (Holm) for all that was tested of the month."""

    def as_json(self) -> dict[str, JsonValue]:
        """Everything."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Drift:
    """A month of a node against a validation."""

    month: str
    judgement: Judgement
    because: tuple[str, ...]
    numbers: tuple[Compared, ...]
    rates: tuple[Compared, ...]
    live_n: int
    """Series of the month that were analysed, refused or failed."""
    other_pack: int
    """Of the month, by another pack than the validated one; not compared."""
    new_scanners: Mapping[str, int]
    """Scanners that no validated case is of, and how many live series are."""


def compare(live: Live, validated: Sequence[Seen], month: str | None = None) -> Drift:
    """A month of a node against the validated cases.

    Args:
        live: From `read_live`.
        validated: From `validated_cases`.
        month: `2026-03`; None: the latest.

    Raises:
        NoSuchMonthError: No result of that month.
    """
    month = month or live.months[-1]
    of_month = [one for one in live.seen if one.month == month]
    if not of_month:
        raise NoSuchMonthError(
            f"no result of {month} is stored; there are results of {', '.join(live.months)}"
        )
    packs = {one.pack_digest for one in validated if one.pack_digest}
    ours = [one for one in of_month if not packs or one.pack_digest in packs]
    compared = _holm(
        [
            *(_number(name, unit, of, validated, ours) for name, unit, of in NUMBERS),
            *_rates(validated, ours),
        ]
    )
    numbers = tuple(compared[: len(NUMBERS)])
    rates = tuple(compared[len(NUMBERS) :])
    known = {one.acquisition.get("scanner") for one in validated} - {None}
    new = Counter(
        str(scanner)
        for one in ours
        if (scanner := one.acquisition.get("scanner")) and known and scanner not in known
    )
    judgement, because = _judge(numbers, rates, len(ours), new)
    return Drift(
        month,
        judgement,
        because,
        numbers,
        rates,
        len(ours),
        len(of_month) - len(ours),
        dict(sorted(new.items())),
    )


def _number(
    name: str,
    unit: str,
    of: Callable[[Seen], float | None],
    validated: Sequence[Seen],
    live: Sequence[Seen],
) -> Compared:
    before = [value for one in validated if (value := of(one)) is not None]
    now = [value for one in live if (value := of(one)) is not None]
    low, high = (float(value) for value in np.percentile(before, RANGE)) if before else (None, None)
    beyond = None
    if low is not None and high is not None:
        # A spacing is a decimal string: the last digit of a float is no difference.
        room = 1e-6 * max(abs(low), abs(high))
        beyond = sum(not low - room <= value <= high + room for value in now)
    found = Compared(
        name,
        unit,
        "not known",
        "",
        len(before),
        len(now),
        float(np.median(before)) if before else None,
        float(np.median(now)) if now else None,
        low,
        high,
        beyond,
    )
    if len(before) < FEWEST or len(now) < FEWEST:
        return _too_few(found)
    tested = stats.mannwhitneyu(now, before, alternative="two-sided", method="asymptotic")
    delta = 2 * float(tested.statistic) / (len(now) * len(before)) - 1
    alike = len({*now, *before}) == 1  # no rank differs: the test divides by a spread of 0
    return replace(found, effect=0.0 if alike else delta, p=1.0 if alike else float(tested.pvalue))


def _rates(validated: Sequence[Seen], live: Sequence[Seen]) -> list[Compared]:
    """No result, verdicts, and every flag that either side has."""

    def with_quality(some: Sequence[Seen]) -> list[Seen]:
        return [one for one in some if one.verdict]

    found = [
        _rate("not analysed", validated, live, lambda one: one.outcome == Outcome.NOT_ANALYSED),
        _rate("failed or held", validated, live, lambda one: one.outcome in ("failed", "held")),
    ]
    before, now = with_quality(validated), with_quality(live)
    codes = sorted({code for one in (*before, *now) for code in one.flags})
    return [
        *found,
        *(
            _rate(f"verdict {name}", before, now, lambda one, name=name: one.verdict == name)
            for name in ("review", "fail")
        ),
        *(
            _rate(f"flag {code}", before, now, lambda one, code=code: code in one.flags)
            for code in codes
        ),
    ]


def _rate(
    name: str, validated: Sequence[Seen], live: Sequence[Seen], of: Callable[..., bool]
) -> Compared:
    before, now = (sum(of(one) for one in some) for some in (validated, live))
    n_before, n_now = len(validated), len(live)
    found = Compared(
        name,
        "",
        "not known",
        "",
        n_before,
        n_now,
        before / n_before if n_before else None,
        now / n_now if n_now else None,
    )
    if n_before < FEWEST or n_now < FEWEST:
        return _too_few(found)
    table = np.array([[now, n_now - now], [before, n_before - before]])
    return replace(
        found,
        effect=now / n_now - before / n_before,
        p=float(stats.fisher_exact(table).pvalue),
    )


def _too_few(found: Compared) -> Compared:
    if not found.validated_n or not found.live_n:
        side = "the validated cases" if not found.validated_n else "the node's results"
        return replace(found, because=f"not known of {side}")
    few = min((found.validated_n, "validated"), (found.live_n, "live"))
    return replace(
        found, judgement="too few to say", because=f"{few[0]} {few[1]} cases, fewer than {FEWEST}"
    )


def _holm(compared: Sequence[Compared]) -> list[Compared]:
    """Judge every one that was tested, its p adjusted by Holm's step-down procedure.

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on, and none becomes
    smaller than the one before it.
    """
    order = sorted(
        (index for index, one in enumerate(compared) if one.p is not None),
        key=lambda index: compared[index].p or 0.0,
    )
    done = list(compared)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (done[index].p or 0.0) * (len(order) - rank)))
        done[index] = _judged(replace(done[index], p=largest))
    return done


def _judged(one: Compared) -> Compared:
    effect, p = one.effect or 0.0, 1.0 if one.p is None else one.p
    large = LARGE_DIFFERENCE if one.beyond is None else LARGE_DELTA
    if p < ALPHA and abs(effect) >= large:
        more = "more" if effect > 0 else "less"
        return replace(one, judgement="outside", because=f"{more} than in the validated cases")
    if one.beyond is not None and one.low is not None and one.high is not None:
        share = proportion(one.beyond, one.live_n)
        if share.low is not None and share.low > OUTSIDE_SHARE:
            return replace(
                one,
                judgement="outside",
                because=f"{one.beyond} of {one.live_n} beyond the validated range",
            )
    return replace(one, judgement="inside", because="")


def _judge(
    numbers: Sequence[Compared], rates: Sequence[Compared], live_n: int, new: Mapping[str, int]
) -> tuple[Judgement, tuple[str, ...]]:
    """The verdict of the month, and the sentences that it rests on."""
    outside = [one for one in (*numbers, *rates) if one.judgement == "outside"]
    because = [f"{one.name}: {one.because}" for one in outside]
    count = sum(new.values())
    on_new = f"{count} of {live_n} series are of scanners that no validated case is of"
    if live_n >= FEWEST and count:
        low = proportion(count, live_n).low
        if low is not None and low > OUTSIDE_SHARE:
            return "outside", (*because, on_new)
    if outside:
        return "outside", (*because, *([on_new] if count else []))
    told = [on_new] if count else []
    unsaid = [one for one in numbers if one.name in FINDINGS and one.judgement != "inside"]
    if unsaid:
        told += [f"{one.name}: {one.because}" for one in unsaid]
        return "too few to say", tuple(told)
    skipped = [one.name for one in numbers if one.judgement != "inside"]
    if skipped:
        told.append(f"not compared: {', '.join(skipped)}")
    return "inside", tuple(told)
