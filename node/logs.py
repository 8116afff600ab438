"""Logs that follow a study without naming a patient.

One line per event: a stable dotted name and permitted fields. An unknown field is dropped and
counted, UIDs become short keyed tags, tracebacks show neither local variables nor messages of
foreign exceptions, and the messages of the DICOM libraries are left out, since they quote values.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from dicom.errors import StudyError
from dicom.network.scu import PeerError
from node.sitekey import tag

PERMITTED_FIELDS = frozenset(
    {
        # whose: tags and ids, never UIDs
        "study", "series", "instance", "job", "worker", "executor", "index", "pid",
        # who speaks with us
        "peer", "destination", "calling_ae_title", "called_ae_title", "address", "host", "port",
        # what happened
        "state", "outcome", "reason", "explanation", "why", "status", "error", "stage", "score",
        "verdict", "counts", "revision", "attempt", "attempts", "signal", "exit_code", "version",
        # how much
        "instances", "slices", "objects", "files", "jobs", "workflows", "count", "bytes",
        "free_mb", "reserve_mb", "memory_mb", "spacing_mm", "duration_s", "waited_s", "limit_s",
        "lesion_count", "total_volume_ml",
        # with what
        "model", "pack", "digest", "device", "threads", "queue", "timer", "command",
        # about the log itself
        "logger", "line", "category", "message", "dropped",
    }
)  # fmt: skip
"""A field that is not here does not reach the log. Add one only if no value of it can ever name,
date or number a patient or a study."""

_TAGGED = {"study_uid": "study", "series_uid": "series", "instance_uid": "instance"}
"""Fields that hold a UID, and the field its tag goes to."""

_OWN_FIELDS = frozenset({"event", "level", "timestamp", "exception"})
_QUOTE_VALUES = ("pydicom", "pynetdicom", "highdicom", "py.warnings", "dicom.network")
"""Loggers whose messages may quote attributes: where they spoke is logged, not what they said."""
_SAFE_MESSAGES = (StudyError, PeerError)
"""Errors whose messages name no patient by their own rule (`dicom.errors`)."""

dropped_fields: Counter[str] = Counter()
"""How often each unknown field was dropped in this process, for tests and metrics."""
_counting = threading.Lock()


def configure_logging(
    key: bytes, *, stream: TextIO | None = None, level: int = logging.INFO, console: bool = False
) -> None:
    """Set up this process' log: JSON lines, or a readable form for a terminal.

    Args:
        key: The site's key (`node.sitekey`); makes the tags.
        stream: Where lines go; stderr by default, since stdout belongs to the command line.
        level: Of the standard library: `logging.INFO`.
        console: Readable lines instead of JSON.
    """
    render = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _tag_uids(key),
        _render_exception,
        _drop_unknown_fields,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_foreign, *shared], processors=[*last, render]
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    # Each association and every timer that fires: noise below a warning.
    for name in ("pynetdicom", "pydicom", "apscheduler", "dbos"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


@contextmanager
def study_context(
    *, study_uid: str = "", series_uid: str = "", job: str = "", key: bytes
) -> Iterator[None]:
    """Every event inside carries the tags of a study, a series, a job."""
    fields = {
        "study": tag(key, study_uid) if study_uid else "",
        "series": tag(key, series_uid) if series_uid else "",
        "job": job,
    }
    with structlog.contextvars.bound_contextvars(**{k: v for k, v in fields.items() if v}):
        yield


def _tag_uids(key: bytes) -> structlog.typing.Processor:
    def tag_uids(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for field, tagged in _TAGGED.items():
            if field in event:
                event[tagged] = tag(key, str(event.pop(field)))
        return event

    return tag_uids


def _drop_unknown_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    unknown = [field for field in event if field not in PERMITTED_FIELDS | _OWN_FIELDS]
    for field in unknown:
        del event[field]
    if unknown:
        event["dropped"] = len(unknown)
        with _counting:
            dropped_fields.update(unknown)
    return event


def _foreign(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A record of the standard library: a fixed event, the rest as fields."""
    record: logging.LogRecord = event["_record"]
    event["logger"] = record.name
    event["line"] = f"{record.module}:{record.lineno}"
    if record.name.startswith(_QUOTE_VALUES):
        event["event"] = "library.spoke"
        _keep_warning_category(record, event)
    else:
        event["message"] = event["event"]
        event["event"] = "library.message"
    if record.exc_info:
        event["exc_info"] = record.exc_info
    return event


def _keep_warning_category(record: logging.LogRecord, event: MutableMapping[str, Any]) -> None:
    # "path:line: Category: message\n": where and which kind are ours to show, the message is not.
    if record.name == "py.warnings":
        where, _, rest = record.getMessage().partition(": ")
        event["line"] = Path(where.rpartition(":")[0]).name + ":" + where.rpartition(":")[2]
        event["category"] = rest.partition(":")[0]


def _render_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    elif isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[1] is not None:
        event["exception"] = describe_exception(info[1])
    return event


def describe_exception(error: BaseException) -> list[dict[str, Any]]:
    """An exception and its causes: type, frames, and a message where it is known to be safe."""
    found = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        one: dict[str, Any] = {
            "type": type(current).__name__,
            "frames": _frames(current.__traceback__),
        }
        if isinstance(current, _SAFE_MESSAGES):
            one["message"] = str(current)
        elif isinstance(current, OSError) and current.errno is not None:
            one["message"] = f"errno {current.errno}: {current.strerror}"  # not the file name
        found.append(one)
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    return found


def _frames(trace: TracebackType | None) -> list[str]:
    return [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(trace)
    ]
