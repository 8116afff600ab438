"""The whole series that cases are made from: small, so that many can be tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage


def small_series(folder: Path, syntax: str = ExplicitVRLittleEndian) -> list[Path]:
    """Three slices of a FLAIR, 64 x 48, with all that a volume needs."""
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 900, (3, 64, 48), dtype=np.uint16)
    paths = []
    for number in range(3):
        image = Dataset()
        image.SpecificCharacterSet = "ISO_IR 100"
        image.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, f"1.2.3.4.{number + 1}"
        image.StudyDate, image.StudyTime = "20240102", "101112"
        image.Modality, image.Manufacturer = "MR", "MAKER"
        image.SeriesDescription = "t2 flair"
        image.PatientName, image.PatientID = "Fuzz^Case", "F1"
        image.PatientBirthDate, image.PatientSex = "19700101", "O"
        image.ScanningSequence, image.SequenceVariant = ["SE", "IR"], "SK"
        image.MRAcquisitionType, image.SliceThickness = "2D", "5"
        image.RepetitionTime, image.EchoTime, image.InversionTime = "9000", "120", "2500"
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
        image.SeriesNumber, image.InstanceNumber = 2, number + 1
        image.ImagePositionPatient = ["0", "0", str(5.5 * number)]
        image.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        image.FrameOfReferenceUID = "1.2.3.3"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns, image.PixelSpacing = 64, 48, ["0.9", "0.8"]
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelRepresentation = 0
        image.PixelData = pixels[number].tobytes()
        image["PixelData"].VR = "OW"
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        if syntax != ExplicitVRLittleEndian:
            image.compress(syntax, generate_instance_uid=False)
        paths.append(folder / f"{number}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths
