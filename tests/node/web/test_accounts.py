from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from node.web.accounts import (
    FAILURES_BEFORE_LOCK,
    IDLE_S,
    LOCKED_S,
    LONGEST_S,
    AccountError,
    Accounts,
    Role,
    SignInRefusedError,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock) -> Iterator[Accounts]:
    quick = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    with Accounts(tmp_path / "web.sqlite", clock, quick) as accounts:
        yield accounts


def test_the_first_password_is_made_at_random_and_works(accounts: Accounts) -> None:
    password = accounts.add("anna", Role.OPERATOR)
    session = accounts.session(accounts.sign_in("anna", password))
    assert (session.name, session.role) == ("anna", Role.OPERATOR)
    assert accounts.add("bert", Role.VIEWER) != password


def test_neither_password_nor_token_is_in_the_file(accounts: Accounts, tmp_path: Path) -> None:
    password = accounts.add("anna", Role.VIEWER)
    token = accounts.sign_in("anna", password)
    accounts.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("web.sqlite*"))
    assert b"anna" in stored
    assert password.encode() not in stored
    assert token.encode() not in stored
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("web.sqlite*")} == {0o600}


def test_five_wrong_tries_lock_an_account_for_a_quarter_of_an_hour(
    accounts: Accounts, clock: Clock
) -> None:
    password = accounts.add("anna", Role.VIEWER)
    for _ in range(FAILURES_BEFORE_LOCK):
        with pytest.raises(SignInRefusedError):
            accounts.sign_in("anna", "not the password")
    with pytest.raises(SignInRefusedError) as refused:
        accounts.sign_in("anna", password)
    assert refused.value.locked
    assert [one.locked for one in accounts.all()] == [True]
    clock.now += LOCKED_S
    assert accounts.session(accounts.sign_in("anna", password)) is not None


def test_a_clock_set_back_neither_locks_for_ever_nor_lets_a_session_live_on(
    accounts: Accounts, clock: Clock
) -> None:
    password = accounts.add("anna", Role.VIEWER)
    token = accounts.sign_in("anna", password)
    for _ in range(FAILURES_BEFORE_LOCK):
        with pytest.raises(SignInRefusedError):
            accounts.sign_in("anna", "not the password")
    clock.now -= 86400.0
    assert accounts.session(token) is None
    assert accounts.sign_in("anna", password)


@pytest.mark.parametrize(("wait_s", "times"), [(IDLE_S + 1.0, 1), (IDLE_S - 1.0, 30)])
def test_a_session_ends_when_it_is_idle_or_old(
    accounts: Accounts, clock: Clock, wait_s: float, times: int
) -> None:
    token = accounts.sign_in("anna", accounts.add("anna", Role.VIEWER))
    began = clock.now
    for _ in range(times):
        clock.now += wait_s
        if accounts.session(token) is None:
            break
    else:
        pytest.fail("it lives on")
    assert times == 1 or clock.now - began > LONGEST_S


def test_another_password_ends_the_sessions(accounts: Accounts) -> None:
    token = accounts.sign_in("anna", accounts.add("anna", Role.VIEWER))
    accounts.set_password("anna")
    assert accounts.session(token) is None


def test_a_removed_account_is_signed_out(accounts: Accounts) -> None:
    accounts.add("chief", Role.ADMINISTRATOR)
    token = accounts.sign_in("anna", accounts.add("anna", Role.VIEWER))
    accounts.remove("anna")
    assert accounts.session(token) is None


def test_the_last_administrator_stays_one(accounts: Accounts) -> None:
    accounts.add("chief", Role.ADMINISTRATOR)
    with pytest.raises(AccountError, match="last administrator"):
        accounts.remove("chief")
    with pytest.raises(AccountError, match="last administrator"):
        accounts.set_role("chief", Role.VIEWER)
    accounts.add("other", Role.ADMINISTRATOR)
    accounts.remove("chief")
    assert [one.name for one in accounts.all()] == ["other"]


@pytest.mark.parametrize("name", ["", "Anna", "a b", "../x", "a" * 33, "anna'--"])
def test_names_are_plain(accounts: Accounts, name: str) -> None:
    with pytest.raises(AccountError):
        accounts.add(name, Role.VIEWER)


def test_a_short_password_is_refused(accounts: Accounts) -> None:
    with pytest.raises(AccountError, match="12"):
        accounts.add("anna", Role.VIEWER, "elevenchars")


def test_an_unknown_name_is_refused_as_a_wrong_password_is(accounts: Accounts) -> None:
    with pytest.raises(SignInRefusedError) as refused:
        accounts.sign_in("nobody", "any password")
    assert not refused.value.locked


def test_roles_are_ordered() -> None:
    assert Role.ADMINISTRATOR.may(Role.OPERATOR)
    assert Role.OPERATOR.may(Role.VIEWER)
    assert not Role.VIEWER.may(Role.OPERATOR)
