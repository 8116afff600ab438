"""The synthetic head as a scanner would send it: one MR study of several series, as DICOM files.

Beside the FLAIR stand what a real study of the brain also holds, and what must not be mistaken for
it: a localizer in three directions, T1, T2, ADC, and a reformat and a projection of the FLAIR with
the FLAIR's own TR, TE and TI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import DSfloat
from scipy import ndimage

from dicom.volume import Affine, Grid
from pipeline.phantom import ADC, T1, T2, Contrast, Floats, Phantom, instance_uid, scan, uid_of

PATIENT_NAME = "PHANTOM^SYNTHETIC"
STUDY_DATE, STUDY_TIME = "20260105", "101500"
"""Fixed: the same phantom gives the same bytes on any day."""

_IMPLEMENTATION_CLASS = UID("2.25.224883118117211287533204083236041519133")
_IMPLEMENTATION_VERSION = "SYNTHETIC_HEAD_1"

_AXES = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}
"""LPS directions of increasing slice, row and column, as each is displayed."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the headers of a series tell of how it was acquired."""

    series_number: int
    folder: str
    description: str
    image_type: tuple[str, ...]
    scanning_sequence: tuple[str, ...]
    sequence_variant: tuple[str, ...]
    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None = None
    thickness_mm: float = 5.5


