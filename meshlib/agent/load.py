"""The agent's settings from their places: flags, then ``MESHLIB_AGENT_*``, then a TOML file, then the defaults."""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from meshlib.agent.settings import AgentSettings, agent_settings
from meshlib.errors import ConfigError

PREFIX = "MESHLIB_AGENT_"
FILE_VARIABLE = "MESHLIB_AGENT_CONFIG"
#: As manifests usually call it (downward API).
_NODE_NAMES = ("MESHLIB_NODE_NAME", "NODE_NAME")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and where each one that is not the default came from."""

    settings: AgentSettings
    places: Mapping[str, str]


def load_settings(
    flags: Sequence[str] = (), environ: Mapping[str, str] | None = None, file: str | Path | None = None
) -> Loaded:
    """``flags``: texts ``key=value``. Raises ConfigError naming the place, the key and what is allowed."""
    kinds = typing.get_type_hints(AgentSettings)
    values: dict[str, Any] = {}
    places: dict[str, str] = {}

    def put(key: str, value: Any, place: str) -> None:
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1)
            raise ConfigError(
                place, f"there is no setting {key!r:.60}", f"did you mean {near[0]}?" if near else ""
            )
        values[key] = _from_text(value, kinds[key], place) if isinstance(value, str) else value
        places[key] = place

    for key, value in _read(file).items():
        put(key, value, f"{file}: {key}")
    environ = environ or {}
    for name in _NODE_NAMES[::-1]:
        if environ.get(name):
            put("node_name", environ[name], name)
    for name in sorted(environ):
        if name.startswith(PREFIX) and environ[name] and name != FILE_VARIABLE:
            put(name.removeprefix(PREFIX).lower(), environ[name], name)
    for flag in flags:
        key, found, value = flag.partition("=")
        if not found:
            raise ConfigError(f"--set {flag}", "is not of the form key=value")
        put(key.strip().replace("-", "_"), value, f"--set {key}")
    try:
        return Loaded(agent_settings(values), places)
    except ConfigError as error:
        where = places.get(error.where, error.where)
        raise ConfigError(where, error.reason, error.hint) from None


def describe(loaded: Loaded) -> list[tuple[str, Any, str]]:
    """Every setting with its value and its place."""
    return [
        (each.name, getattr(loaded.settings, each.name), loaded.places.get(each.name, "default"))
        for each in fields(AgentSettings)
    ]


def _read(file: str | Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(str(file), f"not valid TOML: {error}") from None


def _from_text(text: str, kind: Any, place: str) -> Any:
    """What the file would hold for this text, by the type of the setting."""
    text = text.strip()
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return [_from_text(part, inner, place) for part in text.split(",") if part.strip()]
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ConfigError(place, f"needs true or false, not {text!r:.80}")
        return _WORDS[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(place, f"needs a number, not {text!r:.80}") from None
    return text
