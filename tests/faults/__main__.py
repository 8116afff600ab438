"""`python -m tests.faults`: every fault once or more, one table, and exit status 1 for any loss.

python -m tests.faults [--profile ci|long|core] [--seed N] [--only WORD ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from node.archive import find_orthanc
from tests.faults.bench import PROFILES, Bench, Row, say, table
from tests.faults.scenarios import SCENARIOS
from tests.faults.sender import STORESCU


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="ci")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="faults whose name holds a word")
    parser.add_argument("--json", type=Path, help="write the table there as well")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    arguments = parser.parse_args()
    if find_orthanc() is None or not STORESCU.exists():
        parser.error("Orthanc and DCMTK are needed: deploy/install_test_tools.sh")
    chosen = [
        one
        for one in SCENARIOS
        if (arguments.profile != "core" or one.core)
        and (not arguments.only or any(word in one.fault for word in arguments.only))
    ]
    with tempfile.TemporaryDirectory(prefix="flairnode-faults-") as temporary:
        bench = Bench(
            arguments.keep or Path(temporary), PROFILES[arguments.profile], arguments.seed
        )
        bench.folder.mkdir(exist_ok=True)
        rows = []
        try:
            for number, one in enumerate(chosen, 1):
                say(f"{number} of {len(chosen)}: {one.fault}")
                rows.append(row := bench.run(one.fault, one.scene))
                say(f"    {row.took_s:.1f} s {'' if row.clean else 'FAULT'} {row.note}")
                for line in row.trouble:
                    say(f"    {line}")
                if arguments.json is not None:
                    _write(arguments, rows)
        finally:
            bench.close()
    sys.stdout.write(table(rows) + "\n")
    faults = sum(not row.clean for row in rows)
    missing = sum(not row.ran for row in rows)
    sys.stdout.write(
        f"{len(rows)} faults, {sum(row.rounds for row in rows)} rounds,"
        f" {sum(row.acknowledged for row in rows)} objects acknowledged,"
        f" {sum(row.lost for row in rows)} lost, {sum(row.doubled for row in rows)} doubled,"
        f" {faults} faulty, {missing} not run;"
        f" {sum(row.took_s for row in rows):.0f} s; profile {arguments.profile},"
        f" seed {arguments.seed}\n"
    )
    return 1 if faults else 0


def _write(arguments: argparse.Namespace, rows: list[Row]) -> None:
    content: dict[str, object] = {"profile": arguments.profile, "seed": arguments.seed}
    content["rows"] = [asdict(row) for row in rows]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
