"""DBOS Transact as this node uses it, and the only module that knows DBOS' private parts.

DBOS gives durable steps, queues and recovery of one's own work after a restart. Added here: an
SQLite engine that survives a power cut, an identity that two processes cannot share, and, on
PostgreSQL, takeover of the work of an executor that died and does not come back
(`reference/engine.md`, sections 2 and 3). Only keys enter its database: job ids, which are
digests, and file names, which are UIDs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import psycopg
import sqlalchemy as sa
import structlog
from dbos import (
    DBOS,
    DBOSConfig,
    DBOSPortableJSONSerializer,
    SetEnqueueOptions,
    SetWorkflowID,
    WorkflowHandle,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from config.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)

APPLICATION_NAME = "flairnode"
ENGINE_FILE = "engine.sqlite"
ACTIVE = ("PENDING", "ENQUEUED", "DELAYED")
"""States of a workflow that DBOS will still work on."""
EXIT_IDENTITY_LOST = 75
"""EX_TEMPFAIL: others may take our work, so we end at once; a supervisor starts us again."""
TAKEOVER_PERIOD_S = 2.0
# Of our sessions that hold an identity: a host that lost its power is noticed after about 11 s
# when the server is set alike (reference/engine.md section 2d).
_KEEPALIVES: Mapping[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class IdentityTakenError(Exception):
    """Another living process has this executor identity. Two would steal each other's work."""


# --- identity ----------------------------------------------------------------------------------


class Identity(Protocol):
    """Proof that this process alone is the executor of that name; released by its death."""

    def release(self) -> None:
        """Give the name back."""


