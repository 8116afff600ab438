"""A probability per voxel, as a Parametric Map.

A Parametric Map and not a FRACTIONAL Segmentation: OHIF 3.13 meets a FRACTIONAL one with an error
where the study is opened, in the place of a Segmentation that a reader needs; a Parametric Map it
does not know it lists and leaves alone. It is also the primitive that IHE AI Results names for it.

32-bit floats and not integers with a Real World Value Mapping: dcmqi's `paramap2itkimage` reads no
other, and nothing is rounded. The values are what a network says (a softmax), not calibrated; the
mask of the result is the Segmentation, never a threshold that a viewer puts on this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom import codes
from dicom.seg import ObjectIdentity, building, dated_bytes, name_the_real_images, placed
from dicom.volume import Grid

Probability = npt.NDArray[np.float32]
"""(slices, rows, columns), 0 to 1."""


@dataclass(frozen=True, slots=True)
class MapContent:
    """What the map as a whole says of itself."""

    label: str
    """CS, 16 characters."""
    description: str
    """LO, 64 characters."""
    explanation: str
    """What a value means."""
    research: bool
    dimension_organization_uid: str


def build_probability_map(
    sources: Sequence[Dataset],
    probability: Probability,
    grid: Grid,
    content: MapContent,
    identity: ObjectIdentity,
) -> bytes:
    """The map as a file: a frame for every slice, and every frame names its image.

    Args:
        sources: `identity.normalised_header` of the image of every slice, in slice order.
        probability: On the grid of these images.
        grid: Of the probabilities.
        content: Label, description, meaning.
        identity: UIDs, series and dates.

    Source:
        PS3.3 A.75 (Parametric Map IOD), C.7.6.16.2.11 (Real World Value Mapping).
    """
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="PROBABILITY",
        lut_explanation=content.explanation,
        unit=codes.NO_UNITS,
        value_range=(0.0, 1.0),
        intercept=0.0,
        slope=1.0,
        quantity_definition=codes.PROBABILITY,
    )
    qualification = hd.ContentQualificationValues
    with building():
        built = hd.pm.ParametricMap(
            source_images=[placed(source, grid) for source in sources],
            pixel_array=probability.astype(np.float32),
            **identity.for_highdicom(),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
            content_description=content.description,
            content_label=content.label,
            content_qualification=qualification.RESEARCH
            if content.research
            else qualification.PRODUCT,
        )
        built.BodyPartExamined = "BRAIN"
        built.ContentCreatorName = None  # type 2
        # highdicom writes no Frame Anatomy; dcmqi 1.5.7 dies of that.
        built.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy()]
        _order_frames(built, probability, grid)
        name_the_real_images(built, sources)
        # highdicom draws a random one.
        organization = UID(content.dimension_organization_uid)
        for item in (*built.DimensionOrganizationSequence, *built.DimensionIndexSequence):
            item.DimensionOrganizationUID = organization
        return dated_bytes(built, identity)


def _order_frames(built: Dataset, probability: Probability, grid: Grid) -> None:
    """Put the frames in the order of the slices, along the normal.

    highdicom orders them against it. By their positions both are the same stack, but dcmqi 1.5.7
    goes by the order of frames alone, and would stand the map on its head.
    """
    along = grid.affine[:3, 0]

    def place(group: Dataset) -> float:
        position = group.PlanePositionSequence[0].ImagePositionPatient
        return float(np.dot(along, np.array(position, float)))

    frames = sorted(built.PerFrameFunctionalGroupsSequence, key=place)
    for number, group in enumerate(frames, start=1):
        group.FrameContentSequence[0].DimensionIndexValues = number
    built.PerFrameFunctionalGroupsSequence = frames
    built.FloatPixelData = probability.astype("<f4").tobytes()


def _anatomy() -> Dataset:
    region, anatomy = Dataset(), Dataset()
    region.CodeValue, region.CodeMeaning = codes.BRAIN.value, codes.BRAIN.meaning
    region.CodingSchemeDesignator = codes.BRAIN.scheme_designator
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [region]
    return anatomy
