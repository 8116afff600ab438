"""Voxels and where they are in the patient."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import atan2, degrees
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage

from dicom.attributes import (
    has_value,
    number,
    required_number,
    required_numbers,
    required_text,
    text,
)
from dicom.errors import (
    DuplicateSliceError,
    GantryTiltError,
    ImplausibleGeometryError,
    IncompleteSeriesError,
    InconsistentSeriesError,
    IrregularSpacingError,
    MissingAttributeError,
    MissingSliceError,
    MixedOrientationError,
    MultiFrameError,
    NotFiniteError,
    TruncatedFileError,
    UndecodableError,
    UnreadableError,
)
from dicom.series import Instance, Series

Affine = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.float32]
_Points = npt.NDArray[np.float64]

FEWEST_SLICES = 3
"""Two slices have one gap, and one gap agrees with itself: a missing slice could not be seen."""
SLICE_GAP_TOLERANCE = (
    0.02  # of the gap; a scanner that rounds positions to 0.1 mm needs 0.011 of 7 mm
)
SMALLEST_GAP_TOLERANCE_MM = 0.01  # positions are decimal strings; scanners round them
TILT_TOLERANCE_DEG = 0.2  # 0.5 mm over a head of 150 mm; rounded cosines give 0.01
ORIENTATION_TOLERANCE = 1e-3  # of a direction cosine, as OHIF; rounding gives 1e-6
PIXEL_SPACING_TOLERANCE = 1e-3  # of the spacing: 0.25 mm over a field of view of 250 mm
LARGEST_STACK_VOXELS = 512 * 1024 * 1024  # 2 GB of float32; a damaged header can ask for any size

_MULTI_FRAME_CLASSES = (EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
_SHARED_KEYWORDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "FrameOfReferenceUID",
    "SOPClassUID",
    "Rows",
    "Columns",
)

# What pydicom and the codecs behind it raise on damaged or unsupported pixel data.
_DECODE_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where voxels are in the patient: the DICOM patient coordinate system, LPS, mm."""

    affine: Affine
    """(4, 4), maps (slice, row, column) indices to LPS millimetres of the voxel centre."""
    shape: tuple[int, int, int]
    """(slices, rows, columns)."""
    frame_of_reference_uid: str = ""
    """Empty for a volume that did not come from DICOM."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along (slice, row, column)."""
        slices, rows, columns = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel: the determinant, so that a sheared grid is measured rightly too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def position_lps_mm(self, index: tuple[float, float, float]) -> npt.NDArray[np.float64]:
        """Position of a (slice, row, column) index in LPS millimetres."""
        position: npt.NDArray[np.float64] = self.affine[:3, :3] @ np.asarray(index, float)
        return position + self.affine[:3, 3]


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Intensities on a grid, with the image each slice came from."""

    voxels: Voxels
    """float32, (slices, rows, columns), Modality LUT (rescale) applied."""
    grid: Grid
    sop_instance_uids: tuple[str, ...] = field(default=())
    """Source image of every slice, in slice order; empty for a volume that is not from DICOM."""
    pixel_digest: str = ""
    """SHA-256 of the decoded voxels, in slice order: the same pixels in any transfer syntax."""


def stack_grid(series: Series) -> tuple[Grid, tuple[Instance, ...]]:
    """Grid of a series of single-frame images, and its images in slice order, from headers alone.

    Slices ascend along the normal (row direction x column direction), whatever their order of
    arrival or numbering. The step between slices is the distance of their positions.

    Raises:
        TruncatedFileError: An object of the series is known to be damaged.
        MultiFrameError: Enhanced MR, or more than one frame.
        MissingAttributeError: Geometry or the Frame of Reference is absent. A Segmentation
            cannot be placed without either.
        MixedOrientationError, InconsistentSeriesError: The images are not of one kind.
        DuplicateSliceError, MissingSliceError, IrregularSpacingError, GantryTiltError: The
            positions are not those of one stack.
        IncompleteSeriesError: Fewer than `FEWEST_SLICES`, or fewer than the series says it has.
        ImplausibleGeometryError: Direction cosines, spacing or size that no image has.

    Source:
        PS3.3 C.7.6.2.1.1 (equation C.7.6.2.1-1). SliceThickness and SpacingBetweenSlices are not
        used: thickness leaves out the gap, and both are often wrong.
    """
    if series.unreadable:
        raise TruncatedFileError(
            f"{len(series.unreadable)} of {len(series.instances) + len(series.unreadable)}"
            " objects of the series are damaged"
        )
    _refuse_multi_frame(series)
    orientation = _orientation(series)
    if len(series.instances) < FEWEST_SLICES:
        raise IncompleteSeriesError(
            f"{len(series.instances)} slices, at least {FEWEST_SLICES} are needed"
        )
    _require_shared_attributes(series)
    spacing_mm = _pixel_spacing_mm(series)
    shape = _shape(series)
    row_direction, column_direction = orientation[:3], orientation[3:]
    normal = np.cross(row_direction, column_direction)
    positions, ordered = _ordered_along(normal, series.instances)
    _refuse_unless_one_stack(positions, normal)
    _refuse_fewer_than_declared(series)
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 1] = column_direction * spacing_mm[0]
    affine[:3, 2] = row_direction * spacing_mm[1]
    affine[:3, 3] = positions[0]
    grid = Grid(affine, shape, required_text(series.header, "FrameOfReferenceUID"))
    return grid, ordered


def read_volume(series: Series) -> Volume:
    """Stack the single-frame images of a series into a volume.

    Returns:
        Voxels of shape (slices, rows, columns) in the slice order of `stack_grid`, decoded from
        any transfer syntax with an installed codec, each slice with its own rescale applied.

    Raises:
        SeriesError: As `stack_grid`; moreover TruncatedFileError (pixel data do not fill the
            image), UndecodableError (no decoder, or not one grey value per pixel) and
            NotFiniteError (NaN or infinity in the rescale or in the voxels).
    """
    grid, ordered = stack_grid(series)
    voxels = np.empty(grid.shape, dtype=np.float32)
    for index, instance in enumerate(ordered):
        voxels[index] = _decode(instance, grid.shape[1:])
    _refuse_not_finite(voxels)
    uids = tuple(instance.sop_instance_uid for instance in ordered)
    return Volume(voxels, grid, uids, _digest(voxels))


def missing_between(series: Series) -> tuple[tuple[Instance, Instance, int], ...]:
    """Between which neighbours slices are missing, and how many there.

    Only of a series that `stack_grid` refuses with MissingSliceError: the gaps of any other may be
    no whole multiples of each other, or its images lie in no order.
    """
    orientation = _orientation(series)
    normal = np.cross(orientation[:3], orientation[3:])
    positions, ordered = _ordered_along(normal, series.instances)
    gaps_mm = np.diff(positions @ normal)
    missing = np.rint(gaps_mm / _usual_gap_mm(gaps_mm)).astype(int) - 1
    return tuple(
        (ordered[index], ordered[index + 1], int(missing[index]))
        for index in np.flatnonzero(missing > 0)
    )


def read_nifti(path: Path) -> Volume:
    """A NIfTI image as a volume: its third axis becomes the slice axis, RAS becomes LPS.

    Raises:
        UnreadableError: Not NIfTI.
        TruncatedFileError: The file ends before its data do.
        MissingAttributeError: Neither sform nor qform says where the voxels are.
        ImplausibleGeometryError: The affine has no inverse.
        InconsistentSeriesError: More than one volume, or not three axes.
        NotFiniteError: NaN or infinity among the voxels.
    """
    try:
        image = nibabel.load(path)
    except FileNotFoundError as error:
        raise UnreadableError("no such file") from error
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UnreadableError("not a NIfTI image") from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise UnreadableError("not a NIfTI image")
    extra = image.shape[3:]
    if len(image.shape) < 3 or any(size != 1 for size in extra):
        raise InconsistentSeriesError(f"an image of shape {image.shape}, expected one volume")
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        raise MissingAttributeError("neither sform nor qform says where the voxels are")
    if not np.isfinite(image.affine).all() or np.linalg.det(image.affine[:3, :3]) == 0:
        raise ImplausibleGeometryError("the affine of the NIfTI image has no inverse")
    try:
        stored = np.asanyarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise TruncatedFileError("the NIfTI file ends before its data do") from error
    voxels = np.ascontiguousarray(stored.reshape(image.shape[:3]).transpose(2, 1, 0))
    _refuse_not_finite(voxels)
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    return Volume(voxels, Grid(_swapped(image.affine), shape), pixel_digest=_digest(voxels))


def write_nifti(path: Path, array: npt.NDArray[np.generic], grid: Grid) -> None:
    """Write an array on its grid; `read_nifti` gives both back.

    Values keep their type (booleans become uint8) and are not scaled. NIfTI-1 holds the affine in
    float32: positions come back within about 0.00001 mm.
    """
    if array.shape != grid.shape:
        raise ValueError(f"array of shape {array.shape} on a grid of {grid.shape}")
    stored = array.astype(np.uint8) if array.dtype == np.bool_ else array
    # nibabel is typed in part.
    image = nibabel.Nifti1Image(stored.transpose(2, 1, 0), _swapped(grid.affine))  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    image.set_sform(image.affine, code="scanner")  # type: ignore[no-untyped-call]
    image.set_qform(image.affine, code="scanner")  # type: ignore[no-untyped-call]
    nibabel.save(image, path)


def _refuse_multi_frame(series: Series) -> None:
    for instance in series.instances:
        frames = number(instance.header, "NumberOfFrames") or 1
        if text(instance.header, "SOPClassUID") in _MULTI_FRAME_CLASSES or frames > 1:
            raise MultiFrameError(f"an object of {frames:.0f} frames; not analysed yet")


def _orientation(series: Series) -> _Points:
    """(6,): row direction (along which columns count up), column direction."""
    found = np.array(
        [
            required_numbers(instance.header, "ImageOrientationPatient", 6)
            for instance in series.instances
        ]
    )
    lengths = np.linalg.norm(found.reshape(-1, 2, 3), axis=2)
    across = np.einsum("ij,ij->i", found[:, :3], found[:, 3:])
    if np.any(np.abs(lengths - 1) > ORIENTATION_TOLERANCE) or np.any(
        np.abs(across) > ORIENTATION_TOLERANCE
    ):
        raise ImplausibleGeometryError(
            "ImageOrientationPatient is not two perpendicular unit vectors"
        )
    spread = float(np.ptp(found, axis=0).max())
    if spread > ORIENTATION_TOLERANCE:
        raise MixedOrientationError(f"direction cosines differ by up to {spread:.4f}")
    first = found[0].reshape(2, 3)
    # Rounded cosines are not quite perpendicular; an affine must be, or masks shear on their way
    # through tools that assume it. The row direction is kept, the column direction follows.
    row_direction = first[0] / np.linalg.norm(first[0])
    column_direction = first[1] - row_direction * (row_direction @ first[1])
    return np.concatenate([row_direction, column_direction / np.linalg.norm(column_direction)])


def _require_shared_attributes(series: Series) -> None:
    required_text(series.header, "FrameOfReferenceUID")
    for keyword in _SHARED_KEYWORDS:
        distinct = len({text(instance.header, keyword) for instance in series.instances})
        if distinct > 1:
            raise InconsistentSeriesError(f"{keyword} has {distinct} values in one series")


def _pixel_spacing_mm(series: Series) -> tuple[float, float]:
    """Distance between rows, distance between columns (PS3.3 10.7.1.3)."""
    found = np.array(
        [required_numbers(instance.header, "PixelSpacing", 2) for instance in series.instances]
    )
    if np.any(found <= 0):
        raise ImplausibleGeometryError("PixelSpacing is not positive")
    if np.any(np.ptp(found, axis=0) > PIXEL_SPACING_TOLERANCE * found[0]):
        raise InconsistentSeriesError("PixelSpacing differs within the series")
    return float(found[0, 0]), float(found[0, 1])


def _shape(series: Series) -> tuple[int, int, int]:
    slices = len(series.instances)
    rows = int(required_number(series.header, "Rows"))
    columns = int(required_number(series.header, "Columns"))
    if rows < 1 or columns < 1 or slices * rows * columns > LARGEST_STACK_VOXELS:
        raise ImplausibleGeometryError(f"{slices} images of {rows} x {columns} pixels")
    return slices, rows, columns


def _ordered_along(
    normal: _Points, instances: Sequence[Instance]
) -> tuple[_Points, tuple[Instance, ...]]:
    positions = np.array(
        [required_numbers(one.header, "ImagePositionPatient", 3) for one in instances]
    )
    order = np.argsort(positions @ normal, kind="stable")
    return positions[order], tuple(instances[index] for index in order)


def _refuse_unless_one_stack(positions: _Points, normal: _Points) -> None:
    """Positions, in order along the normal, must be equal steps along it."""
    gaps_mm = np.diff(positions @ normal)
    doubled = int(np.count_nonzero(gaps_mm <= SMALLEST_GAP_TOLERANCE_MM))
    if doubled:
        raise DuplicateSliceError(
            f"{doubled} of {len(positions)} slices lie where their neighbour does"
        )
    usual_mm = _usual_gap_mm(gaps_mm)
    tolerance_mm = max(SMALLEST_GAP_TOLERANCE_MM, SLICE_GAP_TOLERANCE * usual_mm)
    whole = np.rint(gaps_mm / usual_mm)
    if np.any(np.abs(gaps_mm - whole * usual_mm) > tolerance_mm * np.maximum(whole, 1)):
        raise IrregularSpacingError(
            f"gaps range from {gaps_mm.min():.3f} to {gaps_mm.max():.3f} mm"
            f" over {len(positions)} slices"
        )
    if np.any(whole > 1):
        raise MissingSliceError(
            f"{int(np.sum(whole - 1))} slices missing: gaps up to {gaps_mm.max():.3f} mm"
            f" where {usual_mm:.3f} mm is usual"
        )
    _refuse_tilt(positions, normal)
    steps = np.arange(len(positions)) / (len(positions) - 1)
    straight = positions[0] + steps[:, None] * (positions[-1] - positions[0])
    stray_mm = float(np.linalg.norm(positions - straight, axis=1).max())
    # Gaps may each be within tolerance and still add up.
    if stray_mm > 2 * tolerance_mm:
        raise IrregularSpacingError(f"a slice lies {stray_mm:.3f} mm off an even, straight stack")


def _usual_gap_mm(gaps_mm: _Points) -> float:
    """The lower median: with an even count the mean of two gaps is the gap of nobody."""
    return float(np.sort(gaps_mm)[(len(gaps_mm) - 1) // 2])


def _refuse_tilt(positions: _Points, normal: _Points) -> None:
    whole = positions[-1] - positions[0]
    along = float(whole @ normal)
    across = float(np.linalg.norm(whole - along * normal))
    tilt_deg = degrees(atan2(across, along))
    if tilt_deg > TILT_TOLERANCE_DEG and across > SMALLEST_GAP_TOLERANCE_MM:
        raise GantryTiltError(f"positions run {tilt_deg:.2f} degrees off the normal of the slices")


def _refuse_fewer_than_declared(series: Series) -> None:
    """Compare with the counts that the images declare, where those speak of this very stack.

    ImagesInAcquisition (PS3.3 C.7.6.1) counts an acquisition, which may be less than a series (a
    GE reformat declares 1 in each of its 20 images) or more (the echoes or reconstructions of one
    acquisition, each a series of its own). It is believed when every image declares the same
    count for the same acquisition, no instance number exceeds it, and it is not a whole multiple
    of what we hold, numbered from 1 on. Where it is not believed nothing is concluded.
    """
    held = len(series.instances)
    if len({text(one.header, "AcquisitionNumber") for one in series.instances}) > 1:
        return
    instance_numbers = [number(one.header, "InstanceNumber") for one in series.instances]
    if any(found is None for found in instance_numbers):
        return
    known = sorted(int(found) for found in instance_numbers if found is not None)
    for keyword in ("ImagesInAcquisition", "NumberOfSlices"):
        counts = {number(one.header, keyword) for one in series.instances}
        declared = counts.pop() if len(counts) == 1 else None
        if declared is None or declared <= held or known[-1] > declared:
            continue
        if declared % held == 0 and known == list(range(1, held + 1)):
            continue
        raise IncompleteSeriesError(f"{held} slices, {keyword} declares {declared:.0f}")


def _decode(instance: Instance, shape: tuple[int, ...]) -> Voxels:
    """One image of (rows, columns), rescale applied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of padding, of values that break their VR's rules
        dataset = _with_pixels(instance)
        _require_one_grey_value_per_pixel(dataset)
        _refuse_short_pixel_data(dataset)
        try:
            stored = dataset.pixel_array
        except _DECODE_ERRORS as error:
            syntax = _transfer_syntax(dataset)
            raise UndecodableError(
                f"pixel data of transfer syntax {syntax or 'unknown'} do not decode"
            ) from error
        if stored.shape != shape:
            raise UndecodableError(f"an image of {stored.shape} pixels, declared as {shape}")
        return _rescaled(stored, dataset)


