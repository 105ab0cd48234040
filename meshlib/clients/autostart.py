"""What ``meshlib run`` has every Python process of the program do as it starts: wait for the first library to balance.

Every child of the program pays for this module, whatever it is, so it imports nothing but the import hook; the rest is
loaded together with the library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from meshlib.clients import import_hook

#: Set by ``meshlib run`` for the program and its children: ``httpx``, ``grpc`` or both, separated by a comma.
AUTOMATIC = "MESHLIB_INSTALL"
#: Switches transparent use off, whoever asks for it: ``1``, ``true``, ``yes`` or ``on``.
DISABLED = "MESHLIB_DISABLED"
#: The value that means the same and tells who wrote it: the pytest plugin, for the tests and the programs they start.
IN_TESTS = "tests"
#: module -> the switch of ``install`` that it belongs to.
LIBRARIES = {"httpx": "httpx", "httpx2": "httpx", "grpc": "grpc"}


def disabled(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``MESHLIB_DISABLED`` is on."""
    return environ.get(DISABLED, "").strip().lower() in ("1", "true", "yes", "on", IN_TESTS)


def wanted(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The libraries that ``MESHLIB_INSTALL`` names; none when everything is switched off."""
    if disabled(environ):
        return frozenset()
    switches = {name.strip() for name in environ.get(AUTOMATIC, "").split(",")}
    return frozenset(name for name, switch in LIBRARIES.items() if switch in switches)


def start() -> None:
    """Have ``install_automatically`` called when the first of them is imported; without the variable, nothing."""
    for name in sorted(wanted()):
        import_hook.when_imported(name, _install)


def _install() -> None:
    from meshlib.clients.install import install_automatically

    install_automatically()
