"""The pictures of the operator page."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.appearance import colour_rgb
from pipeline.preview import PREVIEW_FILE, write_preview
from pipeline.slice_picture import FILL
from tests.pipeline.analysed import analysed, no_lesions, three_lesions

Make = Callable[..., Any]


def read(path: Path, name: str) -> Image.Image:
    with zipfile.ZipFile(path) as file:
        return Image.open(BytesIO(file.read(name)))


@pytest.fixture
def preview(tmp_path: Path, make_flair_series: Make) -> Path:
    path = tmp_path / PREVIEW_FILE
    write_preview(path, analysed(make_flair_series().series, three_lesions()))
    return path


def test_every_slice_has_its_picture_and_only_those_with_lesions_a_second(preview: Path) -> None:
    with_lesions = np.flatnonzero(three_lesions().any(axis=(1, 2))).tolist()
    with zipfile.ZipFile(preview) as file:
        names = set(file.namelist())
        index = json.loads(file.read("index.json"))
    assert index["slices"] == len(three_lesions())
    assert index["with_lesions"] == with_lesions
    assert {name for name in names if name.startswith("slice/")} == {
        f"slice/{number:03}.png" for number in range(len(three_lesions()))
    }
    assert {name for name in names if name.startswith("lesions/")} == {
        f"lesions/{number:03}.png" for number in with_lesions
    }


def test_both_pictures_of_a_slice_have_one_size(preview: Path) -> None:
    with zipfile.ZipFile(preview) as file:
        index = json.loads(file.read("index.json"))
    at = index["with_lesions"][0]
    size = (index["width"], index["height"])
    assert read(preview, f"slice/{at:03}.png").size == size
    assert read(preview, f"lesions/{at:03}.png").size == size


def test_a_lesion_is_filled_thinly_and_outlined_in_its_colour_and_nothing_else_is(
    preview: Path,
) -> None:
    labels = three_lesions()
    at = int(np.flatnonzero((labels == 1).any(axis=(1, 2)))[0])
    pixels = np.asarray(read(preview, f"lesions/{at:03}.png"))
    ours = (pixels[..., :3] == colour_rgb(1)).all(axis=2)
    assert set(np.unique(pixels[ours][:, 3])) == {FILL, 255}
    shown = pixels[..., 3] > 0
    colours = {tuple(int(part) for part in one) for one in pixels[shown][:, :3]}
    assert colours == {colour_rgb(int(label)) for label in np.unique(labels[at]) if label}


def test_a_result_without_lesions_has_its_slices_alone(
    tmp_path: Path, make_flair_series: Make
) -> None:
    path = tmp_path / PREVIEW_FILE
    write_preview(path, analysed(make_flair_series().series, no_lesions()))
    with zipfile.ZipFile(path) as file:
        assert not any(name.startswith("lesions/") for name in file.namelist())
        assert json.loads(file.read("index.json"))["with_lesions"] == []
