"""The same slices as Enhanced MR objects, as several vendors write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from dicom.series import Series, read_series

Made = Any  # tests/conftest.py, FlairSeries
Style = Literal["shared", "per-frame"]
"""Philips and Hyperfine share what frames have in common; Siemens XA repeats it in every frame."""

_TOP = (
    "SpecificCharacterSet", "StudyDate", "SeriesDate", "ContentDate", "StudyTime", "SeriesTime",
    "ContentTime", "AccessionNumber", "Modality", "Manufacturer", "ManufacturerModelName",
    "ReferringPhysicianName", "StudyDescription", "SeriesDescription", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyID", "SeriesNumber", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition",
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "MagneticFieldStrength", "MRAcquisitionType",
)  # fmt: skip


def item(**attributes: object) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def write_enhanced(
    made: Made,
    folder: Path,
    *,
    style: Style = "shared",
    order: Sequence[int] | None = None,
    objects: int = 1,
    repeats: Sequence[Mapping[str, Mapping[str, object]]] = ({},),
    rescale: Mapping[int, tuple[float, float]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    leave_out: Sequence[str] = (),
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> Series:
    """Write the slices of a classic series as Enhanced MR.

    Args:
        made: The classic series (`make_flair_series`), whole.
        folder: Where to.
        style: Where what all frames have in common stands.
        order: Slice of frame 1, 2, ...; by default slice order.
        objects: Into how many objects the frames are dealt, in turn.
        repeats: For every repeat of the stack what its frames add: {group: {keyword: value}}.
        rescale: {slice: (slope, intercept)}.
        overrides: Of the object; None removes the attribute.
        leave_out: Functional groups.
        transfer_syntax_uid: Compressed with pydicom's encoders.
    """
    folder.mkdir(parents=True)
    by_uid = {image.SOPInstanceUID: image for image in map(dcmread, made.paths)}
    slices = [by_uid[uid] for uid in made.sop_instance_uids]
    frames = [(s, repeat) for repeat in repeats for s in order or range(len(slices))]
    for part in range(objects):
        own = frames[part::objects]
        enhanced = FileDataset("", Dataset(), file_meta=FileMetaDataset())
        for keyword in _TOP:
            if keyword in slices[0]:
                enhanced[keyword] = slices[0][keyword]
        enhanced.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        enhanced.SOPClassUID = EnhancedMRImageStorage
        uid = generate_uid(entropy_srcs=["enhanced", made.series_instance_uid, str(part)])
        enhanced.SOPInstanceUID = UID(uid)
        enhanced.InstanceNumber = part + 1
        enhanced.NumberOfFrames = len(own)
        enhanced.AcquisitionDateTime = "20240102101500.500000"
        enhanced.EchoPulseSequence, enhanced.InversionRecovery = "SPIN", "YES"
        enhanced.EchoPlanarPulseSequence = "NO"
        enhanced.ComplexImageComponent = "MAGNITUDE"
        groups = []
        shared = Dataset()
        for index, repeat in own:
            group = _group_of(slices[index], index, rescale or {})
            for name, added in repeat.items():
                sequence = group.get(name)
                target = sequence[0] if sequence else Dataset()
                for keyword, value in added.items():
                    setattr(target, keyword, value)
                setattr(group, name, [target])
            for name in leave_out:
                if name in group:
                    delattr(group, name)
            groups.append(group)
        if style == "shared":
            for element in list(groups[0]):
                if all(element.tag in g and g[element.tag] == element for g in groups):
                    shared.add(element)
                    for group in groups:
                        del group[element.tag]
            enhanced.SharedFunctionalGroupsSequence = [shared]
        enhanced.PerFrameFunctionalGroupsSequence = groups
        pixels = np.stack([made.voxels[index] for index, _ in own])
        enhanced.PixelData = pixels.astype("<u2").tobytes()
        enhanced["PixelData"].VR = "OW"
        for keyword, value in (overrides or {}).items():
            if value is None:
                delattr(enhanced, keyword)
            else:
                setattr(enhanced, keyword, value)
        enhanced.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
        if transfer_syntax_uid != ExplicitVRLittleEndian:
            enhanced.compress(UID(transfer_syntax_uid), generate_instance_uid=False)
        enhanced.save_as(folder / f"{part}.dcm", enforce_file_format=True)
    return read_series(sorted(folder.glob("*.dcm")))


def _group_of(image: Dataset, index: int, rescale: Mapping[int, tuple[float, float]]) -> Dataset:
    slope, intercept = rescale.get(index, (1.0, 0.0))
    return item(
        PlanePositionSequence=[item(ImagePositionPatient=image.ImagePositionPatient)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=image.ImageOrientationPatient)],
        PixelMeasuresSequence=[
            item(PixelSpacing=image.PixelSpacing, SliceThickness=image.SliceThickness)
        ],
        FrameContentSequence=[
            item(
                FrameAcquisitionNumber=1,
                StackID="1",
                InStackPositionNumber=index + 1,
                DimensionIndexValues=[1, index + 1],
            )
        ],
        MRImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])],
        MRTimingAndRelatedParametersSequence=[
            item(RepetitionTime=image.RepetitionTime, EchoTrainLength=20)
        ],
        MREchoSequence=[item(EffectiveEchoTime=float(image.EchoTime))],
        MRModifierSequence=[
            item(InversionRecovery="YES", InversionTimes=float(image.InversionTime))
        ],
        FrameAnatomySequence=[
            item(
                FrameLaterality="U",
                AnatomicRegionSequence=[
                    item(CodeValue="12738006", CodingSchemeDesignator="SCT", CodeMeaning="Brain")
                ],
            )
        ],
        PixelValueTransformationSequence=[
            item(RescaleIntercept=str(intercept), RescaleSlope=str(slope), RescaleType="US")
        ],
    )
