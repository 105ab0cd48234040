"""The cell: one store, many readers, and the only place that waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from meshlib.runtime.cell import UNKNOWN, Cell, State


def _error() -> Exception:
    return RuntimeError("known no")


def test_a_thread_that_waits_is_woken_by_a_publication() -> None:
    """wait() returns the new state as soon as it is published, long before its timeout."""
    cell = Cell()
    seen: list[State] = []
    waiting = threading.Thread(target=lambda: seen.append(cell.wait(UNKNOWN, 60.0)))
    waiting.start()
    published = State(error=_error)
    cell.publish(published)
    waiting.join(10)
    assert seen == [published]


def test_waiting_ends_at_its_timeout_with_the_old_state() -> None:
    """Nothing published: the caller gets the unchanged state back, no exception."""
    cell = Cell()
    assert cell.wait(UNKNOWN, 0.01) is UNKNOWN


def test_waiting_for_a_state_that_has_passed_does_not_block() -> None:
    """A publication between reading the state and waiting is never missed."""
    cell = Cell()
    cell.publish(State(error=_error))
    assert cell.wait(UNKNOWN, 60.0).settled


def test_coroutines_of_several_loops_are_all_woken() -> None:
    """Each waiter is woken in its own loop, from the publishing thread."""
    cell = Cell()
    entered = threading.Barrier(4)
    results: list[bool] = []

    def run() -> None:
        async def wait() -> None:
            waiting = asyncio.ensure_future(cell.wait_async(UNKNOWN, 60.0))
            await asyncio.sleep(0)
            entered.wait(10)
            results.append((await waiting).settled)

        asyncio.run(wait())

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    cell.publish(State(error=_error))
    for thread in threads:
        thread.join(10)
    assert results == [True, True, True]


def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    """Cancellation of the wait removes the waiter, so a long outage cannot collect them."""
    cell = Cell()

    async def scenario() -> None:
        waiting = asyncio.ensure_future(cell.wait_async(UNKNOWN, 60.0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())
    assert not cell._waiters


def test_a_waiter_of_a_closed_loop_does_not_disturb_publishing() -> None:
    """A loop closed with a waiter inside: publishing goes on for the others."""
    cell = Cell()
    loop = asyncio.new_event_loop()
    suspended = cell.wait_async(UNKNOWN, 60.0)

    async def enter() -> None:
        suspended.send(None)

    task = loop.create_task(enter())
    loop.run_until_complete(task)
    loop.close()
    cell.publish(State(error=_error))
    assert cell.state.settled
    suspended.close()


def test_a_task_left_in_a_closed_loop_does_not_keep_others_from_being_woken() -> None:
    """The same with a whole task suspended: its own wake-up cannot be scheduled any more, nobody else's suffers."""
    cell = Cell()
    loop = asyncio.new_event_loop()
    task = loop.create_task(cell.wait_async(UNKNOWN, 60.0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    woken = []
    cell._waiters.add(lambda: woken.append(True))
    cell.publish(State(error=_error))
    assert woken
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it was left behind on purpose


def test_state_is_settled_by_a_picker_or_an_error_only() -> None:
    """ "Nothing known" is the one state that is worth waiting for."""
    make: Callable[[], Exception] = _error
    assert not UNKNOWN.settled
    assert State(error=make).settled
