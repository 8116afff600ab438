from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from config.settings import NodeSettings, Peer, SecuritySettings, Settings
from dicom.network.scp import Refusal
from node.intake import admission
from node.refusals import KINDS, OTHERS, PERIOD_S, Refusals

Bench = Any  # IntakeBench of conftest.py


class Book:
    """Refusals on a clock that the test moves."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.now_s = 0.0
        self.refusals = Refusals(lambda facts: self.lines.append(dict(facts)), lambda: self.now_s)


def test_the_first_of_a_kind_is_told_at_once_and_the_rest_as_a_count() -> None:
    book = Book()
    for _ in range(1000):
        book.refusals.note(Refusal("address", "192.0.2.1"))
    assert [line["reason"] for line in book.lines] == ["address"]
    book.now_s += PERIOD_S
    book.refusals.flush()
    assert book.lines[1:] == [
        {
            "reason": "address",
            "address": "192.0.2.1",
            "calling_ae_title": "",
            "called_ae_title": "",
            "count": 999,
        }
    ]


def test_made_up_ae_titles_do_not_fill_the_disk() -> None:
    book = Book()
    for number in range(5000):
        book.refusals.note(Refusal("calling-ae-title", "192.0.2.1", f"T{number}", "FLAIRNODE"))
    assert len(book.lines) == KINDS
    book.now_s += PERIOD_S
    book.refusals.flush()
    assert book.lines[-1] == {"reason": OTHERS, "count": 5000 - KINDS}
    assert len(book.lines) == KINDS + 1


def test_the_audit_trail_holds_who_was_refused_and_why(bench: Bench) -> None:
    refusal = Refusal("tls", "192.0.2.1", why="certificate-has-expired")
    for _ in range(50):
        bench.intake.on_refusal(refusal)
    (entry,) = bench.audit.entries()
    assert (entry["event"], entry["reason"], entry["why"]) == (
        "refused",
        "tls",
        "certificate-has-expired",
    )
    assert bench.audit.verify().intact


# --- who may send, from the settings --------------------------------------------------------------


def peer(name: str, ae_title: str, *addresses: str) -> Peer:
    return Peer(name=name, ae_title=ae_title, host="h", port=104, addresses=addresses)


def test_a_peer_sends_from_its_own_addresses_and_others_from_the_common_ones() -> None:
    settings = Settings(
        node=NodeSettings(),
        peers=(peer("pacs", "PACS", "192.0.2.0/24"), peer("mr", "MR")),
        security=SecuritySettings(addresses=("198.51.100.7",)),
    )
    admits = admission(settings)
    assert admits.admits_from("PACS", "192.0.2.77")
    assert not admits.admits_from("PACS", "198.51.100.7")
    assert admits.admits_from("MR", "198.51.100.7")
    assert not admits.admits_from("MR", "192.0.2.77")
    assert admits.admits_address("192.0.2.77")
    assert not admits.admits_address("203.0.113.1")


def test_by_default_only_this_machine_and_the_named_peers_may_send() -> None:
    admits = admission(Settings(peers=(peer("pacs", "PACS"),)))
    assert admits.calling_ae_titles == {"PACS"}
    assert admits.admits_from("PACS", "127.0.0.1")
    assert not admits.admits_from("PACS", "192.0.2.1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: SecuritySettings(addresses=("192.0.2.0/33",)),
        lambda: SecuritySettings(addresses=("pacs.example",)),
        lambda: peer("pacs", "PACS", "192.0.2.300"),
    ],
    ids=["prefix", "name", "octet"],
)
def test_what_is_no_network_is_refused_when_the_settings_are_read(
    make: Callable[[], object],
) -> None:
    with pytest.raises(ValidationError, match="is no network"):
        make()
