"""Which series of a study is the FLAIR to analyse, and why each other one is not.

Physics decides: a FLAIR is a spin echo with a long echo time, whose inversion time leaves no signal
of cerebrospinal fluid at its repetition time. Names differ by vendor, country and technologist;
they support what the physics allows, and never overrule it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from config.settings import SelectionSettings
from dicom.attributes import number, numbers, text, values
from dicom.errors import (
    IncompleteSeriesError,
    MissingAttributeError,
    MixedOrientationError,
    MultiFrameError,
    Outcome,
    RepeatedStackError,
    StudyError,
    TruncatedFileError,
)
from dicom.frames import as_classic
from dicom.identity import is_own_result
from dicom.series import Series, Study, Unreadable
from dicom.volume import ORIENTATION_TOLERANCE, Grid, stack_grid
from pipeline.orientation import axial_view

SELECTED = "selected"
OTHER_FLAIR_CHOSEN = "other-flair-chosen"

SHORTEST_ECHO_MS = 60.0  # clinical FLAIR 80 to 160, 3-D up to 650 as written; T1 and PD below 40
SHORTEST_REPETITION_MS = 4000.0  # 3-D FLAIR from 4800; T1 "FLAIR" about 2000 to 3000
LONG_REPETITION_MS = 6000.0  # of a 2-D FLAIR; asked for where no inversion is stated
CSF_T1_MS = 4200.0  # at 1.5 and 3 T; cerebrospinal fluid is nearly water at body temperature
NULLING_RANGE = (0.7, 1.3)  # of the nulling time: scanners differ in echo train and CSF T1;
# STIR lies at 0.1, double inversion recovery (TR 7500, TI 3000) at 1.32
SHORT_REPETITION_MS = 100.0  # of a localizer's gradient echo

_ENHANCED = (EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
_MR_IMAGES = (MRImageStorage, *_ENHANCED)

_PROJECTION = re.compile(r"\bM(AX|IN)? ?IP\b|\bMIP|MINIP|PROJECTION|VOLUME ?RENDER|\bVRT?\b")
_REFORMAT = re.compile(r"\bC?MPR|REFORMAT|\bCURVED\b")
_MOSAIC = re.compile(r"\bMOSAIC\b|\bTILED\b")
_LOCALIZER = re.compile(r"LOCALI[SZ]ER|\bSCOUT\b")
_DIFFUSION = re.compile(r"\bDIFFUSION\b|\bTRACEW?\b|\bDWI\b|\bDTI\b|\bB\d+\b|\bISODWI\b")
_PARAMETRIC = re.compile(
    r"\bE?ADC\b|\bE?FA\b|\bTENSOR\b|\bR?(REL)?CB[FV]\b|\bMTT\b|\bTTP\b|\bTMAX\b|\bPBP\b"
    r"|\b[TR][12](STAR|\*)? ?MAP\b|\bPD ?MAP\b|\bMAP\b|\bFIELD_?MAP\b|\bB[01]\b|\bQSM\b"
    r"|\bKTRANS\b|\bKEP\b|\bVELOCITY\b|\bSUB(TRACTION)?\b|\bASL\b"
)
# The value of ImageType behind ORIGINAL\PRIMARY: phase, real, imaginary part instead of magnitude.
_NOT_MAGNITUDE = frozenset({"P", "R", "I", "PHASE", "REAL", "IMAGINARY", "PHASE MAP"})

_NAMES_FLAIR = re.compile(
    r"flair|fluid[\s_-]*att|dark[\s_-]*fluid|liquor|l[ií]quor|fl[uü]ssigk|水抑|フレア|фл[аэ]ир",
    re.IGNORECASE,
)
_NAMES_INVERSION = re.compile(r"tirm|\btir\b|\*tir|spcir|ir[\s_-]*tse|irfse", re.IGNORECASE)
_NAMES_OTHER = re.compile(
    r"double[\s_-]*inv|(?<![a-z])dir(?![a-z])|(?<![a-z])stir(?![a-z])|synth|subtr", re.IGNORECASE
)
_NAMES_LOCALIZER = re.compile(r"locali[sz]|scout|survey|3[\s_-]*pl|topogram|\bloc\b", re.IGNORECASE)

_HEAD = re.compile(r"HEAD|BRAIN|SKULL|NEURO|CEREB|CRANI|KOPF|SCHAEDEL|SCHÄDEL|CABEZA|T[EÊ]TE")
_ELSEWHERE = re.compile(
    r"SPINE|NECK|CHEST|THORAX|LUNG|HEART|CARDIAC|BREAST|ABDOMEN|LIVER|KIDNEY|PELVIS|PROSTATE"
    r"|UTERUS|HIP\b|KNEE|ANKLE|FOOT|LEG\b|FEMUR|THIGH|CALF|SHOULDER|ARM\b|ELBOW|WRIST|HAND"
    r"|FINGER|JOINT|EXTREMITY|WHOLE ?BODY|\bEYE|ORBIT|\bEAR\b|\bJAW\b|PITUITARY"
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one series."""

    series_instance_uid: str
    score: float
    """How much speaks for the FLAIR we want, 0 to 1; half of it where something rules it out."""
    reason: str
    """Stable, kebab-case; `selected` for the one to analyse."""
    explanation: str
    """One sentence with the values that decided. Names no patient and quotes no description."""
    outcome: Outcome
    """`ANALYSED` for the selected one, which is yet to be analysed; `SKIPPED` for what is not for
    us; `NOT_ANALYSED` for a FLAIR that cannot be used."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The FLAIR of a study, and the reasons for every series."""

    selected: str | None
    """Series Instance UID, or None if there is no usable FLAIR."""
    decisions: tuple[Decision, ...]
    """One per series, damaged ones included, in order of Series Instance UID."""
    unreadable: tuple[Unreadable, ...] = ()
    """Files that are no usable object."""

    def as_json(self) -> dict[str, Any]:
        """What `flairnode select --json` prints."""
        return {
            "selected": self.selected,
            "series": [
                {
                    "series_instance_uid": decision.series_instance_uid,
                    "score": decision.score,
                    "reason": decision.reason,
                    "outcome": None if decision.reason == SELECTED else decision.outcome.value,
                    "explanation": decision.explanation,
                }
                for decision in self.decisions
            ],
            "unreadable": [
                {"file": entry.path.name, "reason": entry.reason} for entry in self.unreadable
            ],
        }


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

    @property
    def nulling_ms(self) -> float | None:
        """Inversion time at which cerebrospinal fluid gives no signal, at this repetition time.

        Source:
            Inversion recovery: M(TI) = 1 - 2 exp(-TI/T1) + exp(-TR/T1) = 0.
        """
        if self.repetition_ms is None:
            return None
        return CSF_T1_MS * (log(2.0) - log(1.0 + exp(-self.repetition_ms / CSF_T1_MS)))

    @property
    def nulls_csf(self) -> bool | None:
        """Does the inversion time suppress cerebrospinal fluid? None if it is not known."""
        if self.inversion_ms is None:
            return None
        nulling_ms = self.nulling_ms or 2300.0  # of TR 8000, where the TR is not given
        low, high = NULLING_RANGE
        return low * nulling_ms <= self.inversion_ms <= high * nulling_ms

    def in_words(self) -> str:
        """The three times, as far as known."""
        times = (("TR", self.repetition_ms), ("TE", self.echo_ms), ("TI", self.inversion_ms))
        return ", ".join(
            f"{name} {value:.4g} ms" if value is not None else f"no {name}" for name, value in times
        )


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    explanation: str
    outcome: Outcome = Outcome.SKIPPED


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A FLAIR that can be analysed."""

    series: Series
    score: float
    grid: Grid
    physics: Physics

    @property
    def extent_mm(self) -> float:
        """From bottom to top, whatever the plane of the slices."""
        axial = axial_view(self.grid).grid
        return axial.shape[0] * axial.spacing_mm[0]

    @property
    def preference(self) -> tuple[float, float, float, float, str]:
        """The greatest is chosen.

        Score; then coverage, to the centimetre; then the smaller voxels; then the later series,
        since a repeat is made where the first was not good; then anything that never changes.
        """
        return (
            self.score,
            round(round(self.extent_mm, 1) / 10),
            -round(self.grid.voxel_volume_ml, 6),
            number(self.series.header, "SeriesNumber") or 0.0,
            self.series.series_instance_uid,
        )


def choose(study: Study, settings: SelectionSettings) -> Selection:
    """The one FLAIR of a study to analyse, from headers alone.

    A usable FLAIR is a stack of at least `settings.minimum_slices` that
    `dicom.volume.stack_grid` accepts. Pixels are not looked at: noise with the header of a FLAIR is
    selected here and refused by the gate (`pipeline.quality`).
    """
    decisions: list[Decision] = []
    candidates: list[_Candidate] = []
    for series in study.series:
        judged = _judge(series, settings)
        if isinstance(judged, Decision):
            decisions.append(judged)
        else:
            candidates.append(judged)
    decisions.extend(_damaged(study))
    best = max(candidates, key=lambda candidate: candidate.preference, default=None)
    if best is not None:
        decisions.append(_selected(best, study.unreadable))
        decisions.extend(_passed_over(one, best) for one in candidates if one is not best)
    return Selection(
        selected=best.series.series_instance_uid if best is not None else None,
        decisions=tuple(sorted(decisions, key=lambda one: one.series_instance_uid)),
        unreadable=study.unreadable,
    )


def physics_of(series: Series) -> Physics:
    """Acquisition of a series, from classic or Enhanced headers.

    Of several echoes the shortest counts: a double echo is no FLAIR.
    """
    header = series.header
    sequence = {token.upper() for token in _found(header, "ScanningSequence")}
    options = " ".join((*_found(header, "ScanOptions"), *_found(header, "SequenceVariant"))).upper()
    pulse_echo = " ".join(_found(header, "EchoPulseSequence")).upper()  # Enhanced MR
    names = " ".join(
        text(header, keyword)
        for keyword in ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName")
    )
    echoes = [time for one in series.instances if (time := _echo_ms(one.header)) is not None]
    spin_echo: bool | None = None
    if "SE" in sequence or pulse_echo in ("SPIN", "BOTH"):
        spin_echo = True
    elif "GR" in sequence or pulse_echo == "GRADIENT":
        spin_echo = False
    return Physics(
        repetition_ms=_time_ms(header, "RepetitionTime"),
        echo_ms=min(echoes, default=None),
        inversion_ms=_time_ms(header, "InversionTime") or _time_ms(header, "InversionTimes"),
        spin_echo=spin_echo,
        echo_planar="EP" in sequence or "YES" in _found(header, "EchoPlanarPulseSequence"),
        says_inversion="IR" in sequence
        or "YES" in _found(header, "InversionRecovery")
        or bool(re.search(r"\bIR\b|\bIR_|FLAIR", options)),
        names_flair=bool(_NAMES_FLAIR.search(names)),
        names_inversion=bool(_NAMES_INVERSION.search(names)),
        names_other=bool(_NAMES_OTHER.search(names)),
    )


def _judge(series: Series, settings: SelectionSettings) -> Decision | _Candidate:
    refusal = _not_an_mr_image(series)
    if refusal is not None:
        return _refused(series, 0.0, refusal)
    classic = as_classic(series)
    physics = physics_of(classic)
    score = _score(classic, physics)
    for check in _NOT_FOR_US:
        refusal = check(classic, physics)
        if refusal is not None:
            return _refused(series, round(score / 2, 2), refusal)
    try:
        grid = _usable_grid(series, settings)
    except StudyError as error:
        explanation = f"a FLAIR ({physics.in_words()}) that cannot be analysed: {error}"
        refusal = _Refusal(error.reason, explanation, Outcome.NOT_ANALYSED)
        return _refused(series, score, refusal)
    return _Candidate(series, score, grid, physics)


def _usable_grid(series: Series, settings: SelectionSettings) -> Grid:
    count = len(as_classic(series).instances)
    try:
        grid, _ = stack_grid(series)
    except (MultiFrameError, TruncatedFileError, MixedOrientationError, RepeatedStackError):
        raise
    except StudyError:
        # Too few slices is the plainest thing to say of them, whatever else they lack.
        _require_slices(count, settings)
        raise
    _require_slices(count, settings)
    return grid


def _require_slices(count: int, settings: SelectionSettings) -> None:
    if count < settings.minimum_slices:
        raise IncompleteSeriesError(f"{count} slices, at least {settings.minimum_slices} wanted")


def _not_an_mr_image(series: Series) -> _Refusal | None:
    header = series.header
    sop_class = UID(text(header, "SOPClassUID"), config.IGNORE)  # else pydicom logs a wrong one
    if sop_class in _MR_IMAGES:
        modality = text(header, "Modality")
        if modality in ("MR", ""):
            return None
        return _Refusal("not-mr", f"modality {modality}")
    # MR images come first: the synthetic head of the demo is ours too, and is to be analysed.
    if is_own_result(header):
        return _Refusal("own-result", f"{sop_class.name} made by flairnode itself")
    if "Secondary Capture" in sop_class.name:
        return _Refusal("secondary-capture", f"{sop_class.name}: a picture, not an acquisition")
    if "Image Storage" in sop_class.name:
        return _Refusal("not-mr", f"{sop_class.name}, modality {text(header, 'Modality') or '-'}")
    return _Refusal("not-image", f"{sop_class.name} is not an image of a patient")


def _localizer(series: Series, physics: Physics) -> _Refusal | None:
    if _LOCALIZER.search(_image_type(series)):
        return _Refusal("localizer", "ImageType says localizer")
    if _points_many_ways(series) and not _is_flair(physics):
        return _Refusal("localizer", f"several orientations in one series, {physics.in_words()}")
    repetition_ms = physics.repetition_ms
    if (
        physics.spin_echo is False
        and repetition_ms is not None
        and repetition_ms < SHORT_REPETITION_MS
        and _NAMES_LOCALIZER.search(
            " ".join(
                (text(series.header, "SeriesDescription"), text(series.header, "ProtocolName"))
            )
        )
    ):
        return _Refusal(
            "localizer", f"a fast gradient echo ({physics.in_words()}) named a localizer"
        )
    return None


def _made_from_others(series: Series, physics: Physics) -> _Refusal | None:
    """What no scanner measured slice by slice. DERIVED alone says little and only costs score."""
    image_type = _image_type(series)
    shown = f"ImageType {_shown_image_type(series)}"
    if _PROJECTION.search(image_type):
        return _Refusal("projection", f"{shown}: a projection")
    if _MOSAIC.search(image_type):
        return _Refusal("mosaic", f"{shown}: many slices tiled in one image")
    if _REFORMAT.search(image_type):
        return _Refusal("derived-reformat", f"{shown}: a reformat of other images")
    if _PARAMETRIC.search(image_type):
        return _Refusal("parametric-map", f"{shown}: a map, not an image")
    b_value = max(number(one.header, "DiffusionBValue") or 0.0 for one in series.instances)
    sequence_name = text(series.header, "SequenceName").lower()
    if b_value > 0 or re.search(r"ep_b\d", sequence_name) or _DIFFUSION.search(image_type):
        return _Refusal("diffusion", f"{shown}: diffusion weighted")
    parts = [value.upper() for value in values(series.header, "ImageType")[2:3]]
    if any(part in _NOT_MAGNITUDE for part in parts):
        return _Refusal("not-magnitude", f"{shown}: not the magnitude of the signal")
    return None


def _elsewhere(series: Series, physics: Physics) -> _Refusal | None:
    body_part = text(series.header, "BodyPartExamined").upper()
    if _ELSEWHERE.search(body_part) and not _HEAD.search(body_part):
        return _Refusal("body-part", f"BodyPartExamined is {body_part}")
    return None


def _not_flair(series: Series, physics: Physics) -> _Refusal | None:
    told = physics.in_words()
    if physics.echo_ms is None:
        return _no_echo_time(physics)
    if physics.echo_planar:
        return _Refusal("not-flair-echo-planar", f"an echo planar sequence, {told}")
    if physics.spin_echo is False:
        return _Refusal("not-flair-gradient-echo", f"a gradient echo, {told}")
    if physics.echo_ms < SHORTEST_ECHO_MS:
        return _Refusal(
            "not-flair-echo-time", f"{told}: a FLAIR has a TE of at least {SHORTEST_ECHO_MS:.0f} ms"
        )
    if physics.repetition_ms is not None and physics.repetition_ms < SHORTEST_REPETITION_MS:
        return _Refusal(
            "not-flair-repetition-time",
            f"{told}: a FLAIR has a TR of at least {SHORTEST_REPETITION_MS:.0f} ms",
        )
    if physics.nulls_csf is False:
        nulling_ms = physics.nulling_ms
        wanted = f" (about {nulling_ms:.0f} ms would)" if nulling_ms is not None else ""
        return _Refusal(
            "not-flair-inversion-time",
            f"{told}: that inversion time does not suppress cerebrospinal fluid{wanted}",
        )
    if physics.nulls_csf is None and not _inverts(physics):
        return _Refusal("not-flair-no-inversion", f"{told}, and nothing tells of an inversion")
    return None


_NOT_FOR_US: tuple[Callable[[Series, Physics], _Refusal | None], ...] = (
    _made_from_others,
    _localizer,
    _elsewhere,
    _not_flair,
)


def _no_echo_time(physics: Physics) -> _Refusal:
    told = "EchoTime is absent: the physics cannot be told"
    if physics.names_flair or physics.nulls_csf:
        explanation = f"perhaps a FLAIR, but {told}"
        return _Refusal(MissingAttributeError.reason, explanation, Outcome.NOT_ANALYSED)
    return _Refusal("not-flair-no-parameters", told)


def _inverts(physics: Physics) -> bool:
    """Is there an inversion, where no inversion time is given (GE, older scanners)?

    Either the header states the pulse, or the times are those of a FLAIR and of few other
    sequences, and the description names it.
    """
    if physics.says_inversion:
        return True
    long = (physics.repetition_ms or 0.0) >= LONG_REPETITION_MS
    return long and (physics.names_flair or physics.names_inversion)


def _is_flair(physics: Physics) -> bool:
    return (
        physics.echo_ms is not None
        and physics.echo_ms >= SHORTEST_ECHO_MS
        and (physics.repetition_ms is None or physics.repetition_ms >= SHORTEST_REPETITION_MS)
        and physics.spin_echo is not False
        and not physics.echo_planar
        and (physics.nulls_csf or (physics.nulls_csf is None and _inverts(physics)))
    )


def _score(series: Series, physics: Physics) -> float:
    """Evidence for the FLAIR we want: what the physics says weighs 0.85, names and labels 0.15."""
    score = 0.0
    if physics.echo_ms is not None and physics.echo_ms >= SHORTEST_ECHO_MS:
        score += 0.25
    if physics.repetition_ms is not None and physics.repetition_ms >= SHORTEST_REPETITION_MS:
        score += 0.2
    if physics.nulls_csf:
        score += 0.3
    elif physics.nulls_csf is None and physics.says_inversion:
        score += 0.2
    if physics.spin_echo and not physics.echo_planar:
        score += 0.1
    if physics.names_flair:
        score += 0.1
    if _HEAD.search(text(series.header, "BodyPartExamined").upper()):
        score += 0.05
    image_type = _image_type(series)
    if "DERIVED" in image_type:
        score -= 0.1
    if "SECONDARY" in image_type:
        score -= 0.1
    if text(series.header, "ContrastBolusAgent"):
        score -= 0.1  # enhancing lesions look different, and packs are not trained on them
    if physics.names_other:
        score -= 0.15
    return round(max(0.0, score), 2)


def _refused(series: Series, score: float, refusal: _Refusal) -> Decision:
    return Decision(
        series.series_instance_uid, score, refusal.reason, refusal.explanation, refusal.outcome
    )


def _selected(best: _Candidate, unreadable: Sequence[Unreadable]) -> Decision:
    physics = best.physics
    if physics.nulls_csf and physics.nulling_ms is not None:
        why = f"cerebrospinal fluid is nulled at about {physics.nulling_ms:.0f} ms"
    elif physics.nulls_csf:
        why = "the inversion time nulls cerebrospinal fluid"
    elif physics.says_inversion:
        why = "the header states an inversion and gives no time"
    else:
        why = "no inversion is stated, but the description names it"
    explanation = (
        f"FLAIR: {physics.in_words()} ({why}); {axial_view(best.grid).acquired}, {_size(best)}"
    )
    # A damaged slice of this series would have been refused; one too damaged to say where it
    # belongs could be the end slice of any.
    lost = sum(one.reason != "not-dicom" and not one.series_instance_uid for one in unreadable)
    if lost:
        explanation += f"; {lost} damaged files could not be told to belong to another series"
    uid = best.series.series_instance_uid
    return Decision(uid, best.score, SELECTED, explanation, Outcome.ANALYSED)


def _passed_over(candidate: _Candidate, best: _Candidate) -> Decision:
    explanation = f"also a FLAIR ({candidate.physics.in_words()}), {_comparison(candidate, best)}"
    uid = candidate.series.series_instance_uid
    return Decision(uid, candidate.score, OTHER_FLAIR_CHOSEN, explanation, Outcome.SKIPPED)


def _comparison(candidate: _Candidate, best: _Candidate) -> str:
    ours, theirs = candidate.preference, best.preference
    if ours[0] != theirs[0]:
        return f"but its score is {ours[0]:.2f} and that of the chosen one {theirs[0]:.2f}"
    if ours[1] != theirs[1]:
        return f"but it covers {candidate.extent_mm:.0f} mm and the chosen one {best.extent_mm:.0f}"
    if ours[2] != theirs[2]:
        return f"but its voxels are larger: {_size(candidate)}; the chosen one has {_size(best)}"
    if ours[3] != theirs[3]:
        return "alike in all that counts; the later one (by SeriesNumber) was chosen"
    return "alike in all that counts; the one with the greater UID was chosen"


def _size(candidate: _Candidate) -> str:
    slices, rows, columns = candidate.grid.spacing_mm
    return f"{candidate.grid.shape[0]} slices of {slices:.2f} x {rows:.2f} x {columns:.2f} mm"


def _damaged(study: Study) -> Iterator[Decision]:
    """Series of which no object could be read."""
    known = {series.series_instance_uid for series in study.series}
    lost: dict[str, int] = {}
    for entry in study.unreadable:
        if entry.series_instance_uid and entry.series_instance_uid not in known:
            lost[entry.series_instance_uid] = lost.get(entry.series_instance_uid, 0) + 1
    for uid, count in lost.items():
        explanation = f"none of its {count} objects can be read"
        yield Decision(uid, 0.0, TruncatedFileError.reason, explanation, Outcome.NOT_ANALYSED)


def _image_type(series: Series) -> str:
    """Every value of every image, in capitals, separated by commas."""
    found = {token.upper() for one in series.instances for token in values(one.header, "ImageType")}
    return ", ".join(sorted(token.replace("_", " ") for token in found))


def _shown_image_type(series: Series) -> str:
    return "\\".join(values(series.header, "ImageType"))[:64]


def _points_many_ways(series: Series) -> bool:
    found = [numbers(one.header, "ImageOrientationPatient") for one in series.instances]
    known = [one for one in found if one is not None and len(one) == 6]
    return len(known) > 1 and float(np.ptp(np.array(known), axis=0).max()) > ORIENTATION_TOLERANCE


def _time_ms(header: Dataset, keyword: str) -> float | None:
    """A time above zero: GE writes 0 where there is none."""
    for dataset in _places(header):
        found = number(dataset, keyword)
        if found is not None and found > 0:
            return found
    return None


def _echo_ms(header: Dataset) -> float | None:
    return _time_ms(header, "EchoTime") or _time_ms(header, "EffectiveEchoTime")


def _found(header: Dataset, keyword: str) -> tuple[str, ...]:
    return next((found for one in _places(header) if (found := values(one, keyword))), ())


def _places(header: Dataset) -> Iterable[Dataset]:
    """The header, and the functional groups of an Enhanced object (PS3.3 C.8.13.5)."""
    yield header
    for groups_keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for groups in _items(header, groups_keyword)[:1]:
            for keyword in (
                "MRTimingAndRelatedParametersSequence",
                "MREchoSequence",
                "MRModifierSequence",
            ):
                yield from _items(groups, keyword)[:1]


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    found = dataset.get(keyword)
    return found if found is not None else ()
