"""The whole way on real images: prepare, two folds of two epochs, pack, process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dicom.volume import write_nifti
from node.cli import main
from pipeline.model_pack import load_pack
from tests.training.tiny_dataset import architecture
from training.case_inputs import CohortRules
from training.checkpoints import FINAL, read_checkpoint
from training.fold_log import read_log
from training.measure import averaged, read_labelled
from training.validate_cohort import choose_cases

pytestmark = pytest.mark.timeout(900)  # a minute on two idle cores; the machine may be busy

NATIVE = (("01", "study1"), ("03", "study1"), ("04", "study1"), ("19", "study1"), ("20", "study2"))
"""Their masks say what changed, which is enough to train on in a test."""
SMALL = {
    "name": "small",
    "summary": "A small network on a small canvas: for the way from cohort to pack.",
    "preprocessing": "canvas",
    "augmentation": "nnunet",
    "mirroring_axes": [1],
    "canvas": {
        "rows": 112,
        "columns": 96,
        "pixel_mm": 2.0,
        "normalisation": "starter",
        "dilation_mm": 2.0,
    },
    "training": {
        "epochs": 2,
        # Enough that it does not mark half the head, which would take minutes to measure.
        "iterations_per_epoch": 30,
        "validation_iterations": 5,
        "batch_size": 4,
        "optimiser": "adamw",
        "learning_rate": 5e-3,
        "average_decay": 0.9,
    },
    "architecture": architecture(),
}


def as_toml(values: dict[str, Any], prefix: str = "") -> str:
    """Enough of TOML for a recipe: what is None is left out."""
    plain = {k: v for k, v in values.items() if v is not None and not isinstance(v, dict)}
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for name, value in tables.items():
        lines += [f"[{prefix}{name}]", as_toml(value, f"{prefix}{name}.")]
    return "\n".join(lines)


def write_cohort(data: Path, folder: Path) -> Path:
    """Seven patients: five clinical scans, and two of 1 mm averaged to 5 mm."""
    cases = [
        (
            f"native{number}",
            data / "longitudinal" / f"patient{number}" / f"{study}_flair.nii.gz",
            data / "longitudinal" / f"patient{number}" / f"{study}_change.nii.gz",
        )
        for number, study in NATIVE
    ]
    for name in ("patient07", "patient19"):
        volume, _, lesion = averaged(*read_labelled(data, name), 5)
        image, mask = folder / f"{name}.nii.gz", folder / f"{name}_lesion.nii.gz"
        write_nifti(image, volume.voxels, volume.grid)
        write_nifti(mask, lesion, volume.grid)
        cases.append((f"mni{name[-2:]}", image, mask))
    path = folder / "cohort.toml"
    path.write_text(
        "".join(
            f'[[case]]\npatient = "{patient}"\nimage = "{image}"\nmask = "{mask}"\n'
            "mask_checked = true\n"
            for patient, image, mask in cases
        )
    )
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """What a command prints, once it has exited with 0."""
    capsys.readouterr()
    status = main([*map(str, words), "--json"])
    told = capsys.readouterr()
    assert status == 0, told.err[-2000:]
    found: dict[str, Any] = json.loads(told.out)
    return found


def test_from_a_cohort_to_a_result_that_the_node_would_send(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, recipe = write_cohort(shared_data.resolve(), tmp_path), tmp_path / "small.toml"
    recipe.write_text(as_toml(SMALL))
    prepared, run, pack = (tmp_path / name for name in ("prepared", "run", "pack"))

    report = said(capsys, "train", "prepare", "--cohort", cohort, "--output", prepared)
    assert (report["outcome"], report["prepared"]) == ("prepared", 7)

    train = ("train", "run", "--prepared", prepared, "--recipe", recipe, "--output", run)
    ends = said(capsys, *train, "--folds", "0", "1", "--devices", "cpu", "--processes", "2")
    assert [(end["fold"], end["state"], end["epochs"]) for end in ends["folds"]] == [
        (0, "done", 2),
        (1, "done", 2),
    ]
    digests = [end["weights_digest"] for end in ends["folds"]]
    assert len(set(digests)) == 2
    assert [len(read_log(run / f"fold_{fold}")) for fold in (0, 1)] == [2, 2]
    assert (run / "curves.png").stat().st_size > 10_000
    assert (run / "curves.svg").read_text().startswith("<?xml")

    # The same command again trains nothing; another recipe is refused.
    begun = (run / "fold_0" / FINAL).stat().st_mtime_ns
    again = said(capsys, *train, "--folds", "0", "--devices", "cpu")
    assert again["folds"][0]["weights_digest"] == digests[0]
    assert (run / "fold_0" / FINAL).stat().st_mtime_ns == begun
    assert main([*map(str, train), "--epochs", "3"]) == 3
    assert "run-differs" in capsys.readouterr().err

    identity = ("--name", "small", "--version", "1.0", "--output", pack)
    made = said(
        capsys,
        "train",
        "pack",
        "--run",
        run,
        "--prepared",
        prepared,
        *identity,
        "--folds",
        "0",
        "1",
    )
    manifest = load_pack(pack).manifest
    assert made["digest"] == load_pack(pack).digest
    assert (manifest.folds, manifest.patient_folds) == ((0, 1), True)
    found: Any = manifest.validation.figures["fold_validation"]
    splits = json.loads((prepared / "splits.json").read_text())
    judged = [[one["case"] for one in fold["per_case"]] for fold in found["folds"]]
    assert judged == [splits["folds"][0], splits["folds"][1]]
    assert "The test set was not opened." in manifest.validation.text
    assert "test" not in manifest.validation.figures
    card = (pack / "card.md").read_text()
    assert "RESEARCH - NOT FOR CLINICAL USE." in card
    assert "flairnode train run --prepared PREPARED --recipe small.toml" in card
    assert str(tmp_path) not in card
    averaged_weights = read_checkpoint(run / "fold_0" / FINAL)["network_weights"]
    assert averaged_weights["encoder.stages.0.0.convs.0.conv.weight"].shape == (4, 1, 3, 3)

    # A validation on the cohort that it was trained on knows whom the pack has seen.
    cases = choose_cases(prepared, CohortRules(), manifest, "all").cases
    assert len(cases) == 7
    assert {case.patient for case in cases if "in_training" not in case.about} == set(
        splits["test"]
    )

    series = min((shared_data / "dicom_wrapped_ms").iterdir())
    result = said(capsys, "process", series, "--output", tmp_path / "result", "--model", pack)
    assert result["outcome"] in ("analysed", "not_analysed")
    assert result["model"]["digest"] == made["digest"]
