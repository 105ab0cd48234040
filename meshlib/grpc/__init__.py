"""gRPC channels over mesh targets: grpc's own signatures plus ``mesh=`` (decision D10).

``meshlib.grpc.insecure_channel``, ``meshlib.grpc.secure_channel`` and the same in ``meshlib.grpc.aio``. Importing this
package does not import grpc; the first use of a name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.clients.grpc.channel import MeshChannel, insecure_channel, secure_channel
    from meshlib.grpc import aio

__all__ = ["MeshChannel", "aio", "insecure_channel", "secure_channel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "aio":
        import importlib

        return importlib.import_module("meshlib.grpc.aio")
    from meshlib.clients.grpc import channel

    return getattr(channel, name)


def __dir__() -> list[str]:
    return sorted(__all__)
