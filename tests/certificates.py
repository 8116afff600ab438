"""An authority of our own, and what it signs: made by openssl when a test asks."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, both PEM."""

    certificate: Path
    key: Path


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass(frozen=True)
class Authority:
    """Signs certificates for `localhost` and 127.0.0.1."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.pem"

    def make(self) -> Authority:
        self.folder.mkdir(parents=True)
        key = self.folder / "ca.key"
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=Test Authority"),
            *("-keyout", key, "-out", self.certificate),
        )
        return self

    def sign(self, name: str, *, days: int = 2, host: str = "localhost") -> Certificate:
        """A certificate for a host; with negative days it expired yesterday."""
        key, request = self.folder / f"{name}.key", self.folder / f"{name}.csr"
        certificate, names = self.folder / f"{name}.pem", self.folder / f"{name}.ext"
        names.write_text(f"subjectAltName=DNS:{host},IP:127.0.0.1\n")
        _openssl("req", *_NEW_KEY, "-subj", f"/CN={host}", "-keyout", key, "-out", request)
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate),
            *("-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", str(days)),
            *("-extfile", names, "-out", certificate),
        )
        key.chmod(0o600)
        return Certificate(certificate, key)
