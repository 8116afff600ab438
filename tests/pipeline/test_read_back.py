"""A result that came back from an archive is believed only when everything agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom import codes
from dicom.errors import ResultCheckError
from dicom.part10 import part10_bytes, read_part10
from dicom.series import Series, read_series
from pipeline.read_back import dice, read_back
from pipeline.results import build_results
from tests.conftest import FlairSeries
from tests.enhanced import write_enhanced
from tests.pipeline.analysed import analysed, no_lesions, pack, three_lesions


@dataclass(frozen=True)
class Archived:
    """A result as it lies in an archive, with its images."""

    series: Series
    contents: tuple[bytes, ...]
    held: frozenset[str]

    def changed(self, kind: str, change: Callable[[Dataset], None]) -> tuple[bytes, ...]:
        """The same files, one of them changed: by whoever made it, so that no copy tells."""
        changed = []
        for content in self.contents:
            one = read_part10(content)
            if kind == one.Modality:
                change(one)
            changed.append(part10_bytes(one))
        return tuple(changed)


def archived(written: FlairSeries, labels: np.ndarray) -> Archived:
    return archived_series(read_series(sorted(written.folder.iterdir())), labels)


def archived_series(series: Series, labels: np.ndarray) -> Archived:
    results = build_results(series, analysed(series, labels), pack(), {"mirroring_axes": []})
    uids = {one.sop_instance_uid for one in series.instances}
    return Archived(
        series,
        tuple(one.content for one in results),
        frozenset(uids | {one.sop_instance_uid for one in results}),
    )


@pytest.fixture
def result(make_flair_series: Callable[..., FlairSeries]) -> Archived:
    # Made once, and its images stay on disk: everything here only reads it.
    if not _archived:
        _archived.append(archived(make_flair_series(), three_lesions()))
    return _archived[0]


_archived: list[Archived] = []


def refused(result: Archived, kind: str, change: Callable[[Dataset], None], match: str) -> None:
    contents = result.changed(kind, change)
    with pytest.raises(ResultCheckError, match=match):
        read_back(result.series, contents, contents, result.held)


def test_voxels_and_volumes_are_those_that_were_measured(result: Archived) -> None:
    read = read_back(result.series, result.contents, result.contents, result.held)
    assert np.array_equal(read.labels, three_lesions())
    voxel_ml = read.volume.grid.voxel_volume_ml
    assert read.volumes_ml == pytest.approx((210 * voxel_ml, 19 * voxel_ml, voxel_ml))


def test_pictures_and_document_are_at_hand(result: Archived) -> None:
    read = read_back(result.series, result.contents, result.contents, result.held)
    assert [picture.shape for picture in read.pictures] == [(1024, 1024, 3)] * 3
    assert read.pdf is not None
    assert read.pdf.startswith(b"%PDF-")


def test_the_document_of_another_result_is_noticed(
    result: Archived, make_flair_series: Callable[..., FlairSeries]
) -> None:
    two = archived(make_flair_series(), np.where(three_lesions() == 3, 0, three_lesions()))
    other = next(
        one for one in map(read_part10, two.contents) if "EncapsulatedDocument" in one
    ).EncapsulatedDocument

    def exchange(document: Dataset) -> None:
        document.EncapsulatedDocument = other

    refused(result, "DOC", exchange, "the PDF does not print 3, lesion 3")


def test_a_picture_of_images_that_were_not_analysed_is_noticed(result: Archived) -> None:
    def rename(image: Dataset) -> None:
        image.SourceImageSequence[0].ReferencedSOPInstanceUID = image.SOPInstanceUID

    refused(result, "OT", rename, "names images that were not analysed")


def test_a_result_without_lesions_has_no_segmentation(
    make_flair_series: Callable[..., FlairSeries],
) -> None:
    none = archived(make_flair_series(), no_lesions())
    read = read_back(none.series, none.contents, none.contents, none.held)
    assert read.volumes_ml == ()
    assert not read.labels.any()
    assert len(read.pictures) == 1


def test_an_object_that_the_archive_lost_or_changed_is_noticed(result: Archived) -> None:
    with pytest.raises(ResultCheckError, match="5 objects in the archive, 6 were made"):
        read_back(result.series, result.contents[1:], result.contents, result.held)

    def rename(one: Dataset) -> None:
        one.SeriesDescription = "something else"

    changed = result.changed("SR", rename)
    with pytest.raises(ResultCheckError, match="the archive changed the SR"):
        read_back(result.series, changed, result.contents, result.held)


def test_a_reference_to_what_the_archive_does_not_hold_is_noticed(result: Archived) -> None:
    held = result.held - {result.series.instances[3].sop_instance_uid}
    with pytest.raises(ResultCheckError, match="1 referenced objects are not in the archive"):
        read_back(result.series, result.contents, result.contents, held)


def test_another_patient_is_noticed(result: Archived) -> None:
    def rename(one: Dataset) -> None:
        one.PatientID = "SOMEBODY-ELSE"

    refused(result, "SEG", rename, "PatientID is not that of the source")


def test_one_voxel_more_contradicts_the_report(result: Archived) -> None:
    def add_a_voxel(seg: Dataset) -> None:
        pixels = bytearray(seg.PixelData)
        pixels[0] |= 1  # the first pixel of the first frame: of lesion 1
        seg.PixelData = bytes(pixels)

    refused(result, "SEG", add_a_voxel, "Volume of lesion 1 is")


def test_a_wrong_volume_in_the_report_is_noticed(result: Archived) -> None:
    def enlarge(sr: Dataset) -> None:
        for item in measurements(sr, codes.VOLUME.value):
            item.MeasuredValueSequence[0].NumericValue *= 2

    refused(result, "SR", enlarge, "Volume of lesion 1 is")


def test_a_wrong_count_in_the_report_is_noticed(result: Archived) -> None:
    def miscount(sr: Dataset) -> None:
        (item,) = measurements(sr, codes.NUMBER_OF_LESIONS.value)
        item.MeasuredValueSequence[0].NumericValue = 4

    refused(result, "SR", miscount, "Number of lesions of all lesions is 4")


def test_dice_of_half_an_overlap() -> None:
    one = np.array([True, True, False])
    other = np.array([False, True, True])
    assert dice(one, other) == pytest.approx(0.5)
    assert dice(one & other & False, np.zeros(3, bool)) == 1


def measurements(item: Dataset, code_value: str) -> list[Dataset]:
    found = []
    for child in item.get("ContentSequence", ()):
        if child.ValueType == "NUM" and child.ConceptNameCodeSequence[0].CodeValue == code_value:
            found.append(child)
        found += measurements(child, code_value)
    return found


def test_the_images_need_not_come_in_order(result: Archived, tmp_path: Path) -> None:
    reversed_series = Series(
        result.series.study_instance_uid,
        result.series.series_instance_uid,
        result.series.instances[::-1],
    )
    read = read_back(reversed_series, result.contents, result.contents, result.held)
    assert np.array_equal(read.labels, three_lesions())


def test_results_of_an_enhanced_object_are_read_back_by_frame(
    make_flair_series: Callable[..., FlairSeries], tmp_path: Path
) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", order=range(10)[::-1])
    enhanced = archived_series(series, three_lesions())
    read = read_back(series, enhanced.contents, enhanced.contents, enhanced.held)
    assert np.array_equal(read.labels, three_lesions())
    assert read.volume.frame_numbers == tuple(range(10, 0, -1))
