"""A site's own cohort: which image and which mask belong to which patient.

It is told by a manifest (CSV or TOML) or by a folder convention:

- **manifest**: a line (CSV: comma, semicolon or tab) or a `[[case]]` table (TOML) per session with
  `patient`, `image` and `mask`, and where known `session`, `mask_rater2`, `slice_order`,
  `lesion_free`, `mask_checked`, `scanner`, `field_strength_t`, `sex`, `age`, `phenotype`; and, for
  a validation alone, `centre`, `semi_synthetic`, `in_training` and `repeat_of` (the session of the
  same patient that this one repeats). Paths start at the folder of the manifest.
- **BIDS**: `sub-*/[ses-*/]anat/*_FLAIR.nii.gz`, masks below `derivatives/` with "lesion" in their
  name, `participants.tsv` and the field strength of the image's JSON where they are there.
- **plain folders**: `PATIENT/[SESSION/]flair.nii.gz` (or `flair/`, a DICOM series) beside
  `lesion.nii.gz` (or `lesion.dcm`, or `lesion/`: a Segmentation or pictures), and
  `lesion_rater2...` where a second reader drew one.

An image is a DICOM series or NIfTI. Patients are pseudonyms. Paths may hold names, so no message
and no output repeats one: a case is called by its pseudonym, a line by its number.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dicom.errors import EmptyInputError, StudyError

PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Also the name of a file. A space, a caret or a comma is how a person's name looks."""

IMAGE, MASK, SECOND_MASK = "flair", "lesion", "lesion_rater2"
_ENDINGS = (".nii.gz", ".nii", ".dcm", "")  # "": a folder

Sex = Literal["F", "M", "O"]


class SliceOrder(StrEnum):
    """Which picture of a folder lies on which slice. Nothing in a PNG says it, so a person does."""

    FOOT_TO_HEAD = "foot-to-head"
    """One picture per slice; the first file name is the lowest slice."""
    HEAD_TO_FOOT = "head-to-foot"
    """One picture per slice; the first file name is the highest slice."""
    NUMBERED_FOOT_TO_HEAD = "numbered-foot-to-head"
    """The last number in a file name is the slice, 1 the lowest; slices without one are empty."""
    NUMBERED_HEAD_TO_FOOT = "numbered-head-to-foot"
    """The last number in a file name is the slice, 1 the highest; slices without one are empty."""


class CohortError(StudyError):
    """The list of patients itself cannot be used. Nothing was prepared."""

    reason = "cohort-list"


@dataclass(frozen=True, slots=True)
class CohortCase:
    """One session of one patient, as the site tells it. Nothing was read yet."""

    patient: str
    session: str
    """Empty where the site names none."""
    images: tuple[Path, ...]
    """One; none or several are refused when the case is prepared, by the name of the case."""
    masks: tuple[Path, ...]
    """Likewise."""
    second_masks: tuple[Path, ...] = ()
    """Of a second reader: none or one."""
    slice_order: SliceOrder | None = None
    lesion_free: bool = False
    """Somebody looked and found no lesion: an empty mask is then right."""
    mask_checked: bool = False
    """Somebody looked: the mask is where it belongs, though its mirror image is brighter."""
    scanner: str = ""
    field_strength_t: float | None = None
    sex: Sex | None = None
    age: float | None = None
    phenotype: str = ""
    centre: str = ""
    semi_synthetic: bool = False
    """Lesions painted into a real scan: in no main figure of a validation."""
    in_training: bool = False
    """The pack that is validated has seen the patient."""
    repeat_of: str = ""
    """Another session of the patient, who was scanned again without a change."""

    @property
    def name(self) -> str:
        """Of its folder, in every table and in nnU-Net."""
        return f"{self.patient}_{self.session}" if self.session else self.patient


def read_cohort(path: Path) -> tuple[CohortCase, ...]:
    """The cases of a manifest or of a folder, in the order of their names.

    Raises:
        EmptyInputError: No such place, or no case in it.
        CohortError: A line that cannot be read, a patient who is no pseudonym, two cases of one
            name.
    """
    if path.is_dir():
        cases = _from_bids(path) if any(path.glob("sub-*")) else _from_folders(path)
    elif not path.is_file():
        raise EmptyInputError("there is no cohort at the given place: a manifest or a folder")
    elif path.suffix.lower() == ".toml":
        cases = _from_toml(path)
    else:
        cases = _from_table(path)
    if not cases:
        raise EmptyInputError("the cohort holds no case")
    _refuse_ambiguous(cases)
    return tuple(sorted(cases, key=lambda case: case.name))


# --- manifest -------------------------------------------------------------------------------


