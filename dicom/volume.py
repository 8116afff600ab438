"""Voxels and where they are in the patient."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from dicom.attributes import (
    has_value,
    number,
    required_number,
    required_numbers,
    required_text,
    text,
)
from dicom.decoding import Decoder
from dicom.errors import (
    DecoderLimitsError,
    ImplausibleGeometryError,
    IncompleteSeriesError,
    InconsistentSeriesError,
    MissingAttributeError,
    MixedOrientationError,
    MultiFrameError,
    NotFiniteError,
    SeveralStacksError,
    TruncatedFileError,
    UndecodableError,
    UnreadableError,
)
from dicom.frames import Frame, frame_count, frames_of, is_multi_frame
from dicom.series import Instance, Series
from dicom.stacks import FEWEST_SLICES, refuse_unless_one_stack, usual_gap_mm

Affine = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.float32]
_Points = npt.NDArray[np.float64]

ORIENTATION_TOLERANCE = 1e-3  # of a direction cosine, as OHIF; rounding gives 1e-6
PIXEL_SPACING_TOLERANCE = 1e-3  # of the spacing: 0.25 mm over a field of view of 250 mm
LARGEST_STACK_VOXELS = 512 * 1024 * 1024  # 2 GB of float32; a damaged header can ask for any size

_UNCOMPRESSED_SYNTAXES = (
    "",  # not told: read as the default, or not at all
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
"""Read in this process: there is nothing to decode."""
_LOSSY_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_PERHAPS_LOSSY_SYNTAXES = (JPEG2000, HTJ2K)  # their encoders may or may not have lost something
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
    frame_numbers: tuple[int | None, ...] = field(default=())
    """Number of every slice in its source image, from 1; None where the image is the slice. As long
    as `sop_instance_uids`, or empty: then no image holds more than one slice."""
    lossy: bool = False
    """Something was lost in compression before the images came."""

    @property
    def images(self) -> tuple[tuple[str, int | None], ...]:
        """SOP Instance UID and frame number of what lies on every slice, in slice order."""
        numbers = self.frame_numbers or (None,) * len(self.sop_instance_uids)
        return tuple(zip(self.sop_instance_uids, numbers, strict=True))


def stack_grid(series: Series) -> tuple[Grid, tuple[Frame, ...]]:
    """Grid of a series of MR images, and its frames in slice order, from headers alone.

    A classic image is one frame; an Enhanced object holds many, in any order. Slices ascend along
    the normal (row direction x column direction), whatever their order of arrival or numbering. The
    step between slices is the distance of their positions.

    Raises:
        TruncatedFileError: An object of the series is known to be damaged.
        MultiFrameError: More than one frame in an object that is not Enhanced MR.
        MissingAttributeError: Geometry or the Frame of Reference is absent. A Segmentation
            cannot be placed without either.
        MixedOrientationError, InconsistentSeriesError: The images are not of one kind.
        DuplicateSliceError, MissingSliceError, IrregularSpacingError, GantryTiltError: The
            positions are not those of one stack.
        RepeatedStackError: They are those of several stacks, echoes, time points.
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
    _refuse_unknown_multi_frame(series)
    _refuse_part_of_a_concatenation(series)
    frames = frames_of(series)
    orientation = _orientation(frames)
    if len(frames) < FEWEST_SLICES:
        raise IncompleteSeriesError(f"{len(frames)} slices, at least {FEWEST_SLICES} are needed")
    _require_shared_attributes(frames)
    spacing_mm = _pixel_spacing_mm(frames)
    shape = _shape(frames)
    row_direction, column_direction = orientation[:3], orientation[3:]
    normal = np.cross(row_direction, column_direction)
    positions, ordered = _ordered_along(normal, frames)
    refuse_unless_one_stack(ordered, positions, normal)
    _refuse_fewer_than_declared(series)
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 1] = column_direction * spacing_mm[0]
    affine[:3, 2] = row_direction * spacing_mm[1]
    affine[:3, 3] = positions[0]
    grid = Grid(affine, shape, required_text(frames[0].header, "FrameOfReferenceUID"))
    return grid, ordered


