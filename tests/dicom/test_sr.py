from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from scipy import ndimage

from dicom.checks import check_header, check_sr
from dicom.errors import ResultCheckError
from dicom.outline import footprints
from dicom.part10 import part10_bytes, read_part10
from dicom.seg import Labels
from tests.dicom.regions import Built, build, three_regions
from tests.pipeline.analysed import no_lesions, three_lesions

Make = Callable[..., Any]
Damage = Callable[[Dataset], None]


@pytest.fixture
def built(make_flair_series: Make) -> Built:
    return three_regions(make_flair_series)


def checked(built: Built, sr: Dataset) -> None:
    check_header(sr, built.sources)
    seg = built.seg if built.regions else None
    check_sr(sr, built.sources, seg, built.labels, built.report)


def items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence", ()):
        yield from items(child)


def named(item: Dataset, code: str) -> list[Dataset]:
    return [
        child
        for child in items(item)
        if "ConceptNameCodeSequence" in child and child.ConceptNameCodeSequence[0].CodeValue == code
    ]


def groups(sr: Dataset, template: str) -> list[Dataset]:
    return [
        group
        for group in named(sr, "125007")
        if group.ContentTemplateSequence[0].TemplateIdentifier == template
    ]


def value(group: Dataset, code: str) -> float:
    (item,) = named(group, code)
    return float(item.MeasuredValueSequence[0].NumericValue)


# --- what a report holds -------------------------------------------------------------------------


def test_a_report_passes_its_own_checks(built: Built) -> None:
    checked(built, built.sr)


