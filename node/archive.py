"""A real Orthanc on loopback: the archive of `flairnode demo` and of the integration tests.

Debian's Orthanc binds every interface whatever its settings say, so nothing but 127.0.0.1 may be
served by configuration: remote HTTP is refused, HTTP asks for a random password, and a DICOM
association is accepted only for our AE titles, from the loopback address, to the right AE title.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

LOOPBACK = "127.0.0.1"
ORTHANC_PLACES = ("/usr/sbin/Orthanc", "/usr/local/sbin/Orthanc", "/usr/local/bin/Orthanc")
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins")
START_TIMEOUT_S = 30.0
START_ATTEMPTS = 3  # a free port that we looked up can be taken before Orthanc binds it


class ArchiveError(Exception):
    """Orthanc is not installed, did not start, or answered with an error."""


def find_orthanc() -> Path | None:
    """The Orthanc program of this machine, or None."""
    for place in (*ORTHANC_PLACES, shutil.which("Orthanc")):
        if place is not None and Path(place).is_file():
            return Path(place)
    return None


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


@dataclass(slots=True)
class Orthanc:
    """One Orthanc with its own storage folder; a context manager that starts and stops it.

    `stop` and `start` again keep ports, password and stored objects: a PACS that was down.
    """

    folder: Path
    """Configuration, log, index and stored objects; made private (0700)."""
    ae_title: str = "ORTHANC"
    modalities: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Who may speak with it, and whom it can send to: name -> (AE title, port on loopback)."""
    overwrite_instances: bool = False
    """False: a second C-STORE of a SOP Instance UID answers success and changes nothing."""
    name: str = field(default_factory=lambda: f"flairnode-{secrets.token_hex(8)}")
    """Random: `/system` shows it, so that we know which Orthanc answers."""
    user: str = "flairnode"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)
    http_port: int = 0
    dicom_port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base address of its REST API."""
        return f"http://{LOOPBACK}:{self.http_port}"

    @property
    def pid(self) -> int | None:
        """The running process, or None."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and wait until the Orthanc that answers is the one just started.

        Raises:
            ArchiveError: Not installed, or it ended or stayed silent; the message ends its log.
        """
        program = find_orthanc()
        if program is None:
            raise ArchiveError("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
        ports_are_ours_to_choose = self.http_port == 0 and self.dicom_port == 0
        for attempt in range(START_ATTEMPTS):
            self.http_port = self.http_port or free_port()
            self.dicom_port = self.dicom_port or free_port()
            try:
                self._launch(program)
            except ArchiveError:
                self.stop()
                if not ports_are_ours_to_choose or attempt == START_ATTEMPTS - 1:
                    raise
                self.http_port = self.dicom_port = 0
            else:
                return

    def stop(self) -> None:
        """End the process that `start` began, and no other. Nothing happens when it has ended."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it at once, as a power cut would (SIGKILL)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def allow(self, name: str, ae_title: str, port: int) -> None:
        """Let one more application of this machine speak with it, also after a restart."""
        self.modalities = {**self.modalities, name: (ae_title, port)}
        modality = json.dumps({"AET": ae_title, "Host": LOOPBACK, "Port": port}).encode()
        if self.pid is not None:
            self.request("PUT", f"/modalities/{name}", modality)

    # --- what it holds ---------------------------------------------------------------------

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """One REST call with our password.

        Raises:
            ArchiveError: No answer, or any status but 200.
        """
        token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        connection = http.client.HTTPConnection(LOOPBACK, self.http_port, timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": f"Basic {token}"})
            response = connection.getresponse()
            answer = response.read()
        except OSError as error:
            raise ArchiveError(f"Orthanc does not answer {method} {path}: {error}") from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise ArchiveError(f"Orthanc answered {response.status} to {method} {path}")
        return answer

    def get(self, path: str) -> Any:  # noqa: ANN401  # JSON of any shape
        """The JSON answer of a GET."""
        return json.loads(self.request("GET", path))

    def sop_instance_uids(self) -> list[str]:
        """SOP Instance UID of every stored object; one that is stored twice is listed twice."""
        instances = self.get("/instances?expand")
        return sorted(str(instance["MainDicomTags"]["SOPInstanceUID"]) for instance in instances)

    def series_of(self, study_instance_uid: str) -> dict[str, dict[str, Any]]:
        """Series Instance UID -> Orthanc's description of the series, for one study."""
        found: dict[str, dict[str, Any]] = {}
        for study in self.get("/studies?expand"):
            if study["MainDicomTags"].get("StudyInstanceUID") != study_instance_uid:
                continue
            for series in self.get(f"/studies/{study['ID']}/series"):
                found[str(series["MainDicomTags"]["SeriesInstanceUID"])] = series
        return found

    def files_of(self, series_instance_uid: str) -> list[bytes]:
        """The stored DICOM files of one series."""
        return [
            self.request("GET", f"/instances/{instance}/file")
            for series in self.get("/series?expand")
            if series["MainDicomTags"].get("SeriesInstanceUID") == series_instance_uid
            for instance in series["Instances"]
        ]

    def stored_count(self) -> int:
        """How many objects were ever stored anew; a re-send that changed nothing adds none."""
        count, since, done = 0, 0, False
        while not done:
            page = self.get(f"/changes?since={since}&limit=1000")
            count += sum(change["ChangeType"] == "NewInstance" for change in page["Changes"])
            since, done = int(page["Last"]), bool(page["Done"])
        return count

    # --- how it is started -----------------------------------------------------------------

    def _configuration(self) -> dict[str, object]:
        plugins = [
            str(plugin)
            for folder in PLUGIN_FOLDERS
            if (plugin := Path(folder) / "libOrthancDicomWeb.so").is_file()
        ]
        return {
            "Name": self.name,
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {self.user: self.password},
            "DicomAet": self.ae_title,
            "DicomPort": self.dicom_port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "DicomCheckModalityHost": True,
            "DicomModalities": {
                name: [ae_title, LOOPBACK, port]
                for name, (ae_title, port) in self.modalities.items()
            },
            "OverwriteInstances": self.overwrite_instances,
            "StableAge": 2,
            "Plugins": plugins,
            "DicomWeb": {"Enable": True},
        }

    def _launch(self, program: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "storage").mkdir(exist_ok=True)
        configuration = self.folder / "orthanc.json"
        configuration.touch(mode=0o600)
        configuration.write_text(json.dumps(self._configuration(), indent=2))
        # It must not outlive us, not even our kill -9. `setpriv` (util-linux) sets the death signal
        # and becomes Orthanc; a preexec_fn would run Python between fork and exec of a process
        # with threads.
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL"] if setpriv is not None else []
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own configuration, no shell
                [*guard, str(program), str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # DCMTK's: without it every C-STORE waits 44 ms for a delayed ACK
                # (reference/speed.md section 5).
                env={**os.environ, "TCP_NODELAY": "1"},
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ArchiveError(f"Orthanc ended with {self._process.returncode}: {self._log()}")
            with suppress(ArchiveError, http.client.HTTPException):
                if self.get("/system")["Name"] != self.name:
                    raise ArchiveError(f"another Orthanc answers on port {self.http_port}")
                return
            time.sleep(0.05)
        raise ArchiveError(f"Orthanc was silent for {START_TIMEOUT_S:.0f} s: {self._log()}")

    def _log(self) -> str:
        lines = (self.folder / "orthanc.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:])
