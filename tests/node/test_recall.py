"""A model is recalled: what is listed, withdrawn where it was sent, and made anew."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import KeyObjectSelectionDocumentStorage

from config.settings import (
    DeliverySettings,
    Destination,
    EngineSettings,
    NodeSettings,
    Peer,
    Settings,
)
from dicom.errors import Outcome
from dicom.network.embedded_archive import EmbeddedArchive
from dicom.reference import DocumentReference
from node.archive import LOOPBACK
from node.cli import main
from node.engine import Engine
from node.ledger import Job, Ledger, RetryRefusedError, SeriesState
from node.outcome import JobOutcome, ResultFile, ResultsFolder
from node.rejections import RecallsFolder, Rejections
from node.workflow import (
    ANALYSIS,
    SERIES,
    WORKFLOW_VERSION,
    Analysis,
    Casework,
    delivery_queue,
)
from tests.node.registry import forget_services
from tests.node.test_workflow import PACK, SETTINGS_DIGEST, Bench, steps, write_sr

pytestmark = pytest.mark.timeout(240)

OTHER_PACK = "c" * 64
STEPS = {"rejection that arrives": ["attempt rejection"]}
"""As `STEPS` of test_workflow.py: the entry of a version never changes."""


@dataclass
class RecallBench(Bench):
    """Results with the headers that a real one has."""

    rejections: Rejections | None = None

    def analyse(self, job_id: str) -> Outcome:
        self.analysed.append(job_id)
        order = self.results.read_order(job_id)
        part = self.results.begin(job_id)
        one = write_sr(part, str(order.job["study_instance_uid"]), job_id)
        with_header(one)
        ended = JobOutcome(Outcome.ANALYSED, "", "", order.workflow_id, self.research, (one,))
        report = {"model": {"name": "small", "version": "1.0", "digest": PACK}}
        self.results.finish(job_id, ended, order, report)
        return Outcome.ANALYSED

    def run(self, job: Job) -> Job:
        self.casework.submit(job)
        return self.wait(job, SeriesState.DELIVERED)

    @property
    def config(self) -> Path:
        return self.settings.node.data_dir / "site.toml"


def with_header(one: ResultFile) -> None:
    sr = dcmread(one.path)
    sr.PatientName, sr.PatientID, sr.PatientBirthDate, sr.PatientSex = "Test", "1", "", ""
    sr.AccessionNumber = sr.StudyID = sr.StudyDate = sr.StudyTime = ""
    sr.ReferringPhysicianName = ""
    sr.SeriesDescription = "RESEARCH - NOT FOR CLINICAL USE: report"
    sr.save_as(one.path)


@pytest.fixture(scope="module")
def whole_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecallBench]:
    forget_services()
    folder = tmp_path_factory.mktemp("recall")
    with EmbeddedArchive(folder / "pacs", "PACS", ["FLAIRNODE"]) as archive:
        port = archive.dicom_port
        settings = Settings(
            node=NodeSettings(data_dir=folder),
            peers=(Peer(name="pacs", ae_title="PACS", host=LOOPBACK, port=port),),
            destinations=(Destination(peer="pacs", research=True),),
            delivery=DeliverySettings(attempts=2, first_pause_s=0.05, timeout_s=10.0),
            engine=EngineSettings(poll_s=0.05),
        )
        ledger, results = Ledger(folder / "intake.sqlite"), ResultsFolder(folder)
        engine = Engine(settings, "recall-bench", WORKFLOW_VERSION)
        bench: RecallBench
        casework = Casework(
            settings, ledger, results, engine, Analysis(lambda job_id: bench.analyse(job_id))
        )
        rejections = Rejections(settings, ledger, engine)
        archives = {"pacs": archive}
        bench = RecallBench(
            settings, ledger, results, engine, casework, archives, rejections=rejections
        )
        engine.launch([SERIES, ANALYSIS, *map(delivery_queue, settings.destinations)])
        bench.config.write_text(
            f'[node]\ndata_dir = "{folder}"\n[[peers]]\nname = "pacs"\nae_title = "PACS"\n'
            f'host = "{LOOPBACK}"\nport = {port}\n'
            '[[destinations]]\npeer = "pacs"\nresearch = true\n'
        )
        yield bench
        engine.destroy()
        ledger.close()


def recall(bench: RecallBench, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    status = main(
        ["recall", "--config", str(bench.config), "--model", PACK[:12], "--json", *options]
    )
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    told["status"] = status
    return told


def notes_at(bench: RecallBench) -> list[str]:
    archive = bench.archives["pacs"]
    return [
        uid
        for uid in archive.sop_instance_uids()
        if dcmread(archive.folder / f"{uid}.dcm", force=True).SOPClassUID
        == KeyObjectSelectionDocumentStorage
    ]


def test_a_recall_from_the_list_to_the_new_report(
    whole_bench: RecallBench, capsys: pytest.CaptureFixture[str]
) -> None:
    """One story, in order: delivered, listed, rejected once for good, analysed again."""
    bench = whole_bench
    job = bench.run(bench.receive("1.8.1"))
    result = bench.results.read(job.job_id)
    assert result is not None
    (report,) = result.objects

    listed = recall(bench, capsys)
    (one,) = listed["results"]
    assert (one["series_instance_uid"], one["job_id"]) == ("1.8.1", job.job_id)
    assert one["model"]["version"] == "1.0"
    (held,) = one["objects"]
    assert held["sop_instance_uid"] == report.sop_instance_uid
    assert held["destinations"][0]["destination"] == "pacs"
    assert held["destinations"][0]["state"] == "confirmed"
    assert bench.ledger.job(job.job_id).reason == "", "a list changes nothing"

    for _ in range(2):  # twice is once
        told = recall(bench, capsys, "--reject", "--reason", "quality")
        assert told["status"] == 0
        assert told["not_rejected"] == []
    (note,) = RecallsFolder(bench.settings.node.data_dir).notes()
    assert bench.rejections is not None
    assert bench.rejections.resume() == 1
    deadline = time.monotonic() + 60
    while bench.ledger.rejections().get((note.note_uid, "pacs"), ("", None))[0] != "confirmed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert notes_at(bench) == [note.note_uid]
    sent = dcmread(note.path)
    assert sent.ConceptNameCodeSequence[0].CodeValue == "113001"
    assert sent.SeriesDescription == "RESEARCH - NOT FOR CLINICAL USE: rejected"
    assert note.sop_instance_uids == (report.sop_instance_uid,)
    deadline = time.monotonic() + 60
    name = f"rejection-{note.note_uid}.to.pacs"
    while bench.engine.states(name).get(name) != "SUCCESS":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert steps(name) == STEPS["rejection that arrives"]
    assert bench.rejections.resume() == 0

    row = bench.ledger.series("1.8.1")
    assert row is not None
    assert (row.state, row.reason) == (SeriesState.DELIVERED, "recalled")
    with pytest.raises(RetryRefusedError, match="is recalled"):
        bench.ledger.retry(job.job_id)

    again = bench.ledger.analyse_again("1.8.1", OTHER_PACK, SETTINGS_DIGEST)
    assert (again.predecessor, again.state) == (job.job_id, SeriesState.QUEUED)
    bench.run(again)
    order = bench.results.read_order(again.job_id)
    header = dcmread(report.path)
    assert order.predecessor == DocumentReference(
        "1.8.1.9", str(header.SeriesInstanceUID), str(header.SOPClassUID), report.sop_instance_uid
    )
    with pytest.raises(RetryRefusedError, match="was analysed with that model"):
        bench.ledger.analyse_again("1.8.1", OTHER_PACK, SETTINGS_DIGEST)


def test_what_was_not_sent_yet_is_not_sent_any_more(
    whole_bench: RecallBench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = whole_bench
    job = bench.receive("1.8.2")
    recall(bench, capsys, "--reject")
    assert bench.ledger.job(job.job_id).state is SeriesState.SKIPPED
    bench.casework.submit(job)
    bench.wait(job, SeriesState.SKIPPED)
    assert job.job_id not in bench.analysed
    with pytest.raises(RetryRefusedError, match="recalled"):
        bench.ledger.retry(job.job_id)


def test_an_unknown_model_is_said(
    whole_bench: RecallBench, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["recall", "--config", str(whole_bench.config), "--model", "f" * 12])
    assert status == 2
    assert "no result is of a model" in capsys.readouterr().err
