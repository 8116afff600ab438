"""Which patient is tested on, and which fold each other patient is validated in.

A patient is in one part, always: slices of one head resemble each other more than those of two, and
a model that saw one has seen its answer (`reference/ms_facts.md` section 1: the folds of the paper
score 16 points above its test set). A quarter of the patients is the test set; the others are dealt
to five folds. Both draws are stratified by lesion load and follow from the seed and the pseudonyms
alone, through SHA-256: no library's random numbers, which may change with its version.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from dicom.errors import StudyError
from training.whole_files import write_text

FOLDS = 5
ONE_IN = 4
"""The test set is 25 % of the patients: one of four neighbours in lesion load."""
FEWEST_PATIENTS = 7
"""With lesions. Two are tested on, and each of five folds has one to validate on."""
FORMAT = 1

TEST = "test"


class TooFewPatientsError(StudyError):
    """Five folds by patient cannot be made of so few."""

    reason = "too-few-patients"


class PatientInTwoPartsError(StudyError):
    """Training and judging would see one person. Nothing switches this off."""

    reason = "patient-in-two-parts"


class SplitsDifferError(StudyError):
    """A splits file is there already, of another cohort or seed."""

    reason = "splits-differ"


class SplitsFileError(StudyError):
    """The splits file is damaged."""

    reason = "splits-unreadable"


@dataclass(frozen=True, slots=True)
class SplitCase:
    """One prepared case, as far as splits depend on it."""

    name: str
    patient: str
    lesion_ml: float
    digest: str
    """Of image and mask: another one is another cohort."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Every patient's part."""

    seed: int
    cases: tuple[SplitCase, ...]
    """In order of their names."""
    test: tuple[str, ...]
    """Patients."""
    folds: tuple[tuple[str, ...], ...]
    """Patients that each fold is validated on; it is trained on those of the others."""

    def part(self, patient: str) -> str:
        """`test`, or `fold 0` to `fold 4`."""
        if patient in self.test:
            return TEST
        return next(f"fold {n}" for n, fold in enumerate(self.folds) if patient in fold)

    def as_nnunet(self) -> list[dict[str, list[str]]]:
        """nnU-Net's splits_final.json: names of cases. The test set is in none."""
        of = {
            patient: sorted(c.name for c in self.cases if c.patient == patient)
            for patient in {case.patient for case in self.cases}
        }
        return [
            {
                "train": sorted(
                    name
                    for other, patients in enumerate(self.folds)
                    if other != number
                    for patient in patients
                    for name in of[patient]
                ),
                "val": sorted(name for patient in fold for name in of[patient]),
            }
            for number, fold in enumerate(self.folds)
        ]


def make_splits(cases: Iterable[SplitCase], seed: int) -> Splits:
    """Deal patients to the test set and to the folds.

    Patients are ordered from the highest mean lesion load of their sessions to the lowest. Of every
    four neighbours one is drawn for the test set; of the others every five neighbours are dealt to
    the five folds, one each.

    Raises:
        TooFewPatientsError: Fewer than `FEWEST_PATIENTS` with lesions.
    """
    ordered = tuple(sorted(cases, key=lambda case: case.name))
    loads = patient_loads(ordered)
    with_lesions = sum(load > 0 for load in loads.values())
    if with_lesions < FEWEST_PATIENTS:
        raise TooFewPatientsError(
            f"{with_lesions} patients with lesions; a test set of a quarter and {FOLDS} folds by "
            f"patient need at least {FEWEST_PATIENTS}"
        )
    patients = sorted(loads, key=lambda patient: (-loads[patient], patient))
    wanted = floor(len(patients) / ONE_IN + 0.5)
    test = [_shuffled(seed, "test", block)[0] for block in _blocks(patients, ONE_IN)[:wanted]]
    rest = [patient for patient in patients if patient not in test]
    folds: list[list[str]] = [[] for _ in range(FOLDS)]
    for number, block in enumerate(_blocks(rest, FOLDS)):
        # The order of the folds is drawn too, or a short last block would always fill fold 0.
        order = _shuffled(seed, f"block {number}", [str(fold) for fold in range(FOLDS)])
        for fold, patient in zip(order, _shuffled(seed, "fold", block), strict=False):
            folds[int(fold)].append(patient)
    splits = Splits(
        seed, ordered, tuple(sorted(test)), tuple(tuple(sorted(fold)) for fold in folds)
    )
    refuse_two_parts(splits)
    return splits


def patient_loads(cases: Iterable[SplitCase]) -> dict[str, float]:
    """Mean lesion volume of each patient's sessions, in ml."""
    found: dict[str, list[float]] = {}
    for case in cases:
        found.setdefault(case.patient, []).append(case.lesion_ml)
    return {patient: sum(loads) / len(loads) for patient, loads in found.items()}


