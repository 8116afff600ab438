"""A cohort made ready for a recipe: `RUN/dataset`, which every fold of the run reads.

    RUN/recipe.json              the recipe, whole
    RUN/run.json                 digests of recipe, splits and cohort; seed; software
    RUN/dataset/plans.json, dataset.json, dataset_fingerprint.json, splits_final.json
                                 as nnU-Net's preprocessed data set has them
    RUN/dataset/nnUNetPlans_2d/  its cases (CASE.b2nd, CASE_seg.b2nd, CASE.pkl), augmentation nnunet
    RUN/dataset/stacks/          stacks that slices are drawn from, augmentation site
    RUN/dataset/rows/CASE.json   what a case rests on, and what came of it: written last
    RUN/dataset/preparation.json, preparation.csv    all cases
    RUN/dataset/index.json       where each image comes from; the digest of it all: written last

A case whose row is there, rests on the same and whose files have their digests is kept. Test
patients are not prepared: what a model is judged on goes through the node, not through here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dicom.errors import StudyError
from dicom.volume import Volume
from pipeline.brain import SURFACE_REFINE_VERSION, BrainMask
from pipeline.model_pack import canonical_json
from pipeline.orientation import axial_view
from training.dataset_cases import (
    Files,
    Row,
    canvas_case,
    facts_of,
    find_brain,
    in_axial_view,
    stack_case,
    stripped_case,
    stripped_image,
    unpacked,
)
from training.enlarge import Labelled, Pair, insert_case, plan_pairs
from training.nnunet_files import (
    PLANS_NAME,
    Json,
    canvas_plans,
    dataset_json,
    encode_case,
    fingerprint,
    nnunet_plans,
    preprocess_case,
)
from training.prepare import EXCLUDED, OnRow, Refusals
from training.prepared import PreparedCase, PreparedCohort, file_digest, read_prepared
from training.recipe import Recipe
from training.splits import FOLDS, TEST, PatientInTwoPartsError
from training.whole_files import DiskFullError, write_text, write_whole

DATASET_REVISION = "2"
"""Raised when the same case would come out differently: then every case is made again."""
DEFAULT_SEED = (
    20250101  # as `flairnode train prepare`; used where there are no splits to take it of
)

DATASET, ROWS, READY = "dataset", "rows", "ready"
RECIPE, RUN, INDEX = "recipe.json", "run.json", "index.json"
SOFTWARE = (
    "flairnode",
    "nnunetv2",
    "dynamic-network-architectures",
    "torch",
    "numpy",
    "scipy",
    "blosc2",
)


class RunDiffersError(StudyError):
    """The folder is of a run with another recipe, cohort, splits or seed."""

    reason = "run-differs"


class CasesRefusedError(StudyError):
    """Cases could not be made ready, and nobody said to go on without them."""

    reason = "cases-refused"


class FoldEmptyError(StudyError):
    """A fold has nothing to be trained on or nothing to be validated on."""

    reason = "fold-empty"


class NoDatasetError(StudyError):
    """The run has no whole data set."""

    reason = "no-dataset"


class JudgedOnMadeUpError(StudyError):
    """A changed copy or inserted lesions would be validated on. Nothing switches this off."""

    reason = "judged-on-made-up"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one image of the data set comes from."""

    case: str
    """Of the cohort."""
    patients: tuple[str, ...]
    """Whose image, and whose lesions where these were inserted."""
    parts: tuple[str, ...]
    """Of these patients: `fold 0` to `fold 4`; empty without folds by patient."""
    copy: int = 0
    """From 1: a changed copy."""
    semi_synthetic: bool = False
    """With inserted lesions of the second patient."""
    lesions: bool = True
    """Has the case any?"""

    @property
    def real(self) -> bool:
        """As it was acquired."""
        return not self.copy and not self.semi_synthetic


