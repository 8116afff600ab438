"""`flairnode select`: which series of a study would be analysed, and why. Headers only.

On a folder, or on a study that this node received: then the answer of today's rules stands beside
the one that was stored when the study was closed. Nothing is changed either way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import EmptyInputError
from dicom.series import read_study
from node.cli import EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_ARGUMENTS
from node.ledger import Ledger, StoredDecision
from pipeline.selection import Decision, Selection, choose


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    select = subparsers.add_parser(
        "select",
        help="which series would be analysed, and why",
        description="Reads headers only and changes nothing. Exit 0 when a series was selected, "
        "else 3.",
    )
    select.add_argument("input", type=Path, nargs="?", help="folder of DICOM files")
    select.add_argument(
        "--study", help="Study Instance UID of a study that this node received (with --config)"
    )
    select.add_argument("--config", type=Path, help="settings of a site (TOML)")
    select.add_argument("--json", action="store_true", help="one JSON object on stdout")
    select.set_defaults(run=run_select)


def run_select(arguments: argparse.Namespace) -> int:
    """Print which series is selected, and the reason for every series."""
    if (arguments.input is None) is (arguments.study is None):
        return _wrong("either a folder or --study is wanted")
    if arguments.study is not None and arguments.config is None:
        return _wrong("--study needs --config: it says where the node keeps what it received")
    settings = load_settings(arguments.config)
    stored: Mapping[str, StoredDecision] = {}
    missing = 0
    if arguments.study is None:
        selection = choose(read_study(arguments.input), settings.selection)
    else:
        selection, stored, missing = _past_study(settings, arguments.study)
    if arguments.json:
        print(json.dumps(_as_json(selection, stored, missing, arguments.study)))
    else:
        _print(selection, stored, missing)
    return EXIT_DONE if selection.selected is not None else EXIT_REFUSED


def _wrong(message: str) -> int:
    print(f"flairnode select: {message}", file=sys.stderr)
    return EXIT_WRONG_ARGUMENTS


def _past_study(
    settings: Settings, study_uid: str
) -> tuple[Selection, dict[str, StoredDecision], int]:
    """What the rules say today of a study in the spool, what was decided, files that are gone.

    Raises:
        EmptyInputError: The node never received it, or has discarded its files.
    """
    path = settings.node.data_dir / "intake.sqlite"
    if not path.is_file():
        raise EmptyInputError("this node has received nothing yet: there is no intake.sqlite")
    with Ledger(path) as ledger:
        rows = ledger.series_of(study_uid)
        if not rows:
            raise EmptyInputError("this node never received that study")
        files = [
            ledger.spool / instance.path
            for row in rows
            for instance in ledger.instances_of(row.series_instance_uid)
        ]
        stored = {
            row.series_instance_uid: decisions[0]
            for row in rows
            if (decisions := ledger.decisions_of(row.series_instance_uid))
        }
    present = [file for file in files if file.is_file()]
    if not present:
        raise EmptyInputError(f"all {len(files)} files of that study were discarded")
    study = read_study(path.parent / "spool" / study_uid, files=present)
    return choose(study, settings.selection), stored, len(files) - len(present)


def differs(now: Decision, then: StoredDecision) -> bool:
    """Would the series come to another end today?

    A chosen one is the same whatever its score. What the intake held on its own (a conflict, an
    incomplete series) says nothing of the rules.
    """
    chosen = now.reason == "selected"
    by_rules = bool(then.rule)
    return by_rules and (chosen is not then.chosen or (not chosen and now.reason != then.reason))


def _as_json(
    selection: Selection,
    stored: Mapping[str, StoredDecision],
    missing: int,
    study_uid: str | None,
) -> dict[str, Any]:
    told = selection.as_json()
    if study_uid is None:
        return told
    by_uid = {one.series_instance_uid: one for one in selection.decisions}
    for series in told["series"]:
        then = stored.get(series["series_instance_uid"])
        series["stored"] = None if then is None else _stored(then)
        series["differs"] = then is not None and differs(
            by_uid[series["series_instance_uid"]], then
        )
    return {**told, "study_instance_uid": study_uid, "missing_files": missing}


def _stored(then: StoredDecision) -> dict[str, Any]:
    return {
        "at": then.at.isoformat(),
        "chosen": then.chosen,
        "outcome": then.outcome.value,
        "reason": then.reason,
        "rule": then.rule,
        "score": then.score,
        "explanation": then.explanation,
        "rules_digest": then.rules_digest,
    }


def _print(selection: Selection, stored: Mapping[str, StoredDecision], missing: int) -> None:
    for decision in selection.decisions:
        chosen = decision.series_instance_uid == selection.selected
        print(f"{'*' if chosen else ' '} {decision.score:6.2f}  {decision.reason}")
        print(f"          {decision.series_instance_uid}: {decision.explanation}")
        for line in rule_lines(decision.rule, decision.change):
            print(f"          {line}")
        if decision.evidence:
            points = ", ".join(f"{points:+g} {rule}" for rule, points in decision.evidence)
            print(f"          Score of: {points}")
        then = stored.get(decision.series_instance_uid)
        if then is not None and differs(decision, then):
            was = "selected" if then.chosen else then.reason
            print(f"          DIFFERS: on {then.at:%Y-%m-%d %H:%M} UTC it was {was} ({then.rule})")
        elif then is not None:
            print(f"          as decided on {then.at:%Y-%m-%d %H:%M} UTC")
    print(f"rules in force: {selection.rules_digest[:12]}")
    if missing:
        print(f"{missing} files of this study are not in the spool any more: they were not judged")


def rule_lines(rule: str, change: str) -> tuple[str, ...]:
    """The lines that `select` and `jobs explain` share."""
    return (
        *((f"Rule: {rule}",) if rule else ()),
        *((f"What would have to change: {change}",) if change else ()),
    )
