"""Asking and sending: C-ECHO, C-FIND and C-STORE to a configured peer.

Every call opens one association and closes it. A peer that cannot be reached and a peer that says
no are different errors, since only the first heals by waiting.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # filled at import
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from config.settings import Peer
from dicom.attributes import number, text
from dicom.network.tls import (
    TlsFilesError,
    TlsRefusedError,
    calling_context,
    name_of,
    shake_hands,
)

DEFAULT_TIMEOUT_S = 30.0
MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2.2: context ids are odd, 1 to 255

SUCCESS = 0x0000
DUPLICATE = 0x0111  # the peer holds this instance already: what we wanted (PS3.7 C.5)
_STORED_WITH_A_WARNING = range(0xB000, 0xC000)  # PS3.4 B.2.3: stored, an element coerced or dropped


class PeerError(Exception):
    """A peer did not do what it was asked. The message names no patient."""

    retry: ClassVar[bool] = True
    reason: ClassVar[str] = "peer-error"


class PeerUnreachableError(PeerError):
    """No connection, no answer in time, or the connection broke."""

    reason = "peer-unreachable"


class PeerRefusedError(PeerError):
    """The peer answered, and said no: the association, the service, or a status."""

    reason = "peer-refused"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """DIMSE status; None when the association or the presentation context was refused."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What a peer answered to one object."""

    path: Path
    sop_instance_uid: str
    status: int | None
    """None: no answer, or the peer does not take this SOP Class or transfer syntax."""
    message: str = ""
    accepted: bool = True
    """False: the peer does not take this SOP Class or transfer syntax, so it was not sent."""

    @property
    def stored(self) -> bool:
        """Does the peer hold the object now?"""
        return self.status in (SUCCESS, DUPLICATE) or self.coerced

    @property
    def coerced(self) -> bool:
        """Did the peer store it with a warning: an element changed or dropped?"""
        return self.status in _STORED_WITH_A_WARNING


