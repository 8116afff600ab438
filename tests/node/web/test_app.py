"""The application without a browser: who is let in, and what an answer allows."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from config.settings import NodeSettings, Settings, WebSettings
from node.audit import Audit
from node.ledger import Ledger, ReceivedInstance
from node.sitekey import site_key, tag
from node.web.accounts import Role
from node.web.app import COOKIE, Surroundings, create_app


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Surroundings]:
    settings = Settings(node=NodeSettings(data_dir=tmp_path, reserve_mb=0))
    audit = Audit(tmp_path / "audit", site_key(tmp_path))
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        node = Surroundings(settings, tmp_path / "site.toml", ledger, audit)
        node.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
        yield node
        node.accounts.close()


@pytest.fixture
def client(node: Surroundings) -> TestClient:
    return TestClient(create_app(node), base_url="http://127.0.0.1", follow_redirects=False)


def sign_in(client: TestClient, node: Surroundings, role: Role) -> str:
    """The token against forged requests of somebody who is signed in now."""
    password = node.accounts.add(role.value, role)
    answer = client.post("/sign-in", data={"name": role.value, "password": password})
    assert answer.status_code == 303
    page = client.get("/").text
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def receive(node: Surroundings, study: str, series: str, count: int = 3) -> None:
    for number in range(count):
        node.ledger.record(
            ReceivedInstance(study, series, f"{series}.{number}", "1.2", "d", Path("p"), "SCANNER")
        )


@pytest.mark.parametrize("path", ["/", "/studies", "/studies/0123456789", "/parts/now", "/events"])
def test_nothing_is_shown_to_whoever_is_not_signed_in(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 401
    assert "Password" in answer.text
    assert "SCANNER" not in answer.text


def test_a_wrong_password_is_refused_and_audited(client: TestClient, node: Surroundings) -> None:
    node.accounts.add("anna", Role.VIEWER)
    answer = client.post("/sign-in", data={"name": "anna", "password": "wrong"})
    assert answer.status_code == 401
    assert COOKIE not in client.cookies
    lines = [line for line in node.audit.entries() if line is not None]
    assert lines[-1]["what"] == "web-sign-in-refused"


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
    client: TestClient, node: Surroundings
) -> None:
    password = node.accounts.add("anna", Role.VIEWER)
    answer = client.post("/sign-in", data={"name": "anna", "password": password})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_over_tls_the_cookie_is_secure(node: Surroundings) -> None:
    client = TestClient(create_app(node), base_url="https://127.0.0.1", follow_redirects=False)
    password = node.accounts.add("anna", Role.VIEWER)
    answer = client.post("/sign-in", data={"name": "anna", "password": password})
    assert "secure" in answer.headers["set-cookie"].lower()


def test_signing_out_needs_the_token_of_the_session(client: TestClient, node: Surroundings) -> None:
    token = sign_in(client, node, Role.VIEWER)
    assert client.post("/sign-out").status_code == 403
    assert client.post("/sign-out", data={"csrf": "x" * len(token)}).status_code == 403
    assert client.get("/").status_code == 200
    assert client.post("/sign-out", data={"csrf": token}).status_code == 303
    assert client.get("/").status_code == 401


def test_a_form_of_another_site_signs_nobody_in(client: TestClient, node: Surroundings) -> None:
    password = node.accounts.add("anna", Role.VIEWER)
    answer = client.post(
        "/sign-in",
        data={"name": "anna", "password": password},
        headers={"Sec-Fetch-Site": "cross-site"},
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("onward", ["//elsewhere.example", "/\\elsewhere", "https://elsewhere"])
def test_signing_in_leads_nowhere_else(client: TestClient, node: Surroundings, onward: str) -> None:
    password = node.accounts.add("anna", Role.VIEWER)
    answer = client.post("/sign-in", data={"name": "anna", "password": password, "onward": onward})
    assert answer.headers["location"] == "/"


def test_no_answer_allows_inline_code_or_a_frame(client: TestClient) -> None:
    for path in ("/", "/sign-in", "/healthz", "/metrics", "/static/style.css", "/nowhere"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy


def test_no_page_needs_inline_code(client: TestClient, node: Surroundings) -> None:
    sign_in(client, node, Role.ADMINISTRATOR)
    receive(node, "1.2", "1.2.3")
    key = site_key(node.settings.node.data_dir)
    for path in ("/", "/studies", f"/studies/{tag(key, '1.2')}"):
        text = client.get(path).text
        assert not re.search(r"<script(?![^>]* src=)", text), path
        assert not re.search(r"\s(on\w+|style)=", text), path


def test_another_name_of_the_host_is_refused(client: TestClient) -> None:
    assert client.get("/healthz", headers={"Host": "rebound.example"}).status_code == 400


def test_a_study_is_found_by_its_pseudonym(client: TestClient, node: Surroundings) -> None:
    sign_in(client, node, Role.VIEWER)
    receive(node, "1.2", "1.2.3")
    receive(node, "1.9", "1.9.3", count=7)
    name = tag(site_key(node.settings.node.data_dir), "1.9")
    listed = client.get("/studies", params={"tag": name[:6]}).text
    assert name in listed
    assert tag(site_key(node.settings.node.data_dir), "1.2") not in listed
    shown = client.get(f"/studies/{name}").text
    assert "1.9.3" in shown
    assert "7 images" in shown
    assert client.get("/studies/ffffffffff").status_code == 404


def test_a_part_of_a_page_sends_the_browser_to_sign_in(client: TestClient) -> None:
    answer = client.get("/parts/now", headers={"HX-Request": "true"})
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"] == "/sign-in"


def test_health_and_figures_need_no_sign_in_and_name_nobody(
    client: TestClient, node: Surroundings
) -> None:
    receive(node, "1.2.840.99", "1.2.840.99.3")
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").json() == {"ready": True, "faults": []}
    figures = client.get("/metrics").text
    assert 'flairnode_series{reason="",state="receiving"} 1.0' in figures
    assert "1.2.840.99" not in figures


def test_a_full_disk_is_not_ready(tmp_path: Path) -> None:
    settings = Settings(node=NodeSettings(data_dir=tmp_path, reserve_mb=10**9))
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        node = Surroundings(
            settings, tmp_path / "site.toml", ledger, Audit(tmp_path / "audit", b"k" * 32)
        )
        answer = TestClient(create_app(node), base_url="http://127.0.0.1").get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["faults"] == ["disk-reserve"]


def test_a_proxy_is_believed_only_from_its_address(tmp_path: Path) -> None:
    web = WebSettings(proxy_user_header="X-Remote-User", proxy_addresses=("10.1.0.0/16",))
    settings = Settings(node=NodeSettings(data_dir=tmp_path, reserve_mb=0), web=web)
    with Ledger(tmp_path / "intake.sqlite") as ledger:
        node = Surroundings(
            settings, tmp_path / "site.toml", ledger, Audit(tmp_path / "audit", b"k" * 32)
        )
        node.accounts.add("anna", Role.VIEWER)
        headers = {"X-Remote-User": "Anna"}
        app = create_app(node)
        for address, status in (("10.1.2.3", 200), ("10.2.2.3", 401)):
            client = TestClient(app, base_url="http://127.0.0.1", client=(address, 1))
            assert client.get("/", headers=headers).status_code == status
        stranger = TestClient(app, base_url="http://127.0.0.1", client=("10.1.2.3", 1))
        assert stranger.get("/", headers={"X-Remote-User": "eve"}).status_code == 401


def test_an_open_page_needs_a_certificate_or_a_proxy() -> None:
    with pytest.raises(ValueError, match="certificate_file"):
        WebSettings(bind_host="0.0.0.0")  # noqa: S104  # it is refused


# --- what an operator does -----------------------------------------------------------------------


def held(node: Surroundings, study: str, series: str) -> str:
    """The pseudonym of a study with a series that waits for a person."""
    receive(node, study, series)
    with node.ledger._transaction() as db:
        db.execute(
            "UPDATE series SET state = 'held', reason = 'incomplete' WHERE series_instance_uid = ?",
            (series,),
        )
    return tag(site_key(node.settings.node.data_dir), study)


def test_an_operator_tries_a_series_again_and_it_is_noted(
    client: TestClient, node: Surroundings
) -> None:
    csrf = sign_in(client, node, Role.OPERATOR)
    name = held(node, "1.2", "1.2.3")
    assert "Try again" in client.get(f"/studies/{name}").text
    path = f"/studies/{name}/series/1.2.3/retry"
    assert client.post(path).status_code == 403
    assert client.post(path, data={"csrf": csrf}).headers["location"] == f"/studies/{name}"
    row = node.ledger.series("1.2.3")
    assert row is not None
    assert row.state == "receiving"
    whats = [line["what"] for line in node.audit.entries() if line is not None]
    assert whats[-1] == "web-retry"


def test_two_operators_on_one_series_do_not_do_it_twice(
    client: TestClient, node: Surroundings
) -> None:
    csrf = sign_in(client, node, Role.OPERATOR)
    name = held(node, "1.2", "1.2.3")
    path = f"/studies/{name}/series/1.2.3/retry"
    assert client.post(path, data={"csrf": csrf}).status_code == 303
    second = client.post(path, data={"csrf": csrf})
    assert second.status_code == 409
    assert "receiving" in second.text


def test_a_viewer_changes_nothing(client: TestClient, node: Surroundings) -> None:
    csrf = sign_in(client, node, Role.VIEWER)
    name = held(node, "1.2", "1.2.3")
    assert "Try again" not in client.get(f"/studies/{name}").text
    for path in (f"/studies/{name}/series/1.2.3/retry", "/pause", "/resume", "/retry-all"):
        answer = client.post(path, data={"csrf": csrf, "reason": "incomplete"})
        assert answer.status_code == 403, path


def test_a_series_of_another_study_is_not_reached(client: TestClient, node: Surroundings) -> None:
    csrf = sign_in(client, node, Role.OPERATOR)
    held(node, "1.9", "1.9.3")
    name = held(node, "1.2", "1.2.3")
    answer = client.post(f"/studies/{name}/series/1.9.3/retry", data={"csrf": csrf})
    assert answer.status_code == 404


def test_analyses_are_paused_and_go_on(client: TestClient, node: Surroundings) -> None:
    csrf = sign_in(client, node, Role.OPERATOR)
    assert client.post("/pause", data={"csrf": csrf}).status_code == 303
    assert "no analysis begins" in client.get("/").text
    assert client.post("/resume", data={"csrf": csrf}).status_code == 303
    assert "no analysis begins" not in client.get("/").text
