"""The resolver of the scheme ``k8s``: namespaces of one API server, with one set of credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meshlib.discovery.base import Publish, ResolverContext, Subscription
from meshlib.discovery.kubernetes.api import ApiServer
from meshlib.discovery.kubernetes.feed import SkipReport
from meshlib.discovery.kubernetes.namespace import NamespaceWatch, Watcher
from meshlib.discovery.kubernetes.search import search_credentials
from meshlib.discovery.kubernetes.transport import TransportFactory, open_transport
from meshlib.discovery.kubernetes.versions import Versions
from meshlib.errors import MeshError
from meshlib.model.target import Target
from meshlib.model.update import Failure


class _Waiting:
    """A subscription that may be older than the connection to the API server."""

    def __init__(self, resolver: KubernetesResolver, target: Target, publish: Publish) -> None:
        self.target = target
        self.publish = publish
        self.watcher: Watcher | None = None
        self._resolver = resolver

    def close(self) -> None:
        self._resolver.forget(self)
        if self.watcher is not None:
            self.watcher.close()

    def describe(self) -> Mapping[str, Any]:
        if self.watcher is not None:
            return self.watcher.describe()
        return {
            "source": "kubernetes",
            "synced": False,
            "stale": False,
            "last_contact_age": None,
            "problem": self._resolver.problem,
        }


class KubernetesResolver:
    """One per runtime. ``transport_factory`` makes the HTTP transport; tests replace it."""

    def __init__(
        self, context: ResolverContext, transport_factory: TransportFactory = open_transport
    ) -> None:
        self.problem = ""  #: why there are no credentials yet
        self.api: ApiServer | None = None  #: once credentials were found
        self._error: MeshError | None = None
        self._context = context
        self._transport_factory = transport_factory
        self._namespaces: dict[str, NamespaceWatch] = {}
        self._waiting: list[_Waiting] = []
        self._versions: Versions | None = None
        self._skips: SkipReport | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._stopping: set[asyncio.Task[Any]] = set()

    def watch(self, target: Target, publish: Publish) -> Subscription:
        subscription = _Waiting(self, target, publish)
        if self.api is not None:
            self._attach(subscription)
        else:
            self._waiting.append(subscription)
            if self._connecting is None:
                self._connecting = self._context.spawn(self._connect(), name="k8s-credentials")
            elif self.problem:
                self._context.spawn(self._tell_problem(subscription), name="k8s-no-credentials")
        return subscription

    async def close(self) -> None:
        """Ends all watches; nothing is published afterwards."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        namespaces, self._namespaces = list(self._namespaces.values()), {}
        self._waiting.clear()
        ending = [namespace.stop() for namespace in namespaces]
        if self._versions is not None:
            ending.append(self._versions.close())
        await asyncio.gather(*ending)
        if self._stopping:
            await asyncio.wait(self._stopping)
        if self.api is not None:
            await self.api.close()

    def forget(self, subscription: _Waiting) -> None:
        if subscription in self._waiting:
            self._waiting.remove(subscription)

    async def _tell_problem(self, subscription: _Waiting) -> None:
        if self._error is not None and subscription in self._waiting:
            subscription.publish(Failure(self._error, hopeless=True))

    def _no_credentials(self, error: MeshError) -> None:
        self._error, self.problem = error, str(error)
        for subscription in list(self._waiting):
            subscription.publish(Failure(error, hopeless=True))

    async def _connect(self) -> None:
        credentials = await search_credentials(self._context, self._no_credentials)
        self._error, self.problem = None, ""
        self.api = ApiServer(credentials, self._context, self._transport_factory)
        self._versions = Versions(self.api)
        self._skips = SkipReport(self.api)
        waiting, self._waiting = self._waiting, []
        for subscription in waiting:
            self._attach(subscription)

    def _attach(self, subscription: _Waiting) -> None:
        if self.api is None or self._versions is None or self._skips is None:
            raise RuntimeError("not connected")
        name = subscription.target.namespace or self.api.credentials.namespace or "default"
        namespace = self._namespaces.get(name)
        if namespace is None:
            namespace = NamespaceWatch(name, self.api, self._versions, self._skips, self._drop)
            self._namespaces[name] = namespace
        subscription.watcher = namespace.add(subscription.target, subscription.publish)

    def _drop(self, namespace: NamespaceWatch) -> None:
        if self._namespaces.get(namespace.namespace) is namespace:
            del self._namespaces[namespace.namespace]
            task = self._context.spawn(namespace.stop(), name=f"k8s {namespace.namespace} stop")
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)


class _Builder:
    schemes = ("k8s",)

    def build(self, context: ResolverContext) -> KubernetesResolver:
        return KubernetesResolver(context)


#: Found by ``discovery.builtin`` for the scheme ``k8s``.
BUILDER = _Builder()
