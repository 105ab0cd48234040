"""The reflector: keeps a copy of one list of the API server. Sans-IO: fed with what happened, answers with commands.

The rules are client-go's (tools/cache/reflector.go), plus what it lacks: protection from hot loops on every kind
of failure, an inactivity limit, a safety relist that notices an etcd restored from a backup, and the confirmation of
a list that is suddenly empty. The last good copy is kept for ever; only the server's word removes an item.

Each method returns commands. The last one of ``List``, ``Watch`` and ``Sleep`` is what the driver does next, and
replaces what it was doing; the others tell what changed. Time (``now``, monotonic seconds) is an argument, randomness
is injected. Not thread-safe: one owner.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from meshlib.discovery.kubernetes.backoff import Backoff
from meshlib.discovery.kubernetes.faults import Fault, FaultKind

T = TypeVar("T")
#: Namespace and name of an object.
Key = tuple[str, str]

#: Watches end after a random time in [300, 600) s (client-go), so that the re-watches of a fleet spread out.
WATCH_SECONDS = 300.0
#: A watch that is still silent this long after its end, seconds, is dead (client-go leaves that to HTTP/2 pings).
WATCH_GRACE = 30.0
#: Silence, seconds, after which a watch is dead once its server has proved that it sends bookmarks: they come about
#: every 60 s, and the server keeps at least 75 s of history, so that the resumed watch rarely meets a 410.
INACTIVITY = 80.0
#: A watch that lived this long, seconds, or delivered an event, works (client-go: a shorter one is an error).
SHORT_WATCH = 1.0
#: Share of the watch's time after which its end is the expected one; servers may round.
EXPECTED_END = 0.9
#: Mean seconds between two safety relists, each drawn from ±50 %. After an etcd restore a watch is silent and no error
#: tells it (kubernetes issue 107457); one list per 15 min costs a server nothing and bounds the blindness to 22.5 min.
SAFETY_RELIST = 900.0
#: A relist that suddenly is empty though at least this many endpoints were known is confirmed first.
EMPTY_THRESHOLD = 3
#: Longest time, seconds, the confirmation may hold it back.
EMPTY_HOLD = 10.0
#: Items per page of a consistent list (client-go's page size); lists from the watch cache are never paged.
PAGE_SIZE = 500
#: Pages after which a list that never ends is given up: 1,000 pages hold half a million slices.
MAX_PAGES = 1000
#: Seconds for a whole list, body included.
LIST_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class List:
    """List now. ``resource_version`` "" asks for a consistent read, "0" for anything the server has."""

    resource_version: str
    continue_token: str = ""
    limit: int = 0
    timeout: float = LIST_TIMEOUT


@dataclass(frozen=True, slots=True)
class Watch:
    """Open a watch with bookmarks from this version; report ``watch_opened``, ``received`` and ``watch_ended``."""

    resource_version: str
    timeout_seconds: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait, then call ``slept``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Changed(Generic[T]):
    """The copy changed. ``upserts`` and ``removals`` are the difference; ``first``: nothing was known before."""

    upserts: Mapping[Key, T]
    removals: tuple[Key, ...] = ()
    first: bool = False


@dataclass(frozen=True, slots=True)
class Failing:
    """A request failed; the copy stays. ``retry_in`` is our own delay, the shared gate may add to it."""

    fault: Fault
    retry_in: float


@dataclass(frozen=True, slots=True)
class Restarted:
    """A watch is opened again, or (``relist``) the list is repeated. ``expected``: nothing is wrong with the server."""

    relist: bool
    reason: str
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Proven:
    """The watch that was opened last works: it delivered, or lived for a second."""


@dataclass(frozen=True, slots=True)
class Rediscover:
    """404: ask the server again which versions it serves, once, before the next request."""


Command = List | Watch | Sleep | Changed[T] | Failing | Restarted | Proven | Rediscover


@dataclass(frozen=True, slots=True)
class ListPage(Generic[T]):
    """One page of a list. An item of None was unreadable: what is known under its key stays."""

    resource_version: str
    items: Mapping[Key, T | None]
    continue_token: str = ""


class EventKind(enum.Enum):
    """Types of watch events that carry an object; ERROR goes to ``watch_ended``, unknown ones to ``skipped``."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class WatchEvent(Generic[T]):
    """One event. ``item`` None: a bookmark, or an object that could not be read (its known state stays)."""

    kind: EventKind
    resource_version: str
    key: Key = ("", "")
    item: T | None = None


