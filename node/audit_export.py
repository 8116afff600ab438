"""The audit trail in forms that others read: syslog (RFC 5424) and DICOM audit messages.

DICOM's are XML as PS3.15 A.5.1 has it, with the event codes of PS3.16 CID 400 and 401; sent by
syslog they are its message (PS3.15 A.6). No message holds a patient: the trail knows none. UIDs
and user names become keyed tags unless they are asked for, the same tags as in the log.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from node.audit import AuditEvent
from node.sitekey import tag

Form = Literal["rfc5424", "dicom", "dicom-rfc5424"]
Entry = Mapping[str, object]

APPLICATION = "flairnode"
_IDENTIFIERS = ("study", "series", "instance", "user")
_IN_OWN_WORDS = "in an operator's own words"
"""For what somebody typed freely: it may name anybody."""
_NOT_FACTS = ("number", "at", "event", "previous", "digest")
# PRI = facility x 8 + severity (RFC 5424 6.2.1). Facility 13 is "log audit".
_FACILITY, _WARNING, _NOTICE, _INFORMATIONAL = 13, 4, 5, 6
# An enterprise number for examples (RFC 5612): the project has none of its own.
_STRUCTURED_DATA = "flairnode@32473"
_MESSAGE_ID_OF_DICOM = "DICOM+RFC3881"  # PS3.15 A.6
_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_NAME = re.compile(r"[^!#-<>-\\^-~]")  # what an SD-NAME may not hold: space, =, ], "


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value of PS3.16."""

    value: str
    meaning: str
    scheme: str = "DCM"


@dataclass(frozen=True, slots=True)
class Kind:
    """What one of our events is in DICOM's words."""

    event: Code
    action: Literal["C", "R", "U", "D", "E"]
    type: Code | None = None
    outcome: Literal["0", "4", "8", "12"] = "0"
    life_cycle: str = ""
    """Participant Object Data Life Cycle (PS3.15 A.5.1.2.3)."""


_APPLICATION_ACTIVITY = Code("110100", "Application Activity")
_INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
_INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
_SECURITY_ALERT = Code("110113", "Security Alert")
_STUDY_INSTANCE_UID = Code("110180", "Study Instance UID")
_JOB = Code("job", "Job of flairnode", "99FLAIRNODE")
_SOURCE, _DESTINATION = Code("110153", "Source Role ID"), Code("110152", "Destination Role ID")
_APPLICATION_ROLE = Code("110150", "Application")

KINDS: Mapping[str, Kind] = {
    AuditEvent.RECEIVED: Kind(_INSTANCES_TRANSFERRED, "C", life_cycle="2"),
    AuditEvent.ANALYSED: Kind(_INSTANCES_ACCESSED, "C", life_cycle="8"),
    AuditEvent.SENT: Kind(_INSTANCES_TRANSFERRED, "R", life_cycle="10"),
    AuditEvent.GIVEN_UP: Kind(_INSTANCES_TRANSFERRED, "R", outcome="8", life_cycle="10"),
    AuditEvent.REFUSED: Kind(
        _SECURITY_ALERT, "E", Code("110126", "Node Authentication"), outcome="4"
    ),
    AuditEvent.OPERATOR: Kind(_INSTANCES_ACCESSED, "U"),
    AuditEvent.RECALLED: Kind(_INSTANCES_ACCESSED, "U", life_cycle="14"),
    AuditEvent.STARTED: Kind(_APPLICATION_ACTIVITY, "E", Code("110120", "Application Start")),
    AuditEvent.STOPPED: Kind(_APPLICATION_ACTIVITY, "E", Code("110121", "Application Stop")),
    AuditEvent.SETTINGS_CHANGED: Kind(
        _SECURITY_ALERT, "E", Code("110131", "Software Configuration")
    ),
    AuditEvent.DISCARDED: Kind(_INSTANCES_ACCESSED, "D", life_cycle="15"),
}
_UNKNOWN = Kind(_APPLICATION_ACTIVITY, "E")


def export(
    entries: Iterable[Entry], form: Form, key: bytes, *, with_identifiers: bool
) -> Iterator[str]:
    """One message for each line of the trail, without a line break in it.

    Args:
        entries: Of `Audit.entries`.
        form: `rfc5424`: facts as structured data. `dicom`: XML. `dicom-rfc5424`: XML in syslog.
        key: The site's; makes the tags.
        with_identifiers: UIDs and user names as they are.
    """
    show: Callable[[Entry], Entry] = dict if with_identifiers else lambda one: _tagged(one, key)
    for entry in entries:
        shown = show(entry)
        if form == "dicom":
            yield audit_message(shown)
        elif form == "rfc5424":
            yield syslog(shown)
        else:
            yield _syslog_with_xml(shown)


def frame(message: str) -> bytes:
    """A message as TCP carries it: its length in octets before it (RFC 6587 3.4.1, RFC 5425)."""
    content = message.encode("utf-8")
    return b"%d %s" % (len(content), content)


def syslog(entry: Entry) -> str:
    """A syslog message with the facts as structured data, and the event in words."""
    facts = {"number": entry["number"], **_facts(entry), "digest": str(entry.get("digest", ""))}
    data = "".join(f' {_name(name)}="{_escaped(value)}"' for name, value in facts.items())
    message = f"{entry['event']} {_facts(entry).get('reason', '')}".rstrip()
    return (
        f"{_header(entry, str(entry['event']))} [{_STRUCTURED_DATA}{data}]"
        f" {_BYTE_ORDER_MARK}{message}"
    )


