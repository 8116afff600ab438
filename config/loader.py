"""Reads a site's settings file, with environment variables on top."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from config.settings import Settings


class SettingsError(ValueError):
    """The settings cannot be used. The message names file, key and what would be right."""


class _SiteSettings(BaseSettings, Settings):
    """`Settings`, with `FLAIRNODE_NODE__PORT` and its like taking precedence over the file."""

    model_config = SettingsConfigDict(
        env_prefix="FLAIRNODE_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # First wins: a variable overrides the file. The library merges nested sections deeply.
        return env_settings, init_settings


def load_settings(path: Path | None) -> Settings:
    """The settings of a TOML file, or the defaults, overridden by `FLAIRNODE_` variables.

    Raises:
        SettingsError: No such file, no TOML, an unknown key or a value that is not allowed.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: no valid TOML: {error}") from error
    try:
        merged = _SiteSettings(**given)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {_in_words(problem['type'])}"
            f"{problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        where = path or "environment"
        raise SettingsError(f"{where}: " + "; ".join(lines)) from error
    return Settings.model_validate(merged.model_dump())


def _in_words(problem_type: str) -> str:
    return "unknown key. " if problem_type == "extra_forbidden" else ""
