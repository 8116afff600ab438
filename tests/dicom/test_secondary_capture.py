from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom.checks import check_header, check_key_image
from dicom.errors import ResultCheckError
from dicom.identity import is_own_result, normalised_header
from dicom.part10 import part10_bytes, read_part10
from dicom.secondary_capture import Capture, build_secondary_capture
from dicom.volume import stack_grid
from tests.dicom.regions import object_identity

Make = Callable[..., Any]

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)  # an odd number of bytes
CAPTURE = Capture(PIXELS, (2, 4), ("L", "P"), "Two slices.", "Enlarged.")


def sources_of(made: Any) -> tuple[Dataset, ...]:  # noqa: ANN401  # a FlairSeries
    return tuple(normalised_header(one.header) for one in stack_grid(made.series)[1])


@pytest.fixture
def sources(make_flair_series: Make) -> tuple[Dataset, ...]:
    return sources_of(make_flair_series())


def built(sources: tuple[Dataset, ...], capture: Capture = CAPTURE) -> Dataset:
    return read_part10(build_secondary_capture(sources, capture, object_identity("SC", 9003)))


def test_pixels_are_read_back_by_another_reader(sources: tuple[Dataset, ...]) -> None:
    image = built(sources)
    np.testing.assert_array_equal(image.pixel_array, PIXELS)
    check_header(image, sources)
    check_key_image(image, sources, CAPTURE)


def test_it_says_what_it_is_and_does_not_invite_to_measure(sources: tuple[Dataset, ...]) -> None:
    image = built(sources)
    assert image.Modality == "OT"
    assert image.BurnedInAnnotation == "YES"
    assert image.ConversionType == "WSD"
    assert image.BodyPartExamined == "BRAIN"
    assert image.ImageType[0] == "DERIVED"
    assert image.PatientOrientation == ["L", "P"]
    assert (image.SeriesNumber, image.InstanceNumber) == (9003, 1)
    for keyword in ("PixelSpacing", "FrameOfReferenceUID", "ImagePositionPatient", "EchoTime"):
        assert keyword not in image
    assert is_own_result(image)


def test_it_names_the_images_it_shows(sources: tuple[Dataset, ...]) -> None:
    named = [one.ReferencedSOPInstanceUID for one in built(sources).SourceImageSequence]
    assert named == [sources[2].SOPInstanceUID, sources[4].SOPInstanceUID]


def test_frames_of_one_object_are_named_by_their_numbers(sources: tuple[Dataset, ...]) -> None:
    frames = copy.deepcopy(sources)
    for number, source in enumerate(frames, start=11):
        source.SOPInstanceUID = "1.2.3"
        source.ReferencedFrameNumber = number
    image = built(frames)
    (only,) = image.SourceImageSequence
    assert only.ReferencedFrameNumber == [13, 15]
    check_key_image(image, frames, CAPTURE)
    with pytest.raises(ResultCheckError, match="other images"):
        check_key_image(image, frames, replace(CAPTURE, slices=(2, 3)))


def test_what_was_lost_in_a_source_image_stays_said(make_flair_series: Make) -> None:
    lossy = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "12.5"}
    of_lossy = sources_of(make_flair_series(per_slice={4: lossy}))
    assert built(of_lossy).LossyImageCompression == "01"
    assert built(of_lossy).LossyImageCompressionRatio == 12.5
    assert built(of_lossy, replace(CAPTURE, slices=(2,))).LossyImageCompression == "00"


def test_it_shares_nothing_with_its_sources(sources: tuple[Dataset, ...]) -> None:
    before = copy.deepcopy(sources)
    image = built(sources)
    image.PatientID = "SOMEBODY-ELSE"
    image.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2"
    assert sources == before


def test_the_same_picture_gives_the_same_bytes(sources: tuple[Dataset, ...]) -> None:
    first, again = (
        build_secondary_capture(sources, CAPTURE, object_identity("SC", 9003)) for _ in range(2)
    )
    assert first == again


def _another_pixel(image: Dataset) -> None:
    image.PixelData = b"\1" + image.PixelData[1:]


def _another_slice(image: Dataset) -> None:
    image.SourceImageSequence = image.SourceImageSequence[:1]


def _a_spacing(image: Dataset) -> None:
    image.PixelSpacing = [1, 1]


def _nothing_burned_in(image: Dataset) -> None:
    image.BurnedInAnnotation = "NO"


@pytest.mark.parametrize("damage", [_another_pixel, _another_slice, _a_spacing, _nothing_burned_in])
def test_a_picture_that_is_not_what_was_drawn_is_refused(
    sources: tuple[Dataset, ...], damage: Callable[[Dataset], None]
) -> None:
    image = built(sources)
    damage(image)
    with pytest.raises(ResultCheckError):
        check_key_image(read_part10(part10_bytes(image)), sources, CAPTURE)
