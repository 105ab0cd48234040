"""Resolvers in virtual time: an event loop that jumps to its next timer, a context on it, and a scripted DNS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from meshlib.discovery.base import ResolverContext, Subscription
from meshlib.discovery.dns.records import Answer, Kind, Question, RecordType, SrvRecord
from meshlib.model.eligibility import eligible
from meshlib.model.endpoint import EndpointSet
from meshlib.model.events import Event
from meshlib.model.service import resolve_port
from meshlib.model.update import DoesNotExist, Failure, Snapshot, Update
from meshlib.model.vantage import Path, VantagePoint

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can run, and then jumps to the next timer. No IO, no threads."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 1000.0

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready:
            timers = [handle.when() for handle in loop._scheduled if not handle.cancelled()]
            if not timers:
                raise RuntimeError("everything waits for something that never comes")
            self._virtual = max(self._virtual, min(timers))
        super()._run_once()  # type: ignore[misc]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in virtual time; a task that fails unexpectedly fails the test."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        failures: list[dict[str, Any]] = []
        runner.get_loop().set_exception_handler(lambda _, context: failures.append(context))
        result = runner.run(coroutine)
    assert not failures, failures
    return result


@dataclass
class World:
    """A context whose events, tasks and published updates are kept for the test to look at."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    updates: list[tuple[float, Update]] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    random: random.Random = field(default_factory=lambda: random.Random(7))
    start: float = 1000.0

    @property
    def now(self) -> float:
        """Seconds since the start of the test."""
        return asyncio.get_running_loop().time() - self.start

    def context(self) -> ResolverContext:
        loop = asyncio.get_running_loop()
        self.start = loop.time()
        return ResolverContext(
            now=loop.time,
            wall=loop.time,
            random=self.random.random,
            sleep=asyncio.sleep,
            spawn=self._spawn,
            run_blocking=_run_blocking,
            emit=self.events.append,
            settings=self.settings,
        )

    def publish(self, update: Update) -> None:
        self.updates.append((self.now, update))

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], /, *, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler({"exception": task.exception(), "task": task})

    def of(self, kind: type[T]) -> list[T]:
        """Events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def last(self) -> Update:
        return self.updates[-1][1]

    @property
    def snapshot(self) -> Snapshot:
        """The set in force: the last Snapshot, unless a DoesNotExist came after it."""
        for _, update in reversed(self.updates):
            if isinstance(update, Snapshot):
                return update
            assert not isinstance(update, DoesNotExist), update
        raise AssertionError(f"no snapshot in {self.updates}")

    @property
    def failures(self) -> list[Failure]:
        return [update for _, update in self.updates if isinstance(update, Failure)]

    def eligible(self, port: int | str | None = None, families: tuple[int, ...] = (4, 6)) -> EndpointSet:
        """What the model makes of the set in force."""
        return eligible_of(self.snapshot, port, families)

    def addresses(self) -> list[str]:
        return [endpoint.authority for endpoint in self.eligible().endpoints]


def eligible_of(
    snapshot: Snapshot, port: int | str | None = None, families: tuple[int, ...] = (4, 6)
) -> EndpointSet:
    service = snapshot.service
    vantage = VantagePoint(families=families)
    return eligible(service, resolve_port(service, port), snapshot.slices, vantage, Path.INTERNAL)


async def _run_blocking(function: Callable[..., T], /, *args: Any) -> T:
    return function(*args)


def a(*addresses: str, ttl: int | None = 5, server: str = "10.96.0.10:53") -> Answer:
    """NOERROR with addresses."""
    return Answer(Kind.RECORDS, addresses=tuple(sorted(addresses)), ttl=ttl, rcode="NOERROR", server=server)


def srv(
    *records: tuple[int, int, int, str], glue: Mapping[str, tuple[str, ...]] | None = None, ttl: int = 5
) -> Answer:
    """NOERROR with SRV records (priority, weight, port, target)."""
    found = tuple(sorted(SrvRecord(*record) for record in records))
    extra = tuple(sorted((glue or {}).items()))
    return Answer(Kind.RECORDS, srv=found, glue=extra, ttl=ttl, rcode="NOERROR", server="10.96.0.10:53")


def nodata(ttl: int | None = 5) -> Answer:
    return Answer(Kind.NODATA, ttl=ttl, rcode="NOERROR", server="10.96.0.10:53")


def nxdomain(ttl: int | None = 5) -> Answer:
    return Answer(Kind.NXDOMAIN, ttl=ttl, rcode="NXDOMAIN", server="10.96.0.10:53")


def unusable(rcode: str = "SERVFAIL", hopeless: bool = False) -> Answer:
    detail = f"10.96.0.10:53: {rcode}"
    return Answer(Kind.UNKNOWN, rcode=rcode, server="10.96.0.10:53", detail=detail, hopeless=hopeless)


class ScriptedDns:
    """Stands in for the transport: answers from a table that the test edits, after ``latency`` seconds.

    ``asked``: (seconds since the start, name, type). Names that the table lacks are NXDOMAIN, types NODATA.
    """

    def __init__(self, latency: float = 0.001) -> None:
        self.table: dict[tuple[str, str], Answer] = {}
        self.latency: dict[tuple[str, str], float] = {}
        self.default_latency = latency
        self.asked: list[tuple[float, str, str]] = []
        self.avoided: list[str] = []
        self.busy: set[tuple[str, str]] = set()
        self.start = 1000.0

    def set(self, name: str, **answers: Answer | None) -> None:
        """``set("orders", A=a("10.0.0.1"))``; None removes."""
        for kind, answer in answers.items():
            self.table.pop((name, kind), None)
            if answer is not None:
                self.table[name, kind] = answer

    def __call__(self, question: Question, avoid: str = "") -> Coroutine[Any, Any, Answer]:
        return self._answer(question, avoid)

    async def _answer(self, question: Question, avoid: str) -> Answer:
        key = (question.name, question.type.name)
        self.asked.append((asyncio.get_running_loop().time() - self.start, *key))
        self.avoided.append(avoid)
        assert key not in self.busy, f"{key} is asked twice at once"
        self.busy.add(key)
        try:
            await asyncio.sleep(self.latency.get(key, self.default_latency))
        finally:
            self.busy.discard(key)
        found = self.table.get(key)
        if found is not None:
            return found
        exists = any(name == question.name for name, _ in self.table)
        return nodata() if exists else nxdomain()

    def times(self, name: str, kind: str = "A") -> list[float]:
        return [at for at, asked, type_ in self.asked if (asked, type_) == (name, kind)]


def question(name: str, kind: RecordType = RecordType.A) -> Question:
    return Question(name, kind)


def closes(subscription: Subscription) -> None:
    """Closing twice is allowed everywhere."""
    subscription.close()
    subscription.close()
