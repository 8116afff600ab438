"""Service and worker in one process, with a small archive: what the ledger says at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from dbos import DBOS
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ExplicitVRLittleEndian
from pynetdicom import evt

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
from dicom.uids import result_uid
from node.archive import LOOPBACK, free_port
from node.engine import Engine
from node.ledger import Job, Ledger, ReceivedInstance, SeriesDecision, SeriesState
from node.outcome import JobOutcome, ResultFile, ResultsFolder
from node.patience import Patience
from node.workflow import (
    ANALYSIS,
    SERIES,
    WORKFLOW_VERSION,
    Analysis,
    Casework,
    delivery_queue,
)
from tests.node.registry import forget_services
from tests.node.standins import Answers, dimse_peer

pytestmark = pytest.mark.timeout(240)

PATIENCE_S = 120.0
PACK, SETTINGS_DIGEST = "a" * 64, "b" * 64
REFUSED = ("missing-slice", "1 slices missing")

# A workflow begun under one version is run by no other. Whoever changes the steps of a workflow
# raises WORKFLOW_VERSION and adds its steps here; the entry of a version never changes.
STEPS = {
    "flairnode-1": {
        "series": ["prepare", "analysis", "DBOS.getResult", "conclude", "delivery", "delivery"],
        "analysis": ["analyse"],
        "delivery that arrives": ["attempt", "settle"],
        "delivery that does not": ["attempt", "DBOS.sleep", "attempt", "settle"],
    },
    "flairnode-2": {
        "series": ["prepare", "analysis", "DBOS.getResult", "conclude", "delivery", "delivery"],
        "analysis": ["analyse"],
        "delivery that arrives": ["attempt", "settle"],
        "delivery that does not": ["attempt", "pause", "attempt", "settle"],
    },
}


def test_the_steps_of_this_version_are_those_recorded(bench: Bench) -> None:
    job = bench.receive("1.2.1")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.HELD)
    found = {
        "series": steps(job.workflow_id),
        "analysis": steps(f"{job.workflow_id}.analysis"),
        "delivery that arrives": steps(f"{job.workflow_id}.to.alive"),
        "delivery that does not": steps(f"{job.workflow_id}.to.dead"),
    }
    assert found == STEPS[WORKFLOW_VERSION]


def steps(workflow_id: str) -> list[str]:
    return [
        step["function_name"].rpartition(".<locals>.")[2]
        for step in DBOS.list_workflow_steps(workflow_id)
    ]


@dataclass
class Bench:
    """A service that also analyses: destinations `alive`, `dead` (research) and `clinic`."""

    settings: Settings
    ledger: Ledger
    results: ResultsFolder
    engine: Engine
    casework: Casework
    archives: dict[str, EmbeddedArchive]
    research: bool = True
    fate: dict[str, Outcome] = field(default_factory=dict)
    analysed: list[str] = field(default_factory=list)
    with_note: set[str] = field(default_factory=set)
    """Jobs that end `not_analysed` with a note."""

    def receive(self, series: str, instances: int = 2) -> Job:
        """A closed study of one chosen series."""
        for number in range(1, instances + 1):
            self.arrive(series, number)
        decision = SeriesDecision(series, chosen=True, outcome=Outcome.ANALYSED, reason="selected")
        (job,) = self.ledger.close_study(f"{series}.9", [decision], PACK, SETTINGS_DIGEST)
        return job

    def arrive(self, series: str, number: int) -> None:
        path = Path(f"{series}.9", series, f"{series}.{number}.dcm")
        (self.ledger.spool / path).parent.mkdir(parents=True, exist_ok=True)
        (self.ledger.spool / path).write_bytes(b"a slice")
        uid = f"{series}.{number}"
        self.ledger.record(
            ReceivedInstance(f"{series}.9", series, uid, "1.2.840.10008.5.1.4.1.1.4", uid, path)
        )

    def analyse(self, job_id: str) -> Outcome:
        """What a worker does, without pixels: one SR, a result or a note."""
        self.analysed.append(job_id)
        order = self.results.read_order(job_id)
        outcome = self.fate.get(job_id, Outcome.ANALYSED)
        part = self.results.begin(job_id)
        study_uid = str(order.job["study_instance_uid"])
        objects: tuple[ResultFile, ...] = ()
        reason = explanation = ""
        if outcome is Outcome.ANALYSED:
            objects = (write_sr(part, study_uid, job_id),)
        elif job_id in self.with_note:
            objects = (write_sr(part, study_uid, job_id, "note"),)
            reason, explanation = REFUSED
        ended = JobOutcome(outcome, reason, explanation, order.workflow_id, self.research, objects)
        self.results.finish(job_id, ended, order, None)
        return outcome

    def wait(self, job: Job, *states: SeriesState) -> Job:
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.ledger.job(job.job_id)).state not in states:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        while any(s in ("PENDING", "ENQUEUED") for s in self.engine.states(job.job_id).values()):
            assert time.monotonic() < deadline, self.engine.states(job.job_id)
            time.sleep(0.05)
        return self.ledger.job(job.job_id)

    def wait_for_delivery(self, job: Job, peer: str, state: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (peer, state) not in {
            (one.destination, one.state) for one in self.ledger.deliveries(job.job_id)
        }:
            assert time.monotonic() < deadline, self.ledger.deliveries(job.job_id)
            time.sleep(0.05)

    def objects_at(self, name: str, job: Job) -> list[str]:
        result = self.results.read(job.job_id)
        assert result is not None
        ours = {one.sop_instance_uid for one in result.objects}
        return [uid for uid in self.archives[name].sop_instance_uids() if uid in ours]


def write_sr(folder: Path, study_uid: str, job_id: str, kind: str = "sr") -> ResultFile:
    sr = Dataset()
    sr.SOPClassUID = Comprehensive3DSRStorage
    sr.SOPInstanceUID = result_uid(job_id, kind)
    sr.StudyInstanceUID, sr.SeriesInstanceUID = study_uid, result_uid(job_id, "series")
    sr.file_meta = FileMetaDataset()
    sr.file_meta.MediaStorageSOPClassUID = Comprehensive3DSRStorage
    sr.file_meta.MediaStorageSOPInstanceUID = UID(sr.SOPInstanceUID)
    sr.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    sr.save_as(folder / f"{kind}.dcm", enforce_file_format=True)
    return ResultFile(kind, str(sr.SOPInstanceUID), folder / f"{kind}.dcm")


@pytest.fixture(scope="module")
def whole_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    forget_services()
    folder = tmp_path_factory.mktemp("bench")
    archives = {
        name: EmbeddedArchive(folder / name, name.upper(), ["FLAIRNODE"])
        for name in ("alive", "clinic")
    }
    for archive in archives.values():
        archive.start()
    ports = {name: archive.dicom_port for name, archive in archives.items()} | {"dead": free_port()}
    settings = Settings(
        node=NodeSettings(data_dir=folder),
        peers=tuple(
            Peer(name=name, ae_title=name.upper(), host=LOOPBACK, port=port)
            for name, port in ports.items()
        ),
        destinations=(
            Destination(peer="alive", research=True),
            Destination(peer="dead", research=True),
            Destination(peer="clinic"),
        ),
        delivery=DeliverySettings(attempts=2, first_pause_s=0.05, timeout_s=60.0),
        engine=EngineSettings(poll_s=0.05),
    )
    ledger = Ledger(folder / "intake.sqlite")
    results = ResultsFolder(folder)
    engine = Engine(settings, "bench", WORKFLOW_VERSION)
    bench: Bench
    analysis = Analysis(lambda job_id: bench.analyse(job_id))
    casework = Casework(settings, ledger, results, engine, analysis)
    bench = Bench(settings, ledger, results, engine, casework, archives)
    engine.launch([SERIES, ANALYSIS, *map(delivery_queue, settings.destinations)])
    yield bench
    engine.destroy()
    ledger.close()
    for archive in archives.values():
        archive.stop()


@pytest.fixture
def bench(whole_bench: Bench) -> Bench:
    whole_bench.research = True
    return whole_bench


def use(bench: Bench, monkeypatch: pytest.MonkeyPatch, *peers: str) -> None:
    """Leave only some of the destinations."""
    kept = tuple(one for one in bench.settings.destinations if one.peer in peers)
    changed = bench.settings.model_copy(update={"destinations": kept})
    monkeypatch.setattr(bench.casework, "_settings", changed)


def test_research_results_go_to_research_destinations_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive", "clinic")
    job = bench.receive("1.2.2")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.DELIVERED)
    assert len(bench.objects_at("alive", job)) == 1
    assert bench.objects_at("clinic", job) == []


def test_results_of_a_clinical_model_go_to_every_destination(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive", "clinic")
    bench.research = False
    job = bench.receive("1.2.3")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.DELIVERED)
    assert len(bench.objects_at("alive", job)) == len(bench.objects_at("clinic", job)) == 1


@pytest.mark.parametrize(
    ("peers", "reason"),
    [(["clinic"], "no-destination-for-research"), ([], "no-destination")],
)
def test_a_result_that_nobody_may_have_is_held(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, peers: list[str], reason: str
) -> None:
    use(bench, monkeypatch, *peers)
    job = bench.receive(f"1.2.4.{len(peers)}")
    bench.casework.submit(job)
    assert bench.wait(job, SeriesState.HELD).reason == reason


def test_submitting_a_job_twice_analyses_it_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.5")
    for _ in range(3):
        bench.casework.submit(job)
    bench.wait(job, SeriesState.DELIVERED)
    bench.casework.submit(job)
    assert bench.analysed.count(job.job_id) == 1


def test_a_lost_engine_database_costs_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.6")
    assert bench.engine.states(job.job_id) == {}  # as if it had been enqueued and forgotten
    assert bench.casework.resume() == 1
    bench.wait(job, SeriesState.DELIVERED)
    assert bench.casework.resume() == 0


def test_a_workflow_that_ended_otherwise_than_the_ledger_says_is_done_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.7")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.DELIVERED)
    bench.ledger.set_state(job.job_id, SeriesState.DELIVERING)
    assert bench.casework.resume() == 1
    bench.wait(job, SeriesState.DELIVERED)
    assert len(bench.objects_at("alive", job)) == 1


def test_a_result_whose_series_has_grown_is_not_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.8")
    bench.arrive("1.2.8", 3)
    bench.casework.submit(job)
    assert bench.wait(job, SeriesState.SKIPPED).reason == "superseded"
    assert job.job_id not in bench.analysed


def test_nor_one_whose_series_grew_while_it_was_analysed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.9")
    plain = bench.analyse
    monkeypatch.setattr(
        bench, "analyse", lambda job_id: (bench.arrive("1.2.9", 3), plain(job_id))[1]
    )
    bench.casework.submit(job)
    assert bench.wait(job, SeriesState.SKIPPED).reason == "superseded"
    assert bench.objects_at("alive", job) == []


def test_a_cancelled_job_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.10")
    bench.ledger.cancel(job.job_id, "not this one")
    bench.casework.submit(job)
    ended = bench.wait(job, SeriesState.SKIPPED)
    assert ended.reason == "cancelled-by-operator"
    assert job.job_id not in bench.analysed


@pytest.mark.parametrize("outcome", [Outcome.NOT_ANALYSED, Outcome.FAILED, Outcome.HELD])
def test_an_analysis_that_ends_without_a_result_ends_the_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive(f"1.2.11.{len(outcome)}")
    bench.fate[job.job_id] = outcome
    bench.casework.submit(job)
    assert bench.wait(job, SeriesState(outcome)).state.value == outcome


def test_a_held_delivery_is_found_by_its_destination_and_tried_again(bench: Bench) -> None:
    job = bench.receive("1.2.12")
    bench.casework.submit(job)
    held = bench.wait(job, SeriesState.HELD)
    assert held.reason == "destination-unreachable"
    assert "dead" in held.explanation
    assert len(bench.objects_at("alive", job)) == 1
    assert job.job_id in bench.casework.held_for()["dead"]
    assert "alive" not in bench.casework.held_for()
    bench.casework.deliver_again(job.job_id, "dead")
    assert bench.wait(job, SeriesState.HELD).reason == "destination-unreachable"


def test_a_destination_taken_out_of_the_settings_is_no_longer_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.receive("1.2.13")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.HELD)
    use(bench, monkeypatch, "alive")
    bench.casework.deliver_again(job.job_id, "dead")
    assert bench.ledger.job(job.job_id).state is SeriesState.DELIVERED


def test_an_object_that_is_there_is_not_sent_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sent_to_store: list[int]
) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.14")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.DELIVERED)
    assert sent_to_store == [1]
    bench.casework.attempt(job.job_id, "alive")  # void: the job has ended
    bench.ledger.set_state(job.job_id, SeriesState.DELIVERING)
    assert bench.casework.attempt(job.job_id, "alive") == "done"
    assert sent_to_store == [1, 0]


@pytest.fixture
def sent_to_store(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each call of `store` was given; it still sends them."""
    from node import delivery

    counts: list[int] = []
    plain: Callable[..., object] = delivery.store

    def counting(peer: Peer, paths: list[Path], **options: object) -> object:
        counts.append(len(paths))
        return plain(peer, paths, **options)

    monkeypatch.setattr(delivery, "store", counting)
    return counts


