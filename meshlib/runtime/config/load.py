"""load_config: all places read once, merged by precedence, into one Config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meshlib.runtime.config.keys import dotted, flatten
from meshlib.runtime.config.settings import AddressSettings, Config
from meshlib.runtime.config.sources import FILE_VARIABLE, read_environ, read_file


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
    from_file, name = read_file(file or environ.get(FILE_VARIABLE), warnings)
    from_code = flatten(code or {}, lambda key: f"code: {dotted(key)}")
    merged = {**from_file, **read_environ(environ, warnings), **from_code}

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
    )


def _frozen(tables: Mapping[str, dict[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType({name: MappingProxyType(table) for name, table in tables.items()})
