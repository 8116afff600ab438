"""DICOMweb: ask (QIDO-RS), fetch (WADO-RS) and send (STOW-RS).

A thin layer on `requests`. The client library for DICOMweb (dicomweb-client 0.61) decodes what it
sends and encodes it anew, and holds what it fetches in memory; here a file goes out as the bytes
that were checked, and a series comes in from the socket to the disk.

No message holds an address with its query: a QIDO-RS query may name a patient.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.message import Message
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import requests
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from requests.auth import AuthBase, HTTPBasicAuth

from config.settings import Peer
from dicom.attributes import number, text
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

PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.15; also what is said of an instance without a reason
OUT_OF_RESOURCES = 0xA700
_JSON = "application/dicom+json"
_PAGE = 1000  # answers per query; archives cap it lower by themselves and say so
_NAMES_A_FILE = re.compile(r"[0-9][0-9.]{0,63}")
"""A UID, or what a careless device takes for one; no path."""
_CHUNK_BYTES = 1 << 18
LATER = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
        HTTPStatus.INSUFFICIENT_STORAGE,
    }
)
"""The same request may succeed later."""


class DicomWebClient:
    """One peer's DICOMweb services; a context manager that closes its connections."""

    def __init__(self, peer: Peer, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Connect to nothing yet.

        Args:
            peer: With a `dicomweb_url`.
            timeout_s: For a connection, and for each silence of the peer.

        Raises:
            PeerError: Its password cannot be read.
            ValueError: It has no `dicomweb_url`.
        """
        if peer.dicomweb_url is None:
            raise ValueError(f"peer {peer.name!r} has no dicomweb_url")
        self._peer = peer
        self._root = peer.dicomweb_url
        self._session = web_session(peer, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    # --- QIDO-RS -----------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask for one study, any one: does the service answer, and know us?

        Raises:
            PeerUnreachableError: No connection or no answer.
            PeerRefusedError: Wrong user or password, or no such service.
        """
        self._answer("GET", "/studies", params={"limit": "1"}, headers={"Accept": _JSON}).close()

    def search_studies(self, matching: Mapping[str, str]) -> list[Dataset]:
        """Studies whose attributes match, as the peer describes them.

        Args:
            matching: Keyword to value, as in a C-FIND (`StudyDate="20240101-20241231"`).

        Raises:
            PeerUnreachableError: No connection or no answer.
            PeerRefusedError: The peer refuses us or the query.
        """
        return self._search("/studies", "StudyInstanceUID", matching)

    def search_series(
        self, study_instance_uid: str, matching: Mapping[str, str] | None = None
    ) -> list[Dataset]:
        """The series of a study; none if it is not there.

        Raises:
            PeerUnreachableError: No connection or no answer.
            PeerRefusedError: The peer refuses us or the query.
        """
        place = f"{_place(study_instance_uid)}/series"
        return self._search(place, "SeriesInstanceUID", matching or {})

    def search_instances(
        self,
        study_instance_uid: str,
        series_instance_uid: str | None = None,
        matching: Mapping[str, str] | None = None,
    ) -> list[Dataset]:
        """The instances of a study, or of one series of it; none if it is not there.

        Raises:
            PeerUnreachableError: No connection or no answer.
            PeerRefusedError: The peer refuses us or the query.
        """
        place = f"{_place(study_instance_uid, series_instance_uid)}/instances"
        return self._search(place, "SOPInstanceUID", matching or {})

    def _search(self, place: str, key: str, matching: Mapping[str, str]) -> list[Dataset]:
        """All pages of an answer.

        Source:
            PS3.18 8.3.4.4 (limit, offset; a Warning 299 when there is more), 10.6.
        """
        found: dict[str, Dataset] = {}
        offset = 0
        while True:
            params = {**matching, "limit": str(_PAGE), "offset": str(offset)}
            response = self._answer(
                "GET", place, params=params, headers={"Accept": _JSON}, absent_is_empty=True
            )
            page = _datasets(response, self._peer)
            new = {uid: one for one in page if (uid := text(one, key)) and uid not in found}
            found.update(new)
            offset += len(page)
            more = len(page) >= _PAGE or "299" in response.headers.get("Warning", "")
            if not new or not more:  # nothing new: it counts pages otherwise than we do
                return list(found.values())

    # --- WADO-RS -----------------------------------------------------------------------------

    def retrieve(
        self, folder: Path, study_instance_uid: str, series_instance_uid: str | None = None
    ) -> list[Path]:
        """Fetch a study or a series as stored; the files are named by SOP Instance UID.

        Raises:
            LookupError: The peer holds none.
            PeerUnreachableError: No connection, or it broke; files that came stay.
            PeerRefusedError: The peer refuses us or the request.
            PeerError: What came is no DICOM.
        """
        return self._retrieve(folder, _place(study_instance_uid, series_instance_uid))

    def retrieve_instance(
        self,
        folder: Path,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
    ) -> Path:
        """Fetch one instance as stored, into a file named by its SOP Instance UID.

        Raises:
            LookupError: The peer does not hold it.
            PeerUnreachableError: No connection, or it broke.
            PeerRefusedError: The peer refuses us or the request.
            PeerError: What came is not that instance.
        """
        place = _place(study_instance_uid, series_instance_uid, sop_instance_uid)
        paths = self._retrieve(folder, place)
        if [path.stem for path in paths] != [sop_instance_uid]:
            raise PeerError(f"{self._peer.name} sent {len(paths)} objects, not the one asked for")
        return paths[0]

    def _retrieve(self, folder: Path, place: str) -> list[Path]:
        # Without transfer-syntax=* the archive would decode compressed pixels for us (PS3.18
        # 8.7.3.5.2), and send other bytes than it stores.
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        response = self._answer(
            "GET", place, headers={"Accept": accept}, stream=True, absent_is_empty=True
        )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with response, self._our_errors():
            if response.status_code != HTTPStatus.OK:
                raise LookupError(f"{self._peer.name} holds no such object")
            return [self._keep(folder, body) for body in _bodies(response, self._peer)]

    def _keep(self, folder: Path, body: Iterable[bytes]) -> Path:
        part = folder / f".{secrets.token_hex(8)}.part"
        try:
            with part.open("wb") as file:
                file.writelines(body)
            try:
                header = dcmread(part, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
            except (InvalidDicomError, EOFError, OSError, ValueError) as error:
                raise PeerError(f"{self._peer.name} sent something that is no DICOM") from error
            uid = text(header, "SOPInstanceUID")
            if not _NAMES_A_FILE.fullmatch(uid):
                raise PeerError(f"{self._peer.name} sent an object without a SOP Instance UID")
            return part.rename(folder / f"{uid}.dcm")
        finally:
            part.unlink(missing_ok=True)

    # --- STOW-RS -----------------------------------------------------------------------------

    def store(self, paths: Sequence[Path]) -> tuple[StoreResult, ...]:
        """Send the files as they lie on disk, one request each.

        One request for all would be shorter; but not every archive says which of many failed.

        Returns:
            One result per path, in order, with a status from the C-STORE numbers, which STOW-RS
            shares. A peer that breaks off leaves the rest without a status.

        Raises:
            PeerUnreachableError: No connection for the first one.
            PeerRefusedError: Wrong user or password, or no such service.
            ValueError: A path is no DICOM file.

        Source:
            PS3.18 10.5 (Store Transaction), I.2 (Store Instances Response Module).
        """
        uids = [file_meta(path)[2] for path in paths]
        results: list[StoreResult] = []
        for path, uid in zip(paths, uids, strict=True):
            try:
                results.append(self._store_one(path, uid))
            except PeerUnreachableError as error:
                if not results:
                    raise
                left = zip(paths[len(results) :], uids[len(results) :], strict=True)
                results.extend(StoreResult(one, late, None, str(error)) for one, late in left)
                break
        return tuple(results)

    def _store_one(self, path: Path, uid: str) -> StoreResult:
        boundary = secrets.token_hex(20)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": _JSON,
        }
        with path.open("rb") as file, self._our_errors():
            body = _Enclosed(
                f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
                file,
                path.stat().st_size,
                f"\r\n--{boundary}--\r\n".encode(),
            )
            response = self._session.post(
                f"{self._root}/studies",
                data=body,
                headers=headers,
                allow_redirects=False,
            )
        status = _store_status(response, uid)
        if status is None:
            self._refuse(response)
            status = PROCESSING_FAILURE
        message = f"HTTP {response.status_code}, status 0x{status:04X}"
        return StoreResult(path, uid, status, message)

    # --- HTTP --------------------------------------------------------------------------------

    def _answer(
        self,
        method: str,
        place: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        absent_is_empty: bool = False,
    ) -> requests.Response:
        with self._our_errors():
            response = self._session.request(
                method,
                self._root + place,
                params=dict(params or {}),
                headers=dict(headers or {}),
                stream=stream,
                allow_redirects=False,
            )
        fine = {HTTPStatus.OK, HTTPStatus.NO_CONTENT}
        if absent_is_empty:
            fine.add(HTTPStatus.NOT_FOUND)
        if response.status_code not in fine:
            response.close()
            self._refuse(response)
        return response

    def _refuse(self, response: requests.Response) -> None:
        """Raise what an answer means that is not the one hoped for."""
        status = response.status_code
        if status in LATER:
            raise PeerUnreachableError(f"{self._peer.name} answered HTTP {status}")
        raise PeerRefusedError(f"{self._peer.name} answered HTTP {status}")

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        with web_errors(self._peer):
            yield


class _Session(requests.Session):
    """Does not wait for ever: `requests` would, where nobody names a limit."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def request(self, *args: Any, **options: Any) -> requests.Response:  # noqa: ANN401
        options.setdefault("timeout", self._timeout_s)
        return super().request(*args, **options)


class _Bearer(AuthBase):
    """A token (RFC 6750), read at each request: others renew the file."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._read()

    def _read(self) -> str:
        try:
            token = self._peer.token()
        except (OSError, UnicodeDecodeError) as error:
            raise PeerError(f"the token_file of {self._peer.name} cannot be read") from error
        if not token or not token.isprintable():
            raise PeerError(f"the token_file of {self._peer.name} holds no token")
        return token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._read()}"
        return request


