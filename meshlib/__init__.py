"""meshlib: the service mesh that is a Python import.

Importing starts nothing and loads none of httpx, grpc, kubernetes or dns: the public names below are looked up on first
use (PEP 562).

* ``Mesh``, ``Target``, ``ready``: discovery and picking for any client.
* ``wrap``, ``unwrap``, ``MeshTransport``, ``AsyncMeshTransport``: httpx.
* ``meshlib.grpc.insecure_channel`` and friends: grpc and grpc.aio.
* ``install``, ``uninstall``: all of that without touching a client or channel.
* ``start_exporter``: metrics, for Prometheus and OpenTelemetry.
* ``load_config``, ``errors``.

Pytest rewrites the assertions of packages that hold one of its plugins, as this one does, and warns when it comes too
late (under ``meshlib run``); none of ours are for it: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib import errors
    from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport, unwrap, wrap
    from meshlib.clients.install import install, uninstall
    from meshlib.model.endpoint import Endpoint
    from meshlib.model.target import Target
    from meshlib.runtime.config import Config, load_config
    from meshlib.runtime.default import default_mesh, ready
    from meshlib.runtime.exporters import start_exporter
    from meshlib.runtime.mesh import Mesh

__version__ = "0.1.0"

__all__ = [
    "AsyncMeshTransport",
    "Config",
    "Endpoint",
    "Mesh",
    "MeshTransport",
    "Target",
    "default_mesh",
    "errors",
    "install",
    "load_config",
    "ready",
    "start_exporter",
    "uninstall",
    "unwrap",
    "wrap",
]

_HOMES = {
    "AsyncMeshTransport": "meshlib.clients.httpx",
    "Config": "meshlib.runtime.config",
    "Endpoint": "meshlib.model.endpoint",
    "Mesh": "meshlib.runtime.mesh",
    "MeshTransport": "meshlib.clients.httpx",
    "Target": "meshlib.model.target",
    "default_mesh": "meshlib.runtime.default",
    "install": "meshlib.clients.install",
    "load_config": "meshlib.runtime.config",
    "ready": "meshlib.runtime.default",
    "start_exporter": "meshlib.runtime.exporters",
    "uninstall": "meshlib.clients.install",
    "unwrap": "meshlib.clients.httpx",
    "wrap": "meshlib.clients.httpx",
}
_MODULES = ("errors", "grpc", "httpx", "httpx2")


if not TYPE_CHECKING:  # for a type checker every name is declared above, and an unknown one is an error

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        elif name in _MODULES:
            value = import_module(f"meshlib.{name}")
        else:
            raise AttributeError(f"module 'meshlib' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
