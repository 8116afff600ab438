"""`data_dir/paused.json`: while it is there, no worker begins an analysis.

Everything else goes on: studies are received and closed, what is being analysed is finished, and
results are delivered. A file, since a worker knows no ledger; it outlives a restart.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from node.durable import sync_directory, write_durably

PAUSE_FILE = "paused.json"


class PauseSwitch:
    """On or off, for every worker of a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / PAUSE_FILE

    def is_on(self) -> bool:
        """May nothing be begun?"""
        return self._path.exists()

    def turn_on(self, user: str) -> bool:
        """Begin nothing more; False when that was so already."""
        if self.is_on():
            return False
        content = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "user": user}
        write_durably(self._path, json.dumps(content).encode())
        return True

    def turn_off(self) -> bool:
        """Go on; False when nothing was paused."""
        if not self.is_on():
            return False
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
        return True

    def since(self) -> str:
        """When it was paused, in words; "" when it is not."""
        try:
            content = json.loads(self._path.read_bytes())
            return f"since {content['at']} by {content['user']}"
        except FileNotFoundError:
            return ""
        except (ValueError, KeyError, TypeError):
            return "by a file that cannot be read"
