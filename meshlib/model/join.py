"""Join: from slices to dialable endpoints of one Service port, each ip:port once.

The first half of eligibility. A slice is joined alone (so its result can be kept for as long as the slice
does), then the joined slices are united.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.model.endpoint import Endpoint
from meshlib.model.service import ServicePort
from meshlib.model.slices import EndpointSlice, SliceEndpoint

Place = tuple[str, int]  #: address and port


class Joined:
    """One slice joined with one Service port; immutable after construction.

    ``number`` is the port that the slice has for the Service port, None when it has none (then nothing is
    joined). ``found`` and ``facts`` have the same keys; of a place that stands twice in a slice the better
    copy counts.
    """

    __slots__ = ("_entries", "_facts", "all_ready", "found", "has_hints", "number", "slice")

    def __init__(self, slice_: EndpointSlice, port: ServicePort) -> None:
        self.slice = slice_
        number = self.number = number_in(slice_, port)
        entries = slice_.endpoints if number is not None else ()
        place = number or 0
        self._entries = entries
        self._facts: dict[Place, SliceEndpoint] | None = None
        self.found = {(fact.address, place): endpoint_of(fact, place) for fact in entries}
        if len(self.found) != len(entries):
            self._facts = _best_copies(entries, place)
            self.found = {key: endpoint_of(fact, place) for key, fact in self._facts.items()}
        self.all_ready = not [endpoint for endpoint in self.found.values() if not endpoint.ready]
        self.has_hints = bool([fact for fact in entries if fact.hint_zones or fact.hint_nodes])

    @property
    def facts(self) -> dict[Place, SliceEndpoint]:
        """The slice's own entries by place; made when something asks, which is only where hints or copies are."""
        if self._facts is None:
            place = self.number or 0
            self._facts = {(fact.address, place): fact for fact in self._entries}
        return self._facts


class Union:
    """All places of one family. ``facts`` is filled only when some endpoint carries hints: nobody else needs it."""

    __slots__ = ("all_ready", "facts", "found", "has_hints")

    def __init__(self, joined: Sequence[Joined], node: str) -> None:
        found: dict[Place, Endpoint] = {}
        for part in joined:
            found.update(part.found)
        self.all_ready = all(part.all_ready for part in joined)
        self.has_hints = any(part.has_hints for part in joined)
        facts: dict[Place, SliceEndpoint] = {}
        if self.has_hints:
            for part in joined:
                facts.update(part.facts)
        if len(found) != sum([len(part.found) for part in joined]):
            for place, part in winners(joined, node).items():
                found[place] = part.found[place]
                if self.has_hints:
                    facts[place] = part.facts[place]
        self.found = found
        self.facts = facts


def number_in(slice_: EndpointSlice, port: ServicePort) -> int | None:
    """The number that a slice has for a Service port: by name and protocol, as a named targetPort may differ per slice.

    A port entry without a number ("all ports") gives none: only a verbatim port knows the number.
    """
    if port.verbatim:
        return port.port
    for entry in slice_.ports:
        if entry.name == port.name and entry.protocol == port.protocol and entry.port is not None:
            return entry.port
    return None


def endpoint_of(fact: SliceEndpoint, port: int) -> Endpoint:
    """The endpoint that a slice's entry gives on a port."""
    return Endpoint(
        address=fact.address,
        port=port,
        uid=fact.uid,
        name=fact.name,
        hostname=fact.hostname,
        node=fact.node,
        zone=fact.zone,
        weight=fact.weight,
        priority=fact.priority,
        ready=fact.ready,
        serving=fact.serving,
        terminating=fact.terminating,
    )


def _best_copies(entries: Sequence[SliceEndpoint], port: int) -> dict[Place, SliceEndpoint]:
    """Of a place that stands twice in a slice: the copy that is ready, then the one that serves; else the first."""
    best: dict[Place, SliceEndpoint] = {}
    for fact in entries:
        held = best.setdefault((fact.address, port), fact)
        if (fact.ready, fact.serving) > (held.ready, held.serving):
            best[fact.address, port] = fact
    return best


def winners(joined: Sequence[Joined], node: str) -> dict[Place, Joined]:
    """For every place that stands in several slices, the slice whose copy counts.

    The rule between conflicting copies: ready before not ready, serving before not serving, on our own node
    before elsewhere, the newest slice (highest generation), and last the slice's name, so that the order in
    which slices arrive never matters.
    """
    holders: dict[Place, list[Joined]] = {}
    for part in joined:
        for place in part.found:
            holders.setdefault(place, []).append(part)
    return {
        place: max(parts, key=lambda part: _rank(part, place, node))
        for place, parts in holders.items()
        if len(parts) > 1
    }


def _rank(part: Joined, place: Place, node: str) -> tuple[bool, bool, bool, int, str, str]:
    fact, slice_ = part.facts[place], part.slice
    local = bool(node) and fact.node == node
    return fact.ready, fact.serving, local, slice_.generation, slice_.namespace, slice_.name
