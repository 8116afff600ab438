"""A real Orthanc is followed: what it lists comes here, once, and is judged as a whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from follow_site import LONGEST_WAIT_S, QUIET_S, FollowSite, delete_study, store
from pydicom import dcmread

from config.settings import Source
from node import follow
from node.archive import Orthanc, find_orthanc
from node.check import check_source
from node.ledger import Counts, SeriesState
from node.sources import RequestState

pytestmark = pytest.mark.pacs

Make = Callable[..., Any]
MakeSite = Callable[..., FollowSite]

HEAD_MM = (6.5, 4.0, 5.0)  # 48 x 36 pixels of 4 x 5 mm make a field of view of a head


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    archive = Orthanc(tmp_path_factory.mktemp("archive") / "orthanc")
    archive.start()
    yield archive
    archive.kill()


@pytest.fixture
def orthanc(running: Orthanc) -> Orthanc:
    """The same one for every test: emptied, though its change feed goes on."""
    if running.pid is None:  # a test failed while it was down
        running.start()
    for patient in running.get("/patients"):
        running.request("DELETE", f"/patients/{patient}")
    return running


@pytest.fixture
def make_site(tmp_path: Path, orthanc: Orthanc) -> Iterator[MakeSite]:
    sites: list[FollowSite] = []

    def make(**options: Any) -> FollowSite:  # noqa: ANN401  # of Source
        peer = options.pop("peer", {})
        sites.append(FollowSite(tmp_path / "site", orthanc, peer, **options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def make_head(make_flair_series: Make) -> Make:
    def make(**options: Any) -> Any:  # noqa: ANN401  # FlairSeries
        return make_flair_series(spacing_mm=HEAD_MM, **options)

    return make


def empty(archive: Orthanc) -> None:
    archive.kill()
    shutil.rmtree(archive.folder / "storage")
    archive.start()


# --- what is fetched -----------------------------------------------------------------------------


@pytest.mark.parametrize("follow", [True, False], ids=["change feed", "comparing alone"])
def test_what_the_source_received_is_here_as_it_is_there_and_is_analysed(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, follow: bool
) -> None:
    before, after = make_head(patient_id="BEFORE"), make_head(patient_id="AFTER")
    site = make_site(follow=follow, reconcile_every_s=5.0)
    store(orthanc, before.paths)
    site.bring()  # the feed is followed from now on; what was there is found by comparing
    store(orthanc, after.paths)
    site.now_s += 0.0 if follow else 5.0
    site.bring()
    assert site.held() == {*before.sop_instance_uids, *after.sop_instance_uids}
    for path in after.paths:
        sent = dcmread(path)
        (kept,) = site.spool.folder.glob(f"*/*/{sent.SOPInstanceUID}.dcm")
        assert dcmread(kept) == sent
        assert dcmread(kept).file_meta.SourceApplicationEntityTitle == "ORTHANC"
    assert len(site.pass_time()) == 2
    assert {row.counts for row in site.ledger.all_series()} == {Counts.CONFIRMED}
    assert site.ledger.oracle().balanced
    lines = [line for line in site.audit.entries() if line and line["event"] == "received"]
    assert [(line["source"], line["calling_ae_title"]) for line in lines] == [
        ("pacs", "ORTHANC"),
        ("pacs", "ORTHANC"),
    ]


def test_looking_again_and_a_restart_fetch_nothing_twice(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(orthanc, make_head().paths)
    site = make_site()
    site.settle()
    again = make_site()
    taken: list[str] = []
    monkeypatch.setattr(follow.Fetcher, "_take", lambda *a: taken.append(a[2]))
    again.follower.compare_now()
    again.bring()
    assert taken == []


def test_a_lost_book_costs_a_comparison_and_nothing_else(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    head = make_head()
    store(orthanc, head.paths)
    site = make_site()
    site.bring()
    site.pass_time()
    site.close()
    (site.settings.node.data_dir / "sources.sqlite").write_bytes(b"no database" * 1000)
    again = make_site()
    again.bring()
    assert again.held() == set(head.sop_instance_uids)
    assert len(again.ledger.jobs_of(head.series_instance_uid)) == 1


def test_other_modalities_and_own_results_stay_where_they_are(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    ct = make_head(patient_id="CT", slices=2, overrides={"Modality": "CT"})
    report = make_head(
        patient_id="SR",
        slices=1,
        overrides={
            "Modality": "MR",
            "Manufacturer": "flairnode",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        },
    )
    mr = make_head(patient_id="MR", slices=2)
    site = make_site()
    site.look()
    store(orthanc, [*ct.paths, *report.paths, *mr.paths])
    with structlog.testing.capture_logs() as logs:
        site.bring()
    assert site.held() == set(mr.sop_instance_uids)
    left_out = {(e["reason"], e["count"]) for e in logs if e["event"] == "source.passed-over"}
    assert ("not-mr", 1) in left_out
    assert ("own-result", 1) in left_out


def test_the_other_series_of_a_study_come_along_for_the_selection(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    """Only the second series is in the part of the feed that is read; both are of one study."""
    first = make_head(slices=2, series_instance_uid="1.2.3.1")
    second = make_head(slices=2, series_instance_uid="1.2.3.2")
    store(orthanc, first.paths)
    site = make_site(look_back_days=1e-6)
    site.follower._next_pass = 1e9  # only the feed
    site.look()
    store(orthanc, second.paths)
    site.bring()
    assert {row.series_instance_uid for row in site.ledger.all_series()} == {"1.2.3.1", "1.2.3.2"}


def test_what_was_received_long_ago_is_left_alone_unless_we_were_away(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    old, new = make_head(patient_id="OLD", slices=2), make_head(patient_id="NEW", slices=2)
    store(orthanc, old.paths)
    site = make_site(follow=False, look_back_days=1e-9)
    time.sleep(2.1)  # Orthanc's clock tells seconds
    site.bring()
    assert site.held() == set()
    store(orthanc, new.paths)  # within the hour that two comparisons overlap
    site.follower.compare_now()
    site.bring()
    assert site.held() == {*old.sop_instance_uids, *new.sop_instance_uids}


# --- growing, deleted, changed -------------------------------------------------------------------


def test_a_series_that_is_here_in_part_waits_for_the_rest(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_head(slices=12)
    store(orthanc, head.paths)
    site = make_site()
    with monkeypatch.context() as patch:
        patch.setattr(follow, "INSTANCES_A_LOOK", 9)  # enough slices for an analysis
        site.look()
    assert len(site.held()) == 9
    assert site.pass_time() == []
    assert site.only_series().state is SeriesState.RECEIVING
    site.bring()
    (job,) = site.pass_time()
    assert len(site.ledger.sop_instances_of(job.job_id)) == 12
    assert job.counts is Counts.CONFIRMED


def test_a_series_that_grows_at_the_source_is_analysed_as_a_whole(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    head = make_head(slices=12)
    site = make_site()
    site.look()
    for number in range(4):
        store(orthanc, head.paths[3 * number : 3 * number + 3])
        site.look()
        assert len(site.held()) == 3 * number + 3  # a third NewInstance, no NewSeries
        assert site.pass_time(QUIET_S / 2) == []
    (job,) = site.pass_time()
    assert len(site.ledger.sop_instances_of(job.job_id)) == 12


def test_a_series_to_come_keeps_its_study_open(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the lesser FLAIR would be analysed because the better one came by a slow line."""
    for uid in ("1.2.3.1", "1.2.3.2"):
        store(orthanc, make_head(series_instance_uid=uid).paths)
    site = make_site()
    with monkeypatch.context() as patch:
        patch.setattr(follow, "SERIES_A_LOOK", 1)
        site.look()
    assert len(site.ledger.all_series()) == 1
    assert site.pass_time() == []
    site.bring()
    assert len(site.pass_time()) == 1
    assert sorted(row.state for row in site.ledger.all_series()) == ["queued", "skipped"]