def _with_pixels(instance: Instance) -> Dataset:
    try:
        dataset = pydicom.dcmread(instance.path, force=True)
    except _DECODE_ERRORS as error:
        raise TruncatedFileError(
            f"an image can no longer be read ({type(error).__name__})"
        ) from error
    if text(dataset, "SOPInstanceUID") != instance.sop_instance_uid:
        raise InconsistentSeriesError("a file changed between reading its header and its pixels")
    return dataset


def _transfer_syntax(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    return text(meta, "TransferSyntaxUID") if meta is not None else ""


def _require_one_grey_value_per_pixel(dataset: Dataset) -> None:
    samples = number(dataset, "SamplesPerPixel") or 1
    photometric = text(dataset, "PhotometricInterpretation")
    # MONOCHROME1 is refused too: whether its high values are bright in the head is not certain.
    if samples != 1 or photometric != "MONOCHROME2":
        raise UndecodableError(
            f"{samples:.0f} samples per pixel, photometric interpretation {photometric!r};"
            " expected 1 and MONOCHROME2"
        )
    stored, high = number(dataset, "BitsStored"), number(dataset, "HighBit")
    if stored is not None and high is not None and high != stored - 1:
        raise UndecodableError(f"HighBit {high:.0f} with BitsStored {stored:.0f}")


def _refuse_short_pixel_data(dataset: Dataset) -> None:
    value = dataset.get("PixelData")
    if "PixelData" in dataset and not value:
        raise TruncatedFileError("an image without pixel data")
    if value is None or dataset["PixelData"].is_undefined_length:
        return
    pixels = required_number(dataset, "Rows") * required_number(dataset, "Columns")
    needed = pixels * required_number(dataset, "BitsAllocated") / 8
    if len(value) < needed:
        raise TruncatedFileError(f"{len(value)} bytes of pixel data, {needed:.0f} needed")


def _rescaled(stored: npt.NDArray[np.generic], dataset: Dataset) -> Voxels:
    """Modality LUT, or slope and intercept (PS3.3 C.11.1); no one of them leaves stored values."""
    with np.errstate(over="ignore", invalid="ignore"):
        if has_value(dataset, "ModalityLUTSequence"):
            try:
                return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
            except _DECODE_ERRORS as error:
                raise UndecodableError("the Modality LUT cannot be applied") from error
        slope = _factor(dataset, "RescaleSlope", 1.0)
        intercept = _factor(dataset, "RescaleIntercept", 0.0)
        rescaled: Voxels = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
        return rescaled


def _factor(dataset: Dataset, keyword: str, default: float) -> float:
    if not has_value(dataset, keyword):
        return default
    found = number(dataset, keyword)
    if found is None:
        raise NotFiniteError(f"{keyword} is not a finite number")
    return found


def _refuse_not_finite(voxels: Voxels) -> None:
    finite = np.isfinite(voxels)
    if not finite.all():
        raise NotFiniteError(f"{voxels.size - np.count_nonzero(finite)} voxels are not finite")


def _digest(voxels: Voxels) -> str:
    """SHA-256 of shape and values, the same on any machine."""
    digest = hashlib.sha256(repr(voxels.shape).encode())
    digest.update(np.ascontiguousarray(voxels, dtype="<f4").data)
    return digest.hexdigest()


def _swapped(affine: Affine) -> Affine:
    """(slice, row, column) to LPS from (column, row, slice) to RAS, and the other way round."""
    ras_to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    reverse_axes = np.eye(4)[[2, 1, 0, 3]]
    swapped: Affine = ras_to_lps @ np.asarray(affine, dtype=np.float64) @ reverse_axes
    return swapped
