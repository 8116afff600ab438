"""`flairnode train prepare`: its arguments, and what it says."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.masks import MaskRules
    from training.prepare import Row

DEFAULT_SEED = 20250101  # any number: what matters is that it is written down
EXIT_DONE, EXIT_REFUSED = 0, 3


def register_prepare(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type
    """Add the command to those of `train`."""
    prepare = subparsers.add_parser(
        "prepare",
        help="look at a cohort, standardise its masks and deal its patients to the folds",
        description="Reads a cohort, checks every image and mask, writes both as NIfTI on the grid "
        "of the image with an overlay to look at, and deals the patients: a quarter to the test "
        "set, the others to five folds. A refused case stops it, unless --go-on. Goes on where it "
        "was stopped; splits that are there must fit. Exit 0 done, 3 refused, 1 disk full.",
    )
    prepare.add_argument(
        "--cohort",
        type=Path,
        required=True,
        metavar="PATH",
        help="manifest (CSV or TOML), BIDS folder, or folder of PATIENT/[SESSION/]flair.nii.gz and "
        "lesion.nii.gz",
    )
    prepare.add_argument("--output", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the draw (%(default)s)")
    prepare.add_argument(
        "--go-on", action="store_true", help="exclude refused cases and go on with the rest"
    )
    add_mask_rules(prepare)
    prepare.add_argument("--json", action="store_true", help="print the report as one JSON object")
    prepare.set_defaults(run=run_prepare)


def add_mask_rules(parser: argparse.ArgumentParser) -> None:
    """What a person says about the masks of a whole cohort."""
    parser.add_argument(
        "--slice-order",
        choices=(
            "foot-to-head",
            "head-to-foot",
            "numbered-foot-to-head",
            "numbered-head-to-foot",
        ),
        help="which picture lies on which slice, where masks are folders of pictures and the "
        "manifest does not say it; in the order of file names, or by the last number in the name",
    )
    parser.add_argument(
        "--merge-labels",
        action="store_true",
        help="a mask with several labels (active, inactive) is one mask; else it is refused",
    )
    parser.add_argument(
        "--allow-empty",
        action="store_true",
        help="an empty mask means no lesion; else it is refused where the manifest does not say "
        "lesion_free",
    )


def mask_rules(arguments: argparse.Namespace) -> MaskRules:
    """What was said of the masks."""
    from training.cohort import SliceOrder
    from training.masks import LabelMaps, MaskRules

    return MaskRules(
        None if arguments.slice_order is None else SliceOrder(arguments.slice_order),
        LabelMaps.MERGED if arguments.merge_labels else LabelMaps.REFUSED,
    )


def run_prepare(arguments: argparse.Namespace) -> int:
    """Prepare, report, and say with the exit status whether there are splits."""
    from training.cohort import read_cohort
    from training.prepare import EmptyMasks, Refusals, Rules, in_words, prepare

    rules = Rules(
        mask_rules(arguments),
        EmptyMasks.NEGATIVE if arguments.allow_empty else EmptyMasks.REFUSED,
    )
    report = prepare(
        read_cohort(arguments.cohort),
        arguments.output,
        arguments.seed,
        rules,
        Refusals.GO_ON if arguments.go_on else Refusals.STOP,
        say_case,
    )
    text = json.dumps(report) if arguments.json else in_words(report)
    sys.stdout.write(f"{text}\n")
    return EXIT_DONE if report["outcome"] == "prepared" else EXIT_REFUSED


def say_case(row: Row, *, kept: bool) -> None:
    """One line on standard error: how a case ended."""
    end = row["outcome"] + (f": {row['reason']}: {row['explanation']}" if row["reason"] else "")
    sys.stderr.write(f"{row['case']}: {end}{' (from an earlier run)' if kept else ''}\n")
    sys.stderr.flush()
