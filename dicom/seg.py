"""A DICOM Segmentation of regions of interest: BINARY, one segment per region.

BINARY, since viewers read nothing else alike: OHIF 3.13 refuses FRACTIONAL and paints the first
segment of a LABELMAP black.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, MRImageStorage
from pydicom.valuerep import DS

from dicom import codes
from dicom.errors import ResultCheckError
from dicom.frames import FRAME_NUMBER, frame_number, is_multi_frame
from dicom.identity import MANUFACTURER, UTF_8
from dicom.part10 import part10_bytes
from dicom.uids import result_uid
from dicom.volume import Grid

Labels = npt.NDArray[np.int32]
"""(slices, rows, columns) on the source grid: 0 background, else the number of a region."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What drew the regions."""

    name: str
    version: str
    parameters: tuple[tuple[str, str], ...]
    """Name and value of all that a reader needs to get the same result again."""
    family: Code = codes.ARTIFICIAL_INTELLIGENCE


@dataclass(frozen=True, slots=True)
class RegionOfInterest:
    """One region of a label map, and what it is."""

    number: int
    """Its value in the label map, and its SegmentNumber: 1, 2, 3 without a gap."""
    label: str
    tracking_uid: str
    """Also in the report: it says that both speak of one region."""
    category: Code
    property_type: Code
    colour_cielab: tuple[float, float, float]

    @property
    def tracking_id(self) -> str:
        """For people; the UID is for programs."""
        return self.label


@dataclass(frozen=True, slots=True)
class Equipment:
    """What made an object, as the General Equipment Module says it."""

    model_name: str
    serial_number: str
    software_versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ObjectIdentity:
    """Which object this is among the results of a series."""

    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    series_description: str
    date: str
    time: str
    equipment: Equipment
    instance_number: int = 1

    def for_highdicom(self) -> dict[str, Any]:
        """The arguments that each of its constructors takes; dates: `dated_bytes`."""
        return {
            "series_instance_uid": self.series_instance_uid,
            "series_number": self.series_number,
            "series_description": self.series_description,
            "sop_instance_uid": self.sop_instance_uid,
            "instance_number": self.instance_number,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.equipment.model_name,
            "software_versions": self.equipment.software_versions,
            "device_serial_number": self.equipment.serial_number,
            "specific_character_set": UTF_8,
        }


@dataclass(frozen=True, slots=True)
class Content:
    """What the Segmentation as a whole says of itself."""

    label: str
    """CS, 16 characters: what many viewers list."""
    description: str
    """LO, 64 characters."""
    algorithm: Algorithm
    dimension_organization_uid: str


def build_seg(
    sources: Sequence[Dataset],
    labels: Labels,
    grid: Grid,
    regions: Sequence[RegionOfInterest],
    content: Content,
    identity: ObjectIdentity,
) -> bytes:
    """A Segmentation that lies on its source images, slice by slice, as a file.

    Args:
        sources: `identity.normalised_header` of the image of every slice, in slice order. A slice
            of an Enhanced object is referenced by its frame number.
        labels: On the grid of these images; holds the number of every region, and no other.
        grid: Of the labels.
        regions: In order of their numbers.
        content: Label, description and algorithm.
        identity: UIDs, series and dates.

    Returns:
        The bytes, and not highdicom's object, which shares elements with `sources`. Only slices
        on which a region lies have frames, and every frame names the image it lies on: OHIF paints
        one that does not on a wrong slice, silently.

    Raises:
        ResultCheckError: Labels and regions, or labels and sources, do not belong together.

    Source:
        PS3.3 A.51 (Segmentation IOD), C.8.20.
    """
    _check_regions(sources, labels, grid, regions)
    with building():
        built = hd.seg.Segmentation(
            source_images=[placed(source, grid) for source in sources],
            pixel_array=labels.astype(np.uint16),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(region, content.algorithm) for region in regions],
            **identity.for_highdicom(),
            content_label=content.label,
            content_description=content.description,
            omit_empty_frames=True,
        )
        # highdicom draws a random one.
        organization = UID(content.dimension_organization_uid)
        for item in (*built.DimensionOrganizationSequence, *built.DimensionIndexSequence):
            item.DimensionOrganizationUID = organization
        name_the_real_images(built, sources)
        return dated_bytes(built, identity)


