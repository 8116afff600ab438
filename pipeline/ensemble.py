"""The members of a model pack, run over a prepared head.

Torch is in here, and in the modules that bring nnU-Net's own preprocessing (`nnunet_volume`) and
read its checkpoints (`nnunet_import`); nowhere else in the pipeline.

Mean of the members' logits, softmax after: what `nnUNetPredictor` does (nnunetv2 2.8.1,
`predict_logits_from_preprocessed_data`). Three things are done otherwise, and
`tests/pipeline/test_ensemble.py` holds the two side by side:

- slices go through the network in batches (InstanceNorm sees one image at a time either way);
- logits are summed in fp32, not in fp16, so that the order of the members does not matter;
- a slice without brain is not asked about: its probability is 0. nnU-Net would report whatever
  the network makes of an empty image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dicom.errors import Outcome, StudyError
from pipeline.model_pack import (
    DATASET,
    PLANS,
    ModelPack,
    ModelPackError,
    ModelPackUnsupportedError,
    weights_path,
)
from pipeline.nnunet_plans import check_configuration, check_dataset, check_network
from pipeline.preprocess import CanvasSpec

if TYPE_CHECKING:
    from pipeline.nnunet_volume import VolumeEnsemble

Array = npt.NDArray[np.float32]
AnyEnsemble: TypeAlias = "Ensemble | VolumeEnsemble"
Mirroring = Literal["auto", "on", "off"]
Precision = Literal["fp32", "bf16"]

SLICES_PER_BATCH = {"cpu": 2, "cuda": 16}  # more is no faster on a CPU, and its cache is small


class DeviceError(StudyError):
    """The configured device is not there."""

    reason: ClassVar[str] = "device-unavailable"
    outcome: ClassVar[Outcome] = Outcome.FAILED


class NetworkOutputError(StudyError):
    """The network gave NaN or infinity, which would pass for "no lesion"."""

    reason: ClassVar[str] = "network-output-not-finite"
    outcome: ClassVar[Outcome] = Outcome.FAILED


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """What the members say of every pixel of the canvas."""

    probability: Array
    """(slices, rows, columns): softmax of the mean of the members' logits."""
    disagreement: Array
    """(slices, rows, columns): standard deviation over the members of their probabilities."""


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """The members of one pack on one device. Not for several threads at a time."""

    pack: ModelPack
    device: torch.device
    mirroring_axes: tuple[int, ...]
    """Axes of the network's input that every image is mirrored along as well: (row, column), or
    (slice, row, column). Changes the result."""
    precision: Precision
    """fp32. bf16 halves the time on some CPUs and moves about 1 % of the lesion voxels."""
    threads: int
    """CPU threads of the network; 0 leaves torch's own choice."""
    _network: nn.Module
    _members: tuple[dict[str, Tensor], ...]
    """Weights of each member as they are stored; copied into the one network in turn."""
    slices_per_batch: int = 0
    """0: as many as suit the device."""

    @classmethod
    def load(
        cls,
        pack: ModelPack,
        *,
        device: str = "auto",
        mirroring: Mirroring = "auto",
        threads: int = 0,
        precision: Precision = "fp32",
    ) -> Self:
        """Build the network of a pack and read its members.

        Args:
            pack: From `model_pack.load_pack`.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            mirroring: `on`: along the axes that the pack allows. `auto`: on with a GPU, off on a
                CPU, where it multiplies the time.
            threads: CPU threads; 0 leaves torch's own choice. Another number can change the last
                bits of a probability.
            precision: `bf16` is a faster approximation for CPUs that have it.

        Raises:
            DeviceError: The device is not there.
            ModelPackError: The weights do not fit the network that `plans.json` describes.
            ModelPackUnsupportedError: The pack asks for something this version does not do.
        """
        cls.check_feeding(pack)
        target = _device(device)
        network = build_network(pack)
        members = tuple(_member_weights(pack, fold, network) for fold in pack.manifest.folds)
        mirrored = mirroring == "on" or (mirroring == "auto" and target.type != "cpu")
        return cls(
            pack=pack,
            device=target,
            mirroring_axes=pack.manifest.mirroring_axes if mirrored else (),
            precision=precision,
            threads=threads,
            _network=network.to(target).eval().requires_grad_(requires_grad=False),
            _members=members,
        )

    @staticmethod
    def check_feeding(pack: ModelPack) -> None:
        """Whether the pack is fed in the way of the class.

        Raises:
            ModelPackUnsupportedError: It is not.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, JsonValue]:
        """What changes the result beside the pack, as it came out of `auto`."""
        return {"mirroring_axes": list(self.mirroring_axes), "precision": self.precision}

    def slice_by_slice(self) -> Self:
        """The same members with the least memory: one slice at a time, and as slow."""
        return replace(self, slices_per_batch=1)

    def _take(self, member: Mapping[str, Tensor]) -> None:
        for name, parameter in self._network.named_parameters():
            parameter.data.copy_(member[name])

    def _mirrored(self, batch: Tensor) -> Tensor:
        """Mean over the mirror images, in nnU-Net's order."""
        axes = [axis + 2 for axis in self.mirroring_axes]
        combinations = [
            chosen
            for count in range(1, len(axes) + 1)
            for chosen in itertools.combinations(axes, count)
        ]
        logits = self._forward(batch)
        for chosen in combinations:
            logits += torch.flip(self._forward(torch.flip(batch, chosen)), chosen)
        return logits / (len(combinations) + 1)

    def _forward(self, batch: Tensor) -> Tensor:
        reduced = self.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced):
            logits: Tensor = self._network(batch)
        return logits.float()

    def _refuse_not_finite(self, logits: Tensor) -> None:
        if not torch.isfinite(logits).all():
            raise NetworkOutputError(
                f"{int((~torch.isfinite(logits)).sum())} logits of {logits.numel()} are not"
                f" finite (pack {self.pack.name} {self.pack.version})"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble(Members):
    """The members of a canvas pack: each slice goes through the network whole."""

    @staticmethod
    def check_feeding(pack: ModelPack) -> None:
        """Whether the pack has a canvas.

        Raises:
            ModelPackUnsupportedError: It has none.
        """
        pack.manifest.canvas_spec()

    @property
    def canvas(self) -> CanvasSpec:
        """What the network is fed."""
        return self.pack.manifest.canvas_spec()

    def segment(self, images: Array) -> Segmentation:
        """Probability of a lesion, and how far the members disagree about it.

        Args:
            images: (slices, rows, columns) of the pack's canvas, from `preprocess.prepare`.

        Raises:
            NetworkOutputError: A logit is not finite.
        """
        with_brain = self._slices_with_brain(images)
        stack = torch.from_numpy(np.ascontiguousarray(images[with_brain]))
        shape = tuple(stack.shape)
        logit = torch.zeros(shape, dtype=torch.float32)
        # float64: the variance below is a difference of two nearly equal sums.
        total, squares = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        for member in self._logits_of_members(stack):
            foreground = member[1] - member[0]
            logit += foreground
            probability = torch.sigmoid(foreground).double()
            total += probability
            squares += probability**2
        members = len(self._members)
        # Of two classes, softmax(foreground) = sigmoid(foreground - background).
        mean = torch.sigmoid(logit / members)
        spread = (squares / members - (total / members) ** 2).clamp(min=0).sqrt()
        return Segmentation(
            probability=_spread_out(mean.numpy(), with_brain, images.shape),
            disagreement=_spread_out(spread.float().numpy(), with_brain, images.shape),
        )

    def logits(self, images: Array) -> Array:
        """Mean of the members' logits, (classes, slices, rows, columns), of *every* slice.

        What `nnUNetPredictor.predict_logits_from_preprocessed_data` returns, slices without
        brain included.
        """
        self._slices_with_brain(images)
        stack = torch.from_numpy(np.ascontiguousarray(images))
        total = torch.zeros((2, *stack.shape), dtype=torch.float32)
        for member in self._logits_of_members(stack):
            total += member
        mean: Array = (total / len(self._members)).numpy()
        return mean

    def _slices_with_brain(self, images: Array) -> npt.NDArray[np.bool_]:
        canvas = (self.canvas.rows, self.canvas.columns)
        if images.ndim != 3 or images.shape[1:] != canvas or images.dtype != np.float32:
            raise ValueError(f"{images.dtype} images of {images.shape}, canvas of {canvas}")
        with_brain: npt.NDArray[np.bool_] = np.asarray(images.any(axis=(1, 2)))
        return with_brain

    def _logits_of_members(self, stack: Tensor) -> Iterator[Tensor]:
        """(classes, slices, rows, columns) on the CPU, for one member after the other."""
        for weights in self._members:
            with running(self.threads):
                self._take(weights)
                logits = torch.empty((2, *stack.shape), dtype=torch.float32)
                step = self.slices_per_batch or SLICES_PER_BATCH.get(self.device.type, 1)
                for first in range(0, len(stack), step):
                    batch = stack[first : first + step, None].to(self.device)
                    logits[:, first : first + len(batch)] = self._mirrored(batch).transpose(0, 1)
                self._refuse_not_finite(logits)
            yield logits


def load_ensemble(
    pack: ModelPack,
    *,
    device: str = "auto",
    mirroring: Mirroring = "auto",
    threads: int = 0,
    precision: Precision = "fp32",
) -> AnyEnsemble:
    """The ensemble of any pack, warm; see `Members.load` for the arguments and errors."""
    kind: type[Ensemble | VolumeEnsemble] = Ensemble
    if pack.manifest.canvas is None:
        # nnU-Net's preprocessing brings pandas and more, which canvas packs need not wait for.
        from pipeline.nnunet_volume import VolumeEnsemble

        kind = VolumeEnsemble
    return kind.load(pack, device=device, mirroring=mirroring, threads=threads, precision=precision)


def build_network(pack: ModelPack) -> nn.Module:
    """The network that `plans.json` describes, without weights and without deep supervision.

    nnU-Net's own constructor, but not its search for trainer classes: that imports torchvision,
    whose common build does not work beside a CPU build of torch (`reference/speed.md`, 1).

    Raises:
        ModelPackUnsupportedError: Not one image channel and two classes, other input than
            `preprocess` makes, or classes from elsewhere than nnU-Net and torch.
    """
    configuration = _configuration(pack)
    network = network_of(configuration)
    if buffers := [name for name, _ in network.named_buffers()]:
        raise ModelPackUnsupportedError(f"the network keeps running statistics: {buffers[:3]}")
    return network


def network_of(configuration: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration, of one channel and two classes, not yet looked at closely.

    Raises:
        NetworkNotSupportedError: Classes from elsewhere than nnU-Net and torch, or absurd sizes.
        ModelPackError: No network is described, or none can be built so.
    """
    check_network(configuration, len(configuration["patch_size"]))
    architecture = configuration["architecture"]
    try:
        network: nn.Module = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            input_channels=1,
            output_channels=2,
            allow_init=False,
            deep_supervision=False,
        )
    except (
        ImportError, TypeError, ValueError, AssertionError, RuntimeError, AttributeError,
        ArithmeticError, LookupError,
    ) as error:  # fmt: skip
        raise ModelPackError(f"{PLANS}: the network cannot be built: {error}") from error
    return network


def _configuration(pack: ModelPack) -> Mapping[str, Any]:
    """The configuration of `plans.json`, once it and `dataset.json` agree with the manifest."""
    manifest, plans = pack.manifest, pack.read_json(PLANS)
    check_dataset(pack.read_json(DATASET))
    if manifest.canvas is None:
        return check_configuration(plans, manifest.configuration)
    try:
        configuration: dict[str, Any] = dict(plans["configurations"][manifest.configuration])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelPackError(f"{PLANS} is not nnU-Net's: {error!r}") from error
    if configuration.get("normalization_schemes") != ["NoNormalization"]:
        raise ModelPackUnsupportedError(
            "nnU-Net would normalise once more: a canvas pack is trained with `noNorm`"
        )
    canvas = manifest.canvas
    if configuration.get("patch_size") != [canvas.rows, canvas.columns]:
        raise ModelPackUnsupportedError(
            f"patch {configuration.get('patch_size')} is not the canvas"
            f" {canvas.rows} x {canvas.columns}: a slice goes through the network whole"
        )
    return configuration


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name}: {torch.cuda.device_count()} CUDA devices are visible")
    return device


def _member_weights(pack: ModelPack, fold: int, network: nn.Module) -> dict[str, Tensor]:
    file = weights_path(fold)
    try:
        weights = load(pack.read(file))
    except SafetensorError as error:
        raise ModelPackError(f"{file} is no safetensors file: {error}") from error
    # A module that is reached by several paths (nnU-Net's decoder holds its encoder) has many
    # names in `state_dict()`, one in `named_parameters()`.
    wanted = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != wanted:
        differing = sorted(dict(found.items() ^ wanted.items()))
        raise ModelPackError(f"{file} does not fit the network of {PLANS}: {differing[:3]}")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ModelPackError(f"{file}: {name} holds NaN or infinity")
    return weights


@contextmanager
def running(threads: int) -> Iterator[None]:
    """For the network: threads as asked, no gradients, and the same algorithms in every run."""
    before = torch.get_num_threads()
    if threads > 0:
        torch.set_num_threads(threads)
    try:
        # TF32 and cuDNN's timing of algorithms would each change the mask between two runs.
        with (
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
            torch.inference_mode(),
        ):
            yield
    finally:
        torch.set_num_threads(before)


def _spread_out(values: Array, with_brain: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, np.float32)
    out[with_brain] = values
    return out


def trouble_of_device(error: BaseException) -> Literal["memory", "gone", ""]:
    """Does an error mean that the device is out of memory, or that it does not work any more?

    After the second nothing in this process will work on it again: CUDA keeps its first error.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "memory"
    if isinstance(error, torch.AcceleratorError):
        return "gone"
    # Libraries below torch (cuDNN, cuBLAS) say it in a plain RuntimeError.
    said = str(error)
    names = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "NVRTC")
    return "gone" if isinstance(error, RuntimeError) and said.startswith(names) else ""


def give_memory_back() -> None:
    """Hand the device what torch keeps for later: another process, or another size, may need it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