@dataclass(frozen=True, slots=True)
class Dataset:
    """`RUN/dataset`, whole."""

    folder: Path
    plans: Json
    dataset_json: Json
    splits: tuple[dict[str, list[str]], ...]
    """nnU-Net's: `train` and `val` of each fold, names of images."""
    recipe: Recipe
    seed: int
    digest: str
    """Of recipe, splits, seed and every file."""
    origins: Mapping[str, Origin]
    """Of every image, by name."""

    @property
    def cases_folder(self) -> Path:
        """nnU-Net's cases, for `nnUNetDatasetBlosc2`; or the stacks."""
        if self.recipe.augmentation == "site":
            return self.folder / "stacks"
        identifier: str = self.plans["configurations"][self.recipe.configuration]["data_identifier"]
        return self.folder / identifier

    def plain_train(self, fold: int) -> list[str]:
        """Training images of a fold as they were acquired: no copies, nothing inserted."""
        return [name for name in self.splits[fold]["train"] if self.origins[name].real]


def build_dataset(
    prepared: Path,
    run: Path,
    recipe: Recipe,
    on_case: OnRow | None = None,
    *,
    seed: int | None = None,
    refusals: Refusals = Refusals.STOP,
) -> Dataset:
    """Make every case ready that is not ready yet.

    Args:
        prepared: `--output` of `flairnode train prepare`.
        run: Folder of the run.
        recipe: What to make.
        on_case: Told of each case when its row is there.
        seed: Of copies and insertions, and later of the weights; the one of the splits if None.
        refusals: Stop at refused cases (after all were tried), or go on without them.

    Raises:
        RunDiffersError: The folder is of another recipe, cohort, splits or seed.
        NotPreparedError, SplitsDifferError: The cohort is not whole.
        CasesRefusedError: The message names each case and its reason.
        FoldEmptyError: Nothing is left of a fold.
        DiskFullError: The message says how much is finished, and stays so.
    """
    cohort = read_prepared(prepared, patient_folds=recipe.patient_folds)
    if seed is None:
        seed = DEFAULT_SEED if cohort.splits is None else cohort.splits.seed
    builder = _Builder(run / DATASET, recipe, seed, on_case)
    cases = [case for case in cohort.cases if case.part != TEST]
    try:
        run.mkdir(parents=True, exist_ok=True)
        _settle_run(run, recipe, cohort, seed)
        if recipe.preprocessing == "nnunet":
            rows = builder.preprocess(cases, refusals)
        else:
            rows = builder.lay_on_canvas(cases, refusals)
        return builder.finish(run, rows, cohort)
    except DiskFullError as error:
        raise DiskFullError(
            f"{error}: {builder.done} of {len(cases)} cases are ready and stay; make room and give "
            "the same command again"
        ) from error


