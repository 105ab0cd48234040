"""Everything that the node agent needs of a cluster: all Services, their slices, the own Node, told as changes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from meshlib.discovery.alarm import Alarm
from meshlib.discovery.base import ResolverContext
from meshlib.discovery.kubernetes.api import ApiServer
from meshlib.discovery.kubernetes.cluster_resources import SliceObject, all_services, all_slices, own_node
from meshlib.discovery.kubernetes.cluster_slices import ClusterSlices
from meshlib.discovery.kubernetes.faults import Fault, FaultKind
from meshlib.discovery.kubernetes.feed import Feed, SkipReport
from meshlib.discovery.kubernetes.namespace import COALESCE
from meshlib.discovery.kubernetes.reflector import Changed, Reflector
from meshlib.discovery.kubernetes.resources import Resource
from meshlib.discovery.kubernetes.search import search_credentials
from meshlib.discovery.kubernetes.service_cidrs import find_service_cidrs
from meshlib.discovery.kubernetes.transport import TransportFactory, open_transport
from meshlib.discovery.kubernetes.versions import SliceApi, Versions
from meshlib.errors import AccessDenied, DiscoveryError, MeshError
from meshlib.model.cluster import ABSENT, ClusterChange, Node, ServiceFacts, TellCluster
from meshlib.model.service import Service, ServiceKey

_DENIED = frozenset({FaultKind.FORBIDDEN, FaultKind.UNAUTHORIZED})
_FIX = "the agent's ClusterRole needs list and watch on services, endpointslices, nodes and servicecidrs"


class ClusterWatch:
    """The watches of one API server. Lives on the control loop; ``tell`` is called there.

    Nothing is told until Services and slices are both known whole (then everything, as one complete change); afterwards
    only what changed. A failing or empty-looking API server takes nothing away: the last good state stays for ever. The
    Node is waited for as well, unless it cannot be had: then it is known by its name alone. ServiceCIDRs are told when
    there are any.
    """

    def __init__(self, api: ApiServer, versions: Versions, node_name: str, tell: TellCluster) -> None:
        context = api.context
        self._api = api
        self._context = context
        self._versions = versions
        self._node_name = node_name
        self._tell = tell
        self._skips = SkipReport(api)
        self._slices = ClusterSlices()
        self._alarm = Alarm(context)
        self._began = math.floor(context.wall())  # the annotation counts whole seconds
        self._dirty: set[ServiceKey] = set()
        self._triggers: dict[ServiceKey, tuple[float, ...]] = {}
        self._node: Node | None = None  # as told last
        self._ranges: tuple[str, ...] = ()  # as told last
        self._told_lists = 0
        self._told = False
        self._task: asyncio.Task[Any] | None = None
        self._used: list[SliceApi] = []
        # Every item weighs one, so that a list that is suddenly empty is asked for once more.
        self._services_feed: Feed[Service] = self._feed(_one, self._find_services, self._services_changed)
        self._slices_feed: Feed[SliceObject] = self._feed(_endpoints, self._find_slices, self._slices_changed)
        self._node_feed: Feed[Node] | None = (
            self._feed(_nothing, self._find_node, self._node_changed) if node_name else None
        )

        self._ranges_feed: Feed[tuple[str, ...]] = self._feed(
            _nothing, self._find_ranges, self._ranges_changed
        )

    def _feed(self, weight: Any, find: Any, changed: Any) -> Feed[Any]:
        reflector: Reflector[Any] = Reflector(self._context.random, weight)
        return Feed(
            self._api, reflector, find, self._skips, changed, self._failed, self._alarm.call, self._error
        )

    def start(self) -> None:
        self._services_feed.start("all services")
        self._slices_feed.start("all slices")
        if self._node_feed is not None:
            self._node_feed.start("own node")
        self._ranges_feed.start("service ranges")
        self._task = self._context.spawn(self._run(), name="k8s cluster")

    async def stop(self) -> None:
        """Nothing is told afterwards; open connections are closed."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        feeds = [feed.cancel() for feed in (*self._feeds(), self._ranges_feed)]
        await asyncio.wait({task, *(each for each in feeds if each is not None)})

    @property
    def synced(self) -> bool:
        """Services and slices have been read whole at least once."""
        return self._services_feed.synced and self._slices_feed.synced

    @property
    def live(self) -> bool:
        """What is known is current, as far as the API server tells."""
        return self.synced and all(feed.live for feed in self._feeds())

    @property
    def lists(self) -> int:
        """How often everything has been read."""
        feeds = (self._services_feed, self._slices_feed)
        return min(feed.reflector.counters.complete for feed in feeds)

    def describe(self) -> Mapping[str, Any]:
        """For status pages. Ages are in seconds; None: never."""
        now = self._context.now()
        chosen = self._versions.chosen
        described = {
            "services_watch": self._services_feed.describe(),
            "slices_watch": self._slices_feed.describe(),
            "node_watch": self._node_feed.describe() if self._node_feed is not None else {},
            "ranges_watch": self._ranges_feed.describe(),
        }
        problems = [each["problem"] for each in described.values() if each.get("problem")]
        return {
            "source": f"kubernetes {self._api.server}",
            "credentials": self._api.credentials.description,
            "api_version": chosen.value if chosen is not None else "",
            "synced": self.synced,
            "stale": self._told and not self.live,
            "services": len(self._services_feed.items),
            "last_contact_age": None if self._api.contact_at is None else now - self._api.contact_at,
            "problem": "; ".join(dict.fromkeys(problems)),
            "skipped": self._skips.count,
            "complete_lists": self.lists,
            "api_requests": self._api.requests,
            **described,
        }

    # -- the watches -------------------------------------------------------------------------------------------------

    def _feeds(self) -> list[Feed[Any]]:
        """Without which the state is stale."""
        return [
            each for each in (self._services_feed, self._slices_feed, self._node_feed) if each is not None
        ]

    async def _find_services(self, failed: Resource[Service] | None) -> Resource[Service]:
        return all_services()

    async def _find_slices(self, failed: Resource[SliceObject] | None) -> Resource[SliceObject]:
        api = await self._versions.current(self._used[-1] if failed is not None and self._used else None)
        self._used = [api]
        return all_slices(api, self._context.address_policy, self._skips.skip)

    async def _find_node(self, failed: Resource[Node] | None) -> Resource[Node]:
        return own_node(self._node_name, self._skips.skip)

    async def _find_ranges(self, failed: Resource[tuple[str, ...]] | None) -> Resource[tuple[str, ...]]:
        return await find_service_cidrs(self._api, self._skips.skip, self._context.sleep)

    def _services_changed(self, change: Changed[Service]) -> None:
        keys = [ServiceKey(*key) for key in change.upserts]
        gone = [ServiceKey(*key) for key in change.removals]
        for key in gone:
            self._slices.forget(key)
        self._dirty.update(keys, gone)
        self._alarm.call()

    def _slices_changed(self, change: Changed[SliceObject]) -> None:
        self._dirty |= self._slices.apply(change, self._context.now())
        for found in change.upserts.values():
            # Older than ourselves: a restart would report the ages of all endpoints as its own slowness.
            if found.trigger is not None and found.trigger >= self._began:
                for service in {each.service for each in found.slices}:
                    self._triggers[service] = (*self._triggers.get(service, ()), found.trigger)
        self._alarm.call()

    def _node_changed(self, change: Changed[Node]) -> None:
        self._alarm.call()

    def _ranges_changed(self, change: Changed[tuple[str, ...]]) -> None:
        self._alarm.call()

    def _failed(self, fault: Fault) -> None:
        # What we have stays; without a Node we may go on now.
        self._alarm.call()

    def _error(self, fault: Fault) -> Exception:
        if fault.kind in _DENIED:
            return AccessDenied(fault.message, _FIX)
        return DiscoveryError(fault.message)

    # -- telling -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            at = self._slices.wake_at
            await self._alarm.wait(None if at == math.inf else max(0.0, at - self._context.now()))
            self._dirty |= self._slices.expire(self._context.now())
            change = self._change() if self._ready else None
            if change is not None:
                self._tell(change)
                # A burst of events costs the agent one compilation per 5 ms (decision D7).
                await self._context.sleep(COALESCE)

    @property
    def _ready(self) -> bool:
        node = self._node_feed
        return self.synced and (node is None or node.synced or node.fault is not None)

    def _change(self) -> ClusterChange | None:
        node, lists, first = self._current_node(), self.lists, not self._told
        if first:
            self._dirty = {service.key for service in self._services_feed.items.values()}
        dirty, self._dirty = self._dirty, set()
        services = {key: self._facts(key) for key in dirty}
        # Slices may come before their Service; there is nothing to tell of them.
        triggers = {key: times for key, times in self._triggers.items() if key in services}
        self._triggers = {}
        new_node = node if node != self._node else None
        ranges = tuple(sorted({each for one in self._ranges_feed.items.values() for each in one}))
        new_ranges = ranges if ranges != self._ranges else None
        if not (first or services or new_node or new_ranges is not None or lists != self._told_lists):
            return None
        self._node, self._ranges, self._told_lists, self._told = node, ranges, lists, True
        return ClusterChange(services, new_node, first, {} if first else triggers, lists, new_ranges)

    def _facts(self, key: ServiceKey) -> ServiceFacts:
        service = self._services_feed.items.get((key.namespace, key.name))
        return ABSENT if service is None else ServiceFacts(service, self._slices.slices_of(key))

    def _current_node(self) -> Node:
        feed = self._node_feed
        found = feed.items.get(("", self._node_name)) if feed is not None else None
        if found is not None:
            return found
        bare = Node(self._node_name)
        told = self._node or bare
        if feed is not None and feed.synced and told != bare:
            # Deleted while we run: it serves until we are stopped, and load balancers shall know.
            return replace(told, leaving=True)
        return told


