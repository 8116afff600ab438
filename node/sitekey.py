"""The secret of this site: it turns identifiers into tags that only this site can recompute."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

KEY_FILE = "site.key"
_KEY_BYTES = 32
_TAG_LENGTH = 10  # hex digits: 40 bits tell the studies of a site apart in a log


def site_key(data_dir: Path) -> bytes:
    """The key of `data_dir`, made at the first call; the file is 0600."""
    path = data_dir / KEY_FILE
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        # Linked into place whole: of two processes that start together both read the same key.
        part = path.with_name(f"{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(part)
        except FileExistsError:
            pass
        finally:
            part.unlink()
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{path} does not hold {_KEY_BYTES} bytes: restore it from a backup")
    return key


def tag(key: bytes, identifier: str) -> str:
    """Short keyed hash of an identifier; the same identifier always gives the same tag."""
    digest = hmac.new(key, identifier.encode("utf-8"), hashlib.sha256)
    return digest.hexdigest()[:_TAG_LENGTH]
