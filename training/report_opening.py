"""How the report begins: the verdict of the acceptance test, and what the run can show at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from training import acceptance
from training.cohort_figures import (
    MEASURES,
    Row,
    analysed,
)
from training.content import (
    Block,
    Cell,
    Column,
    Plot,
    Section,
    Table,
    Tone,
    Verdict,
    Words,
    between,
    number,
)
from training.drawing import Role
from training.plots import (
    Interval,
    interval_plot,
)
from training.report_words import (
    plural,
    with_unit,
)
from training.statistics import proportion
from training.summary import FEW_PATIENTS

TONES: Final[dict[acceptance.Judgement, Tone]] = {
    "passed": "good",
    "failed": "bad",
    "cannot be judged": "caution",
}
SHARES: Final = {
    acceptance.NOT_ANALYSED,
    *(one.name for one in MEASURES.values() if one.scale == "share"),
}
"""What lies between 0 and 1, and can be shown on one scale."""
ROLES: Final[dict[acceptance.Judgement, Role]] = {
    "passed": "good",
    "failed": "bad",
    "cannot be judged": "faint",
}


def verdict(judged: acceptance.Verdict) -> Section:
    """The verdict page of the acceptance test."""
    declaration = judged.declaration
    rows = []
    for one in judged.judged:
        found = one.figure
        rows.append(
            (
                Cell(one.label),
                Cell(one.threshold.demand),
                Cell(with_unit(found) if found else "not computed"),
                Cell(between(found.worst) if found else "not computed"),
                Cell(str(found.patients) if found else "-"),
                Cell(one.judgement, tone=TONES[one.judgement]),
                Cell(one.reason),
            )
        )
    counts = Counter(one.judgement for one in judged.judged)
    said = ", ".join(f"{counts[name]} {name}" for name in TONES if counts[name])
    blocks: list[Block] = [
        Verdict(judged.judgement, f"{declaration.title}: {said}.", TONES[judged.judgement]),
        Table(
            (
                Column("measure", number=False),
                Column("asked", number=False),
                Column("value"),
                Column("interval judged"),
                Column("patients"),
                Column("judgement", number=False),
                Column("because", number=False),
            ),
            tuple(rows),
            "The interval judged is the widest of those there are (95 %: patients drawn, "
            "percentile and BCa; Wilson for shares, Student for means), and a threshold is met "
            "only if its worse bound meets it.",
        ),
    ]
    reasons = {one.threshold.why for one in judged.judged if one.threshold.why}
    whys = [f"{one.label}: {one.threshold.why}" for one in judged.judged if one.threshold.why]
    if reasons:
        blocks.append(Words(f"Why these were asked, as declared: {'; '.join(whys)}."))
    declared_by = f" by {declaration.declared_by}" if declaration.declared_by else ""
    blocks.append(
        Words(
            f"Declared on {declaration.declared_on}{declared_by}. Fewest patients: "
            f"{declaration.fewest_patients}. Real cases that were not in the pack's training: "
            f"{judged.cases}. SHA-256 of the file of thresholds: {judged.sha256}"
        )
    )
    return Section("Acceptance test", tuple(blocks))


def judged_plot(judged: acceptance.Verdict) -> Plot | None:
    """The thresholds on shares, beside the intervals that were held against them."""
    lines = []
    for one in judged.judged:
        found = one.figure
        if found is None or one.threshold.measure not in SHARES:
            continue
        low, high = found.worst or (None, None)
        mark = one.threshold.at_least
        lines.append(
            Interval(
                one.label,
                found.value,
                low,
                high,
                f"{number(found.value)} ({between(found.worst)})",
                ROLES[one.judgement],
                one.threshold.at_most if mark is None else mark,
            )
        )
    if not lines:
        return None
    return Plot(
        interval_plot(lines, (0, 1), "0 to 1", "Intervals and the thresholds asked"),
        "Intervals held against the thresholds (upright strokes).",
    )


def what_it_can_show(
    main: Sequence[Row],
    in_training: Sequence[Row],
    semi_synthetic: Sequence[Row],
    unmeasured: Sequence[str],
    left_over: Sequence[str],
) -> Section:
    """In plain words, before any figure."""
    done = analysed(main)
    patients = len({row["patient"] for row in done})
    trained = bool(main) and main[0] in in_training
    said: list[Words] = []
    if not main:
        said.append(
            Words("There is no real case in this run. It shows nothing about patients.", "bad")
        )
    elif not done:
        said.append(
            Words(f"Of {plural(len(main), 'real case')} none was analysed: no figure.", "bad")
        )
    if trained:
        said.append(
            Words(
                f"{_every(len(main))} in the training of the pack (in_training, as patients.csv "
                "or the cohort says). "
                "The figures "
                "show that the software runs and what it learned. They say nothing about how it "
                "does on a patient it has not seen, which will be worse.",
                "bad",
            )
        )
    elif in_training:
        said.append(
            Words(
                f"{plural(len(in_training), 'case')} of the pack's training "
                f"{'is' if len(in_training) == 1 else 'are'} left out of every main figure and "
                "shown in a table of their own.",
                "caution",
            )
        )
    if done and patients < FEW_PATIENTS:
        said.append(Words(_few(patients, len(done)), "caution"))
    elif done:
        said.append(
            Words(
                f"The figures rest on {plural(len(done), 'case')} of {plural(patients, 'patient')}."
                " They hold for scanners, protocols and patients like these."
            )
        )
    repeated = sorted(name for name, n in Counter(row["patient"] for row in done).items() if n > 1)
    if repeated:
        said.append(
            Words(
                f"{plural(len(repeated), 'patient has', 'patients have')} more than one case. "
                "Means count cases; intervals draw patients, whole."
            )
        )
    if done and not any(one["positive"] for row in done for one in row["slices"]):
        said.append(
            Words(
                "No case has a lesion in its reference: sensitivity is not defined, and a Dice of "
                "0 says only that something was marked. What can be read are false lesions, false "
                "volume and specificity.",
                "caution",
            )
        )
    if semi_synthetic:
        said.append(
            Words(
                f"{plural(len(semi_synthetic), 'case is', 'cases are')} semi-synthetic (lesions "
                "painted into a real scan): a table of their own, and no part of a main figure, "
                "because a painted lesion has an edge that no reader had to find."
            )
        )
    for names, words in (
        (unmeasured, "asked for and not measured yet"),
        (left_over, "in the folder from an earlier run, and left out"),
    ):
        if names:
            said.append(Words(f"{plural(len(names), 'case is', 'cases are')} {words}.", "caution"))
    said.append(
        Words(
            "The reference is what readers drew. Where readers differ, no measure against one of "
            "them can be better than they agree. A result of this software is not a diagnosis."
        )
    )
    return Section("What this report can show, and what it cannot", tuple(said))


def given_twice(rows: Sequence[Row]) -> Section | None:
    """One image in several cases; None where there is no such image."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        image = row.get("image_digest") or row["sha256"].get("flair.nii.gz")
        if image:
            cases.setdefault(str(image), []).append(row)
    said: list[Words] = []
    for same in cases.values():
        names = " and ".join(str(row["case"]) for row in same)
        patients = sorted({str(row["patient"]) for row in same})
        if len(patients) > 1:
            said.append(
                Words(
                    f"{names} have one image: one person under the names {' and '.join(patients)}. "
                    "Every figure counts this person as several, and every interval is too "
                    "narrow. Mend the list of patients and run again.",
                    "bad",
                )
            )
        elif len(same) > 1:
            said.append(
                Words(
                    f"{names} have one image: it is counted {len(same)} times in every mean.",
                    "caution",
                )
            )
    return Section("The same image twice", tuple(said)) if said else None


def _every(count: int) -> str:
    if count == 1:
        return "The only real case of this run was"
    both_or_all = "Both" if count == 2 else f"All {count}"
    return f"{both_or_all} real cases of this run were"


def _few(patients: int, cases: int) -> str:
    high = proportion(0, patients).high or 1.0
    return (
        f"{plural(patients, 'patient')} ({plural(cases, 'case')}): fewer than {FEW_PATIENTS}. This "
        "shows how the pipeline did on these patients. It cannot show how it will do on others: "
        f"had it failed in none of {patients}, it could still fail in up to {100 * high:.0f} % of "
        "patients (95 %, Wilson). Intervals that come from drawing patients are too narrow here; "
        "read the classical ones beside them."
    )
