"""The operator page in a real browser, over a real node with real workers and a real archive."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from bright_pack import make_bright_pack
from node_process import PATIENCE_S, NodeProcess
from playwright.sync_api import Browser, Page, expect, sync_playwright

from node.archive import LOOPBACK, Orthanc, find_orthanc, free_port
from node.ledger import SeriesState
from node.sitekey import site_key, tag
from node.web.accounts import ACCOUNTS_FILE, Accounts, Role
from pipeline.phantom import synthetic_head
from pipeline.phantom_study import flair_series_uid, study_uid, write_study

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(3 * PATIENCE_S)]

CHROMIUM = shutil.which("chromium")
SERIOUS = ("serious", "critical")


class Operated:
    """A node with one delivered study and one that was refused, and who may look at it."""

    def __init__(self, node: NodeProcess, port: int) -> None:
        self.node = node
        self.url = f"http://{LOOPBACK}:{port}"
        self.key = site_key(node.data_dir)
        with Accounts(node.data_dir / ACCOUNTS_FILE) as accounts:
            self.passwords = {role: accounts.add(role.value, role) for role in Role}
        self.study = ""
        self.series = ""

    @property
    def tag(self) -> str:
        return tag(self.key, self.study)


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    if find_orthanc() is None or CHROMIUM is None:
        pytest.skip("Orthanc or Chromium is not installed: deploy/install_test_tools.sh")
    folder = tmp_path_factory.mktemp("page")
    archive = Orthanc(folder / "orthanc", modalities={"flairnode": ("FLAIRNODE", 1)})
    archive.start()
    pack, port = make_bright_pack(folder / "pack"), free_port()
    node = NodeProcess(
        folder / "site",
        {"pacs": archive},
        sections={
            "node": {"daily_self_test": False},
            "pipeline": {"model": str(pack.path), "device": "cpu", "threads": 1},
            "web": {"enabled": True, "port": port},
        },
        command=(sys.executable, "-m", "node.cli", "serve"),
    )
    try:
        node.start()
        operated = Operated(node, port)
        phantom = synthetic_head(seed=7)
        write_study(phantom, folder / "study")
        operated.study, operated.series = study_uid(phantom), flair_series_uid(phantom)
        sent = node.send(folder / "study")
        assert sent.returncode == 0, sent.stderr
        node.wait_for_state(operated.series, SeriesState.DELIVERED, 2 * PATIENCE_S)
        yield operated
    finally:
        node.end()
        archive.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, operated: Operated) -> Iterator[Page]:
    """Of an administrator; a fault in the browser's console fails the test."""
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        faults: list[str] = []
        page.on("console", lambda one: faults.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        sign_in(page, operated, Role.ADMINISTRATOR)
        faults.clear()  # the first page is answered 401, which the console counts as an error
        yield page
        # Refused rules are answered 422, which the console counts as an error too.
        assert [fault for fault in faults if "422" not in fault] == []


def sign_in(page: Page, operated: Operated, role: Role) -> None:
    page.goto(operated.url)
    page.get_by_label("Name").fill(role.value)
    page.get_by_label("Password").fill(operated.passwords[role])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def refuse_serious_faults(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    serious = [f"{one['id']}: {one['help']}" for one in found if one["impact"] in SERIOUS]
    assert serious == []


def test_now_shows_what_came_and_that_all_is_well(page: Page, operated: Operated) -> None:
    expect(page.get_by_text("Ready", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=operated.tag).first).to_be_visible()
    expect(page.get_by_text("worker 0 runs")).to_be_visible()
    refuse_serious_faults(page)


def test_a_study_is_found_and_its_result_looked_at_with_the_keyboard(
    page: Page, operated: Operated
) -> None:
    page.get_by_role("link", name="Studies").click()
    page.get_by_label("Pseudonym").fill(operated.tag[:5])
    expect(page.locator("#found caption")).to_have_text("1 study")
    refuse_serious_faults(page)
    page.get_by_role("link", name=operated.tag).click()
    expect(page.get_by_text(operated.series)).to_be_visible()
    refuse_serious_faults(page)
    page.get_by_role("link", name="Look at the result").click()

    grey, lesions = page.locator("#grey"), page.locator("#lesions")
    expect(lesions).to_be_visible()
    assert grey.evaluate("one => one.naturalWidth") > 100
    before = grey.get_attribute("src")
    page.locator(".layers").focus()
    page.keyboard.press("ArrowUp")
    expect(grey).not_to_have_attribute("src", before or "")
    page.keyboard.press("l")
    expect(lesions).to_be_hidden()
    refuse_serious_faults(page)


def test_the_lesion_table_leads_to_its_slice_and_says_what_the_report_says(
    page: Page, operated: Operated
) -> None:
    with operated.node.ledger() as ledger:
        (job,) = ledger.jobs_of(operated.series)
    page.goto(f"{operated.url}/studies/{operated.tag}/jobs/{job.job_id}")
    rows = page.locator("table").first.locator("tbody tr")
    caption = page.locator("table caption").first.inner_text()
    assert re.match(rf"{rows.count()} lesions?, \d+\.\d\d ml, not verified", caption)
    link = rows.last.locator("a.to-slice")
    link.click()
    wanted = link.get_attribute("data-slice")
    expect(page.locator("#number")).to_have_text(re.compile(rf"^{wanted} of "))
    expect(page.locator("#lesions")).to_be_visible()


def test_an_object_is_downloaded_as_it_was_sent_and_noted(page: Page, operated: Operated) -> None:
    with operated.node.ledger() as ledger:
        (job,) = ledger.jobs_of(operated.series)
    page.goto(f"{operated.url}/studies/{operated.tag}/jobs/{job.job_id}")
    with page.expect_download() as download:
        page.get_by_role("link", name="seg", exact=True).click()
    taken = Path(download.value.path()).read_bytes()
    assert taken == (operated.node.data_dir / "results" / job.job_id / "seg.dcm").read_bytes()
    page.get_by_role("link", name="Audit").click()
    expect(page.get_by_text("web-download")).to_be_visible()
    expect(page.get_by_text("The record is whole")).to_be_visible()
    refuse_serious_faults(page)


def test_why_nothing_came_names_the_rule(page: Page, operated: Operated, tmp_path: Path) -> None:
    page.get_by_role("link", name="Why nothing came").click()
    refuse_serious_faults(page)
    page.get_by_label("Pseudonym or Study Instance UID").fill(operated.tag)
    page.get_by_role("button", name="Tell me").click()
    expect(page.get_by_text("One series is analysed")).to_be_visible()
    no_dicom = tmp_path / "letter.txt"
    no_dicom.write_text("Dear colleague")
    page.get_by_label("or DICOM files").set_input_files(no_dicom)
    page.get_by_label("Pseudonym or Study Instance UID").fill("")
    page.get_by_role("button", name="Tell me").click()
    expect(page.locator(".fault, #told")).to_be_visible()


def test_rules_are_tried_refused_and_saved_and_decide_the_next_study(
    page: Page, operated: Operated
) -> None:
    page.get_by_role("link", name="Rules").click()
    text = page.get_by_label("What this site says beyond the rules that ship")
    refusal = (
        '[[selection.refuse]]\nid = "none-at-all"\nwhen = [{ fact = "modality", equals = ["MR"] }]'
    )
    text.fill(refusal)
    page.get_by_label("Try them on the study").fill(operated.tag)
    page.get_by_role("button", name="Try").click()
    expect(page.get_by_text("No series is analysed")).to_be_visible()
    expect(page.get_by_text("differs from what was decided")).to_be_visible()
    refuse_serious_faults(page)

    before = operated.node.config.read_text()
    text.fill('[selection]\nprefer = "4d"')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("prefer")
    assert operated.node.config.read_text() == before

    text.fill('[selection]\nprefer = "2d"')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("in force from now on")).to_be_visible()
    assert 'prefer = "2d"' in operated.node.config.read_text()


def test_a_viewer_sees_neither_rules_nor_audit(browser: Browser, operated: Operated) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        sign_in(page, operated, Role.VIEWER)
        expect(page.get_by_role("link", name="Studies")).to_be_visible()
        expect(page.get_by_role("link", name="Rules")).to_have_count(0)
        page.goto(f"{operated.url}/audit")
        expect(page.get_by_text("needs the role of administrator")).to_be_visible()


def test_pages_are_readable_without_javascript(browser: Browser, operated: Operated) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        sign_in(page, operated, Role.OPERATOR)
        page.get_by_role("link", name="Studies").click()
        page.get_by_label("Pseudonym").fill(operated.tag)
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name=operated.tag).click()
        page.get_by_role("link", name="Look at the result").click()
        expect(page.locator("#grey")).to_be_visible()
        expect(page.get_by_role("button", name="Show this slice")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_page_without_scrolling_sideways(
    browser: Browser, operated: Operated, scheme: str
) -> None:
    with browser.new_context(
        viewport={"width": 390, "height": 844},
        color_scheme="dark" if scheme == "dark" else "light",
    ) as context:
        page = context.new_page()
        sign_in(page, operated, Role.ADMINISTRATOR)
        for path in ("/", "/studies", f"/studies/{operated.tag}", "/why", "/rules", "/audit"):
            page.goto(operated.url + path)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, path
            refuse_serious_faults(page)


def test_a_page_that_is_open_follows_what_happens(page: Page, operated: Operated) -> None:
    page.get_by_role("link", name="Now").click()
    sent = subprocess.run(
        [
            "/usr/bin/echoscu",
            "-aet",
            "SENDER",
            "-aec",
            "FLAIRNODE",
            LOOPBACK,
            str(operated.node.port),
        ],
        check=False,
    )
    assert sent.returncode == 0
    with operated.node.ledger() as ledger, ledger._transaction() as db:
        db.execute(
            "INSERT INTO outcomes (at, series_instance_uid, state, reason)"
            " SELECT last_received_at, series_instance_uid, 'held', 'incomplete'"
            " FROM series LIMIT 1"
        )
        db.execute("UPDATE series SET state = 'held', reason = 'incomplete'")
    try:
        expect(page.get_by_text("For a person to look at")).to_be_visible(timeout=20_000)
    finally:
        with operated.node.ledger() as ledger, ledger._transaction() as db:
            db.execute("UPDATE series SET state = 'delivered', reason = ''")