def web_session(peer: Peer, timeout_s: float = DEFAULT_TIMEOUT_S) -> requests.Session:
    """Connections to a peer's web addresses, with its user and its certificates.

    Raises:
        PeerError: Its password or the certificates to trust cannot be read.
    """
    if peer.ca_file is not None and not peer.ca_file.is_file():
        raise PeerError(f"the ca_file of {peer.name} cannot be read")
    session = _Session(timeout_s)
    # Where results go is said in the settings: no proxy and no .netrc of the machine has a say.
    session.trust_env = False
    session.verify = str(peer.ca_file) if peer.ca_file is not None else True
    if not peer.verify_tls:
        session.verify = False
    if peer.certificate_file is not None and peer.key_file is not None:
        if not (peer.certificate_file.is_file() and peer.key_file.is_file()):
            raise PeerError(f"the certificate or the key for {peer.name} cannot be read")
        session.cert = (str(peer.certificate_file), str(peer.key_file))
    if peer.token_file is not None:
        session.auth = _Bearer(peer)
    if peer.user:
        try:
            # As bytes, since requests would encode text as Latin-1 (RFC 7617 prefers UTF-8).
            session.auth = HTTPBasicAuth(peer.user.encode(), peer.password().encode())
        except (OSError, UnicodeDecodeError) as error:
            raise PeerError(f"the password file of {peer.name} cannot be read") from error
        except LookupError as error:
            raise PeerError(f"no password for {peer.name}: {error.args[0]}") from error
    return session


