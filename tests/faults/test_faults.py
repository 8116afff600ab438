"""The core of the fault suite, and the oracle itself: would it see a loss?"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import pytest
from pydicom import dcmread

from node.archive import find_orthanc
from tests.faults.bench import CORE, Bench
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.sender import STORESCU
from tests.faults.site import Site
from tests.integration.node_process import PATIENCE_S

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(4 * PATIENCE_S)]

SEED = 20261124


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if find_orthanc() is None or not STORESCU.exists():
        pytest.skip("Orthanc and DCMTK are needed: deploy/install_test_tools.sh")
    bench = Bench(tmp_path_factory.mktemp("faults"), CORE, SEED)
    yield bench
    bench.close()


@pytest.mark.parametrize(
    "scenario", [one for one in SCENARIOS if one.core], ids=lambda one: one.fault
)
def test_nothing_is_lost_doubled_or_wrong_after(bench: Bench, scenario: Scenario) -> None:
    row = bench.run(scenario.fault, scenario.scene)
    if not row.ran:
        pytest.skip(row.note)
    assert row.trouble == []
    assert row.clean
    assert row.rounds >= 1
    assert row.acknowledged > 0


@pytest.fixture(scope="module")
def rested(bench: Bench) -> Iterator[Site]:
    """A node that has delivered one series, and was stopped."""
    with bench.fresh_site() as site:
        site.node.start()
        site.send(site.flair("PATIENT"))
        site.settle(1)
        site.kill()
        assert site.judge().clean
        yield site


def test_the_oracle_misses_a_slice_that_is_gone_or_was_changed(rested: Site) -> None:
    path = next(rested.node.data_dir.glob("spool/*/*/*.dcm"))
    content = path.read_bytes()
    path.unlink()
    found = rested.judge()
    assert {line.split(":")[0] for line in found.lost} == {"no file"}
    assert any("9 are on disk" in line for line in found.wrong)
    path.write_bytes(content[:-1] + b"\x7f")
    assert rested.judge().lost == [f"other content: {path.stem}"]
    path.write_bytes(content)
    assert rested.judge().clean


def test_the_oracle_misses_a_promise_without_a_row(rested: Site) -> None:
    file = next(iter(rested.sender.acknowledged.values()))
    rested.sender.acknowledged["2.25.1"] = file
    assert rested.judge().lost == ["no row: 2.25.1"]
    del rested.sender.acknowledged["2.25.1"]


def test_the_oracle_sees_a_result_that_the_archive_lacks_or_was_given_twice(rested: Site) -> None:
    (archive,) = rested.archives
    instance = archive.get("/instances")[0]
    file = archive.request("GET", f"/instances/{instance}/file")
    archive.request("DELETE", f"/instances/{instance}")
    found = rested.judge()
    assert len(found.lost) == 1
    assert found.lost[0].startswith("not in ORTHANC")
    archive.request("POST", "/instances", file)
    assert rested.judge().clean
    copy = dcmread(BytesIO(file))
    copy.PatientID = "ANOTHER"  # to Orthanc another object, under the same SOP Instance UID
    copy.save_as(written := BytesIO())
    archive.request("POST", "/instances", written.getvalue())
    assert f"twice in ORTHANC: {copy.SOPInstanceUID}" in rested.judge().doubled


def test_the_oracle_sees_an_object_that_no_job_made(rested: Site) -> None:
    (archive,) = rested.archives
    file = next(iter(rested.sender.acknowledged.values()))
    archive.request("POST", "/instances", file.read_bytes())
    assert any(line.startswith("an object of no job") for line in rested.judge().wrong)