class KubernetesCluster:
    """ClusterWatch with the search for credentials before it. ``settings`` of the context: as for the scheme k8s."""

    def __init__(
        self,
        context: ResolverContext,
        node_name: str,
        tell: TellCluster,
        transport_factory: TransportFactory = open_transport,
    ) -> None:
        self.problem = ""  #: why there are no credentials yet
        self.watch: ClusterWatch | None = None  #: once credentials were found
        self.api: ApiServer | None = None
        self._context = context
        self._node_name = node_name
        self._tell = tell
        self._transport_factory = transport_factory
        self._versions: Versions | None = None
        self._task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        """Returns at once. Control loop only."""
        self._task = self._context.spawn(self._connect(), name="k8s cluster credentials")

    async def close(self) -> None:
        """Ends everything; nothing is told afterwards."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.watch is not None:
            await self.watch.stop()
        if self._versions is not None:
            await self._versions.close()
        if self.api is not None:
            await self.api.close()

    @property
    def synced(self) -> bool:
        return self.watch is not None and self.watch.synced

    @property
    def live(self) -> bool:
        return self.watch is not None and self.watch.live

    @property
    def lists(self) -> int:
        return self.watch.lists if self.watch is not None else 0

    def describe(self) -> Mapping[str, Any]:
        if self.watch is not None:
            return self.watch.describe()
        return {"source": "kubernetes", "synced": False, "stale": False, "problem": self.problem}

    def _no_credentials(self, error: MeshError) -> None:
        self.problem = str(error)

    async def _connect(self) -> None:
        credentials = await search_credentials(self._context, self._no_credentials)
        self.problem = ""
        self.api = ApiServer(credentials, self._context, self._transport_factory)
        self._versions = Versions(self.api)
        self.watch = ClusterWatch(self.api, self._versions, self._node_name, self._tell)
        self.watch.start()


def _one(service: Service) -> int:
    return 1


def _endpoints(found: SliceObject) -> int:
    return sum(len(each.endpoints) for each in found.slices)


def _nothing(item: Any) -> int:
    return 0
