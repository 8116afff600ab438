"""An analysis as DICOM objects: a Segmentation of its lesions, a report, key images, a PDF.

Built once, checked once, and re-sent as stored. The same images, model and settings give the same
UIDs and the same bytes, so that a second copy replaces the first instead of doubling it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Final, Literal

import numpy as np
from pydantic import JsonValue
from pydicom.dataset import Dataset

from config.settings import DEFAULT_KINDS
from dicom import codes
from dicom.attributes import text
from dicom.checks import (
    check_header,
    check_key_image,
    check_pdf,
    check_predecessor,
    check_probability_map,
    check_seg,
    check_sr,
    printed_strings,
)
from dicom.encapsulated_pdf import build_encapsulated_pdf
from dicom.errors import InconsistentSeriesError, ResultCheckError
from dicom.frames import frame_number
from dicom.identity import identity_digest, moment, normalised_header
from dicom.outline import footprints
from dicom.part10 import read_part10
from dicom.probability_map import MapContent, build_probability_map
from dicom.reference import DocumentReference
from dicom.secondary_capture import Capture, build_secondary_capture
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
from dicom.volume import slice_headers
from pipeline.appearance import COLOURS_CIELAB as COLOURS_CIELAB
from pipeline.appearance import RESEARCH_BANNER as RESEARCH_BANNER
from pipeline.appearance import colour_cielab, colour_rgb
from pipeline.brain import BrainMask
from pipeline.findings import (
    DEEP_WHITE_MATTER,
    INFRATENTORIAL,
    JUXTACORTICAL,
    PERIVENTRICULAR,
    REGIONS,
    Findings,
    Lesion,
    measure,
)
from pipeline.flow import Analysis
from pipeline.key_images import (
    Writing,
    banner_strip,
    draw_key_images,
    draw_key_slices,
    region_in_words,
)
from pipeline.model_pack import Manifest, ModelPack
from pipeline.orientation import axial_view
from pipeline.regions import Anatomy, name_regions
from pipeline.report_pdf import TITLE, LesionRow, PdfReport, build_pdf

RESULT_REVISION: Final = "2"
"""Raised when the same input gives other objects: it enters every UID of them."""

SEG_SERIES_NUMBER: Final = 9001
SR_SERIES_NUMBER: Final = 9002
KEY_IMAGE_SERIES_NUMBER: Final = 9003
PDF_SERIES_NUMBER: Final = 9004
PROBABILITY_SERIES_NUMBER: Final = 9005
"""Above what scanners number, so that viewers list results last."""

LESIONS_IN_WORDS: Final = 20
"""So many have a line in the summary. All have their measurements."""

NOT_ASSESSED: Final = (
    "Not assessed: spinal cord, optic nerve, contrast enhancement, change since earlier studies."
)
NO_REGIONS: Final = (
    "Not assessed: regions of the lesions (periventricular, juxtacortical or cortical, "
    "infratentorial, deep white matter)."
)

REGION_RULE: Final = (
    "Regions are approximate, by an average brain laid over this one: infratentorial, most of the "
    "lesion lies below the tentorium; else periventricular, it touches a lateral ventricle in the "
    "plane of the slices (or on the next slice of a 3-D acquisition); else juxtacortical, it "
    "touches the cerebral cortex in that way or lies in it (the two are not told apart); else deep "
    "white matter, deep grey matter included."
)

REGION_CODES: Final = {
    PERIVENTRICULAR: (codes.CEREBRAL_WHITE_MATTER, codes.PERIVENTRICULAR),
    # Cortex or white matter below it: a site that is both.
    JUXTACORTICAL: (codes.CEREBRAL_HEMISPHERE, codes.JUXTACORTICAL),
    INFRATENTORIAL: (codes.BRAIN, codes.INFRATENTORIAL),
    DEEP_WHITE_MATTER: (codes.CEREBRAL_WHITE_MATTER, codes.DEEP_WHITE_MATTER),
}
"""The nearest site that has a standard code, and the region in our own."""

LESIONS_IN_PDF: Final = 40
"""So many have a row there, one page of them; the largest come first."""

LONG_MM: Final = 3.0
"""Lesions of this length are counted apart: McDonald 2017 asks for it. No criterion is applied."""

Kind = Literal["seg", "sr", "key-image", "pdf", "probability", "note"]


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
    series_description: str
    image_names: tuple[str, ...]
    """What a viewer calls the image of every slice, in slice order."""
    predecessor: DocumentReference | None
    """The report that this result's report replaces."""

    @property
    def research(self) -> bool:
        """Does everything carry the banner?"""
        return self.pack.manifest.status == "research"

    def uid(self, kind: str, index: int = 0) -> str:
        return result_uid(*self.digests, kind, str(index))


