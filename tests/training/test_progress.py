"""How far a run is, for a log and for a terminal."""

from __future__ import annotations

import io

import pytest

from training.progress import Lines, in_time, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_time_left_follows_the_pace_of_what_was_measured() -> None:
    now = [0.0]
    log = io.StringIO()
    told = Lines(4, log, clock=lambda: now[0])
    told({"case": "a", "outcome": "analysed"}, kept=True)  # takes no time, says nothing of it
    now[0] = 60
    told({"case": "b", "outcome": "analysed"}, kept=False)
    now[0] = 120
    told({"case": "c", "outcome": "failed", "reason": "disk", "explanation": "full"}, kept=False)
    now[0] = 180
    told({"case": "d", "outcome": "analysed"}, kept=False)
    assert log.getvalue().splitlines() == [
        "1/4 a: analysed (from an earlier run)",
        "2/4 b: analysed; 2 min left",
        "3/4 c: failed: disk: full; 60 s left",
        "4/4 d: analysed",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (11100, "3 h 05 min")]
)
def test_time_is_told_in_the_unit_that_is_read(seconds: float, said: str) -> None:
    assert in_time(seconds) == said


def test_a_terminal_gets_a_bar_and_the_cases_that_have_no_figures() -> None:
    screen = Terminal()
    with progress(2, screen) as on_row:
        on_row({"case": "a", "outcome": "analysed"}, kept=False)
        on_row(
            {"case": "b", "outcome": "skipped", "reason": "no-flair", "explanation": "[no]"},
            kept=False,
        )
    assert "b: skipped: no-flair: [no]" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert "a: analysed" not in screen.getvalue()