def echo(peer: Peer, *, calling_ae_title: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """C-ECHO.

    Raises:
        PeerUnreachableError: No connection or no answer.
        PeerRefusedError: The peer refuses us or the service.
    """
    context = build_context(Verification)
    with association_with(peer, [context], calling_ae_title, timeout_s) as association:
        _require_context(association, context, peer)
        answer = association.send_c_echo()
        _require_status(answer, peer, "C-ECHO")


def find_instances(
    peer: Peer,
    study_instance_uid: str,
    series_instance_uid: str,
    *,
    calling_ae_title: str,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> frozenset[str]:
    """SOP Instance UIDs of one series that the peer says it holds.

    Raises:
        PeerUnreachableError: No connection or no answer.
        PeerRefusedError: The peer refuses us, the service or the query.

    Source:
        PS3.4 C.6.2.1 (Study Root, IMAGE level: all unique keys above are given).
    """
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = study_instance_uid
    query.SeriesInstanceUID = series_instance_uid
    query.SOPInstanceUID = ""
    found = _find(peer, query, calling_ae_title, timeout_s)
    return frozenset(uid for answer in found if (uid := text(answer, "SOPInstanceUID")))


def count_series_instances(
    peer: Peer,
    study_instance_uid: str,
    *,
    calling_ae_title: str,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> dict[str, int | None]:
    """How many instances of each series of a study the peer says it holds.

    Returns:
        By Series Instance UID; None where the peer does not tell (the key is optional).

    Raises:
        PeerUnreachableError: No connection or no answer.
        PeerRefusedError: The peer refuses us, the service or the query.
    """
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID = study_instance_uid
    query.SeriesInstanceUID = ""
    query.NumberOfSeriesRelatedInstances = None
    counts: dict[str, int | None] = {}
    for answer in _find(peer, query, calling_ae_title, timeout_s):
        count = number(answer, "NumberOfSeriesRelatedInstances")
        if uid := text(answer, "SeriesInstanceUID"):
            counts[uid] = None if count is None else int(count)
    return counts


def store(
    peer: Peer,
    paths: Sequence[Path],
    *,
    calling_ae_title: str,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> tuple[StoreResult, ...]:
    """C-STORE the files as they lie on disk, each under its own SOP Class and transfer syntax.

    Returns:
        One result per path, in order. A peer that breaks off leaves the rest without a status.

    Raises:
        PeerUnreachableError: No connection.
        PeerRefusedError: The peer refuses the association.
        ValueError: A path is no DICOM file, or they need more than `MAXIMUM_CONTEXTS` contexts.
    """
    if not paths:
        return ()
    # Send the bytes of the file, not a decoded and newly encoded copy of them.
    _config.STORE_SEND_CHUNKED_DATASET = True
    headers = [file_meta(path) for path in paths]
    wanted = sorted({(sop_class, syntax) for sop_class, syntax, _ in headers})
    if len(wanted) > MAXIMUM_CONTEXTS:
        raise ValueError(f"{len(wanted)} presentation contexts do not fit one association")
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in wanted]
    results = []
    with association_with(peer, contexts, calling_ae_title, timeout_s) as association:
        accepted = {
            (context.abstract_syntax, context.transfer_syntax[0])
            for context in association.accepted_contexts
        }
        for path, (sop_class, syntax, uid) in zip(paths, headers, strict=True):
            if (sop_class, syntax) in accepted:
                results.append(_store_one(association, path, uid))
            else:
                message = f"{peer.name} does not take {sop_class} as {syntax}"
                results.append(StoreResult(path, uid, None, message, accepted=False))
    return tuple(results)


def _store_one(association: Association, path: Path, sop_instance_uid: str) -> StoreResult:
    if not association.is_established:
        return StoreResult(path, sop_instance_uid, None, "the association ended")
    answer = association.send_c_store(path)
    status = answer.get("Status")
    if status is None:
        return StoreResult(path, sop_instance_uid, None, "no answer")
    return StoreResult(path, sop_instance_uid, int(status), f"status 0x{int(status):04X}")


def file_meta(path: Path) -> tuple[str, str, str]:
    """SOP Class, transfer syntax and SOP Instance UID of a file, from its meta information.

    Raises:
        ValueError: It is no DICOM file.
    """
    try:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta
        return (
            str(meta.MediaStorageSOPClassUID),
            str(meta.TransferSyntaxUID),
            str(meta.MediaStorageSOPInstanceUID),
        )
    except (InvalidDicomError, AttributeError) as error:
        raise ValueError(f"{path.name} is no DICOM file with file meta information") from error


def _find(peer: Peer, query: Dataset, calling_ae_title: str, timeout_s: float) -> list[Dataset]:
    context = build_context(StudyRootQueryRetrieveInformationModelFind)
    found = []
    with association_with(peer, [context], calling_ae_title, timeout_s) as association:
        _require_context(association, context, peer)
        for status, identifier in association.send_c_find(
            query, StudyRootQueryRetrieveInformationModelFind
        ):
            if _require_status(status, peer, "C-FIND") and identifier is not None:
                found.append(identifier)
    return found


@contextmanager
def association_with(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    calling_ae_title: str,
    timeout_s: float,
    handlers: Sequence[tuple[evt.EventType, Callable[..., Any]]] = (),
) -> Iterator[Association]:
    """An association that is released at the end.

    Raises:
        PeerUnreachableError: No connection or no answer.
        PeerRefusedError: The peer refuses it, or all of its contexts.
    """
    entity = AE(ae_title=calling_ae_title)
    entity.connection_timeout = timeout_s
    entity.acse_timeout = timeout_s
    entity.dimse_timeout = timeout_s
    entity.network_timeout = timeout_s
    secure = _tls(peer)
    association = entity.associate(
        peer.host,
        peer.port,
        contexts=list(contexts),
        ae_title=peer.ae_title,
        evt_handlers=[(evt.EVT_CONN_OPEN, _send_without_delay), *handlers],
        tls_args=None if secure is None else (secure, name_of(peer)),
    )
    if not association.is_established:
        where = f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
        if association.is_rejected:
            answer = association.acceptor.primitive
            why = getattr(answer, "reason_str", "no reason given")
            raise PeerRefusedError(f"{where} rejected the association: {why}")
        if association.rejected_contexts and not association.accepted_contexts:
            raise PeerRefusedError(f"{where} accepts none of the presentation contexts")
        if secure is not None:
            _tell_of_tls(peer, secure, timeout_s, where)
        raise PeerUnreachableError(f"{where} cannot be reached")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _tls(peer: Peer) -> ssl.SSLContext | None:
    if not peer.tls:
        return None
    try:
        return calling_context(peer)
    except TlsFilesError as error:
        raise PeerError(f"{peer.name}: {error}") from error


def _tell_of_tls(peer: Peer, secure: ssl.SSLContext, timeout_s: float, where: str) -> None:
    """Pynetdicom keeps to itself why a handshake failed: ask once more, for the reason alone.

    Raises:
        PeerRefusedError: One of the two does not trust the other.
    """
    try:
        shake_hands(peer, secure, timeout_s)
    except TlsRefusedError as error:
        raise PeerRefusedError(f"{where}: no TLS connection: {error}") from error
    except OSError:
        return  # nobody there: the caller says so


def _send_without_delay(event: evt.Event) -> None:
    # A dataset leaves in several small writes. With Nagle's algorithm the last one waits for the
    # acknowledgement of the one before, which the receiver delays: about 40 ms per object.
    connection: Any = event.assoc.dul.socket
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _require_context(association: Association, context: PresentationContext, peer: Peer) -> None:
    wanted = context.abstract_syntax
    if not any(found.abstract_syntax == wanted for found in association.accepted_contexts):
        name = getattr(wanted, "name", str(wanted))
        raise PeerRefusedError(f"{peer.name} does not offer {name}")


def _require_status(answer: Dataset, peer: Peer, service: str) -> bool:
    """True for a pending answer, False for the final success."""
    status = answer.get("Status")
    if status is None:
        raise PeerUnreachableError(f"{peer.name} did not answer the {service}")
    if status in (0xFF00, 0xFF01):
        return True
    if status != SUCCESS:
        raise PeerRefusedError(f"{peer.name} answered {service} with 0x{status:04X}", status)
    return False
