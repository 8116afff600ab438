"""`flairnode demo`: a node and an archive on this machine, one study through both, all checked.

Exit 0 only when all of it held; 3 when the study holds nothing to analyse; else 1, with what failed
in plain words.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="a node and an archive on this machine, and one study through both",
        description="Starts an archive and a node on free loopback ports, sends a study by "
        "C-STORE, waits for the results, fetches them back and checks them. Without --input the "
        "study is a synthetic head with known lesions. Exit 0 only if all of that held.",
    )
    parser.add_argument("--input", type=Path, help="folder with a study of yours")
    parser.add_argument(
        "--orthanc",
        action="store_true",
        help="insist on a real Orthanc (by default it is used when installed)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave node and archive running until Ctrl-C"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("flairnode-demo"),
        help="folder for results and picture (default: ./flairnode-demo)",
    )
    parser.add_argument("--model", default="starter", help="model pack: a name or a folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; the exit status."""
    from node.demo_run import run_demo  # pixels and pictures: no other command needs them

    return run_demo(arguments)
