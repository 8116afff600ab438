"""That a FLAIR was not analysed, and why, as a DICOM object for the archive.

For people first: what is wrong, what to do, and that this is no finding. Made once, checked once,
and re-sent as stored, like a result; the same images, reason and model give the same UID.

No note is made of a series whose images are not of one patient and study, or whose names cannot be
read: nobody could say whose it is. Identity is taken from whole images alone, never from a damaged
one, so a series of which no image can be read has no note either.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from pydicom.dataset import Dataset

from dicom import codes
from dicom.attributes import text
from dicom.checks import check_header, check_note
from dicom.errors import InconsistentSeriesError, MissingSliceError, ResultCheckError
from dicom.identity import identity_digest, moment, normalised_reference
from dicom.note import Note
from dicom.note import build_note as build_object
from dicom.part10 import read_part10
from dicom.seg import Equipment, ObjectIdentity
from dicom.series import Series
from dicom.uids import result_uid
from dicom.volume import missing_between
from pipeline.model_pack import ModelPack
from pipeline.quality import Flag
from pipeline.refusals import in_words, withheld_in_words
from pipeline.results import RESEARCH_BANNER, RESULT_REVISION, ResultObject

NOTE_SERIES_NUMBER: Final = 9009
"""After those of results, which it never stands beside."""
GAPS_IN_WORDS: Final = 3


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a series was not analysed."""

    reason: str
    """Stable, kebab-case."""
    explanation: str
    """With the values that decided. Names no patient."""
    flags: tuple[Flag, ...] = ()
    """Of the quality check, when it is what refused: the analysis ran, its result is withheld."""


def build_note(series: Series, refusal: Refusal, pack: ModelPack) -> ResultObject:
    """The note on a series that was refused.

    Args:
        series: Its images that can be read, and those that cannot (`Series.unreadable`).
        refusal: Why.
        pack: The model that the series was to be analysed with.

    Raises:
        InconsistentSeriesError: The images are not of one patient and study.
        MissingAttributeError, UndecodableTextError: It cannot be told whose they are.
        ResultCheckError: The note disagrees with its sources: our fault, it is not sent.
    """
    headers = {one.sop_instance_uid: one.header for one in series.instances}
    ordered = [headers[uid] for uid in sorted(headers)]
    identities = {identity_digest(header) for header in ordered}
    if len(identities) != 1:
        raise InconsistentSeriesError(f"{len(identities)} identities among {len(headers)} images")
    sources = [normalised_reference(header) for header in ordered]
    digests = (
        "\\".join(sorted(headers)),
        *identities,
        # The wording may tell a figure that another machine rounds otherwise: it does not enter.
        refusal.reason,
        str(len(series.unreadable)),
        pack.digest,
        RESULT_REVISION,
    )
    note = _note(series, refusal, pack)
    identity = _identity(digests, pack, moment(ordered))
    content = build_object(sources, note, identity)
    dataset = read_part10(content)
    check_header(dataset, sources)
    check_note(dataset, sources, note)
    _check_banner(dataset, pack)
    return ResultObject("note", str(dataset.SOPInstanceUID), content, dataset)


def _identity(digests: tuple[str, ...], pack: ModelPack, dated: tuple[str, str]) -> ObjectIdentity:
    manifest = pack.manifest
    what = "FLAIR not analysed"
    return ObjectIdentity(
        sop_instance_uid=result_uid(*digests, "note", "0"),
        series_instance_uid=result_uid(*digests, "note series", "0"),
        series_number=NOTE_SERIES_NUMBER,
        series_description=f"{RESEARCH_BANNER}: {what}" if _is_research(pack) else what,
        date=dated[0],
        time=dated[1],
        equipment=Equipment(
            model_name="flairnode",
            serial_number=pack.digest[:16],
            software_versions=(
                f"flairnode {version('flairnode')}",
                f"model {manifest.name} {manifest.version}"[:64],
            ),
        ),
    )


def _note(series: Series, refusal: Refusal, pack: ModelPack) -> Note:
    manifest = pack.manifest
    return Note(
        statements=_statements(series, refusal, pack),
        # Also of a result that was withheld. Nothing is said of the quality of the images by code:
        # it may be our brain mask that failed, and the images be good.
        status=((codes.PROCESSING_AND_FINDINGS, codes.NOTHING_SUCCEEDED),),
        algorithm_name=f"flairnode model {manifest.name}"[:64],
        algorithm_version=manifest.version,
        device_uid=result_uid("device", pack.digest),
        device_name=f"flairnode, model {manifest.name} {manifest.version}",
    )


def _statements(series: Series, refusal: Refusal, pack: ModelPack) -> tuple[str, ...]:
    """What a radiologist should read, in that order."""
    manifest = pack.manifest
    words = withheld_in_words() if refusal.flags else in_words(refusal.reason)
    what = words.what
    if refusal.reason == MissingSliceError.reason:
        what = _gaps_in_words(series)
    applied = "Model" if refusal.flags else "Model, not applied"
    return (
        *((RESEARCH_BANNER,) if _is_research(pack) else ()),
        f"Not analysed: {what}. {words.to_do}",
        "This is not a finding. "
        + (
            "The analysis ran, and its result was withheld: whether there are lesions is not known."
            if refusal.flags
            else "No lesion was looked for: whether there are lesions is not known."
        ),
        *(f"Quality, {flag.severity}: {flag.message}" for flag in refusal.flags),
        *(() if refusal.flags else (f"Detail: {refusal.explanation.rstrip('.')}.",)),
        f"Reason code: {refusal.reason}.",
        _images_in_words(series),
        f"Written by software, flairnode {version('flairnode')}. Not verified by a physician; no "
        "diagnosis.",
        f"{applied}: {manifest.name} {manifest.version}, status {manifest.status}, "
        f"SHA-256 {pack.digest}.",
    )


def _gaps_in_words(series: Series) -> str:
    """Where slices are missing, by the image numbers that viewers show."""
    gaps = missing_between(series)
    told = []
    for before, after, count in gaps[:GAPS_IN_WORDS]:
        names = [text(one.header, "InstanceNumber") for one in (before, after)]
        first, last = sorted(names, key=lambda name: (len(name), name))
        where = f"between image {first} and image {last}" if all(names) else "inside the stack"
        told.append(f"{_slices(count)} {where}")
    if more := len(gaps) - len(told):
        told.append(f"more in {more} other place{'s' if more > 1 else ''}")
    return ", ".join(told)


def _slices(count: int) -> str:
    return "1 slice is missing" if count == 1 else f"{count} slices are missing"


def _images_in_words(series: Series) -> str:
    count = len({one.sop_instance_uid for one in series.instances})
    number = text(series.header, "SeriesNumber")
    which = f"Series {number}" if number else "The series, which has no number"
    told = f"{which}: {count} image{'s' if count != 1 else ''} could be read"
    damaged = len(series.unreadable)
    if damaged:
        told += f", {damaged} could not and {'are' if damaged > 1 else 'is'} not referenced"
    return f"{told}. This note speaks of these images and of no other."


def _is_research(pack: ModelPack) -> bool:
    return pack.manifest.status == "research"


def _check_banner(dataset: Dataset, pack: ModelPack) -> None:
    if (RESEARCH_BANNER in str(dataset.SeriesDescription)) != _is_research(pack):
        raise ResultCheckError(f"note of a {pack.manifest.status} model: banner wrong")
