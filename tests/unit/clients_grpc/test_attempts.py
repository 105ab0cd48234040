"""The course of one call over several endpoints, without a network and with the clock in hand."""

from __future__ import annotations

import threading
from collections.abc import Set
from typing import Any

import grpc
import pytest

from meshlib.clients.grpc.attempts import LONGEST_PAUSE, OPEN_PATIENCE, SHORT_PATIENCE, Attempts
from meshlib.errors import MeshClosed, NoEndpoints, PickTimeout
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease


class Handle:
    """Picks the first endpoint that is not excluded; may have a Service address."""

    def __init__(self, count: int, service: bool = False) -> None:
        made = [
            Subchannel(Endpoint(address=f"10.0.0.{n + 1}", port=80), threading.Lock())
            for n in range(count + 1)
        ]
        self.subchannels, self.service = made[:-1], made[-1] if service else None
        self.reported = 0

    def try_acquire(self, key: Any = None, exclude: Set[Subchannel] = frozenset()) -> Lease | None:
        if not self.subchannels:
            raise NoEndpoints("none")
        left = [s for s in self.subchannels if s not in exclude]
        return self.lease(left[0]) if left else None

    def all_refused(self) -> Lease | None:
        self.reported += 1
        return self.lease(self.service) if self.service is not None else None

    def lease(self, subchannel: Subchannel) -> Lease:
        subchannel.begin()
        return Lease(subchannel, lambda: 0.0, 0.0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(handle: Handle, clock: Clock | None = None, **options: Any) -> Attempts:
    return Attempts(handle, clock or Clock(), **options)  # type: ignore[arg-type]


def test_every_endpoint_is_tried_once_then_the_service_address_once() -> None:
    """A refusal leads to another endpoint, the last one to the Service address, and then to nothing."""
    handle = Handle(3, service=True)
    course = attempts(handle)
    lease = handle.try_acquire()
    seen = []
    while lease is not None:
        seen.append(lease.subchannel)
        lease.done()
        lease = course.after_refusal(lease.subchannel)
    assert seen == [*handle.subchannels, handle.service]
    assert handle.reported == 1


def test_without_a_service_address_nothing_is_left() -> None:
    """All refused and no Service address: None, and it was reported once."""
    handle = Handle(1)
    course = attempts(handle)
    assert course.after_refusal(handle.subchannels[0]) is None
    assert course.after_refusal(handle.subchannels[0]) is None
    assert handle.reported == 1


def test_a_service_address_that_was_tried_is_not_tried_again() -> None:
    """When the Service address is the endpoint that refused, its second lease is given back."""
    handle = Handle(0, service=True)
    assert handle.service is not None
    assert attempts(handle).after_refusal(handle.service) is None
    assert handle.service.inflight == 0


def test_a_set_that_empties_meanwhile_is_not_an_error_here() -> None:
    """The caller has the connection's own error to show; the pick's error does not replace it."""
    handle = Handle(1)
    first = handle.subchannels.pop()
    assert attempts(handle).after_refusal(first) is None


def test_a_new_round_starts_over_with_growing_pauses() -> None:
    """wait_for_ready looks again at all endpoints, ever less often, never beyond the deadline."""
    handle, clock = Handle(1), Clock()
    course = attempts(handle, clock, deadline=101.0, wait_for_ready=True)
    assert course.after_refusal(handle.subchannels[0]) is None
    pauses = [course.next_round() for _ in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    assert handle.try_acquire(exclude=frozenset()) is not None
    clock.now = 100.9
    assert course.next_round() == pytest.approx(0.1)
    clock.now = 102.0
    assert course.next_round() == 0.0


def test_verdicts() -> None:
    """Deadline before everything; wait_for_ready waits for endpoints but not for a closed Mesh; else UNAVAILABLE."""
    handle, clock = Handle(0), Clock()
    plain = attempts(handle, clock, deadline=101.0)
    patient = attempts(handle, clock, deadline=101.0, wait_for_ready=True)
    error = NoEndpoints("nobody")
    verdict = plain.verdict(error)
    assert verdict is not None
    assert verdict.code() is grpc.StatusCode.UNAVAILABLE
    assert verdict.__cause__ is error
    assert patient.verdict(error) is None
    closed = patient.verdict(MeshClosed("closed"))
    assert closed is not None
    assert closed.code() is grpc.StatusCode.UNAVAILABLE
    clock.now = 101.0
    for course in (plain, patient):
        late = course.verdict(PickTimeout("late"))
        assert late is not None
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert late.details().startswith("Deadline Exceeded")


def test_remaining() -> None:
    """Seconds left on the injected clock; None without a deadline."""
    clock = Clock()
    assert attempts(Handle(0), clock).remaining() is None
    assert attempts(Handle(0), clock, deadline=103.5).remaining() == pytest.approx(3.5)


def test_patience_is_a_share_of_what_is_left() -> None:
    """Half of the rest each time, little while somebody else is connected, bounded without a deadline."""
    clock = Clock()
    course = attempts(Handle(2), clock, deadline=104.0)
    assert course.patience(others=False) == pytest.approx(2.0)
    assert course.patience(others=True) == SHORT_PATIENCE
    clock.now = 103.9
    assert course.patience(others=True) == pytest.approx(0.05)
    clock.now = 104.5
    assert course.patience(others=False) < 0
    assert attempts(Handle(1), clock).patience(others=False) == OPEN_PATIENCE


def test_silent_endpoints_get_a_last_chance_after_all_others() -> None:
    """Each is left once; then one of the silent, not of those that refused, has the rest of the time."""
    handle = Handle(3)
    silent, refusing, dark = handle.subchannels
    course = attempts(handle)
    lease = course.after_silence(silent)
    assert lease is not None
    assert lease.subchannel is refusing
    lease = course.after_refusal(refusing)
    assert lease is not None
    assert lease.subchannel is dark
    assert not course.last_chance
    lease = course.after_silence(dark)
    assert lease is not None
    assert course.last_chance
    assert lease.subchannel is silent


def test_a_refusal_after_silence_comes_before_the_service_address() -> None:
    """The silent one may be about to connect; only when it refuses, too, the Service address is asked."""
    handle = Handle(2, service=True)
    silent, refusing = handle.subchannels
    course = attempts(handle)
    course.after_silence(silent)
    lease = course.after_refusal(refusing)
    assert lease is not None
    assert lease.subchannel is silent
    lease = course.after_refusal(silent)
    assert lease is not None
    assert lease.subchannel is handle.service
