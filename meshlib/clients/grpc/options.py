"""What every single-address channel is made with: its target string and its channel arguments."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from meshlib.model.endpoint import Endpoint

Options = Sequence[tuple[str, Any]]

#: Ours for every endpoint, unless the user gave the same argument. A user's value always wins.
#: - local subchannel pool: connections are not shared with the application's other channels, so that removing an
#:   endpoint really closes its connection and no channel inherits another one's TLS identity;
#: - no HTTP proxy: pod addresses must never be sent to HTTP_PROXY;
#: - reconnect back-off: it starts at 100 ms, the least that core allows, instead of 1 s: an endpoint that restarts must
#:   be back before the next one of a rolling restart goes, else all are in back-off at once. It ends at 10 s instead of
#:   120 s: a dead endpoint leaves the set by discovery, one that comes back should not wait two minutes. The minimum,
#:   which core uses as the time limit of one connection attempt, stays at its 20 s, however little a call can spare
#:   (``attempts``): with less, a healthy endpoint behind a slow network would never be connected.
DEFAULTS: tuple[tuple[str, Any], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 10_000),
)


def channel_options(user: Options | None, authority: str) -> tuple[tuple[str, Any], ...]:
    """The user's options first, then ours for the names the user left open.

    ``authority``: the logical name, which becomes ``:authority`` and the name that TLS verifies (decision D2); empty
    leaves the address.
    """
    given = tuple(user or ())
    names = {pair[0] for pair in given}
    ours = DEFAULTS + ((("grpc.default_authority", authority),) if authority else ())
    return given + tuple(pair for pair in ours if pair[0] not in names)


def core_waits(options: Options) -> bool:
    """Whether core itself may wait or try again on an endpoint that refuses: ``waitForReady``, ``retryPolicy``."""
    return any(name == "grpc.service_config" for name, _ in options)


def endpoint_target(endpoint: Endpoint) -> str:
    """gRPC's target string for one address: ``ipv4:1.2.3.4:80`` or ``ipv6:%5B2001:db8::1%5D:80``.

    The address is parsed once more, because this is the last place before a connection: ValueError for anything else.
    """
    address = ipaddress.ip_address(endpoint.address)
    if not 0 < endpoint.port < 65536:
        raise ValueError(f"endpoint {endpoint.authority}: port {endpoint.port} is out of range 1-65535")
    if address.version == 4:
        return f"ipv4:{address}:{endpoint.port}"
    return f"ipv6:%5B{address}%5D:{endpoint.port}"
