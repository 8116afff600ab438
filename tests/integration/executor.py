"""One executor on PostgreSQL, for `test_takeover.py`: `executor.py URL NAME FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dbos import DBOS

from config.settings import EngineSettings, NodeSettings, Settings
from node.engine import Engine, WorkQueue

QUEUE = WorkQueue("takeover", worker_concurrency=4)
FOLDER = Path(sys.argv[3]) if len(sys.argv) > 3 else Path()


@DBOS.step(name="takeover-begin")
def begin(key: str) -> None:
    with (FOLDER / "begun").open("a") as file:
        file.write(f"{key} {sys.argv[2]}\n")


@DBOS.step(name="takeover-finish")
def finish(key: str) -> str:
    while not (FOLDER / "go").exists():
        time.sleep(0.05)
    with (FOLDER / "finished").open("a") as file:
        file.write(f"{key} {sys.argv[2]}\n")
    return key


@DBOS.workflow(name="takeover")
def work(key: str) -> str:
    begin(key)
    return finish(key)


def main() -> None:
    url, name = sys.argv[1:3]
    settings = Settings(
        node=NodeSettings(data_dir=FOLDER), engine=EngineSettings(database_url=url, poll_s=0.1)
    )
    engine = Engine(settings, name, "takeover-1")
    engine.launch([QUEUE])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        engine.enqueue(QUEUE.name, line.strip(), 10, work, line.strip())
    time.sleep(600)


if __name__ == "__main__":
    main()
