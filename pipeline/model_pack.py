"""A model pack: what was trained, on what, how it must be fed, and digests of every file.

A pack is a folder::

    manifest.json                  Manifest: how to feed the network, what it is for, file digests
    plans.json, dataset.json       nnU-Net's own, which say how the network is built
    fold_N/weights.safetensors     one per member, stored in fp16 (imported ones in fp32, as they
                                   came), computed in fp32
    card.md                        for people

Nothing in it is ever unpickled. A pack is used only if every file has the digest that the manifest
names and no other file lies beside them; the pack's own digest is over the manifest, so that it
stands for every byte of the pack.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from safetensors.numpy import save

from dicom.errors import Outcome, StudyError
from pipeline.preprocess import CanvasSpec

MANIFEST = "manifest.json"
PLANS = "plans.json"
DATASET = "dataset.json"
CARD = "card.md"
DEFAULT_PACK = "starter"
SHIPPED_PACKS = Path(__file__).parent / "packs"
ALLOWED_SUFFIXES = frozenset({".json", ".safetensors", ".md", ".txt"})
"""No `.pth`, `.pkl`, `.npy`: formats that can hold a pickle have no place in a pack."""
LARGEST_MANIFEST_BYTES = 1_000_000  # a manifest is some kilobytes; a larger file is not one

Weights = Mapping[str, npt.NDArray[np.floating[Any]]]
"""One member: a tensor per entry of the network's `named_parameters()`, each once."""


class ModelPackError(StudyError):
    """A model pack is not what it says it is. No study is at fault."""

    reason: ClassVar[str] = "model-pack-invalid"
    outcome: ClassVar[Outcome] = Outcome.FAILED


class ModelPackNotFoundError(ModelPackError):
    """No pack of that name or at that path."""

    reason = "model-pack-not-found"


class ModelPackUnsupportedError(ModelPackError):
    """A sound pack that this version of flairnode cannot run."""

    reason = "model-pack-unsupported"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
