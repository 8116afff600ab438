"""`flairnode demo`: exit 0 only if everything held, and nothing is left behind."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from node import demo, demo_site
from node.archive import find_orthanc
from pipeline.phantom import Phantom, synthetic_head
from pipeline.phantom_study import write_study
from tests.integration.bright_pack import make_bright_pack

pytestmark = pytest.mark.timeout(600)  # torch is loaded, a study analysed, twice over by some

RESULT = {"overlay.png", "result.json", "seg.dcm", "sr.dcm", "pdf.dcm", "report.pdf"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "bright"
    make_bright_pack(path)
    return path


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return synthetic_head(11)


@pytest.fixture(scope="module")
def study(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(phantom, folder)
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo puts its temporary folder; empty again when it is over."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def run_here(
    temporary: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Runs the demo in this process, on a machine that has no Orthanc."""
    monkeypatch.setattr(demo_site, "find_orthanc", lambda: None)

    def run(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        demo.register(parser.add_subparsers())
        given = ("demo", "--model", str(model), "--output", str(tmp_path / "out"), *arguments)
        parsed = parser.parse_args(given)
        status: int = parsed.run(parsed)
        assert list(temporary.iterdir()) == []
        assert processes_of(temporary) == []
        return status

    return run


def command(model: Path, output: Path, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "node.cli", "demo"]
    return [*program, "--model", str(model), "--output", str(output), *arguments]


def names_in(output: Path) -> set[str]:
    """What the demo left beside the key images: an object and a picture of each, one at least."""
    names = {path.name for path in output.iterdir()}
    objects = {name for name in names if name.startswith("key-image-") and name.endswith(".dcm")}
    pictures = {name.replace(".dcm", ".png") for name in objects}
    assert objects
    assert pictures <= names
    return names - objects - pictures


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder: of the node, its workers, Orthanc."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdigit() and str(folder) in line:
            found.append(line)
    return found


@pytest.mark.pacs
@pytest.mark.skipif(find_orthanc() is None, reason="Orthanc is not installed")
def test_the_synthetic_study_goes_through_a_real_node_and_a_real_orthanc(
    model: Path, tmp_path: Path, temporary: Path
) -> None:
    output = tmp_path / "out"
    done = subprocess.run(
        command(model, output, "--orthanc"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "start an archive: Orthanc" in done.stdout
    assert "All held" in done.stdout
    assert "RESEARCH - NOT FOR CLINICAL USE" in done.stdout
    for reason in ("localizer", "not-flair-echo-time", "parametric-map", "derived-reformat"):
        assert reason in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Dice against")]
    # The pack marks what is bright, and in this head only lesions are: better than .7.
    assert float(line.split(": ")[1].split()[0]) > 0.7
    assert names_in(output) == {*RESULT, "study"}
    assert (output / "report.pdf").read_bytes().startswith(b"%PDF-")
    findings = json.loads((output / "result.json").read_text())["findings"]
    assert findings["lesion_count"] >= 10
    assert list(temporary.iterdir()) == []
    assert processes_of(temporary) == []


def test_a_study_of_ones_own_without_an_orthanc(
    run_here: Callable[..., int],
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_here("--input", str(study)) == 0
    said = capsys.readouterr().out
    assert "small archive of this program" in said
    assert "Dice" not in said  # nobody knows the truth of it
    assert names_in(tmp_path / "out") == RESULT


def test_a_study_without_a_flair_is_no_success_and_no_failure(
    run_here: Callable[..., int], study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("--input", str(study / "t1")) == 3
    assert "Nothing was analysed: no series is a FLAIR of the head" in capsys.readouterr().out


def test_an_empty_folder_starts_nothing(
    run_here: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run_here("--input", str(tmp_path / "empty")) == 3
    said = capsys.readouterr().out
    assert "empty-input" in said
    assert "archive" not in said


def test_an_orthanc_that_is_asked_for_and_not_there_is_said(
    run_here: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("node.archive.find_orthanc", lambda: None)
    assert run_here("--orthanc") == 1
    assert "Orthanc is not installed" in capsys.readouterr().out


def test_a_node_that_cannot_start_is_said_with_its_last_words(
    run_here: Callable[..., int], tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("--input", str(study / "t1"), "--model", str(tmp_path / "no-such-pack")) == 1
    said = capsys.readouterr().out
    assert "FAILED: the node ended" in said
    assert "its last words" in said
    assert (tmp_path / "out" / "node.log").is_file()


def test_ended_in_the_middle_it_leaves_no_process_and_no_folder(
    model: Path, study: Path, tmp_path: Path, temporary: Path
) -> None:
    program = command(model, tmp_path / "out", "--input", str(study))
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("ok    start the node"):
                break
        assert processes_of(temporary)
        run.send_signal(signal.SIGTERM)
        run.stdout.read()
        assert run.wait(timeout=60) == 130
    assert list(temporary.iterdir()) == []
    deadline = time.monotonic() + 10  # a worker dies with its service, a moment after
    while processes_of(temporary) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(temporary) == []
