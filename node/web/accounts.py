"""Who may use the page: local accounts, their roles, and who is signed in.

`data_dir/web.sqlite`, readable by the node alone. Passwords are kept as argon2id hashes, sessions
as SHA-256 of their tokens: a copy of the file lets nobody in. There is no default password: the
first one is made at random and shown once.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from node.durable_tables import DurableTables

ACCOUNTS_FILE = "web.sqlite"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
SHORTEST_PASSWORD = 12  # characters; NIST SP 800-63B asks for 8 at least, and for no other rule
LONGEST_PASSWORD = 256  # argon2 would spend as long on a megabyte as its sender likes
FAILURES_BEFORE_LOCK = 5
LOCKED_S = 900.0
IDLE_S = 1800.0
LONGEST_S = 12 * 3600.0
CLOCK_TOLERANCE_S = 60.0  # a session from the future is from before a clock was set back

_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    locked_at REAL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS sessions (
    token_digest TEXT PRIMARY KEY,
    name TEXT NOT NULL REFERENCES accounts ON DELETE CASCADE,
    csrf TEXT NOT NULL,
    began_at REAL NOT NULL,
    seen_at REAL NOT NULL
) STRICT
"""


class Role(StrEnum):
    """What somebody may do; each may do what those before may."""

    VIEWER = "viewer"
    """Looks."""
    OPERATOR = "operator"
    """Retries and cancels, and searches by accession number."""
    ADMINISTRATOR = "administrator"
    """Changes rules and accounts, and reads the audit trail."""

    def may(self, needed: Role) -> bool:
        """Is this role at least that one?"""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class AccountError(ValueError):
    """An account cannot be made or changed as asked. The message says why."""


class SignInRefusedError(Exception):
    """Wrong name or password, or too many tries. Which of them is not said to whoever tries."""

    def __init__(self, *, locked: bool = False) -> None:
        super().__init__("locked" if locked else "refused")
        self.locked = locked


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may sign in."""

    name: str
    role: Role
    locked: bool


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is signed in."""

    name: str
    role: Role
    csrf: str
    """Comes back with every change that this session asks for; another site cannot know it."""


