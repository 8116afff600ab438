"""FLAIR series for the faults: small, oblique, anisotropic, and as many patients as one likes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from tests.conftest import _flair_header, oblique_affine, smooth_voxels

HEAD_MM = (6.5, 4.0, 5.0)  # 48 x 36 pixels of 4 x 5 mm make a field of view of a head
PATIENT_NAME = "Nobody^Knows"


@dataclass(frozen=True)
class Sent:
    """A series on disk, one file per slice, in slice order."""

    folder: Path
    study_instance_uid: str
    series_instance_uid: str
    paths: tuple[Path, ...]


def write_flair(
    folder: Path,
    patient: str,
    *,
    slices: int = 10,
    rows: int = 48,
    columns: int = 36,
    study_of: str = "",
    number: int = 4,
    brighter: int = 0,
    only: tuple[int, ...] | None = None,
    contrast: str = "flair",
) -> Sent:
    """Write a series of a patient.

    Args:
        folder: A new one is made in it.
        patient: Its identifier; the same one gives the same UIDs.
        slices: How many.
        rows: Of each.
        columns: Of each.
        study_of: Another patient, whose study it is to be a further series of.
        number: Series Number; another one is another series.
        brighter: Added to every pixel: the same UIDs with other content.
        only: These slices alone, the UIDs as in the whole stack.
        contrast: `flair`, or `t1`, which is not for us.
    """
    folder.mkdir(exist_ok=True)
    target = folder / f"{len(list(folder.iterdir())):05d}-{patient}"
    target.mkdir()
    affine = oblique_affine(HEAD_MM if rows == 48 else (6.5, 1.0, 1.0))
    voxels = smooth_voxels((slices, rows, columns)) + brighter
    header = _flair_header(voxels.shape, affine)
    owner = study_of or patient
    study_uid = generate_uid(entropy_srcs=["faults study", owner])
    series_uid = generate_uid(entropy_srcs=["faults series", patient, str(number)])
    header.PatientName, header.PatientID = PATIENT_NAME, owner
    header.StudyInstanceUID, header.SeriesInstanceUID = study_uid, series_uid
    header.FrameOfReferenceUID = generate_uid(entropy_srcs=["faults frame", owner])
    header.SeriesNumber = number
    if contrast == "t1":
        header.RepetitionTime, header.EchoTime, header.SeriesDescription = "500", "12", "t1 se tra"
        header.ScanningSequence, header.SequenceVariant = "SE", "SP"
        del header.InversionTime
    paths = []
    for index in range(slices) if only is None else only:
        image = FileDataset("", deepcopy(header), file_meta=FileMetaDataset())
        image.SOPClassUID = MRImageStorage
        image.SOPInstanceUID = UID(generate_uid(entropy_srcs=["image", series_uid, str(index)]))
        image.InstanceNumber = index + 1
        position = (affine @ [index, 0, 0, 1])[:3]
        image.ImagePositionPatient = [format_number_as_ds(float(v)) for v in position]
        image.PixelData = voxels[index].astype("<u2").tobytes()
        image["PixelData"].VR = "OW"
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(target / f"{index:03d}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return Sent(target, str(study_uid), str(series_uid), tuple(paths))
