"""What an analysis leaves on disk when there is no result: the note that says why, or why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydicom import dcmread

from config.settings import PipelineSettings
from dicom.errors import Outcome
from node import analysis as analysis_module
from node.analysis import AnalysisOutcome, analyse_series, tell_why
from pipeline.ensemble import Ensemble
from pipeline.flow import Analysis
from pipeline.quality import Flag, Quality
from pipeline.steady import SteadyEnsemble
from tests.pipeline.analysed import analysis_of, pack, three_lesions
from tests.pipeline.tiny_pack import heads, make_pack, make_plans

Make = Callable[..., Any]

NO_NETWORK = cast(Ensemble, None)
"""These series are refused before the network is asked."""


def sentences(path: Path) -> str:
    return "\n".join(str(item.get("TextValue", "")) for item in dcmread(path).ContentSequence)


def only_note(done: AnalysisOutcome, output: Path) -> Path:
    """The note is the one object, in the outcome, in the report and in the folder."""
    assert done.outcome is Outcome.NOT_ANALYSED
    (one,) = done.outputs
    assert one.kind == "note"
    assert done.report["outputs"] == [
        {"kind": "note", "sop_instance_uid": one.sop_instance_uid, "path": str(one.path)}
    ]
    assert list(output.iterdir()) == [one.path]
    assert str(dcmread(one.path).SOPInstanceUID) == one.sop_instance_uid
    return one.path


def test_a_series_that_the_gate_refuses_leaves_a_note(
    make_flair_series: Make, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    blank = np.zeros((10, 72, 68), np.uint16)  # 65 x 180 x 187 mm
    made = make_flair_series(spacing_mm=(6.5, 2.5, 2.75), voxels=blank)
    done = analyse_series(made.paths, NO_NETWORK, pack(), output)
    assert done.reason == done.report["reason"] == "blank-image"
    assert "No lesion was looked for" in sentences(only_note(done, output))
    assert done.report["series_instance_uid"] == made.series_instance_uid


def test_a_result_that_the_quality_check_refuses_leaves_a_note_and_no_mask(
    make_flair_series: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    flags = (
        Flag("no-tissue-contrast", "What was taken for a brain is nearly uniform.", "fail"),
        Flag("models-disagree", "The models differ.", "review"),
    )

    def failed(volume: Any, *_: object, **__: object) -> Analysis:  # noqa: ANN401
        return analysis_of(volume, three_lesions(), Quality(flags))

    monkeypatch.setattr(analysis_module, "analyse", failed)
    done = analyse_series(make_flair_series().paths, NO_NETWORK, pack(), output)
    assert done.reason == "no-tissue-contrast"
    said = sentences(only_note(done, output))
    assert "its result was withheld" in said
    assert "Quality, fail: What was taken for a brain is nearly uniform." in said
    assert "Quality, review: The models differ." in said


def test_an_order_to_tell_why_references_what_could_be_read(
    make_flair_series: Make, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    made = make_flair_series()
    made.paths[0].write_bytes(made.paths[0].read_bytes()[:-200])
    made.paths[1].write_bytes(b"")  # not even its series can be told
    done = tell_why(made.paths, pack(), output, "truncated-file", "2 objects are damaged")
    said = sentences(only_note(done, output))
    assert "8 images could be read, 2 could not and are not referenced" in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"per_slice": {3: {"PatientID": "OTHER"}}}, "inconsistent-series: 2 identities"),
        ({"overrides": {"PatientName": "Some^B\ufffddy"}}, "undecodable-text"),
    ],
)
def test_without_knowing_whose_it_is_there_is_no_note_and_the_end_is_the_same(
    make_flair_series: Make, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    paths = make_flair_series(**changes).paths
    done = tell_why(paths, pack(), output, "inconsistent-series", "PatientID has 2 values")
    assert (done.outcome, done.reason) == (Outcome.NOT_ANALYSED, "inconsistent-series")
    assert done.outputs == ()
    assert done.report["outputs"] == []
    assert done.report["no_note"].startswith(why)
    assert list(output.iterdir()) == []


def test_nor_is_there_one_of_images_that_are_all_damaged(
    make_flair_series: Make, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    made = make_flair_series(slices=3)
    for path in made.paths:
        path.write_bytes(path.read_bytes()[:-200])
    done = tell_why(made.paths, pack(), output, "truncated-file", "none can be read")
    assert done.outputs == ()
    assert done.report["no_note"].startswith("truncated-file")


def test_a_device_that_fails_holds_the_case_and_leaves_neither_result_nor_note(
    make_flair_series: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU was there: a real ensemble raises what torch raises when one is lost."""
    output = tmp_path / "out"
    output.mkdir()
    made = make_flair_series()

    def only_the_network(
        _volume: object, ensemble: SteadyEnsemble, *_: object, **__: object
    ) -> Any:  # noqa: ANN401
        return ensemble.segment(heads(slices=2))

    def lost(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(analysis_module, "analyse", only_the_network)
    monkeypatch.setattr(Ensemble, "_forward", lost)
    tiny = make_pack(tmp_path / "tiny", make_plans())
    ensemble = SteadyEnsemble.load(tiny, PipelineSettings(device="cpu", threads=1))
    done = analyse_series(made.paths, ensemble, tiny, output)
    assert (done.outcome, done.reason) == (Outcome.HELD, "device-unavailable"), done.explanation
    assert (done.outputs, list(output.iterdir())) == ((), [])
    assert ensemble.worn
