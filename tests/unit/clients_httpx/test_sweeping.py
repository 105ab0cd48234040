"""Sweeping a client at rest: when, as long as what, and by whom. Without a clock: the delays are collected."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator

import pytest

from meshlib.clients.httpx.allowance import Allowance
from meshlib.clients.httpx.sweeping import PIECES, AioSweeper, SyncSweeper
from meshlib.runtime.primitives import new_lock


class Later:
    """The background thread's work; ``refuses``: no thread is to be had."""

    def __init__(self) -> None:
        self.planned: list[tuple[float, Callable[[], None]]] = []
        self.refuses: BaseException | bool = False

    def __call__(self, delay: float, work: Callable[[], None]) -> bool:
        if isinstance(self.refuses, BaseException):
            raise self.refuses
        if not self.refuses:
            self.planned.append((delay, work))
        return not self.refuses

    def pass_by(self) -> None:
        self.planned.pop(0)[1]()


class Engine:
    """Counts its sweeps, each in ``pieces``."""

    def __init__(self, pieces: int = 1) -> None:
        self.allowance = Allowance(new_lock(), 10)
        self.pieces, self.done, self.sweeps = pieces, 0, 0
        self.error: Exception | None = None

    def sweep(self) -> Iterator[None]:
        self.sweeps += 1
        if self.error is not None:
            raise self.error
        for _ in range(self.pieces):
            self.done += 1
            yield


def test_threads_are_swept_while_there_are_connections() -> None:
    """One sweep is planned at a time; the last connection ends it, and the next one begins it again."""
    engine, later = Engine(pieces=100), Later()
    sweeper = SyncSweeper(engine.sweep, engine.allowance, 5.0, later)
    assert later.planned == []
    for _ in range(2):
        engine.allowance.take()
        sweeper.opening()
        sweeper.opening()
        assert [delay for delay, _ in later.planned] == [5.0]
        later.pass_by()
        assert [delay for delay, _ in later.planned] == [5.0]
        engine.allowance.give_back()
        later.pass_by()
        assert later.planned == []
    assert (engine.sweeps, engine.done) == (4, 400)


@pytest.mark.parametrize(("expiry", "delays"), [(None, []), (0.0, [1.0]), (30.0, [30.0])])
def test_how_often(expiry: float | None, delays: list[float]) -> None:
    """As often as connections expire, at most once per second; never where they do not."""
    engine, later = Engine(), Later()
    SyncSweeper(engine.sweep, engine.allowance, expiry, later).opening()
    assert [delay for delay, _ in later.planned] == delays


def test_without_a_thread_the_next_connection_tries_again() -> None:
    """Also when a signal handler raised in the middle."""
    engine, later = Engine(), Later()
    sweeper = SyncSweeper(engine.sweep, engine.allowance, 5.0, later)
    later.refuses = True
    sweeper.opening()
    later.refuses = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweeper.opening()
    later.refuses = False
    sweeper.opening()
    assert len(later.planned) == 1


def test_of_two_plans_one_counts() -> None:
    """Two threads that open a client's first connections at the same time do not double its sweeps for ever."""
    engine, later = Engine(), Later()
    engine.allowance.take()

    def at_the_same_time(delay: float, work: Callable[[], None]) -> bool:
        later(delay, work)
        if not engine.sweeps and len(later.planned) == 1:
            sweeper._planned = None  # what the other thread saw before
            sweeper.opening()
        return True

    sweeper = SyncSweeper(engine.sweep, engine.allowance, 5.0, at_the_same_time)
    sweeper.opening()
    assert len(later.planned) == 2
    later.pass_by()
    later.pass_by()
    assert (len(later.planned), engine.sweeps) == (1, 1)


def test_a_sweep_that_fails_is_not_the_last() -> None:
    """It is reported where the background thread reports, and the next one comes."""
    engine, later = Engine(), Later()
    engine.allowance.take()
    engine.error = KeyError("x")
    sweeper = SyncSweeper(engine.sweep, engine.allowance, 5.0, later)
    sweeper.opening()
    with pytest.raises(KeyError):
        later.pass_by()
    assert len(later.planned) == 1


def test_a_dropped_client_is_not_kept() -> None:
    """Neither the engine nor what is planned for it."""
    engine, later = Engine(), Later()
    allowance, sweeper = engine.allowance, SyncSweeper(engine.sweep, engine.allowance, 5.0, later)
    allowance.take()
    sweeper.opening()
    del engine
    gc.collect()
    later.pass_by()
    assert later.planned == []


class Timers:
    """The part of a loop that the sweeper uses."""

    def __init__(self) -> None:
        self.planned: list[tuple[float | None, Callable[..., None], tuple[object, ...]]] = []

    def call_later(self, delay: float, function: Callable[..., None], *arguments: object) -> object:
        self.planned.append((delay, function, arguments))
        return self

    def call_soon(self, function: Callable[..., None], *arguments: object) -> object:
        self.planned.append((None, function, arguments))
        return self

    def pass_by(self) -> None:
        _, function, arguments = self.planned.pop(0)
        function(*arguments)


def aio(engine: Engine, timers: Timers) -> AioSweeper:
    loop: asyncio.AbstractEventLoop = timers  # type: ignore[assignment]
    return AioSweeper(loop, engine.sweep, engine.allowance, 5.0)


def test_a_loop_is_swept_a_few_pools_at_a_turn() -> None:
    """The same on a loop, which thousands of pools do not hold up: the rest of a sweep has turns of its own."""
    engine, timers = Engine(pieces=2 * PIECES + 1), Timers()
    sweeper = aio(engine, timers)
    engine.allowance.take()
    sweeper.opening()
    sweeper.opening()
    seen = []
    for _ in range(4):
        seen.append((timers.planned[0][0], engine.done))
        assert len(timers.planned) == 1
        timers.pass_by()
        sweeper.opening()
    assert seen == [(5.0, 0), (None, PIECES), (None, 2 * PIECES), (5.0, 2 * PIECES + 1)]
    while engine.sweeps < 3:
        timers.pass_by()
    engine.allowance.give_back()
    while timers.planned:
        timers.pass_by()
    assert engine.sweeps == 3


def test_on_a_loop_a_sweep_that_fails_is_not_the_last() -> None:
    """It is reported where the loop reports."""
    engine, timers = Engine(), Timers()
    sweeper = aio(engine, timers)
    engine.allowance.take()
    engine.error = KeyError("x")
    sweeper.opening()
    with pytest.raises(KeyError):
        timers.pass_by()
    assert [delay for delay, _, _ in timers.planned] == [5.0]


def test_in_a_forked_child_the_parents_connections_are_left_alone() -> None:
    """Should it go on with the loop, whose timers it has inherited."""
    engine, timers = Engine(), Timers()
    sweeper = aio(engine, timers)
    engine.allowance.take()
    sweeper.opening()
    sweeper.after_fork()
    timers.pass_by()
    sweeper.opening()
    assert (engine.sweeps, timers.planned) == (0, [])
