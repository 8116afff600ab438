"""Folds over hosts: two take them from one queue, one is killed in mid-fold, the other finishes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fold_executor import EPOCHS, FOLDS
from postgres import postgres, programs

from config.loader import SettingsError
from node.launcher import DbosLauncher
from training.fold_log import read_progress

PATIENCE_S = 240.0
pytestmark = pytest.mark.timeout(2 * PATIENCE_S)
SCRIPT = Path(__file__).with_name("fold_executor.py")


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = site(tmp_path)
    if request.param == "sqlite":
        yield path
        return
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgres(folder) as address, path.open("a") as file:
        file.write(f'database_url = "{address}"\n')
        file.flush()
        yield path


def site(folder: Path) -> Path:
    (folder / "data").mkdir()
    path = folder / "site.toml"
    path.write_text(f'[node]\ndata_dir = "{folder / "data"}"\n[engine]\npoll_s = 0.2\n')
    return path


@contextmanager
def host(config: Path, index: int, action: str, run: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(SCRIPT), str(config), str(index), action, str(run)]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def epochs(run: Path, fold: int) -> list[tuple[int, str]]:
    path = run / f"fold_{fold}" / "epochs"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_folds_of_a_killed_host_are_finished_by_another_from_their_checkpoints(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with host(config, 1, "work", run) as first, host(config, 0, "launch", run) as second:
        wait_until(
            lambda: any(
                len(epochs(run, fold)) >= 2 and epochs(run, fold)[0][1] == "1" for fold in FOLDS
            )
        )
        first.kill()
        first.wait()
        killed = next(fold for fold in FOLDS if epochs(run, fold)[:1] == [(0, "1")])
        assert second.wait(PATIENCE_S) == 0
    for fold in FOLDS:
        assert read_progress(run / f"fold_{fold}", fold).state == "done"
        done = [epoch for epoch, _ in epochs(run, fold)]
        # In order; the one epoch that was under way when its host died may be there twice.
        assert sorted(set(done)) == list(range(EPOCHS))
        assert done == sorted(done)
        assert len(done) <= EPOCHS + (fold == killed)
    assert {one for _, one in epochs(run, killed)} == {"0", "1"}


def test_a_host_that_is_told_to_stop_leaves_its_fold_to_be_gone_on_with(tmp_path: Path) -> None:
    config, run = site(tmp_path), tmp_path / "run"
    with host(config, 0, "launch", run) as only:
        wait_until(lambda: len(epochs(run, 1)) >= 2)
        only.terminate()
        assert only.wait(PATIENCE_S) == 0
    assert read_progress(run / "fold_0", 0).state == "done"
    assert read_progress(run / "fold_1", 1).state == "stopped"
    reached = len(epochs(run, 1))
    with host(config, 0, "launch", run) as again:
        assert again.wait(PATIENCE_S) == 0
    # What was done is not done again, and what was stopped goes on where it was.
    for fold in FOLDS:
        assert [epoch for epoch, _ in epochs(run, fold)] == list(range(EPOCHS))
    assert reached < EPOCHS
    # The tables of the node are left alone.
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert "training.sqlite" in names
    assert "engine.sqlite" not in names


def test_the_launcher_needs_the_settings_of_a_site() -> None:
    with pytest.raises(SettingsError, match="--config"):
        DbosLauncher(None)