def build_results(
    series: Series,
    analysis: Analysis,
    pack: ModelPack,
    settings: Mapping[str, JsonValue],
    kinds: Collection[str] = DEFAULT_KINDS,
    predecessor: DocumentReference | None = None,
) -> tuple[ResultObject, ...]:
    """The objects of one analysis.

    A Segmentation, unless no lesion was found, and a report are always made: the others speak of
    them. Which others are made changes nothing of any object.

    Args:
        series: That was analysed.
        analysis: Whose quality is not *fail*.
        pack: The model.
        settings: That change a result beside the pack (`Ensemble.settings`).
        kinds: `key-image`, `pdf` and `probability` are made if they are named here.
        predecessor: The report of an earlier result of the series, which this one replaces.

    Returns:
        In the order in which they are sent: what is referred to comes first.

    Raises:
        ResultCheckError: An object disagrees with its source or with itself: nothing is sent.
        InconsistentSeriesError: The images are not of one patient and study.
        MissingAttributeError, UndecodableTextError: A source lacks what a result must hold.
    """
    if analysis.quality.verdict == "fail":
        raise ResultCheckError("an analysis whose quality is 'fail' has no result")
    given = _input(series, analysis, pack, settings, predecessor)
    labels = analysis.lesions.labels
    results = []
    if analysis.findings.lesions:
        results.append(_result("seg", _build_seg(given, labels)))
    report = _report(given, analysis.findings)
    seg = results[0].dataset if results else None
    identity = _object_identity(given, "sr", SR_SERIES_NUMBER)
    sr = build_sr(given.sources, labels, seg, report, identity, predecessor)
    results.append(_result("sr", sr))
    captures = _captures(given) if "key-image" in kinds else ()
    for number, capture in enumerate(captures, start=1):
        results.append(_result("key-image", _build_key_image(given, capture, number)))
    if "pdf" in kinds:
        results.append(_result("pdf", _build_pdf(given, seg)))
    if "probability" in kinds:
        results.append(_result("probability", _build_probability_map(given)))
    _check(given, results, captures)
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
    series: Series,
    analysis: Analysis,
    pack: ModelPack,
    settings: Mapping[str, JsonValue],
    predecessor: DocumentReference | None = None,
) -> _Input:
    try:
        ordered = slice_headers(series, analysis.volume)
    except InconsistentSeriesError as error:
        raise ResultCheckError(str(error)) from error
    uids = sorted(set(analysis.volume.sop_instance_uids))
    identities = {identity_digest(header) for header in ordered}
    if len(identities) != 1:
        raise InconsistentSeriesError(f"{len(identities)} identities among {len(uids)} images")
    return _Input(
        sources=tuple(normalised_header(header) for header in ordered),
        analysis=analysis,
        pack=pack,
        digests=(
            "\\".join(uids),
            analysis.volume.pixel_digest,
            *identities,
            pack.digest,
            result_settings_digest(settings, analysis.brain),
            RESULT_REVISION,
        ),
        moment=moment(ordered),
        series_number=text(series.header, "SeriesNumber") or "without a number",
        series_description=text(ordered[0], "SeriesDescription"),
        image_names=_image_names(ordered),
        predecessor=predecessor,
    )


