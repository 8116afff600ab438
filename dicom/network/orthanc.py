"""An Orthanc asked over HTTP: which objects it holds, their files, and new ones given to it.

`OrthancClient` is a thin layer on `orthanc-api-client`, so that nothing else here depends on it.
Only what is used. `OrthancInbox` delivers results, and speaks HTTP itself: that library (0.25)
waits for ever, trusts the system's certificates alone, and makes None of a 409 without JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import orthanc_api_client.exceptions as orthanc_errors
import requests
from orthanc_api_client import OrthancApiClient

from config.settings import Peer
from dicom.network.dicomweb import (
    LATER,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    web_errors,
    web_session,
)
from dicom.network.scu import (
    DEFAULT_TIMEOUT_S,
    DUPLICATE,
    SUCCESS,
    PeerError,
    PeerRefusedError,
    PeerUnreachableError,
    StoreResult,
    file_meta,
)

NOT_AUTHORISED = 0x0124  # PS3.7 C.5.12: its administrator's filter will not have it
CANNOT_UNDERSTAND = 0xC000
_STORED_AS = {"Success": SUCCESS, "AlreadyStored": DUPLICATE, "FilteredOut": NOT_AUTHORISED}
_ANSWERED_AS = {
    HTTPStatus.BAD_REQUEST: CANNOT_UNDERSTAND,
    HTTPStatus.CONFLICT: DUPLICATE,  # it stores the same instance from somebody else just now
    HTTPStatus.INSUFFICIENT_STORAGE: OUT_OF_RESOURCES,
}


class OrthancClient:
    """One Orthanc, by the DICOM UIDs of what it holds."""

    def __init__(self, url: str, user: str, password: str) -> None:
        """Connect to nothing yet; `url` is like `http://127.0.0.1:8042`."""
        self._api: Any = OrthancApiClient(url, user=user, pwd=password)

    def holds_study(self, study_instance_uid: str) -> bool:
        """Is anything of the study there?

        Raises:
            PeerUnreachableError: No answer.
            PeerRefusedError: Wrong user or password, or Orthanc cannot do it.
        """
        with _our_errors():
            return self._api.studies.lookup(study_instance_uid) is not None

    def instances(self, study_instance_uid: str) -> dict[str, tuple[str, ...]]:
        """SOP Instance UIDs of a study by Series Instance UID; empty if it is not there.

        Raises:
            PeerUnreachableError: No answer.
            PeerRefusedError: Wrong user or password, or Orthanc cannot do it.
        """
        with _our_errors():
            study = self._api.studies.lookup(study_instance_uid)
            if study is None:
                return {}
            found: dict[str, list[str]] = {}
            for series in self._api.get_json(f"studies/{study}/series"):
                uid = series["MainDicomTags"]["SeriesInstanceUID"]
                found[uid] = [
                    instance["MainDicomTags"]["SOPInstanceUID"]
                    for instance in self._api.get_json(f"series/{series['ID']}/instances")
                ]
        return {series: tuple(sorted(uids)) for series, uids in found.items()}

    def download(self, sop_instance_uid: str, path: Path) -> None:
        """Write the file of an instance as Orthanc stores it.

        Raises:
            LookupError: It holds no such instance.
            PeerUnreachableError: No answer.
            PeerRefusedError: Wrong user or password, or Orthanc cannot do it.
        """
        with _our_errors():
            instance = self._api.instances.lookup(sop_instance_uid)
            if instance is None:
                raise LookupError(f"no instance {sop_instance_uid}")
            path.write_bytes(self._api.instances.get_file(instance))


class OrthancInbox:
    """Gives an Orthanc results over its REST API; a context manager that closes its connections."""

    def __init__(self, peer: Peer, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Connect to nothing yet.

        Args:
            peer: With an `orthanc_url`.
            timeout_s: For a connection, and for each silence of the peer.

        Raises:
            PeerError: Its password or the certificates to trust cannot be read.
            ValueError: It has no `orthanc_url`.
        """
        if peer.orthanc_url is None:
            raise ValueError(f"peer {peer.name!r} has no orthanc_url")
        self._peer = peer
        self._root = peer.orthanc_url
        self._session = web_session(peer, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def ping(self) -> None:
        """Does it answer, and know us?

        Raises:
            PeerUnreachableError: No answer.
            PeerRefusedError: Wrong user or password, or something else answers.
        """
        self._json("GET", "/system")

    def holds(self, sop_instance_uid: str) -> bool:
        """Does it hold this instance?

        Raises:
            PeerUnreachableError: No answer.
            PeerRefusedError: Wrong user or password, or something else answers.
        """
        found = self._json("POST", "/tools/lookup", data=sop_instance_uid)
        return any(one.get("Type") == "Instance" for one in found)

    def store(self, path: Path) -> StoreResult:
        """Give it a file as it lies on disk; the answer in C-STORE numbers.

        Raises:
            PeerUnreachableError: No answer.
            PeerRefusedError: Wrong user or password, or something else answers.
            ValueError: The path is no DICOM file.
        """
        _, _, uid = file_meta(path)
        with path.open("rb") as file, web_errors(self._peer):
            response = self._session.post(
                f"{self._root}/instances", data=file, allow_redirects=False
            )
        status = _ANSWERED_AS.get(HTTPStatus(response.status_code))
        if status is None:
            word = self._object(response).get("Status", "")
            status = _STORED_AS.get(str(word), PROCESSING_FAILURE)
        return StoreResult(path, uid, status, f"HTTP {response.status_code}, 0x{status:04X}")

    def _json(self, method: str, place: str, data: str | None = None) -> Any:  # noqa: ANN401
        with web_errors(self._peer):
            response = self._session.request(
                method, self._root + place, data=data, allow_redirects=False
            )
        return self._content(response)

    def _object(self, response: requests.Response) -> dict[str, Any]:
        content = self._content(response)
        return content if isinstance(content, dict) else {}

    def _content(self, response: requests.Response) -> Any:  # noqa: ANN401  # JSON of any shape
        name, status = self._peer.name, response.status_code
        if status in LATER:
            raise PeerUnreachableError(f"{name} answered HTTP {status}")
        if status != HTTPStatus.OK:
            raise PeerRefusedError(f"{name} answered HTTP {status}")
        try:
            return response.json()
        except ValueError:
            raise PeerRefusedError(f"{name} does not answer as an Orthanc does") from None


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except (orthanc_errors.ConnectionError, orthanc_errors.TimeoutError) as error:
        raise PeerUnreachableError("Orthanc does not answer") from error
    except orthanc_errors.HttpError as error:
        raise PeerRefusedError(f"Orthanc answered HTTP {error.http_status_code}") from error
    except orthanc_errors.OrthancApiException as error:
        raise PeerError("Orthanc could not be asked") from error
