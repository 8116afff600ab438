"""A stock nnU-Net v2 results folder as a model pack.

A checkpoint of nnU-Net is a pickle, and whoever unpickles a stranger's file runs a stranger's
program. Here it is read with torch's `weights_only` and a list of what may be named in it; anything
else is refused before a byte of it is interpreted. What goes into the pack is the weights, to the
bit, and of `plans.json` and `dataset.json` what the network needs; names of cases stay behind.

Source: nnunetv2 2.8.1, `nnUNetTrainer.save_checkpoint`,
`nnUNetPredictor.initialize_from_trained_model_folder`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.ensemble import load_ensemble, network_of
from pipeline.model_pack import (
    DATASET,
    PLANS,
    Description,
    ModelPack,
    ModelPackError,
    ModelPackUnsupportedError,
    NnUNetInput,
    Summary,
    Weights,
    install_pack,
    parse_object,
    write_pack,
)
from pipeline.nnunet_plans import (
    DIMENSIONS,
    NETWORKS,
    READERS,
    ConfigurationNotSupportedError,
    NetworkNotSupportedError,
    check_configuration,
    check_dataset,
)

CHECKPOINT = "checkpoint_final.pth"
FOLDS = (0, 1, 2, 3, 4)
ALL = "all"
"""nnU-Net's name for a member that was trained on every case."""

LARGEST_JSON_BYTES = 50_000_000  # `dataset.json` may list every case of a large cohort
LARGEST_CHECKPOINT_BYTES = 8_000_000_000  # ResEnc XL with its optimiser is near 1 GB
LARGEST_PICKLE_BYTES = 100_000_000  # the structure without the tensors: some 100 kB
MOST_PARAMETERS = 1_000_000_000  # ResEnc XL has a tenth of it


class NotNnUNetResultsError(ModelPackError):
    """The folder is not what nnU-Net v2 leaves after training."""

    reason: ClassVar[str] = "not-nnunet-results"


class LinkInResultsError(ModelPackError):
    """A link where a file or folder should be: what it points to may change or lie elsewhere."""

    reason: ClassVar[str] = "link-in-results"


class FoldsMissingError(ModelPackError):
    """A fold that was asked for is not there."""

    reason: ClassVar[str] = "folds-missing"


class FoldsDifferError(ModelPackError):
    """The checkpoints are not members of one model."""

    reason: ClassVar[str] = "folds-differ"


class CheckpointUnreadableError(ModelPackError):
    """A checkpoint is damaged, or not one of nnU-Net v2."""

    reason: ClassVar[str] = "checkpoint-unreadable"


class CheckpointUnsafeError(ModelPackError):
    """A checkpoint wants a class or function that weights have no use for. Nothing was run."""

    reason: ClassVar[str] = "checkpoint-unsafe"


class CheckpointTooLargeError(ModelPackError):
    """A checkpoint is, or would unpack to, more than any nnU-Net has."""

    reason: ClassVar[str] = "checkpoint-too-large"


class WeightsDoNotFitError(ModelPackError):
    """The weights are not those of the network that the plans describe."""

    reason: ClassVar[str] = "weights-do-not-fit"


class WeightsNotFiniteError(ModelPackError):
    """NaN or infinity among the weights: the network would say nothing, or nonsense."""

    reason: ClassVar[str] = "weights-not-finite"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one fold left behind, as far as it is of use."""

    weights: Mapping[str, Tensor]
    """nnU-Net's `state_dict`: one layer may have several names."""
    trainer: str
    configuration: str
    mirroring_axes: tuple[int, ...]
    plans: Mapping[str, Any]
    """That the fold was trained with."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What whoever imports decides, and nnU-Net's files do not say."""

    name: str
    version: str
    image: Literal["brain", "head"]
    """Trained on stripped images, or with the skull."""
    threshold: float = 0.5
    minimum_lesion_mm3: float = 5.0
    """nnU-Net drops nothing. The shipped pack drops less than this: single voxels are noise."""
    dilation_mm: float = 2.0
    orientation: str | None = None
    """None: as the reader that is named in the plans lays arrays out."""


