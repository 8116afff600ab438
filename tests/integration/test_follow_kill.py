"""A whole node follows an Orthanc; both are killed, and asked for single studies."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from follow_kill_rounds import QUIET_S, FollowKills
from follow_site import store
from node_process import PATIENCE_S, NodeProcess

from node.archive import Orthanc
from node.audit import Audit
from node.sitekey import site_key

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(5 * PATIENCE_S)]

SEED = 20261124
HEAD_MM = (6.5, 4.0, 5.0)
Make = Callable[..., Any]


def test_every_series_is_analysed_once_over_kills_of_the_node_and_of_the_orthanc(
    orthanc: Orthanc, make_node: Callable[..., NodeProcess], make_flair_series: Make
) -> None:
    node = make_node(
        archives={"pacs": orthanc},
        sections={"completeness": {"quiet_period_s": QUIET_S}},
        follows=("pacs",),
    )
    series = [make_flair_series(spacing_mm=HEAD_MM, patient_id=f"P{n}") for n in range(4)]
    node.start()
    plan = random.Random(SEED)  # noqa: S311  # to be repeated, not to be secret
    kills = FollowKills(node, orthanc, series, plan)
    assert kills.run(rounds=3) == []
    assert kills.done["node"] + kills.done["both"] >= 1
    assert kills.done["orthanc"] + kills.done["both"] >= 1


def fetch(node: NodeProcess, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "node.cli", "fetch"),
            *(*arguments, "--config", str(node.config), "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}


def test_a_study_is_fetched_while_the_node_serves_and_its_end_is_told(
    orthanc: Orthanc, make_node: Callable[..., NodeProcess], make_flair_series: Make
) -> None:
    node = make_node(archives={"pacs": orthanc}, follows=("pacs",))
    node.folder.mkdir()
    node.write_config()
    # By hand, since this node is to be asked, and not to find the study by itself.
    text = node.config.read_text().split("[[sources]]")[0]
    node.write_config = lambda: node.config.write_text(text)  # type: ignore[method-assign]
    flair = make_flair_series(spacing_mm=HEAD_MM)
    store(orthanc, flair.paths)
    status, told = fetch(node, flair.study_instance_uid)
    assert (status, told["reason"]) == (3, "service-not-running")
    node.start()
    # The request was kept, and the service has perhaps fetched the study before it is asked again.
    status, told = fetch(node, flair.study_instance_uid, "--wait")
    assert (status, told["outcome"], told["instances_listed"]) == (0, "delivered", 10)
    (series,) = told["series"]
    assert (series["state"], series["counts"], series["instances"]) == (
        "delivered",
        "confirmed",
        10,
    )
    status, told = fetch(node, "1.2.3.4", "--wait")
    assert (status, told["reason"]) == (3, "study-not-found")
    entries = Audit(node.data_dir / "audit", site_key(node.data_dir)).entries()
    asked = [line for line in entries if line and line.get("what") == "fetch"]
    assert [line["source"] for line in asked] == ["pacs"] * 3
