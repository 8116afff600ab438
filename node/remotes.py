"""A peer that studies are fetched from, whichever way it speaks: what it lists, and its files.

Orthanc's own REST API where the peer has an `orthanc_url` (it tells of a study that lies under two
patients), otherwise DICOMweb. Only MR series are listed with their instances: a PACS full of CT
must not flow through us, and our own results must not come back to us as studies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydicom.uid import (
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from config.settings import Peer
from dicom.attributes import text
from dicom.identity import MANUFACTURER
from dicom.network.dicomweb import DicomWebClient
from dicom.network.orthanc_source import InstanceFile, OrthancSource, SeriesHead

MR_IMAGES: frozenset[str] = frozenset(
    {
        MRImageStorage,
        EnhancedMRImageStorage,
        EnhancedMRColorImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
    }
)
OWN_RESULT = "own-result"
NOT_MR = "not-mr"
_CHUNK_BYTES = 1 << 18


class GoneError(Exception):
    """The peer listed the object a moment ago and holds it no more."""


@dataclass(frozen=True, slots=True)
class ListedSeries:
    """A series as a peer lists it."""

    remote_id: str
    series_instance_uid: str
    study_instance_uid: str
    refused: str = ""
    """Why it is not fetched: `not-mr` or `own-result`; "" if it is wanted."""
    instances: Mapping[str, InstanceFile] = field(default_factory=dict)
    """By SOP Instance UID; of a wanted series only."""
    stamp: str = ""
    """Changes when the series receives something."""
    stable: bool = True
    """False: it may still be growing."""


class Remote(Protocol):
    """What a peer holds."""

    peer: Peer

    def series_of_study(self, study_instance_uid: str) -> list[ListedSeries]:
        """Every series of a study; none if it is not there. Raises `PeerError`."""

    def file(
        self, series: ListedSeries, sop_instance_uid: str, folder: Path
    ) -> AbstractContextManager[Iterator[bytes]]:
        """The file of an instance, piece by piece.

        Raises `GoneError` and `PeerError`; `folder` is for what has to lie somewhere meanwhile.
        """

    def close(self) -> None:
        """Close the connections."""


def remote_of(peer: Peer) -> Remote:
    """The way to that peer.

    Raises:
        PeerError: Its password or certificates cannot be read.
        ValueError: It has no web address.
    """
    if peer.orthanc_url is not None:
        return OrthancRemote(OrthancSource(peer))
    return DicomWebRemote(peer)


def sender_of(peer: Peer) -> str:
    """Stands for the calling AE title of what was fetched."""
    return peer.ae_title or peer.name[:16]


class OrthancRemote:
    """By Orthanc's own REST API."""

    def __init__(self, source: OrthancSource) -> None:
        self.source = source
        self.peer = source.peer

    def close(self) -> None:
        """Close the connections."""
        self.source.close()

    def series_of_study(self, study_instance_uid: str) -> list[ListedSeries]:
        """Every series of a study, under each patient that it lies under."""
        return [
            self.listed(head, study_instance_uid)
            for study in self.source.study_ids(study_instance_uid)
            for head in self.source.series_of(study)
        ]

    def listed(self, head: SeriesHead, study_instance_uid: str) -> ListedSeries:
        """A series with its instances, if it is wanted."""
        refused = self.refusal(head)
        instances = {} if refused else self.source.instances_of(head.id)
        return ListedSeries(
            remote_id=head.id,
            series_instance_uid=head.series_instance_uid,
            study_instance_uid=study_instance_uid,
            refused=refused,
            instances=instances,
            stamp=stamp_of(head),
            # It grew between the two questions.
            stable=head.stable and (bool(refused) or len(instances) == len(head.instances)),
        )

    def refusal(self, head: SeriesHead) -> str:
        """Why a series is not fetched; "" if it is."""
        if head.modality == "MR" and head.manufacturer != MANUFACTURER:
            return ""
        if head.modality not in ("MR", "") or not head.instances:
            return OWN_RESULT if head.manufacturer == MANUFACTURER else NOT_MR
        # An MR image without a modality, or one that we made for the demo; or a picture of ours.
        return _refusal_of_class(self.source.sop_class_uid(head.instances[0]), head.manufacturer)

    @contextmanager
    def file(
        self, series: ListedSeries, sop_instance_uid: str, folder: Path
    ) -> Iterator[Iterator[bytes]]:
        """From the socket; nothing lies anywhere meanwhile."""
        del folder
        with ExitStack() as stack:
            try:
                pieces = stack.enter_context(
                    self.source.file(series.instances[sop_instance_uid].id)
                )
            except LookupError as error:
                raise GoneError(str(error)) from error
            yield pieces


class DicomWebRemote:
    """By QIDO-RS and WADO-RS."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._client = DicomWebClient(peer)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def series_of_study(self, study_instance_uid: str) -> list[ListedSeries]:
        """Every series of a study."""
        listed = []
        for series in self._client.search_series(study_instance_uid):
            uid, modality = text(series, "SeriesInstanceUID"), text(series, "Modality")
            if modality not in ("MR", ""):
                listed.append(ListedSeries(uid, uid, study_instance_uid, NOT_MR))
                continue
            instances = self._client.search_instances(study_instance_uid, uid)
            classes = {text(one, "SOPClassUID") for one in instances}
            refused = "" if classes & MR_IMAGES else NOT_MR
            files = {text(one, "SOPInstanceUID"): InstanceFile("", 0) for one in instances}
            listed.append(
                ListedSeries(uid, uid, study_instance_uid, refused, {} if refused else files)
            )
        return listed

    @contextmanager
    def file(
        self, series: ListedSeries, sop_instance_uid: str, folder: Path
    ) -> Iterator[Iterator[bytes]]:
        """By way of a file below `folder`, which is removed afterwards."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as place:
            try:
                path = self._client.retrieve_instance(
                    Path(place),
                    series.study_instance_uid,
                    series.series_instance_uid,
                    sop_instance_uid,
                )
            except LookupError as error:
                raise GoneError(str(error)) from error
            yield _pieces(path)


def stamp_of(head: SeriesHead) -> str:
    """Changes when a series receives something: Orthanc's clock tells seconds, so count as well."""
    return f"{head.last_update} {len(head.instances)}"


def passed_over(series: Sequence[ListedSeries]) -> dict[str, int]:
    """How many series are not fetched, by reason."""
    counts: dict[str, int] = {}
    for one in series:
        if one.refused:
            counts[one.refused] = counts.get(one.refused, 0) + 1
    return counts


def _refusal_of_class(sop_class_uid: str, manufacturer: str) -> str:
    if sop_class_uid in MR_IMAGES:
        return ""
    return OWN_RESULT if manufacturer == MANUFACTURER else NOT_MR


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece
