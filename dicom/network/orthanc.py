"""An Orthanc asked over HTTP: which objects of a study it holds, and their files.

A thin layer on `orthanc-api-client`, so that nothing else here depends on it. Only what is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orthanc_api_client.exceptions as orthanc_errors
from orthanc_api_client import OrthancApiClient

from dicom.network.scu import PeerError, PeerRefusedError, PeerUnreachableError


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
