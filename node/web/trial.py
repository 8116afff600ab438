"""Rules tried on a study before anybody relies on them.

What a browser sends is read by another process, `flairnode select`, which ends after a while and
may take so much memory: a file that breaks a reader does not break the node. Nothing is kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from config.loader import SettingsError, load_settings
from config.settings import Settings
from node.durable import write_durably

TRIAL_S = 60.0
TRIAL_MEMORY_BYTES = 2_000_000_000
MOST_FILES = 2000
SELECTION = "selection"


class TrialError(ValueError):
    """The trial could not be made. The message is for the person who asked."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file from a browser. Its name is not used."""

    content: bytes


def selection_text(config: Path) -> str:
    """The `[selection]` part of a site's file, as it stands there; "" where it has none."""
    document = tomlkit.parse(config.read_text(encoding="utf-8"))
    if SELECTION not in document:
        return ""
    part = tomlkit.document()
    part[SELECTION] = document[SELECTION]
    return tomlkit.dumps(part).strip() + "\n"


def with_selection(config: Path, text: str) -> str:
    """The site's file with another `[selection]`; everything else stays as it was written.

    Raises:
        TrialError: The text is no TOML, or holds something else.
    """
    try:
        given = tomlkit.parse(text)
    except TOMLKitError as error:
        raise TrialError(f"This is no valid TOML: {error}") from error
    if strangers := sorted(set(given) - {SELECTION}):
        raise TrialError(f"Only [selection] can be changed here, not {', '.join(strangers)}.")
    document = tomlkit.parse(config.read_text(encoding="utf-8"))
    if SELECTION in document:
        del document[SELECTION]
    if SELECTION in given:
        document[SELECTION] = given[SELECTION]
    return tomlkit.dumps(document)


def save_selection(config: Path, text: str) -> Settings:
    """Write the site's file with these rules; the file before it stays as `.before`.

    Raises:
        TrialError: They are not valid, and the file is as it was.
    """
    content = with_selection(config, text)
    with tempfile.TemporaryDirectory() as folder:
        settings = _checked(Path(folder), content)
    shutil.copy2(config, config.with_name(f"{config.name}.before"))
    mode = config.stat().st_mode & 0o777
    write_durably(config, content.encode())
    config.chmod(mode)
    return settings


async def try_rules(
    config: Path,
    text: str | None,
    *,
    study_instance_uid: str = "",
    uploads: Sequence[Upload] = (),
) -> dict[str, Any]:
    """What `flairnode select --json` says.

    Args:
        config: The site's file.
        text: Rules in the place of its own; None: its own.
        study_instance_uid: Of a study that this node received, or
        uploads: DICOM files; their headers are enough.

    Raises:
        TrialError: The rules are not valid, or the files are no study.
    """
    if bool(study_instance_uid) is bool(uploads):
        raise TrialError("Name a study that the node received, or give DICOM files.")
    if len(uploads) > MOST_FILES:
        raise TrialError(f"{len(uploads)} files; {MOST_FILES} at most.")
    with tempfile.TemporaryDirectory(prefix="flairnode-trial-") as folder:
        candidate = Path(folder) / "site.toml"
        content = (
            config.read_text(encoding="utf-8") if text is None else with_selection(config, text)
        )
        _checked(Path(folder), content)
        if study_instance_uid:
            what = ["--study", study_instance_uid]
        else:
            study = Path(folder) / "study"
            study.mkdir()
            for number, upload in enumerate(uploads):
                (study / f"{number:04}.dcm").write_bytes(upload.content)
            what = [str(study)]
        return await _select([*what, "--config", str(candidate), "--json"])


def _checked(folder: Path, content: str) -> Settings:
    candidate = folder / "site.toml"
    candidate.write_text(content, encoding="utf-8")
    try:
        return load_settings(candidate)
    except SettingsError as error:
        raise TrialError(str(error).replace(f"{candidate}: ", "")) from error


async def _select(arguments: Sequence[str]) -> dict[str, Any]:
    limit = shutil.which("prlimit")
    guard = [limit, f"--as={TRIAL_MEMORY_BYTES}", f"--cpu={TRIAL_S:.0f}"] if limit else []
    process = await asyncio.create_subprocess_exec(
        *(*guard, sys.executable, "-m", "node.cli", "select", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        told, _ = await asyncio.wait_for(process.communicate(), TRIAL_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise TrialError(f"The study was not read within {TRIAL_S:.0f} s.") from None
    try:
        answer: dict[str, Any] = json.loads(told)
    except ValueError:
        raise TrialError("The files could not be read.") from None
    if "series" not in answer:
        raise TrialError(answer.get("explanation") or f"No study: {answer.get('reason')}.")
    return answer
