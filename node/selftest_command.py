"""`flairnode selftest`: one self-test, in this process. The service starts it as another."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import StudyError
from node.cli import EXIT_DONE, EXIT_REFUSED
from node.daily import SelfTestResult, now


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    test = subparsers.add_parser(
        "selftest",
        help="the synthetic head with known lesions through the whole pipeline",
        description="Analyses a synthetic head whose lesions are known. A low Dice means that "
        "something broke; a high one says nothing of patients. Exit 0 passed, 3 not. "
        "Example: flairnode selftest --config site.toml",
    )
    test.add_argument("--config", type=Path, help="settings of a site (TOML)")
    test.add_argument("--json", action="store_true", help="one JSON object on stdout")
    test.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Test once, and print."""
    result = test_once(load_settings(arguments.config))
    if arguments.json:
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    elif result.passed:
        sys.stdout.write(
            f"passed: {result.lesion_count} lesions found, {result.volume_ml:.2f} of "
            f"{result.truth_ml:.2f} ml, Dice {result.dice:.3f}, {result.seconds:.0f} s\n"
        )
    else:
        sys.stdout.write(f"NOT passed: {result.fault}\n")
    return EXIT_DONE if result.passed else EXIT_REFUSED


def test_once(settings: Settings) -> SelfTestResult:
    """Load the model of the site and test it, in this process."""
    from node.analysis import load_segmenter  # torch
    from node.selftest import run_self_test
    from pipeline.brain_tools import require_extractor

    started, digest = time.perf_counter(), ""
    try:
        extract = require_extractor(settings.pipeline).extract
        ensemble, pack = load_segmenter(settings.pipeline, (settings.node.packs_dir,))
        digest = pack.digest
        found = run_self_test(ensemble, pack, extract)
    except StudyError as error:
        return SelfTestResult(now(), digest, passed=False, fault=f"{error.reason}: {error}")
    return SelfTestResult(
        now(),
        digest,
        passed=True,
        fault="",
        dice=round(found.dice, 4),
        lesion_count=found.lesion_count,
        volume_ml=round(found.volume_ml, 4),
        truth_ml=round(found.truth_ml, 4),
        seconds=round(time.perf_counter() - started, 2),
    )
