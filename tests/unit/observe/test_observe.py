"""The Observer: counting, logging and telling subscribers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from meshlib.errors import AccessDenied, DiscoveryError
from meshlib.model.endpoint import Endpoint
from meshlib.model.events import (
    EndpointsChanged,
    EntrySkipped,
    Event,
    FallbackEnded,
    FellBack,
    RuntimeStarted,
    SourceFailed,
    SourceRecovered,
    WatchRestarted,
)
from meshlib.observe import Observer
from meshlib.observe.log import MAX_KINDS, REPEAT_AFTER, clean


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(clock: Clock) -> Observer:
    return Observer(clock.now, threading.Lock)


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """Everything that is logged during the test."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler, before = logging.getLogger("meshlib"), Keep(), logging.getLogger("meshlib").level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(before)


def changed(added: int = 1, removed: int = 0, source: str = "file shop.yaml") -> EndpointsChanged:
    return EndpointsChanged(
        target="k8s:///orders.shop:http",
        added=tuple(Endpoint(address=f"10.0.0.{n}", port=80) for n in range(added)),
        removed=tuple(Endpoint(address=f"10.0.1.{n}", port=80) for n in range(removed)),
        total=added,
        source=source,
    )


def test_one_info_line_per_change(observer: Observer, lines: list[logging.LogRecord]) -> None:
    """A change of a set is one INFO line with target, count, difference and source."""
    observer(changed(2, 1))
    (line,) = lines
    assert (line.levelname, line.name) == ("INFO", "meshlib.balancer")
    assert line.getMessage() == (
        "k8s:///orders.shop:http: 2 endpoints (+2 -1: +10.0.0.0:80 +10.0.0.1:80 -10.0.1.0:80) from file shop.yaml"
    )


def test_a_big_change_is_still_one_short_line(observer: Observer, lines: list[logging.LogRecord]) -> None:
    """Five thousand new endpoints do not make a line of 100 kB."""
    observer(changed(5000))
    assert "and 4994 more" in lines[0].getMessage()
    assert len(lines[0].getMessage()) < 400


@pytest.mark.parametrize(
    ("event", "level", "part"),
    [
        (FellBack("t", "dns", "no RBAC"), "WARNING", "t: calls go to dns: no RBAC"),
        (FallbackEnded("t"), "INFO", "balanced again"),
        (
            SourceFailed("api", DiscoveryError("refused"), stale=True, retry_in=1.5),
            "WARNING",
            "next try in 1.5 s",
        ),
        (SourceFailed("api", DiscoveryError(""), stale=False), "WARNING", "nothing is known yet"),
        (SourceRecovered("api"), "INFO", "answers again"),
        (EntrySkipped("api", "slice a/b", "loopback"), "WARNING", "skipped slice a/b: loopback"),
        (WatchRestarted("api", True, "410"), "DEBUG", "listed again: 410"),
        (RuntimeStarted(42), "DEBUG", "42"),
    ],
)
def test_every_event_has_its_line(
    observer: Observer, lines: list[logging.LogRecord], event: Event, level: str, part: str
) -> None:
    """Each kind of event is written at its level, with what a reader needs."""
    observer(event)
    (line,) = lines
    assert line.levelname == level
    assert part in line.getMessage()


def test_missing_rights_print_the_fix(observer: Observer, lines: list[logging.LogRecord]) -> None:
    """The Role to apply is in the log, on lines that can be pasted."""
    observer(SourceFailed("api", AccessDenied("forbidden", "kind: Role\nmetadata: x"), stale=False))
    assert "kind: Role\nmetadata: x" in lines[0].getMessage()


def test_the_same_trouble_is_not_repeated(
    observer: Observer, clock: Clock, lines: list[logging.LogRecord]
) -> None:
    """One line per kind of trouble and minute; the next one says how many were held back."""
    for _ in range(10):
        observer(SourceFailed("api", DiscoveryError("refused"), stale=True))
    observer(SourceFailed("api", TimeoutError("late"), stale=True))  # another kind
    observer(SourceFailed("api-2", DiscoveryError("refused"), stale=True))  # another source
    assert len(lines) == 3
    clock.time += REPEAT_AFTER
    observer(SourceFailed("api", DiscoveryError("refused"), stale=True))
    assert len(lines) == 4
    assert "9 more like this" in lines[-1].getMessage()


