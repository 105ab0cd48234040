"""Stale: which remembered flows lead somewhere that the rules do not lead any more. Pure.

A flow is judged by where it was sent (its original destination) and by who answers (its reply's source). To be asked
after new rules are in force: a flow that is forgotten before is begun again towards the old endpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from meshlib.agent.desired import Frontend, FrontendKey, Place, Route
from meshlib.agent.netlink.conntrack import Entry

#: UDP flows have no end that could be seen. An SCTP association that lost its endpoint would time out first.
PROTOCOLS = ("UDP", "SCTP")


def may_leave_stale(old: Frontend | None, new: Frontend | None) -> bool:
    """Whether this change of a frontend can make flows stale, so that the kernel's table is worth reading.

    A set that loses an endpoint can; so can one that gets its first, because flows that came before went elsewhere; and
    so can a frontend that goes or is new.
    """
    known = new or old
    if known is None or known.key.protocol not in PROTOCOLS:
        return False
    if old is None or new is None:
        return True
    before, after = _endpoints(old), _endpoints(new)
    return not before <= after or (not before and bool(after))


def stale(
    entries: Iterable[Entry],
    frontends: Mapping[FrontendKey, Frontend],
    place: Place,
    gone: Collection[FrontendKey] = (),
) -> list[Entry]:
    """The entries to be forgotten. ``frontends`` are all that are programmed now, ``gone`` those that were until now.

    What was not sent to a frontend is nobody's business. A flow to a frontend must be answered by one of its endpoints;
    when it has none, every flow to it is stale, for new ones are refused. A flow that was let through untranslated,
    before there was a frontend, is stale too.
    """
    nodes = frozenset(place.node_addresses)
    departed = frozenset(gone)
    allowed: dict[FrontendKey, frozenset[tuple[str, int]]] = {}
    found = []
    for entry in entries:
        original, reply = entry.original, entry.reply
        if original.protocol not in PROTOCOLS:
            continue
        key = FrontendKey(original.protocol, original.destination, original.destination_port)
        anywhere = key._replace(address="")
        if key not in frontends and key not in departed and original.destination in nodes:
            key = anywhere
        answers = (reply.source, reply.source_port)
        if key in frontends:
            if key not in allowed:
                allowed[key] = _endpoints(frontends[key])
            if answers not in allowed[key]:
                found.append(entry)
        elif key in departed and answers != (original.destination, original.destination_port):
            found.append(entry)
    return found


def _endpoints(frontend: Frontend) -> frozenset[tuple[str, int]]:
    routes: tuple[Route | None, ...] = (frontend.route, frontend.inside)
    return frozenset(
        (target.address, target.port) for route in routes if route is not None for target in route.targets
    )
