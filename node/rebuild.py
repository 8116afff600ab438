"""A lost or damaged ledger, made again from what lies on disk.

The spool tells what was received, `outcome.json` beside each result tells what was made of it. What
no file tells is asked anew: series are selected again, and a result is looked for at its
destinations before it is sent, so nothing arrives there twice.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from dicom.errors import Outcome
from node.intake import received_instance, record_spool
from node.ledger import Counts, Job, Ledger, SeriesState
from node.outcome import OUTCOME_FILE, ResultsFolder
from node.spool import RefusedObjectError, Spool

log = structlog.get_logger(__name__)

LEDGER_FILE = "intake.sqlite"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was found on disk."""

    instances: int
    jobs: int
    lost_jobs: int
    """Results whose images are gone or whose `outcome.json` cannot be read; they stay on disk."""


def open_ledger(data_dir: Path) -> Ledger:
    """The ledger of `data_dir`, rebuilt if its file is damaged. One process does this: the service.

    Raises:
        LedgerVersionError: The ledger is of another version of flairnode.
    """
    path = data_dir / LEDGER_FILE
    try:
        ledger = Ledger(path)
        if ledger.quick_check():
            return ledger
        ledger.close()
    except sqlite3.OperationalError:
        raise  # locked or unreadable, not damaged
    except sqlite3.DatabaseError:
        log.exception("ledger.damaged")
    found = rebuild(data_dir)
    log.error("ledger.rebuilt", instances=found.instances, jobs=found.jobs)
    return Ledger(path)


def rebuild(data_dir: Path) -> Rebuilt:
    """Make `intake.sqlite` from spool and results; the old file is kept beside it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    for suffix in ("", "-wal", "-shm"):
        old = data_dir / f"{LEDGER_FILE}{suffix}"
        if old.exists():
            old.rename(data_dir / f"intake.{stamp}.damaged.sqlite{suffix}")
    spool = Spool(data_dir / "spool")
    with Ledger(data_dir / LEDGER_FILE) as ledger:
        instances = record_spool(spool, ledger)
        _record_conflicts(spool, ledger)
        jobs = lost = 0
        for outcome in sorted((data_dir / "results").glob(f"*/{OUTCOME_FILE}")):
            if _restore(ledger, outcome):
                jobs += 1
            else:
                lost += 1
                log.warning("ledger.lost-job", job=outcome.parent.name)
    return Rebuilt(instances, jobs, lost)


def _record_conflicts(spool: Spool, ledger: Ledger) -> None:
    for path in spool.conflicts():
        try:
            file = spool.describe(path)
        except RefusedObjectError as error:
            log.warning("spool.strange-file", reason=error.reason)
            continue
        first = ledger.instance(file.identity.sop_instance_uid)
        if first is None or first.digest == file.digest:
            continue  # the first of the two is gone, or gave way: there is nothing to contradict
        ledger.record_conflict(
            received_instance(file.identity, file.digest, path, file.calling_ae_title)
        )


def _restore(ledger: Ledger, outcome: Path) -> bool:
    try:
        content = json.loads(outcome.read_bytes())
        job, uids = _job(content), [str(uid) for uid in content["job"]["sop_instance_uids"]]
    except (ValueError, KeyError, TypeError):
        return False
    if not set(uids) <= ledger.sop_instance_uids():
        return False
    ledger.restore_job(job, uids, content["job"].get("refusal"))
    if ResultsFolder(outcome.parents[2]).is_recalled(job.job_id):
        ledger.recall(job.job_id, "before the ledger was rebuilt")
    return True


def _job(content: Mapping[str, Any]) -> Job:
    """What was made is owed to its destinations again; any other end stands.

    A note is on its way, with its reason: so no FLAIR of the study is held for its sake.
    """
    record, ended = content["job"], Outcome(content["outcome"])
    analysed = ended is Outcome.ANALYSED
    state = SeriesState.QUEUED if analysed else SeriesState(ended)
    if ended is Outcome.NOT_ANALYSED and content["objects"]:
        state = SeriesState.DELIVERING
    created = datetime.fromisoformat(record["created_at"])
    return Job(
        job_id=record["job_id"],
        workflow_id=content["workflow_id"],
        study_instance_uid=record["study_instance_uid"],
        series_instance_uid=record["series_instance_uid"],
        revision=record["revision"],
        pack_digest=record["pack_digest"],
        settings_digest=record["settings_digest"],
        predecessor=record["predecessor"],
        counts=Counts(record["counts"]),
        state=state,
        reason="" if analysed else content["reason"],
        explanation="" if analysed else content["explanation"],
        created_at=created,
        updated_at=created,
    )
