"""What the audit trail says of the service itself: started, stopped, with other settings."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version

from config.settings import Settings
from node.audit import Audit, AuditEvent
from node.ledger import Ledger
from node.sitekey import site_key

SETTINGS_FACT, RUNNING_FACT = "settings", "running"
_LONGEST_LIST = 1000  # characters; a line of the trail stays short


def note_start(audit: Audit, ledger: Ledger, settings: Settings) -> None:
    """Started, whether the run before ended in order, and which settings changed since then."""
    with suppress(OSError, sqlite3.Error):  # a full disk must not keep the node from starting
        before = ledger.fact(RUNNING_FACT)
        audit.append(
            AuditEvent.STARTED,
            version=version("flairnode"),
            pid=os.getpid(),
            before={None: "first start", "": "ended in order"}.get(before, "did not end in order"),
        )
        ledger.remember_fact(RUNNING_FACT, str(os.getpid()))
        now = settings_digests(settings)
        known = ledger.fact(SETTINGS_FACT)
        changed = [] if known is None else differing(json.loads(known), now)
        if changed:
            said = ", ".join(changed)[:_LONGEST_LIST]
            audit.append(AuditEvent.SETTINGS_CHANGED, settings=said, count=len(changed))
        if known is None or changed:
            ledger.remember_fact(SETTINGS_FACT, json.dumps(now))
        seal(audit, ledger)


def note_stop(audit: Audit, ledger: Ledger) -> None:
    """Stopped in order."""
    with suppress(OSError, sqlite3.Error):
        audit.append(AuditEvent.STOPPED, pid=os.getpid())
        ledger.remember_fact(RUNNING_FACT, "")
        seal(audit, ledger)


def seal(audit: Audit, ledger: Ledger) -> None:
    """Write into the ledger how far the trail goes: an older copy of both its files is found."""
    number, digest = audit.head()
    if number:
        ledger.seal_audit(number, digest)


def settings_digests(settings: Settings) -> dict[str, str]:
    """A keyed digest of each setting: what changed can be named, and no value is kept."""
    key = site_key(settings.node.data_dir)
    flat: dict[str, object] = {}
    for section, content in settings.model_dump(mode="json").items():
        if isinstance(content, dict):
            flat |= {f"{section}.{name}": value for name, value in content.items()}
        else:
            flat[section] = content
    return {
        name: hmac.new(key, json.dumps(value).encode(), hashlib.sha256).hexdigest()[:16]
        for name, value in sorted(flat.items())
    }


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of settings that have another value, or are new or gone."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
