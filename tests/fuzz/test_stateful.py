"""Intake, completeness and delivery against a model that a child could keep: a set of what was
acknowledged. Whatever comes in whatever order, with the power failing in between, it is all there.

The ledger and the spool are the real ones; the clock, the analysis and the destination stand in.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydicom import dcmread

from config.settings import CompletenessSettings, NodeSettings, Settings
from dicom.network.scp import OUT_OF_RESOURCES, SUCCESS, ReceivedObject
from node.audit import Audit
from node.completeness import QuietClock
from node.intake import Intake
from node.ledger import CONFLICTING, ENDS, Job, Ledger, SeriesState
from node.sitekey import site_key
from node.spool import Spool
from tests.fuzz.seeds import small_series
from tests.raw_peer import dataset_of

QUIET_S = 30.0
SERIES, SLICES = 2, 5


def _objects(folder: Path) -> dict[tuple[int, int, int], ReceivedObject]:
    """By series, slice and variant: variant 1 has the same UIDs and other pixels."""
    (template, *_) = small_series(folder / "template")
    found = {}
    for series in range(SERIES):
        for number in range(SLICES):
            for variant in (0, 1):
                image = dcmread(template)
                image.SeriesInstanceUID = f"1.2.3.2.{series}"
                image.SOPInstanceUID = f"1.2.3.4.{series}.{number}"
                image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
                image.InstanceNumber = number + 1
                image.ImagePositionPatient = ["0", "0", str(5.5 * number)]
                pixels = bytearray(image.PixelData)
                pixels[0] = number + 100 * variant
                image.PixelData = bytes(pixels)
                path = folder / f"{series}-{number}-{variant}.dcm"
                image.save_as(path)
                sop_class, uid, dataset = dataset_of(path)
                found[series, number, variant] = ReceivedObject(
                    sop_class, uid, str(image.file_meta.TransferSyntaxUID), dataset, "PACS", "h"
                )
    return found


class Node(RuleBasedStateMachine):
    """A node on a folder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="stateful-"))
        self.objects = _objects(self.folder)
        self.acknowledged: dict[str, bytes] = {}
        """SOP Instance UID -> the dataset that was acknowledged first."""
        self.contradicted: set[str] = set()
        self.jobs: dict[str, Job] = {}
        self.there: dict[str, str] = {}
        """What the destination holds: result -> job. A result's name follows from its input."""
        self.now_s = 0.0
        self.begin()

    def begin(self) -> None:
        data_dir = self.folder / "data"
        self.ledger = Ledger(data_dir / "intake.sqlite")
        self.spool = Spool(data_dir / "spool")
        settings_ = Settings(
            node=NodeSettings(data_dir=data_dir, reserve_mb=0),
            completeness=CompletenessSettings(quiet_period_s=QUIET_S),
            selection={"minimum_slices": 3},
        )
        self.intake = Intake(
            settings_,
            self.ledger,
            self.spool,
            Audit(data_dir / "audit", site_key(data_dir)),
            pack_digest="a" * 64,
            settings_digest="b" * 64,
            enqueue=lambda job: self.jobs.setdefault(job.job_id, job),
            clock=QuietClock(lambda: self.now_s),
        )
        self.intake.reconcile()

    def send(self, one: ReceivedObject) -> int:
        status = self.intake.on_store(one)
        if status == SUCCESS:
            first = self.acknowledged.setdefault(one.sop_instance_uid, bytes(one.dataset))
            if first != one.dataset:
                self.contradicted.add(one.sop_instance_uid)
        return status

    @rule(
        series=st.integers(0, SERIES - 1),
        number=st.integers(0, SLICES - 1),
        variant=st.sampled_from((0, 0, 0, 0, 1)),
    )
    def a_slice_comes(self, series: int, number: int, variant: int) -> None:
        assert self.send(self.objects[series, number, variant]) == SUCCESS

    @rule(series=st.integers(0, SERIES - 1))
    def a_whole_series_comes(self, series: int) -> None:
        for number in range(SLICES):
            assert self.send(self.objects[series, number, 0]) == SUCCESS

    @rule(series=st.integers(0, SERIES - 1), number=st.integers(0, SLICES - 1))
    def a_slice_comes_and_the_disk_fails(self, series: int, number: int) -> None:
        def broken(*_: Any) -> None:  # noqa: ANN401
            raise OSError(28, "No space left on device")

        one = self.objects[series, number, 0]
        write, self.spool._write_part = self.spool._write_part, broken  # type: ignore[method-assign]
        try:
            # What is there already needs no disk.
            known = one.sop_instance_uid in self.acknowledged
            status = self.send(one)
            assert status == OUT_OF_RESOURCES or known
        finally:
            self.spool._write_part = write  # type: ignore[method-assign]

    @rule(seconds=st.sampled_from((1.0, QUIET_S)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.intake.sweep()

    @rule(where=st.sampled_from(("renamed", "recorded", "idle")))
    def the_power_fails(self, where: str) -> None:
        """With a file that has no row; with a row that is not on disk; in between two objects."""
        if where == "renamed":
            one = self.objects[0, SLICES - 1, 0]
            record, self.ledger.record = self.ledger.record, None  # type: ignore[method-assign]
            try:
                self.intake.on_store(one)
            except TypeError:
                pass  # the end of the process: nobody was told
            finally:
                self.ledger.record = record  # type: ignore[method-assign]
        elif where == "recorded":
            with self.ledger._transaction() as db:
                db.execute(
                    "DELETE FROM instances WHERE sop_instance_uid NOT IN"
                    " (SELECT sop_instance_uid FROM job_instances) AND sop_instance_uid NOT IN"
                    " (SELECT sop_instance_uid FROM conflicts)"
                )
        self.ledger.close()
        self.begin()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), fails=st.booleans())
    def a_job_is_done(self, data: st.DataObject, fails: bool) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        if self.ledger.job(job.job_id).state not in (SeriesState.QUEUED, SeriesState.RUNNING):
            return
        uids = set(self.ledger.sop_instances_of(job.job_id))
        on_disk = {dcmread(path).SOPInstanceUID for path in self.ledger.paths_of(job.job_id)}
        assert on_disk == uids, "computed on another set than the one on disk"
        if fails:
            self.ledger.set_state(job.job_id, SeriesState.FAILED, "stand-in", "it fails")
        else:
            self.ledger.set_state(job.job_id, SeriesState.DELIVERING)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), lost_answer=st.booleans())
    def a_result_is_sent(self, data: st.DataObject, lost_answer: bool) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        if self.ledger.job(job.job_id).state is not SeriesState.DELIVERING:
            return
        result = f"{sorted(self.ledger.sop_instances_of(job.job_id))}"
        assert self.there.setdefault(result, job.job_id) == job.job_id, "one result, two jobs"
        if not lost_answer:
            self.ledger.set_state(job.job_id, SeriesState.DELIVERED)

    @invariant()
    def everything_acknowledged_is_there(self) -> None:
        balance = self.ledger.oracle()
        assert balance.balanced, balance
        assert not balance.missing_files
        assert set(self.acknowledged) <= self.ledger.sop_instance_uids()
        for uid, dataset in self.acknowledged.items():
            row = self.ledger.instance(uid)
            assert row is not None
            assert (self.spool.folder / row.path).read_bytes().endswith(dataset)

    @invariant()
    def a_contradiction_is_held_and_both_are_kept(self) -> None:
        for uid in self.contradicted:
            row = self.ledger.instance(uid)
            assert row is not None
            series = self.ledger.series(row.series_instance_uid)
            assert series is not None
            assert (series.state, series.reason) == (SeriesState.HELD, CONFLICTING)
            assert list((self.spool.folder / "conflicts").glob(f"{uid}.*.dcm"))

    def teardown(self) -> None:
        """Left alone, everything comes to an end with a reason, or waits for its job."""
        for _ in range(3):
            self.now_s += QUIET_S
            self.intake.sweep()
        for row in self.ledger.all_series():
            waits = row.job_id in self.jobs
            assert row.state in ENDS or waits, row
            assert row.reason or row.state is SeriesState.DELIVERED or waits, row
        self.ledger.close()
        shutil.rmtree(self.folder)


Node.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestIntakeAndDelivery = Node.TestCase
