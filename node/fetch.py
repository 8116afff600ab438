"""`flairnode fetch`: one study on demand, from a peer with DICOMweb or an Orthanc.

The command fetches nothing itself. It writes the request down, and the service fetches: one process
owns the spool and knows when a study has fallen silent. So a request outlives the service, too.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import Outcome
from node.audit import Audit, AuditEvent
from node.cli import EXIT_DONE, EXIT_WRONG_ARGUMENTS, exit_status
from node.durable import SERVICE_LOCK
from node.ledger import ENDS, Ledger, SeriesRow, SeriesState
from node.sitekey import site_key
from node.sources import FetchRequest, RequestState, SourceBook
from node.spool import is_uid

POLL_S = 0.25
NO_SERVICE = "service-not-running"
STILL_WAITING = "still-waiting"


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    parser = subparsers.add_parser(
        "fetch",
        help="bring one study into the node",
        description="Asks the running node to fetch the MR series of one study from a peer, by "
        "Orthanc's REST API or DICOMweb. They are then analysed like studies that are sent.",
    )
    parser.add_argument("study", help="Study Instance UID")
    parser.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    parser.add_argument("--source", help="name of the peer; not needed if only one has an address")
    parser.add_argument(
        "--wait", action="store_true", help="until every series has come to its end"
    )
    parser.add_argument(
        "--timeout-s", type=float, default=3600.0, help="give up waiting after this (default 3600)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, wait, and say what came of it."""
    settings = load_settings(arguments.config)
    source, wrong = _source(settings, arguments.source)
    if not is_uid(arguments.study):
        wrong = "STUDY is no Study Instance UID"
    if wrong:
        print(f"flairnode fetch: {wrong}", file=sys.stderr)
        return EXIT_WRONG_ARGUMENTS
    data_dir = settings.node.data_dir
    deadline = time.monotonic() + arguments.timeout_s
    with SourceBook(data_dir) as book:
        request = book.ask(arguments.study, source)
        _note(data_dir, request)
        while request.state is RequestState.ASKED:
            if not service_runs(data_dir):
                why = f"no service runs on {data_dir}: the study is fetched once one does"
                return _say(arguments, request, Outcome.HELD, NO_SERVICE, why)
            if time.monotonic() > deadline:
                why = request.explanation or "the service has not fetched it yet"
                return _say(arguments, request, Outcome.HELD, request.reason or STILL_WAITING, why)
            time.sleep(POLL_S)
            request = book.request(request.number)
    if request.state is RequestState.REFUSED:
        outcome = Outcome.NOT_ANALYSED
        return _say(arguments, request, outcome, request.reason, request.explanation)
    return _tell(arguments, request, data_dir, deadline)


def service_runs(data_dir: Path) -> bool:
    """Does a service hold its lock on this data directory?"""
    try:
        descriptor = os.open(data_dir / SERVICE_LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared, and for a moment only: a service that starts just now tries for two seconds.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _source(settings: Settings, name: str | None) -> tuple[str, str]:
    """Whom to ask, and what is wrong with that."""
    names = [
        peer.name
        for peer in settings.peers
        if peer.orthanc_url is not None or peer.dicomweb_url is not None
    ]
    if name is not None:
        wrong = "" if name in names else f"no peer {name!r} with a web address; there are {names}"
        return name, wrong
    followed = [source.peer for source in settings.sources]
    candidates = names if len(names) == 1 else followed
    if len(candidates) == 1:
        return candidates[0], ""
    if not names:
        return "", "no peer has an orthanc_url or a dicomweb_url"
    return "", f"name one with --source: {', '.join(names)}"


def _note(data_dir: Path, request: FetchRequest) -> None:
    Audit(data_dir / "audit", site_key(data_dir)).append(
        AuditEvent.OPERATOR,
        what="fetch",
        user=getpass.getuser(),
        study=request.study_instance_uid,
        source=request.source,
    )


def _tell(
    arguments: argparse.Namespace, request: FetchRequest, data_dir: Path, deadline: float
) -> int:
    """What became of a study that was fetched; with `--wait`, once that is known."""
    with Ledger(data_dir / "intake.sqlite") as ledger:
        rows = ledger.series_of(request.study_instance_uid)
        while arguments.wait and not all(row.state in ENDS for row in rows):
            if time.monotonic() > deadline:
                why = "fetched, but not every series has come to its end yet"
                return _say(arguments, request, Outcome.HELD, STILL_WAITING, why, rows)
            time.sleep(POLL_S)
            rows = ledger.series_of(request.study_instance_uid)
    if not arguments.wait:
        return _say(arguments, request, None, "fetched", "", rows)
    row = _most_telling(rows)
    if row is None:
        why = "none of its instances could be taken; the log says why"
        return _say(arguments, request, Outcome.NOT_ANALYSED, "nothing-taken", why, rows)
    return _say(arguments, request, Outcome(row.state.value), row.reason, row.explanation, rows)


def _most_telling(rows: list[SeriesRow]) -> SeriesRow | None:
    """The series that a reader asks for: the one with a result, else the one nearest to one."""
    order = (
        SeriesState.FAILED,
        SeriesState.DELIVERED,
        SeriesState.HELD,
        SeriesState.NOT_ANALYSED,
        SeriesState.SKIPPED,
    )
    return min(rows, key=lambda row: order.index(row.state), default=None)


def _say(
    arguments: argparse.Namespace,
    request: FetchRequest,
    outcome: Outcome | None,
    reason: str,
    explanation: str,
    rows: list[SeriesRow] | None = None,
) -> int:
    """Print; the exit status. Without an outcome the study was fetched, and that was all."""
    told: Mapping[str, Any] = {
        "outcome": "fetched" if outcome is None else outcome.value,
        "reason": reason,
        "explanation": explanation,
        "study_instance_uid": request.study_instance_uid,
        "source": request.source,
        "instances_listed": request.listed,
        "instances_fetched": request.fetched,
        "series_passed_over": request.passed_over,
        "series": [
            {
                "series_instance_uid": row.series_instance_uid,
                "state": row.state.value,
                "reason": row.reason,
                "explanation": row.explanation,
                "instances": row.instances,
                "counts": row.counts.value,
                "job": row.job_id,
            }
            for row in rows or []
        ],
    }
    status = EXIT_DONE if outcome is None else exit_status(outcome)
    if arguments.json:
        print(json.dumps(told))
        return status
    print(
        f"{request.source} lists {request.listed} instances of MR series, {request.fetched} were "
        f"fetched now; {request.passed_over} other series were passed over"
    )
    for row in rows or []:
        print(
            f"  {row.series_instance_uid}  {row.state:<12}  {row.reason or '-':<24}"
            f"{row.instances:>5} instances, {row.counts}"
        )
    if explanation or outcome is not None:
        print(f"{told['outcome']}: {reason or '-'}{': ' if explanation else ''}{explanation}")
    return status
