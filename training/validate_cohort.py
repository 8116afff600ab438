"""The cases of a validation from a site's cohort: the same places that `train prepare` reads.

A manifest, a BIDS folder or plain folders give every case as it came, DICOM or NIfTI. A folder that
`train prepare` wrote gives its cases as they were standardised, and the part of each patient: by
default the test set, which no fold of that cohort was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from dicom.errors import EmptyInputError, StudyError
from pipeline.model_pack import Manifest
from training.case_inputs import (
    FLAIR,
    REFERENCE,
    SECOND,
    CohortFiles,
    CohortRules,
    NiftiFiles,
)
from training.cohort import CohortCase, CohortError, read_cohort
from training.prepare import CASES, EXCLUDED, IMAGE, MASK, ROW, SECOND_MASK, SPLITS
from training.prepared import PreparedCase, read_prepared
from training.splits import TEST
from training.validate import Case

PREPARED_NAMES = {REFERENCE: MASK, FLAIR: IMAGE, SECOND: SECOND_MASK}
ALL = "all"
ABOUT = ("scanner", "field_strength_t", "sex", "age", "phenotype")


class NoSuchPartError(StudyError):
    """A part was asked for of something that has none."""

    reason = "no-such-part"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The cases to validate, and where they come from."""

    cases: tuple[Case, ...]
    told: Mapping[str, JsonValue] = field(default_factory=dict)
    """For the report. No paths: they may hold names."""


def is_prepared(path: Path) -> bool:
    """Is it a folder that `train prepare` finished?"""
    return (path / SPLITS).is_file() and (path / CASES).is_dir()


def choose_cases(
    path: Path, rules: CohortRules, manifest: Manifest, part: str | None = None
) -> Chosen:
    """The cases of a cohort.

    Args:
        path: A cohort, or a folder that `train prepare` wrote.
        rules: How images and masks are read; of no matter to a prepared cohort.
        manifest: Of the pack: it may say which patients it has seen.
        part: Of a prepared cohort: `test` (the default), `fold-0` to `fold-4`, or `all`.

    Raises:
        EmptyInputError: No case.
        CohortError: A line that cannot be used; a repeat of a session that is not there.
        NoSuchPartError: A part of a cohort that has none.
    """
    if is_prepared(path):
        return _prepared(path, manifest, part or TEST)
    if part is not None:
        raise NoSuchPartError(
            f"--part {part}: this cohort has no parts; give the folder that `flairnode train "
            "prepare` wrote"
        )
    listed = read_cohort(path)
    seen = seen_patients(manifest)
    cases = tuple(_case(one, listed, rules, seen) for one in listed)
    return Chosen(cases, {"cohort": "as it came", "cases": len(cases)})


def seen_patients(manifest: Manifest) -> frozenset[str]:
    """Pseudonyms that a pack says it was trained on (`training_data.figures.patients`)."""
    told = manifest.training_data.figures.get("patients")
    return frozenset(str(one) for one in told) if isinstance(told, list) else frozenset()


def _case(
    one: CohortCase, listed: tuple[CohortCase, ...], rules: CohortRules, seen: frozenset[str]
) -> Case:
    about = {
        "centre": one.centre,
        "scanner": one.scanner,
        "field_strength_t": _text(one.field_strength_t),
        "sex": one.sex or "",
        "age": _text(one.age),
        "phenotype": one.phenotype,
        "semi_synthetic": "yes" if one.semi_synthetic else "",
        "in_training": "yes" if one.in_training or one.patient in seen else "",
        "repeat_of": _repeated(one, listed),
    }
    filled = {name: value for name, value in about.items() if value}
    return Case(one.name, one.patient, CohortFiles(one, rules), filled)


def _repeated(one: CohortCase, listed: tuple[CohortCase, ...]) -> str:
    if not one.repeat_of:
        return ""
    for other in listed:
        if (other.patient, other.session) == (one.patient, one.repeat_of) and other != one:
            return other.name
    raise CohortError(f"{one.name} repeats a session that its patient does not have")


def _prepared(path: Path, manifest: Manifest, part: str) -> Chosen:
    cohort = read_prepared(path, patient_folds=True)
    wanted = [case for case in cohort.cases if part in (ALL, _part(case))]
    if not wanted:
        raise EmptyInputError(f"the prepared cohort has no case in the part {part}")
    told = manifest.training_data.figures
    trained_here = told.get("cohort_digest") == cohort.digest
    # The same cohort, dealt otherwise: then nobody knows who was kept for the test.
    dealt_as_here = told.get("splits_digest", cohort.splits_digest) == cohort.splits_digest
    seen = seen_patients(manifest)
    cases = []
    for one in wanted:
        of_patient = _part(one)
        seen_here = trained_here and (not dealt_as_here or of_patient != TEST)
        about = {
            **_known(one.folder / ROW),
            "part": of_patient,
            **({"fold": of_patient.removeprefix("fold-")} if of_patient != TEST else {}),
            **({"in_training": "yes"} if seen_here or one.patient in seen else {}),
        }
        files = NiftiFiles(one.name, one.folder, PREPARED_NAMES)
        cases.append(Case(one.name, one.patient, files, about))
    return Chosen(
        tuple(cases),
        {
            "cohort": "prepared by flairnode train prepare",
            "part": part,
            "cases": len(cases),
            "excluded_when_prepared": len(_excluded(path)),
            "cohort_digest": cohort.digest,
            "splits_digest": cohort.splits_digest,
            "pack_trained_on_this_cohort": trained_here,
        },
    )


def _part(case: PreparedCase) -> str:
    return case.part.replace(" ", "-")


def _known(path: Path) -> dict[str, str]:
    """What the preparation knew of a case."""
    row = _row(path)
    return {name: _text(row[name]) for name in ABOUT if row.get(name)}


def _excluded(path: Path) -> list[str]:
    rows = (_row(one) for one in sorted((path / CASES).glob(f"*/{ROW}")))
    return [str(row.get("case")) for row in rows if row.get("outcome") == EXCLUDED]


def _row(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # it says who was examined, and is no measure
    return row if isinstance(row, dict) else {}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
