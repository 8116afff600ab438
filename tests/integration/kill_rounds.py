"""kill -9 with the real pipeline on the three real studies; run by hand.

    .venv/bin/python tests/integration/kill_rounds.py --rounds 20 --seed 7 --data ../shared/data

Sends `siemens_aera_study` and two studies of `dicom_wrapped_ms` with DCMTK while service and worker
are killed at seeded moments, then once more when all has ended. Prints what was received, how it
ended and what Orthanc holds; exit status 0 if nothing was lost and nothing doubled.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kills import Balance, Kills, balance
from node_process import SENDER, NodeProcess

from node.archive import Orthanc
from node.ledger import SeriesState

STUDIES = (
    "dicom_samples/siemens_aera_study",
    "dicom_wrapped_ms/patient01_study1",
    "dicom_wrapped_ms/patient01_study2",
)
FLAIRS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, required=True, help="the shared test data")
    parser.add_argument("--longest-pause-s", type=float, default=12.0)
    parser.add_argument("--patience-s", type=float, default=1800.0, help="for the last case to end")
    parser.add_argument("--model", default="starter", help="pack, by name or path")
    arguments = parser.parse_args()
    studies = [arguments.data.resolve() / study for study in STUDIES]
    for study in studies:
        if not study.is_dir():
            parser.error(f"no study at {study}")
    with tempfile.TemporaryDirectory(prefix="flairnode-kills-") as folder:
        archive = Orthanc(
            Path(folder) / "orthanc",
            modalities={"flairnode": ("FLAIRNODE", 1), "sender": (SENDER, 1)},
        )
        with archive:
            return _run(arguments, studies, Path(folder), archive)


def _run(arguments: argparse.Namespace, studies: list[Path], folder: Path, archive: Orthanc) -> int:
    node = NodeProcess(
        folder / "node",
        {"pacs": archive},
        sections={"completeness": {"quiet_period_s": 3.0}, "pipeline": {"model": arguments.model}},
        command=(sys.executable, "-m", "node.cli", "serve"),
    )
    began = time.monotonic()

    def say(message: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {message}\n")
        sys.stdout.flush()

    node.start()
    try:
        sender = threading.Thread(target=_send, args=(node, studies, say), daemon=True)
        sender.start()
        plan = random.Random(arguments.seed)  # noqa: S311  # to be repeated, not to be secret
        kills = Kills(node, plan, arguments.longest_pause_s, say)
        for number in range(arguments.rounds):
            say(f"round {number + 1} of {arguments.rounds}")
            kills.round()
        sender.join()
        _wait(node, arguments.patience_s, say)
        sent = sum(1 for study in studies for path in study.rglob("*") if path.is_file())
        first = balance(node, archive)
        faults = _report("after the kills", first, sent, say)
        say("sending everything again")
        _send(node, studies, say)
        time.sleep(8.0)
        _wait(node, arguments.patience_s, say)
        second = balance(node, archive)
        faults += _report("after sending again", second, sent, say)
        if second.in_archive != first.in_archive:
            faults.append(f"{first.in_archive} objects became {second.in_archive}")
        delivered = sum(end == "delivered" for end, _ in second.series.values())
        if delivered != FLAIRS:
            faults.append(f"{delivered} series were delivered, expected {FLAIRS}")
        say(f"kills: {dict(kills.done)}")
        for fault in faults:
            say(f"FAULT {fault}")
        say("FAILED" if faults else "nothing lost, nothing doubled")
        return 1 if faults else 0
    finally:
        node.end()


def _send(node: NodeProcess, studies: list[Path], say: object) -> None:
    for study in studies:
        for _ in range(500):
            if node.send(study).returncode == 0:
                break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"{study.name} could not be sent")
        if callable(say):
            say(f"{study.name} was acknowledged as a whole")


def _wait(node: NodeProcess, patience_s: float, say: object) -> None:
    node.wait_for_ends(FLAIRS, patience_s)
    with node.ledger() as ledger:
        held = ledger.jobs(SeriesState.HELD)
    if held and callable(say):
        say(f"held: {[(job.job_id, job.reason) for job in held]}")


def _report(title: str, found: Balance, sent: int, say: object) -> list[str]:
    if callable(say):
        say(
            f"{title}: {sent} files sent, {found.received} instances received, by end of their "
            f"series: {dict(found.ends)}; {found.in_archive} objects in Orthanc, "
            f"{len(found.missing)} missing, {len(found.doubled)} doubled"
        )
        for uid, (end, reason) in sorted(found.series.items()):
            say(f"    {uid[-20:]:>20}  {end:<12} {reason}")
    return found.faults(sent)


if __name__ == "__main__":
    sys.exit(main())
