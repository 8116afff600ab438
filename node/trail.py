"""`flairnode audit`: is the record of who did what whole, and the record for others to read."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from config.loader import load_settings
from config.settings import Settings
from node.audit import Audit
from node.audit_export import Form, export, frame
from node.cli import EXIT_DONE, EXIT_FAILED, EXIT_WRONG_ARGUMENTS
from node.ledger import Ledger
from node.sitekey import KEY_FILE, site_key


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the `audit` command and its two actions."""
    audit = subparsers.add_parser(
        "audit",
        help="verify or export the audit trail",
        description="What came in, what was made of it, where it went, who was turned away, and "
        "what an operator did.",
    )
    actions = audit.add_subparsers(title="actions", dest="action", required=True)
    verify = actions.add_parser(
        "verify",
        help="was a line changed, removed, moved or cut off?",
        description="Exit 0 when the record is whole, else 1.",
    )
    verify.add_argument("--json", action="store_true", help="one JSON object on stdout")
    verify.set_defaults(run=run_verify)
    out = actions.add_parser(
        "export",
        help="as syslog messages or DICOM audit messages",
        description="UIDs and user names become tags, the same as in the log, unless they are "
        "asked for. No message names a patient either way.",
    )
    out.add_argument("--format", choices=get_args(Form), default="rfc5424")
    out.add_argument("--with-identifiers", action="store_true", help="UIDs and users as they are")
    out.add_argument(
        "--framed", action="store_true", help="each with its length before it, as TCP carries them"
    )
    out.add_argument("--after", type=int, default=0, metavar="NUMBER", help="only later lines")
    out.set_defaults(run=run_export)
    for parser in (verify, out):
        parser.add_argument(
            "--config", type=Path, required=True, help="settings of the site (TOML)"
        )


def run_verify(arguments: argparse.Namespace) -> int:
    """Check every line, the head, and what the ledger sealed."""
    settings = load_settings(arguments.config)
    audit = _audit(settings)
    if audit is None:
        return EXIT_WRONG_ARGUMENTS
    seals = _seals(settings)
    found = audit.verify(seals)
    if arguments.json:
        told = {
            "intact": found.intact,
            "lines": found.lines,
            "fault": found.fault,
            "file": found.file,
            "line_in_file": found.line_in_file,
            "files": [path.name for path in audit.files()],
            "seals": len(seals),
        }
        print(json.dumps(told))
    elif found.intact:
        print(f"whole: {found.lines} lines in {len(audit.files())} files, {len(seals)} seals agree")
    else:
        where = f" ({found.file}, line {found.line_in_file})" if found.line_in_file else ""
        print(f"NOT WHOLE: {found.fault}{where}")
    return EXIT_DONE if found.intact else EXIT_FAILED


def run_export(arguments: argparse.Namespace) -> int:
    """Write the record to stdout, one message a line; lines that cannot be read are told of."""
    settings = load_settings(arguments.config)
    audit = _audit(settings)
    if audit is None:
        return EXIT_WRONG_ARGUMENTS
    unreadable = 0
    entries = []
    for entry in audit.entries():
        if entry is None or not {"number", "at", "event"} <= entry.keys():
            unreadable += 1
        elif int(str(entry["number"])) > arguments.after:
            entries.append(entry)
    messages = export(
        entries,
        arguments.format,
        site_key(settings.node.data_dir),
        with_identifiers=arguments.with_identifiers,
    )
    for message in messages:
        if arguments.framed:
            sys.stdout.buffer.write(frame(message))
        else:
            print(message)
    sys.stdout.flush()
    if unreadable:
        print(f"flairnode audit: {unreadable} lines cannot be read", file=sys.stderr)
    return EXIT_FAILED if unreadable else EXIT_DONE


def _audit(settings: Settings) -> Audit | None:
    data_dir = settings.node.data_dir
    if not (data_dir / "audit").is_dir() or not (data_dir / KEY_FILE).is_file():
        print(
            f"flairnode audit: nothing is recorded in {data_dir}; has `flairnode serve` run with "
            "this data_dir?",
            file=sys.stderr,
        )
        return None
    return Audit(data_dir / "audit", site_key(data_dir))


def _seals(settings: Settings) -> dict[int, str]:
    path = settings.node.data_dir / "intake.sqlite"
    if not path.is_file():
        return {}
    with Ledger(path) as ledger:
        return ledger.audit_seals()
