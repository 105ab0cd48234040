"""install and uninstall: every httpx client and gRPC channel of the process balances mesh targets, untouched itself.

What is ours is decided per request (decision D1); everything else is served by the very objects that served it before.
Importing this module, and ``install`` itself, load no client library: what is not imported yet is balanced once it is.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshlib.clients import import_hook
from meshlib.clients.autostart import DISABLED, LIBRARIES, disabled, wanted
from meshlib.errors import ConfigError
from meshlib.runtime.primitives import new_lock

if TYPE_CHECKING:
    from meshlib.runtime.mesh import Mesh


@dataclass(eq=False)
class _Installation:
    """What is installed now. No ``mesh`` until the first library needs one (``meshlib run`` waits for that)."""

    libraries: frozenset[str]
    given: Mesh | None
    automatic: bool
    #: One at most, under "mesh". A dictionary, because two threads may import their libraries at the same time, and
    #: ``setdefault`` lets one of them win.
    made: dict[str, Mesh] = field(default_factory=dict)
    seams: list[Any] = field(default_factory=list)

    @property
    def mesh(self) -> Mesh | None:
        return self.made.get("mesh")

    def is_like(self, other: _Installation) -> bool:
        return self.libraries == other.libraries and self.given is other.given


_lock = new_lock()
_current: _Installation | None = None
#: What ``install`` was asked for while it was switched off: tests that switch it on put it in force (``resume``).
_asked: _Installation | None = None
_logger = logging.getLogger("meshlib.install")


def install(*, mesh: Mesh | None = None, httpx: bool = True, grpc: bool = True) -> None:
    """Balance mesh targets in all httpx and httpx2 clients, existing ones included, and in all gRPC channels made from
    now on. Everything that is not ours keeps its way.

    ``httpx``, ``grpc``: which of them. ``mesh``: the Mesh to use; by default one of its own, configured as any other
    but never with a kubeconfig that no setting names. Nothing is imported, looked up or connected: that begins with
    the first request for a mesh target. Does nothing when ``MESHLIB_DISABLED=1``, or when the same is installed
    already. Call it at start-up, from any thread.

    Raises ConfigError when something different is installed, or the configuration is wrong. A library in a version
    that is not known is left as it is, with one warning.
    """
    switches = {"httpx": httpx, "grpc": grpc}
    libraries = frozenset(name for name, switch in LIBRARIES.items() if switches[switch])
    _install(_Installation(libraries, mesh, automatic=False))


def uninstall() -> None:
    """Undo ``install``. Requests in flight finish, and clients have their own connections again; gRPC channels that
    were made in the meantime keep working as they are. Without ``install`` it does nothing."""
    global _asked
    _asked = None
    _end()


def resume() -> None:
    """For the pytest plugin: put in force what ``install`` was asked for while it was switched off."""
    if _asked is not None:
        _install(_asked)


def suspend() -> None:
    """For the pytest plugin: ``uninstall`` until ``resume``; what was installed since then by the test is gone."""
    _end()


def _end() -> None:
    global _current
    with _lock:
        installation, _current = _current, None
    for name in LIBRARIES:
        import_hook.forget(name)
    if installation is not None:
        _take_off(installation)


def install_automatically(environ: Mapping[str, str] = os.environ) -> None:
    """For programs under ``meshlib run``, when they import their first library; without that, nothing. Never raises.

    A later ``install`` in code replaces it.
    """
    libraries = wanted(environ)
    if not libraries:
        return
    try:
        _install(_Installation(libraries, None, automatic=True))
    except Exception as error:  # the program must run as it would without us
        _pass_through(error)


def _install(new: _Installation) -> None:
    global _current, _asked
    if disabled():
        _asked = _asked or new
        _logger.info("install() does nothing: %s=%s", DISABLED, os.environ[DISABLED])
        return
    if _is_there(_current, new):
        return
    if not new.automatic:
        _mesh_of(new)  # a wrong configuration is told here, where it can be caught
    with _lock:
        before = _current
        if _is_there(before, new):
            return
        _current = new
    if before is not None:
        _take_off(before)
    for name in sorted(new.libraries):
        import_hook.when_imported(name, _starter(new, name))


def _is_there(before: _Installation | None, new: _Installation) -> bool:
    """Whether there is nothing to do. What ``meshlib run`` installed gives way to what the code says."""
    if before is None:
        return False
    if new.automatic or before.is_like(new):
        return True
    if before.automatic:
        return False
    raise ConfigError("install()", "something different is installed already", "uninstall() first")


def _new_lock() -> None:
    global _lock
    _lock = new_lock()


os.register_at_fork(after_in_child=_new_lock)


def _starter(installation: _Installation, name: str) -> Callable[[], None]:
    def start() -> None:
        if _current is not installation:
            return
        try:
            seam = _seam(name, _mesh_of(installation))
            if seam is not None:
                seam.put_on()
                installation.seams.append(seam)
                if (
                    _current is not installation
                ):  # uninstalled meanwhile, by a thread that did not see this seam
                    seam.take_off()
        except Exception as error:  # an import that worked without us must work with us (decision D18)
            _pass_through(error)

    return start


def _seam(name: str, mesh: Mesh) -> Any:
    if name == "grpc":
        from meshlib.clients.grpc.seam import Seam as GrpcSeam

        return GrpcSeam(mesh)
    if sys.modules[name].__name__ != name:
        return None  # httpx2 under httpx's name (httpx2.alias_httpx): balanced under its own
    from meshlib.clients.httpx.flavour import load
    from meshlib.clients.httpx.seam import Seam as HttpxSeam

    flavour = load(name)
    if flavour.unsupported:
        flavour.warn(name)
        return None
    return HttpxSeam(flavour, mesh)


def _mesh_of(installation: _Installation) -> Mesh:
    mesh = installation.mesh
    if mesh is None:
        from meshlib.runtime.default import transparent_mesh

        mesh = installation.made.setdefault("mesh", installation.given or transparent_mesh())
    return mesh


def _take_off(installation: _Installation) -> None:
    for name in installation.libraries:
        import_hook.forget(name)
    for seam in installation.seams:
        seam.take_off()


def _pass_through(error: Exception) -> None:
    warnings.warn(f"meshlib: nothing is balanced: {error}", RuntimeWarning, stacklevel=3)
