"""The ``static`` resolver: the target's own addresses, published once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshlib.discovery.base import Publish, ResolverContext
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.target import StaticAddress, Target
from meshlib.model.update import DoesNotExist, Snapshot, Update


def snapshot(addresses: tuple[StaticAddress, ...]) -> Snapshot:
    """The facts of a static list: one slice per family and port number, in the order of first appearance.

    The same ``ip:port`` written twice counts once, with the sum of its weights (two mentions mean a double share).
    The one ServicePort is unnamed and carries the first number; its slices carry each their own.
    """
    weights: dict[tuple[str, int], int] = {}
    for item in addresses:
        where = (item.address, item.port)
        weights[where] = weights.get(where, 0) + item.weight
    groups: dict[tuple[int, int], list[SliceEndpoint]] = {}
    for (address, port), weight in weights.items():
        family = 6 if ":" in address else 4
        groups.setdefault((family, port), []).append(SliceEndpoint(address=address, weight=weight))
    key = ServiceKey("", "static")
    service = Service(
        key=key,
        type=ServiceType.NAMES,
        ports=(ServicePort(name="", port=addresses[0].port),),
        has_selector=False,
    )
    slices = tuple(
        EndpointSlice(
            namespace="",
            name=f"static-ipv{family}-{port}",
            service=key,
            family=family,
            ports=(SlicePort(name="", port=port),),
            endpoints=tuple(endpoints),
        )
        for (family, port), endpoints in groups.items()
    )
    return Snapshot(service=service, slices=slices, source="static")


class StaticSubscription:
    """One static target: published on the next turn of the loop, never again."""

    def __init__(self, context: ResolverContext, target: Target, publish: Publish) -> None:
        self._count = len(target.addresses)
        self._closed = False
        update: Update
        if target.addresses:
            update = snapshot(target.addresses)
        else:
            update = DoesNotExist("the static target lists no address")
        context.spawn(self._publish(publish, update), name="meshlib-static")

    async def _publish(self, publish: Publish, update: Update) -> None:
        # In a task of its own, so that the caller holds the Subscription before the first update reaches it.
        if not self._closed:
            publish(update)

    def close(self) -> None:
        self._closed = True

    def describe(self) -> Mapping[str, Any]:
        return {"source": "static", "addresses": self._count, "stale": False}


class StaticResolver:
    """Implements discovery.base.Resolver. The addresses were written by the caller, so no address policy applies."""

    def __init__(self, context: ResolverContext) -> None:
        self._context = context

    def watch(self, target: Target, publish: Publish) -> StaticSubscription:
        return StaticSubscription(self._context, target, publish)

    async def close(self) -> None:
        """Nothing is held."""


class StaticBuilder:
    """Implements discovery.base.ResolverBuilder."""

    schemes: tuple[str, ...] = ("static",)

    def build(self, context: ResolverContext) -> StaticResolver:
        return StaticResolver(context)


BUILDER = StaticBuilder()
