from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom.checks import check_header, check_probability_map
from dicom.errors import ResultCheckError
from dicom.part10 import part10_bytes, read_part10
from dicom.probability_map import MapContent, build_probability_map
from tests.dicom.regions import Built, object_identity, three_regions

Make = Callable[..., Any]

CONTENT = MapContent("PROB", "A probability", "What it means", True, "2.25.66")


@pytest.fixture
def regions(make_flair_series: Make) -> Built:
    return three_regions(make_flair_series)


def values(regions: Built) -> np.ndarray:
    return np.random.default_rng(1).random(regions.grid.shape, np.float32)


def map_bytes(regions: Built) -> bytes:
    identity = object_identity("MAP", 9005)
    return build_probability_map(regions.sources, values(regions), regions.grid, CONTENT, identity)


def test_every_value_is_read_back_as_it_was_on_the_source_grid(regions: Built) -> None:
    built = read_part10(map_bytes(regions))
    check_header(built, regions.sources)
    check_probability_map(built, regions.sources, regions.grid, values(regions))
    np.testing.assert_array_equal(built.pixel_array, values(regions))  # pydicom agrees


def test_it_says_what_a_value_is_and_whether_it_is_research(regions: Built) -> None:
    built = read_part10(map_bytes(regions))
    shared = built.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("122157", "DCM")
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert built.ContentQualification == "RESEARCH"
    assert built.FrameOfReferenceUID == regions.grid.frame_of_reference_uid


def test_frames_follow_the_slices(regions: Built) -> None:
    groups = read_part10(map_bytes(regions)).PerFrameFunctionalGroupsSequence
    positions = [list(one.PlanePositionSequence[0].ImagePositionPatient) for one in groups]
    assert positions == [list(one.ImagePositionPatient) for one in regions.sources]
    numbers = [one.FrameContentSequence[0].DimensionIndexValues for one in groups]
    assert numbers == list(range(1, 11))


def test_the_same_map_gives_the_same_bytes_and_leaves_its_sources_alone(regions: Built) -> None:
    before = copy.deepcopy(regions.sources)
    assert map_bytes(regions) == map_bytes(regions)
    assert regions.sources == before


def _another_value(built: Dataset) -> None:
    built.FloatPixelData = b"\0\0\0\0" + built.FloatPixelData[4:]


def _upside_down(built: Dataset) -> None:
    built.FloatPixelData = np.ascontiguousarray(built.pixel_array[::-1]).tobytes()


def _moved(built: Dataset) -> None:
    plane = built.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0]
    plane.ImagePositionPatient = [0, 0, 0]


def _other_frame_of_reference(built: Dataset) -> None:
    built.FrameOfReferenceUID = "1.2.3"


def _scaled(built: Dataset) -> None:
    mapping = built.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    mapping.RealWorldValueSlope = 2.0


@pytest.mark.parametrize(
    "damage", [_another_value, _upside_down, _moved, _other_frame_of_reference, _scaled]
)
def test_a_map_that_differs_is_refused(regions: Built, damage: Callable[[Dataset], None]) -> None:
    built = read_part10(map_bytes(regions))
    damage(built)
    again = read_part10(part10_bytes(built))
    with pytest.raises(ResultCheckError):
        check_probability_map(again, regions.sources, regions.grid, values(regions))
