"""What is true of a result object before it may leave, read from the bytes that would be sent.

`dciodvfy` passes a Segmentation that lies on the wrong slice, or is mirrored, or belongs to another
Frame of Reference, and a report with wrong numbers: it judges form. These checks judge content, and
share no code with what built the objects: pixels are unpacked and frames placed here anew.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pydicom.valuerep import VR

from dicom import codes
from dicom.errors import ResultCheckError
from dicom.frames import frame_number
from dicom.identity import DESCRIPTION, IDENTITY, MANUFACTURER, UTF_8
from dicom.note import Note
from dicom.outline import Footprint, footprints
from dicom.probability_map import Probability
from dicom.reference import DocumentReference
from dicom.secondary_capture import Capture
from dicom.seg import Labels, RegionOfInterest
from dicom.sr import MeasuredRegion, Quantity, Report
from dicom.volume import Grid

POSITION_TOLERANCE_MM = 0.01  # a decimal string of 16 characters is good to 1e-9 mm
DIRECTION_TOLERANCE = 1e-5  # of a cosine: 0.003 mm over 300 mm
LONGEST_UID = 64

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
_STREAM = re.compile(rb"stream\r?\n(.*?)endstream", re.DOTALL)
_SHOWN = re.compile(rb"\(((?:\\.|[^\\()])*)\)\s*Tj", re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)
_TOTALS, _VOLUMETRIC, _PLANAR = "1501", "1411", "1410"
Image = tuple[str, str, tuple[int, ...]]
"""SOP Class UID, SOP Instance UID, and the frames that are meant; none: the whole object."""
_ROUND_TRIP = 1e-9  # relative: a number to a decimal string and back


def check_header(result: Dataset, sources: Sequence[Dataset]) -> None:
    """The result is of the same patient and study as its sources, ours, and legal.

    Args:
        result: As re-read from its bytes.
        sources: `identity.normalised_header` of every image.

    Raises:
        ResultCheckError: With the keyword that differs, never its value.
    """
    for keyword, uid in _uids(result):
        if len(uid) > LONGEST_UID or not _UID.fullmatch(uid):
            _fail(f"{keyword} {uid!r} is no legal UID")
    source = sources[0]
    for keyword in (*IDENTITY, *DESCRIPTION):
        expected, found = source.get(keyword), result.get(keyword)
        if (expected or "") != (found or ""):
            _fail(f"{keyword} is not that of the source")
    _require(result.get("SpecificCharacterSet") == UTF_8, "the character set is not UTF-8")
    _require(result.get("Manufacturer") == MANUFACTURER, "Manufacturer is not ours")
    uids = {str(one.SOPInstanceUID) for one in sources} | {str(source.SeriesInstanceUID)}
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        _require(str(result[keyword].value) not in uids, f"{keyword} is one of the source")
    _require(
        result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
        and result.file_meta.MediaStorageSOPClassUID == result.SOPClassUID,
        "the file meta information names another object",
    )


def check_seg(
    seg: Dataset,
    sources: Sequence[Dataset],
    grid: Grid,
    labels: Labels,
    regions: Sequence[RegionOfInterest],
) -> Labels:
    """The Segmentation lies where its sources lie and holds exactly these regions.

    Args:
        seg: As re-read from its bytes.
        sources: `identity.normalised_header` of the image of every slice, in slice order.
        grid: Of the volume that was analysed.
        labels: On that grid.
        regions: What was to be written, in order of their numbers.

    Returns:
        The labels as the Segmentation holds them, on the grid.

    Raises:
        ResultCheckError: Anything differs.
    """
    _require(seg.SOPClassUID == SegmentationStorage, "no Segmentation")
    _require(seg.SegmentationType == "BINARY", "the Segmentation is not BINARY")
    _check_source_references(seg, sources)
    _check_segments(seg, regions)
    held = read_labels(seg, sources, grid)
    if not np.array_equal(held, labels):
        differing = int(np.count_nonzero(held != labels))
        _fail(f"{differing} voxels of the Segmentation differ from the mask")
    return held


def read_labels(seg: Dataset, sources: Sequence[Dataset], grid: Grid) -> Labels:
    """The label map of a BINARY Segmentation on the grid of its sources.

    Raises:
        ResultCheckError: A frame lies on no slice of the grid, names another image (or frame of
            an image) than the one it lies on, or overlaps another; or the Frame of Reference, size
            or pixels do not fit.
    """
    if seg.FrameOfReferenceUID != grid.frame_of_reference_uid:
        _fail("the Frame of Reference is not that of the source")
    if (seg.Rows, seg.Columns) != grid.shape[1:]:
        _fail(f"frames of {seg.Rows} x {seg.Columns} on slices of {grid.shape[1:]}")
    frames = _frames(seg)
    shared = seg.SharedFunctionalGroupsSequence[0]
    _check_plane(shared, grid)
    # Of the images themselves: their gaps may differ in the last digits, the grid's do not.
    positions = np.array([source.ImagePositionPatient for source in sources], float)
    labels = np.zeros(grid.shape, np.int32)
    for pixels, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        index = _slice_of(group, positions)
        if _image_of(group) != _image(sources[index]):
            _fail(f"a frame on slice {index} names another image")
        identification = group.get("SegmentIdentificationSequence") or shared.get(
            "SegmentIdentificationSequence"
        )
        number = int(_only(identification, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        _require(bool(pixels.any()), "a frame is empty")
        _require(not labels[index][pixels].any(), "segments overlap")
        labels[index][pixels] = number
    return labels


def check_sr(
    sr: Dataset, sources: Sequence[Dataset], seg: Dataset | None, labels: Labels, report: Report
) -> None:
    """The report says what was measured, and points to what exists.

    Args:
        sr: As re-read from its bytes.
        sources: `identity.normalised_header` of the image of every slice, in slice order.
        seg: The Segmentation it goes with, re-read; None if nothing was found.
        labels: As read from that Segmentation; all 0 without one.
        report: What it must say, measured anew from these labels.

    Raises:
        ResultCheckError: Anything differs.
    """
    _require(sr.SOPClassUID == Comprehensive3DSRStorage, "no Comprehensive 3D SR")
    _require(_code(sr) == _key(codes.IMAGING_MEASUREMENT_REPORT), "the report has another title")
    _require(_template(sr) == "1500", "the report does not name TID 1500")
    _require(sr.VerificationFlag == "UNVERIFIED", "the report is marked as verified")
    _check_evidence(sr, sources, seg)
    _check_own_scheme(sr, report)
    statements = tuple(
        str(item.TextValue)
        for summary in _named(sr, codes.SUMMARY)
        for item in _named(summary, codes.COMMENT)
    )
    _require(statements == report.statements, "the summary of the report differs")
    frames = [str(i.UID) for i in _items(sr) if _code(i) == _key(codes.FRAME_OF_REFERENCE_UID)]
    expected_frame = str(sources[0].FrameOfReferenceUID)
    _require(frames == [expected_frame], "the report names another Frame of Reference")

    groups = [
        group
        for measurements in _named(sr, codes.IMAGING_MEASUREMENTS)
        for group in _named(measurements, codes.MEASUREMENT_GROUP)
    ]
    by_template = {
        template: [group for group in groups if _template(group) == template]
        for template in (_TOTALS, _VOLUMETRIC, _PLANAR)
    }
    count = len(report.regions)
    found = {template: len(some) for template, some in by_template.items()}
    if found != {_TOTALS: 1, _VOLUMETRIC: count, _PLANAR: count}:
        _fail(f"measurement groups by template {found} for {count} regions")
    _check_totals(by_template[_TOTALS][0], report, sources)
    lies = footprints(labels)
    for measured, volumetric, planar in zip(
        report.regions, by_template[_VOLUMETRIC], by_template[_PLANAR], strict=True
    ):
        assert seg is not None  # noqa: S101  # _check_evidence
        footprint = lies[measured.region.number]
        _check_volumetric(volumetric, measured, sources, seg, footprint)
        _check_planar(planar, measured, sources, footprint)


def check_note(found: Dataset, sources: Sequence[Dataset], note: Note) -> None:
    """The note says why, claims nothing else, and points to images that exist.

    Args:
        found: As re-read from its bytes.
        sources: `identity.normalised_reference` of every image that could be read.
        note: What it must say.

    Raises:
        ResultCheckError: Anything differs.
    """
    _require(found.SOPClassUID == BasicTextSRStorage, "the note is no Basic Text SR")
    _require(_code(found) == _key(codes.NARRATIVE_SUMMARY), "the note has another title")
    _require(found.VerificationFlag == "UNVERIFIED", "the note is marked as verified")
    _check_evidence(found, sources, None)
    statements = tuple(str(item.TextValue) for item in _named(found, codes.COMMENT))
    _require(statements == note.statements, "the sentences of the note differ")
    status = {
        _code(item): _value_code(item)
        for item in found.ContentSequence
        if item.ValueType == "CODE" and item.RelationshipType == "CONTAINS"
    }
    expected = {_key(question): _key(answer) for question, answer in note.status}
    _require(status == expected, "the coded status of the note differs")
    _require(
        all(item.get("ValueType") != "NUM" for item in _items(found)), "the note holds a number"
    )


def check_key_image(image: Dataset, sources: Sequence[Dataset], capture: Capture) -> None:
    """The picture is the one that was drawn, names the slices it shows, and claims no more.

    Args:
        image: As re-read from its bytes.
        sources: `identity.normalised_header` of the image of every slice, in slice order.
        capture: What it must show.

    Raises:
        ResultCheckError: Anything differs.
    """
    _require(image.SOPClassUID == SecondaryCaptureImageStorage, "no Secondary Capture")
    _require(image.BurnedInAnnotation == "YES", "a picture does not say what is burned in")
    for keyword in ("FrameOfReferenceUID", "PixelSpacing", "ImagePositionPatient"):
        _require(keyword not in image, f"a picture has {keyword}: a viewer would measure on it")
    named = _slices_named(image.SourceImageSequence)
    shown = _slices_of(sources[index] for index in capture.slices)
    _require(named == shown, "a picture names other images than it shows")
    form = (image.Rows, image.Columns, image.SamplesPerPixel)
    plain = (image.PhotometricInterpretation, image.BitsAllocated, image.PlanarConfiguration)
    _require(plain == ("RGB", 8, 0), "a picture is not in 8-bit RGB, pixel by pixel")
    size = capture.pixels.size
    drawn = np.frombuffer(image.PixelData[:size], np.uint8)
    same = form == capture.pixels.shape and np.array_equal(drawn, capture.pixels.ravel())
    _require(same, "a picture is not the one that was drawn")


def check_pdf(
    document: Dataset,
    sources: Sequence[Dataset],
    seg: Dataset | None,
    printed: Iterable[Sequence[str]],
) -> None:
    """The document goes with these images and prints these numbers.

    Args:
        document: As re-read from its bytes.
        sources: `identity.normalised_header` of the image of every slice.
        seg: The Segmentation it goes with; None if nothing was found.
        printed: Rows of cells, measured anew; each must stand in the document in one piece.

    Raises:
        ResultCheckError: Anything differs.
    """
    _require(document.SOPClassUID == EncapsulatedPDFStorage, "no encapsulated PDF")
    _require(document.BurnedInAnnotation == "YES", "the PDF does not say that a name is in it")
    _require(document.VerificationFlag == "UNVERIFIED", "the PDF is marked as verified")
    named = {str(one.ReferencedSOPInstanceUID) for one in document.SourceInstanceSequence}
    used = {str(one.SOPInstanceUID) for one in (*sources, *([seg] if seg is not None else []))}
    _require(named == used, "the PDF names other objects than it was made from")
    found = _in_one_piece(printed_strings(document.EncapsulatedDocument))
    for row in printed:
        if _in_one_piece(row) not in found:
            _fail(f"the PDF does not print {' | '.join(row)}")


def check_probability_map(
    parametric_map: Dataset, sources: Sequence[Dataset], grid: Grid, probability: Probability
) -> None:
    """The map lies where its sources lie, and holds exactly these values.

    Args:
        parametric_map: As re-read from its bytes.
        sources: `identity.normalised_header` of the image of every slice, in slice order.
        grid: Of the volume that was analysed.
        probability: On that grid.

    Raises:
        ResultCheckError: Anything differs.
    """
    _require(parametric_map.SOPClassUID == ParametricMapStorage, "no Parametric Map")
    if parametric_map.FrameOfReferenceUID != grid.frame_of_reference_uid:
        _fail("the Frame of Reference of the map is not that of the source")
    _check_source_references(parametric_map, sources)
    form = (int(parametric_map.NumberOfFrames), parametric_map.Rows, parametric_map.Columns)
    _require(form == grid.shape, f"a map of {form} on a grid of {grid.shape}")
    shared = parametric_map.SharedFunctionalGroupsSequence[0]
    _check_plane(shared, grid)
    mapping = _only(shared.get("RealWorldValueMappingSequence"), "RealWorldValueMappingSequence")
    plain = (float(mapping.RealWorldValueIntercept), float(mapping.RealWorldValueSlope))
    _require(plain == (0.0, 1.0), "the values of the map are not probabilities as they are")
    frames = np.frombuffer(parametric_map.FloatPixelData, "<f4").reshape(form)
    positions = np.array([source.ImagePositionPatient for source in sources], float)
    seen = set()
    groups = parametric_map.PerFrameFunctionalGroupsSequence
    for pixels, group in zip(frames, groups, strict=True):
        index = _slice_of(group, positions)
        derivation = _only(group.get("DerivationImageSequence"), "DerivationImageSequence")
        if _slices_named(derivation.SourceImageSequence) != _slices_of([sources[index]]):
            _fail(f"a frame of the map on slice {index} names another image")
        if not np.array_equal(pixels, probability[index]):
            _fail(f"the map differs from the probabilities on slice {index}")
        seen.add(index)
    _require(len(seen) == grid.shape[0], "the map leaves slices out")


def check_predecessor(sr: Dataset, predecessor: DocumentReference | None) -> None:
    """The report names the one that it replaces, and none where there is none.

    Raises:
        ResultCheckError: It does not, or names itself.
    """
    named = [
        DocumentReference(
            str(study.StudyInstanceUID),
            str(series.SeriesInstanceUID),
            str(one.ReferencedSOPClassUID),
            str(one.ReferencedSOPInstanceUID),
        )
        for study in sr.get("PredecessorDocumentsSequence") or ()
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]
    wanted = [] if predecessor is None else [predecessor]
    _require(named == wanted, f"the report names {len(named)} predecessors of {len(wanted)}")
    _require(
        all(
            one.sop_instance_uid != sr.SOPInstanceUID
            and one.study_instance_uid == sr.StudyInstanceUID
            for one in named
        ),
        "the report replaces itself, or one of another study",
    )


# --- Segmentation ------------------------------------------------------------------------------


def _frames(seg: Dataset) -> npt.NDArray[np.bool_]:
    """(frames, rows, columns), unpacked: one bit a pixel, least significant first (PS3.5 8.1.1)."""
    count = int(seg.NumberOfFrames)
    size = count * seg.Rows * seg.Columns
    data: bytes = seg.PixelData
    if len(data) not in ((size + 7) // 8, (size + 7) // 8 + 1):
        _fail(f"{len(data)} bytes of pixels for {count} frames of {seg.Rows} x {seg.Columns}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=size, bitorder="little")
    return bits.astype(bool).reshape(count, seg.Rows, seg.Columns)


def _check_plane(shared: Dataset, grid: Grid) -> None:
    measures = _only(shared.get("PixelMeasuresSequence"), "PixelMeasuresSequence")
    orientation = _only(shared.get("PlaneOrientationSequence"), "PlaneOrientationSequence")
    slice_mm, row_mm, column_mm = grid.spacing_mm
    found = (*measures.PixelSpacing, measures.SpacingBetweenSlices)
    extent = max(grid.shape)
    if not np.allclose(
        np.array(found, float) * extent,
        np.array((row_mm, column_mm, slice_mm)) * extent,
        rtol=0,
        atol=POSITION_TOLERANCE_MM,
    ):
        _fail(f"pixels of {[float(f) for f in found]} mm on a grid of {grid.spacing_mm}")
    directions = np.array(orientation.ImageOrientationPatient, float)
    along_row, along_column = grid.affine[:3, 2] / column_mm, grid.affine[:3, 1] / row_mm
    expected = np.concatenate([along_row, along_column])
    if not np.allclose(directions, expected, rtol=0, atol=DIRECTION_TOLERANCE):
        _fail("the frames are turned against the source")


def _slice_of(group: Dataset, positions: npt.NDArray[np.float64]) -> int:
    plane = _only(group.get("PlanePositionSequence"), "PlanePositionSequence")
    position = np.array(plane.ImagePositionPatient, float)
    offsets_mm = np.linalg.norm(positions - position, axis=1)
    index = int(np.argmin(offsets_mm))
    if offsets_mm[index] > POSITION_TOLERANCE_MM:
        _fail(f"a frame lies {offsets_mm[index]:.3f} mm from the nearest image")
    return index


def _image_of(group: Dataset) -> Image:
    derivation = _only(group.get("DerivationImageSequence"), "DerivationImageSequence")
    image = _only(derivation.get("SourceImageSequence"), "SourceImageSequence")
    return (
        str(image.ReferencedSOPClassUID),
        str(image.ReferencedSOPInstanceUID),
        _integers(image.get("ReferencedFrameNumber")),
    )


def _image(source: Dataset) -> Image:
    number = frame_number(source)
    return (
        str(source.SOPClassUID),
        str(source.SOPInstanceUID),
        () if number is None else (number,),
    )


def _images(sources: Iterable[Dataset]) -> set[Image]:
    """Images with all of their frames that are meant, as one reference gives them."""
    frames: dict[tuple[str, str], list[int]] = {}
    for source in sources:
        sop_class_uid, uid, numbers = _image(source)
        frames.setdefault((sop_class_uid, uid), []).extend(numbers)
    return {(*key, tuple(sorted(numbers))) for key, numbers in frames.items()}


def _check_source_references(seg: Dataset, sources: Sequence[Dataset]) -> None:
    series = _only(seg.get("ReferencedSeriesSequence"), "ReferencedSeriesSequence")
    if series.SeriesInstanceUID != sources[0].SeriesInstanceUID:
        _fail("ReferencedSeriesSequence names another series")
    listed = [str(one.ReferencedSOPInstanceUID) for one in series.ReferencedInstanceSequence]
    analysed = {str(one.SOPInstanceUID) for one in sources}
    if sorted(listed) != sorted(analysed):
        _fail(f"{len(listed)} images are referenced of {len(analysed)} that were analysed")


def _check_segments(seg: Dataset, regions: Sequence[RegionOfInterest]) -> None:
    segments = seg.SegmentSequence
    if [int(s.SegmentNumber) for s in segments] != [r.number for r in regions]:
        _fail(f"{len(segments)} segments for {len(regions)} regions")
    for segment, region in zip(segments, regions, strict=True):
        said = (segment.get("TrackingUID"), segment.get("TrackingID"), segment.get("SegmentLabel"))
        if said != (region.tracking_uid, region.tracking_id, region.label):
            _fail(f"segment {region.number} is labelled or tracked as another region")
        for keyword in ("SegmentAlgorithmName", "RecommendedDisplayCIELabValue"):
            _require(bool(segment.get(keyword)), f"segment {region.number} has no {keyword}")
    if len({region.tracking_uid for region in regions}) != len(regions):
        _fail("two segments share a tracking UID")


# --- report ------------------------------------------------------------------------------------


def _check_evidence(sr: Dataset, sources: Sequence[Dataset], seg: Dataset | None) -> None:
    """Everything referenced exists and is evidence; everything analysed is referenced."""
    known = {str(one.SOPInstanceUID): (one.SOPClassUID, one.SeriesInstanceUID) for one in sources}
    if seg is not None:
        known[str(seg.SOPInstanceUID)] = (seg.SOPClassUID, seg.SeriesInstanceUID)
    listed: dict[str, tuple[str, str]] = {}
    for study in sr.get("CurrentRequestedProcedureEvidenceSequence") or ():
        _require(study.StudyInstanceUID == sr.StudyInstanceUID, "evidence is of another study")
        for series in study.ReferencedSeriesSequence:
            for one in series.ReferencedSOPSequence:
                listed[str(one.ReferencedSOPInstanceUID)] = (
                    one.ReferencedSOPClassUID,
                    series.SeriesInstanceUID,
                )
    if listed != known:
        _fail(f"{len(listed)} objects are evidence of {len(known)} that were used")
    frames: dict[str, set[int]] = {}
    for one in sources:
        frames.setdefault(str(one.SOPInstanceUID), set()).update(_image(one)[2])
    referenced = set()
    for item in _items(sr):
        if item.get("ValueType") == "IMAGE":
            _, uid, numbers, _ = _reference(item)
            referenced.add(uid)
            if not frames.get(uid, set()).issuperset(numbers):
                _fail("the report refers to frames that were not analysed")
    if referenced != known.keys():
        dangling, unused = len(referenced - known.keys()), len(known.keys() - referenced)
        _fail(f"the report refers to {dangling} objects that do not exist and omits {unused}")


def _check_totals(group: Dataset, report: Report, sources: Sequence[Dataset]) -> None:
    _check_tracking(group, report.totals.tracking_uid, report.totals.label)
    _check_quantities(group, report.totals.quantities, "totals")
    for item in group.ContentSequence:
        if item.ValueType == "NUM":
            lines = [one for one in item.ContentSequence if one.ValueType == "SCOORD"]
            _check_line(_only(lines, "SCOORD"), report.totals.extent, sources, "totals")
    answers = {
        _code(item): _value_code(item) for item in group.ContentSequence if item.ValueType == "CODE"
    }
    for question, answer in report.totals.evaluations:
        if answers.get(_key(question)) != _key(answer):
            _fail(f"{question.meaning} is not {answer.meaning}")


def _check_volumetric(
    group: Dataset,
    measured: MeasuredRegion,
    sources: Sequence[Dataset],
    seg: Dataset,
    footprint: Footprint,
) -> None:
    number = measured.region.number
    _check_tracking(group, measured.region.tracking_uid, measured.region.tracking_id)
    _check_quantities(group, measured.quantities, f"region {number}")
    _check_answers(group, measured)
    segments = _named(group, codes.REFERENCED_SEGMENT)
    _, uid, _, numbers = _reference(_only(segments, "Referenced Segment"))
    if (uid, numbers) != (str(seg.SOPInstanceUID), (number,)):
        _fail(f"region {number} is not measured on its segment")
    images = []
    for item in group.ContentSequence:
        if item.ValueType == "IMAGE" and item not in segments:
            sop_class_uid, uid, frames, _ = _reference(item)
            images.append((sop_class_uid, uid, tuple(sorted(frames))))
    if sorted(images) != sorted(_images(sources[index] for index in footprint.slices)):
        _fail(f"region {number} names other images than it lies on")


def _check_answers(group: Dataset, measured: MeasuredRegion) -> None:
    """What it is, where, and every coded answer; nothing else is coded."""
    expected = [(_key(codes.FINDING), _key(measured.region.property_type))]
    if measured.site is not None:
        expected.append((_key(codes.FINDING_SITE), _key(measured.site)))
    expected += [(_key(question), _key(answer)) for question, answer in measured.evaluations]
    found = [
        (_code(item), _value_code(item))
        for item in group.ContentSequence
        if item.ValueType == "CODE"
    ]
    if sorted(found) != sorted(expected):
        _fail(f"region {measured.region.number} is coded as lying elsewhere")


def _check_own_scheme(sr: Dataset, report: Report) -> None:
    """Our codes are declared exactly when they are used."""
    declared = [
        str(item.CodingSchemeDesignator)
        for item in sr.get("CodingSchemeIdentificationSequence") or ()
    ]
    used = any(
        code.scheme_designator == codes.OWN_SCHEME
        for measured in report.regions
        for pair in measured.evaluations
        for code in pair
    )
    _require(declared == [codes.OWN_SCHEME] * used, "coding schemes are declared that differ")


def _check_planar(
    group: Dataset, measured: MeasuredRegion, sources: Sequence[Dataset], footprint: Footprint
) -> None:
    number = measured.region.number
    _check_tracking(group, measured.region.tracking_uid, measured.region.tracking_id)
    _check_quantities(group, (), f"outline {number}")
    said = {_code(item) for item in group.ContentSequence if item.ValueType == "CODE"}
    _require(said == {_key(codes.FINDING)}, f"outline {number} says more than its finding")
    line = _only(_named(group, codes.IMAGE_REGION), "Image Region")
    _check_line(line, footprint, sources, str(number))


def _check_line(line: Dataset, footprint: Footprint, sources: Sequence[Dataset], what: str) -> None:
    *image, _ = _reference(_only(line.get("ContentSequence"), "image of an outline"))
    if tuple(image) != _image(sources[footprint.largest_slice]):
        _fail(f"outline {what} is drawn on another slice")
    points = np.array(line.GraphicData, float).reshape(-1, 2)
    if line.GraphicType != "POLYLINE" or not np.array_equal(points, footprint.outline):
        _fail(f"outline {what} is not that of its region")


def _check_tracking(group: Dataset, uid: str, identifier: str) -> None:
    uids = [str(item.UID) for item in _named(group, codes.TRACKING_UNIQUE_IDENTIFIER)]
    names = [str(item.TextValue) for item in _named(group, codes.TRACKING_IDENTIFIER)]
    _require((uids, names) == ([uid], [identifier]), f"{identifier} is tracked as another region")


def _check_quantities(group: Dataset, expected: Sequence[Quantity], what: str) -> None:
    found = {}
    for item in group.ContentSequence:
        if item.ValueType != "NUM":
            continue
        measured = _only(item.MeasuredValueSequence, "MeasuredValueSequence")
        unit = _first_code(measured.MeasurementUnitsCodeSequence)
        derivation = next(
            (
                _value_code(one)
                for one in item.get("ContentSequence", ())
                if one.ValueType == "CODE"
            ),
            ("", ""),
        )
        key = (_code(item), derivation)
        _require(key not in found, f"a measurement of {what} is given twice")
        found[key] = (float(measured.NumericValue), unit)
    wanted = {
        (_key(q.name), _key(q.derivation) if q.derivation else ("", "")): (q.value, _key(q.unit))
        for q in expected
    }
    if found.keys() != wanted.keys():
        _fail(f"{len(found)} measurements of {what}, {len(wanted)} expected")
    for key, (value, unit_code) in wanted.items():
        if found[key][1] != unit_code or not np.isclose(found[key][0], value, rtol=_ROUND_TRIP):
            _fail(f"{key[0][1]} of {what} is {found[key][0]}, measured anew {value}")


# --- key images --------------------------------------------------------------------------------


def _slices_of(sources: Iterable[Dataset]) -> set[tuple[str, str]]:
    """Object and frame of every slice; the frame is "" where an object holds no other."""
    return {(str(one.SOPInstanceUID), str(one.get("ReferencedFrameNumber", ""))) for one in sources}


def _slices_named(items: Iterable[Dataset]) -> set[tuple[str, str]]:
    named = set()
    for item in items:
        numbers = item.get("ReferencedFrameNumber", "")
        several = [numbers] if isinstance(numbers, int | str) else numbers
        named |= {(str(item.ReferencedSOPInstanceUID), str(number)) for number in several}
    return named


# --- PDF ---------------------------------------------------------------------------------------


def printed_strings(pdf: bytes) -> list[str]:
    """What a PDF of ours prints, string by string: its ASCII letters, "?" for any other.

    Not a reader of any PDF: it knows streams that are deflated or plain, and fonts whose ASCII
    letters stand under their own codes. Independent of what wrote the document.

    Source:
        PDF 32000-1 7.3.4.2 (literal strings), 9.4.3 (Tj).
    """
    _require(pdf.startswith(b"%PDF-"), "the document is no PDF")
    found = []
    for match in _STREAM.finditer(pdf):
        try:
            stream = zlib.decompressobj().decompress(match[1])  # a line end may follow
        except zlib.error:
            continue
        if b" Tj" in stream:
            found += [_literal(text[1]) for text in _SHOWN.finditer(stream)]
    return found


def _literal(string: bytes) -> str:
    plain = _ESCAPE.sub(
        lambda match: bytes([int(match[1], 8) & 0xFF]) if match[1][:1].isdigit() else match[1],
        string,
    )
    return "".join(chr(code) if 32 <= code < 127 else "?" for code in plain)


def _in_one_piece(strings: Iterable[str]) -> str:
    """Strings as a line of words: a cell that was broken at a space is whole again."""
    return f" {' '.join(' '.join(strings).split())} "


# --- reading -----------------------------------------------------------------------------------


def _uids(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Every UID in an object, at any depth, as it stands in the file."""
    for tag in list(dataset.keys()):
        element = dataset.get_item(tag)  # not converted yet: a report has ten thousand elements
        if element.VR == VR.SQ:
            for item in dataset[tag].value:
                yield from _uids(item)
        elif element.VR == VR.UI:
            value = element.value or ""
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
            for uid in filter(None, text.rstrip("\0").split("\\")):
                yield keyword_for_tag(tag), uid