@contextmanager
def web_errors(peer: Peer) -> Iterator[None]:
    """Turn what `requests` raises into our errors.

    Their messages hold the whole address, and with it what a query asked for: they are not kept.

    Raises:
        PeerUnreachableError: No connection, no answer in time, or the connection broke.
        PeerRefusedError: A certificate that is not trusted.
    """
    try:
        yield
    except requests.exceptions.SSLError:
        message = f"the TLS connection to {peer.name} failed: is its certificate trusted (ca_file)?"
        raise PeerRefusedError(message) from None
    except requests.exceptions.RequestException as error:
        kind = type(error).__name__
        raise PeerUnreachableError(f"{peer.name} cannot be reached: {kind}") from None


def _place(*uids: str | None) -> str:
    levels = ("studies", "series", "instances")
    named = [(level, uid) for level, uid in zip(levels, uids, strict=False) if uid is not None]
    return "".join(f"/{level}/{quote(uid, safe='')}" for level, uid in named)


def _datasets(response: requests.Response, peer: Peer) -> list[Dataset]:
    if response.status_code != HTTPStatus.OK or not response.content.strip():
        return []
    try:
        answers = response.json()
        return [Dataset.from_json(answer) for answer in answers]
    except Exception as error:  # whatever a peer sent, it is one kind of error
        raise PeerError(f"{peer.name} answered a query with something that is no DICOM") from error


