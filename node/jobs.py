"""`flairnode jobs`: what came in, what became of it, and what an operator can do about it."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config.loader import load_settings
from config.settings import Settings
from node.advice import advice
from node.audit import Audit, AuditEvent
from node.cli import EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_ARGUMENTS
from node.disk import room
from node.ledger import (
    Job,
    Ledger,
    RetryRefusedError,
    SeriesRow,
    SeriesState,
    StoredDecision,
    UnknownJobError,
)
from node.outcome import ResultsFolder
from node.pause import PauseSwitch
from node.resolve import resolve
from node.retry import retry_all, retry_series
from node.select import rule_lines
from node.sitekey import site_key

_SHORTEST_PREFIX = 6
_QUIET_LOOKS = 3


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the `jobs` command and its actions."""
    jobs = subparsers.add_parser(
        "jobs",
        help="list, show, explain, retry, cancel, resolve, pause, resume",
        description="Every series that was received, the end it came to, and why.",
    )
    actions = jobs.add_subparsers(title="actions", dest="action", required=True)
    listing = _action(actions, "list", "every series, the latest first", run_list)
    listing.add_argument("--state", choices=[state.value for state in SeriesState])
    listing.add_argument("--limit", type=int, default=200, help="at most so many (default 200)")
    for name, text, run in (
        ("show", "one series or job with everything known of it", run_show),
        ("explain", "why it is where it is, and what to do", run_explain),
        ("cancel", "end a job that is waiting or running", run_cancel),
        ("resolve", "end a conflict of two objects with one SOP Instance UID", run_resolve),
    ):
        _action(actions, name, text, run).add_argument(
            "id", help="Series Instance UID, or a job id or its beginning"
        )
    retry = _action(actions, "retry", "try an ended job, or decide a series, once more", run_retry)
    retry.add_argument("id", nargs="?", help="Series Instance UID, or a job id or its beginning")
    retry.add_argument("--all", action="store_true", help="every job that ended for --reason")
    retry.add_argument("--reason", help="of those to retry, such as undeliverable")
    retry.add_argument("--destination", help="only what this peer did not take")
    resolve = actions.choices["resolve"]
    resolve.add_argument(
        "--keep",
        choices=("stored", "received"),
        required=True,
        help="the object that came first, or the one that came later and was kept aside",
    )
    resolve.add_argument(
        "--digest", default="", help="of several later ones: the beginning of its SHA-256"
    )
    _action(actions, "pause", "begin no more analyses; all else goes on", run_pause)
    _action(actions, "resume", "go on after a pause", run_resume)
    drain = _action(
        actions, "drain", "pause, and wait until no analysis runs: before an upgrade", run_drain
    )
    drain.add_argument("--timeout", type=float, default=1800.0, help="seconds (default 1800)")


def run_list(arguments: argparse.Namespace) -> int:
    """One line per series."""
    state = None if arguments.state is None else SeriesState(arguments.state)
    settings = load_settings(arguments.config)
    with _ledger(settings) as ledger:
        rows = ledger.all_series(state, arguments.limit)
        counts = ledger.counts()
    disk, paused = room(settings.node), PauseSwitch(settings.node.data_dir).since()
    if arguments.json:
        told = {"series": [_series(row) for row in rows], "counts": counts}
        told |= {"disk": asdict(disk) | {"below_reserve": disk.below_reserve}, "paused": paused}
        print(json.dumps(told))
        return EXIT_DONE
    if disk.below_reserve:
        print(f"DISK: {disk.text}")
    if paused:
        print(f"PAUSED {paused}: no analysis begins until `flairnode jobs resume`")
    for row in rows:
        print(
            f"{row.last_received_at:%Y-%m-%d %H:%M:%S}  {row.state:<12}  {row.reason or '-':<28}"
            f"{row.instances:>5} instances  {row.job_id or '-':<43}  {row.series_instance_uid}"
        )
    if not rows:
        print("nothing was received yet" if state is None else f"no series is {state}")
    return EXIT_DONE


