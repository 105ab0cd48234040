"""Transports close when their last call has ended; completions end exactly once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from meshlib.clients.grpc.transport import Completion, Transport
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease
from meshlib.runtime.process import Generation


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


def made(shut: list[Transport] | None = None) -> tuple[Subchannel, Transport]:
    subchannel = Subchannel(Endpoint(address="10.0.0.1", port=80), threading.Lock())
    closed: list[Any] = [] if shut is None else shut
    transport = Transport(object(), "ipv4:10.0.0.1:80", subchannel, threading.Lock(), closed.append)
    transport.warm = True
    return subchannel, transport


def begun(subchannel: Subchannel, transport: Transport, clock: Clock) -> Completion:
    subchannel.begin()
    assert transport.begin()
    return Completion(Lease(subchannel, clock, clock.now), transport)


def test_draining_closes_after_the_last_call() -> None:
    """Two calls in flight: drain closes nothing until both have ended, and then once."""
    shut: list[Transport] = []
    _, transport = made(shut)
    assert transport.begin()
    assert transport.begin()
    transport.drain()
    transport.end()
    assert not shut
    transport.end()
    transport.drain()
    assert shut == [transport]
    assert not transport.begin()


def test_a_call_and_a_drain_at_the_same_moment() -> None:
    """Eight threads begin and end calls while another drains: no call runs on a closed channel; it closes once."""
    with ThreadPoolExecutor(9) as threads:
        for _ in range(100):
            shut: list[Transport] = []
            _, transport = made(shut)
            start = threading.Barrier(9)

            def calls(transport: Transport = transport, shut: Any = shut, start: Any = start) -> bool:
                start.wait()
                good = True
                while transport.begin():
                    good = good and not shut
                    transport.end()
                return good

            def drain(transport: Transport = transport, start: Any = start) -> None:
                start.wait()
                transport.drain()

            results = [threads.submit(calls) for _ in range(8)]
            threads.submit(drain).result(20)
            assert all(result.result(20) for result in results)
            assert shut == [transport]
            assert transport.calls == 0


def test_idle_transport_closes_at_once() -> None:
    """Nothing in flight: drain closes."""
    shut: list[Transport] = []
    made(shut)[1].drain()
    assert len(shut) == 1


def test_removed_endpoint_gets_a_transport_for_one_call() -> None:
    """A pick that raced with a removal is served and its channel closed right after."""
    shut: list[Transport] = []
    subchannel = Subchannel(Endpoint(address="10.0.0.1", port=80), threading.Lock())
    subchannel.removed = True
    transport = Transport(object(), "t", subchannel, threading.Lock(), shut.append)
    assert transport.begin()
    transport.end()
    assert shut == [transport]


@pytest.mark.parametrize(
    ("code", "sampled", "failures"),
    [
        (grpc.StatusCode.OK, True, 0),
        (grpc.StatusCode.NOT_FOUND, True, 0),
        (grpc.StatusCode.UNAVAILABLE, True, 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True, 1),
        (grpc.StatusCode.CANCELLED, False, 0),
        (None, False, 0),
    ],
)
def test_end_by_code(code: grpc.StatusCode | None, sampled: bool, failures: int) -> None:
    """An answer is a latency sample, an endpoint's failure counts as one, our own cancellation says nothing."""
    subchannel, transport = made()
    clock = Clock()
    completion = begun(subchannel, transport, clock)
    clock.now += 0.25
    completion.ended(code)
    assert (subchannel.ewma >= 0) is sampled
    assert (subchannel.inflight, subchannel.requests, subchannel.failures) == (0, 1, failures)
    assert transport.calls == 0


def test_first_response_is_the_sample() -> None:
    """The latency of a stream is that of its first message, however long it lasts."""
    subchannel, transport = made()
    clock = Clock()
    completion = begun(subchannel, transport, clock)
    clock.now += 0.25
    completion.responded()
    clock.now += 3600
    completion.ended(grpc.StatusCode.OK)
    assert subchannel.ewma == pytest.approx(0.25)


def test_calls_that_had_to_connect_are_no_samples() -> None:
    """What began before the first answer says nothing about latency, unless it failed; what began after it does."""
    subchannel, transport = made()
    transport.warm = False
    clock = Clock()
    early = [begun(subchannel, transport, clock) for _ in range(2)]
    clock.now += 3
    for completion in early:
        completion.ended(grpc.StatusCode.OK)
    assert subchannel.ewma < 0
    later = begun(subchannel, transport, clock)
    clock.now += 0.25
    later.ended(grpc.StatusCode.OK)
    assert subchannel.ewma == pytest.approx(0.25)


def test_a_failed_first_call_is_a_sample() -> None:
    """An endpoint that refuses from the start must not look unused."""
    subchannel, transport = made()
    transport.warm = False
    begun(subchannel, transport, Clock()).ended(grpc.StatusCode.UNAVAILABLE)
    assert subchannel.ewma > 0


def test_many_threads_end_a_call_once() -> None:
    """done() from eight threads at a time counts once."""
    subchannel, transport = made()
    with ThreadPoolExecutor(8) as threads:
        for _ in range(200):
            completion = begun(subchannel, transport, Clock())
            list(threads.map(lambda _, c=completion: c.done(), range(8)))
    assert (subchannel.inflight, subchannel.requests, transport.calls) == (0, 200, 0)


def test_a_forked_child_leaves_the_parents_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another generation neither locks are taken nor counts changed."""
    subchannel, transport = made()
    completion = begun(subchannel, transport, Clock())
    transport._lock.acquire()  # type: ignore[attr-defined]  # as another thread held it at the fork
    monkeypatch.setattr(Generation, "current", Generation.current + 1)
    completion.responded()
    completion.done()
    assert (subchannel.inflight, transport.calls) == (1, 1)
