"""Totals: sums over the Subchannels of a target that never fall, whoever comes and goes."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.model.endpoint import Endpoint
from meshlib.observe.catalogue import CLOSED
from meshlib.pickers.subchannel import DECAY, Subchannel
from meshlib.runtime.totals import LATE, Book, TargetTotals


def subchannel(number: int = 1) -> Subchannel:
    return Subchannel(Endpoint(address=f"10.0.0.{number}", port=80), threading.Lock(), target="orders")


def used(one: Subchannel, requests: int, failures: int = 0) -> Subchannel:
    for number in range(requests):
        one.begin()
        one.end(failed=number < failures)
    return one


def test_what_left_still_counts() -> None:
    """Requests of an endpoint that is gone stay in the sum; those in flight there are told as draining."""
    totals = TargetTotals("orders")
    one, other = used(subchannel(1), 5, failures=2), used(subchannel(2), 3)
    totals.joined([one, other])
    one.begin()
    totals.left([one], now=100.0)
    found = totals.read(100.0)
    assert (found.requests, found.failures, found.inflight, found.draining) == (8, 2, 1, 1)
    assert [each.authority for each in totals.each()] == ["10.0.0.2:80"]
    one.end()
    found = totals.read(100.0 + 2 * LATE)
    assert (found.requests, found.failures, found.inflight, found.draining) == (9, 2, 0, 0)


def test_a_request_that_begins_just_after_its_endpoint_left_counts() -> None:
    """A thread may have picked from the set before; what is long gone is no longer held."""
    totals, one = TargetTotals("orders"), subchannel()
    totals.joined([one])
    totals.left([one], now=100.0)
    assert totals.read(100.0 + LATE - 1).requests == 0
    used(one, 1)
    assert totals.read(100.0 + LATE).requests == 1
    assert not totals._left
    assert not totals._members


def test_a_long_stream_is_waited_for() -> None:
    """What is in flight at an endpoint that left counts when it ends, however late."""
    totals, one = TargetTotals("orders"), subchannel()
    totals.joined([one])
    one.begin()
    totals.left([one, one], now=0.0)  # told twice: once is meant
    for hours in range(1, 4):
        assert totals.read(3600.0 * hours).draining == 1
    one.end()
    assert totals.read(20000.0).requests == 1
    assert totals.read(30000.0).requests == 1


def test_memory_is_bounded_where_nobody_reads() -> None:
    """Endpoints that come and go for ever are held no longer than LATE, and their counts are kept."""
    totals = TargetTotals("orders")
    for second in range(300):
        one = used(subchannel(), 1)
        totals.joined([one])
        totals.left([one], now=float(second))
        assert len(totals._left) <= LATE + 1
    assert totals.read(300.0).requests == 300


def test_picks_never_fall() -> None:
    """A pick that was taken back may have been seen; a counter that falls would be a restart to Prometheus."""
    totals, one = TargetTotals("orders"), subchannel()
    totals.joined([one])
    one.begin()
    assert totals.read(0.0).picks == 1
    with one.lock:
        one.inflight -= 1
    assert totals.read(0.0).picks == 1
    used(one, 2)
    assert totals.read(0.0).picks == 2


def test_latency_is_the_highest_as_it_is_now() -> None:
    """Estimates fade between samples, and an endpoint without a sample has none."""
    totals, one, other = TargetTotals("orders"), subchannel(1), subchannel(2)
    totals.joined([one, other, subchannel(3)])
    assert totals.read(100.0).latency is None
    one.observe(100.0, 0.5)
    other.observe(100.0, 0.1)
    assert totals.read(100.0).latency == pytest.approx(0.5)
    assert totals.read(100.0 + DECAY).latency == pytest.approx(0.5 / math.e)


@given(st.lists(st.tuples(st.sampled_from("jlbetr"), st.integers(0, 5))))
def test_against_a_plain_count(steps: list[tuple[str, int]]) -> None:
    """Whatever joins, leaves, begins, ends and is read when: the sum is what was counted aside, and never falls."""
    totals = TargetTotals("orders")
    alive: list[Subchannel] = []
    flying: list[Subchannel] = []
    now, ended, before = 0.0, 0, 0
    for step, number in steps:
        if step == "j":
            alive.append(Subchannel(Endpoint(address="10.0.0.1", port=80), nullcontext()))
            totals.joined(alive[-1:])
        elif step == "l" and alive:
            totals.left([alive.pop(number % len(alive))], now)
        elif step == "b" and alive:
            flying.append(alive[number % len(alive)])
            flying[-1].begin()
        elif step == "e" and flying:
            flying.pop(number % len(flying)).end()
            ended += 1
        elif step == "t":
            now += number * LATE / 4
        elif step == "r":
            found = totals.read(now)
            assert (found.requests, found.inflight) == (ended, len(flying))
            assert found.picks == ended + len(flying) >= before
            before = found.picks
    assert totals.read(now).requests == ended


def test_a_reader_sees_no_request_twice_and_none_vanish() -> None:
    """Threads send, endpoints come and go, somebody reads: every reading is at least the one before, the last exact."""
    totals, stop = TargetTotals("orders"), threading.Event()
    sent = [0, 0, 0]
    current = [subchannel()]
    totals.joined(current)

    def send(index: int) -> None:
        while not stop.is_set():
            used(current[0], 1)
            sent[index] += 1

    senders = [threading.Thread(target=send, args=(index,)) for index in range(len(sent))]
    for sender in senders:
        sender.start()
    before = 0
    for step in range(200):
        fresh = subchannel(step % 250 + 1)
        totals.joined([fresh])
        gone, current[0] = current[0], fresh
        totals.left([gone], now=float(step) / 100)  # all of it within LATE
        found = totals.read(float(step) / 100)
        assert found.requests >= before
        before = found.requests
    stop.set()
    for sender in senders:
        sender.join()
    assert totals.read(10 * LATE).requests == sum(sent)


def test_a_forked_child_has_an_empty_book() -> None:
    """What the parent did, the parent reports."""
    book = Book()
    book.target("static:///10.0.0.1:80").joined([used(subchannel(), 3)])
    assert [each.label for each in book.targets] == ["static:///(1 address)"]
    assert book.target("static:///10.0.0.9:80") is book.targets[0]  # one label, one sum
    book.after_fork()
    assert book.targets == ()


def test_what_is_put_together_never_falls() -> None:
    """Opened and open are not read at one moment, so closed may seem to fall; each label for itself."""
    book = Book()
    assert [book.never_less(CLOSED, ("http",), value) for value in (3, 2, 6)] == [3, 3, 6]
    assert book.never_less(CLOSED, ("grpc",), 1) == 1
