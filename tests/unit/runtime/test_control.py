"""The control thread: starts on demand, reports what nobody expected, and never holds up the exit."""

from __future__ import annotations

import asyncio
import threading

import pytest

from meshlib.runtime.control import ControlThread


class Crashes:
    def __init__(self) -> None:
        self.seen: list[tuple[str, BaseException]] = []
        self.happened = threading.Event()

    def __call__(self, where: str, error: BaseException) -> None:
        self.seen.append((where, error))
        self.happened.set()


@pytest.fixture
def crashes() -> Crashes:
    return Crashes()


@pytest.fixture
def control(crashes: Crashes):  # type: ignore[no-untyped-def]
    thread = ControlThread(crashes)
    thread.start()
    yield thread
    thread.stop()
    assert not thread._thread.is_alive()


def test_an_unexpected_exception_of_a_task_is_reported(control: ControlThread, crashes: Crashes) -> None:
    """A task that dies is told to the owner with its name; the loop lives on."""

    async def dies() -> None:
        raise ValueError("unexpected")

    control.call(lambda: control.spawn(dies(), name="mortal"))
    assert crashes.happened.wait(10)
    assert [(where, str(error)) for where, error in crashes.seen] == [("meshlib-mortal", "unexpected")]
    assert control.alive


def test_blocking_calls_run_in_daemon_threads(control: ControlThread) -> None:
    """A hung system call of a helper cannot keep the interpreter from ending: its thread is a daemon."""
    answers: list[bool] = []
    done = threading.Event()

    async def ask() -> None:
        answers.append(await control.run_blocking(lambda: threading.current_thread().daemon))
        done.set()

    control.call(lambda: control.spawn(ask(), name="ask"))
    assert done.wait(10)
    assert answers == [True]


def test_an_exception_of_a_blocking_call_reaches_its_caller(control: ControlThread, crashes: Crashes) -> None:
    """run_blocking raises what the function raised."""

    def fails() -> None:
        raise OSError("no such luck")

    control.call(lambda: control.spawn(control.run_blocking(fails), name="blocking"))
    assert crashes.happened.wait(10)
    assert isinstance(crashes.seen[0][1], OSError)


def test_stop_does_not_wait_for_a_helper_that_hangs(crashes: Crashes) -> None:
    """stop() returns although a blocking call has not: exit must take at most 1.5 s."""
    release = threading.Event()
    control = ControlThread(crashes)
    control.start()
    began = threading.Event()

    def hangs() -> None:
        began.set()
        release.wait(60)

    control.call(lambda: control.spawn(control.run_blocking(hangs), name="hang"))
    assert began.wait(10)
    control.stop()
    assert not control._thread.is_alive()
    release.set()


def test_stop_cancels_tasks_and_runs_the_closers(crashes: Crashes) -> None:
    """What was registered with at_close is awaited after the tasks were cancelled."""
    control = ControlThread(crashes)
    control.start()
    order: list[str] = []
    ready = threading.Event()

    async def sleeper() -> None:
        try:
            ready.set()
            await asyncio.sleep(3600)
        finally:
            order.append("cancelled")

    async def closer() -> None:
        order.append("closed")

    control.call(lambda: control.at_close(closer))
    control.call(lambda: control.spawn(sleeper(), name="sleeper"))
    assert ready.wait(10)
    control.stop()
    assert order == ["cancelled", "closed"]
    assert not crashes.seen


def test_calls_after_stop_are_ignored(crashes: Crashes) -> None:
    """A client that is late at shutdown gets no exception."""
    control = ControlThread(crashes)
    control.start()
    control.stop()
    control.call(lambda: pytest.fail("ran after stop"))


def test_a_thread_that_does_not_start_leaves_no_loop(
    crashes: Crashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of threads, or at the interpreter's exit."""

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    control = ControlThread(crashes)
    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(RuntimeError, match="can't start"):
        control.start()
    assert control.loop.is_closed()