def _image_names(ordered: Sequence[Dataset]) -> tuple[str, ...]:
    """Instance and frame numbers, which viewers show; without them the slices are counted."""
    names = tuple(text(header, "InstanceNumber") for header in ordered)
    frames = [frame_number(header) for header in ordered]
    if None not in frames:
        of_one = len({text(header, "SOPInstanceUID") for header in ordered}) == 1
        pairs = zip(names, frames, strict=True)
        names = tuple(str(frame) if of_one else f"{name}/{frame}" for name, frame in pairs)
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
            colour_cielab=colour_cielab(lesion.label),
        )
        for lesion in findings.lesions
    )


def _object_identity(
    given: _Input, kind: Kind, series_number: int, instance_number: int = 1
) -> ObjectIdentity:
    manifest = given.pack.manifest
    what = {
        "seg": "FLAIR lesions",
        "sr": "FLAIR lesion report",
        "key-image": "FLAIR key images",
        "pdf": "FLAIR lesion PDF",
        "probability": "FLAIR probability",
    }[kind]
    date, time = given.moment
    return ObjectIdentity(
        sop_instance_uid=_instance_uid(given, kind, instance_number),
        instance_number=instance_number,
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


def _instance_uid(given: _Input, kind: Kind, instance_number: int) -> str:
    """A report that replaces another is another report than one that replaces none."""
    if kind == "sr" and given.predecessor is not None:
        return given.uid(f"{kind} after {given.predecessor.sop_instance_uid}")
    return given.uid(kind, instance_number - 1)


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
            *((("brain_parameters", _brain_parameters(brain)),) if brain.parameters else ()),
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
            extent=footprints(given.analysis.brain.mask.astype(np.int32))[1],
        ),
        regions=tuple(
            _measured(region, lesion)
            for region, lesion in zip(_regions(given, findings), findings.lesions, strict=True)
        ),
        algorithm=_algorithm(given),
        device_uid=result_uid("device", given.pack.digest),
        device_name=f"flairnode, model {manifest.name} {manifest.version}",
    )


def _measured(region: RegionOfInterest, lesion: Lesion) -> MeasuredRegion:
    if lesion.region not in REGION_CODES:  # not assessed: better no code than a wrong one
        return MeasuredRegion(region, _quantities(lesion))
    site, answer = REGION_CODES[lesion.region]
    return MeasuredRegion(region, _quantities(lesion), site, ((codes.REGION_OF_LESION, answer),))


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
        *_regions_in_words(findings),
        *_lesions_in_words(given, findings),
        "Measured by software on one FLAIR series. Not verified by a physician; no diagnosis.",
        f"Quality check: {analysis.quality.verdict.upper()}.",
        *(f"Quality, {flag.severity}: {flag.message}" for flag in analysis.quality.flags),
        _not_assessed_in_words(findings),
        _analysed_in_words(given),
        _rule_in_words(manifest),
        *_region_rule_in_words(given),
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
    return (
        f"{count} lesion{'s' if count > 1 else ''}, total volume {findings.total_volume_ml:.2f} ml;"
        f" {_long_lesions(findings)} of {count} at least {LONG_MM:g} mm long in the plane of the"
        " slices."
    )


def _long_lesions(findings: Findings) -> int:
    return sum(lesion.long_axis_mm >= LONG_MM for lesion in findings.lesions)


def _regions_in_words(findings: Findings) -> tuple[str, ...]:
    """Counts, no criterion: dissemination in space is the reader's verdict, on more than this."""
    if not findings.lesions or not findings.regions_assessed:
        return ()
    counts = (f"{region_in_words(region)} {len(findings.lesions_in(region))}" for region in REGIONS)
    return (
        f"Regions with lesions on this series (approximate): {', '.join(counts)};"
        " spinal cord and optic nerve not assessed.",
    )


def _not_assessed_in_words(findings: Findings) -> str:
    return NOT_ASSESSED if findings.regions_assessed else f"{NOT_ASSESSED} {NO_REGIONS}"