def import_results(
    results: Path,
    packs: Path,
    wanted: Wanted,
    *,
    folds: Sequence[int | str] = FOLDS,
    checkpoint: str = CHECKPOINT,
) -> ModelPack:
    """Make a pack of a results folder and install it as `packs/NAME-VERSION`.

    Args:
        results: `nnUNetTrainer__nnUNetPlans__2d` or `...__3d_fullres`.
        packs: Where packs lie.
        wanted: What nnU-Net's files do not say.
        folds: The members, in the order in which they are averaged; numbers, or `all` alone.
        checkpoint: File of a fold.

    Raises:
        ModelPackError: Its reason says what is wrong or cannot be run. Nothing is left behind.
    """
    plans_file = _read_json(results, PLANS)
    dataset = _read_json(results, DATASET)
    check_dataset(dataset)
    read = {fold: read_checkpoint(_fold_file(results, fold, checkpoint)) for fold in folds}
    if not read:
        raise FoldsMissingError("no fold is named")
    first = next(iter(read.values()))
    plans = plain_plans(plans_file, first.configuration)
    configuration = check_configuration(plans, first.configuration)
    _refuse_different(read, plans)
    numbers = {fold: 0 if fold == ALL else int(fold) for fold in folds}
    if len(set(numbers.values())) != len(folds):
        raise FoldsDifferError(f"folds {[str(fold) for fold in folds]} name one member twice")
    weights = {
        numbers[fold]: fitting_weights(one.weights, configuration, f"fold {fold}")
        for fold, one in read.items()
    }
    description = _describe(wanted, plans, dataset, read, numbers)
    with tempfile.TemporaryDirectory(prefix="flairnode-import-") as scratch:
        staged = write_pack(
            Path(scratch) / "pack",
            description,
            plans=plans,
            dataset_json=plain_dataset(dataset),
            weights=weights,
            card=card(description),
            stored="fp32",
            # What cannot be run is not installed.
            check=lambda pack: load_ensemble(pack, device="cpu"),
        )
        return install_pack(staged.path, packs)


def read_checkpoint(path: Path) -> Checkpoint:
    """Weights of one fold, and what they are weights of.

    Raises:
        CheckpointUnsafeError: It names something that is not on the list.
        CheckpointTooLargeError: It is, or would become, too large.
        CheckpointUnreadableError: It is damaged, or not nnU-Net's.
    """
    _refuse_bombs(path)
    with _what_may_be_named():
        try:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            # The whole list must be clean before anything is built: with `weights_only` alone a
            # file would be read up to the first thing that is not allowed.
            content = None if named else _load(path)
        except Exception as error:  # a damaged pickle may raise anything
            raise CheckpointUnreadableError(
                f"{_place(path)} cannot be read: {type(error).__name__}: {_first_line(error)}"
            ) from error
    if named:
        raise CheckpointUnsafeError(
            f"{_place(path)} wants {', '.join(sorted(named)[:5])}: that is a program, not weights;"
            " nothing of it was run"
        )
    return _as_checkpoint(content, path)