def read_volume(series: Series) -> Volume:
    """Stack the images of a series into a volume.

    Every object is read once and every frame decoded once, one at a time: beside the volume, memory
    holds the pixel data of one object as it was stored.

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
    lossy = False
    slices_in: dict[Path, list[int]] = {}
    for index, frame in enumerate(ordered):
        slices_in.setdefault(frame.instance.path, []).append(index)
    with Decoder() as decoder:
        for indices in slices_in.values():
            lossy |= _decode(decoder, ordered, indices, voxels)
    _refuse_not_finite(voxels)
    return Volume(
        voxels,
        grid,
        tuple(frame.sop_instance_uid for frame in ordered),
        _digest(voxels),
        tuple(frame.number for frame in ordered),
        lossy,
    )


def slice_headers(series: Series, volume: Volume) -> tuple[Dataset, ...]:
    """Flat header of the image that lies on every slice of a volume, in slice order.

    Raises:
        InconsistentSeriesError: The volume was not read from exactly these images.
    """
    headers = {(one.sop_instance_uid, one.number): one.header for one in frames_of(series)}
    if len(volume.images) != volume.grid.shape[0] or set(volume.images) != headers.keys():
        raise InconsistentSeriesError(
            f"{len(volume.images)} images in the volume, {len(headers)} in the series: not the same"
        )
    return tuple(headers[image] for image in volume.images)


def missing_between(series: Series) -> tuple[tuple[Frame, Frame, int], ...]:
    """Between which neighbours slices are missing, and how many there.

    Only of a series that `stack_grid` refuses with MissingSliceError: the gaps of any other may be
    no whole multiples of each other, or its images lie in no order.
    """
    frames = frames_of(series)
    orientation = _orientation(frames)
    normal = np.cross(orientation[:3], orientation[3:])
    positions, ordered = _ordered_along(normal, frames)
    gaps_mm = np.diff(positions @ normal)
    missing = np.rint(gaps_mm / usual_gap_mm(gaps_mm)).astype(int) - 1
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


def _refuse_unknown_multi_frame(series: Series) -> None:
    for instance in series.instances:
        frames = frame_count(instance.header)
        if frames > 1 and not is_multi_frame(instance.header):
            raise MultiFrameError(f"an object of {frames} frames that is not Enhanced MR")


def _refuse_part_of_a_concatenation(series: Series) -> None:
    """A stack that was cut into several objects tells how many there are (PS3.3 C.7.6.16)."""
    declared = {number(one.header, "InConcatenationTotalNumber") for one in series.instances}
    parts = {number(one.header, "InConcatenationNumber") for one in series.instances} - {None}
    wanted = max((int(found) for found in declared if found is not None), default=0)
    if parts and len(parts) < wanted:
        raise IncompleteSeriesError(f"{len(parts)} of {wanted} parts of a concatenation")


def _orientation(frames: Sequence[Frame]) -> _Points:
    """(6,): row direction (along which columns count up), column direction."""
    found = np.array(
        [required_numbers(frame.header, "ImageOrientationPatient", 6) for frame in frames]
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
        _refuse_several_orientations(found)
        raise MixedOrientationError(f"direction cosines differ by up to {spread:.4f}")
    first = found[0].reshape(2, 3)
    # Rounded cosines are not quite perpendicular; an affine must be, or masks shear on their way
    # through tools that assume it. The row direction is kept, the column direction follows.
    row_direction = first[0] / np.linalg.norm(first[0])
    column_direction = first[1] - row_direction * (row_direction @ first[1])
    return np.concatenate([row_direction, column_direction / np.linalg.norm(column_direction)])


def _refuse_several_orientations(directions: _Points) -> None:
    """Whole stacks that cross, each large enough to be meant as one."""
    left = np.ones(len(directions), bool)
    sizes = []
    while left.any():
        alike = np.abs(directions - directions[left][0]).max(axis=1) <= ORIENTATION_TOLERANCE
        sizes.append(int(np.count_nonzero(alike & left)))
        left &= ~alike
    if min(sizes) >= FEWEST_SLICES:
        counted = " and ".join(str(size) for size in sorted(sizes, reverse=True))
        raise SeveralStacksError(f"stacks of {counted} slices in {len(sizes)} orientations")


def _require_shared_attributes(frames: Sequence[Frame]) -> None:
    required_text(frames[0].header, "FrameOfReferenceUID")
    for keyword in _SHARED_KEYWORDS:
        distinct = len({text(frame.header, keyword) for frame in frames})
        if distinct > 1:
            raise InconsistentSeriesError(f"{keyword} has {distinct} values in one series")


def _pixel_spacing_mm(frames: Sequence[Frame]) -> tuple[float, float]:
    """Distance between rows, distance between columns (PS3.3 10.7.1.3)."""
    found = np.array([required_numbers(frame.header, "PixelSpacing", 2) for frame in frames])
    if np.any(found <= 0):
        raise ImplausibleGeometryError("PixelSpacing is not positive")
    if np.any(np.ptp(found, axis=0) > PIXEL_SPACING_TOLERANCE * found[0]):
        raise InconsistentSeriesError("PixelSpacing differs within the series")
    return float(found[0, 0]), float(found[0, 1])


def _shape(frames: Sequence[Frame]) -> tuple[int, int, int]:
    slices = len(frames)
    rows = int(required_number(frames[0].header, "Rows"))
    columns = int(required_number(frames[0].header, "Columns"))
    if rows < 1 or columns < 1 or slices * rows * columns > LARGEST_STACK_VOXELS:
        raise ImplausibleGeometryError(f"{slices} images of {rows} x {columns} pixels")
    return slices, rows, columns


def _ordered_along(normal: _Points, frames: Sequence[Frame]) -> tuple[_Points, tuple[Frame, ...]]:
    positions = np.array(
        [required_numbers(frame.header, "ImagePositionPatient", 3) for frame in frames]
    )
    order = np.argsort(positions @ normal, kind="stable")
    return positions[order], tuple(frames[index] for index in order)


def _refuse_fewer_than_declared(series: Series) -> None:
    """Compare with the counts that the images declare, where those speak of this very stack.

    ImagesInAcquisition (PS3.3 C.7.6.1) counts an acquisition, which may be less than a series (a
    GE reformat declares 1 in each of its 20 images) or more (the echoes or reconstructions of one
    acquisition, each a series of its own). It is believed when every image declares the same
    count for the same acquisition, no instance number exceeds it, and it is not a whole multiple
    of what we hold, numbered from 1 on. Where it is not believed nothing is concluded. Enhanced
    objects are whole or not, and tell of a concatenation.
    """
    if is_multi_frame(series.header):
        return
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


def _decode(
    decoder: Decoder, ordered: Sequence[Frame], indices: Sequence[int], voxels: Voxels
) -> bool:
    """Fill the slices that lie in one object, rescale applied. Was it compressed with loss?"""
    frames = [ordered[index] for index in indices]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of padding, of values that break their VR's rules
        dataset = _with_pixels(frames[0].instance)
        _require_one_grey_value_per_pixel(dataset)
        _refuse_short_pixel_data(dataset)
        numbers = [frame.number or 1 for frame in frames]
        stored = _stored_values(decoder, frames[0].instance.path, dataset, numbers)
        for index, frame, pixels in zip(indices, frames, stored, strict=True):
            if pixels.shape != voxels.shape[1:]:
                raise UndecodableError(
                    f"an image of {pixels.shape} pixels, declared as {voxels.shape[1:]}"
                )
            voxels[index] = _rescaled(pixels, frame.header)
        return _is_lossy(dataset)


def _stored_values(
    decoder: Decoder, path: Path, dataset: Dataset, frame_numbers: Sequence[int]
) -> Iterator[npt.NDArray[np.generic]]:
    """Frames as they were stored, one at a time, each decoded once."""
    syntax = _transfer_syntax(dataset)
    single = frame_count(dataset) == 1
    if syntax not in _UNCOMPRESSED_SYNTAXES:
        try:
            yield from decoder.frames(path, None if single else frame_numbers)
        except DecoderLimitsError:
            raise
        except UndecodableError as error:
            raise UndecodableError(
                f"pixel data of transfer syntax {syntax} do not decode"
            ) from error
        return
    try:
        if single:
            yield dataset.pixel_array
        else:
            yield from iter_pixels(dataset, indices=[number - 1 for number in frame_numbers])
    except _DECODE_ERRORS as error:
        raise UndecodableError(
            f"pixel data of transfer syntax {syntax or 'unknown'} do not decode"
        ) from error


def _is_lossy(dataset: Dataset) -> bool:
    syntax, said = _transfer_syntax(dataset), text(dataset, "LossyImageCompression")
    if syntax in _PERHAPS_LOSSY_SYNTAXES:
        return said != "00"
    return said == "01" or syntax in _LOSSY_SYNTAXES


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
    needed = pixels * frame_count(dataset) * required_number(dataset, "BitsAllocated") / 8
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