@contextmanager
def building() -> Iterator[None]:
    """While highdicom builds: what a source's values break is not ours to judge, nor to log.

    pydicom warns of such values and logs them, and highdicom logs a patient's name that has no
    caret. Logs name no patient.
    """
    logger = logging.getLogger("highdicom.base")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def dated_bytes(built: Dataset, identity: ObjectIdentity) -> bytes:
    """An object that highdicom just built, with our dates instead of the clock's, as a file."""
    # None of these is shared with a source: `identity.normalised_header` takes none of them over.
    built.SeriesDate = built.ContentDate = identity.date
    built.SeriesTime = built.ContentTime = identity.time
    del built.InstanceCreationDate, built.InstanceCreationTime
    if "ContributingEquipmentSequence" in built:  # highdicom's own entry, with the clock in it
        del built.ContributingEquipmentSequence
    return part10_bytes(built)


def placed(source: Dataset, grid: Grid) -> Dataset:
    """A source image as highdicom is to see it: where it is, but on the one grid of its volume.

    `read_volume` lets direction cosines differ in their last digits, highdicom does not. And the
    thickness of a slab of the segmentation is the distance of its slices: that of the images may
    be less, and no volume must be computed from it.
    """
    slice_mm, row_mm, column_mm = grid.spacing_mm
    along_row, along_column = grid.affine[:3, 2] / column_mm, grid.affine[:3, 1] / row_mm
    placed = copy.deepcopy(source)
    if is_multi_frame(source):
        placed.SOPClassUID = MRImageStorage
        placed.SOPInstanceUID = _stand_in(source)
    placed.ImageOrientationPatient = [DS(v, auto_format=True) for v in (*along_row, *along_column)]
    placed.PixelSpacing = [DS(v, auto_format=True) for v in (row_mm, column_mm)]
    placed.SliceThickness = DS(slice_mm, auto_format=True)
    return placed


def _stand_in(source: Dataset) -> str:
    """UID that a frame has while highdicom builds, as if it were an image of its own.

    highdicom takes one Enhanced object, all of its frames, in their order, and only if orientation
    and pixel measures are shared functional groups. What hospitals send is more varied: several
    objects a series, frames from the vertex down. So it gets classic images, one per slice, in
    slice order, and `name_the_real_images` puts the names right.
    """
    return result_uid("frame", str(source.SOPInstanceUID), str(frame_number(source)))


def name_the_real_images(built: Dataset, sources: Sequence[Dataset]) -> None:
    """Name objects and frames where highdicom was shown a stand-in image for each frame."""
    if not is_multi_frame(sources[0]):
        return
    real = {_stand_in(source): source for source in sources}
    # By identity: the frames of several segments on one slice share one item in highdicom.
    images = {
        id(image): image
        for group in built.PerFrameFunctionalGroupsSequence
        for image in group.DerivationImageSequence[0].SourceImageSequence
    }
    for image in images.values():
        source = real[str(image.ReferencedSOPInstanceUID)]
        image.ReferencedSOPClassUID = source.SOPClassUID
        image.ReferencedSOPInstanceUID = source.SOPInstanceUID
        if (number := frame_number(source)) is not None:
            setattr(image, FRAME_NUMBER, number)
    objects = {str(source.SOPInstanceUID): str(source.SOPClassUID) for source in sources}
    built.SourceImageSequence = [_reference(uid, kind) for uid, kind in objects.items()]
    (series,) = built.ReferencedSeriesSequence
    series.ReferencedInstanceSequence = [_reference(uid, kind) for uid, kind in objects.items()]


def _reference(sop_instance_uid: str, sop_class_uid: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = sop_class_uid
    reference.ReferencedSOPInstanceUID = sop_instance_uid
    return reference


def _describe(region: RegionOfInterest, algorithm: Algorithm) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=region.number,
        segment_label=region.label,
        segmented_property_category=region.category,
        segmented_property_type=region.property_type,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name,
            family=algorithm.family,
            version=algorithm.version,
            source=MANUFACTURER,
            parameters=dict(algorithm.parameters),
        ),
        tracking_uid=region.tracking_uid,
        tracking_id=region.tracking_id,
        display_color=hd.color.CIELabColor(*region.colour_cielab),
    )


def _check_regions(
    sources: Sequence[Dataset], labels: Labels, grid: Grid, regions: Sequence[RegionOfInterest]
) -> None:
    if labels.shape != grid.shape:
        raise ResultCheckError(f"labels of shape {labels.shape} on a grid of {grid.shape}")
    if len(sources) != grid.shape[0]:
        raise ResultCheckError(f"{len(sources)} source images for {grid.shape[0]} slices")
    if not regions:
        raise ResultCheckError("a Segmentation of nothing: it needs a segment")
    numbers = [region.number for region in regions]
    present = np.unique(labels)
    if numbers != list(range(1, len(regions) + 1)) or present[present != 0].tolist() != numbers:
        raise ResultCheckError(
            f"regions {numbers[:5]}... and labels {present.tolist()[:6]}... differ"
        )
