from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom.checks import check_header, check_seg, read_labels
from dicom.errors import ResultCheckError
from dicom.part10 import IMPLEMENTATION_VERSION_NAME, part10_bytes, read_part10
from dicom.seg import Content, Labels, build_seg
from dicom.uids import result_uid
from tests.dicom.regions import (
    ALGORITHM,
    EQUIPMENT,
    Built,
    build,
    object_identity,
    regions_of,
    three_regions,
)
from tests.pipeline.analysed import three_lesions

Make = Callable[..., Any]
Damage = Callable[[Dataset], None]


@pytest.fixture
def built(make_flair_series: Make) -> Built:
    return three_regions(make_flair_series)


def checked(built: Built, seg: Dataset) -> Labels:
    check_header(seg, built.sources)
    return check_seg(seg, built.sources, built.grid, built.labels, built.regions)


def rewritten(built: Built, change: Damage) -> Dataset:
    seg = copy.deepcopy(built.seg)
    change(seg)
    return read_part10(part10_bytes(seg))


# --- what a Segmentation holds -------------------------------------------------------------------


def test_the_mask_is_read_back_voxel_for_voxel_on_the_source_grid(built: Built) -> None:
    np.testing.assert_array_equal(checked(built, built.seg), three_lesions())


def test_the_mask_of_slices_that_arrive_in_reverse_is_read_back(make_flair_series: Make) -> None:
    made = make_flair_series(instance_numbers=range(10, 0, -1))
    built = build(made.series, three_lesions())
    np.testing.assert_array_equal(checked(built, built.seg), three_lesions())


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1), spacing=st.sampled_from([(6.5, 0.5, 0.75), (1.0, 1.2, 0.9)]))
def test_any_label_map_survives_writing_and_reading(
    make_flair_series: Make, seed: int, spacing: tuple[float, float, float]
) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, (4, 13, 11)).astype(np.int32)
    labels[0, 0, :5] = range(5)  # every region is there
    built = build(
        make_flair_series(slices=4, rows=13, columns=11, spacing_mm=spacing).series, labels
    )
    np.testing.assert_array_equal(checked(built, built.seg), labels)


def test_there_is_a_binary_segment_per_region_and_a_frame_per_slice_it_lies_on(
    built: Built,
) -> None:
    seg = built.seg
    assert seg.SegmentationType == "BINARY"
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [1, 2, 3]
    assert seg.NumberOfFrames == 3 + 2 + 1


def test_every_frame_names_the_image_it_lies_on(built: Built, make_flair_series: Make) -> None:
    uids = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for frame in built.seg.PerFrameFunctionalGroupsSequence
    ]
    expected = [str(built.sources[index].SOPInstanceUID) for index in (2, 3, 4, 6, 7, 8)]
    assert sorted(uids) == sorted(expected)


def test_all_images_that_were_analysed_are_referenced_not_only_those_with_a_region(
    built: Built,
) -> None:
    series = built.seg.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == built.sources[0].SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == 10


def test_every_segment_has_algorithm_colour_and_tracking_uid(built: Built) -> None:
    for number, segment in enumerate(built.seg.SegmentSequence, start=1):
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "a model"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmVersion == "1.2"
        assert algorithm.AlgorithmParameters == "threshold=0.5,connectivity=26"
        assert segment.TrackingUID == f"2.25.{1000 + number}"
        # PS3.3 C.10.7.1.1: L* of 100 is 0xFFFF
        assert segment.RecommendedDisplayCIELabValue[0] == pytest.approx(70.6 / 100 * 65535, abs=1)


def test_the_slabs_are_as_thick_as_slices_are_apart_not_as_slice_thickness_says(
    built: Built,
) -> None:
    assert float(built.sources[0].SliceThickness) == pytest.approx(5.2)
    measures = built.seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(6.5)
    assert float(measures.SliceThickness) == pytest.approx(6.5)
    assert [float(p) for p in measures.PixelSpacing] == pytest.approx([0.5, 0.75])


def test_direction_cosines_may_differ_in_their_last_digits(make_flair_series: Make) -> None:
    plain = make_flair_series().series
    cosines = [float(v) for v in plain.header.ImageOrientationPatient]
    rounded = [round(v, 5) for v in cosines]
    made = make_flair_series(per_slice={3: {"ImageOrientationPatient": rounded}})
    built = build(made.series, three_lesions())
    np.testing.assert_array_equal(checked(built, built.seg), three_lesions())


def test_a_segmentation_of_one_segment_is_read_back(make_flair_series: Make) -> None:
    labels = (three_lesions() == 1).astype(np.int32)
    built = build(make_flair_series().series, labels)
    np.testing.assert_array_equal(checked(built, built.seg), labels)