# --- the answer to a store --------------------------------------------------------------------


def _store_status(response: requests.Response, uid: str) -> int | None:
    """The status of one instance, in C-STORE numbers; None where the answer is of the request.

    Source:
        PS3.18 10.5.3 and I.2: 200 all stored, 202 some, 409 none; per instance a FailureReason or
        a WarningReason.
    """
    status = response.status_code
    if status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.CONFLICT):
        return None
    told = _told_of(response, uid)
    if told is not None:
        return told
    if status == HTTPStatus.CONFLICT:
        # Without a reason it says that the object is there already (Karnak and other gateways
        # answer so); whoever confirms by query sees whether that is true.
        return DUPLICATE
    return SUCCESS if status == HTTPStatus.OK else PROCESSING_FAILURE


def _told_of(response: requests.Response, uid: str) -> int | None:
    try:
        content = response.json()
        answer = Dataset.from_json(content[0] if isinstance(content, list) else content)
    except Exception:  # noqa: BLE001  # empty, XML or no DICOM: then the HTTP status speaks
        return None
    for failed in answer.get("FailedSOPSequence") or ():
        if text(failed, "ReferencedSOPInstanceUID") in (uid, ""):
            return int(number(failed, "FailureReason") or PROCESSING_FAILURE)
    for stored in answer.get("ReferencedSOPSequence") or ():
        if text(stored, "ReferencedSOPInstanceUID") == uid:
            return int(number(stored, "WarningReason") or SUCCESS)
    return None


# --- multipart/related ------------------------------------------------------------------------


class _Enclosed:
    """A file between the head and the foot of its part: read once, never whole in memory.

    `requests` takes the length from `__len__`, so that the request is not sent in chunks, which
    not every web server in front of an archive takes.
    """

    def __init__(self, head: bytes, file: Any, size: int, foot: bytes) -> None:  # noqa: ANN401  # a binary file
        self._pieces = [BytesIO(head), file, BytesIO(foot)]
        self._length = len(head) + size + len(foot)

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = -1) -> bytes:
        while self._pieces:
            data: bytes = self._pieces[0].read(size)
            if data:
                return data
            self._pieces.pop(0)
        return b""


def _bodies(response: requests.Response, peer: Peer) -> Iterator[Iterable[bytes]]:
    """The objects of an answer, one after the other, each to be read before the next."""
    header = Message()
    header["Content-Type"] = response.headers.get("Content-Type", "")
    chunks = response.iter_content(_CHUNK_BYTES)
    if header.get_content_type() == "application/dicom":  # a single object, not enclosed
        yield chunks
        return
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/related" or not boundary:
        raise PeerError(f"{peer.name} answered a retrieve as {header.get_content_type()}")
    yield from _Parts(chunks, boundary.encode(), peer)


class _Parts:
    """Splits a stream at its boundaries.

    Source:
        RFC 2046 5.1.1: a boundary begins on a line of its own, `--` after it ends the whole.
    """

    def __init__(self, chunks: Iterator[bytes], boundary: bytes, peer: Peer) -> None:
        self._chunks = chunks
        self._buffer = b"\r\n"  # the first boundary may stand at the very beginning
        self._mark = b"\r\n--" + boundary
        self._peer = peer

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        self._skip(self._mark)
        while not self._starts_with(b"--"):
            self._skip(b"\r\n\r\n")  # the part's own header
            body = self._until(self._mark)
            yield body
            for _ in body:  # whatever the caller did not read
                pass

    def _skip(self, mark: bytes) -> None:
        for _ in self._until(mark):
            pass

    def _until(self, mark: bytes) -> Iterator[bytes]:
        while (at := self._buffer.find(mark)) < 0:
            safe = len(self._buffer) - len(mark) + 1  # the mark may have begun in the last bytes
            if safe > 0:
                yield self._buffer[:safe]
                self._buffer = self._buffer[safe:]
            self._more()
        piece, self._buffer = self._buffer[:at], self._buffer[at + len(mark) :]
        yield piece

    def _starts_with(self, sign: bytes) -> bool:
        while len(self._buffer) < len(sign):
            self._more()
        return self._buffer.startswith(sign)

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise PeerUnreachableError(f"the answer of {self._peer.name} broke off")
        self._buffer += chunk
