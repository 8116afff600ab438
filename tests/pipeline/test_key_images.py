"""Which slices are worth a picture, and what is burned into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.appearance import RESEARCH_BANNER, colour_rgb
from pipeline.findings import Findings, Lesion
from pipeline.flow import Analysis
from pipeline.key_images import (
    BANNER_HEIGHT,
    Writing,
    banner_strip,
    choose,
    draw_key_images,
    draw_key_slices,
)
from tests.pipeline.analysed import analysed, no_lesions, three_lesions

Make = Callable[..., Any]

WRITING = Writing(
    banner=RESEARCH_BANNER,
    found="3 lesions, total volume 0.56 ml.",
    series="Series 4",
    model="flairnode, model tiny 1.0",
    quality="Quality check: PASS.",
    image_names=tuple(str(number) for number in range(1, 11)),
)


def lesion(label: int, on: int, probability: float, region: str = "not-assessed") -> Lesion:
    return Lesion(label, 10, 1.0 / label, 3.0, on, on, on, probability, 0.1, region)


def chosen(*lesions: Lesion) -> list[tuple[int, str]]:
    return [(one.slice_index, one.title) for one in choose(Findings(lesions, 1.0))]


@pytest.fixture
def analysis(make_flair_series: Make) -> Analysis:
    return analysed(make_flair_series().series, three_lesions())


# --- which slices --------------------------------------------------------------------------------


def test_the_largest_and_the_least_sure_lesion_have_a_picture_each() -> None:
    assert chosen(lesion(1, 5, 0.9), lesion(2, 6, 0.6), lesion(3, 7, 0.8)) == [
        (5, "Lesion 1: the largest"),
        (6, "Lesion 2: the lowest mean probability"),
    ]


def test_every_region_that_is_there_has_a_picture_of_its_largest_lesion() -> None:
    lesions = (
        lesion(1, 5, 0.9, "periventricular"),
        lesion(2, 6, 0.8, "infratentorial"),
        lesion(3, 7, 0.7, "infratentorial"),
        lesion(4, 8, 0.6, "periventricular"),
    )
    assert chosen(*lesions) == [
        (5, "Lesion 1: the largest, the largest periventricular"),
        (8, "Lesion 4: the lowest mean probability"),
        (6, "Lesion 2: the largest infratentorial"),
    ]


def test_a_slice_is_shown_once_whatever_it_is_shown_for() -> None:
    lesions = (lesion(1, 5, 0.9, "periventricular"), lesion(2, 5, 0.6, "juxta-cortical"))
    assert chosen(*lesions) == [
        (
            5,
            "Lesion 1: the largest, the largest periventricular; "
            "Lesion 2: the lowest mean probability, the largest juxta cortical",
        )
    ]


def test_a_single_lesion_is_not_also_the_least_sure() -> None:
    assert chosen(lesion(1, 5, 0.9)) == [(5, "Lesion 1: the largest")]
    assert chosen() == []


# --- what is on them -----------------------------------------------------------------------------


def test_an_overview_comes_first_and_names_every_slice_it_shows(analysis: Analysis) -> None:
    overview, *others = draw_key_images(analysis, WRITING)
    assert overview.slices == (2, 3, 4, 6, 7, 8)
    assert [one.slices for one in others] == [(2,), (6,)]
    assert [one.comment for one in others] == [
        "Lesion 1: the largest",
        "Lesion 2: the lowest mean probability",
    ]


def test_lesions_on_one_slice_need_no_overview(make_flair_series: Make) -> None:
    labels = no_lesions()
    labels[4, 20:25, 10:15] = 1
    (only,) = draw_key_images(analysed(make_flair_series().series, labels), WRITING)
    assert only.slices == (4,)


def test_a_lesion_has_its_colour_where_it_lies_and_nowhere_else(analysis: Analysis) -> None:
    """48 rows of 0.5 mm, 36 columns of 0.75 mm; lesion 2: rows 30 to 32, columns 20 to 25."""
    picture = draw_key_images(analysis, WRITING)[2].pixels
    of_two = np.argwhere(np.all(picture == colour_rgb(2), axis=-1))
    # 24 x 27 mm in a room of 644 x 804 pixels from (24, 140): 644 wide, 572 high, in the middle.
    slice_top = 140 + (804 - 572) // 2
    in_slice = of_two[of_two[:, 1] < 24 + 644]
    rows, columns = (in_slice - (slice_top, 24)).T
    assert rows.min() == int(30 * 572 / 48) - 2
    assert columns.min() == int(20 * 644 / 36) + 1 - 2
    assert rows.max() < 40 * 572 / 48
    assert columns.max() < 30 * 644 / 36
    # Lesion 1 is not on this slice.
    assert not np.all(picture == colour_rgb(1), axis=-1)[140:944].any()


def test_the_banner_is_burned_into_every_picture_of_a_research_model(analysis: Analysis) -> None:
    strip = banner_strip(RESEARCH_BANNER)
    assert strip.shape == (BANNER_HEIGHT, 1024, 3)
    for one in draw_key_images(analysis, WRITING):
        np.testing.assert_array_equal(one.pixels[:BANNER_HEIGHT], strip)
    for one in draw_key_images(analysis, replace(WRITING, banner="")):
        assert not one.pixels[:BANNER_HEIGHT].any()


def test_no_lesion_gives_one_picture_of_slices_from_the_whole_brain(
    make_flair_series: Make,
) -> None:
    none = analysed(make_flair_series().series, no_lesions())
    (only,) = draw_key_images(none, replace(WRITING, found="0 lesions, 0 ml."))
    assert only.slices == tuple(range(10))
    assert only.comment == "0 lesions, 0 ml."


def test_a_document_gets_three_slices_of_as_many_lesions(analysis: Analysis) -> None:
    captions = [one.caption for one in draw_key_slices(analysis, WRITING.image_names)]
    assert captions == [
        "Lesion 1: the largest. Image 3.",
        "Lesion 2: the lowest mean probability. Image 7.",
        "Lesion 3. Image 9.",
    ]


def test_a_document_without_lesions_gets_slices_of_the_middle(make_flair_series: Make) -> None:
    none = analysed(make_flair_series().series, no_lesions())
    captions = [one.caption for one in draw_key_slices(none, WRITING.image_names)]
    assert captions == ["Image 4.", "Image 6.", "Image 8."]


def test_the_same_analysis_gives_the_same_pixels(analysis: Analysis) -> None:
    first, again = (draw_key_images(analysis, WRITING) for _ in range(2))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))


def test_texts_that_are_too_long_are_cut_and_not_written_over_the_edge(analysis: Analysis) -> None:
    long = replace(WRITING, found="w" * 300, model="w" * 300)
    for one in draw_key_images(analysis, long):
        assert not one.pixels[BANNER_HEIGHT:130, -20:].any()
        assert not one.pixels[985:, -20:].any()
