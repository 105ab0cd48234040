"""healthCheckNodePort: per Service a port that tells load balancers whether this node has endpoints (KEP-1669)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meshlib.agent.desired import HealthPort
from meshlib.agent.ops.pages import Page, PageServer, json_page
from meshlib.model.service import ServiceKey


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
    """The listeners. On one asyncio loop. ``healthy``: whether the agent is."""

    def __init__(
        self,
        hosts: tuple[str, ...],
        healthy: Callable[[], bool],
        failed: Callable[[HealthPort, OSError], None],
    ) -> None:
        self._hosts = hosts
        self._healthy = healthy
        self._failed = failed
        self._wanted: dict[ServiceKey, HealthPort] = {}
        self._open: dict[ServiceKey, tuple[int, list[PageServer]]] = {}

    @property
    def listening(self) -> Mapping[ServiceKey, int]:
        """The ports that are open."""
        return {key: port for key, (port, _) in self._open.items()}

    async def want(self, ports: Mapping[ServiceKey, HealthPort]) -> None:
        """Open, close and change; what cannot be opened is tried again at the next call, and the others are served."""
        self._wanted = dict(ports)
        for key, (number, _) in list(self._open.items()):
            wanted = ports.get(key)
            if wanted is None or wanted.port != number:
                await self._close(key)
        for key, port in ports.items():
            if key not in self._open:
                await self._start(key, port)

    async def close(self) -> None:
        """Close all."""
        for key in list(self._open):
            await self._close(key)

    async def _start(self, key: ServiceKey, port: HealthPort) -> None:
        servers: list[PageServer] = []
        try:
            for host in self._hosts:
                server = PageServer(lambda path: self._page(key))
                await server.start(host, port.port)
                servers.append(server)
        except OSError as error:
            for server in servers:
                await server.close()
            self._failed(port, error)
            return
        self._open[key] = (port.port, servers)

    async def _close(self, key: ServiceKey) -> None:
        _, servers = self._open.pop(key)
        for server in servers:
            await server.close()

    def _page(self, key: ServiceKey) -> Page | None:
        port = self._wanted.get(key)
        return health_page(port, self._healthy()) if port is not None else None
