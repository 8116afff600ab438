"""A structured report of measurements (TID 1500), as a Comprehensive 3D SR.

What a person reads first comes first: a summary in plain words. The measurements follow, coded, for
programs: totals, then for every region a volumetric group that points to its segment and a planar
group with its outline. OHIF shows a black pane for a report that has segment references alone; it
draws the outline, and puts both groups together by their tracking UID.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import highdicom as hd
from highdicom.sr import ContainerContentItem, ContentItem, ContentSequence, TextContentItem
from highdicom.sr.enum import RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code
from pydicom.valuerep import DS

from dicom import codes
from dicom.frames import frame_number
from dicom.identity import MANUFACTURER
from dicom.outline import Footprint, footprints
from dicom.reference import DocumentReference
from dicom.seg import Algorithm, Labels, ObjectIdentity, RegionOfInterest, building, dated_bytes


@dataclass(frozen=True, slots=True)
class Quantity:
    """A measured value, as it is printed: already rounded to the decimals that mean something."""

    name: Code
    value: int | float
    unit: Code
    derivation: Code | None = None


@dataclass(frozen=True, slots=True)
class MeasuredRegion:
    """A region of interest and what was measured of it."""

    region: RegionOfInterest
    quantities: tuple[Quantity, ...]
    site: Code | None = None
    evaluations: tuple[tuple[Code, Code], ...] = ()
    """Coded questions and answers."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What was measured of all regions together; also there when no region was found."""

    label: str
    tracking_uid: str
    finding: Code
    site: Code
    quantities: tuple[Quantity, ...]
    evaluations: tuple[tuple[Code, Code], ...]
    """Coded questions and answers."""
    extent: Footprint
    """Of what was looked at: the totals are inferred from it, also where nothing was found."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report says."""

    statements: tuple[str, ...]
    """Plain sentences, the most important first."""
    procedure: Code
    totals: Totals
    regions: tuple[MeasuredRegion, ...]
    algorithm: Algorithm
    device_uid: str
    device_name: str


def build_sr(
    sources: Sequence[Dataset],
    labels: Labels,
    seg: Dataset | None,
    report: Report,
    identity: ObjectIdentity,
    predecessor: DocumentReference | None = None,
) -> bytes:
    """An unverified, preliminary report on images and, if there is one, a Segmentation, as a file.

    Args:
        sources: `identity.normalised_header` of the image of every slice, in slice order.
        labels: (slices, rows, columns) on their grid; the outlines are drawn from it.
        seg: The Segmentation of these labels; None when there is no region.
        report: What it says.
        identity: UIDs, series and dates.
        predecessor: An earlier report that this one replaces.

    Returns:
        The bytes, and not highdicom's object, which shares elements with `sources`.

    Source:
        PS3.16 TID 1500, 1410, 1411, 1501, 1600; PS3.3 A.35.13 (Comprehensive 3D SR).
    """
    if (seg is None) != (not report.regions):
        raise ValueError("regions are reported exactly when there is a Segmentation of them")
    groups: list[Any] = [_totals_group(report, sources)]
    lies = footprints(labels)
    for measured in report.regions:
        assert seg is not None  # noqa: S101  # the check above
        footprint = lies[measured.region.number]
        groups.append(_volumetric_group(measured, footprint, sources, seg))
        groups.append(_outline_group(measured, footprint, sources))
    document = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=_observer(report)),
        procedure_reported=report.procedure,
        imaging_measurements=groups,
        title=codes.IMAGING_MEASUREMENT_REPORT,
    )
    content = document[0].ContentSequence
    # After the concept modifiers and the observer, where TID 1500 has the images: a reader should
    # not have to scroll past them to what was found.
    place = len(content) - 1
    content.insert(place, _summary(report.statements))
    content.insert(place + 1, _image_library(sources))
    # highdicom copies its content twice: seconds for sixty lesions. It gets the root alone.
    root = ContainerContentItem(name=codes.IMAGING_MEASUREMENT_REPORT, template_id="1500")
    root.ContentSequence = ContentSequence()
    with building():
        built = hd.sr.Comprehensive3DSR(
            evidence=[*sources, *([seg] if seg is not None else [])],
            content=root,
            **identity.for_highdicom(),
            is_complete=True,
            is_final=False,
            is_verified=False,
        )
        built.ContentSequence = content
        if any(measured.evaluations for measured in report.regions):
            built.CodingSchemeIdentificationSequence = [_own_scheme()]
        if predecessor is not None:
            built.PredecessorDocumentsSequence = [_hierarchical(predecessor)]
        return dated_bytes(built, identity)


def _hierarchical(reference: DocumentReference) -> Dataset:
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID = reference.sop_class_uid
    instance.ReferencedSOPInstanceUID = reference.sop_instance_uid
    series.SeriesInstanceUID = reference.series_instance_uid
    series.ReferencedSOPSequence = [instance]
    study.StudyInstanceUID = reference.study_instance_uid
    study.ReferencedSeriesSequence = [series]
    return study


