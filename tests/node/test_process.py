"""`flairnode process` and `select`: every input ends in one JSON object with a reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from node.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr().out
    return status, json.loads(printed)


def test_an_empty_folder_is_refused_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    status, report = run(capsys, "process", tmp_path / "in", "--output", tmp_path / "out", "--json")
    assert (status, report["reason"]) == (3, "empty-input")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == report


def test_a_folder_of_other_files_is_refused_as_not_dicom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "letter.txt").write_text("not DICOM", encoding="utf-8")
    (tmp_path / "in" / "noise.dcm").write_bytes(bytes(range(256)) * 20)
    status, report = run(capsys, "process", tmp_path / "in", "--output", tmp_path / "out", "--json")
    assert (status, report["reason"]) == (3, "not-dicom")


def test_a_folder_that_is_not_there_is_refused_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run(
        capsys, "process", tmp_path / "none", "--output", tmp_path / "out", "--json"
    )
    assert status == 3
    assert report["reason"]


def test_wrong_arguments_are_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["process"])
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_kind_of_result_that_does_not_exist_is_status_2_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["process", str(tmp_path), "--output", str(tmp_path), "--kinds", "pdf,jpeg"])
    assert end.value.code == 2
    assert "'jpeg' is no kind of result" in capsys.readouterr().err


def test_a_wrong_settings_file_is_status_2_and_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.toml").write_text("[node]\naet = 'X'\n", encoding="utf-8")
    assert main(["select", str(tmp_path), "--config", str(tmp_path / "site.toml")]) == 2
    assert "node.aet: unknown key" in capsys.readouterr().err


REFUSED_WITHOUT_A_LOOK_AT_PIXELS = {
    "siemens_aera_study/negative_t1_se_sag": 3,
    "negative_localizer_siemens": 3,
    "negative_siemens_mosaic": 3,
    "negative_ge_t1_ti900": 3,
    "negative_ge_signa_pd_axial_20slices": 3,
    "negative_xa60_phoenix_sr": 3,
    "negative_hitachi_joint": 3,
    "odd_too_few_slices": 3,
    "odd_fodicom": 3,
    "deflated_sc": 3,
    "reference_objects_dcmqi": 3,
    "siemens_enhanced_mr": 3,
}


HAS_A_NOTE = {"odd_too_few_slices"}
"""A FLAIR that cannot be used. All others are something else."""


@pytest.mark.parametrize("folder", REFUSED_WITHOUT_A_LOOK_AT_PIXELS)
def test_what_is_not_for_us_ends_with_a_reason_and_at_most_a_note(
    folder: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared_data / "dicom_samples" / folder
    status, report = run(capsys, "process", source, "--output", tmp_path, "--json")
    assert status == REFUSED_WITHOUT_A_LOOK_AT_PIXELS[folder]
    assert report["outcome"] in {"skipped", "not_analysed"}
    assert report["reason"]
    notes = [tmp_path / "note.dcm"] if folder in HAS_A_NOTE else []
    assert [Path(one["path"]) for one in report["outputs"]] == notes
    assert list(tmp_path.glob("*.dcm")) == notes
    if notes:
        assert report["outputs"][0]["kind"] == "note"
        note = dcmread(notes[0])
        said = [item.get("TextValue") for item in note.ContentSequence]
        assert f"Reason code: {report['reason']}." in said
        assert note.SOPInstanceUID == report["outputs"][0]["sop_instance_uid"]


def test_select_prints_a_score_and_a_reason_for_every_series(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = shared_data / "dicom_samples" / "siemens_aera_study"
    status, report = run(capsys, "select", study, "--json")
    assert status == 0
    assert len(report["series"]) == 7
    chosen = [s for s in report["series"] if s["series_instance_uid"] == report["selected"]]
    assert len(chosen) == 1
    for series in report["series"]:
        assert isinstance(series["score"], int | float)
        assert series["reason"]


def test_an_unexpected_error_is_status_1_and_still_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(_: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["node.process"], "read_study", explode)
    (tmp_path / "in").mkdir()
    status, report = run(capsys, "process", tmp_path / "in", "--output", tmp_path / "out", "--json")
    assert (status, report["outcome"], report["reason"]) == (1, "failed", "internal-error")