def run_show(arguments: argparse.Namespace) -> int:
    """The rows of a series, its jobs, their deliveries and its history."""
    settings = load_settings(arguments.config)
    with _ledger(settings) as ledger:
        row, job = _find(ledger, arguments.id)
        shown = _in_full(ledger, row)
        notes = _notes(settings, ledger, row)
    if arguments.json:
        print(json.dumps(shown | {"notes": notes}))
        return EXIT_DONE
    print(_headline(row, job))
    for name, value in _series(row).items():
        print(f"  {name:<22} {value}")
    for one in shown["jobs"]:
        print(f"  job {one['job_id']}: {one['state']} {one['reason']}".rstrip())
        for delivery in one["deliveries"]:
            print(
                f"    {delivery['destination']}: {delivery['state']} {delivery['sop_instance_uid']}"
            )
    _print_notes(notes)
    return EXIT_DONE


def run_explain(arguments: argparse.Namespace) -> int:
    """The story of a series in order, and what would help."""
    settings = load_settings(arguments.config)
    with _ledger(settings) as ledger:
        row, job = _find(ledger, arguments.id)
        history = ledger.history(row.series_instance_uid)
        notes = _notes(settings, ledger, row)
        decision = next(iter(ledger.decisions_of(row.series_instance_uid)), None)
    to_do = advice(row)
    if arguments.json:
        told = {
            "series_instance_uid": row.series_instance_uid,
            "state": row.state,
            "reason": row.reason,
            "explanation": row.explanation,
            "advice": to_do,
            "notes": notes,
            "decision": None if decision is None else _decision(decision),
            "history": [
                {
                    "at": one.at.isoformat(),
                    "state": one.state,
                    "reason": one.reason,
                    "explanation": one.explanation,
                    "job_id": one.job_id,
                }
                for one in history
            ],
        }
        print(json.dumps(told))
        return EXIT_DONE
    print(_headline(row, job))
    for one in history:
        why = ": ".join(part for part in (one.reason, one.explanation) if part)
        print(f"  {one.at:%Y-%m-%d %H:%M:%S} UTC  {one.state}" + (f"  {why}" if why else ""))
    _print_notes(notes)
    if decision is not None:
        score = "" if decision.score is None else f", score {decision.score:.2f}"
        print(f"Selection: {'selected' if decision.chosen else decision.reason}{score}")
        for line in (decision.explanation, *rule_lines(decision.rule, decision.change)):
            print(f"  {line}")
        if decision.rules_digest:
            print(f"  rules in force then: {decision.rules_digest[:12]}")
    if to_do:
        print(f"What to do: {to_do}")
    return EXIT_DONE


def run_retry(arguments: argparse.Namespace) -> int:
    """Queue a job again, or let a series without one be decided again; the service sees it."""
    settings = load_settings(arguments.config)
    if arguments.all or not arguments.id:
        return _retry_all(arguments, settings)
    with _ledger(settings) as ledger:
        row, job = _find(ledger, arguments.id)
        current = retry_series(ledger, row, job)
        shown = _in_full(ledger, _again(ledger, row))
    _note(settings, "retry", row, current)
    return _changed(arguments, shown)


def run_cancel(arguments: argparse.Namespace) -> int:
    """End a job; what was sent already stays where it is."""
    settings = load_settings(arguments.config)
    with _ledger(settings) as ledger:
        row, job = _find(ledger, arguments.id)
        if job is None and not row.job_id:
            raise RetryRefusedError(f"series {row.series_instance_uid} has no job to cancel")
        cancelled = ledger.cancel((job or ledger.job(row.job_id)).job_id)
        shown = _in_full(ledger, _again(ledger, row))
    _note(settings, "cancel", row, cancelled)
    return _changed(arguments, shown)


