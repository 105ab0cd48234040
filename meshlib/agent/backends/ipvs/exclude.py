"""Networks whose virtual servers are never touched: a fence for other directors of the node. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network


class Excluded:
    """``address in excluded``; false without networks."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Raises ValueError for what is no network."""
        self._networks = tuple(ip_network(each) for each in networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        parsed = ip_address(address)
        return any(parsed.version == each.version and parsed in each for each in self._networks)
