"""One fold, trained as a recipe says: nnU-Net's trainer, told what to do by data.

`FoldTrainer` is nnU-Net's `nnUNetTrainer` (2.8.1): its network, its loader, its transforms and its
losses. What it adds is what a site needs to trust a fold: the same seed gives the same weights on a
CPU, a stop at any moment costs at most one epoch and changes nothing, nothing in the run folder
says where it was made, and no environment variable has to be set.

It is imported directly. nnU-Net's own search for trainers imports torchvision, whose common build
does not work beside a CPU build of torch (`reference/speed.md`, 1).

Departures from `nnUNetTrainer`, beside those that a recipe asks for:

- batches are seeded one by one and come in order (`training.seeded_batches`);
- the first weights follow from seed and fold;
- a checkpoint every epoch, not every 50th, written whole;
- validation cases are segmented with the pack, by the node's own pipeline (`flairnode train pack`),
  not by `perform_actual_validation`;
- torch.compile only when `nnUNet_compile` asks for it: what it gains was not measured here.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

import numpy as np
import structlog
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from dicom.errors import Outcome, StudyError
from training.augment import IGNORE
from training.checkpoints import (
    BEST,
    FINAL,
    FORMAT,
    LATEST,
    read_checkpoint,
    weights_digest,
    write_checkpoint,
)
from training.dataset import RunDiffersError
from training.fold_log import (
    Clock,
    EpochLine,
    FoldProgress,
    best_epoch,
    line_of,
    plateau_since,
    smoothed,
    write_log,
    write_progress,
)
from training.recipe import Recipe, RecipeError
from training.seeded_batches import (
    Batch,
    DrawnBatches,
    NNUNetBatches,
    Part,
    SiteScales,
    in_turn,
    seed_of,
    seeded,
)

if TYPE_CHECKING:
    from training.dataset import Dataset

PLAIN_ONE_IN = 5
"""Batches of training cases without augmentation per validation batch: enough for a curve."""
STOCK_TRAINER = "nnUNetTrainer"
"""Named in checkpoints: the network is built as this class builds it, and nnU-Net finds it."""

log = structlog.get_logger(__name__)


class TrainingDataset(Protocol):
    """What a fold needs to know of `training.dataset.Dataset`."""

    @property
    def folder(self) -> Path:
        """nnU-Net's preprocessed dataset."""

    @property
    def plans(self) -> Mapping[str, Any]:
        """nnU-Net's plans.json."""

    @property
    def dataset_json(self) -> Mapping[str, Any]:
        """nnU-Net's dataset.json."""

    @property
    def splits(self) -> Sequence[Mapping[str, Sequence[str]]]:
        """nnU-Net's: `train` and `val` of each fold."""

    @property
    def recipe(self) -> Recipe:
        """How to train."""

    @property
    def seed(self) -> int:
        """Of the run."""

    @property
    def digest(self) -> str:
        """Of everything the dataset holds."""

    def plain_train(self, fold: int) -> list[str]:
        """Training images of a fold as they were acquired."""


class LossNotFiniteError(StudyError):
    """The loss is NaN or infinite: the weights would be ruined."""

    reason: ClassVar[str] = "loss-not-finite"
    outcome: ClassVar[Outcome] = Outcome.FAILED