def _region_rule_in_words(given: _Input) -> tuple[str, ...]:
    anatomy = given.analysis.anatomy
    if not isinstance(anatomy, Anatomy):
        return ()
    if anatomy.own_ventricles:
        return (REGION_RULE,)
    return (
        REGION_RULE,
        "The lateral ventricles could not be seen in the images: those of the average brain were"
        " taken.",
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
            f"mean probability {lesion.mean_probability:.2f}"
            + (f"; {region_in_words(lesion.region)}." if lesion.region in REGIONS else ".")
        )
    if more := findings.lesion_count - len(lines):
        lines.append(f"{more} more, all smaller: see the measurements below.")
    return tuple(lines)


def _analysed_in_words(given: _Input) -> str:
    return f"Analysed: series {given.series_number}, {_geometry_in_words(given)}."


def _geometry_in_words(given: _Input) -> str:
    slices, rows, columns = given.analysis.volume.grid.shape
    slice_mm, row_mm, column_mm = given.analysis.volume.grid.spacing_mm
    acquired = axial_view(given.analysis.volume.grid).acquired
    plane = "" if acquired == "axial" else f"{acquired} "
    return (
        f"{slices} {plane}slices {slice_mm:.2f} mm apart, "
        f"{rows} x {columns} pixels of {row_mm:.2f} x {column_mm:.2f} mm"
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


def _brain_parameters(brain: BrainMask) -> str:
    """Everything that another mask would follow from; digests of weights in full."""
    return ",".join(
        f"{name}={value if isinstance(value, str) else format(value, 'g')}"
        for name, value in sorted(brain.parameters.items())
    )


def _brain_in_words(brain: BrainMask) -> str:
    match brain.method:
        case "supplied":
            return f"Brain mask: supplied from outside, {brain.volume_ml:.0f} ml."
        case "premasked":
            return f"Brain mask: the images came without skull, {brain.volume_ml:.0f} ml."
    return f"Brain mask: {brain.method} {brain.version}, {brain.volume_ml:.0f} ml."


# --- key images, PDF, probability map ----------------------------------------------------------


def _captures(given: _Input) -> tuple[Capture, ...]:
    manifest, analysis = given.pack.manifest, given.analysis
    writing = Writing(
        banner=RESEARCH_BANNER if given.research else "",
        found=found_in_words(analysis.findings),
        series=f"Series {given.series_number}",
        model=f"flairnode, model {manifest.name} {manifest.version} ({manifest.status}), SHA-256 "
        f"{given.pack.digest[:12]}",
        quality=f"Quality check: {analysis.quality.verdict.upper()}.",
        image_names=given.image_names,
    )
    return draw_key_images(analysis, writing)


def _build_key_image(given: _Input, capture: Capture, number: int) -> bytes:
    identity = _object_identity(given, "key-image", KEY_IMAGE_SERIES_NUMBER, number)
    return build_secondary_capture(given.sources, capture, identity)


def _build_pdf(given: _Input, seg: Dataset | None) -> bytes:
    content = build_pdf(
        _pdf_report(given, given.analysis.findings),
        draw_key_slices(given.analysis, given.image_names),
    )
    title = f"{RESEARCH_BANNER}: {TITLE}" if given.research else TITLE
    identity = _object_identity(given, "pdf", PDF_SERIES_NUMBER)
    return build_encapsulated_pdf(given.sources, seg, content, title, identity)


def _build_probability_map(given: _Input) -> bytes:
    lesions = given.analysis.lesions
    return build_probability_map(
        given.sources,
        lesions.probability,
        lesions.grid,
        MapContent(
            label="RESEARCH_PROB" if given.research else "LESION_PROB",
            description=(
                f"{RESEARCH_BANNER}. Lesion probability"
                if given.research
                else "Lesion probability on FLAIR, by software, unverified"
            ),
            explanation="Probability of a lesion as the model says it; not calibrated",
            research=given.research,
            dimension_organization_uid=given.uid("probability dimension organization"),
        ),
        _object_identity(given, "probability", PROBABILITY_SERIES_NUMBER),
    )


def _pdf_report(given: _Input, findings: Findings) -> PdfReport:
    manifest, analysis = given.pack.manifest, given.analysis
    rows = tuple(_lesion_row(given, lesion) for lesion in findings.lesions[:LESIONS_IN_PDF])
    more = findings.lesion_count - len(rows)
    return PdfReport(
        banner=RESEARCH_BANNER if given.research else "",
        identity=_identity_in_words(given.sources[0]),
        found=found_in_words(findings),
        figures=(
            (f"{findings.total_volume_ml:.2f} ml", "total volume"),
            (str(findings.lesion_count), "lesion" if findings.lesion_count == 1 else "lesions"),
            (str(_long_lesions(findings)), f"of them at least {LONG_MM:g} mm long"),
        ),
        verdict=analysis.quality.verdict,
        flags=tuple(flag.message for flag in analysis.quality.flags),
        regions=_region_rows(findings),
        lesions=rows,
        more_lesions=f"{more} more, all smaller: the structured report measures them."
        if more
        else "",
        not_assessed=_not_assessed_in_words(findings),
        analysed=(
            ("Series", f"{given.series_number}: {given.series_description}".rstrip(": ")),
            ("Images", _geometry_in_words(given)),
            ("Acquired", _moment_in_words(*given.moment)),
            ("Series Instance UID", str(given.sources[0].SeriesInstanceUID)),
        ),
        method=(
            "Measured by software on this one series; no other series and no earlier study was"
            " looked at.",
            _brain_in_words(analysis.brain),
            _rule_in_words(manifest),
            *_region_rule_in_words(given),
            *_left_out_in_words(findings, manifest),
        ),
        model=(
            ("Name", f"{manifest.name} {manifest.version}, {len(manifest.folds)} members"),
            ("Status", manifest.status),
            ("SHA-256", given.pack.digest),
            ("Intended use", manifest.intended_use),
            ("Trained on", manifest.training_data.text),
            ("Validation", manifest.validation.text),
        ),
        limits=manifest.limits,
        made_by=f"flairnode {version('flairnode')}, model {manifest.name} {manifest.version}, "
        f"SHA-256 {given.pack.digest[:12]}",
    )


def _lesion_row(given: _Input, lesion: Lesion) -> LesionRow:
    first, last = given.image_names[lesion.first_slice], given.image_names[lesion.last_slice]
    return LesionRow(
        number=lesion.label,
        colour=colour_rgb(lesion.label),
        region=region_in_words(lesion.region),
        volume_ml=f"{lesion.volume_ml:.3f}",
        long_axis_mm=f"{lesion.long_axis_mm:.1f}",
        images=first if first == last else f"{first} to {last}",
        probability=f"{lesion.mean_probability:.2f}",
    )


def _region_rows(findings: Findings) -> tuple[tuple[str, str, str], ...]:
    """() when no region is known: a table of one row that says so helps nobody."""
    if not findings.lesions or not findings.regions_assessed:
        return ()
    return tuple(
        (
            region_in_words(region),
            str(len(findings.lesions_in(region))),
            f"{sum(lesion.volume_ml for lesion in findings.lesions_in(region)):.3f}",
        )
        for region in REGIONS
    )


def _identity_in_words(source: Dataset) -> tuple[tuple[str, str], ...]:
    """Whose document it is, as the PACS knows it."""
    return (
        ("Patient", _name_in_words(text(source, "PatientName"))),
        ("Patient ID", text(source, "PatientID")),
        ("Birth date", _date_in_words(text(source, "PatientBirthDate"))),
        ("Sex", text(source, "PatientSex")),
        ("Study date", _date_in_words(text(source, "StudyDate"))),
        ("Accession number", text(source, "AccessionNumber")),
        ("Study", text(source, "StudyDescription")),
        ("Study ID", text(source, "StudyID")),
    )


def _name_in_words(name: str) -> str:
    """A PN: "Yamada^Tarou=山田^太郎" as "Yamada, Tarou (山田 太郎)"."""
    alphabetic, *others = name.split("=")
    plain = " ".join(alphabetic.replace("^", ", ", 1).replace("^", " ").split()).strip(" ,")
    further = [" ".join(other.replace("^", " ").split()) for other in others]
    written = [other for other in further if other]
    return f"{plain} ({', '.join(written)})".strip() if written else plain


def _date_in_words(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else ""


def _moment_in_words(date: str, time: str) -> str:
    return f"{_date_in_words(date)} {time[:2]}:{time[2:4]}"


# --- checks ------------------------------------------------------------------------------------


def _check(given: _Input, results: Sequence[ResultObject], captures: Sequence[Capture]) -> None:
    """Everything `check_results` knows to check, with the report measured anew from the SEG."""
    analysis, grid = given.analysis, given.analysis.volume.grid
    of_kind: dict[str, list[Dataset]] = {}
    for result in results:
        check_header(result.dataset, given.sources)
        of_kind.setdefault(result.kind, []).append(result.dataset)
    seg = _only(of_kind, "seg")
    if (seg is None) != (analysis.findings.lesion_count == 0):
        raise ResultCheckError("there is a Segmentation exactly when there are lesions")
    labels = np.zeros(grid.shape, np.int32)
    if seg is not None:
        regions = _regions(given, analysis.findings)
        labels = check_seg(seg, given.sources, grid, analysis.lesions.labels, regions)
    again = name_regions(
        measure(replace(analysis.lesions, labels=labels)), labels, analysis.anatomy
    )
    if again != analysis.findings:
        raise ResultCheckError("the findings are not those of the Segmentation")
    sr = _only(of_kind, "sr")
    if sr is None:
        raise ResultCheckError("there is no report")
    check_predecessor(sr, given.predecessor)
    check_sr(sr, given.sources, seg, labels, _report(given, again))
    images = of_kind.get("key-image", [])
    if len(images) != len(captures):
        raise ResultCheckError(f"{len(images)} key images of {len(captures)}")
    for image, capture in zip(images, captures, strict=True):
        check_key_image(image, given.sources, capture)
    if (document := _only(of_kind, "pdf")) is not None:
        check_pdf(document, given.sources, seg, _pdf_report(given, again).printed())
    if (parametric_map := _only(of_kind, "probability")) is not None:
        check_probability_map(parametric_map, given.sources, grid, analysis.lesions.probability)
    _check_banner(given, of_kind)


def _only(of_kind: Mapping[str, Sequence[Dataset]], kind: Kind) -> Dataset | None:
    found = of_kind.get(kind, ())
    if len(found) > 1:
        raise ResultCheckError(f"{len(found)} objects of kind {kind} instead of one")
    return found[0] if found else None


def check_results(
    results: Sequence[ResultObject],
    series: Series,
    analysis: Analysis,
    pack: ModelPack,
    settings: Mapping[str, JsonValue],
    predecessor: DocumentReference | None = None,
) -> None:
    """Check stored results again, before they are sent.

    Raises:
        ResultCheckError: References, geometry, numbers, identity or UIDs are not what they must be.
    """
    read = [_stored(result) for result in results]
    given = _input(series, analysis, pack, settings, predecessor)
    drawn = any(result.kind == "key-image" for result in results)
    _check(given, read, _captures(given) if drawn else ())


def _stored(result: ResultObject) -> ResultObject:
    return replace(result, dataset=read_part10(result.content))


def _check_banner(given: _Input, of_kind: Mapping[str, Sequence[Dataset]]) -> None:
    for kind, datasets in of_kind.items():
        for dataset in datasets:
            said = [RESEARCH_BANNER in str(dataset.SeriesDescription)]
            if kind in ("seg", "probability"):
                said.append(RESEARCH_BANNER in str(dataset.ContentDescription))
            elif kind == "pdf":
                said.append(RESEARCH_BANNER in str(dataset.DocumentTitle))
                said.append(RESEARCH_BANNER in printed_strings(dataset.EncapsulatedDocument))
            elif kind == "key-image":
                said.append(_burned_in(dataset))
            if any(one != given.research for one in said):
                status = given.pack.manifest.status
                raise ResultCheckError(f"{kind} of a {status} model: banner wrong")


def _burned_in(image: Dataset) -> bool:
    """Is the banner in the pixels, as it is drawn?"""
    strip = banner_strip(RESEARCH_BANNER)
    return bytes(image.PixelData[: strip.size]) == strip.tobytes()
