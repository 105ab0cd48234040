"""The slices of a whole cluster, as the node agent is told of them. Pure: fed with changes and ``now``.

The store holds what the API server says. Where an endpoint has just left all slices of its Service, a Holding (decision
D7) stands between for a moment: an endpoint that moves from one slice to another never vanishes.
"""

from __future__ import annotations

import math

from meshlib.discovery.kubernetes.cluster_resources import SliceObject
from meshlib.discovery.kubernetes.holding import Holding
from meshlib.discovery.kubernetes.reflector import Changed, Key
from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice
from meshlib.model.store import SliceStore


class ClusterSlices:
    """One owner; not thread-safe."""

    __slots__ = ("_holding", "_store")

    def __init__(self) -> None:
        self._store = SliceStore()
        self._holding: dict[ServiceKey, Holding] = {}  # only where something is held

    def apply(self, change: Changed[SliceObject], now: float) -> set[ServiceKey]:
        """Take over what changed; the Services whose slices are different now."""
        changed: set[ServiceKey] = set()
        for key in change.removals:
            changed |= self._replace(key, (), now, change.first)
        for key, found in change.upserts.items():
            changed |= self._replace(key, found.slices, now, change.first)
        return changed

    def _replace(
        self, key: Key, new: tuple[EndpointSlice, ...], now: float, first: bool
    ) -> frozenset[ServiceKey]:
        old = self._store.in_object(*key)
        before = (
            {}
            if first
            else {service: self._store.slices_of(service) for service in {each.service for each in old}}
        )
        changed = self._store.apply_object(*key, new) if new else self._store.delete(*key)
        for service, slices in before.items():
            if service in changed:
                self._hold(service, slices, old, new, now)
        for service in changed - before.keys():
            held = self._holding.get(service)
            if held is not None:  # something new may bring back what is held
                self._update(service, held, {each.name: each for each in new if each.service == service}, now)
        return changed

    def _hold(
        self,
        service: ServiceKey,
        slices: tuple[EndpointSlice, ...],
        old: tuple[EndpointSlice, ...],
        new: tuple[EndpointSlice, ...],
        now: float,
    ) -> None:
        holding = self._holding.get(service)
        if holding is None:
            holding = Holding()
            holding.update({each.name: each for each in slices}, now)
        changes: dict[str, EndpointSlice | None] = {
            each.name: None for each in old if each.service == service
        }
        changes.update((each.name, each) for each in new if each.service == service)
        self._update(service, holding, changes, now)

    def _update(
        self,
        service: ServiceKey,
        holding: Holding,
        changes: dict[str, EndpointSlice | None] | dict[str, EndpointSlice],
        now: float,
    ) -> None:
        holding.update(changes, now)
        if holding.wake_at < math.inf:
            self._holding[service] = holding
        else:
            self._holding.pop(service, None)

    def expire(self, now: float) -> set[ServiceKey]:
        """Let go what has been held long enough; the Services whose slices are different now."""
        over = {service for service, holding in self._holding.items() if holding.expire(now)}
        for service in over:
            if self._holding[service].wake_at == math.inf:
                del self._holding[service]
        return over

    def forget(self, service: ServiceKey) -> None:
        """The Service itself is gone: nothing is held for it."""
        self._holding.pop(service, None)

    @property
    def wake_at(self) -> float:
        """When ``expire`` has something to do; inf: never."""
        return min((holding.wake_at for holding in self._holding.values()), default=math.inf)

    def slices_of(self, service: ServiceKey) -> tuple[EndpointSlice, ...]:
        """What to tell."""
        holding = self._holding.get(service)
        return self._store.slices_of(service) if holding is None else holding.slices()