def test_what_is_sent_is_what_was_built(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    use(bench, monkeypatch, "alive")
    job = bench.receive("1.2.15")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.DELIVERED)
    result = bench.results.read(job.job_id)
    assert result is not None
    built = dcmread(result.objects[0].path)
    (stored,) = bench.archives["alive"].files_of(str(built.SeriesInstanceUID))
    assert dcmread(BytesIO(stored)) == built


# --- notes ---------------------------------------------------------------------------------------


def refuse(bench: Bench, series: str) -> Job:
    """A job whose analysis is refused, with a note that says why."""
    job = bench.receive(series)
    bench.fate[job.job_id] = Outcome.NOT_ANALYSED
    bench.with_note.add(job.job_id)
    bench.casework.submit(job)
    return job


def test_a_note_is_delivered_and_its_series_ends_not_analysed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive")
    job = refuse(bench, "1.2.20")
    ended = bench.wait(job, SeriesState.NOT_ANALYSED)
    assert (ended.reason, ended.explanation) == REFUSED
    assert len(bench.objects_at("alive", job)) == 1
    told = [(one.state.value, one.reason) for one in bench.ledger.history("1.2.20")]
    assert told[-2:] == [("delivering", "missing-slice"), ("not_analysed", "missing-slice")]
    assert "delivered" not in [state for state, _ in told]


