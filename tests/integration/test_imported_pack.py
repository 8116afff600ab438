"""An imported network as a user meets it: `model import`, then `process`, on real images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom.series import read_series
from dicom.volume import read_nifti, read_volume
from tests.pipeline.hand_results import (
    bright_plans,
    bright_state,
    make_plans,
    random_state,
    write_results,
)

FLAIRNODE = Path(sys.executable).with_name("flairnode")
ABOVE = (2.6, 2.7, 2.8)
"""Standard deviations above the mean of the brain, of three members."""

pytestmark = pytest.mark.timeout(600)


def flairnode(*words: str | Path, status: int = 0) -> Any:  # noqa: ANN401  # JSON
    """Run in a process, as a user does; what it printed."""
    done = subprocess.run(
        [FLAIRNODE, *words, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"FLAIRNODE_PIPELINE__MIRRORING": "off"},
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def import_words(results: Path, packs: Path, *more: str) -> Sequence[str | Path]:
    given = ("--name", "site", "--version", "1", "--input", "brain", "--output", packs)
    return ("model", "import", results, *given, *more)


@pytest.fixture(scope="module")
def study(shared_data: Path) -> Path:
    return shared_data / "dicom_wrapped_ms" / "patient01_study2"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2d network set by hand: a voxel is lesion when it is far brighter than the brain."""
    folder = tmp_path_factory.mktemp("imported")
    plans = bright_plans()
    states = {fold: bright_state(plans, level) for fold, level in enumerate(ABOVE)}
    results = write_results(folder, plans, states)
    said = flairnode(*import_words(results, folder / "packs", "--folds", "0", "1", "2"))
    assert (said["name"], said["version"], said["status"], said["ok"]) == (
        "site",
        "1",
        "research",
        True,
    )
    return Path(said["path"])


@pytest.fixture(scope="module")
def once(
    study: Path, pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("once")
    words = ("process", study, "--output", output, "--model", pack, "--save-volumes")
    return flairnode(*words), output


def test_a_real_scan_is_analysed_and_has_its_segmentation_and_report(
    once: tuple[dict[str, Any], Path], pack: Path
) -> None:
    report, _ = once
    assert report["outcome"] == "analysed"
    assert report["model"]["name"] == "site"
    kinds = [one["kind"] for one in report["outputs"]]
    assert list(dict.fromkeys(kinds)) == ["seg", "sr", "key-image", "pdf"]
    assert report["findings"]["lesion_count"] > 0
    flags = {flag["code"] for flag in report["quality"]["flags"]}
    assert "geometry-not-validated" in flags
    assert report["quality"]["verdict"] == "review"
    for one in report["outputs"]:
        dataset = pydicom.dcmread(one["path"], stop_before_pixels=True)
        assert "RESEARCH" in dataset.SeriesDescription.upper()


def test_lesions_are_the_bright_voxels_of_the_source(
    once: tuple[dict[str, Any], Path], study: Path
) -> None:
    report, output = once
    source = read_volume(read_series(sorted(study.rglob("*.dcm"))))
    lesions, brain = (read_nifti(output / f"{n}.nii.gz").voxels > 0 for n in ("lesions", "brain"))
    assert lesions.shape == source.grid.shape
    inside = source.voxels[brain]
    z = (source.voxels - inside.mean()) / inside.std()
    assert np.percentile(z[lesions], 5) > 1.5
    assert np.median(z[lesions]) > 2.5
    volume_ml = np.count_nonzero(lesions) * source.grid.voxel_volume_ml
    assert volume_ml == pytest.approx(report["findings"]["total_volume_ml"], abs=1e-5)


def test_the_same_study_gives_the_same_uids_and_another_network_gives_others(
    once: tuple[dict[str, Any], Path], study: Path, pack: Path, tmp_path: Path
) -> None:
    def uids(report: dict[str, Any]) -> set[str]:
        return {one["sop_instance_uid"] for one in report["outputs"]}

    again = flairnode("process", study, "--output", tmp_path / "again", "--model", pack)
    assert uids(again) == uids(once[0])


def test_an_untrained_3d_network_ends_in_a_coded_outcome(study: Path, tmp_path: Path) -> None:
    """What it marks is noise; the path is what is looked at."""
    plans = make_plans("3d_fullres", patch_size=[16, 128, 128])
    results = write_results(
        tmp_path, plans, {0: random_state(plans, 0, "3d_fullres")}, "3d_fullres"
    )
    said = flairnode(*import_words(results, tmp_path / "packs", "--folds", "0"))
    done = subprocess.run(
        [FLAIRNODE, "process", study, "--output", tmp_path / "out", "--model", said["path"],
         "--json"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert done.returncode in {0, 3}, done.stderr
    assert (report["outcome"] == "analysed") is (done.returncode == 0)
    assert report["outcome"] == "analysed" or report["reason"]
    assert {"preprocess", "segment", "restore"} <= report["timing_s"].keys()


def test_a_folder_that_is_refused_ends_with_3_and_a_reason(tmp_path: Path) -> None:
    said = flairnode(*import_words(tmp_path, tmp_path / "packs"), status=3)
    assert said["reason"] == "not-nnunet-results"
    assert said["outcome"] == "skipped"
    assert not (tmp_path / "packs").exists()
