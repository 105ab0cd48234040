"""The background thread for small blocking work of clients."""

from __future__ import annotations

import threading
import weakref

import pytest

from meshlib.model.events import Event, SourceFailed
from meshlib.runtime.chores import Chores
from meshlib.runtime.observing import subscribe


def test_work_is_done_in_order_of_its_time_by_one_thread() -> None:
    """Whatever the order in which it came; the thread ends when nothing is left, and comes back."""
    chores, done = Chores(), threading.Event()
    order: list[int] = []
    names: set[str] = set()

    def work(number: int) -> None:
        order.append(number)
        names.add(threading.current_thread().name)

    for number in (3, 1, 2):
        chores.later(number * 0.02, lambda number=number: work(number))  # type: ignore[misc]
    chores.later(0.08, done.set)
    assert done.wait(10)
    assert order == [1, 2, 3]
    assert names == {"meshlib-chores"}
    again = threading.Event()
    chores.later(0, again.set)
    assert again.wait(10)


def test_work_that_fails_is_reported_and_the_rest_is_done() -> None:
    """An exception that nobody expected becomes an event."""
    chores, done = Chores(), threading.Event()
    events: list[Event] = []
    end = subscribe(events.append)
    try:
        chores.later(0, lambda: [][1])  # type: ignore[func-returns-value]
        chores.later(0.01, done.set)
        assert done.wait(10)
    finally:
        end()
    (failed,) = [event for event in events if isinstance(event, SourceFailed)]
    assert isinstance(failed.error, IndexError)


def test_at_exit_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be had the work is dropped, not raised and not kept."""

    class Kept:
        def __call__(self) -> None: ...

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    chores, work = Chores(), Kept()
    gone = weakref.ref(work)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    chores.later(0, work)
    del work
    assert gone() is None


def test_a_forked_child_starts_anew() -> None:
    """What the parent planned is the parent's; the child's thread does not exist."""
    chores = Chores()
    chores.later(3600, lambda: None)
    chores.after_fork()
    done = threading.Event()
    chores.later(0, done.set)
    assert done.wait(10)
