"""A PostgreSQL cluster of a test's own, on a unix socket in a private folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The newest installed server's folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[4])
    return found[-1].parent if found else None


@contextmanager
def postgres(bin_folder: Path) -> Iterator[str]:
    """The address of a fresh database; the server ends with the block.

    PostgreSQL refuses to run as root: then it runs as `postgres`, or `nobody`.
    """
    account = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="flairnode-pg-"))
    data = folder / "data"
    try:
        if account is not None:
            shutil.chown(folder, account)
        _run(account, str(bin_folder / "initdb"), "-D", str(data), "-A", "trust", "-U", "node")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
        control = (str(bin_folder / "pg_ctl"), "-D", str(data), "-w")
        _run(account, *control, "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://node@/postgres?host={folder}"
        finally:
            _run(account, *control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _run(account: str | None, *command: str) -> None:
    done = subprocess.run(
        command,
        user=account,
        capture_output=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name}: {done.stderr}")
