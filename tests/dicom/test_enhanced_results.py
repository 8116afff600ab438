"""Results of Enhanced sources point to frames, and a wrong frame is seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from dicom.checks import check_header, check_seg, check_sr
from dicom.errors import ResultCheckError
from dicom.part10 import part10_bytes, read_part10
from tests.dicom.regions import Built, build
from tests.enhanced import write_enhanced
from tests.pipeline.analysed import three_lesions

Make = Callable[..., Any]
REVERSED = tuple(range(9, -1, -1))
ORDERS = [None, REVERSED, (3, 7, 0, 9, 1, 8, 2, 6, 4, 5)]


def built_on(make_flair_series: Make, folder: Path, **options: Any) -> Built:  # noqa: ANN401
    return build(write_enhanced(make_flair_series(), folder / "e", **options), three_lesions())


def check(built: Built, seg: Dataset, sr: Dataset) -> None:
    check_header(seg, built.sources)
    check_header(sr, built.sources)
    labels = check_seg(seg, built.sources, built.grid, built.labels, built.regions)
    check_sr(sr, built.sources, seg, labels, built.report)


def source_images(seg: Dataset) -> list[Dataset]:
    return [
        group.DerivationImageSequence[0].SourceImageSequence[0]
        for group in seg.PerFrameFunctionalGroupsSequence
    ]


def references(sr: Dataset) -> list[Dataset]:
    """Of every content item that points to an Enhanced image."""

    def below(item: Dataset) -> list[Dataset]:
        found = list(item.get("ReferencedSOPSequence", ()))
        return found + [one for child in item.get("ContentSequence", ()) for one in below(child)]

    return [one for one in below(sr) if one.ReferencedSOPClassUID == EnhancedMRImageStorage]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("objects", [1, 2])
def test_results_hold_the_mask_and_pass_every_check(
    make_flair_series: Make, tmp_path: Path, order: tuple[int, ...] | None, objects: int
) -> None:
    built = built_on(make_flair_series, tmp_path, order=order, objects=objects)
    check(built, built.seg, built.sr)


@pytest.mark.parametrize("order", ORDERS)
def test_every_segmentation_frame_names_the_frame_it_lies_on(
    make_flair_series: Make, tmp_path: Path, order: tuple[int, ...] | None
) -> None:
    made = make_flair_series()
    seg = built_on(make_flair_series, tmp_path, order=order).seg
    found = {}
    for group, image in zip(seg.PerFrameFunctionalGroupsSequence, source_images(seg), strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        index = np.linalg.inv(made.affine) @ [*position, 1]
        found[round(index[0])] = int(image.ReferencedFrameNumber)
    # Lesions lie on slices 2 3 4, 6 7 and 8; frame n is slice order[n - 1].
    assert found == {s: (order or range(10)).index(s) + 1 for s in (2, 3, 4, 6, 7, 8)}


def test_regions_that_share_a_slice_name_its_frame_alike(
    make_flair_series: Make, tmp_path: Path
) -> None:
    labels = three_lesions()
    labels[2:5, 30:33, 20:24] = 2  # where region 1 lies too
    series = write_enhanced(make_flair_series(), tmp_path / "e", order=REVERSED)
    built = build(series, labels)
    check(built, built.seg, built.sr)
    frames = [int(image.ReferencedFrameNumber) for image in source_images(built.seg)]
    assert sorted(frames) == [2, 3, 4, 6, 6, 7, 7, 8, 8]


def test_a_reference_to_an_object_is_given_once(make_flair_series: Make, tmp_path: Path) -> None:
    built = built_on(make_flair_series, tmp_path, objects=2)
    (series,) = built.seg.ReferencedSeriesSequence
    uids = {str(source.SOPInstanceUID) for source in built.sources}
    assert len(uids) == 2
    listed = [str(one.ReferencedSOPInstanceUID) for one in series.ReferencedInstanceSequence]
    assert sorted(listed) == sorted(uids)
    (study,) = built.sr.CurrentRequestedProcedureEvidenceSequence
    evidence = [
        str(one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]
    assert sorted(evidence) == sorted([*uids, str(built.seg.SOPInstanceUID)])


def test_the_report_names_frames_of_regions_and_of_outlines(
    make_flair_series: Make, tmp_path: Path
) -> None:
    sr = built_on(make_flair_series, tmp_path, order=REVERSED).sr
    frames = [one.get("ReferencedFrameNumber") for one in references(sr)]
    # The library names the object, the two totals the first slice; then region by region its
    # frames and that of its outline: slice s is frame 10 - s.
    assert frames[0] is None
    found = [[int(n) for n in ([one] if isinstance(one, int) else one)] for one in frames[1:]]
    assert found == [[10], [10], [8, 7, 6], [8], [4, 3], [4], [2], [2]]


def test_one_frame_per_object_is_referenced_without_a_number(
    make_flair_series: Make, tmp_path: Path
) -> None:
    built = built_on(make_flair_series, tmp_path, objects=10)
    check(built, built.seg, built.sr)
    assert not any("ReferencedFrameNumber" in image for image in source_images(built.seg))
    assert not any("ReferencedFrameNumber" in one for one in references(built.sr))


def test_nothing_of_the_names_used_while_building_is_left(
    make_flair_series: Make, tmp_path: Path
) -> None:
    built = built_on(make_flair_series, tmp_path)
    assert {image.ReferencedSOPClassUID for image in source_images(built.seg)} == {
        EnhancedMRImageStorage
    }
    known = {str(source.SOPInstanceUID) for source in built.sources}
    for element in built.seg.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            assert str(element.value) in known
    assert b"1.2.840.10008.5.1.4.1.1.4\0" not in built.seg_bytes  # classic MR Image Storage


# Damage


def another_frame(seg: Dataset, sr: Dataset) -> None:
    image = source_images(seg)[0]
    image.ReferencedFrameNumber = image.ReferencedFrameNumber + 1


def no_frame(seg: Dataset, sr: Dataset) -> None:
    del source_images(seg)[0].ReferencedFrameNumber


def another_class(seg: Dataset, sr: Dataset) -> None:
    source_images(seg)[0].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def outline_elsewhere(seg: Dataset, sr: Dataset) -> None:
    references(sr)[4].ReferencedFrameNumber = 5


def region_elsewhere(seg: Dataset, sr: Dataset) -> None:
    references(sr)[3].ReferencedFrameNumber = [3, 4, 6]


def library_frame(seg: Dataset, sr: Dataset) -> None:
    references(sr)[0].ReferencedFrameNumber = 11


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (another_frame, "names another image"),
        (no_frame, "names another image"),
        (another_class, "names another image"),
        (outline_elsewhere, "drawn on another slice"),
        (region_elsewhere, "other images than it lies on"),
        (library_frame, "frames that were not analysed"),
    ],
)
def test_a_wrong_frame_is_seen_before_sending(
    make_flair_series: Make,
    tmp_path: Path,
    damage: Callable[[Dataset, Dataset], None],
    said: str,
) -> None:
    built = built_on(make_flair_series, tmp_path)
    seg, sr = copy.deepcopy(built.seg), copy.deepcopy(built.sr)
    damage(seg, sr)
    with pytest.raises(ResultCheckError, match=said):
        check(built, *(read_part10(part10_bytes(one)) for one in (seg, sr)))


def test_lengths_and_outlines_are_those_of_the_classic_twin(
    make_flair_series: Make, tmp_path: Path
) -> None:
    classic = build(make_flair_series().series, three_lesions())
    enhanced = built_on(make_flair_series, tmp_path, order=REVERSED)

    def points(sr: Dataset) -> list[list[float]]:
        return [list(e.value) for e in sr.iterall() if e.keyword == "GraphicData"]

    assert points(enhanced.sr) == points(classic.sr)
    np.testing.assert_array_equal(
        np.frombuffer(enhanced.seg.PixelData, np.uint8),
        np.frombuffer(classic.seg.PixelData, np.uint8),
    )
