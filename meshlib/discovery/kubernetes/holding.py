"""Holds back the disappearance of an endpoint for a moment (decision D7). Pure: fed with changes and ``now``.

An endpoint that moves from one slice to another may for a moment be in neither, because the two slices change in two
events. So an ``ip:port`` that left *all* slices of its service stays in the published set for 100 ms, in a slice of its
own; if it comes back meanwhile, it was never away. Everything else is published at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

#: Seconds. The controller writes the slices of one sync one after the other, a few ms apart each; kube-proxy's own
#: batching is of the same size. With the 5 ms of coalescing it keeps removals below 150 ms.
HOLD = 0.1

#: An address with the ports it is reachable on.
_Place = tuple[str, tuple[SlicePort, ...]]


class Holding:
    """The slices of one service, as published. One owner; not thread-safe."""

    __slots__ = ("_held", "_slices")

    def __init__(self) -> None:
        self._slices: dict[str, EndpointSlice] = {}
        self._held: dict[_Place, tuple[float, EndpointSlice, SliceEndpoint]] = {}

    def update(self, changed: Mapping[str, EndpointSlice | None], now: float) -> bool:
        """Take over changed slices by name (None: deleted). False if nothing differs."""
        gone: dict[_Place, tuple[EndpointSlice, SliceEndpoint]] = {}
        any_change = False
        for name, new in changed.items():
            old = self._slices.get(name)
            if old == new:
                continue
            any_change = True
            if new is None:
                del self._slices[name]
            else:
                self._slices[name] = new
            if old is not None:
                stays = (
                    {e.address for e in new.endpoints}
                    if new is not None and new.ports == old.ports
                    else set()
                )
                gone.update(
                    ((e.address, old.ports), (old, e)) for e in old.endpoints if e.address not in stays
                )
        if not any_change:
            return False
        self._forget_those_back()
        for place, (old, endpoint) in self._missing(gone).items():
            self._held[place] = (now + HOLD, old, endpoint)
        return True

    def _forget_those_back(self) -> None:
        if self._held:
            still = self._missing({place: (s, e) for place, (_, s, e) in self._held.items()})
            self._held = {place: held for place, held in self._held.items() if place in still}

    def _missing(
        self, places: dict[_Place, tuple[EndpointSlice, SliceEndpoint]]
    ) -> dict[_Place, tuple[EndpointSlice, SliceEndpoint]]:
        """Those of ``places`` with an ip:port that no slice has now."""
        if not places:
            return places
        addresses = {address for address, _ in places}
        found: dict[str, set[tuple[str, int | None]]] = {}
        for each in self._slices.values():
            here = addresses.intersection([e.address for e in each.endpoints])
            if here:
                pairs = {(p.protocol, p.port) for p in each.ports}
                for address in here:
                    found.setdefault(address, set()).update(pairs)
        return {
            (address, ports): value
            for (address, ports), value in places.items()
            if address not in found or not {(p.protocol, p.port) for p in ports} <= found[address]
        }

    def expire(self, now: float) -> bool:
        """Let go what has been held long enough. True if the published slices differ from before."""
        over = [place for place, (until, _, _) in self._held.items() if until <= now]
        for place in over:
            del self._held[place]
        return bool(over)

    @property
    def wake_at(self) -> float:
        """When ``expire`` has something to do; inf: never."""
        return min((until for until, _, _ in self._held.values()), default=math.inf)

    def names(self) -> Iterable[str]:
        """Names of the slices known now, held ones left out."""
        return self._slices.keys()

    def clear(self) -> None:
        """The service itself is gone: nothing is held for it."""
        self._slices.clear()
        self._held.clear()

    def slices(self) -> tuple[EndpointSlice, ...]:
        """What to publish, in the order of names; held endpoints are in extra slices."""
        ordered = [self._slices[name] for name in sorted(self._slices)]
        groups: dict[tuple[str, tuple[SlicePort, ...]], tuple[EndpointSlice, list[SliceEndpoint]]] = {}
        for _, origin, endpoint in self._held.values():
            groups.setdefault((origin.name, origin.ports), (origin, []))[1].append(endpoint)
        for number, (origin, endpoints) in enumerate(groups.values()):
            name = f"{origin.name}~leaving{number}"  # no slice can have this name: "~" is not allowed
            ordered.append(
                msgspec.structs.replace(origin, name=name, endpoints=tuple(endpoints), generation=-1)
            )
        return tuple(ordered)