def plain_plans(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Plans with the one configuration that is used, written out as nnU-Net writes it today.

    Inherited settings are filled in and the format of early v2 is brought up to date, both by
    nnU-Net's own `PlansManager`.

    Raises:
        ConfigurationNotSupportedError: No configuration of that name, or one that is not run here.
        NotNnUNetResultsError: Not nnU-Net's plans.
    """
    if name not in DIMENSIONS:
        raise ConfigurationNotSupportedError(
            f"trained as {name!r}: only {' and '.join(DIMENSIONS)} can be run"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the format is old
            manager = PlansManager(dict(plans)).get_configuration(name)
        configuration: dict[str, Any] = dict(manager.configuration)
        _name_network(configuration)
        kept = {key: value for key, value in plans.items() if key != "configurations"}
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise NotNnUNetResultsError(f"{PLANS} is not nnU-Net's: {error!r}") from error
    if "foreground_intensity_properties_by_modality" in kept:
        kept["foreground_intensity_properties_per_channel"] = kept.pop(
            "foreground_intensity_properties_by_modality"
        )
    return kept | {"configurations": {name: configuration}}


def plain_dataset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """`dataset.json` without the names of cases and files that it may hold."""
    channels = dataset.get("channel_names", dataset.get("modality"))
    labels = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    count = dataset.get("numTraining")
    return {
        "channel_names": channels,
        "labels": labels,
        "numTraining": count if isinstance(count, int) else None,
        "file_ending": str(dataset.get("file_ending", ".nii.gz")),
    }


def card(description: Description) -> str:
    """What a person should know of an imported pack."""
    facts = description.training_data.figures
    feeding = description.nnunet
    if feeding is None:
        raise ValueError("an imported pack has an nnU-Net input")
    fed = {
        "brain": "images after flairnode's skull strip, the mask widened in plane by"
        f" {feeding.dilation_mm:g} mm",
        "head": "images as acquired, with the skull",
    }[feeding.image]
    lines = [
        f"# {description.name} {description.version}",
        "",
        "**Imported. Status: research. Not for diagnosis or follow-up.**",
        "",
        "This pack was made from a stock nnU-Net v2 results folder. flairnode did not train it and"
        " has not tried it.",
        "",
        f"- trainer `{facts['trainer']}`, plans `{facts['plans']}`, configuration"
        f" `{description.configuration}`, dataset `{facts['dataset']}`",
        f"- members: {len(description.folds)} ({', '.join(map(str, facts['folds']))})",  # type: ignore[arg-type]
        f"- fed with {fed}; axes to {feeding.orientation}",
        f"- mirroring allowed along axes {list(description.mirroring_axes)}",
        f"- a voxel is lesion above probability {description.threshold:g}; lesions of less than"
        f" {description.minimum_lesion_mm3:g} mm3 are dropped",
        "",
        "## What is known",
        "",
        description.training_data.text,
        "",
        description.validation.text,
        "",
        *(f"- {limit}" for limit in description.limits),
        "",
    ]
    return "\n".join(lines)


# --- the folder -----------------------------------------------------------------------------


def _read_json(results: Path, name: str) -> dict[str, Any]:
    file = results / name
    _refuse_link(file)
    if not results.is_dir() or not file.is_file():
        raise NotNnUNetResultsError(
            f"{results} holds no {name}: a results folder of nnU-Net v2 is meant, such as"
            " nnUNet_results/DatasetXXX/nnUNetTrainer__nnUNetPlans__2d"
        )
    if file.stat().st_size > LARGEST_JSON_BYTES:
        raise NotNnUNetResultsError(f"{name} has {file.stat().st_size} bytes")
    try:
        return parse_object(file.read_bytes(), name)
    except ModelPackError as error:
        raise NotNnUNetResultsError(str(error)) from error


def _fold_file(results: Path, fold: int | str, checkpoint: str) -> Path:
    folder = results / f"fold_{fold}"
    file = folder / checkpoint
    if file.parent != folder:
        raise FoldsMissingError(f"{checkpoint!r} is not the name of a file in a fold")
    _refuse_link(folder)
    _refuse_link(file)
    if not file.is_file():
        there = sorted(path.parent.name for path in results.glob(f"fold_*/{checkpoint}"))
        raise FoldsMissingError(
            f"fold_{fold}/{checkpoint} is not there; there are: {', '.join(there) or 'none'}."
            " Name those to take with --folds"
        )
    return file


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise LinkInResultsError(f"{path.name} is a link: copy the folder with what it links to")


# --- the checkpoint -------------------------------------------------------------------------


def _what_may_be_named() -> AbstractContextManager[None]:
    """Beside tensors and plain containers, what nnU-Net's log of a training is made of.

    numpy's numbers and arrays; in files written under numpy 1 the module has its old name.
    torch allows `torch.device`, which lies in `init_args`, by itself.
    """
    kinds = {type(np.dtype(one)) for one in "?bBhHiIlLqQefd"}
    functions = [np._core.multiarray.scalar, np._core.multiarray._reconstruct]  # type: ignore[attr-defined]  # what numpy pickles by
    old = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    new = [(function, f"numpy._core.multiarray.{function.__name__}") for function in functions]
    allowed: AbstractContextManager[None] = torch.serialization.safe_globals(
        [np.ndarray, np.dtype, *kinds, *old, *new]
    )
    return allowed


def _refuse_bombs(path: Path) -> None:
    """A checkpoint is a zip of stored files: what it unpacks to, it must already be."""
    size = path.stat().st_size
    if size > LARGEST_CHECKPOINT_BYTES:
        raise CheckpointTooLargeError(f"{_place(path)} has {size} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointUnreadableError(
            f"{_place(path)} is no checkpoint of torch, or only a part of one: {error}"
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > size
    ):
        raise CheckpointTooLargeError(
            f"{_place(path)} would unpack to more than it is; torch stores without compression"
        )
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE_BYTES:
        raise CheckpointUnreadableError(f"{_place(path)} is no checkpoint of torch")
    # Two entries that share bytes could each be within bounds, and their sum is not.
    starts = sorted((entry.header_offset, entry.file_size) for entry in entries)
    if any(start + length > after for (start, length), (after, _) in pairwise(starts)):
        raise CheckpointUnreadableError(f"{_place(path)} holds files that overlap")


def _load(path: Path) -> object:
    # Mapped: tensors that are not looked at (the optimiser's) are never read.
    loaded: object = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    return loaded


def _as_checkpoint(content: object, path: Path) -> Checkpoint:
    checkpoint = content if isinstance(content, dict) else {}
    try:
        arguments = checkpoint["init_args"]
        weights = checkpoint["network_weights"]
        axes = checkpoint.get("inference_allowed_mirroring_axes") or ()
        found = Checkpoint(
            weights=weights,
            trainer=checkpoint["trainer_name"],
            configuration=arguments["configuration"],
            mirroring_axes=tuple(int(axis) for axis in axes),
            plans=arguments["plans"],
            sha256=_sha256(path),
        )
        texts = (found.trainer, found.configuration, *found.weights)
        plain = all(isinstance(text, str) for text in texts) and all(
            isinstance(one, Tensor) for one in found.weights.values()
        )
        dict(found.plans)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointUnreadableError(
            f"{_place(path)} is no checkpoint of nnU-Net v2: {error!r}"
        ) from error
    if not plain:
        raise CheckpointUnreadableError(f"{_place(path)} is no checkpoint of nnU-Net v2")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


# --- do they belong together? ---------------------------------------------------------------


def _refuse_different(read: Mapping[int | str, Checkpoint], plans: Mapping[str, Any]) -> None:
    """Every fold has the trainer, configuration, mirroring and plans of the first, and of the file.

    Raises:
        FoldsDifferError: One has not.
    """
    name, first = next(iter(read.items()))
    for fold, one in read.items():
        for what in ("trainer", "configuration", "mirroring_axes"):
            if getattr(one, what) != getattr(first, what):
                raise FoldsDifferError(
                    f"fold {fold} has {what} {getattr(one, what)!r},"
                    f" fold {name} {getattr(first, what)!r}"
                )
        if _essence(plain_plans(one.plans, one.configuration)) != _essence(plans):
            raise FoldsDifferError(
                f"fold {fold} was trained with other plans than those of {PLANS}"
            )


def _essence(plans: Mapping[str, Any]) -> str:
    """What of the plans decides a prediction, comparable."""
    kept = {
        key: plans.get(key)
        for key in (
            "configurations",
            "transpose_forward",
            "transpose_backward",
            "foreground_intensity_properties_per_channel",
            "image_reader_writer",
            "label_manager",
        )
    }
    return json.dumps(kept, sort_keys=True, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return repr(value)


def _name_network(configuration: dict[str, Any]) -> None:
    """The full name of a network whose module moved since, as nnU-Net itself finds it again."""
    architecture = dict(configuration["architecture"])
    class_name = str(architecture["network_class_name"])
    if class_name.startswith("dynamic_network_architectures.architectures."):
        short = class_name.rpartition(".")[2]
        known = {name.rpartition(".")[2]: name for name in NETWORKS}
        architecture["network_class_name"] = known.get(short, class_name)
    configuration["architecture"] = architecture


def _described(configuration: Mapping[str, Any]) -> nn.Module:
    """The network of the plans, without memory for its weights."""
    with torch.device("meta"):
        network = network_of(configuration)
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MOST_PARAMETERS:
        raise CheckpointTooLargeError(f"{PLANS} describes a network of {count} parameters")
    patch = tuple(configuration["patch_size"])
    try:
        with torch.inference_mode():
            answer = network.eval()(torch.empty((1, 1, *patch), device="meta"))
    except (RuntimeError, ValueError, TypeError) as error:
        raise NetworkNotSupportedError(
            f"the network of {PLANS} cannot take its own patch of {patch}: {_first_line(error)}"
        ) from error
    if tuple(answer.shape) != (1, 2, *patch):
        raise NetworkNotSupportedError(f"a patch of {patch} becomes {tuple(answer.shape)}")
    return network


def fitting_weights(
    weights: Mapping[str, Tensor], configuration: Mapping[str, Any], whose: str
) -> Weights:
    """One array per parameter of the network, once all of them are there, right and finite.

    Args:
        weights: nnU-Net's `state_dict`.
        configuration: Of the plans; it describes the network.
        whose: For the message.

    Raises:
        WeightsDoNotFitError: Names, shapes or types differ, or one layer has two versions.
        WeightsNotFiniteError: NaN or infinity.
    """
    network = _described(configuration)
    wanted = network.state_dict(keep_vars=True)
    shapes = {name: tuple(value.shape) for name, value in wanted.items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if shapes != found:
        differing = sorted(set(shapes.items()) ^ set(found.items()))
        raise WeightsDoNotFitError(
            f"{whose}: the weights are not those of the network in {PLANS}: {differing[:3]}"
        )
    # A layer that is reached by several paths (the decoder holds the encoder) has several names.
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for name, value in wanted.items():
        given = weights[name]
        own = name_of.get(id(value))
        if own is None or not _is_plain(given):
            raise WeightsDoNotFitError(
                f"{whose}: {name} is {given.dtype}, {given.layout}, on {given.device}: not a plain"
                " weight"
            )
        array: npt.NDArray[np.float32] = np.array(given.float().numpy())
        if not np.isfinite(array).all():
            raise WeightsNotFiniteError(f"{whose}: {name} holds NaN or infinity")
        if own in arrays and not np.array_equal(arrays[own], array):
            raise WeightsDoNotFitError(f"{whose}: {own} and {name} are one layer, and differ")
        arrays.setdefault(own, array)
    return arrays


def _is_plain(tensor: Tensor) -> bool:
    """Numbers side by side in memory; one of stride 0 is a number that claims to be a million."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and not tensor.is_quantized
        and tensor.is_contiguous()
    )


