"""Skull strips of others, through the command lines they take.

FSL, HD-BET and SynthStrip themselves cannot be had here. Small real executables stand in for them:
they parse the arguments that the real program takes, and refuse others.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from config.settings import BrainToolSettings, PipelineSettings
from dicom.errors import Outcome, StudyError
from dicom.volume import Grid, Volume
from pipeline.brain import BrainMask
from pipeline.brain_tools import (
    BrainToolEmptyMaskError,
    BrainToolError,
    BrainToolGridError,
    BrainToolMaskError,
    BrainToolMissingError,
    BrainToolTimeoutError,
    extractor_of,
    require_extractor,
)
from pipeline.flow import CanvasSegmentation, analyse
from pipeline.model_pack import Extractor
from pipeline.quality import _origin_flags
from pipeline.results import result_settings_digest
from tests.conftest import oblique_affine
from tests.pipeline.heads import ellipsoid_head
from tests.pipeline.tiny_pack import manifest

ARGUMENTS = {
    # bet <input> <output> -m -n -f F
    "fsl-bet": """
parser.add_argument("input"); parser.add_argument("output")
parser.add_argument("-m", action="store_true", required=True)
parser.add_argument("-n", action="store_true", required=True)
parser.add_argument("-f", type=float, required=True)
given = parser.parse_args(); assert given.f == 0.4
assert os.environ["FSLOUTPUTTYPE"] == "NIFTI_GZ"
written = given.output + "_mask.nii.gz"
""",
    # HD_BET/entry_point.py of release 2
    "hd-bet": """
parser.add_argument("-i", "--input", required=True); parser.add_argument("-o", "--output")
parser.add_argument("-device", default="cuda"); parser.add_argument("--verbose")
for flag in ("--disable_tta", "--save_bet_mask", "--no_bet_image"):
    parser.add_argument(flag, action="store_true")
given = parser.parse_args()
assert given.save_bet_mask and given.no_bet_image and given.disable_tta and given.device == "cpu"
weights = os.path.expanduser("~/hd-bet_params/release_2.0.0/fold_all/checkpoint_final.pth")
assert os.path.isfile(weights), weights
assert given.output.endswith(".nii.gz")
written = given.output[:-7] + "_bet.nii.gz"
""",
    # mri_synthstrip of FreeSurfer 7
    "synthstrip": """