class FileIdentity:
    """An flock on a file: the kernel drops it with the process, however that ends."""

    def __init__(self, path: Path, wait_s: float, taken: str) -> None:
        # O_CLOEXEC is Python's default: a child never inherits, and so never prolongs, the lock.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_s
        while not self._lock():
            if time.monotonic() >= deadline:
                holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
                os.close(self._descriptor)
                raise IdentityTakenError(f"{taken} (process {holder} holds {path})")
            time.sleep(0.05)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Unlock; the file stays, since removing it would let two processes lock two files."""
        os.close(self._descriptor)

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class PostgresIdentity:
    """A session advisory lock: the server drops it with the session."""

    def __init__(self, url: str, executor_id: str, wait_s: float) -> None:
        self._connection = psycopg.connect(url, autocommit=True, **_KEEPALIVES)
        deadline = time.monotonic() + wait_s
        while not self.try_lock(executor_id):
            if time.monotonic() >= deadline:
                self._connection.close()
                raise IdentityTakenError(
                    f"an executor named {executor_id!r} is alive at this PostgreSQL database"
                )
            time.sleep(0.5)

    def try_lock(self, executor_id: str) -> bool:
        """Lock that name, unless a living session has it."""
        query = "SELECT pg_try_advisory_lock(%s)"
        row = self._connection.execute(query, (advisory_key(executor_id),)).fetchone()
        return bool(row and row[0])

    def unlock(self, executor_id: str) -> None:
        """Give back a name that `try_lock` got."""
        self._connection.execute("SELECT pg_advisory_unlock(%s)", (advisory_key(executor_id),))

    def check(self) -> None:
        """Nothing, or `psycopg.OperationalError` when the session and the lock are gone."""
        self._connection.execute("SELECT 1")

    def release(self) -> None:
        """End the session, and the lock with it."""
        self._connection.close()


def advisory_key(executor_id: str) -> int:
    """A signed 64-bit number, as PostgreSQL wants it. Two names never meet in practice."""
    digest = hashlib.sha256(f"{APPLICATION_NAME}:{executor_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


# --- the engine --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkQueue:
    """A durable queue, and how many of its workflows one process runs at a time."""

    name: str
    worker_concurrency: int


class Engine:
    """One launched executor. DBOS allows one in a process."""

    def __init__(
        self,
        settings: Settings,
        executor_id: str,
        application_version: str,
        tables: str = "engine",
    ) -> None:
        """Take the identity and prepare the database; nothing runs before `launch`.

        Args:
            settings: Of the site.
            executor_id: Of this process.
            application_version: Raised when the steps of a workflow change.
            tables: Other work than the node's own stays apart: the name of the SQLite file, and of
                a schema in PostgreSQL.

        Raises:
            IdentityTakenError: Another process is this executor.
        """
        self.executor_id = executor_id
        self.url = settings.engine.database_url
        self._poll_s = settings.engine.poll_s
        self._stop = threading.Event()
        self._postgres: PostgresIdentity | None = None
        self._sqlite: sa.Engine | None = None
        self._folder, self._tables = settings.node.data_dir, tables
        if self.url is None:
            folder = settings.node.data_dir
            # A predecessor that was killed a moment ago may still be ending.
            self._identity: Identity = FileIdentity(
                self.lock_file(executor_id),
                wait_s=3.0,
                taken=f"the executor {executor_id!r} of {folder} is running already",
            )
            self._sqlite = sqlite_engine(folder / f"{tables}.sqlite")
            database = DBOSConfig(
                name=APPLICATION_NAME,
                system_database_url=str(self._sqlite.url),
                system_database_engine=self._sqlite,
            )
        else:
            # The server notices a host that lost its power only after its keepalives.
            self._postgres = PostgresIdentity(self.url, executor_id, wait_s=15.0)
            self._identity = self._postgres
            database = DBOSConfig(
                name=APPLICATION_NAME,
                system_database_url=self.url,
                db_engine_kwargs={"connect_args": {**_KEEPALIVES, "connect_timeout": 10}},
            )
            if tables != "engine":
                database["dbos_system_schema"] = f"{APPLICATION_NAME}_{tables}"
        DBOS(
            config=DBOSConfig(
                **database,
                executor_id=executor_id,
                application_version=application_version,
                # JSON, not the default pickle: nothing in a database is ever unpickled here.
                serializer=DBOSPortableJSONSerializer(),
                log_level="WARNING",
            )
        )
        self._version = application_version

    def lock_file(self, executor_id: str) -> Path:
        """On SQLite: what a living executor of that name holds an flock on."""
        return self._folder / f"{self._tables}.{executor_id}.lock"

    def launch(self, listen: Sequence[WorkQueue], know: Sequence[WorkQueue] = ()) -> None:
        """Begin to work: recover what this executor left behind, listen to queues.

        Args:
            listen: Queues whose workflows run here.
            know: Queues that this process only puts work into.
        """
        DBOS.listen_queues([queue.name for queue in listen])
        DBOS.launch()
        for queue in (*listen, *know):
            DBOS.register_queue(
                queue.name,
                worker_concurrency=queue.worker_concurrency,
                polling_interval_sec=self._poll_s,
                on_conflict="always_update",
            )
        if self._postgres is not None:
            watch = threading.Thread(target=self._watch, name="takeover", daemon=True)
            watch.start()

    def enqueue(
        self,
        queue: str,
        workflow_id: str,
        priority: int,
        workflow: Callable[P, R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> WorkflowHandle[R]:
        """Put a workflow into a queue. The id is the duplicate guard: a second call adds nothing.

        Args:
            queue: Name of a queue known to `launch`.
            workflow_id: Says what is owed, not that it was asked for once more.
            priority: Lower runs first; always explicit, since DBOS runs unset ones first.
            workflow: A registered workflow.
            args: Keys and file names only.
            kwargs: The same.
        """
        with SetWorkflowID(workflow_id), SetEnqueueOptions(priority=priority):
            return DBOS.enqueue_workflow(queue, workflow, *args, **kwargs)

    def states(self, prefix: str) -> Mapping[str, str]:
        """Workflow id -> DBOS state, for every workflow whose id begins so."""
        found = DBOS.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False)
        return {workflow.workflow_id: workflow.status for workflow in found}

    def active(self) -> list[str]:
        """The id of every workflow that DBOS will still work on."""
        found = DBOS.list_workflows(status=list(ACTIVE), load_input=False, load_output=False)
        return [workflow.workflow_id for workflow in found]

    def running(self, queue: str) -> Mapping[str, float]:
        """Workflow id -> seconds since it was taken from the queue, for those now running."""
        now_ms = time.time() * 1000
        return {
            workflow.workflow_id: (now_ms - (workflow.dequeued_at or now_ms)) / 1000
            for workflow in DBOS.list_workflows(
                status="PENDING", queue_name=queue, load_input=False, load_output=False
            )
        }

    def forget(self, workflow_ids: Collection[str]) -> None:
        """Delete workflows and their history, so that their ids can be enqueued anew."""
        if workflow_ids:
            DBOS.delete_workflows(list(workflow_ids))

    def forget_other_versions(self) -> int:
        """Delete unfinished workflows of other application versions; how many there were.

        No executor of this version would ever run them, silently. What is owed stands in the
        ledger, and is enqueued anew from there.
        """
        waiting = DBOS.list_workflows(status=list(ACTIVE), load_input=False, load_output=False)
        others = [one.workflow_id for one in waiting if one.app_version != self._version]
        self.forget(others)
        return len(others)

    def forget_strangers(self, queue: str, executors: Collection[str]) -> list[str]:
        """SQLite: delete running workflows of a queue whose executor is none of those named.

        A worker that the site configured away never comes back for its case. On PostgreSQL
        takeover sees to that.

        Returns:
            The ids, to be enqueued anew.
        """
        if self._postgres is not None:
            return []
        running = DBOS.list_workflows(
            status="PENDING", queue_name=queue, load_input=False, load_output=False
        )
        stranded = [one.workflow_id for one in running if one.executor_id not in executors]
        self.forget(stranded)
        return stranded

    def forget_finished_before(self, epoch_s: float) -> int:
        """Delete the history of workflows that ended before then; how many."""
        ended = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
            completed_before=_iso(epoch_s),
            limit=1000,
            load_input=False,
            load_output=False,
        )
        self.forget([workflow.workflow_id for workflow in ended])
        return len(ended)

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the database file, so that it cannot grow for ever."""
        if self._sqlite is not None:
            with self._sqlite.connect() as connection:
                connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))

    def destroy(self) -> None:
        """End DBOS in this process and give the identity back. Running workflows stop undone."""
        self._stop.set()
        DBOS.destroy(workflow_completion_timeout_sec=0)
        self._identity.release()

    def _watch(self) -> None:
        """Every two seconds: is the owner of a running workflow dead? Then its work is ours."""
        if self._postgres is None:
            return
        while not self._stop.wait(TAKEOVER_PERIOD_S):
            try:
                self._take_over_the_dead(self._postgres)
            except psycopg.OperationalError:
                if self._stop.is_set():
                    return
                # Our own session, and with it our identity, is gone: others may run our work.
                log.critical("engine.identity-lost", executor=self.executor_id)
                os._exit(EXIT_IDENTITY_LOST)
            except Exception:  # the watch must outlive a database that is restarting
                log.warning("engine.takeover-failed", executor=self.executor_id, exc_info=True)

    def _take_over_the_dead(self, identity: PostgresIdentity) -> None:
        identity.check()
        running = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
        owners = {workflow.executor_id for workflow in running} - {None, self.executor_id}
        for owner in sorted(filter(None, owners)):
            if not identity.try_lock(owner):
                continue
            try:
                count = take_over(owner)
            finally:
                identity.unlock(owner)
            log.warning("engine.takeover", executor=owner, workflows=count)


