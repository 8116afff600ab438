"""The self-test of the day: does this node still find what is known to be there?

`flairnode selftest` analyses the synthetic head in a process of its own, at start, once a day and
after a change of the model. Each result is kept. The same model on the same machine gives the same
mask, so a result that moves away from the first one of its model is told, however good it looks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from config.settings import Settings
from node.durable import write_durably

log = structlog.get_logger(__name__)

RESULTS_FILE = "selftest.json"
EVERY = timedelta(hours=24)
KEPT = 400  # more than a year
DICE_TOLERANCE = 0.01
"""Another number of threads or another device moves single voxels of some thousand; a library that
computes otherwise moves more."""
VOLUME_TOLERANCE = 0.02  # of the first volume
LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """One self-test."""

    at: str
    """ISO 8601, UTC."""
    pack_digest: str
    passed: bool
    fault: str
    """Why not; "" when it passed."""
    dice: float | None = None
    lesion_count: int | None = None
    volume_ml: float | None = None
    truth_ml: float | None = None
    seconds: float | None = None


class SelfTests:
    """Those of a node: when the next is due, how the last went, and whether they drift."""

    def __init__(
        self,
        settings: Settings,
        config: Path,
        pack_digest: str,
        *,
        busy: Callable[[], bool] = lambda: False,
        command: Sequence[str] = (sys.executable, "-m", "node.cli", "selftest"),
    ) -> None:
        """Read what is known.

        Args:
            settings: Of the site.
            config: Its file, for the process that tests.
            pack_digest: Of the model that is configured now.
            busy: Is a patient's case under way? Then a test that is not long overdue waits.
            command: Of the process that tests.
        """
        self._config = config
        self._pack_digest = pack_digest
        self._busy = busy
        self._command = command
        self._path = settings.node.data_dir / RESULTS_FILE
        self._results = self._read()
        self._started = False

    def look(self) -> None:
        """Test, if it is time; returns when the test has ended."""
        if not self.is_due() or (self._busy() and not self._is_overdue()):
            return
        self._started = True
        result = self._tested()
        self._results = [*self._results, result][-KEPT:]
        write_durably(self._path, json.dumps([asdict(one) for one in self._results]).encode())
        fault = self.fault()
        if fault:
            log.error("selftest.failed", why=fault)
        else:
            log.info("selftest.passed", total_volume_ml=result.volume_ml)

    def is_due(self) -> bool:
        """At start, after another model was configured, and a day after the last one."""
        last = self.latest
        if last is None or not self._started or last.pack_digest != self._pack_digest:
            return True
        age = datetime.now(UTC) - datetime.fromisoformat(last.at)
        return not timedelta() <= age < EVERY  # from the future: the clock was set back

    @property
    def latest(self) -> SelfTestResult | None:
        """The last one."""
        return self._results[-1] if self._results else None

    @property
    def results(self) -> Sequence[SelfTestResult]:
        """Those that are kept, the oldest first."""
        return tuple(self._results)

    def fault(self) -> str:
        """What is wrong with the last one; "" if nothing is, or if there was none yet."""
        last = self.latest
        if last is None:
            return ""
        if not last.passed:
            return last.fault
        first = next(
            (one for one in self._results if one.passed and one.pack_digest == last.pack_digest),
            last,
        )
        dice, volume = _moved(first.dice, last.dice), _moved(first.volume_ml, last.volume_ml)
        if dice > DICE_TOLERANCE:
            return f"Dice {last.dice} drifted from {first.dice} of {first.at[:10]}"
        if volume > VOLUME_TOLERANCE * (first.volume_ml or 1.0):
            return f"volume {last.volume_ml} ml drifted from {first.volume_ml} of {first.at[:10]}"
        return ""

    def _is_overdue(self) -> bool:
        last = self.latest
        return last is not None and datetime.now(UTC) - datetime.fromisoformat(last.at) > 2 * EVERY

    def _tested(self) -> SelfTestResult:
        try:
            done = subprocess.run(  # noqa: S603  # our own program, no shell
                [*self._command, "--config", str(self._config), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=LIMIT_S,
                check=False,
            )
            return SelfTestResult(**json.loads(done.stdout))
        except subprocess.TimeoutExpired:
            fault = f"not done within {LIMIT_S:.0f} s"
        except (ValueError, TypeError):
            fault = "the process of the test ended without a result"
        return SelfTestResult(now(), self._pack_digest, passed=False, fault=fault)

    def _read(self) -> list[SelfTestResult]:
        try:
            return [SelfTestResult(**one) for one in json.loads(self._path.read_bytes())]
        except (OSError, ValueError, TypeError):
            return []


def _moved(first: float | None, last: float | None) -> float:
    return abs((last or 0.0) - (first or 0.0))


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
