"""`flairnode init`: a site's settings, asked for in a few questions, written with comments, tested.

Each answer is checked as it is given, so that what is written can be loaded. Then `flairnode check`
looks at everything, the peers included, and the next steps are printed.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.loader import load_settings
from node import check
from node.cli import EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_ARGUMENTS

EXIT_INTERRUPTED = 130


class AnswerError(ValueError):
    """An answer cannot be used. The message says what would be right."""


@dataclass(frozen=True, slots=True)
class Question:
    """One thing a site has to say."""

    key: str
    text: str
    default: str
    check: Callable[[str], str]
    """The answer as it is written, or `AnswerError`."""


def _ae_title(answer: str) -> str:
    if not 1 <= len(answer) <= 16 or re.search(r"[\\\x00-\x1f]", answer):
        raise AnswerError("an AE title has 1 to 16 characters and no backslash")
    return answer


def _port(answer: str) -> str:
    if not answer.isdigit() or not 1 <= int(answer) <= 65535:
        raise AnswerError("a port is a number from 1 to 65535")
    return answer


def _host(answer: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", answer) is None:
        raise AnswerError("a host is a name or an address, without port and without http://")
    return answer


def _address(answer: str) -> str:
    try:
        return str(ipaddress.ip_address(answer))
    except ValueError:
        raise AnswerError("an address of this machine, such as 10.20.30.40") from None


def _networks(answer: str) -> str:
    try:
        return ", ".join(str(ipaddress.ip_network(one.strip())) for one in answer.split(","))
    except ValueError as error:
        raise AnswerError(f"{error}: networks look like 10.20.0.0/16, with commas") from None


def _folder(answer: str) -> str:
    path = Path(answer).expanduser()
    if not path.is_absolute() or '"' in answer or "\\" in answer:
        raise AnswerError("a folder is named from the root: /var/lib/flairnode")
    return str(path)


def _seconds(answer: str) -> str:
    if not answer.isdigit() or int(answer) < 1:
        raise AnswerError("whole seconds, 1 or more")
    return answer


def _yes_or_no(answer: str) -> str:
    if answer.lower() not in ("y", "yes", "n", "no"):
        raise AnswerError("yes or no")
    return "yes" if answer.lower().startswith("y") else "no"


def _ae_titles(answer: str) -> str:
    return ", ".join(_ae_title(one.strip()) for one in answer.split(","))


QUESTIONS = (
    Question("ae_title", "AE title of this node", "FLAIRNODE", _ae_title),
    Question("bind_host", "Address that senders reach it at", "127.0.0.1", _address),
    Question("port", "Its port", "11112", _port),
    Question("data_dir", "Folder for its data, on a local disk", "/var/lib/flairnode", _folder),
    Question("archive_ae_title", "AE title of the archive for the results", "ORTHANC", _ae_title),
    Question("archive_host", "Its host", "127.0.0.1", _host),
    Question("archive_port", "Its DICOM port", "4242", _port),
    Question("query", "May it be asked for counts (C-FIND)? yes or no", "yes", _yes_or_no),
    Question("senders", "AE titles that may send, with commas", "{archive_ae_title}", _ae_titles),
    Question("networks", "Networks they may come from", "127.0.0.1/32", _networks),
    Question("quiet_period_s", "Seconds of silence that end a study", "30", _seconds),
    Question("page", "The operator page on this machine? yes or no", "yes", _yes_or_no),
)

TEMPLATE = """\
# Settings of this flairnode, written by `flairnode init`. Every key, its default and its reason:
# config/settings.py. Unknown keys are refused. Test it: flairnode check --config {path}

[node]
ae_title = "{ae_title}"
bind_host = "{bind_host}"      # the address that senders reach
port = {port}
data_dir = "{data_dir}"        # a local disk, never NFS or SMB

[[peers]]
name = "archive"
ae_title = "{archive_ae_title}"
host = "{archive_host}"
port = {archive_port}

[[destinations]]
peer = "archive"
kinds = ["seg", "sr", "key-image", "pdf", "note"]  # leave out what it refuses
research = true                # the starter pack is research only: it goes nowhere else

[completeness]
quiet_period_s = {quiet_period_s}             # longer than the longest pause of your sender
{query_line}

[pipeline]
model = "starter"              # research only; a site's own pack: flairnode model install

[security]
calling_ae_titles = [{senders}]
addresses = [{networks}]

