"""The one question after every fault and one restart: is anything lost, doubled, or wrong?

Received = delivered + skipped + not analysed + held + failed, by SOP Instance UID. Nothing that a
sender was promised is missing, or holds other pixels. No result rests on another set of images than
the one on disk. The archive holds each object of a result exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from node.archive import Orthanc
from node.ledger import ENDS, Job, Ledger, SeriesRow, SeriesState
from node.outcome import ResultsFolder
from node.spool import Spool


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    acknowledged: int
    ends: Mapping[str, int]
    """Instances by the end of their series."""
    lost: Sequence[str] = ()
    doubled: Sequence[str] = ()
    wrong: Sequence[str] = ()
    """A result on another set, an unbalanced ledger, a series without an end."""
    objects: int = 0
    """Held by all archives together."""

    @property
    def clean(self) -> bool:
        """Nothing is wrong at all."""
        return not (self.lost or self.doubled or self.wrong)


@dataclass
class _Findings:
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def judge(
    data_dir: Path,
    archives: Collection[Orthanc],
    acknowledged: Mapping[str, Path],
    *,
    settled: bool = True,
) -> Verdict:
    """Compare what was promised with ledger, spool, results and archives.

    Args:
        data_dir: Of the node.
        archives: Its destinations.
        acknowledged: SOP Instance UID -> the file that was sent.
        settled: Every series must have come to its end.
    """
    found = _Findings()
    with Ledger(data_dir / "intake.sqlite") as ledger:
        oracle = ledger.oracle()
        rows = ledger.all_series(limit=1_000_000)
        if not oracle.balanced:
            found.lost += [f"no file: {uid}" for uid in oracle.missing_files]
            if oracle.received != sum(oracle.by_state.values()):
                found.lost.append(f"{oracle.received} received, {dict(oracle.by_state)}")
        _judge_promises(ledger, rows, acknowledged, found)
        if settled:
            found.wrong += [
                f"no end: {row.series_instance_uid} is {row.state.value}"
                for row in rows
                if row.state not in ENDS
            ]
        objects = _judge_results(data_dir, ledger, rows, archives, found)
    ends = {state.value: count for state, count in oracle.by_state.items()}
    return Verdict(len(acknowledged), ends, found.lost, found.doubled, found.wrong, objects)


def _judge_promises(
    ledger: Ledger,
    rows: Sequence[SeriesRow],
    acknowledged: Mapping[str, Path],
    found: _Findings,
) -> None:
    spool = Spool(ledger.spool)
    discarded = _discarded(ledger)
    contradicted = {row.series_instance_uid for row in rows if row.reason == "conflicting-instance"}
    for uid, path in acknowledged.items():
        row = ledger.instance(uid)
        if row is None:
            found.lost.append(f"no row: {uid}")
            continue
        kept = spool.folder / row.path
        if row.series_instance_uid in discarded:
            continue
        if not kept.is_file():
            found.lost.append(f"no file: {uid}")
        elif not _same(kept, path) and not (
            row.series_instance_uid in contradicted
            and any(_same(spool.folder / other, path) for other in spool.conflicts())
        ):
            found.lost.append(f"other content: {uid}")


def _judge_results(
    data_dir: Path,
    ledger: Ledger,
    rows: Sequence[SeriesRow],
    archives: Collection[Orthanc],
    found: _Findings,
) -> int:
    results = ResultsFolder(data_dir)
    jobs = ledger.jobs(limit=1_000_000)
    owed: Counter[str] = Counter()
    sent: dict[str, Job] = {}
    for job in jobs:
        objects = {one.sop_instance_uid for one in ledger.deliveries(job.job_id)}
        result = results.read(job.job_id)
        if result is not None:
            objects |= {one.sop_instance_uid for one in result.objects}
        sent |= dict.fromkeys(objects, job)
        if job.state is SeriesState.DELIVERED:
            owed.update(objects)
            _judge_set(ledger, rows, job, found)
    found.doubled += [f"two jobs made {uid}" for uid, count in owed.items() if count > 1]
    total = 0
    for archive in archives:
        total += _judge_archive(archive, owed, sent, ledger, found)
    return total


def _judge_set(ledger: Ledger, rows: Sequence[SeriesRow], job: Job, found: _Findings) -> None:
    """The latest delivered job of a series holds every instance of it, on disk as in the ledger."""
    row = next(r for r in rows if r.series_instance_uid == job.series_instance_uid)
    if row.job_id != job.job_id:
        return  # an earlier revision: its successor names it
    used = set(ledger.sop_instances_of(job.job_id))
    recorded = {one.sop_instance_uid for one in ledger.instances_of(job.series_instance_uid)}
    if used != recorded:
        found.wrong.append(f"{job.job_id[:12]} used {len(used)} of {len(recorded)} instances")
    if job.series_instance_uid not in _discarded(ledger):
        folder = ledger.spool / job.study_instance_uid / job.series_instance_uid
        on_disk = {path.stem for path in folder.glob("*.dcm")}
        if used != on_disk:
            found.wrong.append(f"{job.job_id[:12]} used {len(used)}, {len(on_disk)} are on disk")


def _judge_archive(
    archive: Orthanc,
    owed: Collection[str],
    sent: Mapping[str, Job],
    ledger: Ledger,
    found: _Findings,
) -> int:
    held: Counter[str] = Counter()
    for instance in archive.get("/instances?expand"):
        uid = str(instance["MainDicomTags"]["SOPInstanceUID"])
        held[uid] += 1
        if uid not in sent:
            found.wrong.append(f"an object of no job: {uid}")
            continue
        file = archive.request("GET", f"/instances/{instance['ID']}/file")
        sources = _sources(dcmread(BytesIO(file)), sent[uid].series_instance_uid)
        if sources is not None and sources != set(ledger.sop_instances_of(sent[uid].job_id)):
            found.wrong.append(f"{uid} rests on {len(sources)} other images than its job")
    found.lost += [f"not in {archive.ae_title}: {uid}" for uid in owed if uid not in held]
    found.doubled += [f"twice in {archive.ae_title}: {u}" for u, n in held.items() if n > 1]
    if (stores := archive.stored_count()) != len(held):
        found.doubled.append(f"{stores} stores of {len(held)} objects in {archive.ae_title}")
    return len(held)


def _sources(report: Dataset, series_instance_uid: str) -> set[str] | None:
    """SOP Instance UIDs of the series that an SR or SEG says it rests on; None if it says none."""
    if report.get("Modality") not in ("SR", "SEG"):
        return None
    named: set[str] = set()
    studies = report.get("CurrentRequestedProcedureEvidenceSequence", [])
    groups = [one for study in studies for one in study.ReferencedSeriesSequence]
    groups += report.get("ReferencedSeriesSequence", [])
    for group in groups:
        if group.SeriesInstanceUID == series_instance_uid:
            items = group.get("ReferencedSOPSequence") or group.get("ReferencedInstanceSequence")
            named |= {str(item.ReferencedSOPInstanceUID) for item in items or ()}
    return named or None


def _discarded(ledger: Ledger) -> set[str]:
    query = "SELECT series_instance_uid FROM series WHERE discarded_at IS NOT NULL"
    return {row["series_instance_uid"] for row in ledger._rows(query)}


def _same(kept: Path, sent: Path) -> bool:
    return _compared(kept, kept.stat().st_mtime_ns, sent)


@cache  # the same files are looked at after every fault
def _compared(kept: Path, _changed_ns: int, sent: Path) -> bool:
    return bool(dcmread(kept) == dcmread(sent))