parser.add_argument("-i", "--image", required=True); parser.add_argument("-o", "--out")
parser.add_argument("-m", "--mask"); parser.add_argument("--model")
parser.add_argument("-g", "--gpu", action="store_true")
given = parser.parse_args(); assert os.path.isfile(given.model) and not given.gpu
given.input, written = given.image, given.mask
""",
}
PROGRAM = """#!{python}
import argparse, os, sys, time
import nibabel, numpy as np
parser = argparse.ArgumentParser()
{arguments}
image = nibabel.load(given.input)
mask = (image.get_fdata() > 50).astype(np.uint8)
affine = image.affine
{act}
nibabel.save(nibabel.Nifti1Image(mask, affine), written)
"""
NAMES = {"fsl-bet": "bet", "hd-bet": "hd-bet", "synthstrip": "mri_synthstrip"}
TOOLS = tuple(NAMES)
SHAPE = (6, 10, 8)


def image() -> Volume:
    """150 voxels of brain at 100, the rest at 3."""
    voxels = np.full(SHAPE, 3, np.float32)
    voxels[1:6, 2:8, 1:6] = 100
    return Volume(voxels, Grid(oblique_affine((6.5, 0.9, 1.1)), SHAPE))


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private folders are made; nothing of this machine's FSL or FreeSurfer is seen."""
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    for name in ("FSLDIR", "FREESURFER_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def installed(tmp_path: Path, private: Path) -> Callable[..., PipelineSettings]:
    """Installs a stand-in as the real tool is laid out, and says how a site would name it."""

    def install(
        tool: str, act: str = "", version: str = "2.0.1", timeout_s: float = 60.0
    ) -> PipelineSettings:
        root = tmp_path / "opt" / tool
        (root / "bin").mkdir(parents=True, exist_ok=True)
        program = root / "bin" / NAMES[tool]
        program.write_text(
            PROGRAM.format(python=sys.executable, arguments=ARGUMENTS[tool], act=act)
        )
        program.chmod(0o755)
        weights: Path | None = None
        match tool:
            case "fsl-bet":
                (root / "etc").mkdir(exist_ok=True)
                (root / "etc" / "fslversion").write_text("6.0.7.4:abcdef\n")
            case "hd-bet":
                found = root / "lib/python3.11/site-packages" / f"hd_bet-{version}.dist-info"
                found.mkdir(parents=True, exist_ok=True)
                (found / "METADATA").write_text(f"Name: hd-bet\nVersion: {version}\n")
                weights = root / "home" / "hd-bet_params" / "release_2.0.0"
                (weights / "fold_all").mkdir(parents=True, exist_ok=True)
                (weights / "fold_all" / "checkpoint_final.pth").write_bytes(b"weights")
            case "synthstrip":
                stamp = "freesurfer-linux-ubuntu22_x86_64-7.4.1-20230614-7eb8460\n"
                (root / "build-stamp.txt").write_text(stamp)
                weights = root / "synthstrip.1.pt"
                weights.write_bytes(b"weights")
        return PipelineSettings(
            brain=tool,
            brain_tool=BrainToolSettings(
                command=program, weights=weights, timeout_s=timeout_s, fraction=0.4
            ),
        )

    return install


Install = Callable[..., PipelineSettings]


@pytest.mark.parametrize(
    ("tool", "version"), [("fsl-bet", "6.0.7.4"), ("hd-bet", "2.0.1"), ("synthstrip", "7.4.1")]
)
def test_a_mask_comes_back_on_the_grid_of_the_image(
    installed: Install, private: Path, tool: str, version: str
) -> None:
    settings = installed(tool)
    extractor = require_extractor(settings)
    brain = extractor.extract(image())
    assert np.array_equal(brain.mask, image().voxels > 50)
    assert (brain.method, brain.version) == (tool, version)
    assert extractor.available().version == version
    assert brain.grid.shape == SHAPE
    assert list(private.iterdir()) == []
    if tool == "fsl-bet":
        assert brain.parameters == {"fraction": 0.4}
    else:
        digest = hashlib.sha256(b"weights").hexdigest()
        assert brain.parameters["weights_sha256"] == digest


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_is_not_there_is_said_with_what_to_do(
    installed: Install, private: Path, tool: str
) -> None:
    settings = installed(tool)
    assert settings.brain_tool.command is not None
    settings.brain_tool.command.unlink()
    status = extractor_of(settings).available()
    assert not status.ok
    assert "pipeline.brain_tool.command" in status.text
    assert "licen" in status.text
    for attempt in (
        lambda: require_extractor(settings),
        lambda: extractor_of(settings).extract(image()),
    ):
        with pytest.raises(BrainToolMissingError) as caught:
            attempt()
        assert (caught.value.reason, caught.value.outcome) == ("brain-tool-missing", Outcome.FAILED)
    assert list(private.iterdir()) == []


def test_a_tool_is_found_on_the_path(installed: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = installed("fsl-bet")
    assert settings.brain_tool.command is not None
    monkeypatch.setenv("PATH", str(settings.brain_tool.command.parent))
    assert extractor_of(PipelineSettings(brain="fsl-bet")).available().ok
    monkeypatch.setenv("PATH", "/nowhere")
    assert not extractor_of(PipelineSettings(brain="fsl-bet")).available().ok


@pytest.mark.parametrize("tool", ["hd-bet", "synthstrip"])
def test_weights_that_are_not_there_are_never_fetched(installed: Install, tool: str) -> None:
    settings = installed(tool)
    weights = settings.brain_tool.weights
    assert weights is not None
    (weights if weights.is_file() else weights / "fold_all" / "checkpoint_final.pth").unlink()
    status = extractor_of(settings).available()
    assert not status.ok
    assert "no weights at" in status.text or "no model at" in status.text


def test_weights_that_hd_bet_would_not_read_are_refused(installed: Install, tmp_path: Path) -> None:
    settings = installed("hd-bet")
    elsewhere = settings.brain_tool.model_copy(update={"weights": tmp_path})
    status = extractor_of(settings.model_copy(update={"brain_tool": elsewhere})).available()
    assert "must end in hd-bet_params/release_2.0.0" in status.text


def test_a_tool_without_a_version_or_of_another_release_is_not_used(installed: Install) -> None:
    settings = installed("hd-bet", version="1.1")
    assert "does not state its version" in extractor_of(settings).available().text
    settings = installed("fsl-bet")
    assert settings.brain_tool.command is not None
    (settings.brain_tool.command.parents[1] / "etc" / "fslversion").unlink()
    assert "does not state its version" in extractor_of(settings).available().text


def test_saying_what_is_there_changes_nothing(installed: Install, tmp_path: Path) -> None:
    settings = installed("synthstrip", act=f"open({str(tmp_path / 'ran')!r}, 'w')")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert extractor_of(settings).available().ok
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


FAILURES: dict[str, tuple[str, type[StudyError], str, str]] = {
    "another shape": (
        "mask = mask[:, :, :-1]",
        BrainToolGridError,
        "brain-tool-wrong-grid",
        r"\(5, 10, 8\) voxels",
    ),
    "axes exchanged": (
        "mask = mask.transpose(1, 0, 2)",
        BrainToolGridError,
        "brain-tool-wrong-grid",
        "voxels",
    ),
    "another place": (
        "affine = affine.copy(); affine[0, 3] += 0.01",
        BrainToolGridError,
        "brain-tool-wrong-grid",
        "0.01",
    ),
    "mirrored": (
        "affine = affine @ np.diag([-1, 1, 1, 1])",
        BrainToolGridError,
        "brain-tool-wrong-grid",
        "elsewhere",
    ),
    "empty": ("mask[:] = 0", BrainToolEmptyMaskError, "brain-tool-empty-mask", "no brain"),
    "the image instead of a mask": (
        "mask = image.get_fdata().astype(np.float32)",
        BrainToolMaskError,
        "brain-tool-bad-mask",
        "other values than 0 and 1",
    ),
    "labels": ("mask = mask * 2", BrainToolMaskError, "brain-tool-bad-mask", "0 and 1"),
    "not a number": (
        "mask = np.full(mask.shape, np.nan, np.float32)",
        BrainToolMaskError,
        "brain-tool-bad-mask",
        "readable",
    ),
    "not NIfTI": (
        "open(written, 'w').write('no'); sys.exit(0)",
        BrainToolMaskError,
        "brain-tool-bad-mask",
        "no readable mask",
    ),
    "nothing written": ("sys.exit(0)", BrainToolError, "brain-tool-failed", "wrote no mask"),
    "an error": (
        "print('cannot allocate', file=sys.stderr); sys.exit(3)",
        BrainToolError,
        "brain-tool-failed",
        "exit status 3. It said: cannot allocate",
    ),
    "a crash": (
        "os.kill(os.getpid(), 11)",
        BrainToolError,
        "brain-tool-failed",
        "ended by signal 11",
    ),
}


@pytest.mark.parametrize(("act", "error", "reason", "words"), FAILURES.values(), ids=FAILURES)
def test_whatever_is_no_mask_of_this_image_is_a_coded_error(
    installed: Install, private: Path, act: str, error: type[StudyError], reason: str, words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        require_extractor(installed("fsl-bet", act)).extract(image())
    assert caught.value.reason == reason
    assert str(private) not in str(caught.value)
    assert list(private.iterdir()) == []


def test_a_tool_that_hangs_is_ended_with_all_it_started(
    installed: Install, private: Path, tmp_path: Path
) -> None:
    noted = tmp_path / "pids"
    act = f"""
import subprocess
child = subprocess.Popen(["sleep", "60"])
open({str(noted)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(60)
"""
    began = time.monotonic()
    with pytest.raises(BrainToolTimeoutError, match="ended after 4 s") as caught:
        require_extractor(installed("synthstrip", act, timeout_s=4.0)).extract(image())
    assert (caught.value.reason, caught.value.outcome) == ("brain-tool-timeout", Outcome.FAILED)
    assert time.monotonic() - began < 30
    assert list(private.iterdir()) == []
    for pid in noted.read_text().split():
        deadline = time.monotonic() + 10
        while _runs(int(pid)):
            assert time.monotonic() < deadline, f"{pid} still runs"
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_tool_sees_no_secret_no_network_and_a_folder_of_its_own(
    installed: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAIRNODE_ENGINE__DATABASE_URL", "postgresql://user:pass7word@host/db")
    monkeypatch.setenv("https_proxy", "http://proxy.hospital:3128")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    noted = tmp_path / "seen.json"
    act = f"""
import json
mode = oct(os.stat(os.getcwd()).st_mode & 0o777)
seen = dict(os.environ, cwd=os.getcwd(), mode=mode, files=" ".join(sorted(os.listdir("."))))
json.dump(seen, open({str(noted)!r}, "w"))
"""
    require_extractor(installed("fsl-bet", act)).extract(image())
    seen = json.loads(noted.read_text())
    assert "pass7word" not in json.dumps(seen)
    assert "hospital" not in json.dumps(seen)
    assert "PYTHONPATH" not in seen
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["https_proxy"] == seen["HTTP_PROXY"] == "http://127.0.0.1:9"
    assert seen["mode"] == "0o700"
    assert seen["files"] == "image.nii.gz told.txt"
    assert seen["TMPDIR"] == seen["cwd"]
    assert not Path(seen["cwd"]).exists()


def test_the_folder_of_a_worker_that_was_killed_is_removed_by_the_next(
    installed: Install, private: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = private / f"flairnode-brain-{ended.pid}-abc"
    alive = private / f"flairnode-brain-{os.getpid()}-abc"
    other = private / "something-else"
    for folder in (left, alive, other):
        folder.mkdir()
    require_extractor(installed("fsl-bet")).extract(image())
    assert sorted(path.name for path in private.iterdir()) == sorted([alive.name, other.name])


def test_the_default_needs_nothing_and_is_the_strip_itself() -> None:
    extractor = require_extractor(PipelineSettings())
    assert extractor.available().ok
    assert (extractor.name, extractor.available().version) == ("surface-refine", "1")


def test_the_limit_of_the_tool_is_below_that_of_the_worker() -> None:
    with pytest.raises(ValidationError, match="the worker would be ended first"):
        PipelineSettings(brain="fsl-bet", time_limit_s=600)
    PipelineSettings(brain="fsl-bet", time_limit_s=601)
    PipelineSettings(time_limit_s=600)


def test_tool_version_parameters_and_weights_enter_the_uids_of_results() -> None:
    grid = image().grid
    mask = np.ones(SHAPE, bool)

    def digest(method: str, version: str, **parameters: float | str) -> str:
        return result_settings_digest({}, BrainMask(mask, grid, method, version, parameters))

    digests = [
        digest("fsl-bet", "6.0.7", fraction=0.5),
        digest("fsl-bet", "6.0.8", fraction=0.5),
        digest("fsl-bet", "6.0.7", fraction=0.4),
        digest("hd-bet", "2.0.1", weights_sha256="a"),
        digest("hd-bet", "2.0.1", weights_sha256="b"),
        digest("surface-refine", "1"),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("fsl-bet", "6.0.7", fraction=0.5) == digests[0]


@pytest.mark.parametrize("trained", [True, False])
def test_a_pack_trained_with_another_extractor_gives_review(
    installed: Install, trained: bool
) -> None:
    brain = require_extractor(installed("fsl-bet")).extract(image())
    known = Extractor(method="fsl-bet", version="6.0.7.4")
    ours = Extractor(method="surface-refine", version="1")
    flags = list(_origin_flags(brain, manifest(extractors=(known if trained else ours,))))
    assert [(flag.code, flag.severity) for flag in flags] == (
        [] if trained else [("other-brain-extractor", "review")]
    )


def test_nothing_is_ever_stripped_by_another_way_instead(
    installed: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall_back(_: Volume) -> BrainMask:
        pytest.fail("another strip was used")

    monkeypatch.setattr("pipeline.brain_tools.strip_skull", fall_back)
    monkeypatch.setattr("pipeline.flow.strip_skull", fall_back)
    head, _ = ellipsoid_head()
    extract = require_extractor(installed("fsl-bet", "sys.exit(1)")).extract
    with pytest.raises(BrainToolError):
        analyse(head, NoLesions(), manifest(), extract=extract)


class NoLesions:
    """A segmenter that never gets to see anything."""

    def segment(self, images: np.ndarray) -> CanvasSegmentation:
        pytest.fail(f"{images.shape} was segmented")
