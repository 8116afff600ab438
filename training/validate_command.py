"""`flairnode validate`: how well a model does, at a site or in the paper it comes from."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def register_validate(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type
    """Add the group; each of its commands adds itself to it."""
    validate = subparsers.add_parser(
        "validate",
        help="measure how well a model does",
        description="Measure how well a model does.",
    )
    commands = validate.add_subparsers(title="commands", dest="validate_command", required=True)
    _register_paper(commands)


def _register_paper(subparsers: Any) -> None:  # noqa: ANN401
    paper = subparsers.add_parser(
        "paper",
        help="rebuild the published slice table from its counts, and say what it is",
        description="Rebuilds the slice-level table of the paper that flairnode starts from, out "
        "of its counts: under the paper's labels and with its n, and beside it what the labels "
        "mean with the right n. Needs no data.",
    )
    paper.add_argument("--json", action="store_true", help="one JSON object on stdout")
    paper.set_defaults(run=run_paper)


def run_paper(arguments: argparse.Namespace) -> int:
    """Compute, and print."""
    from training.paper import as_json, in_words  # scipy.optimize: not for `flairnode --help`

    text = json.dumps(as_json()) if arguments.json else in_words()
    sys.stdout.write(f"{text}\n")
    return 0
