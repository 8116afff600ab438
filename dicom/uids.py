"""Unique identifiers that follow from what they identify."""

from __future__ import annotations

import uuid

_NAMESPACE = uuid.UUID("6d3c5c0e-5f0a-4f64-9d0d-3a1f2b7c9e41")
"""Of flairnode alone. Another value would give every result made so far a second identity."""


def result_uid(*parts: str) -> str:
    """UID that the same parts always give, and no other parts do.

    The PACS re-sends whole series after a timeout, and a process can die after sending. The same
    input must yield the same UID, so that a second copy replaces the first instead of doubling it.

    Source:
        PS3.5 B.2 (UUID derived UID); RFC 9562 5.5 (version 5).
    """
    if not parts:
        raise ValueError("a UID of nothing would be shared by everything")
    # Lengths, so that ("ab", "c") and ("a", "bc") differ.
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"
