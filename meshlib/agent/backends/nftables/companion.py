"""Companion: the same table where the kernel's virtual servers (IPVS) balance. Pure.

The table refuses and drops, filters by source range, masquerades, and leads those inside past a Local policy; a flow
that a virtual server is to have is left as it is, and protected from host ports of the container network. Exact
affinity is what virtual servers cannot do: such frontends the table forwards by itself, before a virtual server of
theirs would see anything.
"""

from __future__ import annotations

from typing import Any

from meshlib.agent.backends.nftables.layout import (
    DROPPED,
    NODE_PORT,
    NODE_PORT_INSIDE,
    PASSED,
    REFUSED,
    VIP,
    VIP_INSIDE,
)
from meshlib.agent.backends.nftables.translate import (
    add_route,
    class_value,
    classify,
    element_key,
    fixed,
    translate_hairpin,
)
from meshlib.agent.backends.nftables.translate import translate as translate_whole
from meshlib.agent.desired import Action, Frontend, Place, Route, Target
from meshlib.agent.objects import ObjectKey, Objects

__all__ = ["fixed", "is_forwarded", "translate", "translate_hairpin"]


def is_forwarded(frontend: Frontend) -> bool:
    """Whether the table forwards this frontend's flows."""
    return frontend.exact_affinity and frontend.affinity_seconds > 0


def translate(frontend: Frontend, place: Place, inside: Target | None = None) -> Objects:
    """What a frontend needs beside its virtual server.

    ``inside``: the address and port of a virtual server with the endpoints of ``frontend.inside``, to which flows from
    inside are led. Without one the table forwards them by itself.
    """
    if is_forwarded(frontend):
        return translate_whole(frontend, place)
    objects: dict[ObjectKey, Any] = classify(frontend, place)
    outside, within = (VIP, VIP_INSIDE) if frontend.key.address else (NODE_PORT, NODE_PORT_INSIDE)
    number = {Action.FORWARD: PASSED, Action.REJECT: REFUSED, Action.DROP: DROPPED}[frontend.route.action]
    objects[ObjectKey(outside.class_, element_key(frontend.key))] = class_value(number)
    if frontend.inside is not None:
        route = frontend.inside
        if inside is not None and route.action is Action.FORWARD:
            route = Route(Action.FORWARD, (inside,))
        add_route(objects, within, frontend, route, place)
    return objects
