"""The node as it is, with a trap: it can be made to die, or to stand still, at a chosen call.

    launcher.py serve --config FILE        launcher.py worker --config FILE --index N ...

`data_dir/faults/arm` names a point, a number and a deed; the process that comes to that call for
the n-th time puts `fired` there and does the deed to itself (`kill`, `stop`) or to the whole node
(`kill-node`). Nothing of this is in the node: functions of the real program are wrapped here, and
the network alone is a stand-in (`tests/integration/standin.py` says what it makes). Files in
`data_dir/faults` also hold a case (`hold`, `hold.<series>`), turn the clock of the retention, or
raise the version of the workflows.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1] / "integration")]

import standin
from pydicom import dcmread
from pydicom.dataset import Dataset

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import Outcome

SERVICE_POINTS = ("written", "renamed", "recorded", "closed", "unrecorded", "discarding")
WORKER_POINTS = ("leased", "inferring", "half-written")


class Trap:
    """What `arm` says, for this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._calls = 0

    def at(self, point: str) -> None:
        """The process is at that point."""
        try:
            armed, number, deed = (self._folder / "arm").read_text().split()
        except (FileNotFoundError, ValueError):
            return
        if armed != point:
            return
        with self._lock:
            self._calls += 1
            if self._calls != int(number):
                return
            # Away first: whoever is started next must not fall into it again.
            (self._folder / "arm").unlink()
            (self._folder / "fired").write_text(f"{point} {os.getpid()} {time.monotonic()}\n")
            if deed == "kill-node":
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGSTOP if deed == "stop" else signal.SIGKILL)

    def before(self, point: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, behind that point."""

        def trapped(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            self.at(point)
            return call(*arguments, **named)

        return trapped

    def after(self, point: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, and then that point."""

        def trapped(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            result = call(*arguments, **named)
            self.at(point)
            return result

        return trapped


def set_service_traps(trap: Trap, spool: Path) -> None:
    from node.delivery import ARRIVED
    from node.ledger import Ledger

    image = re.compile(re.escape(str(spool)) + r".+\.dcm")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        """Python tells of every rename and removal before it is made."""
        if event == "os.rename" and str(arguments[0]).startswith(str(spool)):
            trap.at("written")
        elif event == "os.remove" and image.fullmatch(str(arguments[0])):
            trap.at("discarding")

    record_delivery = Ledger.record_delivery

    def record(self: Ledger, job: str, peer: str, uid: str, state: str) -> None:
        if state in ARRIVED:
            trap.at("unrecorded")
        record_delivery(self, job, peer, uid, state)

    sys.addaudithook(watch)
    patches: dict[str, Callable[..., Any]] = {
        "record": trap.after("recorded", trap.before("renamed", Ledger.record)),
        "close_study": trap.after("closed", Ledger.close_study),
        "record_delivery": record,
    }
    for name, patch in patches.items():
        setattr(Ledger, name, patch)


def set_worker_traps(trap: Trap) -> None:
    from node.outcome import ResultsFolder

    patches = {"read_order": trap.before("leased", ResultsFolder.read_order)}
    for name, patch in patches.items():
        setattr(ResultsFolder, name, patch)


def analyser(settings: Settings, trap: Trap) -> Any:  # noqa: ANN401  # an Analyser
    """The stand-in's, with results that name their sources, and cases that wait."""
    faults = settings.node.data_dir / "faults"

    def tell_why(*arguments: Any) -> Any:  # noqa: ANN401
        return standin.analyser(settings).tell_why(*arguments)  # what notes need takes a second

    def analyse(paths: Sequence[Path], output: Path, **_: object) -> Any:  # noqa: ANN401
        headers = [dcmread(path, stop_before_pixels=True) for path in paths]
        uid = str(headers[0].SeriesInstanceUID)
        trap.at("inferring")
        while (faults / "hold").exists() or (faults / f"hold.{uid}").exists():
            time.sleep(0.05)
        if (settings.node.data_dir / "standin").exists():
            standin.misbehave(settings.node.data_dir / "standin", uid, headers[0])
        outputs = []
        for kind in ("seg", "sr"):
            instances = sorted(str(header.SOPInstanceUID) for header in headers)
            outputs.append(standin.write(output, kind, headers[0], instances))
            _name_sources(outputs[-1].path, headers)
            if kind == "seg":
                trap.at("half-written")
        return standin.ended(Outcome.ANALYSED, outputs)

    from node.worker import Analyser

    return Analyser(standin.PACK_DIGEST, research=True, analyse=analyse, tell_why=tell_why)


def _name_sources(path: Path, headers: Sequence[Dataset]) -> None:
    """As a real report does (PS3.3 C.17.2): what it rests on, so that it can be checked."""
    report = dcmread(path)
    study, series = Dataset(), Dataset()
    study.StudyInstanceUID = headers[0].StudyInstanceUID
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ReferencedSOPSequence = []
    for header in headers:
        source = Dataset()
        source.ReferencedSOPClassUID = header.SOPClassUID
        source.ReferencedSOPInstanceUID = header.SOPInstanceUID
        series.ReferencedSOPSequence.append(source)
    study.ReferencedSeriesSequence = [series]
    report.CurrentRequestedProcedureEvidenceSequence = [study]
    report.save_as(path, enforce_file_format=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("serve", "worker"))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--run")
    parser.add_argument("--standby", action="store_true")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    faults = settings.node.data_dir / "faults"
    trap = Trap(faults)
    if name := os.environ.get("FAULTS_HOST"):
        as_host(name)
    if arguments.role == "serve":
        import node.service
        import node.timers
        import node.workflow

        set_service_traps(trap, settings.node.data_dir / "spool")
        if (faults / "hourly").exists():
            node.timers.HOURLY_S = float((faults / "hourly").read_text())
        if (faults / "version").exists():
            node.service.WORKFLOW_VERSION = (faults / "version").read_text()
        return node.service.serve(
            settings,
            arguments.config,
            worker_command=(sys.executable, str(HERE), "worker"),
            model_digest=lambda _settings: standin.PACK_DIGEST,
            **({"standby": True} if arguments.standby else {}),
        )
    import node.worker

    set_worker_traps(trap)
    if (faults / "version").exists():
        node.worker.WORKFLOW_VERSION = (faults / "version").read_text()
    if arguments.parent is not None:
        node.worker.die_with(arguments.parent)
    return node.worker.run_worker(
        settings, arguments.index, load=lambda s: analyser(s, trap), run=arguments.run
    )


def as_host(name: str) -> None:
    """Be on another host: identities are made of its name."""
    here = os.uname()
    other = os.uname_result((here.sysname, name, here.release, here.version, here.machine))
    os.uname = lambda: other


if __name__ == "__main__":
    sys.exit(main())
