"""An analysis as DICOM objects: a Segmentation of its lesions and a report.

Built once, checked once, and re-sent as stored. The same images, model and settings give the same
UIDs and the same bytes, so that a second copy replaces the first instead of doubling it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Final, Literal

import numpy as np
from pydantic import JsonValue
from pydicom.dataset import Dataset

from dicom import codes
from dicom.attributes import text
from dicom.checks import check_header, check_seg, check_sr
from dicom.errors import InconsistentSeriesError, ResultCheckError
from dicom.identity import identity_digest, moment, normalised_header
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
from dicom.uids import result_uid
from pipeline.brain import BrainMask
from pipeline.findings import Findings, Lesion, measure
from pipeline.flow import Analysis
from pipeline.model_pack import Manifest, ModelPack

RESULT_REVISION: Final = "1"
"""Raised when the same input gives other objects: it enters every UID of them."""

RESEARCH_BANNER: Final = "RESEARCH - NOT FOR CLINICAL USE"

SEG_SERIES_NUMBER: Final = 9001
SR_SERIES_NUMBER: Final = 9002
"""Above what scanners number, so that viewers list results last."""

LESIONS_IN_WORDS: Final = 20
"""So many have a line in the summary. All have their measurements."""

NOT_ASSESSED: Final = (
    "Not assessed: spinal cord, optic nerve, regions of the lesions (periventricular, cortical or "
    "juxtacortical, infratentorial), contrast enhancement, change since earlier studies."
)

COLOURS_CIELAB: Final = (
    (70.6, 16.5, 74.7),  # orange
    (69.8, -12.0, -34.8),  # sky blue
    (70.8, -66.2, 46.2),  # green
    (89.1, -13.3, 75.5),  # yellow
    (54.2, 43.3, 63.3),  # vermilion
    (68.5, 60.6, -17.4),  # pink
    (54.4, 25.4, -71.4),  # blue
    (83.3, -42.9, 74.2),  # lime
    (83.6, -36.5, -25.5),  # cyan
    (65.3, 40.6, -53.5),  # violet
)
"""Told apart from each other and from grey; neighbours in number differ most. They start again
after the last. A colour says nothing of a lesion."""

Kind = Literal["seg", "sr", "note"]


@dataclass(frozen=True, slots=True, eq=False)
class ResultObject:
    """One DICOM object of a result, checked."""

    kind: Kind
    sop_instance_uid: str
    content: bytes
    """The file, as it was checked: what is stored and sent, as it is."""
    dataset: Dataset
    """`content`, read. Nobody assigns on it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """What every part of a result is made from."""

    sources: tuple[Dataset, ...]
    """Normalised header of the image of every slice, in slice order."""
    analysis: Analysis
    pack: ModelPack
    digests: tuple[str, ...]
    """What the result follows from: the first parts of every UID."""
    moment: tuple[str, str]
    series_number: str
    image_names: tuple[str, ...]
    """What a viewer calls the image of every slice, in slice order."""

    def uid(self, kind: str, index: int = 0) -> str:
        return result_uid(*self.digests, kind, str(index))


def build_results(
    series: Series, analysis: Analysis, pack: ModelPack, settings: Mapping[str, JsonValue]
) -> tuple[ResultObject, ...]:
    """The objects of one analysis: a Segmentation, unless no lesion was found, and a report.

    Args:
        series: That was analysed.
        analysis: Whose quality is not *fail*.
        pack: The model.
        settings: That change a result beside the pack (`Ensemble.settings`).

    Returns:
        In the order in which they are sent: what is referred to comes first.

    Raises:
        ResultCheckError: An object disagrees with its source or with itself: nothing is sent.
        InconsistentSeriesError: The images are not of one patient and study.
        MissingAttributeError, UndecodableTextError: A source lacks what a result must hold.
    """
    if analysis.quality.verdict == "fail":
        raise ResultCheckError("an analysis whose quality is 'fail' has no result")
    given = _input(series, analysis, pack, settings)
    labels = analysis.lesions.labels
    results = []
    if analysis.findings.lesions:
        results.append(_result("seg", _build_seg(given, labels)))
    report = _report(given, analysis.findings)
    seg = results[0].dataset if results else None
    identity = _object_identity(given, "sr", SR_SERIES_NUMBER)
    results.append(_result("sr", build_sr(given.sources, labels, seg, report, identity)))
    _check(given, results)
    return tuple(results)


