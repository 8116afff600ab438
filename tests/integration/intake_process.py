"""An intake in a process of its own that kills itself at a chosen moment.

    python intake_process.py DATA_DIR POINT NUMBER

POINT: `none`, `pdu` (an object half received), `part` (written, not renamed), `renamed` (no row
yet), `row` (not answered yet), `answered`; NUMBER: at which object. Prints its port once it has
reconciled and listens.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.settings import NodeSettings, Peer, Settings
from dicom.network.scp import StorageServer
from dicom.network.wire import Connection
from node.audit import Audit
from node.intake import Intake, admission
from node.ledger import Ledger
from node.logs import configure_logging
from node.sitekey import site_key
from node.spool import Spool


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(number: int, call: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """`call`, and the end of the process around its call of that number."""
    lock, calls = threading.Lock(), 0

    def counted(*arguments: Any) -> Any:  # noqa: ANN401
        nonlocal calls
        with lock:
            calls += 1
            due = calls == number
        if due and before:
            die()
        result = call(*arguments)
        if due:
            die()
        return result

    return counted


def main(data_dir: Path, point: str, number: int) -> None:
    configure_logging(site_key(data_dir))  # to stderr
    peer = Peer(name="sender", ae_title="SENDER", host="127.0.0.1", port=1)
    settings = Settings(node=NodeSettings(data_dir=data_dir, reserve_mb=0), peers=(peer,))
    ledger, spool = Ledger(data_dir / "intake.sqlite"), Spool(data_dir / "spool")
    intake = Intake(
        settings,
        ledger,
        spool,
        Audit(data_dir / "audit", site_key(data_dir)),
        pack_digest="a" * 64,
        settings_digest="b" * 64,
        enqueue=lambda _: None,
    )
    intake.reconcile()
    on_store = intake.on_store
    if point == "part":
        spool._write_part = at(number, spool._write_part)  # type: ignore[method-assign]
    elif point == "renamed":
        spool.write = at(number, spool.write)  # type: ignore[method-assign]
    elif point == "row":
        ledger.record = at(number, ledger.record)  # type: ignore[method-assign]
    elif point == "answered":
        on_store = at(number, on_store, before=True)
    server = StorageServer("127.0.0.1", 0, admission(settings), on_store, intake.on_refusal)
    if point == "pdu":
        # The command of an object has come, its dataset has not, or not all of it.
        Connection.read = at(2 * number, Connection.read)  # type: ignore[method-assign]
    with server:
        print(server.port, flush=True)  # noqa: T201  # the test reads it
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
