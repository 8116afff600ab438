"""Fixtures every room uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from dicom.series import Series, read_series

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real MS data, which are not part of the repository (README, "Test data")."""
    folder = Path(os.environ.get("FLAIRNODE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"no test data at {folder}: set FLAIRNODE_TEST_DATA")
    return folder


@dataclass(frozen=True, slots=True, eq=False)
class FlairSeries:
    """A FLAIR series that was written to disk, and what was written."""

    folder: Path
    paths: tuple[Path, ...]
    """In order of file name, which is not the order of the slices."""
    affine: npt.NDArray[np.float64]
    """(slice, row, column) to LPS mm, of the whole stack (dropped slices included)."""
    voxels: npt.NDArray[np.integer[Any]]
    """Stored values of the whole stack."""
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]
    """In slice order, of the whole stack."""

    @property
    def series(self) -> Series:
        return read_series(self.paths)


def oblique_affine(
    spacing_mm: tuple[float, float, float],
    degrees_about_xyz: tuple[float, float, float] = (12.0, -4.0, 7.0),
    origin_lps_mm: tuple[float, float, float] = (-21.0, -33.0, 12.5),
) -> npt.NDArray[np.float64]:
    """Axial slices, turned about the patient's x, then y, then z axis."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees_about_xyz)):
        first, second = [other for other in range(3) if other != axis]
        rotation = np.eye(3)
        rotation[first, first] = rotation[second, second] = np.cos(angle)
        rotation[second, first], rotation[first, second] = np.sin(angle), -np.sin(angle)
        turn = rotation @ turn
    slice_step, row_step, column_step = turn[:, 2], turn[:, 1], turn[:, 0]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([slice_step, row_step, column_step], axis=1) * spacing_mm
    affine[:3, 3] = origin_lps_mm
    return affine


def smooth_voxels(shape: tuple[int, int, int]) -> npt.NDArray[np.uint16]:
    """12-bit values that differ along every axis."""
    slices, rows, columns = np.indices(shape)
    return ((37 * slices + 11 * rows + 5 * columns) % 4096).astype(np.uint16)


def _decimal(value: float) -> str:
    return format_number_as_ds(float(value))


def _flair_header(shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> Dataset:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    header.StudyDate = header.SeriesDate = header.ContentDate = "20240102"
    header.StudyTime = header.SeriesTime = header.ContentTime = "101500"
    header.AccessionNumber = "ACC001"
    header.Modality = "MR"
    header.Manufacturer = "TEST SCANNER"
    header.ManufacturerModelName = "Phantom"
    header.ReferringPhysicianName = ""
    header.StudyDescription = "MR head"
    header.SeriesDescription = "t2 flair tra"
    header.PatientBirthDate = "19700101"
    header.PatientSex = "O"
    header.BodyPartExamined = "BRAIN"
    header.ScanningSequence = ["SE", "IR"]
    header.SequenceVariant = ["SK", "SP"]
    header.ScanOptions = ""
    header.MRAcquisitionType = "2D"
    header.SliceThickness = _decimal(spacing[0] * 0.8)  # a gap, so that thickness misleads
    header.RepetitionTime = "9000"
    header.EchoTime = "120"
    header.InversionTime = "2500"
    header.EchoTrainLength = "20"
    header.MagneticFieldStrength = "1.5"
    header.StudyID = "1"
    header.SeriesNumber = "4"
    header.AcquisitionNumber = "1"
    header.PatientPosition = "HFS"
    header.PositionReferenceIndicator = ""
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows, header.Columns = shape[1:]
    header.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    columns_along, rows_along = affine[:3, 2] / spacing[2], affine[:3, 1] / spacing[1]
    header.ImageOrientationPatient = [_decimal(v) for v in (*columns_along, *rows_along)]
    header.BitsAllocated = 16
    header.BitsStored, header.HighBit = 12, 11
    header.PixelRepresentation = 0
    return header


def _override(header: Dataset, overrides: Mapping[str, Any]) -> None:
    for keyword, value in overrides.items():
        if value is None:
            if keyword in header:
                delattr(header, keyword)
        else:
            setattr(header, keyword, value)


@pytest.fixture
def make_flair_series(tmp_path: Path) -> Callable[..., FlairSeries]:
    """Writes a small but complete FLAIR series of classic MR images and says what it wrote.

    By default thick, oblique, anisotropic and not square, so that a swapped axis shows; 12 bits in
    16; TR 9000, TE 120, TI 2500; the same UIDs every time. File names are in another order than the
    slices. Parameters, all by name:

    folder: where (default: a new folder below tmp_path)
    slices, rows, columns; spacing_mm (slice, row, column); degrees_about_xyz
    affine: instead of spacing and angles
    voxels: stored integers (slices, rows, columns), instead of shape and default values
    instance_numbers: in slice order (default 1, 2, ...)
    patient_name, patient_id, study_instance_uid, series_instance_uid
    overrides: {keyword: value}, None removes the attribute
    per_slice: {slice: {keyword: value}}
    drop: slices that are not written; double: slices written twice with two UIDs
    transfer_syntax_uid: compressed with pydicom's encoders
    """
    made = 0

    def make(  # one place names every knob
        folder: Path | None = None,
        *,
        slices: int = 10,
        rows: int = 48,
        columns: int = 36,
        spacing_mm: tuple[float, float, float] = (6.5, 0.5, 0.75),
        degrees_about_xyz: tuple[float, float, float] = (12.0, -4.0, 7.0),
        affine: npt.NDArray[np.float64] | None = None,
        voxels: npt.NDArray[np.integer[Any]] | None = None,
        instance_numbers: Sequence[int] | None = None,
        patient_name: str = "Phantom^Flair",
        patient_id: str = "TEST-1",
        study_instance_uid: str = "",
        series_instance_uid: str = "",
        overrides: Mapping[str, Any] | None = None,
        per_slice: Mapping[int, Mapping[str, Any]] | None = None,
        drop: Collection[int] = (),
        double: Collection[int] = (),
        transfer_syntax_uid: str = ExplicitVRLittleEndian,
    ) -> FlairSeries:
        nonlocal made
        made += 1
        folder = folder or tmp_path / f"flair{made}"
        folder.mkdir(parents=True, exist_ok=True)
        if affine is None:
            affine = oblique_affine(spacing_mm, degrees_about_xyz)
        if voxels is None:
            voxels = smooth_voxels((slices, rows, columns))
        study_uid = study_instance_uid or generate_uid(entropy_srcs=["study", patient_id])
        series_uid = series_instance_uid or generate_uid(entropy_srcs=["series", study_uid])
        header = _flair_header(voxels.shape, affine)  # type: ignore[arg-type]
        header.PatientName, header.PatientID = patient_name, patient_id
        header.StudyInstanceUID, header.SeriesInstanceUID = study_uid, series_uid
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", study_uid])
        if voxels.dtype.kind == "i":
            header.PixelRepresentation = 1
        uids, paths = [], []
        for index in range(len(voxels)):
            uids.append(generate_uid(entropy_srcs=["image", series_uid, str(index)]))
            if index in drop:
                continue
            written = [uids[-1]]
            if index in double:
                written.append(generate_uid(entropy_srcs=["double", series_uid, str(index)]))
            for copy, uid in enumerate(written):
                image = FileDataset("", deepcopy(header), file_meta=FileMetaDataset())
                image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, UID(uid)
                image.InstanceNumber = (instance_numbers or range(1, 1 + len(voxels)))[index]
                image.ImagePositionPatient = [_decimal(v) for v in (affine @ [index, 0, 0, 1])[:3]]
                image.PixelData = voxels[index].astype(voxels.dtype.newbyteorder("<")).tobytes()
                image["PixelData"].VR = "OW"
                _override(image, overrides or {})
                _override(image, (per_slice or {}).get(index, {}))
                image.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
                if transfer_syntax_uid not in (
                    ExplicitVRLittleEndian,
                    "1.2.840.10008.1.2",
                    "1.2.840.10008.1.2.1.99",
                ):
                    image.compress(UID(transfer_syntax_uid), generate_instance_uid=False)
                image.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
                # Names in another order than the slices.
                paths.append(folder / f"IM{(index * 7 + 3) % 101:03d}_{index:03d}_{copy}.dcm")
                image.save_as(paths[-1], enforce_file_format=True)
        return FlairSeries(
            folder=folder,
            paths=tuple(sorted(paths)),
            affine=affine,
            voxels=voxels,
            study_instance_uid=study_uid,
            series_instance_uid=series_uid,
            sop_instance_uids=tuple(uids),
        )

    return make


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401  # pytest names no public type
    """Print what became of every sample (tests/integration/test_sample_table.py)."""
    rows = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, value in getattr(report, "user_properties", ())
        if name == "sample" and getattr(report, "when", "") == "call"
    ]
    if rows:
        terminalreporter.section("samples: where, which, outcome, reason")
        for row in sorted(rows):
            terminalreporter.write_line(row)
