"""Choose: the endpoint of each new flow, by meshlib's own pickers. Pure; belongs to one loop.

In-flight counts are kept per endpoint and port of a Service, across all its frontends; so is session affinity.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Set
from contextlib import nullcontext
from weakref import WeakValueDictionary

from meshlib.agent.backends.userspace.translate import Served, route_for
from meshlib.agent.desired import Action, PortKey, Route, Target
from meshlib.model.endpoint import Endpoint
from meshlib.pickers import least_connections, maglev, round_robin, weighted_round_robin
from meshlib.pickers.base import Picker, PickerBuilder, PickerContext, PickInfo
from meshlib.pickers.subchannel import Subchannel
from meshlib.policies.affinity import Affinity

#: Clients that one port of a Service remembers; beyond, the one that was silent for longest is forgotten. An entry
#: takes some 300 bytes: 20 MB under a flood of sources.
MOST_CLIENTS = 1 << 16

#: IPVS schedulers by the policy that means the same here. The rest (for caches, or for one server at a time) take
#: turns, which is also what the kernel does with them on this node's own share of the traffic.
_POLICIES: dict[str, PickerBuilder] = {
    "wrr": weighted_round_robin.BUILDER,
    **dict.fromkeys(("lc", "wlc", "sed", "nq"), least_connections.BUILDER),
    **dict.fromkeys(("sh", "mh"), maglev.BUILDER),
}


def policy(scheduler: str, targets: tuple[Target, ...]) -> PickerBuilder:
    """The policy for a scheduler; unlike weights are honoured by taking turns in proportion."""
    known = _POLICIES.get(scheduler)
    if known is not None:
        return known
    even = len({target.weight for target in targets}) < 2
    return round_robin.BUILDER if even else weighted_round_robin.BUILDER


class Clients:
    """Which client went where, of one port of a Service (kube-proxy's ServicePort)."""

    def __init__(self, most: int = MOST_CLIENTS) -> None:
        self._known: OrderedDict[str, Affinity] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._known)

    def pick(
        self, client: str, seconds: int, picker: Picker, members: frozenset[Subchannel], info: PickInfo
    ) -> Subchannel | None:
        """Where the client went, if that is an endpoint still and it came within ``seconds``; else a new choice."""
        affinity = self._known.get(client)
        if affinity is None:
            affinity = self._known[client] = Affinity(seconds, nullcontext())
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        self._known.move_to_end(client)
        affinity.timeout = seconds
        return affinity.pick(picker, members, info)


class Choosers:
    """What is shared by the frontends of a port of a Service. Entries go with the last of their users."""

    def __init__(self, random_: Callable[[], float], now: Callable[[], float]) -> None:
        self.random, self.now = random_, now
        self._subchannels: WeakValueDictionary[tuple[PortKey, Target], Subchannel] = WeakValueDictionary()
        self._clients: WeakValueDictionary[PortKey, Clients] = WeakValueDictionary()
        self._groups: WeakValueDictionary[tuple[PortKey, str, Route], Group] = WeakValueDictionary()

    def subchannel(self, owner: PortKey, target: Target) -> Subchannel:
        """Always the same one while anybody uses it. One loop: nothing has to be locked."""
        found = self._subchannels.get((owner, target))
        if found is None:
            endpoint = Endpoint(address=target.address, port=target.port, weight=target.weight)
            found = self._subchannels[owner, target] = Subchannel(endpoint, nullcontext())
        return found

    def group(self, served: Served, route: Route, before: Group | None) -> Group:
        """Frontends of one port that choose among the same endpoints do so together."""
        key = (served.owner, served.scheduler, route)
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Group(self, served, route, before)
        return found

    def clients(self, owner: PortKey) -> Clients:
        """Of one port of a Service."""
        found = self._clients.get(owner)
        if found is None:
            found = self._clients[owner] = Clients()
        return found


class Group:
    """One route's picker. ``before``: the one whose turns it continues."""

    __slots__ = ("__weakref__", "members", "picker")

    def __init__(self, shared: Choosers, served: Served, route: Route, before: Group | None) -> None:
        builder = policy(served.scheduler, route.targets)
        subchannels = [shared.subchannel(served.owner, target) for target in route.targets]
        self.members = frozenset(subchannels)
        previous = before.picker if before is not None else None
        context = PickerContext(shared.random, previous=previous, new_lock=nullcontext)
        self.picker: Picker = builder.build(subchannels, builder.parse_config({}, ""), context)


class Chooser:
    """Chooses for one claim. ``before``: the chooser that it replaces, whose turns it continues."""

    def __init__(self, served: Served, shared: Choosers, before: Chooser | None = None) -> None:
        self.served = served
        self._shared = shared
        self._clients = shared.clients(served.owner) if served.affinity_seconds else None
        self._groups: dict[Route, Group] = {}
        for route in served.routes:
            if route.action is Action.FORWARD and route.targets:
                self._groups[route] = shared.group(served, route, before._like(route) if before else None)

    def __contains__(self, subchannel: Subchannel) -> bool:
        """Whether an endpoint may be chosen (still)."""
        return any(subchannel in group.members for group in self._groups.values())

    def action(self, peer: str) -> Action:
        """What happens to a new flow."""
        route = route_for(self.served, peer)
        return Action.REJECT if route.action is Action.FORWARD and not route.targets else route.action

    def pick(self, peer: str, tried: Set[Subchannel] = frozenset()) -> Subchannel | None:
        """The endpoint of a new flow, counted as begun (call ``end`` on it). None: nobody (that was not tried)."""
        group = self._groups.get(route_for(self.served, peer))
        if group is None:
            return None
        info = PickInfo(self._shared.now(), peer, tried)
        picker = group.picker
        if self._clients is not None:
            seconds = self.served.affinity_seconds
            found = self._clients.pick(peer, seconds, picker, group.members, info)
        else:
            found = picker.pick(info)
        if found is not None and not picker.counts:
            found.begin()
        return found

    def _like(self, route: Route) -> Group | None:
        """The same route's, or else the first: who was outside stays outside."""
        return self._groups.get(route) or next(iter(self._groups.values()), None)
