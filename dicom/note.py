"""A note that a series was not analysed, and why: sentences, as a Basic Text SR.

A reader who finds nothing beside the images must not take it for "nothing found". So the reason
stands where the result would have stood, in the study, in a form that every archive keeps.

A Basic Text SR, since of all structured reports it is the one that the oldest PACS know, DCMTK
prints it line by line, and OHIF shows it in its text view (with the Enhanced and Comprehensive SR,
by one and the same piece of code). Not TID 1500, although results are: its titles are all those of
measurement reports, there is no measurement here, and OHIF opens that title ("Imaging Measurement
Report") in its measurement view, which shows a black pane where nothing was measured.

Nothing is said of places and pixels: images without geometry, without a Frame of Reference, in many
orientations or of many frames are referenced like any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    TextContentItem,
)
from highdicom.sr.enum import RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage

from dicom import codes
from dicom.identity import MANUFACTURER
from dicom.seg import ObjectIdentity, building, dated_bytes

_CONTAINS = RelationshipTypeValues.CONTAINS


@dataclass(frozen=True, slots=True)
class Note:
    """Everything a note says."""

    statements: tuple[str, ...]
    """Plain sentences, the most important first."""
    status: tuple[tuple[Code, Code], ...]
    """Coded questions and answers, for programs."""
    algorithm_name: str
    algorithm_version: str
    device_uid: str
    device_name: str


def build_note(sources: Sequence[Dataset], note: Note, identity: ObjectIdentity) -> bytes:
    """An unverified, preliminary note on the images of one series, as a file.

    Args:
        sources: `identity.normalised_reference` of every image that could be read, once each.
        note: What it says.
        identity: UIDs, series and dates.

    Returns:
        The bytes, and not highdicom's object, which shares elements with `sources`.

    Source:
        PS3.3 A.35.1 (Basic Text SR); PS3.16 TID 1002 (observer), CID 6047 (processing status).
    """
    content: list[ContentItem] = [
        *_observer(note),
        *(_text(codes.COMMENT, statement) for statement in note.statements),
        *(
            CodeContentItem(name=question, value=answer, relationship_type=_CONTAINS)
            for question, answer in note.status
        ),
        _text(codes.ALGORITHM_NAME, note.algorithm_name),
        _text(codes.ALGORITHM_VERSION, note.algorithm_version),
        _image_library(sources),
    ]
    # As in `dicom.sr`: highdicom copies its content twice, so it gets the root alone.
    root = ContainerContentItem(name=codes.NARRATIVE_SUMMARY)
    root.ContentSequence = ContentSequence()
    with building():
        built = hd.sr.EnhancedSR(
            evidence=list(sources),
            content=root,
            **identity.for_highdicom(),
            is_complete=True,
            is_final=False,
            is_verified=False,
        )
        # highdicom makes no Basic Text SR. The modules are those of the Enhanced SR (PS3.3 tables
        # A.35.1-1 and A.35.2-1); the content, which is narrower, has text, codes and images only.
        built.SOPClassUID = BasicTextSRStorage
        built.ContentSequence = ContentSequence(content)
        return dated_bytes(built, identity)


def _observer(note: Note) -> hd.sr.ObserverContext:
    return hd.sr.ObserverContext(
        observer_type=dictionary.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=note.device_uid,
            name=note.device_name,
            manufacturer_name=MANUFACTURER,
            model_name=f"{note.algorithm_name} {note.algorithm_version}",
        ),
    )


def _text(name: Code, value: str) -> ContentItem:
    return TextContentItem(name=name, value=value, relationship_type=_CONTAINS)


def _image_library(sources: Sequence[Dataset]) -> ContentItem:
    """At the end: a reader should not have to scroll past the images to the reason."""
    library = ContainerContentItem(name=codes.IMAGE_LIBRARY, relationship_type=_CONTAINS)
    library.ContentSequence = ContentSequence(
        [
            ImageContentItem(
                name=codes.SOURCE,
                referenced_sop_class_uid=source.SOPClassUID,
                referenced_sop_instance_uid=source.SOPInstanceUID,
                relationship_type=_CONTAINS,
            )
            for source in sources
        ]
    )
    return library