def test_a_dead_destination_changes_nothing_about_the_end_and_the_note_stays_owed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive", "dead")
    job = refuse(bench, "1.2.21")
    assert bench.wait(job, SeriesState.NOT_ANALYSED).reason == "missing-slice"
    states = {one.destination: one.state for one in bench.ledger.deliveries(job.job_id)}
    assert states == {"alive": "confirmed", "dead": "unreachable"}
    assert job.job_id in bench.casework.held_for()["dead"]
    assert job.job_id not in bench.casework.held_for().get("alive", [])
    # It comes back: here, what was `dead` is the archive of another name.
    port = bench.archives["clinic"].dicom_port
    peers = tuple(
        Peer(name="dead", ae_title="CLINIC", host=LOOPBACK, port=port) if p.name == "dead" else p
        for p in bench.casework._settings.peers
    )
    changed = bench.casework._settings.model_copy(update={"peers": peers})
    monkeypatch.setattr(bench.casework, "_settings", changed)
    bench.casework.deliver_again(job.job_id, "dead")
    bench.wait_for_delivery(job, "dead", "confirmed")
    assert bench.wait(job, SeriesState.NOT_ANALYSED).reason == "missing-slice"
    assert len(bench.objects_at("clinic", job)) == 1
    assert job.job_id not in bench.casework.held_for().get("dead", [])