def _retry_all(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.id or not arguments.all or not arguments.reason:
        raise RetryRefusedError("either one series or job, or --all with --reason")
    if arguments.destination and arguments.destination not in {p.name for p in settings.peers}:
        raise UnknownJobError(f"no peer is named {arguments.destination}")
    with _ledger(settings) as ledger:
        done = retry_all(
            settings,
            ledger,
            reason=arguments.reason,
            destination=arguments.destination or "",
            user=getpass.getuser(),
        )
    if arguments.json:
        print(json.dumps(asdict(done)))
        return EXIT_DONE
    print(f"{len(done.retried)} jobs are tried again")
    for job_id, why in done.refused.items():
        print(f"  not {job_id}: {why}")
    return EXIT_DONE


def run_resolve(arguments: argparse.Namespace) -> int:
    """Keep one of two objects with the same SOP Instance UID; the other one is deleted."""
    settings = load_settings(arguments.config)
    with _ledger(settings) as ledger:
        row, _ = _find(ledger, arguments.id)
        resolved = resolve(
            settings,
            ledger,
            row,
            keep=arguments.keep,
            digest=arguments.digest,
            user=getpass.getuser(),
        )
        shown = _in_full(ledger, _again(ledger, row)) | {"resolved": resolved}
    return _changed(arguments, shown)


def run_pause(arguments: argparse.Namespace) -> int:
    """No worker begins another analysis."""
    settings = load_settings(arguments.config)
    _ledger(settings).close()  # says so where no node ever ran
    changed = PauseSwitch(settings.node.data_dir).turn_on(getpass.getuser())
    if changed:
        _note_switch(settings, "pause")
    said = "paused: studies are still received, results still delivered"
    return _say(arguments, {"paused": True, "changed": changed}, said)


def run_resume(arguments: argparse.Namespace) -> int:
    """Analyses go on."""
    settings = load_settings(arguments.config)
    changed = PauseSwitch(settings.node.data_dir).turn_off()
    if changed:
        _note_switch(settings, "resume")
    said = "analyses go on" if changed else "nothing was paused"
    return _say(arguments, {"paused": False, "changed": changed}, said)


def run_drain(arguments: argparse.Namespace) -> int:
    """Pause, then wait for what runs; it stays paused, over a restart as well, until `resume`."""
    settings = load_settings(arguments.config)
    if PauseSwitch(settings.node.data_dir).turn_on(getpass.getuser()):
        _note_switch(settings, "drain")
    deadline, quiet = time.monotonic() + arguments.timeout, 0
    with _ledger(settings) as ledger:
        while quiet < _QUIET_LOOKS and time.monotonic() < deadline:
            # The service marks what runs once a second: one look alone could come too early.
            quiet = 0 if ledger.jobs(SeriesState.RUNNING, limit=1) else quiet + 1
            time.sleep(1.0)
        running = len(ledger.jobs(SeriesState.RUNNING))
    if running:
        why = f"{running} analyses still run after {arguments.timeout:g} s; it stays paused"
        return _refuse(arguments, EXIT_REFUSED, "running", why)
    said = "no analysis runs: stop the service, upgrade, start it, then `flairnode jobs resume`"
    return _say(arguments, {"paused": True, "running": 0}, said)


def _say(arguments: argparse.Namespace, told: dict[str, Any], said: str) -> int:
    print(json.dumps(told) if arguments.json else said)
    return EXIT_DONE


def _note_switch(settings: Settings, what: str) -> None:
    data_dir = settings.node.data_dir
    audit = Audit(data_dir / "audit", site_key(data_dir))
    audit.append(AuditEvent.OPERATOR, what=what, user=getpass.getuser())


def _notes(settings: Settings, ledger: Ledger, row: SeriesRow) -> list[dict[str, str]]:
    """Where the notes that say why this series was not analysed are; also those of fewer slices."""
    results = ResultsFolder(settings.node.data_dir)
    found = []
    for job in ledger.jobs_of(row.series_instance_uid):
        result = results.read(job.job_id)
        uids = (
            {one.sop_instance_uid for one in result.objects if one.kind == "note"} if result else ()
        )
        found += [
            {
                "job_id": job.job_id,
                "reason": result.reason if result is not None else "",
                "destination": one.destination,
                "state": one.state,
            }
            for one in ledger.deliveries(job.job_id)
            if one.sop_instance_uid in uids
        ]
    return found


def _print_notes(notes: Sequence[Mapping[str, str]]) -> None:
    for note in notes:
        print(f"  note that says why ({note['reason']}): {note['state']} at {note['destination']}")


def _changed(arguments: argparse.Namespace, shown: dict[str, Any]) -> int:
    if arguments.json:
        print(json.dumps(shown))
    else:
        print(f"{shown['series_instance_uid']} is {shown['state']} now")
    return EXIT_DONE


def _note(settings: Settings, what: str, row: SeriesRow, job: Job | None) -> None:
    data_dir = settings.node.data_dir
    Audit(data_dir / "audit", site_key(data_dir)).append(
        AuditEvent.OPERATOR,
        what=what,
        user=getpass.getuser(),
        study=row.study_instance_uid,
        series=row.series_instance_uid,
        job=job.job_id if job is not None else "",
    )


def _action(
    actions: Any,  # noqa: ANN401
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text)
    parser.add_argument("--config", type=Path, required=True, help="settings of the site (TOML)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=_saying_why_not(run))
    return parser


def _saying_why_not(
    run: Callable[[argparse.Namespace], int],
) -> Callable[[argparse.Namespace], int]:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except UnknownJobError as error:
            return _refuse(arguments, EXIT_WRONG_ARGUMENTS, "unknown", str(error.args[0]))
        except RetryRefusedError as error:
            return _refuse(arguments, EXIT_REFUSED, "refused", str(error))

    return guarded


def _refuse(arguments: argparse.Namespace, status: int, reason: str, message: str) -> int:
    if arguments.json and status != EXIT_WRONG_ARGUMENTS:
        print(json.dumps({"outcome": "refused", "reason": reason, "explanation": message}))
    print(f"flairnode jobs: {message}", file=sys.stderr)
    return status


def _ledger(settings: Settings) -> Ledger:
    path = settings.node.data_dir / "intake.sqlite"
    if not path.is_file():
        raise UnknownJobError(
            f"{path}: no such file; has `flairnode serve` run with this data_dir?"
        )
    return Ledger(path)


def _find(ledger: Ledger, wanted: str) -> tuple[SeriesRow, Job | None]:
    """The series that is meant, and the job if it was named by one.

    Raises:
        UnknownJobError: Nothing is called that, or several jobs are.
    """
    row = ledger.series(wanted)
    if row is not None:
        return row, None
    jobs = ledger.jobs_named(wanted) if len(wanted) >= _SHORTEST_PREFIX else []
    if len(jobs) != 1:
        what = f"{len(jobs)} jobs begin with" if jobs else "no series or job is called"
        raise UnknownJobError(f"{what} {wanted}")
    found = ledger.series(jobs[0].series_instance_uid)
    if found is None:
        raise UnknownJobError(f"job {jobs[0].job_id} has no series")
    return found, jobs[0]


def _again(ledger: Ledger, row: SeriesRow) -> SeriesRow:
    return ledger.series(row.series_instance_uid) or row


def _headline(row: SeriesRow, job: Job | None) -> str:
    state, reason = (job.state, job.reason) if job is not None else (row.state, row.reason)
    name = f"job {job.job_id}" if job is not None else f"series {row.series_instance_uid}"
    return f"{name}: {state}" + (f", {reason}" if reason else "")


def _series(row: SeriesRow) -> dict[str, Any]:
    return {
        "series_instance_uid": row.series_instance_uid,
        "study_instance_uid": row.study_instance_uid,
        "state": row.state.value,
        "reason": row.reason,
        "explanation": row.explanation,
        "score": row.score,
        "instances": row.instances,
        "counts": row.counts.value,
        "revision": row.revision,
        "job_id": row.job_id,
        "calling_ae_title": row.calling_ae_title,
        "first_received_at": row.first_received_at.isoformat(),
        "last_received_at": row.last_received_at.isoformat(),
    }


def _decision(decision: StoredDecision) -> dict[str, Any]:
    return {
        "at": decision.at.isoformat(),
        "chosen": decision.chosen,
        "reason": decision.reason,
        "rule": decision.rule,
        "explanation": decision.explanation,
        "change": decision.change,
        "score": decision.score,
        "rules_digest": decision.rules_digest,
    }


def _in_full(ledger: Ledger, row: SeriesRow) -> dict[str, Any]:
    return _series(row) | {
        "jobs": [
            {
                "job_id": job.job_id,
                "workflow_id": job.workflow_id,
                "state": job.state.value,
                "reason": job.reason,
                "explanation": job.explanation,
                "predecessor": job.predecessor,
                "instances": len(ledger.sop_instances_of(job.job_id)),
                "created_at": job.created_at.isoformat(),
                "updated_at": job.updated_at.isoformat(),
                "deliveries": [
                    {
                        "destination": one.destination,
                        "sop_instance_uid": one.sop_instance_uid,
                        "state": one.state,
                    }
                    for one in ledger.deliveries(job.job_id)
                ],
            }
            for job in ledger.jobs_of(row.series_instance_uid)
        ],
        "conflicts": [
            {
                "sop_instance_uid": one.sop_instance_uid,
                "stored": {"digest": one.stored.digest, "path": one.stored.path.as_posix()},
                "received": {"digest": one.digest, "path": one.path.as_posix()},
            }
            for one in ledger.conflicts_of(row.series_instance_uid)
        ],
    }
