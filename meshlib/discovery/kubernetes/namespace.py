"""All watched Services of one namespace: one watch for their slices, one for the Services, and what is published."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

from meshlib.discovery.alarm import Alarm
from meshlib.discovery.base import Publish
from meshlib.discovery.kubernetes import resources
from meshlib.discovery.kubernetes.api import ApiServer
from meshlib.discovery.kubernetes.faults import Fault, FaultKind
from meshlib.discovery.kubernetes.feed import Feed, SkipReport
from meshlib.discovery.kubernetes.holding import Holding
from meshlib.discovery.kubernetes.rbac import ANONYMOUS, ENDPOINTS, SERVICES, SLICES, Subject, role_yaml
from meshlib.discovery.kubernetes.reflector import Changed, Key, Reflector
from meshlib.discovery.kubernetes.resources import Resource, Slices
from meshlib.discovery.kubernetes.versions import SliceApi, Versions
from meshlib.errors import AccessDenied, DiscoveryError
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot, Update

#: Seconds between two publications (decision D7): a burst of events costs one new picker per 5 ms, and nobody can tell.
COALESCE = 0.005

#: After these, waiting will not help soon.
_HOPELESS = frozenset({FaultKind.FORBIDDEN, FaultKind.UNAUTHORIZED})


class Watcher:
    """One subscription: a target, and where its updates go. Control loop only."""

    def __init__(self, namespace: NamespaceWatch, target: Target, publish: Publish) -> None:
        self.target = target
        self.last: Update | None = None
        self.facts: Update | None = None  #: the last that was no Failure
        self.published_at: float | None = None
        self._namespace = namespace
        self._publish = publish

    def tell(self, update: Update, now: float) -> None:
        if update == self.last:
            return
        self.last = update
        if not isinstance(update, Failure):
            self.facts = update
            self.published_at = now
        self._publish(update)

    def close(self) -> None:
        self._namespace.remove(self)

    def describe(self) -> Mapping[str, Any]:
        return self._namespace.describe(self)


class _ServiceState:
    """What is known of the slices of one Service. ``covered``: a list that selects this Service is complete."""

    def __init__(self) -> None:
        self.holding = Holding()
        self.covered = False
        self.watchers: list[Watcher] = []


class NamespaceWatch:
    """Lives while a target of the namespace is watched. ``on_empty`` is called when the last one has gone."""

    def __init__(
        self,
        namespace: str,
        api: ApiServer,
        versions: Versions,
        skips: SkipReport,
        on_empty: Callable[[NamespaceWatch], None],
    ) -> None:
        self.namespace = namespace
        self._api = api
        self._context = api.context
        self._versions = versions
        self._skips = skips
        self._on_empty = on_empty
        self._states: dict[str, _ServiceState] = {}
        self._objects: dict[Key, Slices] = {}
        self._dirty: set[str] = set()
        self._alarm = Alarm(self._context)
        self._services: Feed[Service] = Feed(
            api,
            Reflector(self._context.random),
            self._find_services,
            skips,
            self._services_changed,
            self._failed,
            self._recovered,
            self._error,
        )
        self._slices: Feed[Slices] | None = None
        self._next: Feed[Slices] | None = None
        self._selected: frozenset[str] = frozenset()  # what the newest slices feed selects
        self._covered: frozenset[str] = frozenset()  # what the one in force selects
        self._publisher: asyncio.Task[Any] | None = None
        self._stopping: list[asyncio.Task[Any]] = []

    # -- subscriptions -----------------------------------------------------------------------------------------------

    def add(self, target: Target, publish: Publish) -> Watcher:
        watcher = Watcher(self, target, publish)
        state = self._states.get(target.name)
        if state is None:
            state = self._states[target.name] = self._known(target.name)
        state.watchers.append(watcher)
        if self._publisher is None:
            self._services.start(f"{self.namespace} services")
            self._publisher = self._context.spawn(
                self._publish_loop(), name=f"k8s {self.namespace} publisher"
            )
            self._api.listeners.add(self._server_failed)
        self._dirty.add(target.name)
        self._alarm.call()
        return watcher

    def _known(self, name: str) -> _ServiceState:
        """The state of a Service that nobody watched a moment ago, though its slices may still be selected."""
        state = _ServiceState()
        if name in self._covered:
            of_service = {
                each.name: each
                for held in self._objects.values()
                for each in held
                if each.service.name == name
            }
            state.holding.update(of_service, self._context.now())
            state.covered = True
        return state

    def remove(self, watcher: Watcher) -> None:
        state = self._states.get(watcher.target.name)
        if state is None or watcher not in state.watchers:
            return
        state.watchers.remove(watcher)
        if not state.watchers:
            del self._states[watcher.target.name]
        if not self._states:
            self._on_empty(self)

    async def stop(self) -> None:
        """Ends all that runs here, at the same time: a request that is cancelled may take a moment to close its
        connection, and whoever waits for its outcome must not send his own meanwhile."""
        self._api.listeners.discard(self._server_failed)
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.wait({self._publisher, *self._stop_feeds()})

    def _stop_feeds(self) -> set[asyncio.Task[Any]]:
        feeds = [feed.cancel() for feed in (self._services, self._slices, self._next) if feed is not None]
        return {task for task in (*feeds, *self._stopping) if task is not None}

    # -- the watches --------------------------------------------------------------------------------------------------

    async def _find_services(self, failed: Resource[Service] | None) -> Resource[Service]:
        return resources.services(self.namespace)

    def _select(self) -> None:
        """Open a watch for the services in use if the newest one does not select them all (never a gap: the old watch
        stays until the new one has its list)."""
        if self._next is not None or not self._states or self._selected >= self._states.keys():
            return
        names = frozenset(self._states)
        used: list[SliceApi] = []

        async def find(failed: Resource[Slices] | None) -> Resource[Slices]:
            api = await self._versions.current(used[-1] if failed is not None and used else None)
            used.append(api)
            return resources.slices(
                self.namespace, api, names, self._context.address_policy, self._skips.skip
            )

        feed: Feed[Slices]

        def changed(change: Changed[Slices]) -> None:
            if change.first:
                self._take_over(feed, names)
            else:
                self._apply({**change.upserts, **dict.fromkeys(change.removals, ())})

        feed = Feed(
            self._api,
            Reflector(self._context.random, _weight),
            find,
            self._skips,
            changed,
            self._failed,
            self._recovered,
            self._error,
        )
        self._next, self._selected = feed, names
        feed.start(f"{self.namespace} slices")

    def _take_over(self, feed: Feed[Slices], names: frozenset[str]) -> None:
        old, self._slices, self._next = self._slices, feed, None
        self._covered = names
        if old is not None:
            self._stopping = [task for task in self._stopping if not task.done()]
            self._stopping.append(self._context.spawn(old.stop(), name=f"k8s {self.namespace} old slices"))
        changes: dict[Key, Slices] = dict.fromkeys(self._objects.keys() - feed.items.keys(), ())
        changes.update(feed.items)
        for name in names:
            state = self._states.get(name)
            if state is not None:
                state.covered = True
        self._apply(changes)
        self._dirty.update(names)
        self._alarm.call()

    def _apply(self, changes: Mapping[Key, Slices]) -> None:
        """Objects changed (an empty tuple: deleted, or without a slice)."""
        by_service: dict[str, dict[str, EndpointSlice | None]] = {}
        for key, new in changes.items():
            old = self._objects.pop(key, ())
            for each in old:
                by_service.setdefault(each.service.name, {}).setdefault(each.name, None)
            for each in new:
                by_service.setdefault(each.service.name, {})[each.name] = each
            if new:
                self._objects[key] = new
        now = self._context.now()
        for name, changed in by_service.items():
            state = self._states.get(name)
            if state is not None and state.holding.update(changed, now):
                self._dirty.add(name)
        self._alarm.call()

    def _services_changed(self, change: Changed[Service]) -> None:
        self._dirty.update(self._states if change.first else ())
        self._dirty.update(name for _, name in (*change.upserts, *change.removals) if name in self._states)
        self._alarm.call()

    def _failed(self, fault: Fault) -> None:
        """One of our own requests failed, for the first time: tell everybody; what they have stays in force."""
        now = self._context.now()
        for name, state in list(self._states.items()):
            if fault.kind is FaultKind.FORBIDDEN and self._update(name, state) is not None:
                self._dirty.add(
                    name
                )  # known all the same: from its slices, or from before permission was taken away
                continue
            for watcher in list(state.watchers):
                watcher.tell(self._failure(fault), now)
        self._alarm.call()

    def _recovered(self) -> None:
        """What we have is current again: whoever was told of the failure gets it once more."""
        self._dirty.update(
            name
            for name, state in self._states.items()
            if any(isinstance(each.last, Failure) for each in state.watchers)
        )
        self._alarm.call()

    def _server_failed(self, fault: Fault) -> None:
        """Somebody's request failed, and ours wait at the gate: nobody need wait for them to hear of it."""
        self._dirty.update(self._states)
        self._alarm.call()

    def _fault(self) -> Fault | None:
        for feed in (self._services, self._slices, self._next):
            if feed is not None and feed.fault is not None:
                return feed.fault
        return self._api.fault

    def _failing(self, facts: Snapshot | DoesNotExist) -> Fault | None:
        """Why ``facts`` may be out of date. Missing rights are no reason: there is nothing more to be known."""
        has_slices = isinstance(facts, Snapshot) and facts.service.type is not ServiceType.EXTERNAL_NAME
        for feed in (self._services, self._slices, self._next) if has_slices else (self._services,):
            if feed is not None and not feed.live:
                fault = (
                    feed.fault or self._api.fault
                )  # the server's: ours waits at the gate, behind another's probe
                if fault is not None and fault.kind is not FaultKind.FORBIDDEN:
                    return fault
        return None

    def _failure(self, fault: Fault) -> Failure:
        return Failure(self._error(fault), hopeless=fault.kind in _HOPELESS or fault.refused)

    def _error(self, fault: Fault) -> Exception:
        if fault.kind is FaultKind.FORBIDDEN:
            wanted = ENDPOINTS if self._versions.chosen is SliceApi.ENDPOINTS else SLICES
            subject = Subject.from_forbidden_message(fault.message)
            if subject == ANONYMOUS:  # a Role for everybody in the world is no fix
                source = self._api.credentials.description
                return AccessDenied(
                    fault.message, f"the server does not know who we are, check the credentials: {source}"
                )
            fix = role_yaml(self.namespace, subject, (wanted, SERVICES))
            return AccessDenied(f"{fault.message}\nApply this, it is picked up without a restart:", fix)
        if fault.kind is FaultKind.UNAUTHORIZED:
            return AccessDenied(fault.message, f"check the credentials: {self._api.credentials.description}")
        return DiscoveryError(fault.message)

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def _publish_loop(self) -> None:
        while True:
            at = min((state.holding.wake_at for state in self._states.values()), default=math.inf)
            await self._alarm.wait(None if at == math.inf else max(0.0, at - self._context.now()))
            self._select()
            now = self._context.now()
            for name, state in self._states.items():
                if state.holding.expire(now):
                    self._dirty.add(name)
            dirty, self._dirty = self._dirty, set()
            for name in dirty:
                found = self._states.get(name)
                if found is not None:
                    self._publish(name, found, now)
            if dirty:
                await self._context.sleep(COALESCE)

    def _publish(self, name: str, state: _ServiceState, now: float) -> None:
        update = self._update(name, state)
        if update is not None:
            failing = self._failing(update)
            for watcher in list(state.watchers):
                shown = self._for_target(update, watcher.target)
                # While something is wrong, the same facts again would say that it is over.
                if failing is None or shown != watcher.facts:
                    watcher.tell(shown, now)
                if failing is not None and not isinstance(watcher.last, Failure):
                    watcher.tell(self._failure(failing), now)
            return
        fault = self._fault()
        if fault is not None:
            for watcher in [each for each in state.watchers if each.last is None]:
                watcher.tell(self._failure(fault), now)

    def _update(self, name: str, state: _ServiceState) -> Snapshot | DoesNotExist | None:
        """What is known of a Service; None: not enough yet."""
        key = ServiceKey(self.namespace, name)
        if self._services.synced:
            service = self._services.items.get((self.namespace, name))
            if service is None:
                return DoesNotExist(f"there is no Service {key} ({self._services.source})")
            if service.type is ServiceType.EXTERNAL_NAME:
                return self._snapshot(service, ())
        elif self._services.fault is not None and self._services.fault.kind is FaultKind.FORBIDDEN:
            if not state.covered:
                return None
            service = _service_from_slices(key, state.holding.slices())
        else:
            return None
        return self._snapshot(service, state.holding.slices()) if state.covered else None

    def _snapshot(self, service: Service, slices: tuple[EndpointSlice, ...]) -> Snapshot:
        version = self._slices.reflector.resource_version if self._slices is not None else ""
        chosen = self._versions.chosen
        source = f"kubernetes {self._api.server} ({chosen.value if chosen is not None else 'v1'})"
        return Snapshot(service, slices, source, f"{service.resource_version}/{version}", self._skips.count)

    def _for_target(self, update: Update, target: Target) -> Update:
        """Without permission to read Services, a port can be found by its name only."""
        if self._services.synced or not isinstance(update, Snapshot) or isinstance(target.port, str):
            return update
        fault = self._services.fault
        if fault is None:
            return update
        wanted = "no port" if target.port is None else f"port {target.port}"
        message = (
            f"{target} names {wanted}, and a Service's port number can be translated only by reading the Service: "
            f"{fault.message}\nName the port instead ({', '.join(p.name for p in update.service.ports if p.name)}), "
            "or apply this, it is picked up without a restart:"
        )
        subject = Subject.from_forbidden_message(fault.message)
        return Failure(AccessDenied(message, role_yaml(self.namespace, subject)), hopeless=True)

    def describe(self, watcher: Watcher) -> dict[str, Any]:
        """For ``meshlib resolve`` and status pages. Ages are in seconds; None: never."""
        api, now = self._api, self._context.now()
        state = self._states.get(watcher.target.name)
        slices = self._slices if self._slices is not None else self._next
        described = slices.describe() if slices is not None else {}
        services = self._services.describe()
        problems = [
            p for p in (services["problem"], described.get("problem", ""), api.credentials.problem) if p
        ]
        feeds = [feed for feed in (self._services, slices) if feed is not None]
        return {
            "source": f"kubernetes {api.server}",
            "credentials": api.credentials.description,
            "api_version": self._versions.chosen.value if self._versions.chosen is not None else "",
            "resource_version": described.get("resource_version", ""),
            "synced": state is not None and state.covered and self._services.synced,
            "last_contact_age": None if api.contact_at is None else now - api.contact_at,
            "last_event_age": described.get("last_event_age"),
            "last_publish_age": None if watcher.published_at is None else now - watcher.published_at,
            "stale": watcher.published_at is not None and not all(feed.live for feed in feeds),
            "problem": "; ".join(dict.fromkeys(problems)),
            "skipped": self._skips.count,
            "relists": services["relists"] + described.get("relists", 0),
            "watch_restarts": services["watch_restarts"] + described.get("watch_restarts", 0),
            "api_requests": api.requests,
            "services_watch": services,
            "slices_watch": described,
        }


def _weight(slices: Slices) -> int:
    return sum(len(each.endpoints) for each in slices)


def _service_from_slices(key: ServiceKey, slices: tuple[EndpointSlice, ...]) -> Service:
    """A Service as far as its slices tell: the names of its ports. The numbers are those of the pods."""
    ports: dict[tuple[str, str], ServicePort] = {}
    for each in slices:
        for port in each.ports:
            place = (port.name, port.protocol)
            ports.setdefault(
                place, ServicePort(port.name, port.port or 0, port.protocol, app_protocol=port.app_protocol)
            )
    return Service(key, ports=tuple(ports[place] for place in sorted(ports)))
