"""The node's commands of the `flairnode` console script."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from config.loader import load_settings
from node import (
    check,
    cohort,
    demo,
    fetch,
    init,
    jobs,
    models,
    process,
    recall,
    select,
    selftest_command,
    support,
    trail,
    users,
)
from node.durable import PRIVATE


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add every command of the node."""
    demo.register(subparsers)
    _register_serve(subparsers)
    process.register(subparsers)
    select.register(subparsers)
    check.register(subparsers)
    jobs.register(subparsers)
    fetch.register(subparsers)
    cohort.register(subparsers)
    recall.register(subparsers)
    models.register(subparsers)
    users.register(subparsers)
    selftest_command.register(subparsers)
    init.register(subparsers)
    support.register(subparsers)
    trail.register(subparsers)


def _register_serve(subparsers: Any) -> None:  # noqa: ANN401
    serve = subparsers.add_parser(
        "serve",
        help="run the node",
        description="Listens for studies, analyses them and delivers the results, until ended.",
    )
    serve.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    serve.add_argument(
        "--standby",
        action="store_true",
        help="wait while another service runs on data_dir, and take its place when it ends",
    )
    serve.set_defaults(run=_run_serve)
    worker = subparsers.add_parser(
        "worker",
        help="run one more worker, on this or another host",
        description="Takes analyses from the engine's queue. On another host the engine must be "
        "PostgreSQL and data_dir shared.",
    )
    worker.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    worker.add_argument("--index", type=int, default=0, help="number of the worker on this host")
    worker.set_defaults(run=_run_worker)


def _run_serve(arguments: argparse.Namespace) -> int:
    from node.service import serve  # the other commands need no engine

    return serve(load_settings(arguments.config), arguments.config, standby=arguments.standby)


def _run_worker(arguments: argparse.Namespace) -> int:
    from node.worker import run_worker  # torch, and the engine

    os.umask(PRIVATE)
    return run_worker(load_settings(arguments.config), arguments.index)