def open_dataset(run: Path) -> Dataset:
    """The data set of a run.

    Raises:
        NoDatasetError: There is none, or it was not finished.
        PatientInTwoPartsError, JudgedOnMadeUpError: Its lists were changed by hand.
    """
    folder = run / DATASET
    try:
        index: Any = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        recipe = Recipe.model_validate_json((run / RECIPE).read_text(encoding="utf-8"))
        facts: Any = json.loads((run / RUN).read_text(encoding="utf-8"))
        origins = {
            name: Origin(
                case=one["case"],
                patients=tuple(one["patients"]),
                parts=tuple(one["parts"]),
                copy=one["copy"],
                semi_synthetic=one["semi_synthetic"],
                lesions=one["lesions"],
            )
            for name, one in index["origins"].items()
        }
        plans, described, splits = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("plans.json", "dataset.json", "splits_final.json")
        )
        if (recipe.digest, DATASET_REVISION) != (facts["recipe"], index["revision"]):
            raise NoDatasetError("the data set is of another recipe or version: build it again")
        dataset = Dataset(
            folder,
            plans,
            described,
            tuple(splits),
            recipe,
            int(facts["seed"]),
            str(index["digest"]),
            origins,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoDatasetError("no whole data set in this run: build it first") from error
    refuse_leaks(dataset.splits, origins, patient_folds=recipe.patient_folds)
    return dataset


# --- which image is in which list ---------------------------------------------------------------


def list_folds(
    origins: Mapping[str, Origin], *, patient_folds: bool
) -> tuple[dict[str, list[str]], ...]:
    """`splits_final.json`: what each fold is trained on and validated on.

    An image with inserted lesions is trained on where both its patients are. Without folds by
    patient every fold is trained on everything, and what it is watched on it has seen.
    """
    if not patient_folds:
        everything = sorted(origins)
        real = [name for name in everything if origins[name].real]
        return tuple({"train": everything, "val": real} for _ in range(FOLDS))
    return tuple(
        {
            "train": sorted(n for n, one in origins.items() if f"fold {fold}" not in one.parts),
            "val": sorted(
                n for n, one in origins.items() if one.real and one.parts == (f"fold {fold}",)
            ),
        }
        for fold in range(FOLDS)
    )


def refuse_leaks(
    splits: Sequence[Mapping[str, Sequence[str]]],
    origins: Mapping[str, Origin],
    *,
    patient_folds: bool,
) -> None:
    """No image is judged on that was made up, and no patient is on both sides of a fold.

    Raises:
        JudgedOnMadeUpError: A copy, or inserted lesions, in a list that a fold is validated on.
        PatientInTwoPartsError: A patient in both lists of a fold, or of the test set.
        FoldEmptyError: An empty list.
    """
    for fold, lists in enumerate(splits):
        for kind in ("train", "val"):
            if not lists[kind]:
                raise FoldEmptyError(
                    f"fold {fold} has no image to be "
                    f"{'trained' if kind == 'train' else 'validated'} on"
                )
        made_up = [name for name in lists["val"] if not origins[name].real]
        if made_up:
            raise JudgedOnMadeUpError(f"fold {fold} is validated on {', '.join(made_up[:3])}")
        if not patient_folds:
            continue
        trained, judged = (
            {(who, part) for n in lists[kind] for who, part in _who(origins[n])}
            for kind in ("train", "val")
        )
        both = {who for who, _ in trained} & {who for who, _ in judged}
        strangers = {who for who, part in trained | judged if part == TEST}
        wrong = {who for who, part in judged if part != f"fold {fold}"}
        wrong |= {who for who, part in trained if part == f"fold {fold}"}
        if both or strangers or wrong:
            raise PatientInTwoPartsError(
                f"fold {fold}: {', '.join(sorted(both | strangers | wrong))}"
            )


def _who(origin: Origin) -> Iterable[tuple[str, str]]:
    return zip(origin.patients, origin.parts, strict=True)


# --- building -----------------------------------------------------------------------------------


class _Builder:
    """Makes rows and their files, or keeps them."""

    def __init__(self, folder: Path, recipe: Recipe, seed: int, on_case: OnRow | None) -> None:
        self._folder, self._recipe, self._seed, self._on_case = folder, recipe, seed, on_case
        self._excluded: list[Row] = []
        self.done = 0

    def lay_on_canvas(self, cases: Sequence[PreparedCase], refusals: Refusals) -> list[Row]:
        """Slices, volumes or stacks of a canvas."""

        def build(case: PreparedCase) -> tuple[Row, Files]:
            volume, lesions = case.read()
            one = Labelled(volume, lesions, find_brain(volume, self._recipe))
            if self._recipe.augmentation == "site":
                return stack_case(case.name, one, self._recipe)
            return canvas_case(case.name, one, self._recipe, self._seed)

        rows = []
        for case in cases:
            rows.append(self._row(_who_is(case), ROWS, self._rests_on(case), partial(build, case)))
            self.done += 1
        ready = self._ready(rows, refusals)
        if not self._recipe.cases.semi_synthetic:
            return ready
        names = {row["case"] for row in ready}
        return ready + self._enlarge([case for case in cases if case.name in names])

    def _enlarge(self, cases: Sequence[PreparedCase]) -> list[Row]:
        """Semi-synthetic cases. One in which nothing could be inserted is told and left out."""

        def labelled(case: PreparedCase) -> Labelled:
            volume, lesions = case.read()
            with np.load(self._folder / "brains" / f"{case.name}.npz") as content:
                mask = unpacked(content["brain"], volume.grid.shape)
            return Labelled(volume, lesions, BrainMask(mask, volume.grid, "kept", ""))

        def build(pair: Pair) -> tuple[Row, Files]:
            key = f"{self._seed}/{pair.name}"
            made = insert_case(labelled(pair.host), labelled(pair.donor), key)
            row, files = stack_case(pair.name, made, self._recipe)
            return row, (one for one in files if one[0].startswith("stacks/"))

        rows = []
        for pair in plan_pairs(cases, self._seed):
            who = {
                **_who_is(pair.host),
                "case": pair.name,
                "semi_synthetic": True,
                "host": pair.host.name,
                "donor": pair.donor.name,
                "donor_patient": pair.donor.patient,
            }
            rests_on = {
                "host": self._rests_on(pair.host),
                "donor": self._rests_on(pair.donor),
            }
            rows.append(self._row(who, ROWS, rests_on, partial(build, pair)))
        return self._ready(rows, Refusals.GO_ON)

    def preprocess(self, cases: Sequence[PreparedCase], refusals: Refusals) -> list[Row]:
        """NnU-Net's own way: strip all, look at all, plan, preprocess each."""

        def strip(case: PreparedCase) -> tuple[Row, Files]:
            volume, lesions = case.read()
            one = Labelled(volume, lesions, find_brain(volume, self._recipe))
            return stripped_case(case.name, in_axial_view(one), self._recipe)

        stripped = self._ready(
            [
                self._row(_who_is(case), "stripped", self._rests_on(case), partial(strip, case))
                for case in cases
            ],
            refusals,
        )
        prints = fingerprint(
            facts_of(stripped)[0],
            [self._stripped(row["case"])["intensities"] for row in stripped],
        )
        described = self._described(len(stripped))
        plans = nnunet_plans(self._recipe, prints, described, [row["case"] for row in stripped])
        self._write_json("dataset_fingerprint.json", prints)
        self._write_json("plans.json", plans)
        configuration = plans["configurations"][self._recipe.configuration]
        found = {row["case"]: row for row in stripped}

        def build(case: PreparedCase) -> tuple[Row, Files]:
            volume, lesions = case.read()
            view = axial_view(volume.grid)
            brain = unpacked(self._stripped(case.name)["brain"], view.grid.shape)
            seen = Volume(view.apply(volume.voxels), view.grid)
            image = stripped_image(seen, brain, self._recipe)
            images, masks, properties = preprocess_case(
                image, view.apply(lesions), view.grid.spacing_mm, plans, described
            )
            row = {**found[case.name], "images": [{"name": case.name, "copy": 0}]}

            def files() -> Files:
                encoded = encode_case(images, masks, properties, configuration["patch_size"])
                for suffix, content in encoded.items():
                    yield f"{configuration['data_identifier']}/{case.name}{suffix}", content

            return row | {"shape": list(images.shape[1:])}, files()

        rows = []
        for case in cases:
            if case.name in found:
                rests_on = self._rests_on(case) | {"plans": _digest(configuration)}
                rows.append(self._row(_who_is(case), ROWS, rests_on, partial(build, case)))
                self.done += 1
        return self._ready(rows, refusals)

    def finish(self, run: Path, rows: Sequence[Row], cohort: PreparedCohort) -> Dataset:
        """Plans, lists and tables; the index last."""
        recipe = self._recipe
        origins = {
            image["name"]: _origin(row, image, cohort) for row in rows for image in row["images"]
        }
        splits = list_folds(origins, patient_folds=recipe.patient_folds)
        refuse_leaks(splits, origins, patient_folds=recipe.patient_folds)
        if recipe.preprocessing == "canvas":
            prints = fingerprint(*facts_of(rows))
            self._write_json("dataset_fingerprint.json", prints)
            self._write_json("plans.json", canvas_plans(recipe, prints))
        self._write_json("dataset.json", self._described(len(origins)))
        self._write_json("splits_final.json", list(splits))
        self._write_table([*rows, *self._excluded])
        self._remove_strays(rows)
        self._write_json(
            INDEX,
            {
                "revision": DATASET_REVISION,
                "digest": _digest(
                    [
                        recipe.digest,
                        cohort.splits_digest,
                        self._seed,
                        [[row["case"], row["files"]] for row in rows],
                    ]
                ),
                "origins": {
                    name: {
                        "case": one.case,
                        "patients": list(one.patients),
                        "parts": list(one.parts),
                        "copy": one.copy,
                        "semi_synthetic": one.semi_synthetic,
                        "lesions": one.lesions,
                    }
                    for name, one in sorted(origins.items())
                },
            },
        )
        return open_dataset(run)

    def _ready(self, rows: Sequence[Row], refusals: Refusals) -> list[Row]:
        refused = [row for row in rows if row["outcome"] == EXCLUDED]
        if refused and refusals is Refusals.STOP:
            raise CasesRefusedError(
                "; ".join(
                    f"{row['case']}: {row['reason']}: {row['explanation']}" for row in refused
                )
                + ". Exclude or mend them, or say that the rest is to go on"
            )
        self._excluded += refused
        return [row for row in rows if row["outcome"] != EXCLUDED]

    def _row(
        self, who: Row, stage: str, rests_on: Row, build: Callable[[], tuple[Row, Files]]
    ) -> Row:
        """The row of a case: kept, or made, with its files written before it."""
        path = self._folder / stage / f"{who['case']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._kept(path, rests_on)
        if kept is not None:
            self._tell(kept, stage, kept=True)
            return kept
        for gone in (path, self._folder / INDEX):
            gone.unlink(missing_ok=True)
        plain = {"outcome": READY, "reason": "", "explanation": ""}
        try:
            made, files = build()
            row = {**who, **plain, **made, "files": self._write(files)}
        except DiskFullError:
            raise
        except StudyError as error:
            row = {**who, **plain, "outcome": EXCLUDED, "images": [], "files": {}}
            row |= {"reason": error.reason, "explanation": str(error)}
        row["rests_on"] = rests_on
        write_text(path, _json(row))
        self._tell(row, stage, kept=False)
        return row

    def _rests_on(self, case: PreparedCase) -> Row:
        recipe = self._recipe
        return {
            "revision": DATASET_REVISION,
            "patient": [case.patient, case.part],
            "prepared": dict(case.files),
            "recipe": _digest(
                recipe.model_dump(
                    mode="json",
                    include={"configuration", "preprocessing", "canvas", "skull_strip", "cases"}
                    | {"augmentation"},
                )
            ),
            "strip": f"surface-refine {SURFACE_REFINE_VERSION}" if recipe.skull_strip else "none",
            "seed": self._seed,
        }

    def _kept(self, path: Path, rests_on: Row) -> Row | None:
        try:
            row: Any = json.loads(path.read_text(encoding="utf-8"))
            if row["rests_on"] != rests_on or row["outcome"] != READY:
                return None  # a refused case is tried again
            whole = all(
                file_digest(self._folder / name) == digest for name, digest in row["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # none yet, or damaged: made (again)
        return dict(row) if whole else None

    def _write(self, files: Files) -> dict[str, str]:
        digests = {}
        for name, content in files:
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part, content=content: _write_bytes(part, content))  # type: ignore[misc]
            digests[name] = hashlib.sha256(content).hexdigest()
        return digests

    def _stripped(self, name: str) -> Mapping[str, Any]:
        with np.load(self._folder / "stripped" / f"{name}.npz") as content:
            return dict(content)

    def _described(self, cases: int) -> Json:
        strip = {"method": "surface-refine", "version": SURFACE_REFINE_VERSION}
        return dataset_json(
            self._recipe,
            cases,
            {"skull_strip": strip if self._recipe.skull_strip else None},
        )

    def _tell(self, row: Row, stage: str, *, kept: bool) -> None:
        if self._on_case is not None and (stage == ROWS or row["outcome"] == EXCLUDED):
            self._on_case(row, kept=kept)

    def _write_json(self, name: str, value: object) -> None:
        write_text(self._folder / name, _json(value))

    def _write_table(self, rows: Sequence[Row]) -> None:
        every = sorted(rows, key=lambda row: str(row["case"]))
        self._write_json(
            "preparation.json",
            {
                "recipe": self._recipe.name,
                "seed": self._seed,
                "total": totals(every),
                "cases": [
                    {k: v for k, v in row.items() if k not in _NOT_IN_TABLE} for row in every
                ],
            },
        )
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in every:
            writer.writerow([row.get(column, "") for column in _COLUMNS])
        write_text(self._folder / "preparation.csv", table.getvalue())

    def _remove_strays(self, rows: Sequence[Row]) -> None:
        """Of a killed run, or of a case that is no longer there: nnU-Net would take them up."""
        known = {name for row in rows for name in row["files"]}
        for folder in (
            self._folder / f"{PLANS_NAME}_{self._recipe.configuration}",
            self._folder / "stacks",
        ):
            for path in folder.glob("*") if folder.is_dir() else ():
                if path.relative_to(self._folder).as_posix() not in known:
                    path.unlink()


_COLUMNS = (
    "case",
    "patient",
    "part",
    "semi_synthetic",
    "donor",
    "outcome",
    "reason",
    "slices",
    "kept",
    "empty",
    "removed_with_lesion",
    "removed_mm2",
    "largest_removed_mm2",
    "copies",
    "lesion_ml",
    "lesion_outside_brain_ml",
    "brain_ml",
    "explanation",
)
_NOT_IN_TABLE = frozenset({"files", "rests_on", "fingerprint", "images"})


def totals(rows: Sequence[Row]) -> Row:
    """Sums over the cases."""
    ready = [row for row in rows if row["outcome"] == READY]

    def total(key: str) -> float:
        found = sum(row.get(key, 0) for row in rows)
        return round(float(found), 4) if isinstance(found, float) else int(found)

    return {
        "cases": sum(not row["semi_synthetic"] for row in ready),
        "semi_synthetic": sum(row["semi_synthetic"] for row in ready),
        "refused": sum(row["outcome"] != READY and not row["semi_synthetic"] for row in rows),
        "images": sum(len(row["images"]) for row in rows),
        **{key: total(key) for key in _SUMMED if any(key in row for row in rows)},
    }


_SUMMED = ("slices", "kept", "empty", "removed_with_lesion", "removed_mm2", "copies")


def in_words(run: Path) -> str:
    """What the preparation did, in a line or two, for a log."""
    content: Any = json.loads((run / DATASET / "preparation.json").read_text(encoding="utf-8"))
    total, name = content["total"], content["recipe"]
    lines = [f"{name}: {total['cases']} cases, {total['images']} images"]
    if "removed_mm2" in total:
        lines.append(
            f"entropy rule: {total['kept']} of {total['slices']} slices kept, "
            f"{total['removed_with_lesion']} with lesions removed, together "
            f"{total['removed_mm2']:.1f} mm2 of lesion; {total['copies']} augmented copies"
        )
    if total["semi_synthetic"]:
        lines.append(f"semi-synthetic: {total['semi_synthetic']} cases, for training alone")
    return "\n".join(lines)


def _who_is(case: PreparedCase) -> Row:
    return {
        "case": case.name,
        "patient": case.patient,
        "part": case.part,
        "semi_synthetic": False,
        "donor": "",
    }


def _origin(row: Row, image: Row, cohort: PreparedCohort) -> Origin:
    patients = (row["patient"], *([row["donor_patient"]] if row["semi_synthetic"] else []))
    splits = cohort.splits
    return Origin(
        case=row["case"],
        patients=patients,
        parts=() if splits is None else tuple(splits.part(patient) for patient in patients),
        copy=image["copy"],
        semi_synthetic=row["semi_synthetic"],
        lesions=row["lesion_ml"] > 0,
    )


# --- one run, one recipe ------------------------------------------------------------------------


def _settle_run(run: Path, recipe: Recipe, cohort: PreparedCohort, seed: int) -> None:
    """Keep what the run is of; or find that it is of something else."""
    facts = {
        "recipe": recipe.digest,
        "cohort": cohort.digest,
        "splits": cohort.splits_digest,
        "seed": seed,
    }
    path = run / RUN
    if path.exists():
        try:
            kept: Any = json.loads(path.read_text(encoding="utf-8"))
            old = Recipe.model_validate_json((run / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunDiffersError("run.json or recipe.json is damaged: give another folder") from (
                error
            )
        changes = [name for name, value in facts.items() if kept.get(name) != value]
        if changes:
            told = ", ".join(_change(name, old, recipe) for name in changes)
            raise RunDiffersError(
                f"this folder is of another run: {told}. Give another folder, or the same again"
            )
        return
    write_text(run / RECIPE, recipe.model_dump_json(indent=1) + "\n")
    write_text(
        path, _json({**facts, "name": recipe.name, "software": {n: version(n) for n in SOFTWARE}})
    )


def _change(name: str, old: Recipe, new: Recipe) -> str:
    if name != "recipe":
        return f"another {name}"
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    changed = []
    for key, value in after.items():
        if isinstance(value, dict) and isinstance(before[key], dict):
            changed += [f"{key}.{k}" for k in value if value[k] != before[key].get(k)]
        elif value != before[key]:
            changed.append(key)
    return f"another recipe ({', '.join(changed)})"


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