def test_a_segmentation_of_nothing_is_refused(make_flair_series: Make) -> None:
    built = build(make_flair_series().series, three_lesions())
    content = Content("REGIONS", "Regions", ALGORITHM, "2.25.55")
    with pytest.raises(ResultCheckError, match="nothing"):
        build_seg(
            built.sources, built.labels * 0, built.grid, (), content, object_identity("SEG", 9001)
        )


def test_a_region_without_a_voxel_is_refused(make_flair_series: Make) -> None:
    built = build(make_flair_series().series, three_lesions())
    labels = np.where(built.labels == 2, 0, built.labels).astype(np.int32)
    content = Content("REGIONS", "Regions", ALGORITHM, "2.25.55")
    with pytest.raises(ResultCheckError, match="differ"):
        build_seg(
            built.sources, labels, built.grid, regions_of(built.labels), content,
            object_identity("SEG", 9001),
        )  # fmt: skip


# --- the same input, the same bytes; nothing shared ----------------------------------------------


def test_built_twice_it_has_the_same_bytes(make_flair_series: Make) -> None:
    series = make_flair_series().series
    assert build(series, three_lesions()).seg_bytes == build(series, three_lesions()).seg_bytes


def test_dates_are_given_and_the_clock_of_this_machine_is_nowhere(built: Built) -> None:
    seg = built.seg
    assert (seg.ContentDate, seg.ContentTime) == ("20240102", "101500")
    assert (seg.SeriesDate, seg.SeriesTime) == ("20240102", "101500")
    assert "InstanceCreationDate" not in seg
    assert "ContributingEquipmentSequence" not in seg


def test_the_file_says_that_we_wrote_it(built: Built) -> None:
    assert built.seg.file_meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16
    assert built.seg.file_meta.ImplementationClassUID.startswith("2.25.")
    assert built.seg.Manufacturer == "flairnode"
    assert built.seg.ManufacturerModelName == EQUIPMENT.model_name


def test_a_change_of_a_result_reaches_neither_its_sources_nor_the_next_result(
    make_flair_series: Make,
) -> None:
    series = make_flair_series().series
    built = build(series, three_lesions())
    seg, sr = built.seg, built.sr
    seg.PatientID = sr.PatientID = "SOMEBODY ELSE"
    seg.PatientName = sr.PatientName = "Somebody^Else"
    sr.StudyDate = "20200101"
    assert {str(one.PatientID) for one in built.sources} == {"TEST-1"}
    assert {str(i.header.PatientID) for i in series.instances} == {"TEST-1"}
    assert built.seg.PatientID == built.sr.PatientID == "TEST-1"
    again = build(series, three_lesions())
    assert again.seg_bytes == built.seg_bytes
    assert again.sr_bytes == built.sr_bytes


def test_building_leaves_the_received_headers_as_they_were(make_flair_series: Make) -> None:
    series = make_flair_series(overrides={"StudyID": None, "AccessionNumber": None}).series
    before = [copy.deepcopy(instance.header) for instance in series.instances]
    build(series, three_lesions())
    assert [instance.header for instance in series.instances] == before
    assert "StudyID" not in series.header


# --- what a PACS sends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keyword",
    [
        "AccessionNumber",
        "StudyID",
        "PatientBirthDate",
        "StudyTime",
        "StudyDate",
        "SliceThickness",
        "PatientSex",
        "PatientName",
        "ReferringPhysicianName",
        "PositionReferenceIndicator",
        "SpecificCharacterSet",
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_results_are_made_of_images_that_lack_an_attribute(
    make_flair_series: Make, keyword: str, value: str | None
) -> None:
    made = make_flair_series(slices=4, rows=8, columns=8, overrides={keyword: value})
    labels = np.zeros((4, 8, 8), np.int32)
    labels[1, 2, 3] = 1
    built = build(made.series, labels)
    np.testing.assert_array_equal(checked(built, built.seg), labels)
    check_header(built.sr, built.sources)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Größe^Jürgen"),
        ("ISO_IR 192", "Größe^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_results_are_utf_8_whatever_the_images_are(
    make_flair_series: Make, character_set: str | list[str], name: str
) -> None:
    made = make_flair_series(overrides={"SpecificCharacterSet": character_set, "PatientName": name})
    built = build(made.series, three_lesions())
    for result in (built.seg, built.sr):
        assert result.SpecificCharacterSet == "ISO_IR 192"
        assert str(result.PatientName) == name


def test_a_uid_of_64_characters_is_kept_and_none_of_ours_is_longer(make_flair_series: Make) -> None:
    long = "1.2.826.0.1." + "3" * 52
    assert len(long) == 64
    made = make_flair_series(study_instance_uid=long, series_instance_uid=long[:-1] + "4")
    built = build(made.series, three_lesions())
    checked(built, built.seg)
    assert built.seg.StudyInstanceUID == long
    assert len(result_uid("the", "longest", "9" * 1000)) <= 44


def test_a_name_without_a_caret_and_too_long_a_value_reach_no_log(
    make_flair_series: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with pydicom.config.disable_value_validation():
        made = make_flair_series(
            patient_name="SECRETNAME", overrides={"StudyDescription": "SECRETSTUDY" * 7}
        )
    build(made.series, three_lesions())
    assert "SECRET" not in caplog.text


# --- damage is found -----------------------------------------------------------------------------


def _frames(seg: Dataset) -> Sequence[Dataset]:
    return list(seg.PerFrameFunctionalGroupsSequence)


def _shifted(seg: Dataset) -> None:
    for frame in _frames(seg):
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        position[0] = round(float(position[0]) + 0.02, 6)


def _one_slice_on(seg: Dataset) -> None:
    positions = [copy.deepcopy(f.PlanePositionSequence) for f in _frames(seg)]
    for frame, other in zip(_frames(seg)[:2], positions[1:3], strict=True):
        frame.PlanePositionSequence = other


def _turned(seg: Dataset) -> None:
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def _stretched(seg: Dataset) -> None:
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.76]


def _swapped_spacing(seg: Dataset) -> None:
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.75, 0.5]


