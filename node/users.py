"""`flairnode users`: who may use the page. A password is made at random and shown once."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import Any

from config.loader import load_settings
from node.audit import Audit, AuditEvent
from node.cli import EXIT_DONE, EXIT_REFUSED
from node.sitekey import site_key
from node.web.accounts import ACCOUNTS_FILE, AccountError, Accounts, Role


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the `users` command and its actions."""
    users = subparsers.add_parser(
        "users",
        help="who may use the page",
        description="Accounts of the page. Whoever may read the data directory may make them. "
        "Example: flairnode users add anna --role operator --config site.toml",
    )
    actions = users.add_subparsers(title="actions", dest="action", required=True)
    for name, text in (
        ("list", "every account"),
        ("add", "a new account; prints its password, once"),
        ("password", "another password for an account; prints it, once, and ends its sessions"),
        ("role", "another role for an account"),
        ("remove", "remove an account"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--config", type=Path, required=True, help="settings of the site")
        if name != "list":
            action.add_argument("name")
        if name in ("add", "role"):
            action.add_argument(
                "--role",
                choices=[role.value for role in Role],
                required=name == "role",
                default=Role.VIEWER.value,
                help="viewer looks, operator retries and cancels, administrator changes rules "
                "and accounts",
            )
        action.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do one action; what it changed is in the audit trail."""
    data_dir = load_settings(arguments.config).node.data_dir
    with Accounts(data_dir / ACCOUNTS_FILE) as accounts:
        if arguments.action == "list":
            for account in accounts.all():
                locked = "  locked" if account.locked else ""
                sys.stdout.write(f"{account.name:<32}  {account.role}{locked}\n")
            return EXIT_DONE
        try:
            password = _change(accounts, arguments)
        except AccountError as error:
            sys.stderr.write(f"flairnode users: {error}\n")
            return EXIT_REFUSED
    Audit(data_dir / "audit", site_key(data_dir)).append(
        AuditEvent.OPERATOR,
        what=f"account-{arguments.action}",
        user=getpass.getuser(),
        account=arguments.name,
    )
    if password is not None:
        sys.stdout.write(f"{password}\n")
        sys.stderr.write(f"the password of {arguments.name}: it is shown this once\n")
    return EXIT_DONE


def _change(accounts: Accounts, arguments: argparse.Namespace) -> str | None:
    if arguments.action == "add":
        return accounts.add(arguments.name, Role(arguments.role))
    if arguments.action == "password":
        return accounts.set_password(arguments.name)
    if arguments.action == "role":
        accounts.set_role(arguments.name, Role(arguments.role))
    else:
        accounts.remove(arguments.name)
    return None
