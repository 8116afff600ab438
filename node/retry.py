"""Many jobs tried again at once: what the command line and the page both do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from config.settings import Settings
from node.audit import Audit, AuditEvent
from node.delivery import ObjectState
from node.ledger import (
    CONFLICTING,
    LATER_FLAIR,
    MISSING_FILES,
    MIXED_PATIENT,
    Job,
    Ledger,
    RetryRefusedError,
    SeriesRow,
    SeriesState,
)
from node.sitekey import site_key

_NOT_TAKEN = (ObjectState.UNDELIVERABLE, ObjectState.UNREACHABLE, ObjectState.REFUSED)
_OF_THE_INTAKE = frozenset({CONFLICTING, LATER_FLAIR, MISSING_FILES, MIXED_PATIENT, "incomplete"})
"""Reasons that the intake gave, whatever a job of the series came to."""
_STATE_OF_REASON: Mapping[str, ObjectState] = {
    "undeliverable": ObjectState.UNDELIVERABLE,
    "destination-unreachable": ObjectState.UNREACHABLE,
    "destination-refused": ObjectState.REFUSED,
}
"""A note that did not arrive changes nothing about the end of its series: its delivery says it."""


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of it."""

    retried: tuple[str, ...]
    """Job ids."""
    refused: Mapping[str, str]
    """Job id -> why it cannot be tried again."""


def retry_series(ledger: Ledger, row: SeriesRow, job: Job | None = None) -> Job | None:
    """Try a job again, or let a series be decided once more; the job, if it was one.

    Args:
        ledger: The service sees there what is owed, within seconds.
        row: The series.
        job: One of its jobs; None: what it rests on.

    Raises:
        RetryRefusedError: It is in a state that a retry cannot change.
    """
    current = job
    if current is None and row.job_id and row.reason not in _OF_THE_INTAKE:
        # A job that only told why is not done again: the series is looked at again.
        told = ledger.refusal_of(row.job_id) is not None
        current = None if told else ledger.job(row.job_id)
    if current is not None:
        ledger.retry(current.job_id)
    else:
        ledger.reopen_series(row.series_instance_uid)
    return current


def retry_all(
    settings: Settings, ledger: Ledger, *, reason: str, destination: str = "", user: str
) -> Retried:
    """Try every job again that was held or failed for a reason; each is noted in the audit trail.

    What was built is not built again: of a job with a result only the sending is repeated, and what
    is there by now is not sent. Notes that a destination did not take are sent again as well.

    Args:
        settings: Of the site.
        ledger: The service sees there what is owed, within seconds.
        reason: Of the jobs.
        destination: Only jobs of which this peer lacks an object; "" for all.
        user: Who asked for it.
    """
    audit = Audit(settings.node.data_dir / "audit", site_key(settings.node.data_dir))
    retried: list[str] = []
    refused: dict[str, str] = {}

    def note(job: Job) -> None:
        retried.append(job.job_id)
        audit.append(
            AuditEvent.OPERATOR,
            what="retry",
            user=user,
            study=job.study_instance_uid,
            series=job.series_instance_uid,
            job=job.job_id,
            reason=reason,
        )

    state = _STATE_OF_REASON.get(reason)
    for job in _jobs(ledger, reason, state):
        if destination and not _lacks(ledger, job.job_id, destination, state):
            continue
        try:
            ledger.retry(job.job_id)
        except RetryRefusedError as error:
            refused[job.job_id] = str(error)
        else:
            note(job)
    if state is not None:
        for peer, job_id in ledger.undelivered(SeriesState.NOT_ANALYSED, [state]):
            if destination in ("", peer) and ledger.owe_again(
                job_id, peer, [state], ObjectState.UNREACHABLE
            ):
                note(ledger.job(job_id))
    return Retried(tuple(retried), refused)


def _jobs(ledger: Ledger, reason: str, state: ObjectState | None) -> list[Job]:
    """Held or failed for that reason, or held for another destination and for this one as well."""
    ends = (SeriesState.HELD, SeriesState.FAILED)
    found = {job.job_id: job for job in ledger.jobs_because(reason) if job.state in ends}
    if state is not None:
        for _, job_id in ledger.undelivered(SeriesState.HELD, [state]):
            found.setdefault(job_id, ledger.job(job_id))
    return list(found.values())


def _lacks(ledger: Ledger, job_id: str, destination: str, state: ObjectState | None) -> bool:
    states = _NOT_TAKEN if state is None else (state,)
    return any(
        one.destination == destination and one.state in states for one in ledger.deliveries(job_id)
    )
