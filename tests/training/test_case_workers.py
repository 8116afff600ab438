"""Several processes: the same rows as one, and a process that is killed costs its case alone."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom.volume import Grid
from pipeline.model_pack import ModelPackNotFoundError
from tests.training.test_validate import GRID, put
from training.case_inputs import Masks, NiftiFiles
from training.case_workers import WorkerError, run_in_processes
from training.validate import Case, Model, Row, read_cases, run

OF_THE_MOMENT = ("seconds", "peak_memory_mib", "measured_at")


@dataclass(frozen=True, slots=True)
class Deadly(NiftiFiles):
    """A case that kills the process that reads it, as an image too large for the memory does."""

    def masks(self, image: Any) -> Masks:  # noqa: ANN401
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def nothing() -> Model | None:
    return None


def no_pack() -> Model | None:
    raise ModelPackNotFoundError("no such pack")


def dies(status: int) -> Model | None:
    os._exit(status)


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    for index in range(5):
        put(tmp_path / f"cases/c{index}", "reference.nii.gz", "####")
        put(tmp_path / f"cases/c{index}", "prediction.nii.gz", "#" * (index + 1))
    return read_cases(tmp_path / "cases")


def same(rows: tuple[Row, ...]) -> list[Row]:
    return [{key: one for key, one in row.items() if key not in OF_THE_MOMENT} for row in rows]


def several(cases: tuple[Case, ...], output: Path, heard: list[str] | None = None) -> Any:  # noqa: ANN401
    def hear(row: Row, *, kept: bool) -> None:
        if heard is not None:
            heard.append(f"{row['case']}{' kept' if kept else ''}")

    return run_in_processes(cases, output, nothing, processes=2, nsd_tolerance_mm=1.0, on_row=hear)


def test_two_processes_give_the_rows_of_one_and_go_on_where_they_were(
    cases: tuple[Case, ...], tmp_path: Path
) -> None:
    one = run(cases, tmp_path / "one")
    heard: list[str] = []
    two = several(cases, tmp_path / "two", heard)
    assert same(two) == same(one)
    assert sorted(heard) == ["c0", "c1", "c2", "c3", "c4"]
    heard.clear()
    assert several(cases, tmp_path / "two", heard) == two
    assert sorted(heard) == [f"c{index} kept" for index in range(5)]


def test_a_killed_process_costs_its_case_and_not_the_run(
    cases: tuple[Case, ...], tmp_path: Path
) -> None:
    first = cases[0].files
    assert isinstance(first, NiftiFiles)
    deadly = Deadly(first.name, first.folder, first.names)
    ill = (replace(cases[0], files=deadly), *cases[1:])
    rows = several(ill, tmp_path / "out")
    assert [row["case"] for row in rows] == [case.name for case in cases]
    assert (rows[0]["outcome"], rows[0]["reason"]) == ("failed", "process-ended")
    assert "SIGKILL" in rows[0]["explanation"]
    assert {row["outcome"] for row in rows[1:]} == {"analysed"}
    # It is tried again, and then it has its figures.
    assert several(cases, tmp_path / "out")[0]["metrics"]["dsc"] == pytest.approx(2 * 1 / 5)


def test_a_model_that_cannot_be_loaded_ends_the_run_with_its_reason(
    cases: tuple[Case, ...], tmp_path: Path
) -> None:
    with pytest.raises(ModelPackNotFoundError, match="no such pack"):
        run_in_processes(cases, tmp_path / "a", no_pack, processes=2, nsd_tolerance_mm=1.0)
    with pytest.raises(WorkerError, match="exit status 7"):
        run_in_processes(cases, tmp_path / "b", partial(dies, 7), processes=2, nsd_tolerance_mm=1.0)


def test_grids_of_the_test_are_anisotropic() -> None:
    assert isinstance(GRID, Grid)
    assert len(np.unique(GRID.spacing_mm)) == 3
