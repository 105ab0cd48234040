"""The contract between resolvers and the runtime that drives them.

A resolver lives on the control thread's event loop: every method is called there, every callback is called there. It
creates no thread, loop, lock or clock; it receives a ResolverContext.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from meshlib.model.address import AddressPolicy
from meshlib.model.events import EventSink, discard
from meshlib.model.target import Target
from meshlib.model.update import Update

Publish = Callable[[Update], None]
T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs a blocking function in the runtime's few helper threads (exec plugins, getaddrinfo, file reads)."""

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T: ...


class Spawn(Protocol):
    """Starts a task on the control loop; the runtime keeps the reference, and reports an unexpected exception."""

    def __call__(self, coroutine: Coroutine[Any, Any, Any], /, *, name: str) -> asyncio.Task[Any]: ...


@dataclass(frozen=True, slots=True)
class ResolverContext:
    """What a resolver may use. ``now`` is monotonic seconds; ``random`` gives floats in [0, 1)."""

    now: Callable[[], float]
    wall: Callable[[], float]
    random: Callable[[], float]
    sleep: Callable[[float], Coroutine[Any, Any, None]]
    spawn: Spawn
    run_blocking: RunBlocking
    emit: EventSink = discard
    address_policy: AddressPolicy = field(default_factory=AddressPolicy)
    settings: Mapping[str, Any] = field(
        default_factory=dict
    )  #: the ``[discovery.<scheme>]`` table of the configuration


class Subscription(Protocol):
    """One target being watched; the resolver shares the work below (one watch per namespace, one query a name)."""

    def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]:
        """Where the data comes from and how old it is, for ``meshlib resolve`` and status pages."""
        ...


class Resolver(Protocol):
    """One instance per control plane. ``watch`` publishes soon and then on every change, latest state only."""

    def watch(self, target: Target, publish: Publish) -> Subscription: ...

    async def close(self) -> None: ...


class ResolverBuilder(Protocol):
    """Found by URL scheme, from the built-ins or the entry-point group ``meshlib.resolvers``."""

    @property
    def schemes(self) -> tuple[str, ...]: ...

    def build(self, context: ResolverContext) -> Resolver: ...