[web]
enabled = {page}                # sign in with an account: flairnode users add NAME --config {path}
port = 8044
"""


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the command."""
    init = subparsers.add_parser(
        "init",
        help="write the settings of a site by asking a few questions, and test them",
        description="Asks, writes a commented file, and checks it. Enter takes what stands in "
        "brackets. Example: flairnode init --output site.toml",
    )
    init.add_argument("--output", type=Path, default=Path("site.toml"), help="(%(default)s)")
    init.add_argument(
        "--answers",
        type=Path,
        metavar="FILE.toml",
        help="take answers from there instead of asking; what it lacks has its default",
    )
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    init.add_argument("--no-check", action="store_true", help="do not test the settings")
    init.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, write, test, and say what comes next."""
    if arguments.output.exists() and not arguments.force:
        return _wrong(f"{arguments.output} is there already: give another --output, or --force")
    try:
        given = _given(arguments.answers)
        answers = ask(given, interactive=arguments.answers is None)
        write_site(arguments.output, answers)
    except AnswerError as error:
        return _wrong(str(error))
    except (EOFError, KeyboardInterrupt):
        sys.stderr.write("\nnothing was written\n")
        return EXIT_INTERRUPTED
    except OSError as error:
        return _wrong(f"{arguments.output}: {error.strerror}")
    sys.stdout.write(f"\n{arguments.output} is written.\n\n")
    good = arguments.no_check or _checked(arguments.output)
    sys.stdout.write(_next_steps(arguments.output, answers, good=good))
    return EXIT_DONE if good else EXIT_REFUSED


def ask(
    given: Mapping[str, str],
    *,
    interactive: bool,
    read: Callable[[str], str] = input,
    say: Callable[[str], object] = sys.stdout.write,
) -> dict[str, str]:
    """An answer to every question.

    Args:
        given: Answers that need no asking.
        interactive: Ask for the others; else they have their defaults.
        read: Prompt -> what was typed.
        say: Where a wrong answer is explained.

    Raises:
        AnswerError: A given answer cannot be used.
    """
    answers: dict[str, str] = {}
    for question in QUESTIONS:
        default = question.default.format(**answers)
        if question.key in given or not interactive:
            try:
                answers[question.key] = question.check(given.get(question.key, default))
            except AnswerError as error:
                raise AnswerError(f"{question.key}: {error}") from None
            continue
        while question.key not in answers:
            typed = read(f"{question.text} [{default}]: ").strip() or default
            try:
                answers[question.key] = question.check(typed)
            except AnswerError as error:
                say(f"  {error}\n")
    return answers


def write_site(path: Path, answers: Mapping[str, str]) -> None:
    """Write the file, once it is known that it loads. Readable by its owner alone.

    Raises:
        SettingsError: Never for answers that were checked; it would be a fault of ours.
    """
    text = TEMPLATE.format(
        **{
            **answers,
            "path": path,
            "senders": _quoted(answers["senders"]),
            "networks": _quoted(answers["networks"]),
            "page": "true" if answers["page"] == "yes" else "false",
            "query_line": (
                'query_peer = "archive"          # counts are checked there before an analysis'
                if answers["query"] == "yes"
                else '# query_peer = "archive"        # counts stay unconfirmed'
            ),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".toml")  # 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        load_settings(Path(part))
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _given(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AnswerError(f"{path}: {error}") from error
    known = {question.key for question in QUESTIONS}
    if strangers := sorted(set(content) - known):
        raise AnswerError(f"{path}: no question is called {', '.join(strangers)}")
    said = {True: "yes", False: "no"}
    return {key: said[v] if isinstance(v, bool) else str(v) for key, v in content.items()}


def _checked(path: Path) -> bool:
    arguments = argparse.Namespace(config=path, no_self_test=False, json=False)
    return check.run(arguments) == EXIT_DONE


def _next_steps(path: Path, answers: Mapping[str, str], *, good: bool) -> str:
    lines = [] if good else [f"Mend what failed above, then: flairnode check --config {path}"]
    if answers["page"] == "yes":
        lines += [
            f"Make an account: flairnode users add NAME --role administrator --config {path}",
            "The page: http://127.0.0.1:8044 while the node runs.",
        ]
    lines += [
        f"Run the node: flairnode serve --config {path}",
        f"Tell the archive of it: AE title {answers['ae_title']}, "
        f"{answers['bind_host']}:{answers['port']}.",
    ]
    return "\nNext:\n" + "".join(f"  {line}\n" for line in lines)


def _quoted(listed: str) -> str:
    return ", ".join(f'"{one.strip()}"' for one in listed.split(","))


def _wrong(message: str) -> int:
    sys.stderr.write(f"flairnode init: {message}\n")
    return EXIT_WRONG_ARGUMENTS