# --- the description ------------------------------------------------------------------------


def _describe(
    wanted: Wanted,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    read: Mapping[int | str, Checkpoint],
    numbers: Mapping[int | str, int],
) -> Description:
    first = next(iter(read.values()))
    reader = str(plans["image_reader_writer"])
    feeding = {
        "image": wanted.image,
        "orientation": wanted.orientation or READERS[reader],
        "dilation_mm": wanted.dilation_mm,
    }
    cases = dataset.get("numTraining")
    fields = {
        "name": wanted.name,
        "version": wanted.version,
        "status": "research",
        "configuration": first.configuration,
        "preprocessing": "nnunet",
        "nnunet": NnUNetInput.model_validate(feeding),
        "mirroring_axes": first.mirroring_axes,
        "threshold": wanted.threshold,
        "minimum_lesion_mm3": wanted.minimum_lesion_mm3,
        "folds": tuple(numbers[fold] for fold in read),
        "patient_folds": None,
        "training_data": Summary(
            text="Not known. The pack was imported from a results folder of nnU-Net; its images,"
            " scanners and patients are known to whoever trained it.",
            figures={
                "imported": True,
                "trainer": first.trainer,
                "plans": str(plans.get("plans_name")),
                "dataset": str(plans.get("dataset_name")),
                "cases": cases if isinstance(cases, int) else None,
                "folds": [str(fold) for fold in read],
                "reader": reader,
                "checkpoint_sha256": {str(fold): one.sha256 for fold, one in read.items()},
            },
        ),
        "validation": Summary(
            text="None that is known. Validate it on cases of your own before anyone relies on it:"
            " `flairnode validate run`."
        ),
        "intended_use": "Research only: an imported network that flairnode did not train. "
        "Not for diagnosis or follow-up.",
        "limits": (
            "Nothing is known of the images it was trained on or tried on.",
            "Whether its training images were stripped, and how, was stated at import and cannot"
            " be checked.",
            "Not validated, not for diagnosis or follow-up; every site must validate on its own"
            " cases.",
        ),
        "licence": "Not stated: ask whoever trained it",
        "software": {"nnunetv2": version("nnunetv2"), "torch": version("torch")},
    }
    try:
        return Description.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{e['loc']}: {e['msg']}" for e in error.errors())
        raise ModelPackUnsupportedError(f"the pack cannot be described: {problems}") from error
