"""``meshlib.dev.toml``: on a laptop, targets and hosts of the cluster are programs on this machine (docs/laptops.md).

Read only where ``MESHLIB_ENV=dev`` is set (beside ``meshlib.toml``) or ``MESHLIB_DEV_FILE`` names it, and never in a
pod: whoever forgets the variable in an image must not send production's traffic to localhost. Says that it is in use.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlib.discovery.base import ResolverBuilder
from meshlib.discovery.kubernetes.credentials import SERVICE_ACCOUNT_DIR
from meshlib.errors import ConfigError, TargetError
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime.config import sources
from meshlib.runtime.stand_ins import Key, key_for, parse_address, parse_key

FILE_NAME = "meshlib.dev.toml"
ENVIRONMENT = "MESHLIB_ENV"
FILE_VARIABLE = "MESHLIB_DEV_FILE"
_TABLE = "replace"
_EXAMPLE = f'[{_TABLE}]\n"orders.shop.svc" = 9000'
#: Files that this process has spoken of: one line for each is enough.
_said: set[str] = set()


@dataclass(frozen=True, slots=True)
class DevFile:
    """The table ``[replace]`` of one file. Immutable; implements ``under_test.StandIns``."""

    path: str
    entries: Mapping[Key, Target] = field(default_factory=dict)

    def target(self, asked: Target) -> Target:
        key = key_for(asked, self.entries)
        return asked if key is None else self.entries[key]

    @property
    def aliases(self) -> Mapping[str, Target]:
        return {key.host: target for key, target in self.entries.items() if key.host}

    def builder(self, scheme: str) -> ResolverBuilder | None:
        """What stands in has an ordinary scheme."""
        return None


@dataclass(frozen=True, slots=True)
class Found:
    """``file``: None where none is to be read; then ``ignored`` says why one that was asked for is not used."""

    file: DevFile | None = None
    ignored: str = ""


def find_dev_file(
    environ: Mapping[str, str],
    defaults: TargetDefaults,
    *,
    service_account_dir: str | Path = "",
) -> Found:
    """The file that this environment asks for. Raises ConfigError when it is wrong, or named and not there.

    ``service_account_dir``: instead of where Kubernetes mounts a pod's token.
    """
    named = environ.get(FILE_VARIABLE, "")
    if not named and environ.get(ENVIRONMENT, "").strip().lower() != "dev":
        return Found()
    if (
        environ.get("KUBERNETES_SERVICE_HOST")
        or Path(service_account_dir or SERVICE_ACCOUNT_DIR, "token").exists()
    ):
        asked = FILE_VARIABLE if named else f"{ENVIRONMENT}=dev"
        return Found(ignored=f"{asked} is set in a pod: {FILE_NAME} is for laptops, and ignored here")
    beside = os.path.dirname(environ.get(sources.FILE_VARIABLE) or "")
    path = named or os.path.join(beside, FILE_NAME)
    try:
        with open(path, "rb") as stream:
            problem = "" if named else sources._untrusted(os.fstat(stream.fileno()))
            content = b"" if problem else stream.read()
    except OSError as error:
        if named or not isinstance(error, FileNotFoundError):
            raise ConfigError(
                path, f"cannot be read: {error.strerror}", f"{FILE_VARIABLE} names it"
            ) from None
        return Found(ignored=f"{ENVIRONMENT}=dev, and there is no {path}")
    if problem:
        return Found(ignored=f"{path} ignored: {problem}; name it in {FILE_VARIABLE} to use it")
    return Found(DevFile(path, _entries(path, content, defaults)))


def tell(found: Found) -> None:
    """Say once in this process that the file is in use, or why not: as a warning in the log, or on stderr where the
    program set up no log, because a laptop's program often does not."""
    if found.file is not None:
        what = ", ".join(f"{_shown(key)} -> {target}" for key, target in found.file.entries.items())
        line = f"{found.file.path} is in use: {what or 'it replaces nothing'}"
    else:
        line = found.ignored
    if not line or line in _said:
        return
    _said.add(line)
    if logging.getLogger().handlers:
        logging.getLogger("meshlib.dev").warning("%s", line)
    else:
        sys.stderr.write(f"meshlib: {line}\n")


def _entries(path: str, content: bytes, defaults: TargetDefaults) -> dict[Key, Target]:
    try:
        raw = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, f"not valid TOML: {error}") from None
    other = sorted(set(raw) - {_TABLE})
    if other:
        raise ConfigError(
            f"{path}: {other[0]}",
            f"only the table [{_TABLE}] has a place here",
            "other keys belong in meshlib.toml",
        )
    table = raw.get(_TABLE, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {_TABLE}", "needs a table", f"write {_EXAMPLE}")
    return dict(_entry(f'{path}: {_TABLE}."{what}"', what, where, defaults) for what, where in table.items())


def _entry(place: str, what: str, where: Any, defaults: TargetDefaults) -> tuple[Key, Target]:
    try:
        key = parse_key(what, defaults)
        if isinstance(where, str) and "://" in where:
            return key, Target.parse(where, defaults)
        addresses = ",".join(parse_address(one) for one in (where if isinstance(where, list) else [where]))
        return key, Target.parse(f"static:///{addresses}", defaults)
    except (TargetError, ValueError, TypeError) as error:
        raise ConfigError(
            place,
            str(error),
            'write a port, "IP:PORT", a list of those, or a target such as "dns:///orders:8000"',
        ) from None


def _shown(key: Key) -> str:
    if not key.namespace:
        return key.host or key.name
    host = f"{key.hostname}." if key.hostname else ""
    return f"{host}{key.name}.{key.namespace}.svc" + ("" if key.port is None else f":{key.port}")
