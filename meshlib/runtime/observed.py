"""Mode observe: what the mesh would have done with a request that goes the bare way, and where that led.

Nothing here waits, and nothing it finds reaches the caller: a request must not notice that it is watched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from meshlib.errors import (
    AccessDenied,
    MeshClosed,
    NoEndpoints,
    NoLocalEndpoints,
    NotSynced,
    ServiceNotFound,
    UnknownPort,
)
from meshlib.model.endpoint import EndpointSet
from meshlib.pickers.base import PickInfo
from meshlib.policies.rollout import Way as RolloutWay
from meshlib.runtime.balancer import Way

if TYPE_CHECKING:
    from meshlib.runtime.handle import Live, TargetHandle
    from meshlib.runtime.rollout import TargetRollout

#: The first that fits names the reason.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (AccessDenied, "denied"),
    (NoLocalEndpoints, "no_local_endpoints"),
    (NoEndpoints, "no_endpoints"),
    (ServiceNotFound, "service_not_found"),
    (UnknownPort, "unknown_port"),
    (NotSynced, "not_synced"),
    (MeshClosed, "closed"),
)


@final
class Observed:
    """One request that goes the bare way, and was picked for in vain. ``reached`` compares, if the client can tell."""

    __slots__ = ("_handle",)

    def __init__(self, handle: TargetHandle) -> None:
        self._handle = handle
        handle.rollout.observed(would_come_to(handle))

    def reached(self, address: str, port: int) -> None:
        """The bare way led to this address."""
        live = self._handle.live
        if live is None or live.balancer.snapshot is None:
            return  # nothing to compare with
        self._handle.rollout.reached(_where(live, self._handle.rollout, address, port))


def count_held_back(handle: TargetHandle) -> None:
    """A request goes the bare way although it came through the gate: it waited, and the mode was lowered by then. It is
    counted as what it becomes."""
    if handle.rollout.way() is RolloutWay.BARE_OBSERVE:
        Observed(handle)


def would_come_to(handle: TargetHandle) -> str:
    """ "" if a request would be given to a pod now, else the reason why not. Leaves no trace. Never raises."""
    try:
        state = handle.state
        live = handle.live
        if live is None:
            return "closed"
        balancer = live.balancer
        if state.error is not None:
            return _reason(balancer.last_error, state.error())
        picker = state.picker
        if picker is None or balancer.way is Way.DNS:
            return _reason(balancer.last_error, NotSynced())
        if balancer.way is Way.SERVICE:
            return "service_address"
        subchannel = picker.pick(PickInfo(live.now()))
        if subchannel is None:
            return "no_endpoints"  # all have weight 0
        if picker.counts:
            subchannel.withdraw()
    except (
        Exception
    ) as error:  # a picker may be foreign code; whatever it raises is not the request's trouble
        return _reason(None, error)
    return ""


def _reason(cause: Exception | None, error: Exception) -> str:
    if isinstance(error, NotSynced) and isinstance(cause, AccessDenied):
        return "denied"
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "failed")


def _where(live: Live, rollout: TargetRollout, address: str, port: int) -> str:
    balancer = live.balancer
    if (address, port) in rollout.addresses_of(balancer.set):
        return "endpoint"
    service = balancer.snapshot.service if balancer.snapshot is not None else None
    if service is not None and address in service.cluster_ips and any(p.port == port for p in service.ports):
        return "service"
    return "elsewhere"


def addresses(members: EndpointSet) -> frozenset[tuple[str, int]]:
    """What a connection to a member shows as its peer."""
    return frozenset((endpoint.address, endpoint.port) for endpoint in members.endpoints)