def test_a_study_that_is_deleted_while_it_is_fetched_is_held_with_the_reason(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_head(slices=12)
    store(orthanc, head.paths)
    site = make_site(parallel=1)
    real, deleted = follow.Fetcher._take, list[str]()

    def take(fetcher: follow.Fetcher, listed: Any, uid: str) -> str:  # noqa: ANN401
        if len(site.held()) == 9 and not deleted:
            deleted.append(uid)
            delete_study(orthanc, head.study_instance_uid)
        return real(fetcher, listed, uid)

    monkeypatch.setattr(follow.Fetcher, "_take", take)
    site.settle()
    assert site.trouble() == ""
    assert site.pass_time() == []
    row = site.only_series()
    assert (row.state, row.reason) == (SeriesState.HELD, "deleted-at-source")
    assert row.explanation == "9 of 9 instances were deleted at pacs meanwhile"
    store(orthanc, head.paths)  # it is stored there again
    site.settle()
    (job,) = site.pass_time()
    assert len(site.ledger.sop_instances_of(job.job_id)) == 12


def test_one_slice_deleted_at_the_source_stops_the_analysis(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    store(orthanc, make_head(slices=12).paths)
    site = make_site()
    site.bring()
    orthanc.request("DELETE", f"/instances/{orthanc.get('/instances')[0]}")
    site.pass_time()
    assert site.only_series().reason == "deleted-at-source"


def test_the_same_study_under_another_patient_is_a_conflict(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    right, wrong = make_head(), make_head(overrides={"PatientID": "SOMEBODY-ELSE"})
    assert right.sop_instance_uids == wrong.sop_instance_uids
    site = make_site()
    store(orthanc, right.paths)
    site.bring()
    store(orthanc, wrong.paths)
    site.bring()
    assert site.pass_time() == []
    row = site.only_series()
    assert (row.state, row.reason) == (SeriesState.HELD, "conflicting-instance")


def test_an_instance_that_cannot_be_taken_holds_its_series_and_is_asked_for_once(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    head = make_head(slices=12)
    uid = head.sop_instance_uids[5].encode()
    (path,) = [path for path in head.paths if uid in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(uid, uid[:-1] + b"x"))
    store(orthanc, head.paths)
    site = make_site()
    site.settle()
    assert len(site.held()) == 11
    site.pass_time()
    row = site.only_series()
    assert (row.state, row.reason) == (SeriesState.HELD, "incomplete")
    assert row.explanation == "1 of 12 instances that pacs lists cannot be taken: invalid-uid"
    site.follower.compare_now()
    site.settle()
    refusals = [line for line in site.audit.entries() if line and line["event"] == "refused"]
    assert [(line["reason"], line["source"]) for line in refusals] == [("invalid-uid", "pacs")]


# --- the source in trouble -----------------------------------------------------------------------


@pytest.mark.parametrize("patients", [1, 4], ids=["feed shorter", "feed longer"])
def test_an_orthanc_that_was_emptied_and_refilled_is_noticed(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, patients: int
) -> None:
    """Its feed begins anew: shorter than what was read, or as if it went on."""
    store(orthanc, [path for n in range(2) for path in make_head(patient_id=f"A{n}").paths])
    site = make_site(reconcile_every_s=1e9)
    site.bring()
    site.look()
    empty(orthanc)
    heads = [make_head(patient_id=f"B{n}") for n in range(patients)]
    store(orthanc, [path for head in heads for path in head.paths])
    with structlog.testing.capture_logs() as logs:
        site.bring()
    events = {entry["event"] for entry in logs}
    assert events & {"source.sequence-restarted", "source.sequence-replaced"}
    assert {uid for head in heads for uid in head.sop_instance_uids} <= site.held()
    assert site.trouble() == ""


def test_a_wrong_password_is_told_and_a_corrected_one_needs_no_restart(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    head = make_head(slices=2)
    store(orthanc, head.paths)
    site = make_site()
    site.password.write_text("wrong")
    site.look()
    assert site.trouble() == "pacs answered HTTP 401"
    found = check_source(Source(peer="pacs"), site.settings)
    assert (found.ok, found.text) == (False, "pacs answered HTTP 401")
    site.password.write_text(orthanc.password)
    found = check_source(Source(peer="pacs"), site.settings)
    assert not found.ok
    assert "in trouble since" in found.text
    site.now_s += follow.FIRST_PAUSE_S
    site.settle()
    assert site.held() == set(head.sop_instance_uids)
    found = check_source(Source(peer="pacs"), site.settings)
    assert found.ok
    assert "Orthanc 1." in found.text
    assert "0 series to look at" in found.text


def test_an_orthanc_that_is_down_at_the_start_is_followed_once_it_is_up(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    head = make_head(slices=2)
    store(orthanc, head.paths)
    orthanc.kill()
    site = make_site()
    site.look()
    assert site.trouble().startswith("pacs cannot be reached")
    site.look()  # pauses
    orthanc.start()
    site.now_s += follow.FIRST_PAUSE_S
    site.bring()
    assert site.held() == set(head.sop_instance_uids)


def test_a_source_that_falls_silent_leaves_its_series_waiting_and_then_held_with_the_reason(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    """It may have received more: what was fetched looks whole, and nobody knows."""
    store(orthanc, make_head().paths)
    site = make_site()
    site.settle()
    orthanc.kill()
    assert site.pass_time() == []
    assert site.only_series().state is SeriesState.RECEIVING
    site.pass_time(LONGEST_WAIT_S)
    site.pass_time(QUIET_S)
    row = site.only_series()
    assert (row.state, row.reason) == (SeriesState.HELD, "source-unreachable")
    orthanc.start()
    site.now_s += follow.LONGEST_PAUSE_S
    site.look()
    site.follower.compare_now()
    site.settle()
    assert site.pass_time() == []  # whoever sends to it may not have gone on yet
    (job,) = site.pass_time()
    assert job.counts is Counts.CONFIRMED


def test_what_the_full_disk_refuses_is_fetched_when_there_is_room(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_head(slices=2)
    store(orthanc, head.paths)
    site = make_site()
    with monkeypatch.context() as patch:
        patch.setattr(site.intake.reserve, "_free_bytes", lambda: -1)
        site.look()
    assert site.trouble() == "the disk is below its reserve"
    assert site.held() == set()
    site.now_s += follow.FIRST_PAUSE_S
    site.bring()
    assert site.held() == set(head.sop_instance_uids)


# --- one study on demand -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["orthanc", "dicomweb"])
def test_one_study_is_fetched_on_demand_and_analysed(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, way: str
) -> None:
    peer: dict[str, Any] = {}
    if way == "dicomweb":
        peer = {"orthanc_url": None, "dicomweb_url": f"{orthanc.url}/dicom-web"}
    wanted, other = make_head(patient_id="WANTED"), make_head(patient_id="OTHER", slices=2)
    ct = make_head(
        study_instance_uid=wanted.study_instance_uid,
        series_instance_uid="1.2.3.9",
        patient_id="WANTED",
        slices=1,
        overrides={"Modality": "CT"},
    )
    store(orthanc, [*wanted.paths, *other.paths, *ct.paths])
    site = make_site(peer=peer)
    book = site.sources.book
    request = book.ask(wanted.study_instance_uid, "pacs")
    assert book.ask(wanted.study_instance_uid, "pacs").number == request.number
    site.sources.serve_requests()
    answer = book.request(request.number)
    assert answer.state is RequestState.FETCHED
    assert (answer.listed, answer.fetched, answer.passed_over) == (10, 10, 1)
    assert site.held() == set(wanted.sop_instance_uids)
    assert not list(site.spool.incoming.iterdir())
    (job,) = site.pass_time()
    assert job.counts is Counts.CONFIRMED
    again = book.ask(wanted.study_instance_uid, "pacs")
    site.sources.serve_requests()
    assert book.request(again.number).fetched == 0


@pytest.mark.parametrize("way", ["orthanc", "dicomweb"])
def test_a_study_that_is_not_there_or_has_no_mr_is_refused_with_the_reason(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make, way: str
) -> None:
    peer: dict[str, Any] = {}
    if way == "dicomweb":
        peer = {"orthanc_url": None, "dicomweb_url": f"{orthanc.url}/dicom-web"}
    ct = make_head(slices=1, overrides={"Modality": "CT"})
    store(orthanc, ct.paths)
    site = make_site(peer=peer)
    book = site.sources.book
    numbers = [book.ask(uid, "pacs").number for uid in ("1.2.3.4.5", ct.study_instance_uid)]
    site.sources.serve_requests()
    answers = [book.request(number) for number in numbers]
    assert [one.state for one in answers] == [RequestState.REFUSED] * 2
    assert [one.reason for one in answers] == ["study-not-found", "no-mr-series"]
    assert site.held() == set()


def test_a_request_outlives_a_silent_peer(
    orthanc: Orthanc, make_site: MakeSite, make_head: Make
) -> None:
    head = make_head(slices=2)
    store(orthanc, head.paths)
    orthanc.kill()
    site = make_site()
    book = site.sources.book
    number = book.ask(head.study_instance_uid, "pacs").number
    site.sources.serve_requests()
    asked = book.request(number)
    assert (asked.state, asked.reason) == (RequestState.ASKED, "peer-unreachable")
    orthanc.start()
    site.now_s += follow.REQUEST_PAUSE_S
    site.sources.serve_requests()
    assert book.request(number).state is RequestState.FETCHED
    assert site.held() == set(head.sop_instance_uids)
