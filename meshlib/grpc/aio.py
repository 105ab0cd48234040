"""``grpc.aio`` channels over mesh targets: its own signatures plus ``mesh=``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.clients.grpc.aio_channel import AioMeshChannel, insecure_channel, secure_channel

__all__ = ["AioMeshChannel", "insecure_channel", "secure_channel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meshlib.clients.grpc import aio_channel

    return getattr(aio_channel, name)


def __dir__() -> list[str]:
    return sorted(__all__)