def test_memory_of_kinds_is_bounded(observer: Observer, lines: list[logging.LogRecord]) -> None:
    """Reasons come from other tenants: a million different ones must neither fill memory nor the log."""
    for n in range(10 * MAX_KINDS):
        observer(EntrySkipped("api", "x", f"reason {n}"))
    assert len(lines) == MAX_KINDS + 1


@pytest.mark.parametrize("text", ["a\nFAKE LINE", "a\x1b[2Jb", "a\rb", "a\u2028b", "a\ud800b"])
def test_foreign_text_cannot_forge_lines(text: str) -> None:
    """Line breaks and terminal escapes from cluster data are shown escaped."""
    assert clean(text).isprintable()
    assert clean(text).isascii()


def test_long_foreign_text_is_cut() -> None:
    """A megabyte of annotation stays out of the log."""
    assert len(clean("x" * 1_000_000)) < 400


def test_counters_count_by_kind(observer: Observer) -> None:
    """Each kind of event has a counter; what never happened has none."""
    observer(changed())
    observer(changed())
    observer(RuntimeStarted(1))
    assert observer.counters.snapshot() == {"endpoints_changed": 2, "runtime_started": 1}


def test_counters_are_exact_under_threads(observer: Observer) -> None:
    """No count is lost when eight threads emit at once."""
    start = threading.Barrier(8)

    def emit() -> None:
        start.wait()
        for _ in range(500):
            observer(SourceRecovered("api"))

    threads = [threading.Thread(target=emit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert observer.counters.snapshot() == {"source_recovered": 4000}


def test_subscribers_get_events_until_they_leave(observer: Observer) -> None:
    """A subscriber is told every event after subscribing and none after unsubscribing; leaving twice is harmless."""
    seen: list[Event] = []
    leave = observer.hooks.subscribe(seen.append)
    event = SourceRecovered("api")
    observer(event)
    leave()
    leave()
    observer(event)
    assert seen == [event]


def test_a_failing_subscriber_disturbs_nobody(observer: Observer, lines: list[logging.LogRecord]) -> None:
    """Its exception is logged and counted; the emitter and later subscribers do not notice."""
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("boom")

    observer.hooks.subscribe(broken)
    observer.hooks.subscribe(seen.append)
    observer(RuntimeStarted(1))
    assert seen == [RuntimeStarted(1)]
    assert observer.counters.snapshot()["subscriber_failed"] == 1
    assert any(line.exc_info and "boom" in str(line.exc_info[1]) for line in lines)


def test_a_subscriber_may_leave_while_it_is_called(observer: Observer) -> None:
    """Unsubscribing from inside the callback neither deadlocks nor skips others."""
    seen: list[str] = []

    def once(event: Event) -> None:
        seen.append("once")
        observer.hooks.unsubscribe(once)

    observer.hooks.subscribe(once)
    observer.hooks.subscribe(lambda event: seen.append("other"))
    observer(RuntimeStarted(1))
    observer(RuntimeStarted(1))
    assert seen == ["once", "other", "other"]


def test_a_forked_child_gets_new_locks(clock: Clock) -> None:
    """A lock held by another thread at fork would block the child for ever; counts and subscribers survive."""
    held: list[threading.Lock] = []

    def new_lock() -> threading.Lock:
        held.append(threading.Lock())
        return held[-1]

    observer = Observer(clock.now, new_lock)
    seen: list[Event] = []
    observer.hooks.subscribe(seen.append)
    observer(RuntimeStarted(1))
    for lock in tuple(held):
        lock.acquire()
    observer.after_fork()
    observer(RuntimeStarted(2))
    assert observer.counters.snapshot() == {"runtime_started": 2}
    assert len(seen) == 2


def test_nothing_reaches_stderr_without_logging_configured() -> None:
    """A library prints nothing of its own: the meshlib logger has a NullHandler."""
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("meshlib").handlers)
