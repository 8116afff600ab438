"""An Orthanc as a source of studies: what it holds, what changed there, and its files.

On `requests`, with the same connections as DICOMweb (`web_session`), because files come in from the
socket piece by piece. Nothing here decides what is wanted. No message names a patient.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import requests

from config.settings import Peer
from dicom.network.dicomweb import web_errors, web_session
from dicom.network.scu import PeerError, PeerRefusedError, PeerUnreachableError

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 20.0  # a series of thousands of instances takes Orthanc seconds to list
FILE_TIMEOUT_S = 30.0  # for each silence
_CHUNK_BYTES = 1 << 18
_LATER = frozenset(
    {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
"""A proxy before it says so while Orthanc starts."""


@dataclass(frozen=True, slots=True)
class System:
    """Which Orthanc answers (`/system`)."""

    name: str
    ae_title: str
    version: str
    database_version: int


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the change feed."""

    seq: int
    kind: str
    resource: str
    """`Patient`, `Study`, `Series` or `Instance`."""
    id: str
    """Orthanc's own, a digest of Patient ID and UIDs."""
    date: str

    @property
    def anchor(self) -> str:
        """Tells this change from another one that got the same number in another database."""
        return f"{self.date} {self.kind} {self.id}"


@dataclass(frozen=True, slots=True)
class ChangePage:
    """A page of the change feed."""

    changes: tuple[Change, ...]
    last: int
    """Number of the last change of the page; of the whole feed when the page is empty."""
    done: bool


@dataclass(frozen=True, slots=True)
class StudyHead:
    """A study as it stands at Orthanc."""

    id: str
    study_instance_uid: str
    last_update: str
    """By Orthanc's clock, UTC (`20240102T101500`); compared as text."""


@dataclass(frozen=True, slots=True)
class SeriesHead:
    """A series as it stands at Orthanc."""

    id: str
    series_instance_uid: str
    study_id: str
    modality: str
    manufacturer: str
    instances: tuple[str, ...]
    """Orthanc's ids."""
    last_update: str
    stable: bool
    """False: it received something within Orthanc's StableAge, as far as Orthanc remembers."""


@dataclass(frozen=True, slots=True)
class InstanceFile:
    """Where the file of an instance is, and how large."""

    id: str
    size: int


