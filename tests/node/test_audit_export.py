"""What others read of the trail: framed as RFC 5424, shaped as PS3.15 A.5.1."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from node.audit import Audit, AuditEvent
from node.audit_export import KINDS, Form, audit_message, export, frame, syslog
from node.sitekey import tag

KEY = b"k" * 32
STUDY = "1.2.840.99.1"

FACTS: Mapping[AuditEvent, Mapping[str, Any]] = {
    AuditEvent.RECEIVED: {"study": STUDY, "series": "1.2.3", "calling_ae_title": "MR1"},
    AuditEvent.ANALYSED: {"study": STUDY, "series": "1.2.3", "job": "j1", "outcome": "analysed"},
    AuditEvent.SENT: {"study": STUDY, "series": "1.2.3", "job": "j1", "destination": "pacs"},
    AuditEvent.GIVEN_UP: {"study": STUDY, "job": "j1", "destination": "pacs", "objects": 4},
    AuditEvent.REFUSED: {"reason": "address", "address": "10.0.0.9"},
    AuditEvent.OPERATOR: {"what": "retry", "user": "meier", "study": STUDY, "job": "j1"},
    AuditEvent.RECALLED: {"user": "meier", "job": "j1", "reason": "wrong for Mrs Smith"},
    AuditEvent.STARTED: {"version": "1.0", "pid": 7},
    AuditEvent.STOPPED: {"pid": 7},
    AuditEvent.SETTINGS_CHANGED: {"settings": "node.port", "count": 1},
    AuditEvent.DISCARDED: {"what": "images", "study": STUDY, "series": "1.2.3"},
}


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, object]]:
    audit = Audit(tmp_path, KEY)
    for event in AuditEvent:
        audit.append(event, **FACTS[event])
    return [entry for entry in audit.entries() if entry is not None]


def test_every_event_has_a_kind() -> None:
    assert set(KINDS) == set(AuditEvent)


# RFC 5424 section 6: PRI, version, timestamp, host, application, process, message id, data, BOM.
SYSLOG = re.compile(
    r"<(?P<pri>\d{1,3})>1 (?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d))"
    r" (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<pid>[!-~]{1,128}) (?P<id>[!-~]{1,32})"
    r' (?P<data>-|\[[!-~]{1,32}( [!#-<>-\\^-~]{1,32}="([^"\\\]]|\\["\\\]])*")*\])'
    r" \N{ZERO WIDTH NO-BREAK SPACE}(?P<message>.*)"
)


def test_every_line_is_a_syslog_message(entries: list[dict[str, object]]) -> None:
    for entry, message in zip(
        entries, export(entries, "rfc5424", KEY, with_identifiers=True), strict=True
    ):
        found = SYSLOG.fullmatch(message)
        assert found is not None, message
        assert found["id"] == entry["event"]
        assert found["at"] == entry["at"]
        assert int(found["pri"]) // 8 == 13, "log audit"
    refused = syslog(entries[list(AuditEvent).index(AuditEvent.REFUSED)])
    assert refused.startswith("<108>1 ")
    assert ' address="10.0.0.9" reason="address"' in refused


def test_what_a_peer_says_of_itself_cannot_break_out_of_its_field() -> None:
    entry = {
        "number": 1,
        "at": "2026-11-24T12:00:00+00:00",
        "event": "refused",
        "calling_ae_title": 'A"] [x\\\n',
    }
    found = SYSLOG.fullmatch(syslog(entry))
    assert found is not None
    assert 'calling_ae_title="A\\"\\] [x\\\\ "' in found["data"]
    root = ElementTree.fromstring(audit_message(entry))  # noqa: S314  # our own
    assert root.find("ActiveParticipant").attrib["UserID"] == 'A"] [x\\\n'  # type: ignore[union-attr]


def test_a_frame_says_how_many_octets_follow() -> None:
    assert frame("\N{ZERO WIDTH NO-BREAK SPACE}ä") == b"5 \xef\xbb\xbf\xc3\xa4"


@pytest.mark.parametrize("form", ["rfc5424", "dicom", "dicom-rfc5424"])
def test_identifiers_are_tags_unless_they_are_asked_for(
    entries: list[dict[str, object]], form: Form
) -> None:
    said = "\n".join(export(entries, form, KEY, with_identifiers=False))
    details = re.findall(r'value="([A-Za-z0-9+/=]+)"', said)
    said += "".join(base64.b64decode(one).decode() for one in details if form != "rfc5424")
    for identifier in (STUDY, "1.2.3", "meier", "Smith"):
        assert f'"{identifier}"' not in said
        assert identifier not in said.replace("flairnode@32473", "")
    assert tag(KEY, STUDY) in said
    assert STUDY in "\n".join(export(entries, form, KEY, with_identifiers=True))


# --- the schema of PS3.15 A.5.1, as far as our messages go ----------------------------------------

CODED = {"csd-code", "codeSystemName", "originalText"}
SCHEMA: Mapping[str, tuple[set[str], set[str], str]] = {
    # element: attributes it must have, those it may, and its children in order
    "AuditMessage": (
        set(),
        set(),
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification "
        "(ParticipantObjectIdentification )*",
    ),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"},
        {"EventActionCode"},
        "EventID (EventTypeCode )*(EventOutcomeDescription )?",
    ),
    "EventID": (CODED, {"displayName"}, ""),
    "EventTypeCode": (CODED, {"displayName"}, ""),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
        "(RoleIDCode )*(MediaIdentifier )?",
    ),
    "RoleIDCode": (CODED, {"displayName"}, ""),
    "AuditSourceIdentification": (
        {"AuditSourceID"},
        {"AuditEnterpriseSiteID"},
        "(AuditSourceTypeCode )*",
    ),
    "AuditSourceTypeCode": ({"csd-code"}, CODED | {"displayName"}, ""),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {
            "ParticipantObjectTypeCode",
            "ParticipantObjectTypeCodeRole",
            "ParticipantObjectDataLifeCycle",
            "ParticipantObjectSensitivity",
        },
        "ParticipantObjectIDTypeCode (ParticipantObjectName |ParticipantObjectQuery )"
        "(ParticipantObjectDetail )*(ParticipantObjectDescription )*",
    ),
    "ParticipantObjectIDTypeCode": (CODED, {"displayName"}, ""),
    "ParticipantObjectName": (set(), set(), ""),
    "ParticipantObjectDetail": ({"type", "value"}, set(), ""),
}
VALUES = {
    "EventActionCode": set("CRUDE"),
    "EventOutcomeIndicator": {"0", "4", "8", "12"},
    "UserIsRequestor": {"true", "false"},
    "NetworkAccessPointTypeCode": set("12345"),
    "ParticipantObjectTypeCode": set("1234"),
    "ParticipantObjectTypeCodeRole": {str(n) for n in range(1, 27)},
    "ParticipantObjectDataLifeCycle": {str(n) for n in range(1, 16)},
}


def check(element: ElementTree.Element) -> None:
    required, allowed, children = SCHEMA[element.tag]
    given = set(element.attrib)
    assert required <= given <= required | allowed, element.tag
    assert re.fullmatch(children, "".join(f"{child.tag} " for child in element)), element.tag
    for name, value in element.attrib.items():
        assert value in VALUES.get(name, {value}), (name, value)
    for child in element:
        check(child)


def test_every_event_is_a_dicom_audit_message(entries: list[dict[str, object]]) -> None:
    messages = list(export(entries, "dicom", KEY, with_identifiers=True))
    assert len(messages) == len(AuditEvent)
    for message in messages:
        assert "\n" not in message
        check(ElementTree.fromstring(message))  # noqa: S314  # our own


def test_by_syslog_a_dicom_message_is_announced_as_ps3_15_says(
    entries: list[dict[str, object]],
) -> None:
    for message in export(entries, "dicom-rfc5424", KEY, with_identifiers=False):
        found = SYSLOG.fullmatch(message)
        assert found is not None
        assert (found["id"], found["data"]) == ("DICOM+RFC3881", "-")
        check(ElementTree.fromstring(found["message"]))  # noqa: S314  # our own


def test_a_transfer_names_both_ends_and_the_study(entries: list[dict[str, object]]) -> None:
    sent = ElementTree.fromstring(  # noqa: S314  # our own
        audit_message(entries[list(AuditEvent).index(AuditEvent.SENT)])
    )
    event = sent.find("EventIdentification/EventID")
    assert event is not None
    assert (event.attrib["csd-code"], event.attrib["codeSystemName"]) == ("110104", "DCM")
    roles = {
        one.attrib["UserID"]: one.find("RoleIDCode").attrib["csd-code"]  # type: ignore[union-attr]
        for one in sent.iter("ActiveParticipant")
    }
    assert roles == {"flairnode": "110153", "pacs": "110152"}
    objects = [
        one.attrib["ParticipantObjectID"]
        for one in sent.iter()
        if "Participant" in one.tag and "ParticipantObjectID" in one.attrib
    ]
    assert objects == [STUDY, "j1"]
