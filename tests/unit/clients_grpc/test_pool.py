"""The pool of endpoint channels: who closes them, and where."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meshlib.clients.grpc.pool import Pool
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease, ServiceLease


class Channel:
    """Its close() waits, as grpcio's does, for events that only the channel's own thread takes in."""

    def __init__(self) -> None:
        self.own_thread_is_free = threading.Event()
        self.closed = threading.Event()

    def close(self) -> None:
        assert self.own_thread_is_free.wait(20)
        self.closed.set()


def lease(number: int = 1, service: bool = False) -> Lease:
    subchannel = Subchannel(Endpoint(address=f"10.0.0.{number}", port=80), threading.Lock())
    subchannel.begin()
    if service:
        return ServiceLease(subchannel, lambda: 1.0, 1.0, lambda: None)
    return Lease(subchannel, lambda: 1.0, 1.0)


@pytest.mark.parametrize("service", [False, True])
def test_the_last_call_closes_its_channel_in_another_thread(service: bool) -> None:
    """A call ends in its channel's own thread: closing there would wait for what that very thread has still to do."""
    channel = Channel()
    pool = Pool(lambda target: channel)
    taken = lease(service=service)
    transport = pool.begin(taken)
    pool.drop(taken.subchannel)
    own = threading.Thread(target=transport.end, daemon=True)
    own.start()
    own.join(10)
    assert not own.is_alive()
    assert not channel.closed.is_set()
    channel.own_thread_is_free.set()
    assert channel.closed.wait(10)
    assert pool.transports() == []


def test_dropping_does_not_wait_for_a_channel_to_close() -> None:
    """drop() runs on the control thread, which nobody's callback may hold up; all the channels close in the end."""
    channels: list[Any] = []

    def connect(target: str) -> Any:
        channels.append(Channel())
        return channels[-1]

    pool = Pool(connect)
    leases = [lease(number) for number in range(1, 6)]
    for taken in leases:
        pool.begin(taken).end()

    def drop_all() -> None:
        for taken in leases:
            pool.drop(taken.subchannel)

    control = threading.Thread(target=drop_all, daemon=True)
    control.start()
    control.join(10)
    assert not control.is_alive()
    for channel in channels:
        channel.own_thread_is_free.set()
    assert all(channel.closed.wait(10) for channel in channels)


def test_channels_close_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """At interpreter exit: nothing is raised into grpc's thread, and a later close still finds its way."""

    def refuse(name: str, work: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    channels: list[Channel] = []

    def connect(target: str) -> Any:
        channels.append(Channel())
        channels[-1].own_thread_is_free.set()
        return channels[-1]

    pool = Pool(connect)
    for number, possible in ((1, False), (2, True)):
        taken = lease(number)
        pool.begin(taken).end()
        with monkeypatch.context() as patch:
            if not possible:
                patch.setattr("meshlib.clients.grpc.pool.start_helper", refuse)
            pool.drop(taken.subchannel)
    assert all(channel.closed.wait(10) for channel in channels)
