"""A small archive in this process: C-STORE, C-FIND and C-ECHO on loopback, objects in a folder.

It stands in for a PACS where no Orthanc is installed (`flairnode demo`), so that delivery is
confirmed by a real query. It keeps what it gets, as it gets it; it is no archive for patients.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # filled at import
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom.attributes import text
from dicom.network.scp import TRANSFER_SYNTAXES

LOOPBACK = "127.0.0.1"

SUCCESS, PENDING, CANCELLED = 0x0000, 0xFF00, 0xFE00
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
"""Of a C-STORE dataset, and of a C-FIND identifier: the same number (PS3.4 B.2.3, C.4.1.1.4)."""

_KEYS = {
    "STUDY": ("StudyInstanceUID",),
    "SERIES": ("StudyInstanceUID", "SeriesInstanceUID"),
    "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
}
"""Unique keys down to each level of the Study Root model (PS3.4 C.6.2.1)."""

_DESCRIBES = ("SOPClassUID", "Modality", "SeriesNumber", "SeriesDescription", "InstanceNumber")


@dataclass(frozen=True, slots=True)
class _Held:
    path: Path
    header: Dataset


class EmbeddedArchive:
    """Answers on 127.0.0.1 to the given AE titles; a context manager that starts and stops it."""

    def __init__(self, folder: Path, ae_title: str, callers: Sequence[str]) -> None:
        """Nothing is bound before `start`.

        Args:
            folder: Where objects are kept; made when absent.
            ae_title: Ours; an association with another one is refused.
            callers: AE titles that may store and query.
        """
        self.folder = folder
        self.ae_title = ae_title
        self.dicom_port = 0
        self._callers = list(callers)
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._server: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen on a free port; `dicom_port` tells which."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entity = AE(ae_title=self.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = self._callers
        for storage in AllStoragePresentationContexts:
            entity.add_supported_context(str(storage.abstract_syntax), list(TRANSFER_SYNTAXES))
        entity.add_supported_context(Verification)
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        self._server = entity.start_server(
            (LOOPBACK, 0),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)],
        )
        self.dicom_port = int(self._server.server_address[1])

    def stop(self) -> None:
        """Answer no more. What was stored stays in the folder."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    # --- what it holds -----------------------------------------------------------------------

    def sop_instance_uids(self) -> list[str]:
        """SOP Instance UID of every stored object."""
        with self._lock:
            return sorted(self._held)

    def files_of(self, series_instance_uid: str) -> list[bytes]:
        """The stored DICOM files of one series."""
        return [
            held.path.read_bytes()
            for held in self._all()
            if text(held.header, "SeriesInstanceUID") == series_instance_uid
        ]

    def _all(self) -> list[_Held]:
        with self._lock:
            return [self._held[uid] for uid in sorted(self._held)]

    # --- services ----------------------------------------------------------------------------

    def _store(self, event: evt.Event) -> int:
        content = event.encoded_dataset()  # as it came: no decoding, no writing anew
        try:
            header = dcmread(BytesIO(content), stop_before_pixels=True)
            uid = text(header, "SOPInstanceUID")
        except Exception:  # noqa: BLE001  # whatever a peer sent, it gets an answer
            return DOES_NOT_MATCH
        request: Any = event.request
        if not uid or uid != str(request.AffectedSOPInstanceUID) or not UID(uid).is_valid:
            return DOES_NOT_MATCH
        with self._lock:
            if uid not in self._held:  # a second copy changes nothing
                path = self.folder / f"{uid}.dcm"
                try:
                    path.write_bytes(content)
                except OSError:
                    return OUT_OF_RESOURCES
                self._held[uid] = _Held(path, header)
        return SUCCESS

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        level = text(query, "QueryRetrieveLevel")
        if level not in _KEYS:
            yield DOES_NOT_MATCH, None
            return
        for answer in self._answers(query, level):
            if event.is_cancelled:
                yield CANCELLED, None
                return
            yield PENDING, answer

    def _answers(self, query: Dataset, level: str) -> list[Dataset]:
        """One answer per study, series or image that matches every unique key with a value."""
        held = self._all()
        counts = Counter(text(one.header, "SeriesInstanceUID") for one in held)
        found: dict[tuple[str, ...], Dataset] = {}
        for one in held:
            keys = tuple(text(one.header, keyword) for keyword in _KEYS[level])
            wanted = [text(query, keyword) for keyword in _KEYS[level]]
            if keys in found or any(
                asked and key not in asked.split("\\")  # a list of UIDs matches any of them
                for key, asked in zip(keys, wanted, strict=True)
            ):
                continue
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            answer.RetrieveAETitle = self.ae_title
            for keyword in (*_KEYS[level], *(k for k in _DESCRIBES if k in query)):
                setattr(answer, keyword, one.header.get(keyword, ""))
            if level == "SERIES":
                answer.NumberOfSeriesRelatedInstances = counts[keys[1]]
            found[keys] = answer
        return list(found.values())