class OrthancSource:
    """One Orthanc; safe to use from several threads."""

    def __init__(self, peer: Peer) -> None:
        """Connect to nothing yet.

        Raises:
            PeerError: Its password or certificates cannot be read.
            ValueError: It has no `orthanc_url`.
        """
        if peer.orthanc_url is None:
            raise ValueError(f"peer {peer.name!r} has no orthanc_url")
        self.peer = peer
        self._root = peer.orthanc_url
        self._session = web_session(peer)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    # Every method below raises PeerUnreachableError without an answer, PeerRefusedError when user
    # or password is wrong or Orthanc cannot do it, and PeerError when the answer makes no sense.

    def system(self) -> System:
        """Which Orthanc answers."""
        told = self._json("/system")
        with self._sense():
            return System(
                name=str(told["Name"]),
                ae_title=str(told["DicomAet"]),
                version=str(told["Version"]),
                database_version=int(told["DatabaseVersion"]),
            )

    def now(self) -> str:
        """Its clock, UTC, in the form of `StudyHead.last_update`."""
        return self._text("/tools/now")

    def changes(self, since: int, limit: int) -> ChangePage:
        """Changes with numbers above `since`."""
        told = self._json("/changes", {"since": str(since), "limit": str(limit)})
        with self._sense():
            return ChangePage(
                tuple(
                    Change(
                        seq=int(change["Seq"]),
                        kind=str(change["ChangeType"]),
                        resource=str(change["ResourceType"]),
                        id=str(change["ID"]),
                        date=str(change["Date"]),
                    )
                    for change in told["Changes"]
                ),
                last=int(told["Last"]),
                done=bool(told["Done"]),
            )

    def last_change(self) -> ChangePage:
        """The latest change alone."""
        told = self._json("/changes", {"last": ""})
        with self._sense():
            last = int(told["Last"])
        return self.changes(max(0, last - 1), 1) if last else ChangePage((), 0, done=True)

    def studies(self, offset: int, limit: int) -> list[StudyHead]:
        """A page of all studies."""
        query = {"since": str(offset), "limit": str(limit), "expand": ""}
        told = self._json("/studies", query)
        with self._sense():
            return [
                StudyHead(
                    id=str(study["ID"]),
                    study_instance_uid=_tag(study, "StudyInstanceUID"),
                    last_update=str(study["LastUpdate"]),
                )
                for study in told
            ]

    def find_studies(self, query: Mapping[str, str]) -> list[str]:
        """Study Instance UIDs that match, each once; wildcards and ranges are Orthanc's."""
        body = {"Level": "Study", "Query": dict(query), "Expand": True, "CaseSensitive": False}
        found = self._json("/tools/find", body=json.dumps(body))
        with self._sense():
            return sorted({_tag(one, "StudyInstanceUID") for one in found})

    def study_ids(self, study_instance_uid: str) -> list[str]:
        """Orthanc's ids of a study: more than one when it lies under two Patient IDs."""
        found = self._json("/tools/lookup", body=study_instance_uid)
        with self._sense():
            return [str(one["ID"]) for one in found if one["Type"] == "Study"]

    def study_instance_uid(self, study_id: str) -> str | None:
        """Of the study of that id; None: it is gone."""
        told = self._json(f"/studies/{study_id}", absent=None)
        with self._sense():
            return None if told is None else _tag(told, "StudyInstanceUID")

    def series_of(self, study_id: str) -> list[SeriesHead]:
        """Every series of a study; none if it is gone."""
        told = self._json(f"/studies/{study_id}/series", {"expand": ""}, absent=[])
        with self._sense():
            return [_series(one) for one in told]

    def series(self, series_id: str) -> SeriesHead | None:
        """One series; None: it is gone."""
        told = self._json(f"/series/{series_id}", absent=None)
        with self._sense():
            return None if told is None else _series(told)

    def parent_series(self, instance_id: str) -> str | None:
        """Id of the series of an instance; None: it is gone."""
        told = self._json(f"/instances/{instance_id}", absent=None)
        with self._sense():
            return None if told is None else str(told["ParentSeries"])

    def instances_of(self, series_id: str) -> dict[str, InstanceFile]:
        """Where the files of a series are, by SOP Instance UID; none if it is gone."""
        told = self._json(f"/series/{series_id}/instances", {"expand": ""}, absent=[])
        with self._sense():
            return {
                _tag(one, "SOPInstanceUID"): InstanceFile(str(one["ID"]), int(one["FileSize"]))
                for one in told
            }

    def sop_class_uid(self, instance_id: str) -> str:
        """Of an instance; "" when Orthanc does not tell."""
        return self._text(f"/instances/{instance_id}/metadata/SopClassUid", absent="")

    @contextmanager
    def file(self, instance_id: str) -> Iterator[Iterator[bytes]]:
        """The file of an instance as Orthanc stores it, piece by piece.

        Raises:
            LookupError: It is gone.
        """
        # Orthanc must not compress it: a broken transfer is then told by its length.
        place = f"/instances/{instance_id}/file"
        with self._request(place, headers={"Accept-Encoding": "identity"}, stream=True) as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                raise LookupError(f"{self.peer.name} holds no such instance any more")
            yield self._pieces(response)

    # --- HTTP --------------------------------------------------------------------------------

    def _pieces(self, response: requests.Response) -> Iterator[bytes]:
        with web_errors(self.peer):
            yield from response.iter_content(_CHUNK_BYTES)

    @contextmanager
    def _request(
        self,
        place: str,
        query: Mapping[str, str] | None = None,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        stream: bool = False,
    ) -> Iterator[requests.Response]:
        """An answer of status 200 or 404."""
        with web_errors(self.peer):
            response = self._session.request(
                "GET" if body is None else "POST",
                self._root + place,
                params=dict(query or {}),
                data=body,
                headers=dict(headers or {}),
                timeout=(CONNECT_TIMEOUT_S, FILE_TIMEOUT_S if stream else ANSWER_TIMEOUT_S),
                stream=stream,
                allow_redirects=False,
            )
        with response:
            status = response.status_code
            if status in _LATER:
                raise PeerUnreachableError(f"{self.peer.name} answered HTTP {status}")
            if status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
                raise PeerRefusedError(f"{self.peer.name} answered HTTP {status}")
            yield response

    def _json(
        self,
        place: str,
        query: Mapping[str, str] | None = None,
        body: str | None = None,
        **absent: Any,  # noqa: ANN401  # `absent=`: what to give when Orthanc says 404
    ) -> Any:  # noqa: ANN401  # JSON of any shape
        with self._request(place, query, body) as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                return self._absent(absent)
            with self._sense():
                return response.json()

    def _text(self, place: str, **absent: Any) -> str:  # noqa: ANN401
        with self._request(place) as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                return str(self._absent(absent))
            return response.text.strip()

    def _absent(self, absent: Mapping[str, Any]) -> Any:  # noqa: ANN401
        if "absent" not in absent:
            raise PeerRefusedError(f"{self.peer.name} answered HTTP 404: is it an Orthanc?")
        return absent["absent"]

    @contextmanager
    def _sense(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"{self.peer.name} answered something unexpected: is it an Orthanc?"
            raise PeerError(message) from error


def _series(told: Mapping[str, Any]) -> SeriesHead:
    return SeriesHead(
        id=str(told["ID"]),
        series_instance_uid=_tag(told, "SeriesInstanceUID"),
        study_id=str(told["ParentStudy"]),
        modality=str(told["MainDicomTags"].get("Modality", "")).strip(),
        manufacturer=str(told["MainDicomTags"].get("Manufacturer", "")).strip(),
        instances=tuple(str(one) for one in told["Instances"]),
        last_update=str(told["LastUpdate"]),
        stable=bool(told["IsStable"]),
    )


def _tag(told: Mapping[str, Any], keyword: str) -> str:
    return str(told["MainDicomTags"][keyword]).strip(" \0")
