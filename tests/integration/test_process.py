"""`flairnode process` with the shipped pack, as a user runs it: a process, real images, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom.series import read_series
from dicom.volume import read_nifti, read_volume
from tests.enhanced import write_enhanced

FLAIRNODE = Path(sys.executable).with_name("flairnode")

pytestmark = pytest.mark.timeout(600)


def process(*arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [FLAIRNODE, "process", *arguments, "--json"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"FLAIRNODE_PIPELINE__MIRRORING": "off"},
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def study(shared_data: Path) -> Path:
    return shared_data / "dicom_wrapped_ms" / "patient01_study2"


@pytest.fixture(scope="module")
def once(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("once")
    return process(study, "--output", output, "--save-volumes"), output


def test_the_report_keeps_the_contract(once: tuple[dict[str, Any], Path]) -> None:
    report, output = once
    assert report["outcome"] == "analysed"
    assert set(report["model"]) == {"name", "version", "digest"}
    assert {"lesion_count", "total_volume_ml", "lesions"} <= report["findings"].keys()
    assert {"volume_ml", "region", "mean_probability", "slices"} <= (
        report["findings"]["lesions"][0].keys()
    )
    assert {"verdict", "flags"} <= report["quality"].keys()
    kinds = [one["kind"] for one in report["outputs"]]
    assert list(dict.fromkeys(kinds)) == ["seg", "sr", "key-image", "pdf"]
    assert len({one["path"] for one in report["outputs"]}) == len(kinds)
    assert all(Path(one["path"]).is_file() for one in report["outputs"])
    assert report["timing_s"]["total"] > 0
    assert json.loads((output / "result.json").read_text()) == report


def test_volumes_lie_on_the_source_grid_and_add_up(
    study: Path, once: tuple[dict[str, Any], Path]
) -> None:
    report, output = once
    source = read_volume(read_series(sorted(study.rglob("*.dcm"))))
    brain, probability, lesions = (
        read_nifti(output / f"{name}.nii.gz") for name in ("brain", "probability", "lesions")
    )
    for volume in (brain, probability, lesions):
        np.testing.assert_allclose(volume.grid.affine, source.grid.affine, atol=1e-4)
        assert volume.grid.shape == source.grid.shape
    assert int(lesions.voxels.max()) == report["findings"]["lesion_count"]
    assert np.all(probability.voxels[lesions.voxels > 0] > 0.5)
    assert np.count_nonzero(lesions.voxels) * source.grid.voxel_volume_ml == pytest.approx(
        report["findings"]["total_volume_ml"], abs=1e-5
    )


def test_the_same_input_gives_the_same_bytes(
    study: Path, once: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    again = process(study, "--output", tmp_path)
    for first, second in zip(once[0]["outputs"], again["outputs"], strict=True):
        assert Path(first["path"]).read_bytes() == Path(second["path"]).read_bytes()


def test_the_same_study_as_one_enhanced_object_has_the_same_lesions(
    study: Path, once: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    classic = read_series(sorted(study.rglob("*.dcm")))
    volume = read_volume(classic)
    made = SimpleNamespace(
        paths=[instance.path for instance in classic.instances],
        sop_instance_uids=volume.sop_instance_uids,
        voxels=volume.voxels,  # whole numbers: slope 1, intercept 0
        series_instance_uid=classic.series_instance_uid,
    )
    write_enhanced(made, tmp_path / "enhanced", order=range(len(volume.voxels))[::-1])
    report = process(tmp_path / "enhanced", "--output", tmp_path)
    assert report["findings"] == once[0]["findings"]
    assert report["quality"] == once[0]["quality"]
    seg, classic_seg = (
        pydicom.dcmread(next(o["path"] for o in r["outputs"] if o["kind"] == "seg"))
        for r in (report, once[0])
    )
    assert seg.PixelData == classic_seg.PixelData
    assert seg.SOPInstanceUID != classic_seg.SOPInstanceUID


def test_every_object_says_that_it_is_research(once: tuple[dict[str, Any], Path]) -> None:
    for one in once[0]["outputs"]:
        dataset = pydicom.dcmread(one["path"])
        assert "RESEARCH - NOT FOR CLINICAL USE" in str(dataset)


def test_a_stripped_nifti_with_its_mask_is_analysed_and_marked_for_review(
    shared_data: Path, tmp_path: Path
) -> None:
    patient = shared_data / "longitudinal" / "patient01"
    report = process(
        *(patient / "study2_flair.nii.gz", "--output", tmp_path),
        *("--brain-mask", patient / "study2_brain.nii.gz"),
    )
    assert report["outcome"] == "analysed"
    assert report["quality"]["verdict"] == "review"
    assert report["outputs"] == []
    assert (tmp_path / "lesions.nii.gz").is_file()
