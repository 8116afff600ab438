"""What the settings refuse, and what they say then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config.settings import Destination, NodeSettings, Peer, RetentionSettings, Settings

DIMSE = {"ae_title": "PACS", "host": "pacs", "port": 104}
WEB = {"dicomweb_url": "https://pacs/dicom-web"}


def site(peer: dict[str, Any], destination: dict[str, Any], **sections: object) -> Settings:
    return Settings.model_validate(
        {
            "peers": [{"name": "pacs", **peer}],
            "destinations": [{"peer": "pacs", **destination}],
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("peer", "destination", "sections", "said"),
    [
        (DIMSE, {"protocol": "stow-rs"}, {}, "needs the peer's dicomweb_url"),
        (DIMSE, {"protocol": "orthanc-rest"}, {}, "needs the peer's orthanc_url"),
        (WEB, {}, {}, "needs the peer's ae_title, host and port"),
        (WEB, {"protocol": "stow-rs", "confirm": "commitment"}, {}, "commitment needs the peer's"),
        (
            DIMSE,
            {"confirm": "commitment"},
            {"security": {"calling_ae_titles": ["SCANNER"]}},
            "calling_ae_titles must name 'PACS'",
        ),
        (WEB, {"protocol": "stow-rs"}, {"completeness": {"query_peer": "pacs"}}, "query_peer"),
        ({"ae_title": "PACS"}, {}, {}, "peer 'pacs': host, port missing"),
        ({}, {}, {}, "peer 'pacs': ae_title, host, port missing"),
        ({**DIMSE, "user": "me"}, {}, {}, "a user, but no dicomweb_url"),
        (
            {**WEB, "password_file": "p"},
            {"protocol": "stow-rs"},
            {},
            "a password_file, but no user",
        ),
        ({"dicomweb_url": "https://me:secret@pacs"}, {}, {}, "holds no password"),
        ({"dicomweb_url": "pacs/dicom-web"}, {}, {}, "begins with http"),
        (DIMSE, {"series_description": "AI"}, {}, "must hold {description} once"),
        (DIMSE, {"specific_character_set": "ISO 2022 IR 87"}, {}, "ISO_IR 100"),
    ],
)
def test_what_does_not_fit_together_is_named(
    peer: dict[str, Any], destination: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        site(peer, destination, **sections)
    assert said in str(refused.value)


def test_a_peer_named_twice_as_a_destination_is_refused() -> None:
    entry = {"peer": "pacs"}
    with pytest.raises(ValidationError, match="named twice"):
        Settings.model_validate(
            {"peers": [{"name": "pacs", **DIMSE}], "destinations": [entry, entry]}
        )


def test_a_peer_over_the_web_alone_is_a_destination() -> None:
    settings = site(WEB, {"protocol": "stow-rs"})
    assert not settings.peer("pacs").speaks_dimse
    assert settings.protocol_of("pacs") == "stow-rs"


def test_a_password_comes_from_a_file_before_a_variable_and_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    peer = Peer(name="my-pacs", user="me", orthanc_url="http://pacs:8042")
    monkeypatch.delenv("FLAIRNODE_PASSWORD_MY_PACS", raising=False)
    with pytest.raises(LookupError, match="FLAIRNODE_PASSWORD_MY_PACS"):
        peer.password()
    monkeypatch.setenv("FLAIRNODE_PASSWORD_MY_PACS", "from the variable")
    assert peer.password() == "from the variable"
    with_file = peer.model_copy(update={"password_file": file})
    for content in ("first", "second "):
        file.write_text(content + "\n")
        assert with_file.password() == content


def test_a_destination_knows_whether_it_wants_other_files() -> None:
    assert not Destination(peer="pacs").changes_something
    assert Destination(peer="pacs", series_number_offset=1).changes_something
    assert Destination(peer="pacs", series_description="AI {description}").changes_something


def test_senders_are_taken_from_again_a_quarter_above_the_reserve() -> None:
    assert NodeSettings().reopens_mb == 2048 + 512
    assert NodeSettings(reserve_mb=100, reserve_margin_mb=7).reopens_mb == 107


def test_nothing_may_be_kept_at_least_for_longer_than_it_is_kept() -> None:
    with pytest.raises(ValidationError, match="least_days"):
        RetentionSettings(keep_days=3, least_days=4)
    assert RetentionSettings(keep_days=0.5).least_days == 1.0  # the default gives way
