"""ManualResolver: a resolver whose Updates are published by hand, for tests of code that uses meshlib."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from meshlib.discovery.base import Publish, ResolverContext
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.target import Target
from meshlib.model.update import Snapshot, Update


class ManualResolver:
    """Resolver and its builder in one: ``Mesh(resolvers={"k8s": ManualResolver()})``.

    ``publish`` and ``endpoints`` may be called from any thread, before or after a target is watched; the last Update of
    a Service is given to late watchers at once.
    """

    def __init__(self, *schemes: str) -> None:
        self.schemes = schemes or ("k8s",)
        self._lock = threading.Lock()
        self._last: dict[str, Update] = {}
        self._watchers: dict[str, list[Publish]] = {}
        self._loop_call: Any = None
        self.watched: list[Target] = []
        self.closed = False

    def build(self, context: ResolverContext) -> ManualResolver:
        import asyncio

        self._loop_call = asyncio.get_running_loop().call_soon_threadsafe
        return self

    def watch(self, target: Target, publish: Publish) -> ManualSubscription:
        key = _key(target)
        with self._lock:
            self.watched.append(target)
            self._watchers.setdefault(key, []).append(publish)
            last = self._last.get(key)
        if last is not None:
            publish(last)
        return ManualSubscription(self, key, publish)

    async def close(self) -> None:
        self.closed = True

    def publish(self, service: str, update: Update) -> None:
        """Give every watcher of ``NAMESPACE/NAME`` an Update."""
        with self._lock:
            self._last[service] = update
            watchers = tuple(self._watchers.get(service, ()))
        for publish in watchers:
            self._loop_call(publish, update)

    def endpoints(self, service: str, addresses: Iterable[str], **fields: Any) -> None:
        """Publish a Service with ready endpoints, given as ``ip:port``; ``fields`` are those of ``Service``."""
        self.publish(service, snapshot(service, addresses, **fields))

    def settle(self, timeout: float = 10.0) -> None:
        """Wait (seconds) until everything that was published has been taken in. Not on the control thread."""
        call = self._loop_call
        if call is None:
            return  # nobody watches yet
        taken = threading.Event()
        try:
            call(taken.set)
        except RuntimeError:
            return  # that loop has ended, and with it those who watched
        if not taken.wait(timeout):
            raise TimeoutError(f"the control thread took nothing in for {timeout:g} s")

    def forget(self, key: str, publish: Publish) -> None:
        with self._lock:
            self._watchers[key].remove(publish)


class ManualSubscription:
    """What ``watch`` gives back."""

    def __init__(self, resolver: ManualResolver, key: str, publish: Publish) -> None:
        self._resolver, self._key, self._publish = resolver, key, publish

    def close(self) -> None:
        self._resolver.forget(self._key, self._publish)

    def describe(self) -> Mapping[str, Any]:
        return {"source": "manual", "key": self._key}


def snapshot(
    service: str, addresses: Iterable[str], *, port: int = 80, port_name: str = "", **fields: Any
) -> Snapshot:
    """A Snapshot with one slice per port number; ``service`` is ``NAMESPACE/NAME``."""
    namespace, _, name = service.rpartition("/")
    key = ServiceKey(namespace, name)
    fields.setdefault("type", ServiceType.CLUSTER_IP)
    by_port: dict[tuple[int, int], list[str]] = {}
    for text in addresses:
        address, _, number = text.rpartition(":")
        family = 6 if ":" in address else 4
        by_port.setdefault((family, int(number)), []).append(address.strip("[]"))
    slices = tuple(
        EndpointSlice(
            namespace=namespace,
            name=f"{name}-{family}-{number}",
            service=key,
            family=family,
            ports=(SlicePort(port_name, number),),
            endpoints=tuple(SliceEndpoint(address=address, uid=f"uid-{address}") for address in members),
        )
        for (family, number), members in sorted(by_port.items())
    )
    return Snapshot(
        Service(key=key, ports=(ServicePort(port_name, port),), **fields), slices, source="manual"
    )


def _key(target: Target) -> str:
    return f"{target.namespace}/{target.name}" if target.namespace else target.name
