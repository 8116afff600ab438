"""A listener with an intake behind it, in this process."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from config.settings import CompletenessSettings, NodeSettings, Peer, Settings
from dicom.network.scp import StorageServer
from node.audit import Audit
from node.completeness import QuietClock
from node.intake import Intake, admission
from node.ledger import Ledger
from node.sitekey import site_key
from node.spool import Spool

QUIET_S = 30.0


class Node:
    """A listener with an intake behind it, in this process; the test moves its clock."""

    def __init__(self, data_dir: Path) -> None:
        sender = Peer(name="sender", ae_title="SENDER", host="127.0.0.1", port=1)
        settings = Settings(
            node=NodeSettings(data_dir=data_dir, reserve_mb=0),
            peers=(sender,),
            completeness=CompletenessSettings(quiet_period_s=QUIET_S),
        )
        self.now_s = 0.0
        self.ledger = Ledger(data_dir / "intake.sqlite")
        self.spool = Spool(data_dir / "spool")
        self.audit = Audit(data_dir / "audit", site_key(data_dir))
        self.intake = Intake(
            settings,
            self.ledger,
            self.spool,
            self.audit,
            pack_digest="a" * 64,
            settings_digest="b" * 64,
            enqueue=lambda _: None,
            clock=QuietClock(lambda: self.now_s),
        )
        self.intake.reconcile()
        self.server = StorageServer(
            "127.0.0.1", 0, admission(settings), self.intake.on_store, self.intake.on_refusal
        )

    def close_studies(self) -> list[Any]:
        self.now_s += QUIET_S
        return self.intake.sweep()

    def dcmtk(self, program: Path, *arguments: str, calling: str = "SENDER") -> str:
        """Run a DCMTK sender against this node; what it says."""
        command = [str(program), "-v", "-aet", calling, "-aec", "FLAIRNODE"]
        command += ["127.0.0.1", str(self.server.port), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout + done.stderr + f"exit {done.returncode}"
