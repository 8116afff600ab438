"""A SQLite file of the node's own: one connection behind one lock, every change durable."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

BUSY_TIMEOUT_MS = 30_000  # a worker or a command line may hold the write lock for a moment


class DurableTables:
    """Tables; safe from several threads and processes. What they hold, a subclass says."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            sqlite3.DatabaseError: The file is damaged.
        """
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._open()

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the tables, or refuse those of another version. Inside a transaction."""
        raise NotImplementedError

    def _open(self) -> None:
        self.path.touch(mode=0o600)
        self._connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        try:
            for pragma in (
                f"busy_timeout={BUSY_TIMEOUT_MS}",
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            with self._transaction() as db:
                self._prepare(db)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection; the tables are of no use afterwards."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _transaction_of_a_file(self) -> Iterator[sqlite3.Connection]:
        """A change that a synchronised file tells as well: it is not waited for on disk.

        Others see it at once, and the next ordinary transaction takes it to the disk with its own.
        After a power cut it may be missing, never half there, and is made again from the file.
        """
        with self._lock:
            self._connection.execute("PRAGMA synchronous=NORMAL")
            try:
                with self._transaction() as db:
                    yield db
            finally:
                self._connection.execute("PRAGMA synchronous=FULL")

    def _rows(self, query: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()
