"""What objects that we write element by element say of patient, study, series and equipment.

highdicom writes these for the Segmentation, the report and the probability map. Its Secondary
Capture takes the geometry of the source along, which a picture with writing around it does not
have, and it has no encapsulated PDF.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from pydicom.dataset import Dataset

from dicom.identity import DESCRIPTION, IDENTITY, MANUFACTURER, UTF_8
from dicom.seg import ObjectIdentity


def result_header(source: Dataset, identity: ObjectIdentity, sop_class_uid: str) -> Dataset:
    """A dataset without content that shares nothing with the image it goes with.

    Args:
        source: `identity.normalised_header` of any image of the series.
        identity: UIDs, series and dates.
        sop_class_uid: Of what it becomes.
    """
    header = Dataset()
    header.SpecificCharacterSet = UTF_8
    for keyword in (*IDENTITY, *DESCRIPTION):
        if keyword in source:
            header.add(copy.deepcopy(source[keyword]))
    header.SOPClassUID = sop_class_uid
    header.SOPInstanceUID = identity.sop_instance_uid
    header.SeriesInstanceUID = identity.series_instance_uid
    header.SeriesNumber = identity.series_number
    header.SeriesDescription = identity.series_description
    header.SeriesDate = header.ContentDate = identity.date
    header.SeriesTime = header.ContentTime = identity.time
    header.InstanceNumber = identity.instance_number
    header.Manufacturer = MANUFACTURER
    header.ManufacturerModelName = identity.equipment.model_name
    header.DeviceSerialNumber = identity.equipment.serial_number
    header.SoftwareVersions = list(identity.equipment.software_versions)
    return header


def object_references(objects: Iterable[Dataset]) -> list[Dataset]:
    """Items that name objects, each once, in the order given."""
    items: dict[str, Dataset] = {}
    for one in objects:
        item = Dataset()
        item.ReferencedSOPClassUID = one.SOPClassUID
        item.ReferencedSOPInstanceUID = one.SOPInstanceUID
        items.setdefault(str(one.SOPInstanceUID), item)
    return list(items.values())


def image_references(sources: Sequence[Dataset]) -> list[Dataset]:
    """The same for slices: where one is a frame of an object, its number is named too.

    Args:
        sources: `identity.normalised_header` of the slices.
    """
    items = object_references(sources)
    for item in items:
        numbers = [
            int(source.ReferencedFrameNumber)
            for source in sources
            if source.SOPInstanceUID == item.ReferencedSOPInstanceUID
            and source.get("ReferencedFrameNumber") is not None
        ]
        if numbers:
            item.ReferencedFrameNumber = numbers
    return items
