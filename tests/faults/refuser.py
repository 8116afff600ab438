"""A PACS that takes nothing: it accepts associations, finds nothing, and refuses every object."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from node.archive import LOOPBACK


class Refuser:
    """Listens on a free port until it is stopped."""

    def __init__(self, status: int) -> None:
        self.refused = 0
        self._status = status
        entity = AE(ae_title="ORTHANC")
        entity.supported_contexts = StoragePresentationContexts
        entity.add_supported_context(Verification)
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)]
        self._server = entity.start_server((LOOPBACK, 0), block=False, evt_handlers=handlers)
        self.port: int = self._server.server_address[1]

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()

    def _store(self, _event: evt.Event) -> int:
        self.refused += 1
        return self._status

    def _find(self, _event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield 0x0000, None