class TrainingMemoryError(StudyError):
    """The batch does not fit in memory."""

    reason: ClassVar[str] = "out-of-memory"
    outcome: ClassVar[Outcome] = Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how a fold is computed. None of it is part of the recipe."""

    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    threads: int = 1
    """On a CPU. With one the weights are the same on every machine of a kind."""
    workers: int = 0
    """Processes that draw batches ahead; the batches are the same with any number."""


class FoldTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnU-Net has no types
    """One fold of a run."""

    network: Any
    """An nn.Module, or what torch.compile makes of one."""
    dataset: TrainingDataset
    recipe: Recipe
    run: Path
    run_fold: Path
    compute: Compute

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device,
    ) -> None:
        """As nnU-Net, which asks for exactly these; `of` is what to call."""
        with _out_of_the_way():
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.device = device  # nnU-Net always takes the first GPU it sees
        self.my_init_kwargs["device"] = device.type
        self.average: dict[str, Tensor] = {}
        self.lines: list[EpochLine] = []
        self.clock = Clock()

    @classmethod
    def of(
        cls, dataset: TrainingDataset, run: Path, fold: int, compute: Compute | None = None
    ) -> Self:
        """Prepare a fold; nothing is read or written before `train`.

        Args:
            dataset: Of the run.
            run: Its folder; the fold is kept in `fold_K` below it.
            fold: K.
            compute: Where; None: one thread of the CPU.
        """
        compute = compute or Compute()
        plans = {**deepcopy(dict(dataset.plans)), "continue_training": False}
        one = cls(
            plans,
            dataset.recipe.configuration,
            fold,
            deepcopy(dict(dataset.dataset_json)),
            torch.device(compute.device),
        )
        one.dataset, one.recipe, one.compute = dataset, dataset.recipe, compute
        one.run, one.run_fold = run, run / f"fold_{fold}"
        one.preprocessed_dataset_folder_base = str(dataset.folder)
        one.preprocessed_dataset_folder = str(
            dataset.folder / one.configuration_manager.data_identifier
        )
        one.output_folder_base, one.output_folder = str(run), str(one.run_fold)
        training = dataset.recipe.training
        one.batch_size = one.configuration_manager.batch_size
        one.num_epochs = training.epochs
        one.num_iterations_per_epoch = training.iterations_per_epoch
        one.num_val_iterations_per_epoch = training.validation_iterations
        one.initial_lr, one.weight_decay = training.learning_rate, training.weight_decay
        one.oversample_foreground_percent = training.foreground_share
        return one

    # --- what nnU-Net would do on its own and must not -------------------------------------------

    def print_to_log_file(self, *words: object, **_: object) -> None:
        """Nothing: what is worth telling stands in `log.csv` and `progress.json`."""

    def plot_network_architecture(self) -> None:
        """Nothing: it needs a package that no longer works, and the plans say it."""

    def _save_debug_information(self) -> None:
        """Nothing: it would write the host's name and paths into the run."""

    def _do_i_compile(self) -> bool:
        wanted = os.environ.get("nnUNet_compile", "").lower() in {"1", "t", "true"}  # noqa: SIM112  # nnU-Net's own name
        return wanted and self.device.type == "cuda"

    # --- the network, what moves it, and what it is judged by ------------------------------------

    @property
    def module(self) -> nn.Module:
        """The network without torch.compile's wrapping."""
        return cast("nn.Module", getattr(self.network, "_orig_mod", self.network))

    def initialize(self) -> None:
        """Build network, optimiser and loss. The first weights follow from seed and fold."""
        # Not the base class's: it looks for nnU-Net's cases, and the recipe `site-2d` has stacks.
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        with seeded(seed_of(self.dataset.seed, self.fold, "weights")):
            network = self.build_network_architecture(
                self.plans_manager,
                self.configuration_manager,
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            ).to(self.device)
        self.network = torch.compile(network) if self._do_i_compile() else network
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.loss = self._build_loss()
        self.was_initialized = True
        if self.recipe.training.average_decay:
            self.average = {
                name: value.detach().clone() for name, value in self.module.named_parameters()
            }

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """The recipe's optimiser. Its learning rate is set before every iteration."""
        training = self.recipe.training
        if training.optimiser == "adamw":
            return (
                torch.optim.AdamW(
                    self.network.parameters(),
                    lr=training.learning_rate,
                    weight_decay=training.weight_decay,
                ),
                None,
            )
        return (
            torch.optim.SGD(
                self.network.parameters(),
                training.learning_rate,
                weight_decay=training.weight_decay,
                momentum=0.99,
                nesterov=True,
            ),
            None,
        )

    def learning_rate(self, epoch: int, iteration: int) -> float:
        """Of an iteration: a function of where it is, so that a stop changes nothing."""
        training = self.recipe.training
        if training.schedule == "poly":
            # nnunetv2 2.8.1, lr_scheduler/polylr.py.
            return float(training.learning_rate * (1.0 - epoch / training.epochs) ** 0.9)
        done = epoch * training.iterations_per_epoch + iteration
        warm = training.warm_up_iterations
        if done < warm:
            return training.learning_rate * (done + 1) / warm
        total = training.epochs * training.iterations_per_epoch
        along = (done - warm) / max(1, total - warm)
        return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * along))

    @property
    def ignore_label(self) -> int | None:
        """What stands in a target where nothing is known."""
        if self.recipe.augmentation == "site":
            return IGNORE
        label: int | None = self.label_manager.ignore_label
        return label

    def _build_loss(self) -> nn.Module:
        dice = {"batch_dice": self.configuration_manager.batch_dice, "smooth": 1e-5, "ddp": False}
        dice_weight = self.recipe.training.dice_weight
        if self.recipe.training.loss == "dice-bce":
            loss: nn.Module = LesionAgainstRest(dice, dice_weight, self.ignore_label)
        else:
            loss = DC_and_CE_loss(
                {**dice, "do_bg": False},
                {},
                weight_dice=dice_weight,
                ignore_label=self.ignore_label,
                dice_class=MemoryEfficientSoftDiceLoss,
            )
        wrapped: nn.Module = DeepSupervisionWrapper(loss, self.scale_weights())
        return wrapped

    def scale_weights(self) -> list[float]:
        """How much each output of deep supervision counts, full scale first."""
        outputs = len(self._get_deep_supervision_scales())
        given = self.recipe.training.scale_weights
        if given is not None:
            if len(given) > outputs or not any(given):
                raise RecipeError(f"{len(given)} scale_weights; the network has {outputs} outputs")
            return [*given, *[0.0] * (outputs - len(given))]
        # nnunetv2 2.8.1, nnUNetTrainer._build_loss: halved each time, the coarsest left out.
        weights = [0.5**scale for scale in range(outputs)]
        if outputs > 1:
            weights[-1] = 0.0
        return [weight / sum(weights) for weight in weights]

    # --- batches ---------------------------------------------------------------------------------

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: ANN401, N802
        """As nnU-Net; mirrored, in training and in inference, along the recipe's axes alone."""
        rotation, flat, initial, _ = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        axes = self.recipe.axes_mirrored
        self.inference_allowed_mirroring_axes = axes
        return rotation, flat, initial, axes

    def drawn_batches(self, part: Part) -> DrawnBatches:
        """Batch `index` of a part."""
        rotation, flat, initial, axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.recipe.augmentation == "site":
            from training.site_batches import SiteBatches

            site = SiteBatches(cast("Dataset", self.dataset), int(self.fold), part)
            return SiteScales(site, self._scale_steps())
        scales, labels = self._get_deep_supervision_scales(), self.label_manager
        common = {
            "is_cascaded": False,
            "foreground_labels": labels.foreground_labels,
            "regions": None,
            "ignore_label": labels.ignore_label,
        }
        patch = self.configuration_manager.patch_size
        if part == "train":
            transforms = self.get_training_transforms(
                patch,
                rotation,
                scales,
                axes,
                flat,
                use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
                **common,
            )
        else:
            transforms = self.get_validation_transforms(scales, **common)
            initial = patch
        dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        lists = self.dataset.splits[int(self.fold)]
        plain = part == "train-plain"
        cases = self.dataset.plain_train(int(self.fold)) if plain else lists[part]
        loader = nnUNetDataLoader(
            dataset_class(self.preprocessed_dataset_folder, list(cases)),
            self.batch_size,
            initial,
            patch,
            labels,
            oversample_foreground_percent=self.oversample_foreground_percent,
            transforms=transforms,
        )
        return NNUNetBatches(loader, (self.dataset.seed, self.fold, part))

    def _scale_steps(self) -> list[tuple[int, int]]:
        pools = np.cumprod(np.vstack(self.configuration_manager.pool_op_kernel_sizes), axis=0)[:-1]
        return [(int(row), int(column)) for row, column in pools]

    # --- steps -----------------------------------------------------------------------------------

    def _forward(self, batch: Batch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(loss, outputs, targets) of a batch."""
        images, scales = batch
        moving = self.device.type == "cuda"
        data = torch.from_numpy(images).to(self.device, non_blocking=moving)
        targets = [torch.from_numpy(one).to(self.device, non_blocking=moving) for one in scales]
        with self._reduced_precision():
            outputs = self.network(data)
            if self.device.type == "cpu":
                outputs = [one.float() for one in outputs]
            return self.loss(outputs, targets), outputs, targets

    def _reduced_precision(self) -> contextlib.AbstractContextManager[object]:
        if self.device.type == "cuda":
            return torch.autocast("cuda", enabled=True)
        return torch.autocast(
            "cpu", torch.bfloat16, enabled=self.recipe.training.precision == "bf16"
        )

    def learn_from(self, batch: Batch, epoch: int, iteration: int) -> float:
        """Move the weights by one batch; its loss."""
        training = self.recipe.training
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch, iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss, _, _ = self._forward(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise LossNotFiniteError(
                f"fold {self.fold}: the loss is {value} in epoch {epoch}. The last epoch's "
                "checkpoint is sound; a smaller learning_rate may help, in a run of its own"
            )
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), training.gradient_norm)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation
            nn.utils.clip_grad_norm_(self.network.parameters(), training.gradient_norm)
            self.optimizer.step()
        if self.average:
            self._move_average(epoch * training.iterations_per_epoch + iteration)
        return value

    @torch.no_grad()
    def _move_average(self, iteration: int) -> None:
        # Faster at first, so that the random start is forgotten.
        decay = min(self.recipe.training.average_decay, (1.0 + iteration) / (10.0 + iteration))
        for name, value in self.module.named_parameters():
            self.average[name].lerp_(value, 1.0 - decay)

    @contextlib.contextmanager
    def as_it_will_be(self) -> Iterator[None]:
        """The network with the averaged weights, if the recipe has an average; in eval mode."""
        before = {}
        with torch.no_grad():
            if self.average:
                for name, value in self.module.named_parameters():
                    before[name] = value.detach().clone()
                    value.copy_(self.average[name])
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train()
            with torch.no_grad():
                for name, value in self.module.named_parameters():
                    if name in before:
                        value.copy_(before[name])

    def judged_by(self, batch: Batch) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
        """(loss, [true positive, false positive, false negative] pixels of lesion) of a batch."""
        loss, outputs, targets = self._forward(batch)
        found, target = outputs[0].argmax(1), targets[0][:, 0]
        known = (
            torch.ones_like(target, dtype=torch.bool)
            if self.ignore_label is None
            else target != self.ignore_label
        )
        marked, lesion = (found == 1) & known, (target == 1) & known
        counts = [
            torch.count_nonzero(one).item()
            for one in (marked & lesion, marked & ~lesion, lesion & ~marked)
        ]
        return float(loss), np.array(counts, np.float64)

    # --- the whole fold --------------------------------------------------------------------------

    def train(self, report: Callable[[FoldProgress], None] | None = None) -> str:
        """Train to the last epoch, from the latest checkpoint if there is one.

        Args:
            report: Told where it is every few seconds.

        Returns:
            Digest of the weights that the fold is.

        Raises:
            RunDiffersError: The checkpoint is of another recipe, dataset or seed.
            TrainingMemoryError: A batch does not fit; the message names a smaller one.
            LossNotFiniteError: The loss left the numbers.
            DiskFullError: A checkpoint could not be written; the one before is whole.
        """
        self.run_fold.mkdir(parents=True, exist_ok=True)
        try:
            return self._train(report or (lambda _: None))
        except torch.OutOfMemoryError as error:
            raise self._too_large() from error
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error) and "out of memory" not in str(error):
                raise
            raise self._too_large() from error
        except MemoryError as error:
            raise self._too_large() from error

    def _too_large(self) -> TrainingMemoryError:
        size = self.batch_size
        advice = (
            f"try --batch-size {max(1, size // 2)} (it becomes part of the recipe, so give another "
            "--output)"
            if size > 1
            else "use a device with more memory, or a recipe with a smaller patch"
        )
        return TrainingMemoryError(
            f"a batch of {size} does not fit in the memory of {self.device}: {advice}"
        )

    def _train(self, report: Callable[[FoldProgress], None]) -> str:
        if (self.run_fold / FINAL).is_file():
            content = read_checkpoint(self.run_fold / FINAL)
            self._refuse_another(content, FINAL)
            self.current_epoch = int(content["current_epoch"])
            self.lines = [line_of(row) for row in content["flairnode"]["log"]]
            return self._tell_done(str(content["flairnode"]["weights_digest"]), report)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            # As nnU-Net: faster, and one more reason why a GPU does not repeat to the last bit.
            torch.backends.cudnn.benchmark = True
        else:
            torch.set_num_threads(self.compute.threads)
        with contextlib.redirect_stdout(io.StringIO()):
            self.initialize()
        self.set_deep_supervision_enabled(enabled=True)
        if (self.run_fold / LATEST).is_file():
            self._go_on_from(read_checkpoint(self.run_fold / LATEST, self.device))
        write_log(self.run_fold, self.lines)

        training, first = self.recipe.training, self.current_epoch
        plain = max(1, training.validation_iterations // PLAIN_ONE_IN)
        streams = {
            "train": self._stream("train", first, training.iterations_per_epoch),
            "val": self._stream("val", first, training.validation_iterations),
            "train-plain": self._stream("train-plain", first, plain),
        }
        self.network.train()
        for epoch in range(first, training.epochs):
            # Of dropout, where a network has it.
            torch.manual_seed(seed_of(self.dataset.seed, self.fold, "epoch", epoch) >> 1)
            line = self._epoch(epoch, streams, plain, report)
            self.lines.append(line)
            self.current_epoch = epoch + 1
            self._keep()
            report(self._progress("training", 0))
        digest = self._finish()
        return self._tell_done(digest, report)

    def _tell_done(self, digest: str, report: Callable[[FoldProgress], None]) -> str:
        last = replace(self._progress("done", 0), weights_digest=digest)
        write_progress(self.run_fold, last)
        report(last)
        return digest

    def _stream(self, part: Part, first: int, per_epoch: int) -> Iterator[Batch]:
        indices = range(first * per_epoch, self.recipe.training.epochs * per_epoch)
        # One process is enough for the small parts.
        workers = self.compute.workers if part == "train" else min(1, self.compute.workers)
        return in_turn(self.drawn_batches(part), indices, workers)

    def _epoch(
        self,
        epoch: int,
        streams: Mapping[str, Iterator[Batch]],
        plain: int,
        report: Callable[[FoldProgress], None],
    ) -> EpochLine:
        training, begun = self.recipe.training, time.monotonic()
        losses = []
        for iteration in range(training.iterations_per_epoch):
            losses.append(self.learn_from(self._next(streams["train"]), epoch, iteration))
            self._tell(iteration + 1, report)
        counts, val_losses = np.zeros(3), []
        with self.as_it_will_be():
            for _ in range(training.validation_iterations):
                loss, pixels = self.judged_by(self._next(streams["val"]))
                val_losses.append(loss)
                counts += pixels
                self._tell(training.iterations_per_epoch, report)
            plain_losses = [
                self.judged_by(self._next(streams["train-plain"]))[0] for _ in range(plain)
            ]
        hit, false, missed = counts
        return EpochLine(
            epoch=epoch,
            seconds=time.monotonic() - begun,
            learning_rate=self.learning_rate(epoch, training.iterations_per_epoch - 1),
            train_loss=float(np.mean(plain_losses)),
            train_loss_augmented=float(np.mean(losses)),
            val_loss=float(np.mean(val_losses)),
            val_dice=float(2 * hit / (2 * hit + false + missed)) if counts.any() else math.nan,
        )

    def _next(self, stream: Iterator[Batch]) -> Batch:
        begun = time.monotonic()
        batch = next(stream)
        self.clock.waited_s += time.monotonic() - begun
        return batch

    def _tell(self, iteration: int, report: Callable[[FoldProgress], None]) -> None:
        if self.clock.due():
            now = self._progress("training", iteration)
            write_progress(self.run_fold, now)
            report(now)

    def _progress(self, state: Any, iteration: int) -> FoldProgress:  # noqa: ANN401
        training = self.recipe.training
        values, best = smoothed(self.lines), best_epoch(self.lines)
        left = training.epochs - self.current_epoch - iteration / training.iterations_per_epoch
        recent = [line.seconds for line in self.lines[-5:]]
        return FoldProgress(
            fold=int(self.fold),
            state=state,
            epoch=self.current_epoch,
            epochs=training.epochs,
            iteration=iteration,
            iterations=training.iterations_per_epoch,
            seconds_left=left * sum(recent) / len(recent) if recent else None,
            val_dice=values[-1] if values else None,
            best_val_dice=None if best is None else values[best],
            best_epoch=best,
            plateau_since=plateau_since(self.lines, training.plateau_epochs),
            waiting_share=round(self.clock.waiting_share(), 4),
        )

    # --- checkpoints -----------------------------------------------------------------------------

    def _keep(self) -> None:
        """After an epoch: the best, then the latest. A stop in between repeats the epoch."""
        if best_epoch(self.lines) == self.lines[-1].epoch:
            write_checkpoint(self.run_fold / BEST, self._content(moving=False))
        write_checkpoint(self.run_fold / LATEST, self._content(moving=True))
        write_log(self.run_fold, self.lines)
        since = plateau_since(self.lines, self.recipe.training.plateau_epochs)
        if since is not None and self.lines[-1].epoch - since == (
            self.recipe.training.plateau_epochs
        ):
            log.warning("train.plateau", fold=self.fold, since=since)

    def _finish(self) -> str:
        write_checkpoint(self.run_fold / FINAL, self._content(moving=True))
        # As nnU-Net: the final one holds all that the latest did.
        (self.run_fold / LATEST).unlink(missing_ok=True)
        return self.digest()

    def parameters(self) -> dict[str, Tensor]:
        """What the fold is: the averaged weights, or those of the last iteration."""
        return self.average or {
            name: value.detach() for name, value in self.module.named_parameters()
        }

    def digest(self) -> str:
        """Of `parameters`."""
        return weights_digest(self.parameters())

    def _content(self, *, moving: bool) -> dict[str, Any]:
        """A checkpoint in nnU-Net's form. `moving`: with all that is needed to go on from it."""
        values = smoothed(self.lines)
        best = best_epoch(self.lines)
        last = {name: value.detach() for name, value in self.module.named_parameters()}
        return {
            "network_weights": self._state(self.parameters()),
            "optimizer_state": self.optimizer.state_dict() if moving else None,
            "grad_scaler_state": None
            if self.grad_scaler is None or not moving
            else self.grad_scaler.state_dict(),
            "logging": {
                "mean_fg_dice": [line.val_dice for line in self.lines],
                "ema_fg_dice": values,
                "dice_per_class_or_region": [[line.val_dice] for line in self.lines],
                "train_losses": [line.train_loss_augmented for line in self.lines],
                "val_losses": [line.val_loss for line in self.lines],
                "lrs": [line.learning_rate for line in self.lines],
                "epoch_start_timestamps": [0.0 for _ in self.lines],
                "epoch_end_timestamps": [line.seconds for line in self.lines],
            },
            "_best_ema": None if best is None else values[best],
            "current_epoch": self.current_epoch,
            "init_args": self.my_init_kwargs,
            "trainer_name": STOCK_TRAINER,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "flairnode": {
                "format": FORMAT,
                "recipe": self.recipe.digest,
                "dataset": self.dataset.digest,
                "seed": self.dataset.seed,
                "fold": int(self.fold),
                "weights_digest": self.digest(),
                "log": [asdict(line) for line in self.lines],
                "last_weights": last if moving and self.average else None,
            },
        }

    def _state(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `state_dict()`, where nnU-Net's decoder holds its encoder once more."""
        names = {id(value): name for name, value in self.module.named_parameters()}
        return {
            key: parameters[names[id(value)]] if id(value) in names else value.detach()
            for key, value in self.module.state_dict(keep_vars=True).items()
        }

    def _go_on_from(self, content: Mapping[str, Any]) -> None:
        own = content["flairnode"]
        self._refuse_another(content, LATEST)
        self.module.load_state_dict(content["network_weights"])
        with torch.no_grad():
            for name, value in self.module.named_parameters():
                if self.average:
                    self.average[name].copy_(value)
                    value.copy_(own["last_weights"][name])
        self.optimizer.load_state_dict(content["optimizer_state"])
        if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(content["grad_scaler_state"])
        self.current_epoch = int(content["current_epoch"])
        self.lines = [line_of(row) for row in own["log"]]

    def _refuse_another(self, content: Mapping[str, Any], name: str) -> None:
        own = content["flairnode"]
        here = {
            "recipe": self.recipe.digest,
            "dataset": self.dataset.digest,
            "seed": self.dataset.seed,
            "fold": int(self.fold),
        }
        differing = [what for what, value in here.items() if own[what] != value]
        if differing:
            raise RunDiffersError(
                f"fold_{self.fold}/{name} is of another {' and '.join(differing)}: give another "
                "--output for a new run"
            )


class LesionAgainstRest(nn.Module):
    """Dice and binary cross-entropy of a sigmoid: the paper's loss, for a network of two outputs.

    The sigmoid is of lesion minus background, which is what a softmax of two classes is. So this is
    nnU-Net's Dice and cross-entropy in other words: for one class of lesion the two losses are the
    same function (`tests/training/test_nnunet_trainer.py`).
    """

    def __init__(
        self, dice: Mapping[str, Any], dice_weight: float, ignore_label: int | None
    ) -> None:
        """`dice`: arguments of nnU-Net's soft Dice."""
        super().__init__()
        self._ignore = ignore_label
        self._loss = DC_and_BCE_loss(
            {},
            {**dice, "do_bg": True},
            weight_dice=dice_weight,
            use_ignore_label=ignore_label is not None,
            dice_class=MemoryEfficientSoftDiceLoss,
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of logits (batch, 2, ...) and target (batch, 1, ...)."""
        lesion = target == 1
        if self._ignore is not None:
            lesion = torch.cat([lesion, target == self._ignore], dim=1)
        loss: Tensor = self._loss(logits[:, 1:] - logits[:, :1], lesion)
        return loss


@contextlib.contextmanager
def _out_of_the_way() -> Iterator[None]:
    """Let nnU-Net's constructor make its folders where nobody looks, and tell nobody."""
    names = ("nnUNet_results", "nnUNet_preprocessed", "nnUNet_wandb_enabled")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="flairnode-") as scratch:
        os.environ["nnUNet_results"] = os.environ["nnUNet_preprocessed"] = scratch  # noqa: SIM112
        os.environ["nnUNet_wandb_enabled"] = "0"  # noqa: SIM112  # it would tell a server abroad
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