def result_settings_digest(settings: Mapping[str, JsonValue], brain: BrainMask) -> str:
    """SHA-256 of what changes a result beside images, model and code.

    A mask that was supplied is an input like the images, and enters with its voxels.
    """
    changing = {
        "settings": dict(settings),
        "brain": [brain.method, brain.version, dict(brain.parameters)],
        "mask": hashlib.sha256(np.packbits(brain.mask).tobytes()).hexdigest()
        if brain.method == "supplied"
        else None,
    }
    canonical = json.dumps(changing, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _input(
    series: Series, analysis: Analysis, pack: ModelPack, settings: Mapping[str, JsonValue]
) -> _Input:
    headers = {instance.sop_instance_uid: instance.header for instance in series.instances}
    uids = analysis.volume.sop_instance_uids
    if len(uids) != analysis.volume.grid.shape[0] or set(uids) != headers.keys():
        raise ResultCheckError(
            f"{len(uids)} images in the volume, {len(headers)} in the series: not the same"
        )
    ordered = [headers[uid] for uid in uids]
    identities = {identity_digest(header) for header in ordered}
    if len(identities) != 1:
        raise InconsistentSeriesError(f"{len(identities)} identities among {len(uids)} images")
    return _Input(
        sources=tuple(normalised_header(header) for header in ordered),
        analysis=analysis,
        pack=pack,
        digests=(
            "\\".join(sorted(uids)),
            analysis.volume.pixel_digest,
            *identities,
            pack.digest,
            result_settings_digest(settings, analysis.brain),
            RESULT_REVISION,
        ),
        moment=moment(ordered),
        series_number=text(series.header, "SeriesNumber") or "without a number",
        image_names=_image_names(ordered),
    )


def _image_names(ordered: Sequence[Dataset]) -> tuple[str, ...]:
    """Instance Numbers, which viewers show; without them the slices are counted."""
    names = tuple(text(header, "InstanceNumber") for header in ordered)
    if all(names) and len(set(names)) == len(names):
        return names
    return tuple(str(index) for index in range(1, len(ordered) + 1))


def _result(kind: Kind, content: bytes) -> ResultObject:
    dataset = read_part10(content)
    return ResultObject(kind, str(dataset.SOPInstanceUID), content, dataset)


# --- Segmentation ------------------------------------------------------------------------------


def _build_seg(given: _Input, labels: Labels) -> bytes:
    research = given.pack.manifest.status == "research"
    return build_seg(
        given.sources,
        labels,
        given.analysis.volume.grid,
        _regions(given, given.analysis.findings),
        Content(
            label="RESEARCH_LESIONS" if research else "FLAIR_LESIONS",
            description=(
                f"{RESEARCH_BANNER}. Lesions, unverified"
                if research
                else "Lesions on FLAIR, found by software, unverified"
            ),
            algorithm=_algorithm(given),
            dimension_organization_uid=given.uid("dimension organization"),
        ),
        _object_identity(given, "seg", SEG_SERIES_NUMBER),
    )


def _regions(given: _Input, findings: Findings) -> tuple[RegionOfInterest, ...]:
    return tuple(
        RegionOfInterest(
            number=lesion.label,
            label=f"Lesion {lesion.label}",
            tracking_uid=given.uid("lesion", lesion.label),
            category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
            property_type=codes.LESION_OF_BRAIN,
            colour_cielab=COLOURS_CIELAB[(lesion.label - 1) % len(COLOURS_CIELAB)],
        )
        for lesion in findings.lesions
    )


def _object_identity(given: _Input, kind: Kind, series_number: int) -> ObjectIdentity:
    manifest = given.pack.manifest
    what = {"seg": "FLAIR lesions", "sr": "FLAIR lesion report"}[kind]
    date, time = given.moment
    return ObjectIdentity(
        sop_instance_uid=given.uid(kind),
        series_instance_uid=given.uid(f"{kind} series"),
        series_number=series_number,
        series_description=(
            f"{RESEARCH_BANNER}: {what}" if manifest.status == "research" else what
        ),
        date=date,
        time=time,
        equipment=Equipment(
            model_name="flairnode",
            serial_number=given.pack.digest[:16],
            software_versions=(
                f"flairnode {version('flairnode')}",
                f"model {manifest.name} {manifest.version}"[:64],
                f"brain {given.analysis.brain.method} {given.analysis.brain.version}"[:64],
            ),
        ),
    )


def _algorithm(given: _Input) -> Algorithm:
    manifest, brain = given.pack.manifest, given.analysis.brain
    return Algorithm(
        name=f"flairnode model {manifest.name}"[:64],
        version=manifest.version,
        parameters=(
            ("model_status", manifest.status),
            ("model_sha256", given.pack.digest),
            ("members", str(len(manifest.folds))),
            ("threshold", f"{manifest.threshold:g}"),
            ("minimum_lesion_mm3", f"{manifest.minimum_lesion_mm3:g}"),
            ("connectivity", "26"),
            ("brain_mask", f"{brain.method} {brain.version}".strip()),
        ),
    )


# --- report ------------------------------------------------------------------------------------


def _report(given: _Input, findings: Findings) -> Report:
    manifest = given.pack.manifest
    met = given.analysis.quality.verdict == "pass"
    return Report(
        statements=_statements(given, findings),
        procedure=codes.IMAGING_PROCEDURE,
        totals=Totals(
            label="All lesions",
            tracking_uid=given.uid("all lesions"),
            finding=codes.LESION_OF_BRAIN,
            site=codes.BRAIN,
            quantities=(
                Quantity(codes.NUMBER_OF_LESIONS, findings.lesion_count, codes.NO_UNITS),
                Quantity(
                    codes.VOLUME,
                    _millilitres(findings.total_volume_ml),
                    codes.MILLILITRE,
                    codes.TOTAL,
                ),
            ),
            evaluations=(
                (
                    codes.PROCESSING_AND_FINDINGS,
                    codes.SUCCEEDED_WITH_FINDINGS
                    if findings.lesions
                    else codes.SUCCEEDED_WITHOUT_FINDINGS,
                ),
                (
                    codes.QUALITY_ASSESSMENT,
                    codes.QUALITY_MET if met else codes.QUALITY_NOT_MET,
                ),
            ),
        ),
        regions=tuple(
            MeasuredRegion(region, _quantities(lesion))
            for region, lesion in zip(_regions(given, findings), findings.lesions, strict=True)
        ),
        algorithm=_algorithm(given),
        device_uid=result_uid("device", given.pack.digest),
        device_name=f"flairnode, model {manifest.name} {manifest.version}",
    )


def _quantities(lesion: Lesion) -> tuple[Quantity, ...]:
    # Fold disagreement has no honest code (a standard deviation over members is none over voxels):
    # it is in result.json, and a high one is a quality flag.
    return (
        Quantity(codes.VOLUME, _millilitres(lesion.volume_ml), codes.MILLILITRE),
        Quantity(codes.LONG_AXIS, round(lesion.long_axis_mm, 1), codes.MILLIMETRE),
        Quantity(codes.PROBABILITY, round(lesion.mean_probability, 3), codes.NO_UNITS, codes.MEAN),
    )


def _millilitres(volume_ml: float) -> float:
    return round(volume_ml, 5)  # 0.01 mm3: a hundredth of the smallest voxel in use


def _statements(given: _Input, findings: Findings) -> tuple[str, ...]:
    """What a radiologist should read, in that order."""
    manifest, analysis = given.pack.manifest, given.analysis
    return (
        *((RESEARCH_BANNER,) if manifest.status == "research" else ()),
        found_in_words(findings),
        *_lesions_in_words(given, findings),
        "Measured by software on one FLAIR series. Not verified by a physician; no diagnosis.",
        f"Quality check: {analysis.quality.verdict.upper()}.",
        *(f"Quality, {flag.severity}: {flag.message}" for flag in analysis.quality.flags),
        NOT_ASSESSED,
        _analysed_in_words(given),
        _rule_in_words(manifest),
        *_left_out_in_words(findings, manifest),
        _brain_in_words(analysis.brain),
        f"Model: {manifest.name} {manifest.version}, {len(manifest.folds)} members, status "
        f"{manifest.status}, SHA-256 {given.pack.digest}.",
        f"Intended use: {manifest.intended_use}",
        *(f"Limit: {limit}" for limit in manifest.limits),
    )


def found_in_words(findings: Findings) -> str:
    """The result in one sentence; that nothing was found is not that nothing was looked at."""
    if not findings.lesions:
        return "No lesions found by the software: 0 lesions, 0 ml. The series was analysed."
    count = findings.lesion_count
    long = sum(lesion.long_axis_mm >= 3.0 for lesion in findings.lesions)
    return (
        f"{count} lesion{'s' if count > 1 else ''}, total volume {findings.total_volume_ml:.2f} ml;"
        f" {long} of {count} at least 3 mm long in the plane of the slices."
    )


def _lesions_in_words(given: _Input, findings: Findings) -> tuple[str, ...]:
    """For viewers that show the text of a report and nothing else; the largest come first."""
    names = given.image_names
    lines = []
    for lesion in findings.lesions[:LESIONS_IN_WORDS]:
        first, last = names[lesion.first_slice], names[lesion.last_slice]
        where = f"image {first}" if first == last else f"images {first} to {last}"
        lines.append(
            f"Lesion {lesion.label}: {lesion.volume_ml:.3f} ml, {lesion.long_axis_mm:.1f} mm long, "
            f"{where}, largest on {names[lesion.largest_slice]}; "
            f"mean probability {lesion.mean_probability:.2f}."
        )
    if more := findings.lesion_count - len(lines):
        lines.append(f"{more} more, all smaller: see the measurements below.")
    return tuple(lines)


def _analysed_in_words(given: _Input) -> str:
    slices, rows, columns = given.analysis.volume.grid.shape
    slice_mm, row_mm, column_mm = given.analysis.volume.grid.spacing_mm
    return (
        f"Analysed: series {given.series_number}, {slices} slices {slice_mm:.2f} mm apart, "
        f"{rows} x {columns} pixels of {row_mm:.2f} x {column_mm:.2f} mm."
    )


def _rule_in_words(manifest: Manifest) -> str:
    return (
        "A lesion is a group of voxels that touch, also at edges and corners (3-D, "
        f"26-connectivity), of probability above {manifest.threshold:g}, of at least "
        f"{manifest.minimum_lesion_mm3:g} mm3."
    )


def _left_out_in_words(findings: Findings, manifest: Manifest) -> tuple[str, ...]:
    left_out = []
    if findings.dropped_small:
        left_out.append(
            f"Left out: {findings.dropped_small} smaller than {manifest.minimum_lesion_mm3:g} mm3."
        )
    if findings.dropped_leaks:
        left_out.append(
            f"Left out: {findings.dropped_leaks} very bright and part of tissue that goes on "
            "outside the brain mask, taken for orbital fat or scalp."
        )
    return tuple(left_out)


def _brain_in_words(brain: BrainMask) -> str:
    match brain.method:
        case "supplied":
            return f"Brain mask: supplied from outside, {brain.volume_ml:.0f} ml."
        case "premasked":
            return f"Brain mask: the images came without skull, {brain.volume_ml:.0f} ml."
    return f"Brain mask: {brain.method} {brain.version}, {brain.volume_ml:.0f} ml."


# --- checks ------------------------------------------------------------------------------------


def _check(given: _Input, results: Sequence[ResultObject]) -> None:
    """Everything `check_results` knows to check, with the report measured anew from the SEG."""
    analysis, grid = given.analysis, given.analysis.volume.grid
    by_kind = {result.kind: result.dataset for result in results}
    seg = by_kind.get("seg")
    if (seg is None) != (analysis.findings.lesion_count == 0):
        raise ResultCheckError("there is a Segmentation exactly when there are lesions")
    for result in by_kind.values():
        check_header(result, given.sources)
    labels = np.zeros(grid.shape, np.int32)
    if seg is not None:
        regions = _regions(given, analysis.findings)
        labels = check_seg(seg, given.sources, grid, analysis.lesions.labels, regions)
    again = measure(replace(analysis.lesions, labels=labels))
    if again != analysis.findings:
        raise ResultCheckError("the findings are not those of the Segmentation")
    check_sr(by_kind["sr"], given.sources, seg, labels, _report(given, again))
    _check_banner(given, by_kind)


def check_results(
    results: Sequence[ResultObject],
    series: Series,
    analysis: Analysis,
    pack: ModelPack,
    settings: Mapping[str, JsonValue],
) -> None:
    """Check stored results again, before they are sent.

    Raises:
        ResultCheckError: References, geometry, numbers, identity or UIDs are not what they must be.
    """
    read = [_stored(result) for result in results]
    _check(_input(series, analysis, pack, settings), read)


def _stored(result: ResultObject) -> ResultObject:
    return replace(result, dataset=read_part10(result.content))


def _check_banner(given: _Input, by_kind: Mapping[Kind, Dataset]) -> None:
    research = given.pack.manifest.status == "research"
    for kind, dataset in by_kind.items():
        described = RESEARCH_BANNER in str(dataset.SeriesDescription)
        if kind == "seg":
            described = described and RESEARCH_BANNER in str(dataset.ContentDescription)
        if described != research:
            raise ResultCheckError(f"{kind} of a {given.pack.manifest.status} model: banner wrong")
