"""Every setting of a Config as a row (key, value, place), for status pages: what could be a secret is only named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from meshlib.runtime.config.keys import ADDRESS, KUBERNETES, SCALARS, KeyPath, dotted
from meshlib.runtime.config.settings import Config

#: Stands for a value that is set and not shown.
HIDDEN = "(set, not shown)"
#: Parts of names under which resolvers of others, whose tables we do not know, may keep secrets.
_SECRET = ("token", "password", "passwd", "secret", "credential", "key", "auth")


class Value(msgspec.Struct, frozen=True):
    """One setting. ``source``: the place that it was written in, or ``default``."""

    key: str
    value: Any
    source: str


def config_values(config: Config) -> Iterator[Value]:
    """Every setting in force, plain enough for JSON. Tables are given entry by entry, with the source of each."""
    for path, value in _entries(config):
        shown = HIDDEN if _may_be_secret(path) else _plain(value, hiding=path[0] == "discovery")
        yield Value(dotted(path), shown, config.source(*path))


def _entries(config: Config) -> Iterator[tuple[KeyPath, Any]]:
    for key in SCALARS:
        yield (key,), getattr(config, key)
    for key in ADDRESS:
        yield ("address", key), getattr(config.address, key)
    for host, target in config.aliases.items():
        yield ("aliases", host), target
    for table, entries in (("discovery", config.discovery), ("target", config.target)):
        for name, settings in entries.items():
            for key, value in settings.items():
                yield (table, name, key), value


def _may_be_secret(path: KeyPath) -> bool:
    if path[0] != "discovery":
        return False
    if path[1] == "k8s":
        return path[2] == "environ" or path[2] not in KUBERNETES
    return _sounds_secret(path[2])


def _sounds_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET)


def _plain(value: Any, *, hiding: bool) -> Any:
    """``hiding``: what stands under the name of a secret is not shown, at any depth."""
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if hiding and _sounds_secret(str(key)) else _plain(item, hiding=hiding)
            for key, item in value.items()
        }
    if isinstance(value, (tuple, list)):
        return [_plain(item, hiding=hiding) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
