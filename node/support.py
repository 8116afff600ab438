"""`flairnode support`: what a person who helps needs to see, and nothing that names a patient.

Versions, settings without secrets and without addresses of people, counts by state and reason,
sizes, the self-tests, whether the audit trail is whole, and tags of the series that failed or are
held. Not in it: images, results, names, UIDs, accession numbers, passwords.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from config.loader import load_settings
from config.settings import Settings
from node.audit import Audit
from node.cli import EXIT_DONE
from node.daily import RESULTS_FILE
from node.disk import room
from node.ledger import Ledger, SeriesState
from node.sitekey import site_key, tag

HIDDEN = "(set)"
_SECRET = ("password", "secret", "token", "user", "mail_to", "mail_from", "database_url")
MOST_SERIES = 200


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    support = subparsers.add_parser(
        "support",
        help="a file for whoever helps: no images, no names, no secrets",
        description="Writes a ZIP of texts; read it before you send it. "
        "Example: flairnode support --config site.toml --output support.zip",
    )
    support.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    support.add_argument("--output", type=Path, required=True, metavar="FILE.zip")
    support.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write it, readable by its owner alone."""
    settings = load_settings(arguments.config)
    parts = collect(settings)
    descriptor = os.open(arguments.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with (
        os.fdopen(descriptor, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle,
    ):
        for name, content in parts.items():
            bundle.writestr(name, json.dumps(content, indent=1, default=str) + "\n")
    sys.stdout.write(f"{arguments.output}\n")
    return EXIT_DONE


def collect(settings: Settings) -> dict[str, Any]:
    """Name of a part -> its content."""
    data_dir = settings.node.data_dir
    parts: dict[str, Any] = {
        "about.json": {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "flairnode": version("flairnode"),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "processors": os.cpu_count(),
            "packages": {one.name: one.version for one in distributions()},
        },
        "settings.json": _without_secrets(settings.model_dump(mode="json")),
        "disk.json": {"disk": room(settings.node).text, "folder_bytes": _sizes(data_dir)},
    }
    if (data_dir / "intake.sqlite").is_file():
        parts["series.json"] = _series(settings)
    if (data_dir / RESULTS_FILE).is_file():
        parts["selftest.json"] = json.loads((data_dir / RESULTS_FILE).read_bytes())
    if (data_dir / "audit").is_dir():
        verification = Audit(data_dir / "audit", site_key(data_dir)).verify()
        parts["audit.json"] = {"lines": verification.lines, "fault": verification.fault}
    return parts


def _series(settings: Settings) -> dict[str, Any]:
    """Counts, and what needs a person.

    Explanations may hold values of headers, so they are left out.
    """
    key = site_key(settings.node.data_dir)
    with Ledger(settings.node.data_dir / "intake.sqlite") as ledger:
        troubled = [
            row
            for state in (SeriesState.FAILED, SeriesState.HELD, SeriesState.NOT_ANALYSED)
            for row in ledger.all_series(state, MOST_SERIES)
        ]
        return {
            "counts": ledger.counts(),
            "troubled": [
                {
                    "study": tag(key, row.study_instance_uid),
                    "series": tag(key, row.series_instance_uid),
                    "state": row.state.value,
                    "reason": row.reason,
                    "instances": row.instances,
                    "history": [
                        {"at": one.at.isoformat(), "state": one.state.value, "reason": one.reason}
                        for one in ledger.history(row.series_instance_uid)
                    ],
                }
                for row in troubled
            ],
        }


def _sizes(data_dir: Path) -> dict[str, int]:
    return {
        path.name: sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
        for path in sorted(data_dir.iterdir())
        if path.is_dir()
    }


def _without_secrets(content: Any) -> Any:  # noqa: ANN401  # JSON
    if isinstance(content, Mapping):
        return {
            key: HIDDEN
            if value and any(word in key for word in _SECRET)
            else _without_secrets(value)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_without_secrets(one) for one in content]
    return content
