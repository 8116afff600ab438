"""When a self-test is due, and when its result is told. The test itself: test_selftest.py."""

import json
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config.settings import NodeSettings, Settings
from node.daily import RESULTS_FILE, SelfTestResult, SelfTests

GOOD = SelfTestResult("", "pack", passed=True, fault="", dice=0.9, lesion_count=16, volume_ml=9.1)


def ago(hours: float, result: SelfTestResult = GOOD) -> SelfTestResult:
    at = datetime.now(UTC) - timedelta(hours=hours)
    return replace(result, at=at.isoformat(timespec="seconds"))


def prints(text: str) -> tuple[str, ...]:
    """A process that prints this instead of testing; its arguments are ignored."""
    return (sys.executable, "-c", f"print({text!r})")


def answers(result: SelfTestResult) -> tuple[str, ...]:
    return prints(json.dumps(asdict(result)))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(node=NodeSettings(data_dir=tmp_path))


def daily(settings: Settings, *kept: SelfTestResult, **how: object) -> SelfTests:
    path = settings.node.data_dir / RESULTS_FILE
    path.write_text(json.dumps([asdict(one) for one in kept]), encoding="utf-8")
    return SelfTests(settings, Path("site.toml"), "pack", **how)  # type: ignore[arg-type]


def test_one_is_made_at_start_and_kept(settings: Settings) -> None:
    tests = daily(settings, ago(1), command=answers(ago(0)))
    assert tests.is_due()
    tests.look()
    assert not tests.is_due()
    assert len(SelfTests(settings, Path("site.toml"), "pack").results) == 2


@pytest.mark.parametrize(
    ("hours", "due"), [(1.0, False), (23.9, False), (24.1, True), (-2.0, True)]
)
def test_the_next_is_due_a_day_later_whatever_the_clock_does(
    settings: Settings, hours: float, due: bool
) -> None:
    tests = daily(settings, command=answers(ago(hours)))
    tests.look()
    assert tests.is_due() is due


def test_another_model_is_tested(settings: Settings) -> None:
    tests = daily(settings, command=answers(ago(0, replace(GOOD, pack_digest="other"))))
    tests.look()
    assert tests.is_due()


def test_a_patient_goes_first(settings: Settings) -> None:
    tests = daily(settings, ago(1), command=answers(ago(0)), busy=lambda: True)
    tests.look()
    assert len(tests.results) == 1


def test_a_test_that_is_long_overdue_waits_no_more(settings: Settings) -> None:
    tests = daily(settings, ago(49), command=answers(ago(0)), busy=lambda: True)
    tests.look()
    assert len(tests.results) == 2


@pytest.mark.parametrize(
    ("last", "fault"),
    [
        (GOOD, ""),
        (replace(GOOD, dice=0.895), ""),
        (replace(GOOD, dice=0.885), "Dice"),
        (replace(GOOD, dice=0.915), "Dice"),
        (replace(GOOD, volume_ml=9.4), "volume"),
        (replace(GOOD, passed=False, fault="self-test-failed: Dice 0.1"), "self-test-failed"),
        (replace(GOOD, pack_digest="other", dice=0.5), ""),
    ],
)
def test_what_moves_away_from_the_first_of_its_model_is_told(
    settings: Settings, last: SelfTestResult, fault: str
) -> None:
    tests = daily(settings, ago(72), ago(48), ago(0, last))
    assert fault in tests.fault()
    assert bool(tests.fault()) is bool(fault)


def test_a_process_that_dies_is_a_test_that_failed(settings: Settings) -> None:
    tests = daily(settings, command=prints("Segmentation fault"))
    tests.look()
    assert "without a result" in tests.fault()