def refuse_two_parts(splits: Splits) -> None:
    """Every patient in exactly one part, and nobody else.

    Raises:
        PatientInTwoPartsError: Somebody is in two parts, in none, or twice.
    """
    parts = Counter([*splits.test, *(patient for fold in splits.folds for patient in fold)])
    several = sorted(patient for patient, count in parts.items() if count > 1)
    if several:
        raise PatientInTwoPartsError(f"in more than one part: {', '.join(several)}")
    patients = {case.patient for case in splits.cases}
    if patients != set(parts):
        odd = sorted(patients ^ set(parts))
        raise PatientInTwoPartsError(f"in no part, or in a part without a case: {', '.join(odd)}")


def settle_splits(path: Path, cases: Sequence[SplitCase], seed: int) -> Splits:
    """The splits of a cohort: those of the file, which must fit, or new ones, then written.

    Raises:
        SplitsDifferError: The file is of another seed or another cohort; the message says what
            changed.
        SplitsFileError: It cannot be read.
        PatientInTwoPartsError: It was changed by hand.
        TooFewPatientsError: As `make_splits`.
    """
    made = make_splits(cases, seed)
    if path.exists():
        kept = read_splits(path)
        changes = _changes(kept, made)
        if changes:
            raise SplitsDifferError(
                f"the splits here are of another cohort or seed: {'; '.join(changes)}. Give "
                "another folder for new splits; models of the old ones must not be compared with "
                "those of the new"
            )
        return kept
    write_text(path, json.dumps(_as_json(made), indent=1) + "\n")
    return made


def read_splits(path: Path) -> Splits:
    """A file that `settle_splits` wrote.

    Raises:
        SplitsFileError: Damaged, or of another format.
        PatientInTwoPartsError: Somebody is in two parts.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise SplitsFileError(f"splits of format {content['format']}, expected {FORMAT}")
        splits = Splits(
            int(content["seed"]),
            tuple(
                SplitCase(name, str(one["patient"]), float(one["lesion_ml"]), str(one["digest"]))
                for name, one in sorted(content["cases"].items())
            ),
            tuple(content["test"]),
            tuple(tuple(fold) for fold in content["folds"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SplitsFileError("the splits file is damaged: restore it from a copy") from error
    if len(splits.folds) != FOLDS:
        raise SplitsFileError(f"{len(splits.folds)} folds, expected {FOLDS}")
    refuse_two_parts(splits)
    return splits


def write_audit(path: Path, splits: Splits) -> None:
    """A line for every patient: part, cases, load. For a person who checks that none is in two."""
    loads = patient_loads(splits.cases)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["patient", "part", "cases", "mean_lesion_ml", "case_names"])
    for patient in sorted(loads):
        names = [case.name for case in splits.cases if case.patient == patient]
        row = [patient, splits.part(patient), len(names), f"{loads[patient]:.3f}", " ".join(names)]
        table.writerow(row)
    write_text(path, text.getvalue())


def _blocks(patients: Sequence[str], size: int) -> list[Sequence[str]]:
    return [patients[start : start + size] for start in range(0, len(patients), size)]


def _shuffled(seed: int, purpose: str, names: Sequence[str]) -> list[str]:
    def draw(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()

    return sorted(names, key=draw)


def _as_json(splits: Splits) -> dict[str, JsonValue]:
    return {
        "format": FORMAT,
        "seed": splits.seed,
        "test": list(splits.test),
        "folds": [list(fold) for fold in splits.folds],
        "cases": {
            case.name: {
                "patient": case.patient,
                "lesion_ml": case.lesion_ml,
                "digest": case.digest,
            }
            for case in splits.cases
        },
    }


def _changes(kept: Splits, made: Splits) -> list[str]:
    changes = []
    if kept.seed != made.seed:
        changes.append(f"seed {made.seed}, it was {kept.seed}")
    old, new = _by_name(kept.cases), _by_name(made.cases)
    kinds: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("new", lambda name: name not in old),
        ("gone", lambda name: name not in new),
        (
            "changed image or mask",
            lambda name: name in old and name in new and old[name].digest != new[name].digest,
        ),
        (
            "of another patient",
            lambda name: name in old and name in new and old[name].patient != new[name].patient,
        ),
    )
    for kind, applies in kinds:
        names = [name for name in sorted(old.keys() | new.keys()) if applies(name)]
        if names:
            changes.append(f"{kind}: {', '.join(names)}")
    if not changes and (kept.test, kept.folds) != (made.test, made.folds):
        changes.append("patients were moved between parts by hand")
    return changes


def _by_name(cases: Iterable[SplitCase]) -> Mapping[str, SplitCase]:
    return {case.name: case for case in cases}
