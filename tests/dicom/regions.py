"""Three regions on an oblique anisotropic phantom, as the builders of results take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicom import codes
from dicom.identity import normalised_header
from dicom.outline import footprints
from dicom.part10 import read_part10
from dicom.seg import (
    Algorithm,
    Content,
    Equipment,
    Labels,
    ObjectIdentity,
    RegionOfInterest,
    build_seg,
)
from dicom.series import Series
from dicom.sr import MeasuredRegion, Quantity, Report, Totals, build_sr
from dicom.volume import Grid, stack_grid
from tests.pipeline.analysed import three_lesions

ALGORITHM = Algorithm("a model", "1.2", (("threshold", "0.5"), ("connectivity", "26")))
EQUIPMENT = Equipment("a program", "0001", ("program 1.0", "model 1.2"))


def object_identity(kind: str, number: int) -> ObjectIdentity:
    return ObjectIdentity(
        f"2.25.{number}", f"2.25.{number + 1}", number, f"Regions ({kind})", "20240102", "101500",
        EQUIPMENT,
    )  # fmt: skip


def regions_of(labels: Labels) -> tuple[RegionOfInterest, ...]:
    return tuple(
        RegionOfInterest(
            number=number,
            label=f"Region {number}",
            tracking_uid=f"2.25.{1000 + number}",
            category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
            property_type=codes.LESION_OF_BRAIN,
            colour_cielab=(70.6, 16.5, 74.7),
        )
        for number in range(1, int(labels.max()) + 1)
    )


def report_of(labels: Labels, grid: Grid) -> Report:
    voxel_ml = grid.voxel_volume_ml

    def volume(voxels: int) -> Quantity:
        return Quantity(codes.VOLUME, round(voxels * voxel_ml, 5), codes.MILLILITRE)

    regions = regions_of(labels)
    return Report(
        statements=("First words.", "Größe, 山田."),
        procedure=codes.IMAGING_PROCEDURE,
        totals=Totals(
            label="All regions",
            tracking_uid="2.25.1000",
            finding=codes.LESION_OF_BRAIN,
            site=codes.BRAIN,
            quantities=(
                Quantity(codes.NUMBER_OF_LESIONS, len(regions), codes.NO_UNITS),
                volume(int(np.count_nonzero(labels))),
            ),
            evaluations=((codes.QUALITY_ASSESSMENT, codes.QUALITY_MET),),
            extent=footprints(np.ones(labels.shape, np.int32))[1],
        ),
        regions=tuple(
            MeasuredRegion(
                region,
                (volume(int(np.sum(labels == region.number))),),
                # One of them has a place, so that a report is seen with and without.
                *(
                    (
                        codes.CEREBRAL_WHITE_MATTER,
                        ((codes.REGION_OF_LESION, codes.PERIVENTRICULAR),),
                    )
                    if region.number == 2
                    else ()
                ),
            )
            for region in regions
        ),
        algorithm=ALGORITHM,
        device_uid="2.25.77",
        device_name="a program",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """Results of one series, and what they were made from."""

    sources: tuple[Dataset, ...]
    grid: Grid
    labels: Labels
    regions: tuple[RegionOfInterest, ...]
    report: Report
    seg_bytes: bytes
    sr_bytes: bytes

    @property
    def seg(self) -> Dataset:
        return read_part10(self.seg_bytes)

    @property
    def sr(self) -> Dataset:
        return read_part10(self.sr_bytes)


def build(series: Series, labels: Labels) -> Built:
    grid, instances = stack_grid(series)
    sources = tuple(normalised_header(instance.header) for instance in instances)
    regions, report = regions_of(labels), report_of(labels, grid)
    seg_bytes = b""
    if regions:
        content = Content("REGIONS", "Regions, unverified", ALGORITHM, "2.25.55")
        seg_bytes = build_seg(sources, labels, grid, regions, content, object_identity("SEG", 9001))
    sr_bytes = build_sr(
        sources,
        labels,
        read_part10(seg_bytes) if regions else None,
        report,
        object_identity("SR", 9003),
    )
    return Built(sources, grid, labels, regions, report, seg_bytes, sr_bytes)


_built: list[Built] = []


def three_regions(make_flair_series: Callable[..., Any]) -> Built:
    """`three_lesions` on the default phantom, built once: everything read from it is a new copy."""
    if not _built:
        _built.append(build(make_flair_series().series, three_lesions()))
    return _built[0]