def _mirrored_rows(seg: Dataset) -> None:
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    frames = bits[: 6 * 48 * 36].reshape(6, 48, 36)[:, ::-1]
    seg.PixelData = np.packbits(frames, bitorder="little").tobytes()


def _one_voxel_less(seg: Dataset) -> None:
    data = bytearray(seg.PixelData)
    first = next(index for index, byte in enumerate(data) if byte)
    data[first] &= data[first] - 1
    seg.PixelData = bytes(data)


def _without_source_image(seg: Dataset) -> None:
    del _frames(seg)[1].DerivationImageSequence


def _wrong_source_image(seg: Dataset) -> None:
    images = [f.DerivationImageSequence[0].SourceImageSequence[0] for f in _frames(seg)[:2]]
    images[0].ReferencedSOPInstanceUID = images[1].ReferencedSOPInstanceUID


def _unlisted_instance(seg: Dataset) -> None:
    del seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]


def _without_referenced_series(seg: Dataset) -> None:
    del seg.ReferencedSeriesSequence


def _other_frame_of_reference(seg: Dataset) -> None:
    seg.FrameOfReferenceUID = "1.2.3"


def _segment_missing(seg: Dataset) -> None:
    del seg.SegmentSequence[2]


def _swapped_tracking(seg: Dataset) -> None:
    seg.SegmentSequence[0].TrackingUID = seg.SegmentSequence[1].TrackingUID


def _without_algorithm(seg: Dataset) -> None:
    del seg.SegmentSequence[0].SegmentAlgorithmName


def _truncated(seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[:-100]


def _other_patient(seg: Dataset) -> None:
    seg.PatientID = "TEST-2"


def _broken_umlaut(seg: Dataset) -> None:
    seg.PatientName = "Phantom^Fla\u00c3\u00afr"


def _other_study_date(seg: Dataset) -> None:
    seg.StudyDate = "20250101"


def _illegal_uid(seg: Dataset) -> None:
    seg.SegmentSequence[0].TrackingUID = "1.2." + "3" * 61


def _leading_zero(seg: Dataset) -> None:
    seg.DimensionOrganizationSequence[0].DimensionOrganizationUID = "1.02.3"


def _renamed_source_series(seg: Dataset) -> None:
    seg.SeriesInstanceUID = seg.ReferencedSeriesSequence[0].SeriesInstanceUID


@pytest.mark.parametrize(
    "damage",
    [
        _shifted,
        _one_slice_on,
        _turned,
        _stretched,
        _swapped_spacing,
        _mirrored_rows,
        _one_voxel_less,
        _without_source_image,
        _wrong_source_image,
        _unlisted_instance,
        _without_referenced_series,
        _other_frame_of_reference,
        _segment_missing,
        _swapped_tracking,
        _without_algorithm,
        _truncated,
        _other_patient,
        _broken_umlaut,
        _other_study_date,
        _illegal_uid,
        _leading_zero,
        _renamed_source_series,
    ],
)
def test_a_damaged_segmentation_is_not_sent(built: Built, damage: Damage) -> None:
    with pytest.raises(ResultCheckError):
        checked(built, _damaged(built, damage))


def _damaged(built: Built, damage: Damage) -> Dataset:
    with pydicom.config.disable_value_validation():
        return rewritten(built, damage)


def test_labels_are_not_read_onto_another_grid(built: Built, make_flair_series: Make) -> None:
    other = build(make_flair_series(spacing_mm=(6.0, 0.5, 0.75)).series, three_lesions())
    with pytest.raises(ResultCheckError):
        read_labels(built.seg, built.sources, other.grid)
