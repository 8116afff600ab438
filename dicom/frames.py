"""Frames: the slices of a series, whether each is an object of its own or many share one.

A classic MR image is one slice. An Enhanced MR object holds a stack, and says of each slice what it
is in functional groups, shared by all or given per frame. Here both become the same: a frame is its
object, its number in it, and a flat header in the words of a classic image. Whoever reads headers
reads those, and needs no word on Enhanced MR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage

from dicom.attributes import has_value, items, number, numbers, text, values
from dicom.errors import InconsistentSeriesError
from dicom.series import Instance, Series

MULTI_FRAME_CLASSES: Final = (EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)

FRAME_NUMBER: Final = "ReferencedFrameNumber"
"""Where a flat header holds the number of its frame: as a reference to it must give it."""

_GROUPS: Final = (
    # What a Legacy Converted object kept of its classic images; the others know better.
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "FrameContentSequence",
    "FrameAnatomySequence",
    "TemporalPositionSequence",
    "PixelValueTransformationSequence",
    "MRImageFrameTypeSequence",
    "MRTimingAndRelatedParametersSequence",
    "MREchoSequence",
    "MRModifierSequence",
    "MRDiffusionSequence",
    "MRVelocityEncodingSequence",
    "CardiacSynchronizationSequence",
)
"""Functional groups that say what a slice is (PS3.3 A.36.2.5, A.71). Not those that hold references
to other objects: their UIDs would be taken for the frame's own."""
_OF_THE_OBJECT: Final = frozenset(
    Tag(keyword)
    for keyword in (
        "SpecificCharacterSet",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "PatientName",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "SamplesPerPixel",
        "PhotometricInterpretation",
    )
)
"""What no functional group may change, whatever it says."""
_NOT_OF_A_FRAME: Final = tuple(
    Tag(keyword)
    for keyword in (
        "NumberOfFrames",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "DimensionIndexSequence",
        "DimensionOrganizationSequence",
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One slice as it was stored."""

    instance: Instance
    number: int | None
    """From 1, in its object; None where the object holds no other, and needs no number."""
    header: Dataset
    """In the words of a classic image. Shared: nobody assigns on it."""

    @property
    def sop_instance_uid(self) -> str:
        """Of the object it lies in."""
        return self.instance.sop_instance_uid


def is_multi_frame(header: Dataset) -> bool:
    """Is it an object whose slices are told in functional groups?"""
    return text(header, "SOPClassUID") in MULTI_FRAME_CLASSES


def frame_count(header: Dataset) -> int:
    """Frames that the header declares; 1 where it does not say."""
    return max(1, int(number(header, "NumberOfFrames") or 1))


def frames_of(series: Series) -> tuple[Frame, ...]:
    """Every slice of a series, in the order of its objects and their frames.

    Raises:
        InconsistentSeriesError: An object declares another number of frames than it describes.
    """
    for instance in series.instances:
        described = len(items(instance.header, "PerFrameFunctionalGroupsSequence"))
        declared = frame_count(instance.header)
        if is_multi_frame(instance.header) and declared > 1 and described != declared:
            raise InconsistentSeriesError(
                f"an object of {declared} frames describes {described} of them"
            )
    return tuple(frame for instance in series.instances for frame in _frames_in(instance))


def as_classic(series: Series) -> Series:
    """The series as if every slice were an object of its own, for rules that look at headers.

    Never refuses: where an object is inconsistent, it has the slices that it describes. Not for
    `stack_grid`, which needs to know whose frames they are.
    """
    if not any(is_multi_frame(instance.header) for instance in series.instances):
        return series
    flat = tuple(
        Instance(instance.path, instance.sop_instance_uid, frame.header)
        for instance in series.instances
        for frame in _frames_in(instance)
    )
    return Series(series.study_instance_uid, series.series_instance_uid, flat, series.unreadable)


def frame_number(header: Dataset) -> int | None:
    """Number of the frame that a flat or a normalised header describes; None: a whole object."""
    found = number(header, FRAME_NUMBER)
    return None if found is None else int(found)


def _frames_in(instance: Instance) -> Iterator[Frame]:
    header = instance.header
    if not is_multi_frame(header):
        yield Frame(instance, None, header)
        return
    tags = list(header.keys())  # iterating a dataset would convert what may not be convertible
    base = {tag: header.get_item(tag) for tag in tags if tag not in _NOT_OF_A_FRAME}
    shared = next(iter(items(header, "SharedFunctionalGroupsSequence")), Dataset())
    per_frame = items(header, "PerFrameFunctionalGroupsSequence") or (Dataset(),)
    for index, own in enumerate(per_frame, start=1):
        flat = Dataset(dict(base))
        flat.set_original_encoding(None, None, header.original_character_set)
        _spread(shared, flat)
        _spread(own, flat)
        _say_it_as_classic_images_do(flat)
        single = len(per_frame) == 1
        if not single:
            _set(flat, FRAME_NUMBER, index)
        yield Frame(instance, None if single else index, flat)


def _spread(groups: Dataset, flat: Dataset) -> None:
    for keyword in _GROUPS:
        for item in items(groups, keyword)[:1]:
            for tag in list(item.keys()):
                if not tag.is_private and tag not in _OF_THE_OBJECT:
                    flat[tag] = item.get_item(tag)


def _say_it_as_classic_images_do(flat: Dataset) -> None:
    """Attributes that Enhanced MR renamed (PS3.3 C.8.13), under the names of the MR Image IOD."""
    _set(flat, "ImageType", _image_type(flat))
    for classic, enhanced in (
        ("EchoTime", "EffectiveEchoTime"),
        ("InversionTime", "InversionTimes"),
        ("SequenceName", "PulseSequenceName"),
    ):
        if not has_value(flat, classic) and has_value(flat, enhanced):
            found = numbers(flat, enhanced)
            _set(flat, classic, found[0] if found else text(flat, enhanced))
    if (acquisition := number(flat, "FrameAcquisitionNumber")) is not None:
        _set(flat, "AcquisitionNumber", int(acquisition))
    sequence = list(_scanning_sequence(flat))
    if sequence and not has_value(flat, "ScanningSequence"):
        _set(flat, "ScanningSequence", sequence)
    for keyword in ("FrameAcquisitionDateTime", "AcquisitionDateTime"):
        found_time = text(flat, keyword)
        if len(found_time) >= 8 and not has_value(flat, "AcquisitionDate"):
            _set(flat, "AcquisitionDate", found_time[:8])
            # Without the offset from UTC: other dates of an image are local too.
            _set(flat, "AcquisitionTime", found_time[8:].split("+")[0].split("-")[0])
    for region in items(flat, "AnatomicRegionSequence")[:1]:
        if not has_value(flat, "BodyPartExamined"):
            _set(flat, "BodyPartExamined", text(region, "CodeMeaning").upper()[:16])
    for agent in items(flat, "ContrastBolusAgentSequence")[:1]:
        if not has_value(flat, "ContrastBolusAgent"):
            _set(flat, "ContrastBolusAgent", text(agent, "CodeMeaning")[:64])


def _image_type(flat: Dataset) -> list[str]:
    """With what Enhanced MR says elsewhere and a classic image in its third and later values."""
    found = list(values(flat, "FrameType") or values(flat, "ImageType"))
    component = text(flat, "ComplexImageComponent").upper()
    if len(found) > 2 and component not in ("", "MAGNITUDE"):
        found[2] = component
    technique = text(flat, "VolumeBasedCalculationTechnique").upper()
    if found and technique not in ("", "NONE"):
        found.append(technique)
    return found


def _scanning_sequence(flat: Dataset) -> Iterator[str]:
    pulse_echo = text(flat, "EchoPulseSequence").upper()
    if pulse_echo in ("SPIN", "BOTH"):
        yield "SE"
    if pulse_echo in ("GRADIENT", "BOTH"):
        yield "GR"
    if text(flat, "InversionRecovery").upper() == "YES":
        yield "IR"
    if text(flat, "EchoPlanarPulseSequence").upper() == "YES":
        yield "EP"


def _set(flat: Dataset, keyword: str, value: object) -> None:
    tag = Tag(keyword)
    flat.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE))
