"""The audit trail, for administrators: is it whole, and its latest lines."""

from __future__ import annotations

from collections import deque
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from node.web.app import Administrator, page, surroundings_of

router = APIRouter()

LINES_ON_A_PAGE = 200


@router.get("/audit")
def show(
    request: Request,
    session: Administrator,
    event: Annotated[str, Query(max_length=32)] = "",
    first: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """Lines of the record, the latest first."""
    audit = surroundings_of(request).audit
    latest: deque[dict[str, object] | None] = deque(maxlen=first + LINES_ON_A_PAGE + 1)
    events: set[str] = set()
    for line in audit.entries():
        name = "" if line is None else str(line.get("event", ""))
        events.add(name)
        if not event or name == event:
            latest.append(line)
    found = list(reversed(latest))
    shown = found[first : first + LINES_ON_A_PAGE]
    hidden = {"number", "at", "event", "previous", "digest"}
    facts = {
        "verification": audit.verify(),
        "event": event,
        "events": sorted(events - {""}),
        "lines": [
            None
            if line is None
            else {
                "number": line.get("number"),
                "at": line.get("at"),
                "event": line.get("event"),
                "facts": {key: value for key, value in line.items() if key not in hidden},
            }
            for line in shown
        ],
        "first": first,
        "size": LINES_ON_A_PAGE,
        "more": len(found) > first + LINES_ON_A_PAGE,
    }
    return page(request, "audit.html", session, facts)
