"""healthCheckNodePort: per Service a port that tells load balancers whether this node has endpoints (KEP-1669)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meshlib.agent.desired import HealthPort
from meshlib.agent.ops.pages import Page, PageServer, json_page
from meshlib.model.service import ServiceKey

#: Every address of a family. (Python's listeners on ``::`` leave IPv4 to others.)
EVERYWHERE = {4: "0.0.0.0", 6: "::"}


def health_page(port: HealthPort, healthy: bool) -> Page:
    """200 while there are local ready endpoints and the agent is healthy; the count weighs the node (KEP-1669)."""
    return json_page(
        200 if port.local_endpoints and healthy else 503,
        {
            "service": {"namespace": port.service.namespace, "name": port.service.name},
            "localEndpoints": port.local_endpoints,
            "serviceProxyHealthy": healthy,
        },
        (("X-Load-Balancing-Endpoint-Weight", str(port.local_endpoints)),),
    )


class HealthPorts:
    """The listeners: one for each Service and host address. On one asyncio loop. ``healthy``: whether the agent is.

    ``failed`` hears of a listener that cannot be had (the port, the address, why), once until it works.
    """

    def __init__(
        self, healthy: Callable[[], bool], failed: Callable[[HealthPort, str, OSError], None]
    ) -> None:
        self._healthy = healthy
        self._failed = failed
        self._wanted: dict[ServiceKey, HealthPort] = {}
        self._open: dict[tuple[ServiceKey, int, str], PageServer] = {}
        self._told: set[tuple[ServiceKey, int, str]] = set()

    async def want(self, ports: Mapping[ServiceKey, HealthPort], hosts: tuple[str, ...]) -> None:
        """Open, close and change; what cannot be opened is tried again at the next call, and the others are served."""
        self._wanted = dict(ports)
        wanted = {(key, port.port, host) for key, port in ports.items() for host in hosts}
        self._told &= wanted
        for gone in self._open.keys() - wanted:
            await self._open.pop(gone).close()
        for listener in sorted(wanted - self._open.keys()):
            await self._start(*listener)

    async def close(self) -> None:
        """Close all."""
        while self._open:
            await self._open.popitem()[1].close()

    async def _start(self, key: ServiceKey, number: int, host: str) -> None:
        server = PageServer(lambda path: self._page(key))
        try:
            await server.start(host, number)
        except OSError as error:
            if (key, number, host) not in self._told:
                self._told.add((key, number, host))
                self._failed(self._wanted[key], host, error)
            return
        self._told.discard((key, number, host))
        self._open[key, number, host] = server

    def _page(self, key: ServiceKey) -> Page | None:
        port = self._wanted.get(key)
        return health_page(port, self._healthy()) if port is not None else None