class Accounts(DurableTables):
    """`data_dir/web.sqlite`: safe from several threads and processes."""

    def __init__(
        self,
        path: Path,
        now: Callable[[], float] = time.time,
        hasher: PasswordHasher | None = None,
    ) -> None:
        self._now = now
        self._hasher = hasher or PasswordHasher()
        # Of an unknown name as much time is spent as of a known one.
        self._nobody = self._hasher.hash(secrets.token_urlsafe())
        super().__init__(path)

    def _prepare(self, db: sqlite3.Connection) -> None:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)

    # --- accounts --------------------------------------------------------------------------

    def add(self, name: str, role: Role, password: str | None = None) -> str:
        """Make an account; its password, which is made at random unless one is given.

        Raises:
            AccountError: The name is taken or no name, or the password is too short.
        """
        if NAME.fullmatch(name) is None:
            raise AccountError(
                f"{name!r} is no account name: small letters, digits, dot, dash, underscore, "
                "32 at most"
            )
        chosen = new_password() if password is None else password
        hashed = self._hash(chosen)
        try:
            with self._transaction() as db:
                db.execute(
                    "INSERT INTO accounts (name, role, password_hash, created_at)"
                    " VALUES (?, ?, ?, ?)",
                    (name, role.value, hashed, self._now()),
                )
        except sqlite3.IntegrityError as error:
            raise AccountError(f"there is an account {name!r} already") from error
        return chosen

    def set_password(self, name: str, password: str | None = None) -> str:
        """Give an account another password, unlock it and end its sessions; the password.

        Raises:
            AccountError: No such account, or the password is too short.
        """
        chosen = new_password() if password is None else password
        hashed = self._hash(chosen)
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE accounts SET password_hash = ?, failures = 0, locked_at = NULL"
                " WHERE name = ?",
                (hashed, name),
            ).rowcount
            if not changed:
                raise AccountError(f"there is no account {name!r}")
            db.execute("DELETE FROM sessions WHERE name = ?", (name,))
        return chosen

    def set_role(self, name: str, role: Role) -> None:
        """Give an account another role; it holds from the next request on.

        Raises:
            AccountError: No such account, or it is the last administrator.
        """
        with self._transaction() as db:
            self._refuse_last_administrator(db, name, stays=role is Role.ADMINISTRATOR)
            db.execute("UPDATE accounts SET role = ? WHERE name = ?", (role.value, name))

    def remove(self, name: str) -> None:
        """Remove an account and end its sessions.

        Raises:
            AccountError: No such account, or it is the last administrator.
        """
        with self._transaction() as db:
            self._refuse_last_administrator(db, name, stays=False)
            db.execute("DELETE FROM accounts WHERE name = ?", (name,))

    def all(self) -> list[Account]:
        """Every account, by name."""
        return [
            Account(row["name"], Role(row["role"]), self._is_locked(row["locked_at"]))
            for row in self._rows("SELECT name, role, locked_at FROM accounts ORDER BY name")
        ]

    def role_of(self, name: str) -> Role | None:
        """Of an account, for somebody whom a trusted proxy has signed in; None: no account."""
        rows = self._rows("SELECT role FROM accounts WHERE name = ?", (name,))
        return Role(rows[0]["role"]) if rows else None

    # --- sessions --------------------------------------------------------------------------

    def sign_in(self, name: str, password: str) -> str:
        """The token of a new session.

        Raises:
            SignInRefusedError: Wrong, or locked after `FAILURES_BEFORE_LOCK` wrong tries.
        """
        rows = self._rows("SELECT * FROM accounts WHERE name = ?", (name,))
        known = rows[0] if rows else None
        right = self._verifies(known["password_hash"] if known else self._nobody, password)
        if known is None:
            raise SignInRefusedError
        if self._is_locked(known["locked_at"]):
            raise SignInRefusedError(locked=True)
        if not right:
            with self._transaction() as db:
                db.execute(
                    "UPDATE accounts SET failures = failures + 1, locked_at ="
                    " CASE WHEN failures + 1 >= ? THEN ? ELSE NULL END WHERE name = ?",
                    (FAILURES_BEFORE_LOCK, self._now(), name),
                )
            raise SignInRefusedError
        token, now = secrets.token_urlsafe(32), self._now()
        with self._transaction() as db:
            db.execute("UPDATE accounts SET failures = 0, locked_at = NULL WHERE name = ?", (name,))
            db.execute(
                "DELETE FROM sessions WHERE seen_at < ? OR began_at < ?",
                (now - IDLE_S, now - LONGEST_S),
            )
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)",
                (_digest(token), name, secrets.token_urlsafe(24), now, now),
            )
        return token

    def session(self, token: str) -> Session | None:
        """Who is behind a token; None when it is unknown or has ended."""
        rows = self._rows(
            "SELECT sessions.*, role FROM sessions JOIN accounts USING (name)"
            " WHERE token_digest = ?",
            (_digest(token),),
        )
        if not rows:
            return None
        row, now = rows[0], self._now()
        idle_s, age_s = now - row["seen_at"], now - row["began_at"]
        if not -CLOCK_TOLERANCE_S <= idle_s <= IDLE_S or age_s > LONGEST_S:
            self.sign_out(token)
            return None
        if idle_s > 60.0:  # a write for each request would be many
            with self._transaction() as db:
                db.execute(
                    "UPDATE sessions SET seen_at = ? WHERE token_digest = ?", (now, _digest(token))
                )
        return Session(row["name"], Role(row["role"]), row["csrf"])

    def sign_out(self, token: str) -> None:
        """End a session."""
        with self._transaction() as db:
            db.execute("DELETE FROM sessions WHERE token_digest = ?", (_digest(token),))

    # --- helpers ---------------------------------------------------------------------------

    def _hash(self, password: str) -> str:
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise AccountError(
                f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"
            )
        return self._hasher.hash(password)

    def _verifies(self, hashed: str, password: str) -> bool:
        if len(password) > LONGEST_PASSWORD:
            return False
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False

    def _is_locked(self, locked_at: float | None) -> bool:
        # Not locked either when the clock was set back before the lock: that would last for ever.
        return locked_at is not None and 0.0 <= self._now() - locked_at < LOCKED_S

    def _refuse_last_administrator(self, db: sqlite3.Connection, name: str, *, stays: bool) -> None:
        rows = db.execute("SELECT name, role FROM accounts").fetchall()
        roles = {row["name"]: row["role"] for row in rows}
        if name not in roles:
            raise AccountError(f"there is no account {name!r}")
        administrators = [one for one, role in roles.items() if role == Role.ADMINISTRATOR]
        if administrators == [name] and not stays:
            raise AccountError(f"{name!r} is the last administrator")


def new_password() -> str:
    """24 letters and digits in groups: 118 bits, and none that is read as another."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    letters = "".join(secrets.choice(alphabet) for _ in range(24))
    return "-".join(letters[start : start + 6] for start in range(0, 24, 6))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
