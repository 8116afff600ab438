"""TLS for DICOM: the profile of BCP 195, certificates from files, and why a handshake failed.

TLS 1.2 with forward secrecy and authenticated encryption, or 1.3. Older peers are not spoken with:
the standard's own downgrade would be there for an attacker too.

Source:
    PS3.15 B.9 and B.10 (BCP 195 profiles), RFC 9325 4.2 (the suites).
"""

from __future__ import annotations

import socket
import ssl
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from config.settings import Peer, TlsSettings
from dicom.network.wire import reason_of_tls

CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""Of TLS 1.2; those of 1.3 are all fit for use."""
_LATE_ALERT_S = 0.5  # in TLS 1.3 a server refuses our certificate after the handshake


class TlsFilesError(Exception):
    """Certificates or a key that cannot be used. The message names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What was agreed with a peer."""

    version: str
    cipher: str
    expires: datetime | None
    """Of the peer's certificate; None where it was not checked."""


def listening_context(settings: TlsSettings) -> ssl.SSLContext:
    """For a listener.

    Raises:
        TlsFilesError: A file is missing, is no PEM, does not fit, or others may read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    _show(context, settings.certificate_file, settings.key_file)
    if settings.ca_file is not None:
        _trust(context, settings.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def calling_context(peer: Peer) -> ssl.SSLContext:
    """For an association with a peer, whose certificate has to be signed by its `ca_file`.

    Raises:
        TlsFilesError: A file is missing, is no PEM, does not fit, or others may read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    if not peer.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif peer.ca_file is not None:
        _trust(context, peer.ca_file)
        # A certificate that is named itself is trusted, whoever signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if peer.certificate_file is not None and peer.key_file is not None:
        _show(context, peer.certificate_file, peer.key_file)
    return context


def name_of(peer: Peer) -> str:
    """What its certificate has to name."""
    return peer.tls_name or peer.host


def shake_hands(peer: Peer, context: ssl.SSLContext, timeout_s: float) -> Handshake:
    """Connect, agree on keys, and hang up: tells what an association only fails of.

    Raises:
        TlsRefusedError: One of the two does not trust the other; the message says why.
        OSError: No connection.
    """
    try:
        with (
            socket.create_connection((peer.host, peer.port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=name_of(peer)) as connection,
        ):
            cipher = connection.cipher()
            version = connection.version() or ""
            certificate = connection.getpeercert() or {}
            connection.settimeout(_LATE_ALERT_S)
            with suppress(TimeoutError):
                connection.recv(1)
    except ssl.SSLError as error:
        raise TlsRefusedError(reason_of_tls(error)) from error
    expires = None
    if isinstance(not_after := certificate.get("notAfter"), str):
        expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(not_after), UTC)
    return Handshake(version, cipher[0] if cipher else "", expires)


class TlsRefusedError(Exception):
    """A handshake that failed; the message is OpenSSL's word for it."""


def certificate_ends(path: Path) -> datetime:
    """When the first certificate of a PEM file expires.

    Raises:
        TlsFilesError: There is none.
    """
    try:
        # The standard library reads a certificate from a file in this place alone.
        found = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(found["notAfter"]), UTC)
    except (OSError, ValueError, KeyError) as error:  # SSLError is an OSError
        raise TlsFilesError(f"{path} holds no certificate that can be read") from error


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHERS))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & 0o077:
            raise TlsFilesError(f"{key} can be read by others (mode {mode:04o}): chmod 600 {key}")
        # A passphrase would be asked for at the terminal, for ever.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        raise TlsFilesError(
            f"{certificate} and {key} are no certificate and its key: {reason_of_tls(error)}"
        ) from error
    except OSError as error:
        raise TlsFilesError(f"{certificate} or {key}: {error.strerror}") from error


def _trust(context: ssl.SSLContext, authorities: Path) -> None:
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise TlsFilesError(
            f"{authorities} holds no certificate: {reason_of_tls(error)}"
        ) from error
    except OSError as error:
        raise TlsFilesError(f"{authorities}: {error.strerror}") from error
