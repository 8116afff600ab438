"""A picture for any viewer: Secondary Capture, RGB, one frame.

One frame an object, since viewers that draw nothing else draw these; the multi-frame class is
younger and less read. What is burned in is said to be burned in, and there is no pixel spacing and
no Frame of Reference: a viewer must not offer millimetres on a picture that has writing on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from dicom import codes
from dicom.part10 import part10_bytes
from dicom.result_header import image_references, result_header
from dicom.seg import ObjectIdentity, building

RgbPixels = npt.NDArray[np.uint8]
"""(rows, columns, 3), sRGB."""


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """One picture, and what it was made from."""

    pixels: RgbPixels
    slices: tuple[int, ...]
    """Index of every slice of the source that it shows."""
    patient_orientation: tuple[str, str]
    """Where its rows and its columns lead, PS3.3 C.7.6.1.1.1; every slice lies the same way."""
    comment: str
    """What it shows, in a sentence."""
    derivation: str
    """How it was made."""


def build_secondary_capture(
    sources: Sequence[Dataset], capture: Capture, identity: ObjectIdentity
) -> bytes:
    """The picture as a file.

    Args:
        sources: `identity.normalised_header` of the image of every slice, in slice order.
        capture: The picture.
        identity: UIDs, series, number in the series and dates.

    Source:
        PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6.1 (SC Equipment), C.7.6.3 (Image Pixel).
    """
    shown = [sources[index] for index in capture.slices]
    with building():
        image = result_header(sources[0], identity, SecondaryCaptureImageStorage)
        image.Modality = "OT"  # MR would put it into the hanging of the images themselves
        image.BodyPartExamined = "BRAIN"  # without it a laterality is required
        image.ConversionType = "WSD"
        image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        image.ImageComments = capture.comment
        image.DerivationDescription = capture.derivation
        image.PatientOrientation = list(capture.patient_orientation)
        image.BurnedInAnnotation = "YES"
        _keep_loss(shown, image)
        image.SourceImageSequence = image_references(shown)
        for item in image.SourceImageSequence:
            item.PurposeOfReferenceCodeSequence = [_item(codes.SOURCE_IMAGE_FOR_PROCESSING)]
        rows, columns, image.SamplesPerPixel = capture.pixels.shape
        image.Rows, image.Columns = rows, columns
        image.PhotometricInterpretation = "RGB"
        image.PlanarConfiguration = 0
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit = 7
        image.PixelRepresentation = 0
        content = np.ascontiguousarray(capture.pixels).tobytes()
        image.PixelData = content + b"\0" * (len(content) % 2)
        image["PixelData"].VR = "OB"
        return part10_bytes(image)


def _keep_loss(shown: Sequence[Dataset], image: Dataset) -> None:
    """What was lost once stays lost: the flag follows an image into what is derived from it."""
    lossy = next((one for one in shown if one.get("LossyImageCompression") == "01"), None)
    image.LossyImageCompression = "00" if lossy is None else "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy is not None and lossy.get(keyword) is not None:
            setattr(image, keyword, lossy[keyword].value)


def _item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = code.value, code.meaning
    item.CodingSchemeDesignator = code.scheme_designator
    return item
