"""Programs: iptables-restore and iptables-save, as they are installed. Blocks; belongs to one thread."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Seconds that one run may take: ten thousand Services take a minute with the slower kind.
PATIENCE = 120.0
#: Seconds to wait for others who write (the lock of the old kind).
_LOCK = "10"
#: As the distribution chose, then by name: through nf_tables, and the kernel's old kind.
FLAVOURS = ("", "-nft", "-legacy")
_ENVIRONMENT = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended."""

    code: int
    output: str
    error: str


#: Runs a program with this input. Raises OSError where it cannot be run.
Run = Callable[[Sequence[str], str], Done]


def run(words: Sequence[str], text: str, environment: Mapping[str, str] | None = None) -> Done:
    """In this process' own network namespace."""
    try:
        done = subprocess.run(  # noqa: S603 the words are ours, and no shell reads them
            words,
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=dict(environment or _ENVIRONMENT),
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
    return Done(done.returncode, done.stdout, done.stderr)


def restore(family: int, flavour: str) -> tuple[str, ...]:
    """The command that reads changes."""
    return (f"{_name(family, flavour)}-restore", "-w", _LOCK, "--noflush")


def save(family: int, flavour: str) -> tuple[str, ...]:
    """The command that tells everything."""
    return (f"{_name(family, flavour)}-save",)


def _name(family: int, flavour: str) -> str:
    return f"{'iptables' if family == 4 else 'ip6tables'}{flavour}"
