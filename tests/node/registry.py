"""DBOS allows one service in a process; a run of the tests has several, one after the other."""

from __future__ import annotations

from dbos._dbos import _get_or_create_dbos_registry


def forget_services() -> None:
    """Before a test module makes a service of its own: the one before it is destroyed."""
    _get_or_create_dbos_registry().instance_info_map.clear()
