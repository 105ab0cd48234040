"""Doctor's look at descriptors: are there enough for the connections that are planned."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping

from meshlib.cli.doctor.findings import Finding, lack, note, ok
from meshlib.clients.httpx.allowance import SHARE

_AREA = "limits"


def check_limits(endpoints: Mapping[str, int], connections: int, cap: int) -> Iterable[Finding]:
    """``connections`` to each endpoint, from one process; ``cap``: the configured total_connections, 0 for none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield ok(_AREA, "descriptors are not limited")
        return
    usable = int(soft * SHARE)
    planned = sum(endpoints.values()) * connections
    what = f"{soft} descriptors per process, {usable} of them for connections"
    if not endpoints:
        yield ok(_AREA, what)
    elif planned <= usable:
        yield ok(
            _AREA, f"{what}; {planned} are planned ({sum(endpoints.values())} endpoints x {connections})"
        )
    else:
        more = -(-planned * 4 // 3)
        raised = "" if hard == resource.RLIM_INFINITY or more <= hard else f" (the hard limit is {hard})"
        yield lack(
            _AREA,
            f"{what}, and {planned} are planned ({sum(endpoints.values())} endpoints x {connections})",
            f"raise the limit to {more} (ulimit -n, LimitNOFILE=, the container runtime){raised}, or plan fewer",
        )
    if endpoints and cap and cap < planned:
        yield note(
            _AREA,
            f"total_connections = {cap} is less than the {planned} planned: connections will be exchanged",
        )
