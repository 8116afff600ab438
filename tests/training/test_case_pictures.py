"""Which slices of a case are shown, and that the lines lie where the masks are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dicom.volume import Grid, Volume
from pipeline.slice_picture import view_of
from tests.training.pictures import volume
from training.case_pictures import (
    PREDICTION_RGB,
    REFERENCE_RGB,
    Choice,
    choose,
    draw_masks,
    draw_pictures,
)
from training.case_rows import lesion_rows
from training.metrics import compare

REFERENCE = volume(["####......"], ["......####"], ["##........"])
PREDICTION = volume(["####..###."], [".........."], [".........."])


def test_the_slices_shown_are_the_fullest_the_falsest_and_the_most_missed() -> None:
    chosen = {one.kind: one for one in choose(REFERENCE, PREDICTION, 0.001)}
    assert {kind: one.index for kind, one in chosen.items()} == {
        "overview": 0,
        "false": 0,
        "missed": 1,
    }
    assert chosen["overview"].volume_ml == 7 * 0.001
    assert chosen["false"].volume_ml == 3 * 0.001
    assert chosen["missed"].volume_ml == 4 * 0.001


def test_what_is_not_there_is_not_shown() -> None:
    nothing = np.zeros_like(REFERENCE)
    assert [(one.kind, one.index) for one in choose(nothing, nothing, 1)] == [("overview", 1)]
    assert [one.kind for one in choose(REFERENCE, REFERENCE, 1)] == ["overview"]


def test_a_row_of_a_lesion_agrees_with_the_measure_of_the_case() -> None:
    rows = lesion_rows(REFERENCE, PREDICTION, (6.5, 0.5, 0.4))
    assert isinstance(rows, list)
    grid = Grid(np.diag([6.5, 0.5, 0.4, 1.0]), (3, 1, 10))
    met = compare(REFERENCE, PREDICTION, grid).any_overlap.all_sizes
    ours = [row for row in rows if row["of"] == "reference"]
    theirs = [row for row in rows if row["of"] == "prediction"]
    assert (len(ours), sum(row["met"] for row in ours)) == (met.reference_count, met.found_count)
    assert (len(theirs), sum(not row["met"] for row in theirs)) == (
        met.prediction_count,
        met.false_count,
    )


def test_both_outlines_are_drawn_where_the_masks_are(tmp_path: Path) -> None:
    # Axial, rows to the back, columns to the left: as it stands in the picture.
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 6.0, 1.0, 1.0, 1.0
    grid = Grid(affine, (3, 60, 40))
    brain = np.zeros(grid.shape, bool)
    brain[:, 5:55, 5:35] = True
    image = Volume(np.where(brain, 100, 0).astype(np.float32), grid)
    reference, prediction = np.zeros_like(brain), np.zeros_like(brain)
    reference[1, 10:20, 10:15] = True
    prediction[1, 40:50, 25:30] = True
    view = view_of(image, brain, np.zeros(grid.shape, np.int32))
    pixels = draw_masks(image, view, Choice("overview", 1, 0), (reference, prediction))
    blue = np.argwhere((pixels == REFERENCE_RGB).all(axis=-1)).mean(axis=0) / pixels.shape[:2]
    amber = np.argwhere((pixels == PREDICTION_RGB).all(axis=-1)).mean(axis=0) / pixels.shape[:2]
    # The whole 60 x 40 is shown: 15 mm around the brain are more than there is.
    assert np.abs(blue - (15 / 60, 12.5 / 40)).max() < 0.02
    assert np.abs(amber - (45 / 60, 27.5 / 40)).max() < 0.02

    # Corners stand 6 pixels away from the lesion that the picture is of, and leave the lines alone.
    box = (slice(40, 50), slice(25, 30))
    focused = draw_masks(image, view, Choice("false", 1, 0, box), (reference, prediction))
    rows, columns = np.nonzero((focused != pixels).any(axis=-1))
    amber_rows, amber_columns = np.nonzero((pixels == PREDICTION_RGB).all(axis=-1))
    assert (rows.min(), rows.max()) == (amber_rows.min() - 6, amber_rows.max() + 6)
    assert (columns.min(), columns.max()) == (amber_columns.min() - 6, amber_columns.max() + 6)

    shown = draw_pictures(tmp_path, "one", image, brain, (reference, prediction))
    assert isinstance(shown, list)
    assert [one["kind"] for one in shown] == ["overview", "false", "missed"]
    assert [one["slice"] for one in shown] == [2, 2, 2]
    for one in shown:
        with Image.open(tmp_path / one["file"]) as picture:
            assert picture.size == pixels.shape[1::-1]
            kept = np.array(picture.convert("RGB"))
        for colour in (REFERENCE_RGB, PREDICTION_RGB):
            assert ((kept == colour).all(axis=-1) == (pixels == colour).all(axis=-1)).all()
        # Beside white corners: greys of 62 steps.
        assert np.quantile(np.abs(kept.astype(int) - pixels), 0.99) <= 5
