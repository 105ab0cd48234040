"""Tally: exact in threads and in finalizers, bounded where nobody reads."""

from __future__ import annotations

import threading
from typing import NoReturn

import pytest

from meshlib.observe.catalogue import ERRORS, OPENED
from meshlib.observe.tally import MOST_NEWS, Tally


def test_counts_by_metric_and_labels() -> None:
    """What was added is there, copies are independent, and what never happened is absent."""
    tally = Tally(threading.RLock())
    tally.add(ERRORS, "orders", "reset")
    tally.add(ERRORS, "orders", "reset", amount=2)
    tally.add(OPENED, "http")
    found = tally.read()
    assert found == {ERRORS: {("orders", "reset"): 3}, OPENED: {("http",): 1}}
    found[OPENED][("http",)] = 9
    assert tally.read()[OPENED] == {("http",): 1}


def test_exact_from_many_threads_while_somebody_reads() -> None:
    """Nothing is lost or counted twice, and no reading is lower than the one before."""
    tally, each, threads = Tally(threading.RLock()), 3000, 4

    def add() -> None:
        for _ in range(each):
            tally.add(OPENED, "http")

    workers = [threading.Thread(target=add) for _ in range(threads)]
    for worker in workers:
        worker.start()
    before = 0
    while any(worker.is_alive() for worker in workers):
        now = tally.read().get(OPENED, {}).get(("http",), 0)
        assert now >= before
        before = now
    for worker in workers:
        worker.join()
    assert tally.read() == {OPENED: {("http",): each * threads}}


def test_an_addition_in_the_middle_of_a_reading_waits_for_nobody() -> None:
    """A finalizer may run in the thread that reads, with the lock held: it neither waits for ever nor is lost."""
    lock = threading.RLock()
    tally = Tally(lock)
    with lock:  # as inside of read()
        for _ in range(MOST_NEWS + 5):
            tally.add(OPENED, "http")
    assert tally.read() == {OPENED: {("http",): MOST_NEWS + 5}}


def test_memory_is_bounded_where_nobody_reads() -> None:
    """Additions are counted up now and then without a reader."""
    tally = Tally(threading.RLock())
    for _ in range(20 * MOST_NEWS):
        tally.add(OPENED, "http")
        assert len(tally._news) <= MOST_NEWS
    assert tally.read() == {OPENED: {("http",): 20 * MOST_NEWS}}


def test_a_child_begins_at_zero_with_a_lock_of_its_own() -> None:
    """The inherited lock may be held by a thread that is not there, and the inherited counts are the parent's."""
    held = threading.RLock()
    tally = Tally(held)
    tally.add(OPENED, "http")
    held.acquire()
    tally.reset(threading.RLock())
    assert tally.read() == {}


def test_an_interrupt_in_the_middle_holds_nobody_up() -> None:
    """What a signal handler raises while additions are counted up costs one of them at most; later ones are counted."""

    class Interrupting(dict[tuple[str, ...], int]):
        def get(self, *_: object) -> NoReturn:
            raise KeyboardInterrupt

    tally = Tally(threading.RLock())
    tally._counts[OPENED] = Interrupting()
    for _ in range(MOST_NEWS):
        tally.add(OPENED, "http")
    with pytest.raises(KeyboardInterrupt):
        tally.add(OPENED, "http")
    tally._counts.clear()
    others = threading.Thread(target=lambda: [tally.add(ERRORS, "orders", "reset") for _ in range(MOST_NEWS)])
    others.start()
    others.join()
    assert len(tally._news) <= MOST_NEWS
    assert tally.read() == {OPENED: {("http",): MOST_NEWS}, ERRORS: {("orders", "reset"): MOST_NEWS}}
