"""The console script `flairnode`.

Commands come from the entry-point group `flairnode.commands`, so that `node` and `training` need
not know each other. A registered function adds sub-parsers whose `run` default is called with the
parsed arguments and returns the exit status: 0 done, 3 skipped or not analysed, 1 our fault,
2 wrong arguments (argparse's).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version

from config.loader import SettingsError
from dicom.errors import Outcome, StudyError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG_ARGUMENTS = 2
EXIT_REFUSED = 3

_EXIT = {
    Outcome.ANALYSED: EXIT_DONE,
    Outcome.DELIVERED: EXIT_DONE,
    Outcome.SKIPPED: EXIT_REFUSED,
    Outcome.NOT_ANALYSED: EXIT_REFUSED,
    Outcome.HELD: EXIT_REFUSED,
    Outcome.FAILED: EXIT_FAILED,
}


def exit_status(outcome: Outcome) -> int:
    """The exit status that tells this outcome to a script."""
    return _EXIT[outcome]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="flairnode",
        description="A DICOM node that segments multiple sclerosis lesions on FLAIR MRI.",
        epilog="Research use only. Not for diagnosis or follow-up.",
    )
    parser.add_argument("--version", action="version", version=f"flairnode {version('flairnode')}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True)
    for entry_point in sorted(entry_points(group="flairnode.commands"), key=lambda e: e.name):
        entry_point.load()(subparsers)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except SettingsError as error:
        print(f"flairnode: {error}", file=sys.stderr)
        return EXIT_WRONG_ARGUMENTS
    except StudyError as error:
        return _say(arguments, error.outcome, error.reason, str(error))
    except BrokenPipeError:
        # The reader went away (`flairnode jobs list | head`). Nothing is left to say, and the
        # interpreter must not try again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # the edge of the program: say it, with the traceback
        traceback.print_exc()
        return _say(arguments, Outcome.FAILED, "internal-error", type(error).__name__)


def _say(arguments: argparse.Namespace, outcome: Outcome, reason: str, message: str) -> int:
    if getattr(arguments, "json", False):
        print(json.dumps({"outcome": outcome, "reason": reason, "explanation": message}))
    print(f"flairnode {arguments.command}: {outcome}: {reason}: {message}", file=sys.stderr)
    return exit_status(outcome)


if __name__ == "__main__":
    sys.exit(main())