_ORIGINAL = ("ORIGINAL", "PRIMARY", "M", "ND")
_INVERSION = (("SE", "IR"), ("SK", "SP", "MP"), 9000.0, 120.0, 2500.0)
_LOCALIZER = Protocol(1, "localizer", "LOCALIZER", (*_ORIGINAL, "NORM"), ("GR",), ("SP",), 8.6, 4.0)
_FLAIR = Protocol(2, "flair", "T2 FLAIR TRA", _ORIGINAL, *_INVERSION)
_T1 = Protocol(3, "t1", "T1 SE TRA", _ORIGINAL, ("SE",), ("SP",), 500.0, 12.0)
_T2 = Protocol(4, "t2", "T2 TSE TRA", _ORIGINAL, ("SE",), ("SK", "SP"), 4500.0, 100.0)
_ADC = Protocol(
    5, "adc", "DWI ADC", ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"), ("EP",), ("SK",), 4200.0, 89.0
)
_REFORMAT = Protocol(
    6, "flair_mpr", "T2 FLAIR COR MPR", ("DERIVED", "SECONDARY", "MPR"), *_INVERSION, 5.0
)
_PROJECTION = Protocol(
    7, "flair_mip", "FLAIR MIP", ("DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"), *_INVERSION
)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Parallel images of a series."""

    voxels: Floats
    grid: Grid


def write_study(phantom: Phantom, folder: Path) -> tuple[Path, ...]:
    """Write the whole study below `folder`, one sub-folder per series; the files in series order.

    Explicit little endian. The same phantom gives the same bytes.
    """
    makers: tuple[tuple[Protocol, Callable[[Phantom, Protocol], Iterator[Stack]]], ...] = (
        (_LOCALIZER, _localizer),
        (_FLAIR, _flair),
        (_T1, _axial(T1)),
        (_T2, _axial(T2)),
        (_ADC, _adc),
        (_REFORMAT, _reformat),
        (_PROJECTION, _projection),
    )
    return tuple(
        path
        for protocol, make in makers
        for path in _write_series(phantom, protocol, make(phantom, protocol), folder)
    )


def write_flair(phantom: Phantom, folder: Path) -> tuple[Path, ...]:
    """Write the FLAIR alone, in whatever plane its volume lies."""
    return tuple(_write_series(phantom, _FLAIR, _flair(phantom, _FLAIR), folder))


def _write_series(
    phantom: Phantom, protocol: Protocol, stacks: Iterator[Stack], folder: Path
) -> Iterator[Path]:
    place = folder / protocol.folder
    place.mkdir(parents=True, exist_ok=True)
    number = 0
    for stack in stacks:
        for index in range(stack.grid.shape[0]):
            path = place / f"{number + 1:04d}.dcm"
            _image(phantom, protocol, stack, index, number).save_as(path, enforce_file_format=True)
            yield path
            number += 1


def flair_series_uid(phantom: Phantom) -> str:
    """Series Instance UID of the FLAIR, the one series that is to be analysed."""
    return _series_uid(phantom, _FLAIR)


def study_uid(phantom: Phantom) -> str:
    """Study Instance UID of the whole study."""
    return uid_of("study", phantom.seed, *phantom.volume.sop_instance_uids)


def _series_uid(phantom: Phantom, protocol: Protocol) -> str:
    return uid_of("series", study_uid(phantom), protocol.series_number)


# Pixels of each series ---------------------------------------------------------------------------


def _rng(phantom: Phantom, protocol: Protocol) -> np.random.Generator:
    return np.random.default_rng((phantom.seed, protocol.series_number))


def _flair(phantom: Phantom, _: Protocol) -> Iterator[Stack]:
    yield Stack(phantom.volume.voxels, phantom.volume.grid)


def _axial(contrast: Contrast) -> Callable[[Phantom, Protocol], Iterator[Stack]]:
    def make(phantom: Phantom, protocol: Protocol) -> Iterator[Stack]:
        grid = phantom.volume.grid
        thickness_mm = phantom.acquisition.thickness_mm
        yield Stack(scan(phantom.head, contrast, grid, thickness_mm, _rng(phantom, protocol)), grid)

    return make


def _adc(phantom: Phantom, protocol: Protocol) -> Iterator[Stack]:
    grid = _plane_grid(phantom, "axial", (24, 128, 112), (6.5, 1.8, 1.8))
    yield Stack(scan(phantom.head, ADC, grid, 5.0, _rng(phantom, protocol)), grid)


def _localizer(phantom: Phantom, protocol: Protocol) -> Iterator[Stack]:
    rng = _rng(phantom, protocol)
    for plane in _AXES:
        grid = _plane_grid(phantom, plane, (3, 160, 160), (20.0, 1.6, 1.6))
        yield Stack(scan(phantom.head, T1, grid, protocol.thickness_mm, rng), grid)


def _reformat(phantom: Phantom, _: Protocol) -> Iterator[Stack]:
    """Coronal planes interpolated from the acquired FLAIR, as a workstation makes them."""
    grid = _plane_grid(phantom, "coronal", (16, 160, 192), (10.0, 1.0, 1.0))
    source = phantom.volume
    to_source = np.linalg.inv(source.grid.affine) @ grid.affine
    voxels = ndimage.affine_transform(
        source.voxels, to_source[:3, :3], to_source[:3, 3], output_shape=grid.shape, order=1
    )
    yield Stack(np.rint(voxels), grid)


def _projection(phantom: Phantom, _: Protocol) -> Iterator[Stack]:
    """Greatest value along the slices: one image, in the middle of the stack."""
    source = phantom.volume
    affine = source.grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (source.grid.shape[0] - 1) / 2
    grid = Grid(affine, (1, *source.grid.shape[1:]), source.grid.frame_of_reference_uid)
    yield Stack(source.voxels.max(axis=0, keepdims=True), grid)


def _plane_grid(
    phantom: Phantom, plane: str, shape: tuple[int, int, int], spacing_mm: tuple[float, ...]
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = np.array(_AXES[plane], float).T * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(affine, shape, phantom.volume.grid.frame_of_reference_uid)


# Headers -----------------------------------------------------------------------------------------


def _image(phantom: Phantom, protocol: Protocol, stack: Stack, index: int, number: int) -> Dataset:
    if protocol is _FLAIR:
        sop_instance_uid = phantom.volume.sop_instance_uids[index]
    else:
        sop_instance_uid = instance_uid(stack.voxels[index], phantom.seed, protocol.folder, number)
    image = Dataset()
    image.file_meta = _file_meta(sop_instance_uid)
    image.SpecificCharacterSet = "ISO_IR 100"
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, sop_instance_uid
    _describe_patient_and_study(image, phantom)
    _describe_series(image, phantom, protocol)
    image.AcquisitionNumber, image.InstanceNumber = 1, number + 1
    image.ImageType = list(protocol.image_type)
    _describe_plane(image, stack.grid, index)
    _fill_pixels(image, stack.voxels[index])
    return image


def _file_meta(sop_instance_uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # Our own, or the bytes would change with the version of pydicom.
    meta.ImplementationClassUID = _IMPLEMENTATION_CLASS
    meta.ImplementationVersionName = _IMPLEMENTATION_VERSION
    return meta


def _describe_patient_and_study(image: Dataset, phantom: Phantom) -> None:
    image.PatientName = PATIENT_NAME
    image.PatientID = f"PHANTOM-{phantom.seed}"
    image.PatientBirthDate, image.PatientSex, image.PatientAge = "19800101", "O", "046Y"
    image.StudyInstanceUID = study_uid(phantom)
    image.StudyID = "1"
    image.AccessionNumber = f"PH{phantom.seed}"
    image.StudyDescription = "SYNTHETIC HEAD, MS PROTOCOL"
    image.ReferringPhysicianName = ""
    for level in ("Study", "Series", "Acquisition", "Content"):
        setattr(image, f"{level}Date", STUDY_DATE)
        setattr(image, f"{level}Time", STUDY_TIME)


def _describe_series(image: Dataset, phantom: Phantom, protocol: Protocol) -> None:
    image.Modality = "MR"
    image.SeriesInstanceUID = _series_uid(phantom, protocol)
    image.SeriesNumber = protocol.series_number
    image.SeriesDescription = image.ProtocolName = protocol.description
    image.Manufacturer, image.ManufacturerModelName = "SYNTHETIC", "MNI152 HEAD"
    image.SoftwareVersions = _IMPLEMENTATION_VERSION
    image.MagneticFieldStrength = "1.5"
    image.BodyPartExamined, image.PatientPosition = "BRAIN", "HFS"
    image.FrameOfReferenceUID = phantom.volume.grid.frame_of_reference_uid
    image.PositionReferenceIndicator = ""
    image.QualityControlImage = "YES"  # PS3.3 C.7.6.1: also that of a phantom
    image.ScanningSequence = list(protocol.scanning_sequence)
    image.SequenceVariant = list(protocol.sequence_variant)
    image.ScanOptions = ""
    image.MRAcquisitionType = "2D"
    image.RepetitionTime, image.EchoTime = _ds(protocol.repetition_ms), _ds(protocol.echo_ms)
    if protocol.inversion_ms is not None:
        image.InversionTime = _ds(protocol.inversion_ms)
    image.EchoTrainLength, image.FlipAngle = 1, "90"
    image.SliceThickness = _ds(protocol.thickness_mm)


def _describe_plane(image: Dataset, grid: Grid, index: int) -> None:
    slices_mm, rows_mm, columns_mm = grid.spacing_mm
    affine: Affine = grid.affine
    row_direction, column_direction = affine[:3, 2] / columns_mm, affine[:3, 1] / rows_mm
    position = grid.position_lps_mm((index, 0, 0))
    image.ImagePositionPatient = [_ds(value) for value in position]
    image.ImageOrientationPatient = [_ds(value) for value in (*row_direction, *column_direction)]
    image.PixelSpacing = [_ds(rows_mm), _ds(columns_mm)]
    if grid.shape[0] > 1:
        image.SpacingBetweenSlices = _ds(slices_mm)
    image.SliceLocation = _ds(float(position @ np.cross(row_direction, column_direction)))


def _fill_pixels(image: Dataset, pixels: Floats) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.WindowCenter, image.WindowWidth = "500", "1000"
    image.PixelData = pixels.astype("<u2").tobytes()


def _ds(value: float) -> DSfloat:
    """A decimal string of at most 16 characters."""
    return DSfloat(float(value), auto_format=True)
