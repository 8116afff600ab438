"""The site of a demo: an archive and a node on free loopback ports, in a folder that goes away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from config.settings import Peer
from dicom.network.embedded_archive import EmbeddedArchive
from dicom.network.scu import PeerError, echo
from node.archive import LOOPBACK, Orthanc, find_orthanc, free_port
from node.ledger import Ledger

NODE_AE_TITLE = "FLAIRNODE"
ARCHIVE_AE_TITLE = "ARCHIVE"
SENDER_AE_TITLE = "MODALITY"

QUIET_PERIOD_S = 1.5
"""Nobody pauses on loopback; a site waits longer."""
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_LOG_LINES = 12


class DemoError(Exception):
    """Something that the demo promises did not hold. The message says what, for a person."""


class Archive(Protocol):
    """What the demo asks of an archive, a real Orthanc or the embedded one."""

    ae_title: str
    dicom_port: int

    def sop_instance_uids(self) -> list[str]:
        """SOP Instance UID of every stored object; one stored twice is listed twice."""

    def files_of(self, series_instance_uid: str) -> list[bytes]:
        """The stored DICOM files of one series."""


@dataclass(slots=True)
class DemoSite:
    """Archive and node; a context manager that ends both."""

    folder: Path
    model: str
    want_orthanc: bool = False
    """Refuse to go on without one. Otherwise Orthanc is taken when it is installed."""
    node_port: int = 0
    _archive: Archive | None = None
    _node: subprocess.Popen[bytes] | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_node()
        self._open.close()

    # --- archive -----------------------------------------------------------------------------

    @property
    def archive(self) -> Archive:
        """The running archive."""
        if self._archive is None:
            raise RuntimeError("the archive has not been started")
        return self._archive

    def start_archive(self) -> str:
        """Start it; what it is, in words.

        Raises:
            ArchiveError: Orthanc was asked for, or is installed, and does not start.
        """
        self.node_port = free_port()
        if not self.want_orthanc and find_orthanc() is None:
            embedded = EmbeddedArchive(
                self.folder / "archive", ARCHIVE_AE_TITLE, [NODE_AE_TITLE, SENDER_AE_TITLE]
            )
            self._archive = self._open.enter_context(embedded)
            return "small archive of this program (Orthanc is not installed)"
        orthanc = Orthanc(
            self.folder / "orthanc",
            ae_title=ARCHIVE_AE_TITLE,
            modalities={
                "flairnode": (NODE_AE_TITLE, self.node_port),
                "modality": (SENDER_AE_TITLE, self.node_port),
            },
        )
        self._open.callback(orthanc.kill)  # its storage goes away; an orderly end takes it 3 s
        orthanc.start()
        self._archive = orthanc
        return "Orthanc"

    @property
    def archive_peer(self) -> Peer:
        """The archive as the node knows it."""
        archive = self.archive
        return Peer(
            name="archive", ae_title=archive.ae_title, host=LOOPBACK, port=archive.dicom_port
        )

    # --- node --------------------------------------------------------------------------------

    @property
    def node_peer(self) -> Peer:
        """The node as a modality knows it."""
        return Peer(name="flairnode", ae_title=NODE_AE_TITLE, host=LOOPBACK, port=self.node_port)

    @property
    def data_dir(self) -> Path:
        """Of the node."""
        return self.folder / "data"

    @property
    def config(self) -> Path:
        """The settings that the node runs with."""
        return self.folder / "site.toml"

    @property
    def log(self) -> Path:
        """What the node said."""
        return self.folder / "node.log"

    def launch_node(self) -> None:
        """Write its settings and start `flairnode serve`; it is not ready yet."""
        self.data_dir.mkdir(mode=0o700)
        self.config.write_text(self._settings())
        # The node must not outlive the demo, not even its kill -9; `setpriv` sets the death signal.
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "TERM"] if setpriv is not None else []
        with self.log.open("wb") as log:
            self._node = subprocess.Popen(  # noqa: S603  # our own program, no shell
                [*guard, sys.executable, "-m", "node.cli", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the demo, which then ends the node in order.
                start_new_session=True,
                env={
                    name: value
                    for name, value in os.environ.items()
                    # A site's variables would override the demo's settings.
                    if not name.startswith("FLAIRNODE_")
                },
            )

    def wait_for_node(self) -> None:
        """Until it answers a C-ECHO.

        Raises:
            DemoError: It ended, or stayed silent.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self.require_node()
            try:
                echo(self.node_peer, calling_ae_title=SENDER_AE_TITLE, timeout_s=5.0)
            except PeerError as error:
                if time.monotonic() > deadline:
                    raise DemoError(
                        f"the node was silent for {START_TIMEOUT_S:.0f} s\n{self._last_words()}"
                    ) from error
                time.sleep(0.2)
            else:
                return

    def require_node(self) -> None:
        """Raise `DemoError` if the node process has ended."""
        if self._node is None or self._node.poll() is not None:
            status = "was not started" if self._node is None else f"ended ({self._node.returncode})"
            raise DemoError(f"the node {status}\n{self._last_words()}")

    def ledger(self) -> Ledger:
        """The tables of the node. Only its reading methods may be used here."""
        return Ledger(self.data_dir / "intake.sqlite")

    def _settings(self) -> str:
        archive = self.archive_peer
        sections: Sequence[tuple[str, dict[str, Any]]] = (
            (
                "[node]",
                {
                    "ae_title": NODE_AE_TITLE,
                    "port": self.node_port,
                    "data_dir": str(self.data_dir),
                    "reserve_mb": 256,
                    "daily_self_test": False,
                },
            ),
            ("[[peers]]", archive.model_dump(exclude_defaults=True)),
            ("[[destinations]]", {"peer": archive.name, "research": True}),
            (
                "[completeness]",
                {"quiet_period_s": QUIET_PERIOD_S, "query_peer": archive.name},
            ),
            ("[pipeline]", {"model": self.model}),
            ("[engine]", {"poll_s": 0.1}),
            ("[security]", {"calling_ae_titles": [SENDER_AE_TITLE]}),
        )
        # A JSON string, number, truth value or list of strings is one of TOML, too.
        return "\n".join(
            "\n".join(
                [header, *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
            )
            for header, keys in sections
        )

    def _last_words(self) -> str:
        if not self.log.is_file():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(["its last words:", *lines[-_LOG_LINES:]])

    def _stop_node(self) -> None:
        if self._node is None or self._node.poll() is not None:
            return
        self._node.terminate()
        try:
            self._node.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._node.kill()
            self._node.wait()
