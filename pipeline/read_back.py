"""Results as another application meets them: files from an archive, checked against their images.

Nothing of the analysis is at hand here, only what was sent and what came back. Voxels are unpacked
and numbers measured anew, and then must be those of the report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from scipy import ndimage

from dicom import codes
from dicom.checks import check_header, printed_strings, read_labels
from dicom.errors import ResultCheckError
from dicom.identity import normalised_header
from dicom.part10 import read_part10
from dicom.seg import Labels
from dicom.series import Series
from dicom.volume import Volume, read_volume, slice_headers
from pipeline.findings import long_axis_mm
from pipeline.morphology import Mask
from pipeline.results import LESIONS_IN_PDF

VOLUME_TOLERANCE_ML = 1e-5  # the report rounds to 0.01 mm3
LENGTH_TOLERANCE_MM = 0.05 + 1e-9  # and to 0.1 mm

Numbers = dict[tuple[str, str], float]
"""(scheme, value) of a measurement's code -> its value."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadBack:
    """A result that agrees with its images and with itself."""

    volume: Volume
    labels: Labels
    """On the grid of the volume; all 0 when there is no Segmentation, for no lesion was found."""
    volumes_ml: tuple[float, ...]
    """Of lesion 1, 2, ...: measured anew from the labels."""
    pictures: tuple[npt.NDArray[np.uint8], ...]
    """The key images, (rows, columns, 3), in their order."""
    pdf: bytes | None
    """The document, if the result has one; it prints these volumes."""


def read_back(
    series: Series, contents: Sequence[bytes], stored: Sequence[bytes], held: Collection[str]
) -> ReadBack:
    """Check the objects of one result.

    Args:
        series: The images that were analysed.
        contents: The files of the result, from the archive.
        stored: The same files as the node made and keeps them.
        held: Every SOP Instance UID in the archive.

    Raises:
        ResultCheckError: Identity, references, geometry, voxels or numbers disagree.
        StudyError: The images cannot be read as a volume.
    """
    volume = read_volume(series)
    sources = [normalised_header(header) for header in slice_headers(series, volume)]
    objects = [read_part10(content) for content in contents]
    _check_as_sent(objects, [read_part10(content) for content in stored])
    for one in objects:
        check_header(one, sources)
        _check_references(one, held)
    seg = _the_only(objects, SegmentationStorage)
    sr = _the_only(objects, Comprehensive3DSRStorage)
    if sr is None:
        raise ResultCheckError("there is no report")
    labels = np.zeros(volume.grid.shape, np.int32)
    if seg is not None:
        labels = read_labels(seg, sources, volume.grid)
    volumes_ml = _check_numbers(sr, labels, volume)
    document = _the_only(objects, EncapsulatedPDFStorage)
    pdf = None if document is None else _check_document(document, volumes_ml)
    return ReadBack(volume, labels, volumes_ml, _pictures(objects, sources), pdf)