def test_it_is_a_tid_1500_report_titled_imaging_measurement_report(built: Built) -> None:
    assert built.sr.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert built.sr.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert built.sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def test_it_is_unverified_and_preliminary(built: Built) -> None:
    assert (built.sr.VerificationFlag, built.sr.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_the_summary_comes_before_images_and_measurements(built: Built) -> None:
    containers = [
        item.ConceptNameCodeSequence[0].CodeValue
        for item in built.sr.ContentSequence
        if item.ValueType == "CONTAINER"
    ]
    assert containers == ["121111", "111028", "126010"]
    assert [i.TextValue for i in named(built.sr, "121106")] == ["First words.", "Größe, 山田."]


def test_every_region_has_a_volumetric_and_an_outline_group_of_one_tracking_uid(
    built: Built,
) -> None:
    uids = [[named(g, "112040")[0].UID for g in groups(built.sr, t)] for t in ("1411", "1410")]
    segments = [str(segment.TrackingUID) for segment in built.seg.SegmentSequence]
    assert uids == [segments, segments]


def test_a_site_and_a_region_are_in_the_volumetric_group_alone(built: Built) -> None:
    for code in ("363698007", "REGION"):
        assert [len(named(g, code)) for g in groups(built.sr, "1411")] == [0, 1, 0]
        assert [len(named(g, code)) for g in groups(built.sr, "1410")] == [0, 0, 0]
    (scheme,) = built.sr.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99FLAIRNODE"
    assert scheme.CodingSchemeResponsibleOrganization == built.sr.Manufacturer


def test_the_volume_is_in_one_of_the_two_groups(built: Built) -> None:
    assert [len(named(g, "118565006")) for g in groups(built.sr, "1411")] == [1, 1, 1]
    assert [len(named(g, "118565006")) for g in groups(built.sr, "1410")] == [0, 0, 0]


def test_a_volume_is_voxels_times_their_distances_not_slice_thickness(built: Built) -> None:
    # 210 voxels of 6.5 x 0.5 x 0.75 mm; SliceThickness says 5.2 mm.
    assert value(groups(built.sr, "1411")[0], "118565006") == pytest.approx(
        210 * 6.5 * 0.5 * 0.75 / 1000, abs=5e-6
    )


@pytest.mark.parametrize(("labels", "tracked"), [(three_lesions(), 4), (no_lesions(), 1)])
def test_everything_that_is_tracked_has_a_line_on_an_image(
    make_flair_series: Make, labels: Labels, tracked: int
) -> None:
    """OHIF 3.13 puts groups of one tracking UID together, and breaks off at one without a line."""
    sr = build(make_flair_series().series, labels).sr
    lines: dict[str, int] = {}
    for group in named(sr, "125007"):
        uid = str(named(group, "112040")[0].UID)
        drawn = sum(item.get("ValueType") == "SCOORD" for item in items(group))
        lines[uid] = lines.get(uid, 0) + drawn
    assert len(lines) == tracked
    assert min(lines.values()) > 0


def test_totals_with_a_line_on_another_slice_are_refused(built: Built) -> None:
    sr = read_part10(built.sr_bytes)
    (totals,) = groups(sr, "1501")
    (line,) = [i for i in items(named(totals, "246206008")[0]) if i.get("ValueType") == "SCOORD"]
    other = built.sources[-1].SOPInstanceUID
    line.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = other
    with pytest.raises(ResultCheckError, match="drawn on another slice"):
        checked(built, sr)


def test_totals_stand_in_one_group_that_points_to_no_segment(built: Built) -> None:
    (totals,) = groups(built.sr, "1501")
    assert value(totals, "246206008") == 3
    assert value(totals, "118565006") == pytest.approx(230 * 6.5 * 0.5 * 0.75 / 1000, abs=6e-6)
    assert not named(totals, "121191")


def test_a_count_is_printed_without_decimals(built: Built) -> None:
    (count,) = named(built.sr, "246206008")
    assert count.MeasuredValueSequence[0]["NumericValue"].value.original_string == "3"


def test_the_outline_is_drawn_on_the_slice_where_the_area_is_largest(built: Built) -> None:
    second = groups(built.sr, "1410")[1]
    (line,) = named(second, "111030")
    assert line.GraphicType == "POLYLINE"
    image = line.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert image == built.sources[6].SOPInstanceUID
    # rows 30 to 32, columns 20 to 25: the corners of a rectangle, closed
    assert list(line.GraphicData) == [20, 30, 26, 30, 26, 33, 20, 33, 20, 30]


def test_every_image_and_the_segmentation_are_evidence(built: Built) -> None:
    (study,) = built.sr.CurrentRequestedProcedureEvidenceSequence
    listed = {
        str(one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    sources = {str(one.SOPInstanceUID) for one in built.sources}
    assert listed == sources | {str(built.seg.SOPInstanceUID)}


def test_a_report_of_nothing_says_zero_and_points_to_no_segmentation(
    make_flair_series: Make,
) -> None:
    built = build(make_flair_series().series, no_lesions())
    checked(built, built.sr)
    (totals,) = groups(built.sr, "1501")
    assert (value(totals, "246206008"), value(totals, "118565006")) == (0, 0)
    assert not groups(built.sr, "1411")
    assert not named(built.sr, "121191")


def test_a_report_of_a_segmentation_of_one_segment_is_built(make_flair_series: Make) -> None:
    labels = (three_lesions() == 1).astype(np.int32)
    built = build(make_flair_series().series, labels)
    checked(built, built.sr)
    assert len(groups(built.sr, "1411")) == 1


def test_coding_schemes_are_standard_or_declared(built: Built) -> None:
    schemes = {
        element.value
        for element in built.sr.iterall()
        if element.keyword == "CodingSchemeDesignator"
    }
    declared = {
        str(item.CodingSchemeDesignator) for item in built.sr.CodingSchemeIdentificationSequence
    }
    assert schemes <= {"SCT", "DCM", "UCUM", "RFC5646"} | declared  # RFC5646: the language


def test_no_clock_of_this_machine_is_in_a_report(built: Built) -> None:
    assert built.sr.ContentDate == built.sr.SeriesDate == "20240102"
    for keyword in ("InstanceCreationDate", "ContributingEquipmentSequence"):
        assert keyword not in built.sr


# --- outlines ------------------------------------------------------------------------------------


def enclosed(points: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    column, row = points.T
    return float(np.sum(column[:-1] * row[1:] - column[1:] * row[:-1]) / 2)


def test_an_outline_encloses_as_many_pixels_as_its_area_has() -> None:
    random = np.random.default_rng(3)
    for _ in range(60):
        area = ndimage.gaussian_filter(random.random((14, 17)), 1.2) > 0.5
        if not area.any():
            continue
        parts, _ = ndimage.label(area, np.ones((3, 3)))
        largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        footprint = footprints(area[np.newaxis].astype(np.int32))[1]
        # Clockwise as displayed; holes are not drawn.
        expected = ndimage.binary_fill_holes(largest).sum()
        assert enclosed(footprint.outline) == pytest.approx(expected)
        np.testing.assert_array_equal(footprint.outline[0], footprint.outline[-1])


def test_pixels_that_touch_at_a_corner_are_in_one_outline() -> None:
    labels = np.zeros((1, 4, 4), np.int32)
    labels[0, 1, 1] = labels[0, 2, 2] = 1
    assert enclosed(footprints(labels)[1].outline) == 2


def test_a_footprint_names_its_slices_and_the_first_of_equal_areas() -> None:
    labels = np.zeros((6, 3, 3), np.int32)
    labels[1, 0, 0] = 4
    labels[3, 0, :2] = labels[4, 1, :2] = 4
    footprint = footprints(labels)[4]
    assert (footprint.slices, footprint.largest_slice) == ((1, 3, 4), 3)


# --- damage is found -----------------------------------------------------------------------------


def _volume_times_1_25(sr: Dataset) -> None:
    item = named(groups(sr, "1411")[1], "118565006")[0].MeasuredValueSequence[0]
    item.NumericValue = round(float(item.NumericValue) * 1.25, 6)


def _total_changed(sr: Dataset) -> None:
    named(groups(sr, "1501")[0], "118565006")[0].MeasuredValueSequence[0].NumericValue = 1.0


def _other_unit(sr: Dataset) -> None:
    item = named(groups(sr, "1411")[0], "118565006")[0].MeasuredValueSequence[0]
    item.MeasurementUnitsCodeSequence[0].CodeValue = "mm3"


def _wrong_count(sr: Dataset) -> None:
    named(sr, "246206008")[0].MeasuredValueSequence[0].NumericValue = 4


def _group_missing(sr: Dataset) -> None:
    del named(sr, "126010")[0].ContentSequence[1]


def _outline_missing(sr: Dataset) -> None:
    del named(sr, "126010")[0].ContentSequence[2]


def _dangling_segmentation(sr: Dataset) -> None:
    for item in named(sr, "121191"):
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "2.25.404"


def _segmentation_not_in_evidence(sr: Dataset) -> None:
    series = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    del series[-1]


def _image_not_in_evidence(sr: Dataset) -> None:
    series = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    del series.ReferencedSOPSequence[0]


def _no_evidence(sr: Dataset) -> None:
    del sr.CurrentRequestedProcedureEvidenceSequence


def _other_segment(sr: Dataset) -> None:
    named(sr, "121191")[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = 2


def _other_tracking_uid(sr: Dataset) -> None:
    named(groups(sr, "1411")[0], "112040")[0].UID = "2.25.1002"


def _moved_outline(sr: Dataset) -> None:
    line = named(sr, "111030")[0]
    line.GraphicData = [v + 1 for v in line.GraphicData]


def _outline_on_another_slice(sr: Dataset) -> None:
    lines = named(sr, "111030")
    other = lines[1].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    lines[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = other


def _other_frame_of_reference(sr: Dataset) -> None:
    named(sr, "112227")[0].UID = "1.2.3"


def _verified(sr: Dataset) -> None:
    sr.VerificationFlag = "VERIFIED"


def _no_template(sr: Dataset) -> None:
    del sr.ContentTemplateSequence


def _oncology(sr: Dataset) -> None:
    sr.ConceptNameCodeSequence[0].CodeValue = "126001"


def _other_words(sr: Dataset) -> None:
    named(sr, "121106")[0].TextValue = "Something else."


def _better_quality(sr: Dataset) -> None:
    named(sr, "111050")[0].ConceptCodeSequence[0].CodeValue = "111236"


def _other_region(sr: Dataset) -> None:
    named(sr, "REGION")[0].ConceptCodeSequence[0].CodeValue = "JUXTACORTICAL"


def _other_site(sr: Dataset) -> None:
    named(groups(sr, "1411")[1], "363698007")[0].ConceptCodeSequence[0].CodeValue = "12738006"


def _region_in_the_outline(sr: Dataset) -> None:
    groups(sr, "1410")[1].ContentSequence.append(named(sr, "REGION")[0])


def _undeclared_scheme(sr: Dataset) -> None:
    del sr.CodingSchemeIdentificationSequence


def _other_patient(sr: Dataset) -> None:
    sr.PatientID = "TEST-2"


def _future_study(sr: Dataset) -> None:
    sr.StudyDate = "20990101"


def _long_uid(sr: Dataset) -> None:
    sr.SeriesInstanceUID = "2.25." + "1" * 61


@pytest.mark.parametrize(
    "damage",
    [
        _volume_times_1_25,
        _total_changed,
        _other_unit,
        _wrong_count,
        _group_missing,
        _outline_missing,
        _dangling_segmentation,
        _segmentation_not_in_evidence,
        _image_not_in_evidence,
        _no_evidence,
        _other_segment,
        _other_tracking_uid,
        _moved_outline,
        _outline_on_another_slice,
        _other_frame_of_reference,
        _verified,
        _no_template,
        _oncology,
        _other_words,
        _better_quality,
        _other_region,
        _other_site,
        _region_in_the_outline,
        _undeclared_scheme,
        _other_patient,
        _future_study,
        _long_uid,
    ],
)
def test_a_damaged_report_is_not_sent(built: Built, damage: Damage) -> None:
    sr = built.sr
    with pydicom.config.disable_value_validation():
        damage(sr)
        damaged = read_part10(part10_bytes(sr))
    with pytest.raises(ResultCheckError):
        checked(built, damaged)