def _syslog_with_xml(entry: Entry) -> str:
    return f"{_header(entry, _MESSAGE_ID_OF_DICOM)} - {_BYTE_ORDER_MARK}{audit_message(entry)}"


def _header(entry: Entry, message_id: str) -> str:
    outcome = _kind(entry).outcome
    severity = {"0": _NOTICE, "4": _WARNING}.get(outcome, _WARNING)
    host = os.uname().nodename or "-"
    return f"<{_FACILITY * 8 + severity}>1 {entry['at']} {host} {APPLICATION} - {message_id}"


def audit_message(entry: Entry) -> str:
    """A DICOM AuditMessage (PS3.15 A.5.1); all of it on one line."""
    kind = _kind(entry)
    root = ElementTree.Element("AuditMessage")
    event = ElementTree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=kind.action,
        EventDateTime=str(entry["at"]),
        EventOutcomeIndicator=kind.outcome,
    )
    _coded(event, "EventID", kind.event)
    types = [kind.type] if kind.type is not None else []
    for code in (*types, Code(str(entry["event"]), _in_words(entry), "99FLAIRNODE")):
        _coded(event, "EventTypeCode", code)
    for participant in _participants(entry):
        _active_participant(root, participant)
    source = ElementTree.SubElement(
        root, "AuditSourceIdentification", AuditSourceID=f"{APPLICATION}@{os.uname().nodename}"
    )
    ElementTree.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    for name, code in (("study", _STUDY_INSTANCE_UID), ("job", _JOB)):
        if entry.get(name):
            _object(root, entry, name, code, kind.life_cycle)
    return ElementTree.tostring(root, encoding="unicode")


@dataclass(frozen=True, slots=True)
class _Participant:
    user_id: str
    is_requestor: bool
    role: Code | None = None
    address: str = ""


def _participants(entry: Entry) -> list[_Participant]:
    """Who did it, and who had a part in it; at least one, which is us."""
    event, facts = entry["event"], {name: str(value) for name, value in entry.items()}
    if event in (AuditEvent.RECEIVED, AuditEvent.REFUSED):
        sender = facts.get("calling_ae_title", "") or facts.get("source", "") or "unknown"
        return [
            _Participant(sender, is_requestor=True, role=_SOURCE, address=facts.get("address", "")),
            _Participant(APPLICATION, is_requestor=False, role=_DESTINATION),
        ]
    if event in (AuditEvent.SENT, AuditEvent.GIVEN_UP):
        peer = facts.get("destination", "unknown")
        return [
            _Participant(APPLICATION, is_requestor=True, role=_SOURCE),
            _Participant(peer, is_requestor=False, role=_DESTINATION),
        ]
    if user := facts.get("user"):
        return [
            _Participant(user, is_requestor=True),
            _Participant(APPLICATION, is_requestor=False, role=_APPLICATION_ROLE),
        ]
    return [_Participant(APPLICATION, is_requestor=True, role=_APPLICATION_ROLE)]


def _active_participant(root: ElementTree.Element, participant: _Participant) -> None:
    attributes = {
        "UserID": participant.user_id,
        "UserIsRequestor": "true" if participant.is_requestor else "false",
    }
    if participant.address:
        attributes |= {"NetworkAccessPointID": participant.address}
        attributes |= {"NetworkAccessPointTypeCode": "2"}  # an IP address
    element = ElementTree.SubElement(root, "ActiveParticipant", attributes)
    if participant.role is not None:
        _coded(element, "RoleIDCode", participant.role)


def _object(
    root: ElementTree.Element, entry: Entry, name: str, code: Code, life_cycle: str
) -> None:
    attributes = {
        "ParticipantObjectID": str(entry[name]),
        "ParticipantObjectTypeCode": "2",  # a system object
        # PS3.15 A.5.1.2.2: a study has the role of a report, a job that of a job.
        "ParticipantObjectTypeCodeRole": "3" if name == "study" else "20",
    }
    if life_cycle:
        attributes["ParticipantObjectDataLifeCycle"] = life_cycle
    element = ElementTree.SubElement(root, "ParticipantObjectIdentification", attributes)
    _coded(element, "ParticipantObjectIDTypeCode", code)
    ElementTree.SubElement(element, "ParticipantObjectName").text = name
    for fact, value in {"number": entry["number"], **_facts(entry)}.items():
        if fact not in ("study", "job"):
            encoded = base64.b64encode(str(value).encode()).decode("ascii")
            ElementTree.SubElement(element, "ParticipantObjectDetail", type=fact, value=encoded)


def _coded(parent: ElementTree.Element, name: str, code: Code) -> None:
    ElementTree.SubElement(
        parent,
        name,
        {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning},
    )


def _kind(entry: Entry) -> Kind:
    return KINDS.get(str(entry["event"]), _UNKNOWN)


def _in_words(entry: Entry) -> str:
    return f"{entry['event']}: {entry['what']}" if entry.get("what") else str(entry["event"])


def _facts(entry: Entry) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name not in _NOT_FACTS}


def _tagged(entry: Entry, key: bytes) -> Entry:
    hidden = {name: tag(key, str(entry[name])) for name in _IDENTIFIERS if str(entry.get(name, ""))}
    if entry["event"] == AuditEvent.RECALLED and entry.get("reason"):
        hidden["reason"] = _IN_OWN_WORDS
    return {**entry, **hidden}


def _name(name: str) -> str:
    return _NAME.sub("_", name)[:32]


def _escaped(value: object) -> str:
    """RFC 5424 6.3.3: a backslash before a quote, a backslash and a closing bracket."""
    plain = "".join(" " if ord(one) < 0x20 else one for one in str(value))
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
