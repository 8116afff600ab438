"""Seconds per training iteration and peak memory, beside nnU-Net's own trainer on the same batches.

Run: .venv/bin/python tests/benchmarks/bench_training.py [--device cuda] [--iterations 3]

Recipes paper-2d and site-2d, batches of 2 and of 12, each trainer in a process of its own, which is
given the same first weights, and batches that were drawn before the clock starts. One iteration
warms up; the others are counted, by the wall and by the processor (which a crowded machine spoils
less, and which decides). The losses have to agree: both do the same work. What drawing costs is
told apart: seconds per batch on one thread, and the share of the time that our trainer waits when
one more process draws ahead. Goals: not slower than stock, no waiting. The data: the project's
(`../shared/data`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.dataset import Dataset
    from training.nnunet_trainer import FoldTrainer
    from training.seeded_batches import Batch

    Step = Callable[[Batch], float]

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

RECIPES, BATCHES, WHO = ("paper-2d", "site-2d"), (2, 12), ("flairnode", "nnU-Net")
GOAL_RATIO = 1.05  # two runs of one trainer differ by some per cent
GOAL_WAITING = 0.05
DATA = Path(os.environ.get("FLAIRNODE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def main() -> int:
    """Print a table; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=3, help="counted ones (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--work", type=Path, help="keep the data sets here")
    parser.add_argument("--one", nargs=3, metavar=("RUN", "BATCH", "WHO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run, batch, who = arguments.one
        sys.stdout.write(json.dumps(measure(Path(run), int(batch), who, arguments)) + "\n")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        runs = {name: build(work, name) for name in RECIPES}
        return compare({name: runs[name] for name in arguments.recipes}, arguments)


def build(work: Path, recipe: str) -> Path:
    """The data set of a recipe."""
    from tests.training.test_small_run import write_cohort
    from training.cohort import read_cohort
    from training.dataset import build_dataset
    from training.prepare import Rules, prepare
    from training.recipe import load_recipe

    prepared, run = work / "prepared", work / recipe
    if not (prepared / "report.json").exists():
        prepare(read_cohort(write_cohort(DATA.resolve(), work)), prepared, 1, Rules())
    begun = time.perf_counter()
    build_dataset(prepared, run, load_recipe(recipe))
    print(f"data set of {recipe}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return run


def compare(runs: dict[str, Path], arguments: argparse.Namespace) -> int:
    """Measure all, side by side."""
    missed = 0
    print(f"{arguments.device}, {arguments.threads} threads, n = {arguments.iterations} iterations")
    print("recipe     batch  trainer    CPU s  wall s (least, most)  peak MiB  a batch  waiting")
    for recipe, run in runs.items():
        for batch in arguments.batches:
            found = {who: in_a_process(run, batch, who, arguments) for who in WHO}
            for who, one in found.items():
                wall = one["seconds"]
                more = f"{one['draw_s']:7.2f} s  {one['waiting']:7.1%}" if who == WHO[0] else ""
                spread = f"{statistics.median(wall):6.2f} ({min(wall):.2f}, {max(wall):.2f})"
                print(
                    f"{recipe:9}  {batch:5}  {who:9}  {statistics.median(one['cpu']):5.2f}  "
                    f"{spread:20}  {one['peak_mib']:8.0f}{more}",
                    flush=True,
                )
            ours, stock = (found[who] for who in WHO)
            ratio = statistics.median(ours["cpu"]) / statistics.median(stock["cpu"])
            apart = max(
                abs(one - other) for one, other in zip(ours["losses"], stock["losses"], strict=True)
            )
            print(
                f"{'':9}  ours / stock {ratio:.2f} (goal {GOAL_RATIO}); losses differ by "
                f"{apart:.1e} at most",
                flush=True,
            )
            missed |= ratio > GOAL_RATIO or ours["waiting"] > GOAL_WAITING
    return int(missed)


def in_a_process(run: Path, batch: int, who: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One trainer alone, so that the peak is its own."""
    command = [sys.executable, __file__, "--one", str(run), str(batch), who]
    for name in ("device", "iterations", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(run: Path, batch: int, who: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """In the child: draw, warm up, count."""
    import torch

    from training.dataset import open_dataset
    from training.nnunet_trainer import Compute, FoldTrainer
    from training.seeded_batches import in_turn

    torch.set_num_threads(arguments.threads)
    dataset = open_dataset(run)
    plans = deepcopy(dict(dataset.plans))
    plans["configurations"]["2d"]["batch_size"] = batch
    training = dataset.recipe.training.model_copy(update={"batch_size": batch})
    recipe = dataset.recipe.model_copy(update={"training": training})
    dataset = replace(dataset, plans=plans, recipe=recipe)
    ours = FoldTrainer.of(dataset, run, 0, Compute(arguments.device, arguments.threads))
    draw = ours.drawn_batches("train")
    begun = time.perf_counter()
    drawn = [draw(index) for index in range(arguments.iterations + 1)]
    draw_s = (time.perf_counter() - begun) / len(drawn)
    ours.initialize()
    ours.network.train()
    step = ours_step(ours)
    if who == WHO[1]:
        step = stock_step(dataset, ours)
        del ours.network, ours.optimizer
    forget_peak()
    found = timed(step, drawn, arguments.device)
    found |= {"draw_s": draw_s, "peak_mib": peak_mib(arguments.device), "waiting": 0.0}
    if who == WHO[0]:
        stream = in_turn(draw, range(arguments.iterations + 2), workers=1)
        found["waiting"] = waiting_share(step, stream)
    return found


def ours_step(ours: FoldTrainer) -> Step:
    """One iteration of ours."""
    return lambda batch: ours.learn_from(batch, 0, 0)


def stock_step(dataset: Dataset, ours: FoldTrainer) -> Step:
    """One iteration of nnU-Net's own trainer, on these plans and weights; not compiled, as ours."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from training.nnunet_trainer import _out_of_the_way

    os.environ["nnUNet_compile"] = "f"  # noqa: SIM112  # nnU-Net's own name
    plans = {**deepcopy(dict(dataset.plans)), "continue_training": False}
    with _out_of_the_way():
        stock = nnUNetTrainer(plans, "2d", 0, deepcopy(dict(dataset.dataset_json)), ours.device)
        if dataset.recipe.augmentation == "nnunet":
            stock.preprocessed_dataset_folder = str(dataset.cases_folder)
            stock.initialize()
        else:  # there are no cases of nnU-Net's to look at
            stock.preprocessed_dataset_folder = str(dataset.folder.parent.parent / "paper-2d")
            stock.preprocessed_dataset_folder += "/dataset/nnUNetPlans_2d"
            stock.initialize()
    stock.network.load_state_dict(ours.network.state_dict())
    stock.network.train()

    def step(batch: Batch) -> float:
        images, targets = batch
        # Without an ignore label: masks are whole here, so no pixel is unknown.
        scales = [torch.from_numpy(one).to(torch.int16) for one in targets]
        return float(stock.train_step({"data": torch.from_numpy(images), "target": scales})["loss"])

    return step


def timed(step: Step, batches: list[Batch], device: str) -> dict[str, Any]:
    """Wall and processor seconds of each batch but the first, and all losses."""
    import torch

    losses, wall, cpu = [], [], []
    for batch in batches:
        begun, used = time.perf_counter(), time.process_time()
        losses.append(step(batch))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    return {"losses": losses, "seconds": wall[1:], "cpu": cpu[1:]}


def waiting_share(step: Step, stream: Iterator[Batch]) -> float:
    """Of the time, after two batches: the process that draws has started by then."""
    for _ in range(2):
        step(next(stream))
    begun, waited = time.perf_counter(), 0.0
    while True:
        asked = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            break
        waited += time.perf_counter() - asked
        step(batch)
    return waited / (time.perf_counter() - begun)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib(device: str) -> float:
    """Of this process since the batches were drawn, or of the GPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM")


if __name__ == "__main__":
    sys.exit(main())
