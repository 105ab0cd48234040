"""Departures: addresses that have nobody behind them any more, so that waiting for their connections is idle. Pure
state; belongs to one thread.

A pod that is deleted is terminating for a while, and leaves the slices when its containers have ended or its node is
gone: what leaves as terminating is dead. What leaves otherwise may live on (somebody took a label away) and keeps its
connections. And an address where another pod appears has lost the one before, however that left.

Read off the slices alone: a watch of all Nodes on every node would cost an API server more than this is worth. A node
that is deleted with pods that were never terminating is not noticed; their connections wait for the drain's end.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint

#: Addresses whose last pod is remembered: a rolling update of a large cluster. Forgetting one costs a wait.
MOST_LEFT = 10_000


class Departures:
    """Fed with every change of a Service's slices."""

    def __init__(self) -> None:
        self._ending: dict[str, set[ServiceKey]] = {}  # terminating, and the Services that show it so
        self._left: dict[str, str] = {}  # left otherwise: the pod's uid; the oldest first

    def change(
        self, service: ServiceKey, old: Iterable[EndpointSlice], new: Iterable[EndpointSlice]
    ) -> set[str]:
        """One Service's slices. Returns the addresses whose pods are gone."""
        before, after = _by_address(old), _by_address(new)
        gone: set[str] = set()
        for address, endpoint in after.items():
            if endpoint.terminating:
                self._ending.setdefault(address, set()).add(service)
            elif address in self._ending:
                self._revived(address, service)
            was = self._left.pop(address, "")
            if address in before:
                was = before[address].uid
            if was and endpoint.uid and was != endpoint.uid:
                gone.add(address)
        for address in before.keys() - after.keys():
            showing = self._ending.get(address, set())
            if service not in showing:
                self._leave(address, before[address].uid)
            elif showing == {service}:
                del self._ending[address]
                gone.add(address)
            else:
                showing.remove(service)
        return gone

    def _revived(self, address: str, service: ServiceKey) -> None:
        """Not terminating any more: another pod has the address."""
        self._ending[address].discard(service)
        if not self._ending[address]:
            del self._ending[address]

    def _leave(self, address: str, uid: str) -> None:
        self._left.pop(address, None)
        self._left[address] = uid
        if len(self._left) > MOST_LEFT:
            del self._left[next(iter(self._left))]


def _by_address(slices: Iterable[EndpointSlice]) -> dict[str, SliceEndpoint]:
    """One entry for an address; of several the one that is not terminating."""
    found: dict[str, SliceEndpoint] = {}
    for each in slices:
        for endpoint in each.endpoints:
            if endpoint.address not in found or not endpoint.terminating:
                found[endpoint.address] = endpoint
    return found
