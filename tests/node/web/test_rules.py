"""Rules tried and saved through the page; the answers come from `flairnode select` itself."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from config.loader import load_settings
from config.selection import SelectionSettings
from node.audit import Audit
from node.ledger import Ledger
from node.sitekey import site_key
from node.web.accounts import Role
from node.web.app import Surroundings, create_app
from node.web.trial import TrialError, save_selection, selection_text, with_selection

SITE = """# our site
[node]
data_dir = "{data_dir}"  # a local disk
reserve_mb = 0

[selection]
prefer = "3d"               # since 2025
thresholds = {{ shortest_echo_ms = 60 }}

[[selection.refuse]]
id = "no-screening"
when = [{{ fact = "description", matches = "screening" }}]

[completeness]
quiet_period_s = 5
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE.format(data_dir=tmp_path / "data"), encoding="utf-8")
    return path


def test_only_the_selection_of_a_site_is_shown(config: Path) -> None:
    text = selection_text(config)
    assert 'prefer = "3d"' in text
    assert "no-screening" in text
    assert "data_dir" not in text


def test_saving_changes_the_selection_alone_and_keeps_the_file_before(config: Path) -> None:
    before = config.read_text(encoding="utf-8")
    settings = save_selection(config, '[selection]\nprefer = "2d"\n')
    assert settings.selection.prefer == "2d"
    after = config.read_text(encoding="utf-8")
    assert "# our site" in after
    assert "# a local disk" in after
    assert "no-screening" not in after
    assert load_settings(config).completeness.quiet_period_s == 5
    assert config.with_name("site.toml.before").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[selection", "no valid TOML"),
        ('[selection]\nprefer = "4d"\n', "prefer"),
        ("[selection]\nunheard = 1\n", "unknown key"),
        ("[node]\nport = 1\n", "Only"),
        (
            '[[selection.refuse]]\nid = "x"\nwhen = [{ fact = "shoe-size", equals = ["9"] }]\n',
            "fact",
        ),
    ],
)
def test_rules_that_are_not_valid_are_refused_and_the_old_ones_stay(
    config: Path, text: str, why: str
) -> None:
    before = config.read_bytes()
    with pytest.raises(TrialError, match=why):
        save_selection(config, text)
    assert config.read_bytes() == before
    assert not config.with_name("site.toml.before").exists()


def test_a_site_without_rules_of_its_own_gets_some(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("[node]\nport = 4000\n", encoding="utf-8")
    assert selection_text(path) == ""
    assert 'prefer = "2d"' in with_selection(path, '[selection]\nprefer = "2d"\n')


# --- through the page ----------------------------------------------------------------------------


class Page:
    def __init__(self, node: Surroundings, role: Role) -> None:
        password = node.accounts.add(role.value, role)
        self.client = TestClient(
            create_app(node), base_url="http://127.0.0.1", follow_redirects=False
        )
        self.client.post("/sign-in", data={"name": role.value, "password": password})
        found = re.search(r'name="csrf" value="([^"]+)"', self.client.get("/").text)
        assert found is not None
        self.csrf = found[1]

    def post(self, path: str, **fields: Any) -> Any:  # noqa: ANN401
        files = fields.pop("files", None)
        return self.client.post(path, data={"csrf": self.csrf, **fields}, files=files)


@pytest.fixture
def node(config: Path) -> Iterator[Surroundings]:
    settings = load_settings(config)
    data_dir = settings.node.data_dir
    with Ledger(data_dir / "intake.sqlite") as ledger:
        node = Surroundings(settings, config, ledger, Audit(data_dir / "audit", site_key(data_dir)))
        node.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
        yield node
        node.accounts.close()


@pytest.mark.timeout(180)
def test_dropped_files_are_told_what_refused_them(
    node: Surroundings, make_flair_series: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_flair_series()
    files = [
        ("files", (f"{number}.dcm", Path(path).read_bytes()))
        for number, path in enumerate(sorted(p for p in made.folder.rglob("*") if p.is_file()))
    ]
    page = Page(node, Role.VIEWER)
    answer = page.post("/why", files=files)
    assert answer.status_code == 200
    assert "One series is analysed" in answer.text
    refused = page.post("/why", files=[("files", ("a.txt", b"no DICOM at all"))])
    assert "selected" not in refused.text


def test_a_viewer_neither_sees_nor_saves_rules(node: Surroundings) -> None:
    page = Page(node, Role.VIEWER)
    assert page.client.get("/rules").status_code == 403
    assert page.post("/rules/save", text="").status_code == 403
    assert page.client.get("/audit").status_code == 403


def test_an_operator_tries_but_does_not_save(node: Surroundings) -> None:
    page = Page(node, Role.OPERATOR)
    assert page.client.get("/rules").status_code == 200
    assert page.post("/rules/save", text='[selection]\nprefer = "2d"\n').status_code == 403


def test_an_administrator_saves_and_the_node_decides_by_the_new_rules(node: Surroundings) -> None:
    in_force: list[SelectionSettings] = []
    node.use_selection = in_force.append
    page = Page(node, Role.ADMINISTRATOR)
    assert page.post("/rules/save", text='[selection]\nprefer = "4d"\n').status_code == 422
    assert in_force == []
    assert page.post("/rules/save", text='[selection]\nprefer = "2d"\n').status_code == 200
    assert [one.prefer for one in in_force] == ["2d"]
    trail = page.client.get("/audit").text
    assert "web-rules-saved" in trail
    assert "The record is whole" in trail


def test_a_change_without_the_token_is_refused(node: Surroundings) -> None:
    page = Page(node, Role.ADMINISTRATOR)
    assert page.client.post("/rules/save", data={"text": ""}).status_code == 403
