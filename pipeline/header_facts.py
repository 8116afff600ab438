"""What the headers of a series tell: the facts that the rules of the selection are asked of.

Physics is computed here, from classic or Enhanced headers; names become flags by the lists of words
of the rules. Every look into a header goes through `found` and its like, so that an attribute is
found wherever its kind of object keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from config.selection import RuleSet, ThresholdName, Value
from dicom.attributes import number, numbers, text, values
from dicom.frames import as_classic
from dicom.identity import is_own_result
from dicom.series import Series
from dicom.volume import ORIENTATION_TOLERANCE, Grid

MR_IMAGES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
USUAL_NULLING_MS = 2300.0  # of TR 8000, where the TR is not given

_AGENT_TEXTS = ("ContrastBolusAgent", "ContrastBolusIngredient")
_AGENT_AMOUNTS = ("ContrastBolusVolume", "ContrastBolusTotalDose")
_AGENT_SEQUENCES = ("ContrastBolusAgentSequence",)


@dataclass(frozen=True, slots=True)
class Physics:
    """How the images were acquired, as far as their headers tell."""

    repetition_ms: float | None
    echo_ms: float | None
    inversion_ms: float | None
    spin_echo: bool | None
    """False for a gradient echo; None if the header does not say."""
    echo_planar: bool
    says_inversion: bool
    """The header states an inversion pulse, whether or not it gives the time."""
    names_flair: bool
    names_inversion: bool
    names_other: bool
    thresholds: Mapping[ThresholdName, float]
    """Those that hold at the field of the scanner."""

    @property
    def nulling_ms(self) -> float | None:
        """Inversion time at which cerebrospinal fluid gives no signal, at this repetition time.

        Source:
            Inversion recovery: M(TI) = 1 - 2 exp(-TI/T1) + exp(-TR/T1) = 0.
        """
        if self.repetition_ms is None:
            return None
        t1_ms = self.thresholds["csf_t1_ms"]
        return t1_ms * (log(2.0) - log(1.0 + exp(-self.repetition_ms / t1_ms)))

    @property
    def nulls_csf(self) -> bool | None:
        """Does the inversion time suppress cerebrospinal fluid? None if it is not known."""
        if self.inversion_ms is None:
            return None
        nulling_ms = self.nulling_ms or USUAL_NULLING_MS
        low, high = self.thresholds["nulling_low"], self.thresholds["nulling_high"]
        return low * nulling_ms <= self.inversion_ms <= high * nulling_ms

    @property
    def inverts(self) -> bool:
        """Is there an inversion, where no inversion time is given (GE, older scanners)?

        Either the header states the pulse, or the times are those of a FLAIR and of few other
        sequences, and the description names it.
        """
        if self.says_inversion:
            return True
        long = (self.repetition_ms or 0.0) >= self.thresholds["long_repetition_ms"]
        return long and (self.names_flair or self.names_inversion)

    @property
    def is_flair(self) -> bool:
        """A spin echo with a long echo time that nulls, or seems to null, cerebrospinal fluid."""
        shortest_ms = self.thresholds["shortest_repetition_ms"]
        return (
            self.echo_ms is not None
            and self.echo_ms >= self.thresholds["shortest_echo_ms"]
            and (self.repetition_ms is None or self.repetition_ms >= shortest_ms)
            and self.spin_echo is not False
            and not self.echo_planar
            and (self.nulls_csf or (self.nulls_csf is None and self.inverts))
        )

    def in_words(self) -> str:
        """The three times, as far as known."""
        times = (("TR", self.repetition_ms), ("TE", self.echo_ms), ("TI", self.inversion_ms))
        return ", ".join(
            f"{name} {value:.4g} ms" if value is not None else f"no {name}" for name, value in times
        )


@dataclass(frozen=True, slots=True)
class Contrast:
    """What tells that images were acquired after contrast medium."""

    why: str
    """"" where nothing tells of contrast."""

    @property
    def given(self) -> bool:
        """Does anything tell of it?"""
        return bool(self.why)


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """Everything a rule can be asked of, for one series."""

    physics: Physics
    values: Mapping[str, Value]
    """By the names of `config.selection.FACTS`."""
    shown_image_type: str

    def quoted(self) -> dict[str, str]:
        """What an explanation may quote, by the names it uses in braces."""
        shown = {name: _shown(value) for name, value in self.values.items()}
        limits = {str(name): f"{value:g}" for name, value in self.physics.thresholds.items()}
        return {
            **limits,
            **shown,
            "image_type": self.shown_image_type,
            "told": self.physics.in_words(),
        }


def facts_of(series: Series, rules: RuleSet, contrast: Contrast | None = None) -> Facts:
    """The facts of one series; those of its geometry are not known yet."""
    series = as_classic(series)
    header = series.header
    physics = physics_of(series, rules)
    sop_class = UID(text(header, "SOPClassUID"), config.IGNORE)  # else pydicom logs a wrong one
    mr_image = sop_class in MR_IMAGES
    names_localizer = rules.words["localizer"].search(
        " ".join((text(header, "SeriesDescription"), text(header, "ProtocolName")))
    )
    contrast = contrast or stated_contrast(series, rules)
    known: dict[str, Value] = {
        "repetition_ms": physics.repetition_ms,
        "echo_ms": physics.echo_ms,
        "inversion_ms": physics.inversion_ms,
        "nulling_ms": physics.nulling_ms,
        "b_value": max(number(one.header, "DiffusionBValue") or 0.0 for one in series.instances),
        "field_tesla": _positive(header, "MagneticFieldStrength"),
        "instances": float(len(series.instances)),
        "series_number": number(header, "SeriesNumber"),
        "sop_class": sop_class.name,
        "modality": text(header, "Modality"),
        "manufacturer": text(header, "Manufacturer"),
        "model": text(header, "ManufacturerModelName"),
        "station": text(header, "StationName"),
        "description": text(header, "SeriesDescription"),
        "protocol": text(header, "ProtocolName"),
        "study_description": text(header, "StudyDescription"),
        "sequence_name": _joined(header, "SequenceName", "PulseSequenceName"),
        "scan_options": _joined(header, "ScanOptions", "SequenceVariant"),
        "image_type": _image_type(series),
        "image_part": next(iter(values(header, "ImageType")[2:3]), "").upper(),
        "body_part": text(header, "BodyPartExamined").upper(),
        "acquisition": _joined(header, "MRAcquisitionType").upper(),
        "mr_image": mr_image,
        "image_object": "Image Storage" in sop_class.name and not mr_image,
        "secondary_capture": "Secondary Capture" in sop_class.name,
        "own_result": not mr_image and is_own_result(header),
        "spin_echo": physics.spin_echo,
        "echo_planar": physics.echo_planar,
        "states_inversion": physics.says_inversion,
        "inverts": physics.inverts,
        "nulls_csf": physics.nulls_csf,
        "flair_physics": physics.is_flair,
        "many_orientations": _points_many_ways(series),
        "post_contrast": contrast.given,
        "names_flair": physics.names_flair,
        "names_inversion": physics.names_inversion,
        "names_other": physics.names_other,
        "names_localizer": names_localizer is not None,
    }
    return Facts(physics, known, "\\".join(values(header, "ImageType"))[:64])


def with_geometry(facts: Facts, grid: Grid) -> Facts:
    """The facts of a series that is a stack."""
    slices, (slice_mm, *pixel_mm) = grid.shape[0], grid.spacing_mm
    measured: dict[str, Value] = {
        "slices": float(slices),
        "slice_mm": float(slice_mm),
        "pixel_mm": float(max(pixel_mm)),
        "extent_mm": float(slices * slice_mm),
    }
    return Facts(facts.physics, {**facts.values, **measured}, facts.shown_image_type)


def physics_of(series: Series, rules: RuleSet) -> Physics:
    """Acquisition of a series, from classic or Enhanced headers.

    Of several echoes the shortest counts: a double echo is no FLAIR.
    """
    header = series.header
    sequence = {token.upper() for token in found(header, "ScanningSequence")}
    options = _joined(header, "ScanOptions", "SequenceVariant").upper()
    pulse_echo = " ".join(found(header, "EchoPulseSequence")).upper()  # Enhanced MR
    contrast = " ".join(found(header, "AcquisitionContrast")).upper()  # Enhanced MR, PS3.3 C.8.13.1
    names = _joined(
        header, "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName"
    )
    echoes = [time for one in series.instances if (time := _echo_ms(one.header)) is not None]
    spin_echo: bool | None = None
    if "SE" in sequence or pulse_echo in ("SPIN", "BOTH"):
        spin_echo = True
    elif "GR" in sequence or pulse_echo == "GRADIENT":
        spin_echo = False
    return Physics(
        repetition_ms=_positive(header, "RepetitionTime"),
        echo_ms=min(echoes, default=None),
        inversion_ms=_positive(header, "InversionTime") or _positive(header, "InversionTimes"),
        spin_echo=spin_echo,
        echo_planar="EP" in sequence or "YES" in found(header, "EchoPlanarPulseSequence"),
        says_inversion="IR" in sequence
        or "YES" in found(header, "InversionRecovery")
        or "FLUID_ATTENUATED" in contrast
        or bool(re.search(r"\bIR\b|\bIR_|FLAIR", options)),
        names_flair=bool(rules.words["flair"].search(names)),
        names_inversion=bool(rules.words["inversion"].search(names)),
        names_other=bool(rules.words["other"].search(names)),
        thresholds=rules.at_field(_positive(header, "MagneticFieldStrength")),
    )


def field_strength_t(series: Series) -> float | None:
    """Tesla, as the header says it."""
    return _positive(series.header, "MagneticFieldStrength")


def stated_contrast(series: Series, rules: RuleSet) -> Contrast:
    """Whether the series itself says that contrast medium was given before it.

    The agent, its amount or its sequence in the header; else the description, unless it also says
    "without".
    """
    for one in series.instances[:1]:
        header = one.header
        for keyword in _AGENT_TEXTS:
            told = " ".join(found(header, keyword)).strip()
            if told and rules.words["no_agent"].search(told) is None:
                return Contrast(f"{keyword} is stated")
        for keyword in _AGENT_AMOUNTS:
            if _positive(header, keyword) is not None:
                return Contrast(f"{keyword} is stated")
        for keyword in _AGENT_SEQUENCES:
            if any(True for _ in _items(header, keyword)):
                return Contrast(f"{keyword} is stated")
        if "YES" in found(header, "ContrastBolusAgentAdministered"):
            return Contrast("ContrastBolusAgentAdministered is YES")
    description = text(series.header, "SeriesDescription")
    words = rules.words
    if words["post_contrast"].search(description) and not words["pre_contrast"].search(description):
        return Contrast("its description says so")
    return Contrast("")


def acquired_at(series: Series) -> str | None:
    """Date and time of the earliest image, as text that sorts; None if not all is stated."""
    series = as_classic(series)
    found_times = [moment for one in series.instances if (moment := _moment(one.header))]
    return min(found_times, default=None)


def found(header: Dataset, keyword: str) -> tuple[str, ...]:
    """Every value of an attribute, wherever this kind of object keeps it; () if it is nowhere."""
    return next((told for one in _places(header) if (told := values(one, keyword))), ())


def _moment(header: Dataset) -> str | None:
    whole = text(header, "AcquisitionDateTime")
    if len(whole) >= 14:
        return _sortable(whole)
    date = text(header, "AcquisitionDate") or text(header, "SeriesDate")
    time = text(header, "AcquisitionTime") or text(header, "SeriesTime")
    return _sortable(date + time) if len(date) == 8 and len(time) >= 6 else None


def _sortable(moment: str) -> str:
    whole, _, fraction = re.split(r"[+-]", moment)[0].partition(".")
    return f"{whole}.{fraction:0<6}"


def _joined(header: Dataset, *keywords: str) -> str:
    return " ".join(part for keyword in keywords if (part := "\\".join(found(header, keyword))))


def _image_type(series: Series) -> str:
    """Every value of every image, in capitals, separated by commas."""
    told = {token.upper() for one in series.instances for token in values(one.header, "ImageType")}
    return ", ".join(sorted(token.replace("_", " ") for token in told))


def _points_many_ways(series: Series) -> bool:
    told = [numbers(one.header, "ImageOrientationPatient") for one in series.instances]
    known = [one for one in told if one is not None and len(one) == 6]
    return len(known) > 1 and float(np.ptp(np.array(known), axis=0).max()) > ORIENTATION_TOLERANCE


def _positive(header: Dataset, keyword: str) -> float | None:
    """A number above zero: GE writes 0 where there is no inversion time."""
    for dataset in _places(header):
        told = number(dataset, keyword)
        if told is not None and told > 0:
            return told
    return None


def _echo_ms(header: Dataset) -> float | None:
    return _positive(header, "EchoTime") or _positive(header, "EffectiveEchoTime")


def _places(header: Dataset) -> Iterable[Dataset]:
    """The header, and the functional groups of an Enhanced object (PS3.3 C.8.13.5)."""
    yield header
    for groups_keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for groups in _items(header, groups_keyword)[:1]:
            for keyword in (
                "MRTimingAndRelatedParametersSequence",
                "MREchoSequence",
                "MRModifierSequence",
                "ContrastBolusUsageSequence",
            ):
                yield from _items(groups, keyword)[:1]


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    told = dataset.get(keyword)
    return told if told is not None else ()


def _shown(value: Value) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
