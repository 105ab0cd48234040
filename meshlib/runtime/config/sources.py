"""The places settings are read from: environment variables and one file."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from meshlib.errors import ConfigError
from meshlib.runtime.config import checks
from meshlib.runtime.config.checks import Check
from meshlib.runtime.config.keys import ADDRESS, SCALARS, TABLES, Entries, KeyPath, dotted, flatten

FILE_VARIABLE = "MESHLIB_CONFIG"
#: What a file nobody named is called; looked for in the working directory only.
FILE_NAME = "meshlib.toml"
#: Read when transparent use begins (``meshlib.clients.install``); no settings of a Mesh.
SWITCHES = ("MESHLIB_DISABLED", "MESHLIB_INSTALL", "MESHLIB_RUN_PID", "MESHLIB_ENV", "MESHLIB_DEV_FILE")
#: A Service called "meshlib" makes Kubernetes inject the first two; the third are the node agent's.
_OTHERS = ("MESHLIB_SERVICE_", "MESHLIB_PORT", "MESHLIB_AGENT_")
#: Manifests usually set the node's name under this variable, through the downward API.
_NODE_NAMES = ("MESHLIB_NODE_NAME", "NODE_NAME")
_TRUE, _FALSE = frozenset(("1", "true", "yes", "on")), frozenset(("0", "false", "no", "off"))


def variables() -> dict[KeyPath, tuple[str, ...]]:
    """Which variables set which key; the first one that is set wins. Tables are written as JSON objects."""
    names: dict[KeyPath, tuple[str, ...]] = {
        (key,): (f"MESHLIB_{key.upper()}",) for key in (*SCALARS, *TABLES) if key != "address"
    }
    names |= {("address", key): (f"MESHLIB_ADDRESS_{key.upper()}",) for key in ADDRESS}
    return names | {("node",): _NODE_NAMES}


def read_environ(environ: Mapping[str, str], warnings: list[str]) -> Entries:
    """Entries of all ``MESHLIB_*`` variables; empty ones count as not set. Raises ConfigError naming the variable."""
    entries: Entries = {}
    known = {FILE_VARIABLE, *SWITCHES}
    for path, names in variables().items():
        known.update(names)
        name = next((name for name in names if environ.get(name)), "")
        if not name:
            continue
        check = SCALARS.get(path[0]) if len(path) == 1 else ADDRESS[path[1]]
        value = _from_text(name, check, environ[name])
        raw = {path[0]: value} if len(path) == 1 else {path[0]: {path[1]: value}}

        def place(inner: KeyPath, name: str = name, path: KeyPath = path) -> str:
            return name if inner == path else f"{name}: {dotted(inner[1:])}"

        entries.update(flatten(raw, place))
    for name in environ:
        foreign = not name.startswith("MESHLIB_") or name.startswith(_OTHERS)
        if not foreign and name not in known:
            hint = checks.did_you_mean(name, known)
            warnings.append(f"{name} is not a variable that meshlib knows" + (f" ({hint})" if hint else ""))
    return entries


def _from_text(where: str, check: Check | None, text: str) -> Any:
    """What a file would hold for this text: words for true and false, commas between list items, JSON for tables."""
    if check is checks.boolean:
        word = text.strip().lower()
        if word not in _TRUE | _FALSE:
            raise ConfigError(where, f"needs true or false, not {text!r}")
        return word in _TRUE
    if check in (checks.seconds, checks.percent):
        try:
            return float(text)
        except ValueError:
            what = "of seconds" if check is checks.seconds else "from 0 to 100"
            raise ConfigError(where, f"needs a number {what}, not {text!r}") from None
    if check is checks.connections:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(where, f"needs a whole number, not {text!r}") from None
    if check in (checks.networks, checks.words, checks.targets_or_hosts):
        return [item.strip() for item in text.split(",") if item.strip()]
    if check is None or check is checks.table:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(where, f"needs a JSON object: {error}") from None
    return text.strip()


class FileAt(NamedTuple):
    """Where the file is: as it was written (for messages), and absolute, since a program may change its folder."""

    shown: str
    absolute: str
    named: bool  #: somebody named it; else it is ``./meshlib.toml``


def place_of(named: str | Path | None) -> FileAt:
    shown = str(named or FILE_NAME)
    return FileAt(shown, os.path.abspath(shown), bool(named))


def read_file(at: FileAt, warnings: list[str]) -> tuple[Entries, str]:
    """The file's entries and its name, or ({}, "") when there is none.

    A file that was named must be readable; ``./meshlib.toml``, which nobody named, is used only when it belongs to
    root or us and nobody else may write it: whoever can write to a working directory must not redirect traffic.
    """
    path, named = at.shown, at.named
    try:
        with open(at.absolute, "rb") as stream:
            # of the open file, so that there is no gap between the check and the use
            problem = "" if named else _untrusted(os.fstat(stream.fileno()))
            content = b"" if problem else stream.read()
    except OSError as error:
        if named:
            raise ConfigError(
                path, f"cannot be read: {error.strerror}", "it was named, so it must be there"
            ) from None
        if isinstance(error, FileNotFoundError):
            return {}, ""
        problem, content = error.strerror or repr(error), b""
    if problem:
        warnings.append(f"./{FILE_NAME} ignored: {problem}; name it in {FILE_VARIABLE} to use it")
        return {}, ""
    try:
        raw = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, f"not valid TOML: {error}") from None
    return flatten(raw, lambda key: f"{path}: {dotted(key)}"), path


def _untrusted(status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}, neither root nor us"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write it"
    return ""