def _nothing_if_empty(value: object) -> object:
    return None if value == "" else value


_Known = TypeVar("_Known")
_Perhaps = Annotated[_Known | None, BeforeValidator(_nothing_if_empty)]


class _Line(BaseModel):
    """One line of a manifest. An unknown column is an error: a misspelt one would be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    patient: Annotated[str, Field(pattern=f"^{PSEUDONYM.pattern}$")]
    session: Annotated[str, Field(pattern=f"^({PSEUDONYM.pattern})?$")] = ""
    image: str = ""
    mask: str = ""
    mask_rater2: str = ""
    slice_order: _Perhaps[SliceOrder] = None
    lesion_free: _Perhaps[bool] = None
    mask_checked: _Perhaps[bool] = None
    scanner: str = ""
    field_strength_t: _Perhaps[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = None
    sex: _Perhaps[Sex] = None
    age: _Perhaps[Annotated[float, Field(ge=0, le=120)]] = None
    phenotype: str = ""
    centre: str = ""
    semi_synthetic: _Perhaps[bool] = None
    in_training: _Perhaps[bool] = None
    repeat_of: Annotated[str, Field(pattern=f"^({PSEUDONYM.pattern})?$")] = ""

    def case(self, folder: Path) -> CohortCase:
        """The case, with its paths from the folder of the manifest."""

        def paths(value: str) -> tuple[Path, ...]:
            return (folder / value,) if value else ()

        return CohortCase(
            self.patient,
            self.session,
            paths(self.image),
            paths(self.mask),
            paths(self.mask_rater2),
            self.slice_order,
            bool(self.lesion_free),
            bool(self.mask_checked),
            self.scanner,
            self.field_strength_t,
            self.sex,
            self.age,
            self.phenotype,
            self.centre,
            bool(self.semi_synthetic),
            bool(self.in_training),
            self.repeat_of,
        )


def _from_table(path: Path) -> list[CohortCase]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError("the manifest cannot be read as UTF-8 text") from error
    first = content.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = []
    for number, row in enumerate(csv.DictReader(content.splitlines(), delimiter=delimiter), 2):
        if None in row:
            raise CohortError(f"line {number} of the manifest has more cells than the first line")
        if any(row.values()):
            lines.append((f"line {number}", {key: value or "" for key, value in row.items()}))
    return _from_lines(lines, path.parent)


def _from_toml(path: Path) -> list[CohortCase]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CohortError("the manifest cannot be read as TOML") from error
    tables = content.pop("case", [])
    if content or not isinstance(tables, list):
        raise CohortError("the manifest holds something other than [[case]] tables")
    return _from_lines([(f"case {n}", table) for n, table in enumerate(tables, 1)], path.parent)


def _from_lines(
    lines: Iterable[tuple[str, Mapping[str, object]]], folder: Path
) -> list[CohortCase]:
    """Cases; lines of one patient and session are one case, which is refused if they differ."""
    found: dict[tuple[str, str], CohortCase] = {}
    for where, values in lines:
        try:
            case = _Line.model_validate(values).case(folder)
        except ValidationError as error:
            raise CohortError(f"{where} of the manifest: {_what_is_wrong(error)}") from None
        key = (case.patient, case.session)
        found[key] = _together(found[key], case) if key in found else case
    return list(found.values())


def _what_is_wrong(error: ValidationError) -> str:
    """Columns and rules, without the values: one of them may be a name."""
    told = []
    for one in error.errors(include_input=False, include_url=False, include_context=False):
        column = ".".join(str(part) for part in one["loc"])
        if one["type"] == "string_pattern_mismatch":
            said = "is no pseudonym (letters, digits, dot, hyphen and underscore, at most 64)"
        elif one["type"] == "extra_forbidden":
            said = "is no column of a manifest"
        elif one["type"] == "missing":
            said = "is missing"
        else:
            said = f"cannot be used ({one['type'].replace('_', ' ')})"
        told.append(f"{column} {said}")
    return "; ".join(told)


def _together(one: CohortCase, other: CohortCase) -> CohortCase:
    return CohortCase(
        one.patient,
        one.session,
        tuple(dict.fromkeys(one.images + other.images)),
        tuple(dict.fromkeys(one.masks + other.masks)),
        tuple(dict.fromkeys(one.second_masks + other.second_masks)),
        one.slice_order or other.slice_order,
        one.lesion_free and other.lesion_free,
        one.mask_checked and other.mask_checked,
        one.scanner,
        one.field_strength_t,
        one.sex,
        one.age,
        one.phenotype,
        one.centre,
        one.semi_synthetic or other.semi_synthetic,
        one.in_training or other.in_training,
        one.repeat_of,
    )


# --- folders --------------------------------------------------------------------------------


def _from_folders(folder: Path) -> list[CohortCase]:
    cases = []
    for number, patient in enumerate(_folders(folder), 1):
        _require_pseudonym(patient.name, f"folder {number} of the cohort")
        sessions = [one for one in _folders(patient) if one.name not in (IMAGE, MASK, SECOND_MASK)]
        if _named(patient, IMAGE) or _named(patient, MASK) or not sessions:
            cases.append(_folder_case(patient, patient.name, ""))
            continue
        for session in sessions:
            _require_pseudonym(session.name, f"a session of {patient.name}")
            cases.append(_folder_case(session, patient.name, session.name))
    return cases


def _folder_case(folder: Path, patient: str, session: str) -> CohortCase:
    return CohortCase(
        patient, session, _named(folder, IMAGE), _named(folder, MASK), _named(folder, SECOND_MASK)
    )


def _named(folder: Path, name: str) -> tuple[Path, ...]:
    return tuple(path for ending in _ENDINGS if (path := folder / f"{name}{ending}").exists())


def _from_bids(folder: Path) -> list[CohortCase]:
    people = _participants(folder / "participants.tsv")
    cases = []
    for number, subject in enumerate(sorted(folder.glob("sub-*")), 1):
        _require_pseudonym(subject.name, f"subject {number} of the cohort")
        for place in sorted(subject.glob("ses-*")) or [subject]:
            session = "" if place == subject else place.name
            if session:
                _require_pseudonym(session, f"a session of {subject.name}")
            images = tuple(
                path
                for path in sorted((place / "anat").glob("*_FLAIR.nii*"))
                if path.name.endswith((".nii", ".nii.gz"))
            )
            masks = _bids_masks(folder / "derivatives", place.relative_to(folder))
            about = people.get(subject.name, {})
            cases.append(
                CohortCase(
                    subject.name,
                    session,
                    images,
                    masks,
                    scanner=about.get("scanner", ""),
                    field_strength_t=_sidecar_field_t(images),
                    sex=_sex(about.get("sex", "")),
                    age=_number(about.get("age", "")),
                    phenotype=about.get("phenotype", ""),
                )
            )
    return cases


def _bids_masks(derivatives: Path, place: Path) -> tuple[Path, ...]:
    """Masks of any pipeline below derivatives/, and of derivatives/ itself."""
    found = {
        path
        for pipeline in (derivatives, *_folders(derivatives))
        for path in (pipeline / place).rglob("*.nii*")
        if "lesion" in path.name.lower() and path.name.endswith((".nii", ".nii.gz"))
    }
    return tuple(sorted(found))


def _participants(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {
            str(row.get("participant_id")): {
                key: value for key, value in row.items() if key and value and value != "n/a"
            }
            for row in rows
        }


def _sidecar_field_t(images: Sequence[Path]) -> float | None:
    if len(images) != 1:
        return None
    path = images[0].with_name(images[0].name.partition(".")[0] + ".json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # BIDS asks for none
    value = content.get("MagneticFieldStrength") if isinstance(content, dict) else None
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _sex(value: str) -> Sex | None:
    known: dict[str, Sex] = {"f": "F", "m": "M", "o": "O"}
    return known.get(value[:1].lower())


def _number(value: str) -> float | None:
    try:
        found = float(value)
    except ValueError:
        return None
    return found if isfinite(found) else None


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


# --- names ----------------------------------------------------------------------------------


def _require_pseudonym(name: str, where: str) -> None:
    if not PSEUDONYM.fullmatch(name):
        raise CohortError(
            f"the name of {where} is no pseudonym"
            " (letters, digits, dot, hyphen and underscore, at most 64)"
        )


def _refuse_ambiguous(cases: Sequence[CohortCase]) -> None:
    """P1 and p1 may be one patient, and one patient must not be in two parts."""
    _refuse_alike({case.patient for case in cases}, "patients", str.casefold)
    _refuse_alike({case.name for case in cases}, "cases", str.casefold)
    names: defaultdict[str, set[str]] = defaultdict(set)
    for case in cases:
        names[case.name].add(case.patient)
    for name, patients in names.items():
        if len(patients) > 1:
            raise CohortError(f"patients {' and '.join(sorted(patients))} both have a case {name}")


def _refuse_alike(names: set[str], what: str, key: Callable[[str], str]) -> None:
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        alike[key(name)].append(name)
    for same in alike.values():
        if len(same) > 1:
            raise CohortError(f"{what} {' and '.join(same)} differ in upper and lower case alone")
