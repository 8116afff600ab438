"""`flairnode train run`, `train fold` and `train worker`: their arguments, and what they say."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.prepare_command import say_case

if TYPE_CHECKING:
    from training.dataset import Dataset
    from training.fold_log import FoldProgress

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_ARGUMENTS, EXIT_STOPPED = 0, 1, 2, 130
MOST_WORKERS = 8  # per GPU: more wait for the disk


def register_runs(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type
    """Add the commands to those of `train`."""
    _register_run(subparsers)
    _register_fold(subparsers)
    _register_worker(subparsers)


def _register_run(subparsers: Any) -> None:  # noqa: ANN401
    run = subparsers.add_parser(
        "run",
        help="train the folds of a prepared cohort by a recipe",
        description="Makes the data set of the recipe in DIR/dataset, then trains each fold in a "
        "process of its own, one per device at a time. Whatever stops it, the same command goes on "
        "from the last finished epoch; another recipe, cohort or seed is refused. A process that "
        "dies is started again. Exit 0 when every fold is done, 1 when one failed, 3 when the "
        "input is refused.",
    )
    run.add_argument(
        "--prepared", type=Path, required=True, metavar="DIR", help="--output of `train prepare`"
    )
    run.add_argument(
        "--recipe", required=True, metavar="NAME|FILE.toml", help="one that ships, or a site's own"
    )
    run.add_argument("--output", type=Path, required=True, metavar="RUN")
    run.add_argument(
        "--folds", type=int, nargs="+", metavar="K", help="train these alone (default: all)"
    )
    run.add_argument("--epochs", type=int, help="becomes part of the recipe")
    run.add_argument("--batch-size", type=int, help="becomes part of the recipe")
    run.add_argument("--seed", type=int, help="(that of the splits)")
    run.add_argument(
        "--go-on", action="store_true", help="leave refused cases out and go on with the rest"
    )
    run.add_argument(
        "--launcher", default="local", metavar="NAME", help="local, or dbos for several hosts"
    )
    _add_compute(run)
    run.add_argument("--json", action="store_true", help="print the end as one JSON object")
    run.set_defaults(run=run_folds)


def _register_fold(subparsers: Any) -> None:  # noqa: ANN401
    fold = subparsers.add_parser(
        "fold",
        help="train one fold of a run, in this process",
        description="Trains fold K of a run that `train run` began, from its last checkpoint: for "
        "a site with a queue of its own (Slurm: one job per fold). Exit 0 done, 1 failed.",
    )
    fold.add_argument("--run", type=Path, required=True, metavar="RUN", dest="folder")
    fold.add_argument("--fold", type=int, required=True, metavar="K")
    fold.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    fold.add_argument(
        "--threads", type=int, default=1, help="on a CPU; 1 repeats the weights bit by bit"
    )
    fold.add_argument("--workers", type=int, help="processes that draw batches ahead")
    fold.add_argument("--json", action="store_true", help="print the end as one JSON object")
    fold.set_defaults(run=run_fold)


def _register_worker(subparsers: Any) -> None:  # noqa: ANN401
    worker = subparsers.add_parser(
        "worker",
        help="train folds that `train run --launcher dbos` of another host put into the queue",
        description="Takes folds from the queue of the database that the settings name, one per "
        "device at a time, until it is ended. The run folder is shared and has the same path on "
        "every host. A host that dies loses at most one epoch: another takes its folds over.",
    )
    worker.add_argument("--launcher", default="dbos", metavar="NAME")
    _add_compute(worker)
    worker.set_defaults(run=run_worker)


def _add_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["auto"],
        metavar="D",
        help="cpu, or cuda:0 cuda:1 ... (default: every GPU, else the CPU)",
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="folds at a time on a CPU (%(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of each fold on a CPU (%(default)s: the same weights on every machine of a kind)",
    )
    parser.add_argument(
        "--workers", type=int, help="processes of each fold that draw batches ahead"
    )
    parser.add_argument("--config", type=Path, help="settings of a site (TOML), for dbos")
    parser.add_argument(
        "--index", type=int, default=0, help="number of this process on this host, for dbos"
    )


def run_folds(arguments: argparse.Namespace) -> int:
    """Build, train, draw; the exit status."""
    from training.curves import draw_curves
    from training.dataset import build_dataset
    from training.fold import fold_folder
    from training.fold_log import read_log, read_progress
    from training.launcher import FoldProcesses, find_launcher
    from training.prepare import Refusals
    from training.recipe import load_recipe
    from training.run_display import display

    changes = {
        name: value
        for name, value in (("epochs", arguments.epochs), ("batch_size", arguments.batch_size))
        if value is not None
    }
    devices = devices_of(arguments.devices, arguments.processes)
    recipe = load_recipe(arguments.recipe, changes)
    launcher = find_launcher(arguments.launcher, arguments.config, arguments.index)
    dataset = build_dataset(
        arguments.prepared,
        arguments.output,
        recipe,
        say_case,
        seed=arguments.seed,
        refusals=Refusals.GO_ON if arguments.go_on else Refusals.STOP,
    )
    folds = tuple(arguments.folds or range(len(dataset.splits)))
    if wrong := [fold for fold in folds if not 0 <= fold < len(dataset.splits)]:
        sys.stderr.write(f"no fold {wrong[0]}: the folds are 0 to {len(dataset.splits) - 1}\n")
        return EXIT_WRONG_ARGUMENTS
    ends: dict[int, FoldProgress] = {}
    with stopped_by_signals() as stop, display(folds) as shown:

        def watch(now: FoldProgress) -> None:
            ends[now.fold] = now
            shown(now)

        train = FoldProcesses(
            stop,
            threads=arguments.threads,
            workers=workers_of(arguments.workers, devices),
            watch=watch,
        )
        launcher.launch(arguments.output, folds, train, devices, stop)
    for fold in folds:
        if fold not in ends or not ends[fold].reason:
            ends[fold] = read_progress(fold_folder(arguments.output, fold), fold)
    logs = {
        fold: read_log(fold_folder(arguments.output, fold)) for fold in range(len(dataset.splits))
    }
    draw_curves(arguments.output, logs, f"{recipe.name}, folds {', '.join(map(str, folds))}")
    for fold, lines in logs.items():
        if lines:
            draw_curves(
                fold_folder(arguments.output, fold), {fold: lines}, f"{recipe.name}, fold {fold}"
            )
    _say_end(arguments, dataset, ends)
    if all(end.state == "done" for end in ends.values()):
        return EXIT_DONE
    return EXIT_STOPPED if stop.is_set() else EXIT_FAILED


def run_fold(arguments: argparse.Namespace) -> int:
    """Train one fold here."""
    from training.fold import StoppedError, train_fold
    from training.run_display import Display

    (device,) = devices_of([arguments.device], 1)
    signal.signal(signal.SIGTERM, _stop_fold)
    try:
        digest = train_fold(
            arguments.folder,
            arguments.fold,
            device=device,
            threads=arguments.threads,
            workers=workers_of(arguments.workers, [device]),
            report=Display((arguments.fold,), None),
        )
    except StoppedError:
        return EXIT_STOPPED
    end = {"outcome": "done", "reason": "", "fold": arguments.fold, "weights_digest": digest}
    text = json.dumps(end) if arguments.json else f"fold {arguments.fold}: weights {digest}"
    sys.stdout.write(f"{text}\n")
    return EXIT_DONE


def run_worker(arguments: argparse.Namespace) -> int:
    """Train folds of others until ended."""
    from training.launcher import FoldProcesses, find_launcher
    from training.run_display import Display

    devices = devices_of(arguments.devices, arguments.processes)
    launcher = find_launcher(arguments.launcher, arguments.config, arguments.index)
    with stopped_by_signals() as stop:
        train = FoldProcesses(
            stop,
            threads=arguments.threads,
            workers=workers_of(arguments.workers, devices),
            watch=Display((), None),
        )
        launcher.work(train, devices, stop)
    return EXIT_DONE


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets. A second Ctrl-C does what it always does."""
    stop = threading.Event()

    def ask(_signal: int, _frame: object) -> None:
        sys.stderr.write("stopping: the last finished epoch of each fold is kept\n")
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def devices_of(names: Sequence[str], processes: int) -> list[str]:
    """A name for each fold that is trained at a time.

    Raises:
        DeviceError: A GPU that is not there.
    """
    import torch

    from pipeline.ensemble import DeviceError

    count = torch.cuda.device_count()
    out: list[str] = []
    for name in names:
        if name == "auto":
            out += [f"cuda:{number}" for number in range(count)] or ["cpu"] * processes
        elif name == "cpu":
            out += ["cpu"] * processes
        elif re.fullmatch(r"cuda(:\d+)?", name):
            number = int(name.partition(":")[2] or 0)
            if number >= count:
                raise DeviceError(f"device {name}: {count} CUDA devices are visible")
            out.append(f"cuda:{number}")
        else:
            raise DeviceError(f"device {name!r}: it is auto, cpu or cuda:N")
    return out