def take_over(dead_executor_id: str) -> int:
    """Put the running work of an executor known to be dead back into its queues; how many.

    The one use of a private call of DBOS: 3.4 offers nothing public that asks for the owner.
    tests/integration/test_takeover.py is its contract on a real PostgreSQL.
    """
    return len(DBOS._recover_pending_workflows([dead_executor_id]))


def set_damaged_aside(path: Path) -> bool:
    """Rename a damaged SQLite file, so that a new one is begun; was it damaged?

    Nothing is lost with it but history: what is owed stands in the ledger, and is enqueued anew.
    """
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    except sqlite3.OperationalError:
        raise  # locked or unreadable, not damaged
    except sqlite3.DatabaseError:
        sound = False
    if sound:
        return False
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(path.with_name(f"{path.stem}.{stamp}.damaged.sqlite{suffix}"))
    log.error("engine.damaged")
    return True


def sqlite_engine(path: Path) -> sa.Engine:
    """An engine on a local file that loses nothing it has committed.

    DBOS' own would keep the rollback journal: twice as slow, and readers wait for writers
    (measured: reference/engine.md, section 2e).
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's own would be 0644
    engine = sa.create_engine(f"sqlite:///{path}")

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        any_connection: Any = connection
        any_connection.isolation_level = "IMMEDIATE"
        cursor = connection.cursor()
        for pragma in (
            "busy_timeout=30000",
            "foreign_keys=ON",
            "journal_mode=WAL",
            "synchronous=FULL",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _iso(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_s))
