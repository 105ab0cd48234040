"""Service annotations: written by other tenants, so never more than a picker, its parameters and a hash key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from meshlib.errors import ConfigError
from meshlib.model.service import KERNEL_ANNOTATIONS, ROLLOUT_MODE
from meshlib.pickers.builtin import BUILTIN
from meshlib.pickers.hash_key import parse_hash_key
from meshlib.runtime.registry import picker_builder

PREFIX = "meshlib.dev/"
PICKER = PREFIX + "picker"
SETTINGS = PREFIX + "picker-settings"
HASH_KEY = PREFIX + "hash-key"
#: Picker settings are a handful of numbers; whatever is longer is a mistake or an attack on our memory.
MAX_LENGTH = 4096
#: What ``meshlib.dev/mode`` may say. The roll-out reads it (``config.rollout``); here it is only checked.
MODES = ("off", "observe")


@dataclass(frozen=True, slots=True)
class Offered:
    """What a Service asks for; ``picker`` is "" unless it and its settings passed the picker's own checks."""

    picker: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    hash_key: str = ""
    where: str = ""


def read_annotations(
    annotations: Mapping[str, str], service: str, plugins: tuple[str, ...], default_picker: str
) -> tuple[Offered, tuple[str, ...]]:
    """Read the annotations of one Service (``ns/name``). Never raises: what is usable, and warnings for the rest.

    A picker is usable when it is built in or named in ``plugins`` (decision D11: other tenants load no code here).
    Settings without a picker are for ``default_picker``.
    """
    warnings: list[str] = []
    picker, settings, hash_key = "", None, ""
    for name, text in sorted(annotations.items()):
        if not name.startswith(PREFIX) or name in KERNEL_ANNOTATIONS:
            continue
        try:
            if name == PICKER:
                picker = _picker(text, plugins)
            elif name == SETTINGS:
                settings = _settings(text)
            elif name == HASH_KEY:
                parse_hash_key(_bounded(text), name)
                hash_key = text
            elif name == ROLLOUT_MODE:
                if text not in MODES:
                    raise ValueError(
                        f"{text[:80]!r} is neither 'off' nor 'observe', and a Service may say no more"
                    )
            else:
                raise ValueError("a Service may set only picker, picker-settings, hash-key and mode")
        except ValueError as error:
            reason = error.reason if isinstance(error, ConfigError) else str(error)
            warnings.append(f"Service {service}: annotation {name} ignored: {reason}")
            if name not in (HASH_KEY, ROLLOUT_MODE):  # half of a pair means something else than the pair
                return Offered(hash_key=hash_key), tuple(warnings)

    if not picker and settings is None:
        return Offered(hash_key=hash_key), tuple(warnings)
    where = f"Service {service}: annotation {PICKER if picker else SETTINGS}"
    picker = picker or default_picker
    try:
        picker_builder(picker).parse_config(settings or {}, f"Service {service}: annotation {SETTINGS}: ")
    except ConfigError as error:
        return Offered(hash_key=hash_key), (*warnings, f"{error}; ignored")
    return Offered(picker, MappingProxyType(settings or {}), hash_key, where), tuple(warnings)


def _bounded(text: str) -> str:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    return text


def _picker(text: str, plugins: tuple[str, ...]) -> str:
    if text in BUILTIN or text in plugins:
        return text
    raise ValueError(f"no built-in picker {text[:80]!r}, and no plugin of that name is enabled by `plugins`")


def _settings(text: str) -> dict[str, Any]:
    try:
        value = json.loads(_bounded(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError('needs a JSON object, such as {"slow_start_window": 30}')
    return value
