"""How methods are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.clients.grpc.channel import MeshChannel
from meshlib.clients.grpc.methods import METHODS, factory, registered_argument


class Handle:
    hash_key = None
    target = "k8s:///orders.shop:80"

    def on_removed(self, callback: Any) -> None:
        pass


def test_registered_argument_in_every_form() -> None:
    """By position, by name and absent; anything else is an error that names it."""
    assert registered_argument((True,), {}) is True
    assert registered_argument((), {"_registered_method": True}) is True
    assert registered_argument((), {}) is False
    with pytest.raises(TypeError, match="_other"):
        registered_argument((), {"_other": 1})
    with pytest.raises(TypeError):
        registered_argument((True, 2), {})


def test_an_old_grpcio_is_not_given_what_it_does_not_know() -> None:
    """_registered_method is passed only to channels whose signature has it."""

    class Old:
        def unary_unary(self, method: str, serializer: Any = None, deserializer: Any = None) -> Any:
            return (method, serializer, deserializer)

    class New:
        def unary_unary(
            self, method: str, s: Any = None, d: Any = None, _registered_method: bool = False
        ) -> Any:
            return (method, _registered_method)

    make = factory("unary_unary", "/m", 1, 2, True)
    assert make(Old()) == ("/m", 1, 2)
    assert make(New()) == ("/m", True)


def test_methods_are_found_again_and_bounded() -> None:
    """The same method gives the same callable; new functions each time do not grow without bound."""
    channel = MeshChannel(Handle(), lambda target: None)  # type: ignore[arg-type, return-value]
    assert channel.unary_unary("/m", bytes, bytes) is channel.unary_unary("/m", bytes, bytes)
    assert channel.unary_unary("/m", bytes, bytes) is not channel.unary_stream("/m", bytes, bytes)
    for _ in range(METHODS + 50):
        channel.unary_unary("/m", lambda message: message, bytes)
    assert len(channel._methods) == METHODS