def _own_scheme() -> Dataset:
    """PS3.3 C.12.1.1: who answers for codes that no standard has."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = codes.OWN_SCHEME
    scheme.CodingSchemeName = codes.OWN_SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme


def _observer(report: Report) -> hd.sr.ObserverContext:
    return hd.sr.ObserverContext(
        observer_type=dictionary.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=report.device_uid,
            name=report.device_name,
            manufacturer_name=MANUFACTURER,
            model_name=f"{report.algorithm.name} {report.algorithm.version}",
        ),
    )


def _totals_group(
    report: Report, sources: Sequence[Dataset]
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """Without a reference to a segment: it speaks of all of them, or of none.

    Each number has the outline of what was looked at. OHIF 3.13 breaks off, and shows a black pane
    for the whole report, where a group holds no coordinates.
    """
    totals, algorithm = report.totals, report.algorithm
    extent = hd.sr.CoordinatesForMeasurement(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=totals.extent.outline,
        source_image=_image_of_region(sources[totals.extent.largest_slice]),
    )
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=totals.tracking_uid, identifier=totals.label
        ),
        finding_type=totals.finding,
        finding_sites=[hd.sr.FindingSite(anatomic_location=totals.site)],
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            # In one item: dcmqi reads the first alone.
            parameters=["; ".join(f"{name}={value}" for name, value in algorithm.parameters)],
        ),
        measurements=[_measurement(quantity, extent) for quantity in totals.quantities],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(name=name, value=value)
            for name, value in totals.evaluations
        ],
    )


def _volumetric_group(
    measured: MeasuredRegion,
    footprint: Footprint,
    sources: Sequence[Dataset],
    seg: Dataset,
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    region = measured.region
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(region),
        # Not ReferencedSegment.from_segmentation, which raises AttributeError for a Segmentation
        # of one segment (highdicom 0.28.2).
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=region.number,
            source_images=[
                hd.sr.SourceImageForSegmentation(kind, uid, frames or None)
                for uid, (kind, frames) in _by_object(sources[i] for i in footprint.slices).items()
            ],
        ),
        finding_type=region.property_type,
        finding_sites=None
        if measured.site is None
        else [hd.sr.FindingSite(anatomic_location=measured.site)],
        measurements=[_measurement(quantity) for quantity in measured.quantities],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(name=name, value=value)
            for name, value in measured.evaluations
        ],
    )


def _outline_group(
    measured: MeasuredRegion,
    footprint: Footprint,
    sources: Sequence[Dataset],
) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """Only the line. OHIF merges it with the volumetric group, and would print all else twice."""
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(measured.region),
        referenced_region=hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=footprint.outline,
            source_image=_image_of_region(sources[footprint.largest_slice]),
        ),
        finding_type=measured.region.property_type,
    )


def _by_object(sources: Iterable[Dataset]) -> dict[str, tuple[str, list[int]]]:
    """SOP Class and the frames that are meant of every object; no frames where it is one slice."""
    found: dict[str, tuple[str, list[int]]] = {}
    for source in sources:
        uid = str(source.SOPInstanceUID)
        _, frames = found.setdefault(uid, (str(source.SOPClassUID), []))
        if (number := frame_number(source)) is not None:
            frames.append(number)
    return found


def _tracking(region: RegionOfInterest) -> hd.sr.TrackingIdentifier:
    return hd.sr.TrackingIdentifier(uid=region.tracking_uid, identifier=region.tracking_id)


def _image_of_region(source: Dataset) -> hd.sr.SourceImageForRegion:
    frame = frame_number(source)
    return hd.sr.SourceImageForRegion(
        source.SOPClassUID, source.SOPInstanceUID, None if frame is None else [frame]
    )


def _measurement(
    quantity: Quantity, inferred_from: hd.sr.CoordinatesForMeasurement | None = None
) -> hd.sr.Measurement:
    measurement = hd.sr.Measurement(
        name=quantity.name,
        value=quantity.value,
        unit=quantity.unit,
        derivation=quantity.derivation,
        referenced_coordinates=None if inferred_from is None else [inferred_from],
    )
    if isinstance(quantity.value, int):  # highdicom would print a count as 3.0
        measurement[0].MeasuredValueSequence[0].NumericValue = DS(str(quantity.value))
    return measurement


def _summary(statements: Sequence[str]) -> ContentItem:
    """TID 1500 is extensible; sentences in the root would stand apart from one another."""
    container = ContainerContentItem(
        name=codes.SUMMARY, relationship_type=RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence(
        [
            TextContentItem(
                name=codes.COMMENT,
                value=statement,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
            for statement in statements
        ]
    )
    return container


def _image_library(sources: Sequence[Dataset]) -> ContentItem:
    """Every object that was analysed. highdicom's own describes each in a dozen lines.

    Whole objects: a stack that leaves out frames of an object is refused (`dicom.volume`).
    """
    described: list[ContentItem] = [
        hd.sr.CodeContentItem(
            name=codes.MODALITY,
            value=codes.MAGNETIC_RESONANCE,
            relationship_type=RelationshipTypeValues.HAS_ACQ_CONTEXT,
        ),
        hd.sr.UIDRefContentItem(
            name=codes.FRAME_OF_REFERENCE_UID,
            value=sources[0].FrameOfReferenceUID,
            relationship_type=RelationshipTypeValues.HAS_ACQ_CONTEXT,
        ),
    ]
    images: list[ContentItem] = [
        hd.sr.ImageContentItem(
            name=codes.SOURCE,
            referenced_sop_class_uid=kind,
            referenced_sop_instance_uid=uid,
            relationship_type=RelationshipTypeValues.CONTAINS,
        )
        for uid, (kind, _) in _by_object(sources).items()
    ]
    group = ContainerContentItem(
        name=codes.IMAGE_LIBRARY_GROUP, relationship_type=RelationshipTypeValues.CONTAINS
    )
    group.ContentSequence = ContentSequence([*described, *images])
    library = ContainerContentItem(
        name=codes.IMAGE_LIBRARY, relationship_type=RelationshipTypeValues.CONTAINS
    )
    library.ContentSequence = ContentSequence([group])
    return library