def test_a_note_of_a_research_model_goes_to_research_destinations_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive", "clinic")
    job = refuse(bench, "1.2.22")
    bench.wait(job, SeriesState.NOT_ANALYSED)
    assert len(bench.objects_at("alive", job)) == 1
    assert bench.objects_at("clinic", job) == []


@pytest.mark.parametrize("kinds", [("seg", "sr"), ()])
def test_with_nobody_to_tell_the_end_is_the_same_and_nothing_is_held(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
) -> None:
    silent = tuple(
        one.model_copy(update={"kinds": kinds}) for one in bench.settings.destinations if kinds
    )
    changed = bench.settings.model_copy(update={"destinations": silent})
    monkeypatch.setattr(bench.casework, "_settings", changed)
    job = refuse(bench, f"1.2.23.{len(kinds)}")
    assert bench.wait(job, SeriesState.NOT_ANALYSED).reason == "missing-slice"
    assert bench.ledger.deliveries(job.job_id) == []


def test_a_note_on_fewer_slices_than_have_come_by_now_is_not_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive")
    plain = bench.analyse
    monkeypatch.setattr(
        bench, "analyse", lambda job_id: (bench.arrive("1.2.24", 3), plain(job_id))[1]
    )
    job = refuse(bench, "1.2.24")
    assert bench.wait(job, SeriesState.SKIPPED).reason == "superseded"
    assert bench.objects_at("alive", job) == []


def test_a_note_whose_engine_database_was_lost_on_the_way_arrives_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sent_to_store: list[int]
) -> None:
    use(bench, monkeypatch, "alive")
    job = refuse(bench, "1.2.25")
    bench.wait(job, SeriesState.NOT_ANALYSED)
    # As it stands after a crash between the arrival of the note and the end of the job.
    bench.ledger.set_state(job.job_id, SeriesState.DELIVERING, *REFUSED)
    assert bench.casework.resume() >= 1  # a job of another test may be owed as well
    bench.wait(job, SeriesState.NOT_ANALYSED)
    assert len(bench.objects_at("alive", job)) == 1
    assert sum(sent_to_store) == 1