def workers_of(asked: int | None, devices: Sequence[str]) -> int:
    """Processes of each fold that draw its batches ahead.

    On a CPU one is enough, where a core is left for it: an iteration takes far longer than a batch.
    """
    if asked is not None:
        return asked
    left = len(os.sched_getaffinity(0)) - len(devices)
    if any(device != "cpu" for device in devices):
        return max(1, min(MOST_WORKERS, left // len(devices)))
    return 1 if left >= len(devices) else 0


def _say_end(
    arguments: argparse.Namespace, dataset: Dataset, ends: dict[int, FoldProgress]
) -> None:
    from training.run_display import in_words

    failed = [end for end in ends.values() if end.state != "done"]
    if arguments.json:
        content = {
            "outcome": "trained" if not failed else "failed",
            "reason": next((end.reason or end.state for end in failed), ""),
            "recipe": dataset.recipe.name,
            "seed": dataset.seed,
            "dataset": dataset.digest,
            "folds": [
                {
                    "fold": end.fold,
                    "state": end.state,
                    "epochs": end.epoch,
                    "val_dice": end.val_dice,
                    "plateau_since": end.plateau_since,
                    "reason": end.reason,
                    "explanation": end.explanation,
                    "weights_digest": end.weights_digest,
                }
                for _, end in sorted(ends.items())
            ],
        }
        sys.stdout.write(f"{json.dumps(content)}\n")
        return
    for _, end in sorted(ends.items()):
        sys.stdout.write(f"{in_words(end)}\n")


def _stop_fold(_signal: int, _frame: object) -> None:
    from training.fold import StoppedError

    raise StoppedError
