from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from pydicom.dataset import Dataset

from dicom.errors import MissingSliceError
from node.logs import configure_logging, dropped_fields, study_context
from node.sitekey import tag

KEY = b"k" * 32
NAME = "Doe^Jane"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logged() -> Iterator[Lines]:
    """What was logged so far."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logging(KEY, stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def test_an_event_has_a_name_a_level_and_a_time(logged: Lines) -> None:
    structlog.get_logger("node").info("series.closed", slices=22)
    (line,) = logged()
    assert (line["event"], line["level"], line["slices"]) == ("series.closed", "info", 22)
    assert line["timestamp"].endswith("Z")


def test_an_unknown_field_is_dropped_and_counted(logged: Lines) -> None:
    before = dropped_fields["patient_name"]
    structlog.get_logger().info("x", patient_name=NAME, slices=1)
    (line,) = logged()
    assert NAME not in json.dumps(line)
    assert line["dropped"] == 1
    assert dropped_fields["patient_name"] == before + 1


def test_uids_become_tags_that_only_this_site_can_make(logged: Lines) -> None:
    structlog.get_logger().info("x", study_uid="1.2.3", series_uid="1.2.4")
    (line,) = logged()
    assert "1.2.3" not in json.dumps(line)
    assert line["study"] == tag(KEY, "1.2.3") != tag(b"j" * 32, "1.2.3")
    assert line["series"] == tag(KEY, "1.2.4")


def test_events_inside_a_study_carry_its_tags(logged: Lines) -> None:
    log = structlog.get_logger()
    with study_context(study_uid="1.2.3", series_uid="1.2.4", job="j1", key=KEY):
        log.info("inside")
    log.info("outside")
    inside, outside = logged()
    assert (inside["study"], inside["job"]) == (tag(KEY, "1.2.3"), "j1")
    assert "study" not in outside
    assert "job" not in outside


def test_a_patient_name_never_reaches_the_log(logged: Lines) -> None:
    dataset = Dataset()
    dataset.PatientName = NAME

    def fail(header: Dataset) -> None:
        secret = str(header.PatientName)
        raise ValueError(f"cannot use {secret}")

    try:
        fail(dataset)
    except ValueError:
        structlog.get_logger().exception("failed", why="no name here")
        logging.getLogger("node.somewhere").exception("failed too")
    logging.getLogger("pynetdicom.association").error("dataset: %s", dataset)
    logging.getLogger("pydicom").warning("Invalid value: %s", NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"Invalid value for VR UI: {NAME!r}", stacklevel=1)
    lines = logged()
    assert len(lines) == 5
    assert "Doe" not in json.dumps(lines)
    assert lines[0]["exception"][0]["type"] == "ValueError"
    assert lines[0]["exception"][0]["frames"][-1].endswith(" fail")
    assert lines[4]["category"] == "UserWarning"
    assert lines[4]["line"].startswith("test_logs.py:")


def test_our_own_errors_keep_their_message_and_their_cause(logged: Lines) -> None:
    def write() -> None:
        raise OSError(28, "No space left on device", f"/spool/{NAME}")

    def read() -> None:
        try:
            write()
        except OSError as error:
            raise MissingSliceError("gap of 13.0 mm") from error

    try:
        read()
    except MissingSliceError:
        structlog.get_logger().exception("refused")
    (line,) = logged()
    assert [one["type"] for one in line["exception"]] == ["MissingSliceError", "OSError"]
    assert line["exception"][0]["message"] == "gap of 13.0 mm"
    assert line["exception"][1]["message"] == "errno 28: No space left on device"
    assert "Doe" not in json.dumps(line)


def test_other_libraries_are_heard(logged: Lines) -> None:
    logging.getLogger("uvicorn").warning("port is taken")
    (line,) = logged()
    assert (line["event"], line["message"], line["logger"]) == (
        "library.message",
        "port is taken",
        "uvicorn",
    )