def dice(one: Mask, other: Mask) -> float:
    """Dice coefficient; 1 for two empty masks, which agree."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2.0 * np.count_nonzero(one & other) / total if total else 1.0


def _check_as_sent(found: Sequence[Dataset], sent: Sequence[Dataset]) -> None:
    by_uid = {str(one.SOPInstanceUID): one for one in sent}
    if sorted(str(one.SOPInstanceUID) for one in found) != sorted(by_uid):
        raise ResultCheckError(f"{len(found)} objects in the archive, {len(sent)} were made")
    for one in found:
        if one != by_uid[str(one.SOPInstanceUID)]:
            raise ResultCheckError(f"the archive changed the {one.get('Modality', 'object')}")


def _check_references(result: Dataset, held: Collection[str]) -> None:
    missing = {uid for uid in _referenced(result) if uid not in held}
    if missing:
        raise ResultCheckError(f"{len(missing)} referenced objects are not in the archive")


def _referenced(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)
        elif element.VR == "SQ":
            for item in element.value:
                yield from _referenced(item)


def _the_only(objects: Sequence[Dataset], sop_class_uid: str) -> Dataset | None:
    found = [one for one in objects if one.SOPClassUID == sop_class_uid]
    if len(found) > 1:
        raise ResultCheckError(f"{len(found)} objects of one kind in one result")
    return found[0] if found else None


# Pictures and document ---------------------------------------------------------------------------


def _pictures(
    objects: Sequence[Dataset], sources: Sequence[Dataset]
) -> tuple[npt.NDArray[np.uint8], ...]:
    images = [one for one in objects if one.SOPClassUID == SecondaryCaptureImageStorage]
    known = {str(one.SOPInstanceUID) for one in sources}
    for image in images:
        named = {str(one.ReferencedSOPInstanceUID) for one in image.SourceImageSequence}
        if not named or not named <= known:
            raise ResultCheckError("a key image names images that were not analysed")
    in_order = sorted(images, key=lambda image: int(image.InstanceNumber))
    return tuple(image.pixel_array for image in in_order)


def _check_document(document: Dataset, volumes_ml: Sequence[float]) -> bytes:
    """The PDF, once the volumes that were measured anew were found printed in it."""
    pdf: bytes = document.EncapsulatedDocument
    printed = printed_strings(pdf)
    expected = [f"{sum(volumes_ml):.2f} ml", str(len(volumes_ml))]
    rows = set(zip(printed, printed[2:], strict=False))  # number, region, volume
    missing = [one for one in expected if one not in printed]
    missing += [
        f"lesion {number}"
        for number, volume_ml in enumerate(volumes_ml[:LESIONS_IN_PDF], start=1)
        if (str(number), f"{volume_ml:.3f}") not in rows
    ]
    if missing:
        raise ResultCheckError(f"the PDF does not print {', '.join(missing[:3])}")
    return pdf


# The numbers of the report -----------------------------------------------------------------------


def _check_numbers(sr: Dataset, labels: Labels, volume: Volume) -> tuple[float, ...]:
    """Volumes and lengths of the report, against the voxels. Returns the volumes."""
    grid = volume.grid
    boxes = ndimage.find_objects(labels)
    totals, lesions = _groups(sr)
    if sorted(lesions) != list(range(1, len(boxes) + 1)) or None in boxes:
        raise ResultCheckError(
            f"the report measures {len(lesions)} lesions, the mask holds {len(boxes)}"
        )
    volumes = []
    for number, box in enumerate(boxes, start=1):
        mask = labels[box] == number
        volumes.append(int(mask.sum()) * grid.voxel_volume_ml)
        longest = max(long_axis_mm(area, grid.spacing_mm[1:]) for area in mask)
        what = f"lesion {number}"
        _agree(lesions[number], codes.VOLUME, volumes[-1], VOLUME_TOLERANCE_ML, what)
        _agree(lesions[number], codes.LONG_AXIS, longest, LENGTH_TOLERANCE_MM, what)
    _agree(totals, codes.NUMBER_OF_LESIONS, len(volumes), 0, "all lesions")
    _agree(totals, codes.VOLUME, sum(volumes), VOLUME_TOLERANCE_ML, "all lesions")
    return tuple(volumes)


def _agree(numbers: Numbers, code: Code, expected: float, within: float, what: str) -> None:
    found = numbers.get((code.scheme_designator, code.value))
    if found is None or abs(found - expected) > within:
        raise ResultCheckError(
            f"{code.meaning} of {what} is {found} in the report, {expected:.6g} by its voxels"
        )


def _groups(sr: Dataset) -> tuple[Numbers, dict[int, Numbers]]:
    """The measurements of all lesions together, and those of each by its segment number."""
    totals: Numbers = {}
    lesions: dict[int, Numbers] = {}
    for container in _children(sr, codes.IMAGING_MEASUREMENTS):
        for group in _children(container, codes.MEASUREMENT_GROUP):
            numbers = _numbers(group)
            segments = _children(group, codes.REFERENCED_SEGMENT)
            if segments:
                number = segments[0].ReferencedSOPSequence[0].ReferencedSegmentNumber
                lesions[int(number)] = numbers
            elif numbers:
                totals = numbers
    return totals, lesions


def _numbers(group: Dataset) -> Numbers:
    return {
        _code(item): float(item.MeasuredValueSequence[0].NumericValue)
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    }


def _children(item: Dataset, code: Code) -> list[Dataset]:
    wanted = (code.scheme_designator, code.value)
    return [child for child in item.get("ContentSequence", ()) if _code(child) == wanted]


def _code(item: Dataset) -> tuple[str, str]:
    name = item.get("ConceptNameCodeSequence")
    return (str(name[0].CodingSchemeDesignator), str(name[0].CodeValue)) if name else ("", "")