def _items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence", ()):
        yield from _items(child)


def _named(item: Dataset, code: Code) -> list[Dataset]:
    return [child for child in item.get("ContentSequence", ()) if _code(child) == _key(code)]


def _code(item: Dataset) -> tuple[str, str]:
    return _first_code(item.get("ConceptNameCodeSequence"))


def _value_code(item: Dataset) -> tuple[str, str]:
    return _first_code(item.get("ConceptCodeSequence"))


def _first_code(sequence: Sequence[Dataset] | None) -> tuple[str, str]:
    if not sequence:
        return "", ""
    return str(sequence[0].CodingSchemeDesignator), str(sequence[0].CodeValue)


def _key(code: Code) -> tuple[str, str]:
    return code.scheme_designator, code.value


def _template(item: Dataset) -> str:
    templates = item.get("ContentTemplateSequence")
    return str(templates[0].TemplateIdentifier) if templates else ""


def _reference(item: Dataset) -> tuple[str, str, tuple[int, ...], tuple[int, ...]]:
    """SOP Class, SOP Instance, frames and segments that a content item points to."""
    reference = _only(item.get("ReferencedSOPSequence"), "ReferencedSOPSequence")
    return (
        str(reference.ReferencedSOPClassUID),
        str(reference.ReferencedSOPInstanceUID),
        _integers(reference.get("ReferencedFrameNumber")),
        _integers(reference.get("ReferencedSegmentNumber")),
    )


def _integers(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    several = [value] if isinstance(value, int | str) else value
    return tuple(int(number) for number in several)  # type: ignore[attr-defined]  # pydicom's lists


def _only(sequence: Sequence[Dataset] | None, name: str) -> Dataset:
    if sequence is None or len(sequence) != 1:
        _fail(f"{name} has {len(sequence or ())} items instead of one")
    return sequence[0]


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        _fail(otherwise)


def _fail(message: str) -> NoReturn:
    raise ResultCheckError(message)
