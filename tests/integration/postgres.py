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
from typing import Self


def programs() -> Path | None:
    """The newest installed server's folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[4])
    return found[-1].parent if found else None


class Cluster:
    """A fresh cluster that can be stopped and started; it ends with the block.

    PostgreSQL refuses to run as root: then it runs as `postgres`, or `nobody`.
    """

    def __init__(self, bin_folder: Path) -> None:
        self._bin = bin_folder
        self._account = _unprivileged()
        self._folder = Path(tempfile.mkdtemp(prefix="flairnode-pg-"))
        self.url = f"postgresql://node@/postgres?host={self._folder}"

    def __enter__(self) -> Self:
        try:
            if self._account is not None:
                shutil.chown(self._folder, self._account)
            initdb = (str(self._bin / "initdb"), "-D", str(self._data), "-A", "trust", "-U", "node")
            _run(self._account, *initdb)
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self) -> None:
        """Until it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}'"
        self._control("-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        """At once, as by a crash; whoever is connected is cut off."""
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        _run(self._account, str(self._bin / "pg_ctl"), "-D", str(self._data), "-w", *arguments)


@contextmanager
def postgres(bin_folder: Path) -> Iterator[str]:
    """The address of a fresh database; the server ends with the block."""
    with Cluster(bin_folder) as cluster:
        yield cluster.url


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