# --- a destination that stays dead --------------------------------------------------------------


def move(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, to: Peer) -> None:
    """A peer has another address from now on."""
    peers = tuple(
        to.model_copy(update={"name": name}) if one.name == name else one
        for one in bench.casework._settings.peers
    )
    changed = bench.casework._settings.model_copy(update={"peers": peers})
    monkeypatch.setattr(bench.casework, "_settings", changed)


def give_up_after(bench: Bench, monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    plan = bench.settings.delivery.model_copy(update={"give_up_after_h": hours})
    monkeypatch.setattr(bench.casework, "_patience", Patience(plan, bench.ledger))


def test_what_is_given_up_waits_for_an_operator_and_arrives_after_the_retry(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(bench, monkeypatch, "alive", "dead")
    give_up_after(bench, monkeypatch, hours=1e-9)
    job = bench.receive("1.2.30")
    bench.casework.submit(job)
    assert bench.wait(job, SeriesState.HELD).reason == "destination-unreachable"
    bench.casework.deliver_again(job.job_id, "dead")
    held = bench.wait(job, SeriesState.HELD)
    assert held.reason == "undeliverable"
    assert "dead" in held.explanation
    assert "alive" not in held.explanation
    assert job.job_id not in bench.casework.held_for().get("dead", []), "nobody tries it any more"
    port = bench.archives["clinic"].dicom_port
    move(bench, monkeypatch, "dead", Peer(name="x", ae_title="CLINIC", host=LOOPBACK, port=port))
    bench.ledger.retry(job.job_id)
    bench.casework.resume()
    bench.wait(job, SeriesState.DELIVERED)
    assert len(bench.objects_at("clinic", job)) == len(bench.objects_at("alive", job)) == 1
    told = [(one.state.value, one.reason) for one in bench.ledger.history("1.2.30")]
    assert told.count(("held", "undeliverable")) == 1, "not held again by what was before the retry"


def test_a_peer_that_is_known_to_be_silent_uses_up_patience_without_attempts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sent_to_store: list[int]
) -> None:
    use(bench, monkeypatch, "dead")
    give_up_after(bench, monkeypatch, hours=1e-9)
    job = bench.receive("1.2.31")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.HELD)
    bench.casework.put_off(job.job_id, "dead")
    assert bench.ledger.job(job.job_id).reason == "undeliverable"
    assert sum(sent_to_store) == 0


def test_results_that_a_destination_will_not_take_keep_no_other_one_from_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six results answered with A700, of four places: the seventh arrives all the same."""
    taken: set[str] = set()
    choosy = Answers()

    def on_store(event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid not in taken:
            return 0xA700
        choosy.given.append(uid)
        return 0

    with dimse_peer(choosy, handlers=[(evt.EVT_C_STORE, on_store)]) as peer:
        use(bench, monkeypatch, "dead")
        move(bench, monkeypatch, "dead", peer)
        unwanted = [bench.receive(f"1.2.32.{number}") for number in range(6)]
        for job in unwanted:
            bench.casework.submit(job)
        for job in unwanted:
            bench.wait_for_delivery(job, "dead", "unreachable")
        wanted = bench.receive("1.2.33")
        taken.add(result_uid(wanted.job_id, "sr"))
        bench.casework.submit(wanted)
        bench.wait(wanted, SeriesState.DELIVERED)
        for job in unwanted:
            assert bench.wait(job, SeriesState.HELD).reason == "destination-unreachable"
        # Their own pauses go on, and nothing of them stands in the queue.
        assert all(bench.casework._patience.knows(job.job_id) for job in unwanted)


def test_a_commitment_that_is_waited_for_does_not_hold_back_another_destination(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one destination owes its report, the other one's missing object stays due."""
    use(bench, monkeypatch, "alive", "dead")
    job = bench.receive("1.2.34")
    bench.casework.submit(job)
    bench.wait(job, SeriesState.HELD)
    (uid,) = bench.objects_at("alive", job)
    bench.ledger.record_delivery(job.job_id, "alive", uid, "awaiting-commitment")
    bench.ledger.set_state(job.job_id, SeriesState.DELIVERING)
    bench.casework.hurry("dead")
    assert job.job_id in bench.casework.due_for()["dead"]
    bench.ledger.set_state(job.job_id, Outcome.FAILED, "the test is over")