class _Phase(enum.Enum):
    NEW = "new"
    LISTING = "listing"
    OPENING = "opening a watch"
    WATCHING = "watching"
    SLEEPING = "sleeping"


class ReflectorProtocolError(RuntimeError):
    """The driver reported something that cannot happen in this phase: a bug in the driver."""


def version_is_older(candidate: str, than: str) -> bool:
    """True if both are plain numbers and the first is lower. Versions are opaque: a tolerated heuristic only."""
    if not (candidate.isascii() and candidate.isdigit() and than.isascii() and than.isdigit()):
        return False
    if len(candidate) > 20 or len(than) > 20:  # no uint64 is longer; do not spend time on a tenant's joke
        return False
    return int(candidate) < int(than)


@dataclass(slots=True)
class Counters:
    """Counts since the start, for people and metrics."""

    lists: int = 0
    complete: int = 0  #: lists that came to their end and count
    relists: int = 0
    watches: int = 0
    watch_restarts: int = 0
    events: int = 0
    bookmarks: int = 0
    expired: int = 0
    rewinds: int = 0
    skipped: int = 0


@dataclass(slots=True)
class _WatchState:
    timeout: float
    started: float = math.inf
    heard: float = math.inf
    events: int = 0
    proven: bool = False


@dataclass(slots=True)
class _Listing(Generic[T]):
    version: str
    pages: int = 0
    token: str = ""
    items: dict[Key, T | None] = field(default_factory=dict)


