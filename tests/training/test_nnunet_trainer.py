"""One fold: the same seed, the same weights, through every stop; checkpoints anybody may read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from tests.training.tiny_dataset import TinyDataset, put_dataset, recipe
from training.augment import IGNORE
from training.checkpoints import BEST, FINAL, LATEST, CheckpointDamagedError, read_checkpoint
from training.dataset import RunDiffersError
from training.fold_log import EpochLine, plateau_since, read_log, read_progress, smoothed
from training.nnunet_trainer import (
    FoldTrainer,
    LesionAgainstRest,
    LossNotFiniteError,
    TrainingMemoryError,
)
from training.recipe import Recipe, RecipeError
from training.whole_files import DiskFullError

AVERAGED = recipe(
    optimiser="adamw",
    learning_rate=2e-3,
    schedule="cosine",
    warm_up_iterations=3,
    average_decay=0.9,
    scale_weights=[1.0, 0.5],
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    return put_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


def trainer(dataset: TinyDataset, run: Path, one: Recipe | None = None) -> FoldTrainer:
    return FoldTrainer.of(dataset if one is None else replace(dataset, recipe=one), run, 0)


def stopped_after(dataset: TinyDataset, run: Path, batches: int, one: Recipe | None = None) -> None:
    """Train, and be stopped in the middle of an epoch."""
    halted = trainer(dataset, run, one)
    learn, count = halted.learn_from, 0

    def learn_from(*arguments: Any) -> float:  # noqa: ANN401
        nonlocal count
        if count == batches:
            raise KeyboardInterrupt
        count += 1
        return learn(*arguments)

    halted.learn_from = learn_from  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        halted.train()


@pytest.mark.parametrize("one", [recipe(), AVERAGED], ids=["sgd-poly", "adamw-cosine-average"])
def test_a_stopped_fold_ends_with_the_weights_of_one_never_stopped(
    cases: TinyDataset, tmp_path: Path, one: Recipe
) -> None:
    whole = trainer(cases, tmp_path / "whole", one).train()
    # 4 batches an epoch: in the middle of the second one.
    stopped_after(cases, tmp_path / "stopped", 6, one)
    assert [line.epoch for line in read_log(tmp_path / "stopped" / "fold_0")] == [0]
    assert trainer(cases, tmp_path / "stopped", one).train() == whole
    lines = [read_log(tmp_path / name / "fold_0") for name in ("whole", "stopped")]
    assert [line.epoch for line in lines[1]] == [0, 1, 2]
    assert [line.val_loss for line in lines[0]] == [line.val_loss for line in lines[1]]


def test_another_seed_gives_other_weights(cases: TinyDataset, tmp_path: Path) -> None:
    once = trainer(cases, tmp_path / "a").train()
    other = FoldTrainer.of(replace(cases, seed=8), tmp_path / "b", 0).train()
    assert once != other


def test_a_finished_fold_is_not_trained_again(cases: TinyDataset, tmp_path: Path) -> None:
    digest = trainer(cases, tmp_path).train()
    before = (tmp_path / "fold_0" / FINAL).stat().st_mtime_ns
    assert trainer(cases, tmp_path).train() == digest
    assert (tmp_path / "fold_0" / FINAL).stat().st_mtime_ns == before
    assert read_progress(tmp_path / "fold_0", 0).weights_digest == digest


def test_a_checkpoint_of_another_seed_or_recipe_is_refused(
    cases: TinyDataset, tmp_path: Path
) -> None:
    stopped_after(cases, tmp_path, 6)
    with pytest.raises(RunDiffersError, match="another seed"):
        FoldTrainer.of(replace(cases, seed=8), tmp_path, 0).train()
    with pytest.raises(RunDiffersError, match="another recipe"):
        trainer(cases, tmp_path, recipe(epochs=4)).train()
    with pytest.raises(RunDiffersError, match="another dataset"):
        FoldTrainer.of(replace(cases, digest="1" * 64), tmp_path, 0).train()


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_holds_tensors_and_plain_values_and_nothing_of_the_machine(
    cases: TinyDataset, tmp_path: Path
) -> None:
    trainer(cases, tmp_path, AVERAGED).train()
    content = torch.load(tmp_path / "fold_0" / FINAL, weights_only=True)
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["inference_allowed_mirroring_axes"] == (1,)
    assert content["current_epoch"] == 3
    assert sorted(path.name for path in (tmp_path / "fold_0").iterdir()) == [
        BEST,
        FINAL,
        "log.csv",
        "progress.json",
    ]
    told = b"".join(path.read_bytes() for path in (tmp_path / "fold_0").iterdir())
    for secret in (str(tmp_path), os.fspath(cases.folder), "hostname"):
        assert secret.encode() not in told


def test_nnunets_own_predictor_reads_the_run_and_says_the_same(
    cases: TinyDataset, tmp_path: Path
) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    one = trainer(cases, tmp_path, AVERAGED)
    one.train()
    (tmp_path / "plans.json").write_text(json.dumps(cases.plans))
    (tmp_path / "dataset.json").write_text(json.dumps(cases.dataset_json))
    predictor = nnUNetPredictor(
        use_gaussian=False, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(tmp_path), (0,), FINAL)
    image = torch.rand(1, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    theirs = predictor.predict_logits_from_preprocessed_data(image)
    with one.as_it_will_be():
        one.module.decoder.deep_supervision = False
        ours = one.network(image[0][:, None])
    # nnU-Net adds logits up in half precision.
    assert torch.allclose(theirs.float(), ours.transpose(0, 1), atol=2e-3)


def test_a_damaged_checkpoint_is_said_and_code_in_one_is_not_run(
    cases: TinyDataset, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'run-by-the-pickle'}",)

    path = tmp_path / "fold_0" / LATEST
    path.parent.mkdir()
    torch.save({"network_weights": Evil()}, path)
    with pytest.raises(CheckpointDamagedError, match=r"fold_0/checkpoint_latest\.pth"):
        trainer(cases, tmp_path).train()
    assert not (tmp_path / "run-by-the-pickle").exists()
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(CheckpointDamagedError):
        read_checkpoint(path)


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    cases: TinyDataset, tmp_path: Path
) -> None:
    whole = trainer(cases, tmp_path / "whole").train()
    stopped_after(cases, tmp_path / "full", 6)
    full = tmp_path / "full" / "fold_0" / f".part-{LATEST}"
    full.symlink_to("/dev/full")  # whoever writes there is told that the disk is full
    with pytest.raises(DiskFullError):
        trainer(cases, tmp_path / "full").train()
    assert read_checkpoint(tmp_path / "full" / "fold_0" / LATEST)["current_epoch"] == 1
    assert trainer(cases, tmp_path / "full").train() == whole


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_batch_that_does_not_fit_names_a_smaller_one(
    cases: TinyDataset, tmp_path: Path, kind: str
) -> None:
    one = trainer(cases, tmp_path)

    def greedy(_part: str) -> Any:  # noqa: ANN401
        def draw(_index: int) -> Any:  # noqa: ANN401
            if kind == "gpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return torch.empty(10**16)  # the allocator of the CPU refuses

        return draw

    one.drawn_batches = greedy  # type: ignore[assignment]
    with pytest.raises(TrainingMemoryError, match=r"a batch of 2 .* try --batch-size 1 "):
        one.train()


def test_a_loss_that_is_no_number_stops_the_fold(tmp_path: Path) -> None:
    dataset = put_dataset(tmp_path / "dataset", brightness=math.nan)
    with pytest.raises(LossNotFiniteError, match="fold 0: the loss is nan in epoch 0"):
        trainer(dataset, tmp_path / "run").train()
    assert not (tmp_path / "run" / "fold_0" / LATEST).exists()


# --- losses, rates, curves ------------------------------------------------------------------------


def drawn_logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 2, 5, 7, generator=generator, requires_grad=True)
    target = (torch.rand(2, 1, 5, 7, generator=generator) < 0.3).to(torch.uint8)
    target[0, 0, :2, :3] = IGNORE
    return logits, target


def losses(ignore: int | None) -> Iterator[torch.nn.Module]:
    dice = {"batch_dice": True, "smooth": 1e-5, "ddp": False}
    yield DC_and_CE_loss(
        {**dice, "do_bg": False},
        {},
        ignore_label=ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    yield LesionAgainstRest(dice, 1.0, ignore)


def test_of_two_classes_binary_cross_entropy_is_nnunets_cross_entropy() -> None:
    values, gradients = [], []
    for loss in losses(IGNORE):
        logits, target = drawn_logits()
        value = loss(logits, target)
        value.backward()
        values.append(float(value.detach()))
        gradients.append(logits.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


def test_what_is_not_known_moves_no_weight() -> None:
    for loss in losses(IGNORE):
        logits, target = drawn_logits()
        loss(logits, target).backward()
        assert logits.grad is not None
        assert not logits.grad[0, :, :2, :3].any()
        assert logits.grad[1, :, :2, :3].any()


def test_the_polynomial_rate_is_nnunets(cases: TinyDataset, tmp_path: Path) -> None:
    one = trainer(cases, tmp_path, recipe(epochs=10))
    theirs = PolyLRScheduler(torch.optim.SGD([torch.zeros(1)], 0.01), 0.01, 10)
    for epoch in range(10):
        theirs.step(epoch)
        assert one.learning_rate(epoch, 3) == pytest.approx(theirs.get_last_lr()[0])


def test_the_cosine_rate_warms_up_and_ends_near_zero(cases: TinyDataset, tmp_path: Path) -> None:
    one = trainer(cases, tmp_path, AVERAGED)  # 12 iterations, 3 of them to warm up
    rates = [one.learning_rate(epoch, iteration) for epoch in range(3) for iteration in range(4)]
    assert rates[:4] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3, 2e-3])
    assert rates[-1] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 8 / 9)))


def test_scale_weights_are_nnunets_unless_given(cases: TinyDataset, tmp_path: Path) -> None:
    # Two outputs: full scale, and half of it, which nnU-Net leaves out as its coarsest.
    assert trainer(cases, tmp_path).scale_weights() == [1.0, 0.0]
    assert trainer(cases, tmp_path, AVERAGED).scale_weights() == [1.0, 0.5]
    with pytest.raises(RecipeError, match="3 scale_weights; the network has 2 outputs"):
        trainer(cases, tmp_path, recipe(scale_weights=[1, 1, 1])).scale_weights()


def test_the_averaged_weights_are_what_is_kept_and_judged(
    cases: TinyDataset, tmp_path: Path
) -> None:
    one = trainer(cases, tmp_path, AVERAGED)
    one.train()
    stored = read_checkpoint(tmp_path / "fold_0" / FINAL)
    name = "encoder.stages.0.0.convs.0.conv.weight"
    last = dict(one.module.named_parameters())[name].detach().clone()
    assert torch.equal(stored["network_weights"][name], one.average[name])
    assert torch.equal(stored["flairnode"]["last_weights"][name], last)
    assert not torch.equal(one.average[name], last)
    with one.as_it_will_be():
        assert torch.equal(dict(one.module.named_parameters())[name], one.average[name])
    assert torch.equal(dict(one.module.named_parameters())[name], last)


def test_the_log_has_a_line_per_epoch(cases: TinyDataset, tmp_path: Path) -> None:
    trainer(cases, tmp_path).train()
    lines = (tmp_path / "fold_0" / "log.csv").read_text().splitlines()
    assert lines[0] == (
        "epoch,seconds,learning_rate,train_loss,train_loss_augmented,val_loss,val_dice"
    )
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2"]
    assert all(math.isfinite(float(value)) for line in lines[1:] for value in line.split(","))


def epochs(*dice: float) -> list[EpochLine]:
    return [EpochLine(n, 1.0, 0.1, 1.0, 1.0, 1.0, one) for n, one in enumerate(dice)]


def test_the_validation_dice_is_smoothed_as_nnunet_does() -> None:
    assert smoothed(epochs(0.5, 0.7, math.nan, 0.2)) == pytest.approx([0.5, 0.52, 0.52, 0.488])


def test_a_plateau_is_the_epoch_since_which_nothing_got_better() -> None:
    lines = epochs(0.2, 0.9, 0.1, 0.1, 0.1)
    assert plateau_since(lines, 3) == 1
    assert plateau_since(lines, 4) is None
    assert plateau_since(epochs(math.nan, math.nan), 1) is None
