"""load_config: all places read once, merged by precedence, into one Config; reload_config: the file once more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meshlib.errors import ConfigError
from meshlib.runtime.config.keys import Entries, Entry, KeyPath, dotted, flatten
from meshlib.runtime.config.settings import AddressSettings, Config
from meshlib.runtime.config.sources import FILE_VARIABLE, FileAt, place_of, read_environ, read_file


def load_config(
    code: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> Config:
    """Read and check all settings. Reads ``os.environ`` and at most one file; call it once and keep the result.

    ``code``: the same keys as the file. ``environ``: instead of ``os.environ``. ``file``: instead of the one that
    ``MESHLIB_CONFIG`` names. Raises ConfigError naming the place and the key.
    """
    environ = os.environ if environ is None else environ
    warnings: list[str] = []
    at = place_of(file or environ.get(FILE_VARIABLE))
    from_file, name = read_file(at, warnings)
    from_code = flatten(code or {}, lambda key: f"code: {dotted(key)}")
    fixed = {**read_environ(environ, warnings), **from_code}
    return _assembled(from_file, fixed, at, name, warnings)


def reload_config(config: Config) -> Config:
    """What ``load_config`` would return now, with code and environment as they were.

    Raises ConfigError when the file cannot be used now, also where it was ignored with a warning at the start, and
    ValueError for a Config that ``load_config`` did not make.
    """
    if config.at is None:
        raise ValueError("this Config was not loaded, so there is nothing to load again")
    warnings: list[str] = []
    from_file, name = read_file(config.at, warnings)
    if warnings and config.file:
        raise ConfigError(config.at.shown, warnings[0])
    return _assembled(from_file, config.fixed, config.at, name, [])


def _assembled(
    from_file: Entries, fixed: Mapping[KeyPath, Entry], at: FileAt, name: str, warnings: list[str]
) -> Config:
    merged = {**from_file, **fixed}
    scalars: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {"aliases": {}, "address": {}, "discovery": {}, "target": {}}
    for path, entry in merged.items():
        if len(path) == 1:
            scalars[path[0]] = entry.value
        elif len(path) == 2:
            tables[path[0]][path[1]] = entry.value
        else:
            tables[path[0]].setdefault(path[1], {})[path[2]] = entry.value
    return Config(
        **scalars,
        aliases=MappingProxyType(tables["aliases"]),
        address=AddressSettings(**tables["address"]),
        discovery=_frozen(tables["discovery"]),
        target=_frozen(tables["target"]),
        file=name,
        warnings=tuple(warnings),
        sources=MappingProxyType({dotted(path): entry.place for path, entry in merged.items()}),
        at=at,
        entries=MappingProxyType(merged),
        fixed=MappingProxyType(dict(fixed)),
        shadowed=tuple(
            f"{dotted(path)} ({fixed[path].place} wins)"
            for path, entry in from_file.items()
            if path in fixed and fixed[path].value != entry.value
        ),
    )


def _frozen(tables: Mapping[str, dict[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType({name: MappingProxyType(table) for name, table in tables.items()})