VERSION_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z.+]{0,31}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Version = Annotated[str, Field(pattern=VERSION_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _safe_relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and parts and not PurePosixPath(path).is_absolute()
    if not plain or any(part.startswith(".") for part in parts) or "\\" in path or ":" in path:
        raise ValueError(f"{path!r} is not a plain path inside the pack")
    return path


RelativePath = Annotated[str, AfterValidator(_safe_relative)]


class Canvas(_Part):
    """What the network sees of a slice: the fields of `pipeline.preprocess.CanvasSpec`."""

    rows: Annotated[int, Field(ge=32, le=2048)]
    columns: Annotated[int, Field(ge=32, le=2048)]
    pixel_mm: Positive
    normalisation: Literal["starter", "paper"]
    dilation_mm: NotNegative
    """The brain mask is dilated by this much before voxels outside it are set to zero."""


class NnUNetInput(_Part):
    """What a network with nnU-Net's own preprocessing is given.

    Crop, scale and resampling are in `plans.json`.
    """

    image: Literal["brain", "head"]
    """`brain`: zero outside the widened brain mask, for networks trained on stripped images.
    `head`: as acquired; the mask only says where a lesion may lie."""
    orientation: Annotated[str, Field(pattern=r"^[LR][AP][IS]$")] = "LPS"
    """Where columns, rows and slices of the axial view run to. nnU-Net takes a file as it lies, so
    this is how the files that it was trained on lay; its reorienting readers make RAS."""
    dilation_mm: NotNegative = 2.0
    """The brain mask is widened in plane by this much, as for a canvas."""


class Extractor(_Part):
    """A skull strip the pack was trained with; any other gives *review*."""

    method: str
    version: str


class LeakRule(_Part):
    """Drops what the skull strip left: components that are part of bright tissue outside the brain.

    Orbital fat and scalp go on outside the mask; between a lesion and the scalp lie dark fluid and
    bone. Labelled lesion voxels reach 1.83 x the core median at their 99th percentile, their means
    lie near 1.4, fat is at 2.0 to 3.3 and scalp at the vertex at 1.7 to 1.9 (measured on the
    training scans and on one scan never trained on). Brightness alone would one day delete a
    lesion, so both conditions must hold, and the number dropped is part of the result.
    """

    core_median_factor: Positive = 1.7
    """Tissue and component are bright above this multiple of the core median."""
    outside_ml: Positive = 1.0
    """So much of the tissue that the component is part of lies outside the brain mask."""


class ValidatedGeometry(_Part):
    """Spacing the pack was tried on (low, high); outside it a result is *review*."""

    slice_spacing_mm: tuple[Positive, Positive]
    pixel_spacing_mm: tuple[Positive, Positive]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in (self.slice_spacing_mm, self.pixel_spacing_mm):
            if low > high:
                raise ValueError(f"the range {low} to {high} mm is empty")
        return self


class Summary(_Part):
    """A statement in words, and the figures behind it."""

    text: str
    figures: dict[str, JsonValue] = {}


class Description(_Part):
    """Everything in a manifest but the digests: what the trainer of a pack writes down."""

    format: Literal[1] = 1
    """Of the manifest itself: a later flairnode may read 2."""
    name: Name
    version: Version
    status: Literal["research", "clinical"]
    """`research` is sent only to destinations that say so, with a banner in every object."""
    configuration: Literal["2d", "3d_fullres"] = "2d"
    preprocessing: Literal["canvas", "nnunet"] = "canvas"
    """`canvas`: `pipeline.preprocess`. `nnunet`: imported stock results bring their own."""
    canvas: Canvas | None = None
    nnunet: NnUNetInput | None = None
    extractors: tuple[Extractor, ...] = ()
    mirroring_axes: tuple[Literal[0, 1, 2], ...] = ()
    """Axes of (row, column), or of (slice, row, column) in 3d_fullres, the network may be mirrored
    along: nnU-Net's `inference_allowed_mirroring_axes`. The starter: left-right only, (1,)."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A voxel belongs to a lesion if its probability is greater: at 0.5 that is the argmax."""
    minimum_lesion_mm3: NotNegative
    """Smaller components are dropped; a component of exactly this volume stays."""
    leak_rule: LeakRule | None = None
    folds: Annotated[tuple[Annotated[int, Field(ge=0, le=99)], ...], Field(min_length=1)]
    """In the order in which the members are averaged."""
    patient_folds: bool | None
    """True: member k never saw the patients of fold k. False: members differ by seed alone. None:
    not known, of an imported pack."""
    validated_geometry: ValidatedGeometry | None = None
    training_data: Summary
    validation: Summary
    intended_use: str
    limits: tuple[str, ...]
    licence: str
    attributions: tuple[str, ...] = ()
    software: dict[str, str] = {}
    """Versions the pack was trained with."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.preprocessing == "canvas") != (self.canvas is not None):
            raise ValueError("`canvas` is given exactly when preprocessing is 'canvas'")
        if (self.preprocessing == "nnunet") != (self.nnunet is not None):
            raise ValueError("`nnunet` is given exactly when preprocessing is 'nnunet'")
        if self.canvas is not None and self.configuration != "2d":
            raise ValueError("a canvas holds one slice: its configuration is '2d'")
        if self.canvas is None and self.leak_rule is not None:
            raise ValueError("`leak_rule` is in core medians, which only a canvas pack takes")
        if self.configuration == "2d" and 2 in self.mirroring_axes:
            raise ValueError("`mirroring_axes` of a 2d network are 0 and 1")
        for field in (self.folds, self.mirroring_axes):
            if len(set(field)) != len(field):
                raise ValueError(f"{field} names one entry twice")
        return self

    def canvas_spec(self) -> CanvasSpec:
        """What `preprocess.prepare` is to make for this pack.

        Raises:
            ModelPackUnsupportedError: The pack brings nnU-Net's own preprocessing.
        """
        if self.canvas is None:
            raise ModelPackUnsupportedError(
                f"pack {self.name} has preprocessing {self.preprocessing!r} and no canvas"
            )
        return CanvasSpec(**dict(self.canvas))

    @property
    def dilation_mm(self) -> float:
        """How far beyond the brain mask, in the axial plane, the network sees and may answer."""
        feeding = self.canvas or self.nnunet
        return 0.0 if feeding is None else feeding.dilation_mm


class Manifest(Description):
    """`manifest.json`."""

    files: dict[RelativePath, Sha256]
    """Every file of the pack but the manifest."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        required = {PLANS, DATASET, CARD, *(weights_path(fold) for fold in self.folds)}
        if missing := sorted(required - self.files.keys()):
            raise ValueError(f"`files` lacks {missing}")
        for path in self.files:
            if PurePosixPath(path).suffix not in ALLOWED_SUFFIXES or path == MANIFEST:
                raise ValueError(f"{path!r} has no place in a pack")
        return self


@dataclass(frozen=True, slots=True)
class ModelPack:
    """A pack whose every file was checked against its digest."""

    manifest: Manifest
    path: Path
    digest: str
    """SHA-256 of the canonical manifest, which names the digest of every other file."""

    @property
    def name(self) -> str:
        """Name of the pack."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Version of the pack."""
        return self.manifest.version

    def read(self, relative: str) -> bytes:
        """Bytes of one file, checked again: a file may change between loading and reading.

        Raises:
            ModelPackError: The file is not in the manifest or has another digest.
        """
        if relative not in self.manifest.files:
            raise ModelPackError(f"{relative!r} is not in the manifest of pack {self.name}")
        try:
            content = (self.path / relative).read_bytes()
        except OSError as error:
            raise ModelPackError(f"{relative} of pack {self.name}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files[relative]:
            raise ModelPackError(
                f"{relative} of pack {self.name} has another SHA-256 than its manifest says:"
                " it was changed or damaged; install the pack again"
            )
        return content

    def read_json(self, relative: str) -> dict[str, Any]:
        """A JSON object of the pack (`plans.json`, `dataset.json`)."""
        return parse_object(self.read(relative), relative)


def weights_path(fold: int) -> str:
    """Where the weights of a member lie."""
    return f"fold_{fold}/weights.safetensors"


def load_pack(path: Path) -> ModelPack:
    """Read a pack and check every file of it.

    Raises:
        ModelPackNotFoundError: No pack lies at the path.
        ModelPackError: The manifest is not valid, a file is missing, changed or not listed.
    """
    manifest, digest = read_manifest(path)
    found = set(_regular_files(path)) - {MANIFEST}
    if stray := sorted(found - manifest.files.keys()):
        raise ModelPackError(
            f"pack {manifest.name} holds files its manifest does not name: {stray}"
        )
    if missing := sorted(manifest.files.keys() - found):
        raise ModelPackError(f"pack {manifest.name} lacks files its manifest names: {missing}")
    pack = ModelPack(manifest=manifest, path=path, digest=digest)
    for relative in manifest.files:
        pack.read(relative)
    return pack


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """Manifest and digest of the pack in a folder, without a look at its other files.

    Raises:
        ModelPackNotFoundError: The folder or its manifest does not exist.
        ModelPackError: The manifest is not valid.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise ModelPackNotFoundError(f"no model pack at {path}: there is no {MANIFEST}")
    if file.stat().st_size > LARGEST_MANIFEST_BYTES:
        raise ModelPackError(f"{file} is {file.stat().st_size} bytes: no manifest is that large")
    stored = parse_object(file.read_bytes(), MANIFEST)
    try:
        manifest = Manifest.model_validate_json(json.dumps(stored))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors()
        )
        raise ModelPackError(f"{file}: {problems}") from error
    # Of what is stored, not of the parsed model: a field that a later flairnode adds with a
    # default must not give an old pack a new digest, and its results new UIDs.
    return manifest, hashlib.sha256(canonical_json(stored)).hexdigest()


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value that is digested: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def find_pack(name_or_path: str | Path | None = None, *, folders: Sequence[Path] = ()) -> Path:
    """Where a pack lies.

    Args:
        name_or_path: `NAME` or `NAME-VERSION` of a pack in `folders` or of one that ships with
            flairnode, or the path of a folder. None: the starter pack.
        folders: Where packs are installed at this site; they come before the shipped ones.

    Raises:
        ModelPackNotFoundError: Nothing is found, or a name stands for several versions.
    """
    wanted = str(name_or_path) if name_or_path is not None else DEFAULT_PACK
    if os.sep not in wanted and wanted not in {"", ".", ".."}:
        for folder in (*folders, SHIPPED_PACKS):
            matches = [
                (manifest, path)
                for path, manifest in list_packs(folder)
                if wanted in {manifest.name, f"{manifest.name}-{manifest.version}"}
            ]
            if len(matches) > 1:
                names = [f"{manifest.name}-{manifest.version}" for manifest, _ in matches]
                raise ModelPackNotFoundError(
                    f"{wanted!r} stands for several packs in {folder}: say which of {names}"
                )
            if matches:
                return matches[0][1]
    path = Path(wanted)
    if (path / MANIFEST).is_file():
        return path
    raise ModelPackNotFoundError(
        f"no model pack named {wanted!r} and none at that path; `flairnode model list` shows"
        " what is there"
    )


def list_packs(folder: Path) -> list[tuple[Path, Manifest]]:
    """Packs that lie side by side in a folder, by name; those with a broken manifest left out."""
    packs = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue  # half installed
        try:
            packs.append((path, read_manifest(path)[0]))
        except ModelPackError:
            continue
    return packs


def write_pack(
    path: Path,
    description: Description,
    *,
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    weights: Mapping[int, Weights],
    card: str,
    stored: Literal["fp16", "fp32"] = "fp16",
    check: Callable[[ModelPack], object] | None = None,
) -> ModelPack:
    """Write a pack, all or nothing: the folder appears once everything in it was checked.

    Args:
        path: Where; must not exist.
        description: The manifest but for the digests.
        plans: nnU-Net's `plans.json`, which describes the network.
        dataset_json: nnU-Net's `dataset.json`.
        weights: Parameters of every fold of `description.folds`.
        card: Markdown.
        stored: How weights are stored: fp16 halves a pack; fp32 keeps another trainer's to the bit.
        check: Looks at the pack before it appears, and raises if it will not do.

    Raises:
        ModelPackError: The path exists, folds and weights differ, or a weight is not finite as it
            would be stored.
    """
    if path.exists():
        raise ModelPackError(f"{path} exists: a pack is never overwritten")
    if set(weights) != set(description.folds):
        raise ModelPackError(f"weights of {sorted(weights)}, folds {sorted(description.folds)}")
    contents: dict[str, bytes] = {
        PLANS: _pretty_json(plans),
        DATASET: _pretty_json(dataset_json),
        CARD: card.encode(),
        **{
            weights_path(fold): save(_as_stored(weights[fold], fold, stored))
            for fold in description.folds
        },
    }
    manifest = Manifest(
        **dict(description),
        files={name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=path.parent) as scratch:
        staged = Path(scratch) / path.name
        for name, data in contents.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(data)
        (staged / MANIFEST).write_bytes(_pretty_json(manifest.model_dump(mode="json")))
        whole = load_pack(staged)
        if check is not None:
            check(whole)
        staged.rename(path)
    return load_pack(path)


def install_pack(source: Path, folder: Path) -> ModelPack:
    """Copy a verified pack to `folder/NAME-VERSION`, all or nothing.

    Installing the same pack again changes nothing.

    Raises:
        ModelPackError: The source is not valid, or another pack has that name and version.
    """
    pack = load_pack(source)
    target = folder / f"{pack.name}-{pack.version}"
    if target.exists():
        installed = load_pack(target)
        if installed.digest != pack.digest:
            raise ModelPackError(
                f"another pack is installed as {target.name} (digest {installed.digest[:12]}, this"
                f" one {pack.digest[:12]}): a changed pack needs a new version"
            )
        return installed
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=folder) as scratch:
        staged = Path(scratch) / target.name
        shutil.copytree(source, staged)
        for file in (MANIFEST, *pack.manifest.files):
            with (staged / file).open("rb") as handle:
                os.fsync(handle.fileno())
        if load_pack(staged).digest != pack.digest:
            raise ModelPackError(f"{source} changed while it was copied")
        staged.rename(target)
    return load_pack(target)


def _as_stored(
    weights: Weights, fold: int, stored: Literal["fp16", "fp32"]
) -> dict[str, npt.NDArray[np.floating[Any]]]:
    dtype, words = (np.float16, "half") if stored == "fp16" else (np.float32, "single")
    # An overflow is looked for below, by name; numpy's warning would not say where.
    with np.errstate(over="ignore"):
        converted: dict[str, npt.NDArray[np.floating[Any]]] = {
            name: np.ascontiguousarray(tensor, dtype=dtype)
            for name, tensor in sorted(weights.items())
        }
    for name, tensor in converted.items():
        if not np.isfinite(tensor).all():
            raise ModelPackError(f"fold {fold}: {name} is not finite in {words} precision")
    return converted


def _pretty_json(value: object) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def parse_object(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file; `name` is for the message.

    Raises:
        ModelPackError: Not JSON, no object, a key twice, or NaN.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise ValueError(f"a key is given twice among {sorted(keys)}")
        return dict(pairs)

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(content, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ModelPackError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelPackError(f"{name} holds no JSON object")
    return value


def _regular_files(path: Path) -> list[str]:
    """Every file below a folder, as relative POSIX paths; links and devices are refused."""
    files = []
    for entry in sorted(path.rglob("*")):
        relative = entry.relative_to(path).as_posix()
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise ModelPackError(f"{relative} in the pack is a link or no plain file")
        if entry.is_file():
            files.append(relative)
    return files