class Reflector(Generic[T]):
    """``weight`` counts what an item stands for (endpoints); a list type that may vanish at once gives 0."""

    def __init__(
        self,
        random: Callable[[], float],
        weight: Callable[[T], int] = lambda item: 0,
        safety_relist: float = SAFETY_RELIST,
    ) -> None:
        self.items: dict[Key, T] = {}  #: the copy; read only for others
        self.resource_version = ""
        self.synced = False  #: a first list is complete
        self.failing: Fault | None = None  #: the latest trouble; None once a watch works again
        self.bookmarks_seen = False
        self.counters = Counters()
        self._random = random
        self._weight = weight
        self._safety_relist = safety_relist
        self._backoff = Backoff()
        # Apart from the other, because a 410 is the usual end of an outage, and no reason to wait any longer.
        self._expired = Backoff()
        self._phase = _Phase.NEW
        self._listing: _Listing[T] = _Listing("")
        self._watch = _WatchState(0.0)
        self._after_sleep: str | None = None  # version to list from after the sleep; None: watch
        self._safety_at = math.inf
        self._restarted_pages = False  # continue token expired: one restart at once, then back off
        self._empty: tuple[float, str] | None = (
            None  # since when, and version, of an empty list to be confirmed
        )

    # -- what the driver reports ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Command[T]]:
        """The first command. ``now`` is the clock of all later calls."""
        self._expect(_Phase.NEW)
        return [self._list("0")]

    def listed(self, page: ListPage[T], now: float) -> list[Command[T]]:
        """A page of the list came."""
        self._expect(_Phase.LISTING)
        listing = self._listing
        listing.items.update(page.items)
        listing.pages += 1
        if page.continue_token:
            if page.continue_token == listing.token or listing.pages >= MAX_PAGES:
                fault = Fault(FaultKind.BAD_DATA, f"the list does not end after {listing.pages} pages")
                return self.list_failed(fault, now)
            listing.token = page.continue_token
            self.counters.lists += 1
            return [List("", page.continue_token, PAGE_SIZE)]
        version = page.resource_version
        if not version:
            return self.list_failed(Fault(FaultKind.BAD_DATA, "the list has no resourceVersion"), now)
        consistent = listing.version == ""
        older = self.synced and version_is_older(version, self.resource_version)
        if older and not consistent:
            # Either a lagging server, which must not take us back, or a restored etcd: only a consistent read can tell.
            return [self._list("")]
        if older:
            self.counters.rewinds += 1
        elif not listing.items and not consistent and self._total() >= EMPTY_THRESHOLD:
            self._empty = (now, version)
            return [Restarted(True, "confirming an empty list"), self._list("")]
        return self._adopt(version, listing.items, now)

    def list_failed(self, fault: Fault, now: float) -> list[Command[T]]:
        """The list, or a page of it, failed."""
        self._expect(_Phase.LISTING)
        listing = self._listing
        if fault.kind is FaultKind.EXPIRED:
            self.counters.expired += 1
            if listing.token and not self._restarted_pages:
                self._restarted_pages = True
                return [Restarted(True, "the continue token expired"), self._list(listing.version)]
            if not listing.token and listing.version:
                return [Restarted(True, "the version to list from expired"), self._list("")]
        if fault.kind is FaultKind.FUTURE_VERSION and listing.version:
            return [Restarted(True, "the server is behind the version we know"), self._list("")]
        return self._back_off(fault, now, listing.version)

    def watch_opened(self, now: float) -> None:
        """The watch's headers came with 200."""
        self._expect(_Phase.OPENING)
        self._phase = _Phase.WATCHING
        self._watch.started = self._watch.heard = now

    def received(self, event: WatchEvent[T], now: float) -> list[Command[T]]:
        """One watch event. Commands are at most a change and ``Proven``: the watch goes on."""
        self._expect(_Phase.WATCHING)
        self.heard(now)
        self._watch.events += 1
        self.counters.events += 1
        if event.resource_version:
            # Always the last one of the stream, even if lower: after a replay was cut short, only what this stream
            # has told since counts, and resuming from a higher version would lose the rest of the replay.
            self.resource_version = event.resource_version
        commands = self._prove()
        if event.kind is EventKind.BOOKMARK:
            self.bookmarks_seen = True
            self.counters.bookmarks += 1
        elif event.kind is EventKind.DELETED:
            if self.items.pop(event.key, None) is not None:
                commands.append(Changed({}, (event.key,)))
        elif event.item is not None and self.items.get(event.key) != event.item:
            self.items[event.key] = event.item
            commands.append(Changed({event.key: event.item}))
        return commands

    def skipped(self, now: float) -> list[Command[T]]:
        """A line was complete JSON, but no event we know: counted, the watch lives."""
        self._expect(_Phase.WATCHING)
        self.heard(now)
        self._watch.events += 1
        self.counters.skipped += 1
        return self._prove()

    def heard(self, now: float) -> None:
        """Bytes came on the watch, whatever they are."""
        self._watch.heard = now

    def watch_ended(self, now: float, fault: Fault | None = None) -> list[Command[T]]:
        """The watch could not be opened, broke, gave an ERROR event (``fault``), or the server ended it (None)."""
        self._expect(_Phase.OPENING, _Phase.WATCHING)
        watch, opened = self._watch, self._phase is _Phase.WATCHING
        if fault is None:
            lived = now - watch.started if opened else 0.0
            if lived >= watch.timeout * EXPECTED_END:
                self.counters.watch_restarts += 1
                return [
                    Restarted(False, "the watch's time was over", expected=True),
                    self._sleep(self._random(), None),
                ]
            if lived < SHORT_WATCH and watch.events == 0:
                fault = Fault(FaultKind.SHORT_WATCH, "the server closed the watch at once, without an event")
            else:
                fault = Fault(FaultKind.UNREACHABLE, "the server closed the watch before its time")
        kind = fault.kind
        if kind in (FaultKind.EXPIRED, FaultKind.FUTURE_VERSION):
            self.counters.expired += 1
            # A second time soon after: whatever served the last list does not help, so read consistently.
            version = self.resource_version if self._expired.quiet(now) else ""
            return self._retry_soon(fault, now, version, 0.0, self._expired)
        if kind is FaultKind.BAD_DATA:
            return self._retry_soon(fault, now, self.resource_version, 0.0)
        if kind in (FaultKind.REJECTED, FaultKind.NOT_SERVED):
            return self._back_off(fault, now, self.resource_version)
        if kind is FaultKind.UNREACHABLE and opened:
            return self._retry_soon(fault, now, None, self._random())
        return self._back_off(fault, now, None)

    def slept(self, now: float) -> list[Command[T]]:
        """The time of ``Sleep`` is over."""
        self._expect(_Phase.SLEEPING)
        if self._empty is not None and now >= self._empty[0] + EMPTY_HOLD:
            return self._adopt(self._empty[1], {}, now)
        if self._after_sleep is None:
            return [self._open()]
        return [self._list(self._after_sleep)]

    @property
    def watching(self) -> bool:
        """A watch is open."""
        return self._phase is _Phase.WATCHING

    @property
    def wake_at(self) -> float:
        """Until when, at most, the driver may wait for bytes of the open watch before it calls ``tick``."""
        watch = self._watch
        if self._phase is not _Phase.WATCHING:
            return math.inf
        at = min(watch.started + watch.timeout + WATCH_GRACE, self._safety_at)
        if self.bookmarks_seen:
            at = min(at, watch.heard + INACTIVITY)
        return at if watch.proven else min(at, watch.started + SHORT_WATCH)

    def tick(self, now: float) -> list[Command[T]]:
        """Time passed while watching. No ``List``, ``Watch`` or ``Sleep`` among the commands: the watch goes on."""
        if self._phase is not _Phase.WATCHING:
            return []
        watch = self._watch
        if self.bookmarks_seen and now >= watch.heard + INACTIVITY:
            silent = f"no byte for {now - watch.heard:.0f} s though the server sends bookmarks"
            return self.watch_ended(now, Fault(FaultKind.UNREACHABLE, silent))
        if now >= watch.started + watch.timeout + WATCH_GRACE:
            return self.watch_ended(now, Fault(FaultKind.UNREACHABLE, "the watch outlived its time"))
        commands = self._prove() if now >= watch.started + SHORT_WATCH else []
        if now >= self._safety_at:
            commands += [Restarted(True, "safety relist", expected=True), self._list("0")]
        return commands

    # -- transitions ---------------------------------------------------------------------------------------------

    def _expect(self, *phases: _Phase) -> None:
        if self._phase not in phases:
            raise ReflectorProtocolError(f"not possible while {self._phase.value}")

    def _total(self) -> int:
        return sum(map(self._weight, self.items.values()))

    def _list(self, version: str) -> List:
        self._phase = _Phase.LISTING
        self._listing = _Listing(version)
        self.counters.lists += 1
        if self.synced:
            self.counters.relists += 1
        # A limit on a list "not older than" would be answered from etcd instead of the watch cache.
        timeout = EMPTY_HOLD if self._empty is not None else LIST_TIMEOUT
        return List(version, "", PAGE_SIZE if version == "" else 0, timeout)

    def _open(self) -> Watch:
        self._phase = _Phase.OPENING
        timeout = int(WATCH_SECONDS * (1.0 + self._random()))
        self._watch = _WatchState(float(timeout))
        self.counters.watches += 1
        return Watch(self.resource_version, timeout)

    def _sleep(self, seconds: float, then_list: str | None) -> Sleep:
        self._phase = _Phase.SLEEPING
        self._after_sleep = then_list
        return Sleep(seconds)

    def _prove(self) -> list[Command[T]]:
        if self._watch.proven:
            return []
        self._watch.proven = True
        self.failing = None
        return [Proven()]

    def _adopt(self, version: str, listed: Mapping[Key, T | None], now: float) -> list[Command[T]]:
        old, new = self.items, {}
        for key, item in listed.items():
            kept = old.get(key) if item is None else item
            if kept is not None:
                new[key] = kept
        upserts = {key: item for key, item in new.items() if old.get(key) != item}
        removals = tuple(key for key in old if key not in new)
        first = not self.synced
        self.items, self.resource_version, self.synced = new, version, True
        self._empty, self._restarted_pages = None, False
        self.counters.complete += 1
        self._safety_at = now + self._safety_relist * (0.5 + self._random())
        commands: list[Command[T]] = []
        if first or upserts or removals:
            commands.append(Changed(upserts, removals, first))
        commands.append(self._open())
        return commands

    def _retry_soon(
        self, fault: Fault, now: float, then_list: str | None, delay: float, backoff: Backoff | None = None
    ) -> list[Command[T]]:
        """The first such trouble in two minutes is retried after ``delay``; later ones back off (no hot loop)."""
        backoff = backoff or self._backoff
        if not backoff.quiet(now):
            return self._back_off(fault, now, then_list, backoff)
        backoff.touch(now)
        self.counters.watch_restarts += 1
        restarted = Restarted(then_list is not None, fault.message)
        if then_list is None:
            return [restarted, self._sleep(delay, None)]
        return [restarted, self._list(then_list)]

    def _back_off(
        self, fault: Fault, now: float, then_list: str | None, backoff: Backoff | None = None
    ) -> list[Command[T]]:
        delay = (backoff or self._backoff).next(now, self._random())
        if fault.retry_after is not None:
            delay = max(delay, fault.retry_after)
        if self._empty is not None:
            delay = min(delay, max(0.0, self._empty[0] + EMPTY_HOLD - now))
        self.failing = fault
        self.counters.watch_restarts += then_list is None
        commands: list[Command[T]] = [Failing(fault, delay)]
        if fault.kind is FaultKind.NOT_SERVED:
            commands.append(Rediscover())
        commands.append(self._sleep(delay, then_list))
        return commands
