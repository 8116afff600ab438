"""How states, times and sizes are said on the page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from node.ledger import SeriesState
from node.web.accounts import Role

STATE_WORDS = {
    SeriesState.RECEIVING: "receiving",
    SeriesState.QUEUED: "waiting for analysis",
    SeriesState.RUNNING: "being analysed",
    SeriesState.DELIVERING: "being delivered",
    SeriesState.DELIVERED: "delivered",
    SeriesState.SKIPPED: "skipped",
    SeriesState.NOT_ANALYSED: "not analysed",
    SeriesState.HELD: "held",
    SeriesState.FAILED: "failed",
}


def state_words(state: str) -> str:
    """A state for a person."""
    return STATE_WORDS[SeriesState(state)]


def ago(moment: datetime | None) -> str:
    """How long ago, in one unit."""
    if moment is None:
        return "never"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < 0:
        return "just now"  # the clock was set back
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        count = int(seconds // size)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def clock(moment: datetime | None) -> str:
    """Date and time, UTC."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def gigabytes(size: float) -> str:
    """Of bytes."""
    return f"{size / 1e9:.1f} GB"


def navigation() -> list[tuple[str, str, Role]]:
    """(path, name, who may see it) of the pages."""
    return [
        ("/", "Now", Role.VIEWER),
        ("/studies", "Studies", Role.VIEWER),
        ("/why", "Why nothing came", Role.VIEWER),
        ("/rules", "Rules", Role.OPERATOR),
        ("/audit", "Audit", Role.ADMINISTRATOR),
    ]


TEMPLATE_WORDS: dict[str, Any] = {
    "state_words": state_words,
    "ago": ago,
    "clock": clock,
    "gigabytes": gigabytes,
    "SeriesState": SeriesState,
    "navigation": navigation,
}
