"""The programmer: from wanted to kernel, whatever goes wrong on the way."""

from __future__ import annotations

import errno

import pytest

from meshlib.agent.desired import Frontend
from meshlib.agent.engine.guard import WINDOW, Guard
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.objects import ObjectKey, Verb
from tests.unit.agent.fake_kernel import PLACE, Crash, FakeKernel, frontend

A = frontend("10.96.0.1", 80, "10.1.0.1", "10.1.0.2")
B = frontend("10.96.0.1", 443, "10.1.0.1")
C = frontend("10.96.0.2", 80)


class Disk:
    """The ledger's file: what was written survives the process."""

    def __init__(self) -> None:
        self.data = b""
        self.broken = False

    def write(self, lines: bytes) -> None:
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += lines


def agent(kernel: FakeKernel, disk: Disk, **options: object) -> Programmer:
    """A new process on the same kernel and disk."""
    ledger = Ledger()
    ledger.read(disk.data)
    return Programmer(kernel, PLACE, ledger, disk.write, **options)  # type: ignore[arg-type]


def want(programmer: Programmer, *frontends: Frontend, now: float = 0.0, lists: int = 1) -> None:
    new = {one.key: one for one in frontends}
    gone = {key: None for key in programmer.frontends if key not in new}
    programmer.change({**new, **gone}, lists, now)


def test_first_write_then_nothing() -> None:
    """Everything is made once; the same again, and a restart, write nothing."""
    kernel, disk = FakeKernel(), Disk()
    programmer = agent(kernel, disk)
    want(programmer, A, B, C)
    assert programmer.write(0.0).ok
    made = len(kernel.log)
    assert made == len(kernel.state) == 1 + 2 + 3 + 3
    want(programmer, A, B, C)
    assert programmer.write(1.0).plan == ()
    again = agent(kernel, disk)
    want(again, A, B, C)
    written = again.write(2.0)
    assert (written.ok, written.plan, len(kernel.log)) == (True, (), made)


def test_make_before_break() -> None:
    """Additions come first, in the order of kinds; removals last, the other way round."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    want(programmer, A)
    programmer.write(0.0)
    kernel.log.clear()
    want(programmer, frontend("10.96.0.9", 80, "10.1.0.9"))
    programmer.write(1.0)
    steps = [(operation.verb.value, operation.key.kind) for operation in kernel.log]
    assert steps == [
        ("add", "route"),
        ("add", "service"),
        ("add", "destination"),
        ("remove", "destination"),
        ("remove", "destination"),
        ("remove", "service"),
        ("remove", "route"),
    ]


def test_a_shared_object_goes_with_its_last_user() -> None:
    """Two ports of one address have one route."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    route = ObjectKey("route", "10.96.0.1")
    want(programmer, A, B)
    programmer.write(0.0)
    want(programmer, B)
    programmer.write(1.0)
    assert route in kernel.state
    want(programmer)
    programmer.write(2.0)
    assert route not in kernel.state


def test_one_endpoint_is_one_write() -> None:
    """A changed endpoint costs its own operations, whatever else is programmed."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    many = [frontend(f"10.96.1.{n}", 80, "10.1.0.1", "10.1.0.2") for n in range(50)]
    want(programmer, *many)
    programmer.write(0.0)
    kernel.log.clear()
    changed = frontend("10.96.1.7", 80, "10.1.0.1", "10.1.0.3")
    programmer.change({changed.key: changed}, 1, 1.0)
    programmer.write(1.0)
    assert [operation.verb for operation in kernel.log] == [Verb.ADD, Verb.REMOVE]


def test_what_failed_is_tried_again() -> None:
    """A refused operation stays pending and waits longer each time; the rest is done."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    kernel.fault = lambda operation: errno.ENOMEM if operation.key.kind == "service" else 0
    want(programmer, A)
    written = programmer.write(0.0)
    assert {failure.errno for failure in written.failed} == {errno.ENOMEM, errno.ESRCH}
    assert programmer.pace.next(0.0) == 1.0
    assert not programmer.write(1.0).ok
    assert programmer.pace.next(1.0) == 3.0
    kernel.fault = lambda operation: 0
    assert programmer.write(3.0).ok
    assert len(kernel.state) == 5
    assert programmer.planner.pending == 0


def test_a_foreign_object_in_our_place_is_left_alone() -> None:
    """Not in the ledger: neither edited nor removed, at start, sync and end; told. With adopt it becomes ours."""
    kernel, disk = FakeKernel(), Disk()
    service = ObjectKey("service", tuple(A.key))
    kernel.state[service] = "wlc"
    programmer = agent(kernel, disk)
    want(programmer, A, C)
    written = programmer.write(0.0)
    assert written.drift is not None
    assert written.drift.foreign == (service,)
    assert kernel.state[service] == "wlc"
    want(programmer, frontend("10.96.0.1", 80, "10.1.0.1", "10.1.0.7"), C)
    assert programmer.write(0.5).plan == ()
    want(programmer)
    programmer.write(1.0)
    assert kernel.state == {**kernel.fixed(PLACE), service: "wlc"}


def test_adopted() -> None:
    """Told so, somebody else's object becomes ours with all that belongs to it, and stays ours in the next process."""
    kernel, disk = FakeKernel(), Disk()
    service = ObjectKey("service", tuple(A.key))
    theirs = ObjectKey("destination", (tuple(A.key), "10.9.9.9", 9))
    kernel.state.update({service: "wlc", theirs: 1})
    adopting = agent(kernel, disk, adopt=True)
    want(adopting, A)
    adopting.write(2.0)
    adopting.write(40.0)
    assert kernel.state == {**kernel.fixed(PLACE), **kernel.translate(A, PLACE)}
    again = agent(kernel, disk)
    want(again)
    again.write(50.0)
    assert kernel.state == kernel.fixed(PLACE)


def test_somebody_was_faster() -> None:
    """A foreign object that appears between the look and the write does not become ours by our failed attempt."""
    kernel, disk = FakeKernel(), Disk()
    programmer = agent(kernel, disk)
    service = ObjectKey("service", tuple(C.key))

    def race(operation: object) -> int:
        kernel.state.setdefault(service, "sh")
        return 0

    kernel.fault = race
    want(programmer, C)
    assert [failure.errno for failure in programmer.write(0.0).failed] == [errno.EEXIST]
    kernel.fault = lambda operation: 0
    want(programmer)
    programmer.write(1.0)
    again = agent(kernel, disk)
    again.write(2.0)
    assert kernel.state[service] == "sh"


@pytest.mark.acceptance(101)
def test_crash_at_every_write() -> None:
    """The process ends after any number of writes: the next one converges and leaves no orphan."""
    for survived in range(40):
        kernel, disk = FakeKernel(), Disk()
        first = agent(kernel, disk)
        want(first, A, B)
        first.write(0.0)
        kernel.crash_at = survived
        want(first, C, frontend("10.96.0.1", 80, "10.1.0.2", "10.1.0.5"), now=1.0)
        try:
            first.write(1.0)
        except Crash:
            finished = False
        else:
            finished = True
        kernel.crash_at = -1
        second = agent(kernel, disk)
        want(second, C)
        assert second.write(2.0).ok
        expected = {**kernel.fixed(PLACE), **kernel.translate(C, PLACE)}
        assert kernel.state == expected
        if finished:
            return
    pytest.fail("never finished")


def test_a_full_disk_writes_nothing_to_the_kernel() -> None:
    """An object that could not be noted would be orphaned by a crash."""
    kernel, disk = FakeKernel(), Disk()
    programmer = agent(kernel, disk)
    disk.broken = True
    want(programmer, A)
    assert isinstance(programmer.write(0.0).error, OSError)
    assert kernel.log == []
    disk.broken = False
    assert programmer.write(1.0).ok


def test_edited_behind_our_back() -> None:
    """The audit finds what is gone, what is different and what came back, and mends all of it."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    want(programmer, A, B)
    programmer.write(0.0)
    before = dict(kernel.state)
    service = ObjectKey("service", tuple(A.key))
    del kernel.state[ObjectKey("route", "10.96.0.1")]
    kernel.state[service] = "sh"
    kernel.state[ObjectKey("destination", (tuple(A.key), "10.9.9.9", 1))] = 1
    written = programmer.write(30.0)
    assert written.drift is not None
    assert written.drift.count == 3
    assert kernel.state == before


def test_mass_removal_waits() -> None:
    """Most frontends gone or emptied at once: held until two more lists say the same, or a person does."""
    many = [frontend(f"10.96.1.{n}", 80, "10.1.0.1") for n in range(40)]
    emptied = [frontend(f"10.96.1.{n}", 80) for n in range(40)]
    for after, approved in ((many[:5], False), (emptied, False), ([], True)):
        kernel = FakeKernel()
        programmer = agent(kernel, Disk(), guard=Guard(share=0.5, confirmations=2))
        want(programmer, *many)
        programmer.write(0.0)
        full = dict(kernel.state)
        extra = frontend("10.96.2.1", 80, "10.1.0.1")
        want(programmer, *after, extra, lists=2)
        programmer.write(1.0)
        assert full.items() <= kernel.state.items()
        assert ObjectKey("service", tuple(extra.key)) in kernel.state
        if approved:
            programmer.guard.approve()
            programmer.change({}, 2, 2.0)
        else:
            programmer.change({}, 3, 2.0)
            assert programmer.held
            programmer.change({}, 4, 3.0)
        assert not programmer.held
        programmer.write(3.0)
        assert len(programmer.frontends) == len(after) + 1
        services = [key for key in kernel.state if key.kind == "service"]
        assert len(services) == len(after) + 1


def test_a_mass_removal_in_small_pieces_waits() -> None:
    """One Service at a time within a while: half of them go, the others wait. What was confirmed, or happened long ago,
    does not add up, and neither does what came and went."""
    many = [frontend(f"10.96.1.{n}", 80, "10.1.0.1") for n in range(40)]
    for pause, held in ((1.0, 20), (WINDOW / 15, 0)):
        programmer = agent(FakeKernel(), Disk(), guard=Guard(share=0.5, confirmations=2))
        want(programmer, *many)
        now = 0.0
        for each in many:
            now += pause
            programmer.change({each.key: None}, 1, now)
        assert len(programmer.held) == held
        if held:
            programmer.change({}, 2, now)
            assert len(programmer.held) == held
            programmer.guard.approve()
            programmer.change({}, 2, now)
            assert not programmer.held
    programmer = agent(FakeKernel(), Disk(), guard=Guard(share=0.5, confirmations=2))
    want(programmer, *many)
    for number in range(100):
        extra = frontend(f"10.96.2.{number}", 80, "10.1.0.1")
        programmer.change({extra.key: extra}, 1, float(number))
        programmer.change({extra.key: None}, 1, number + 0.5)
    assert not programmer.held
    assert len(programmer.frontends) == 40


def test_a_list_that_was_wrong_for_a_moment_costs_nothing() -> None:
    """The right list comes back before the wrong one was confirmed."""
    many = [frontend(f"10.96.1.{n}", 80, "10.1.0.1") for n in range(40)]
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    want(programmer, *many)
    programmer.write(0.0)
    made = len(kernel.log)
    want(programmer, lists=2)
    want(programmer, *many, lists=3)
    assert not programmer.held
    assert programmer.write(1.0).plan == ()
    assert len(kernel.log) == made


def test_paused() -> None:
    """Rules stay as they are; what came meanwhile is written afterwards."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk(), paused=True)
    want(programmer, A)
    assert programmer.write(0.0).plan == ()
    assert kernel.log == []
    programmer.paused = False
    due = programmer.pace.next(5.0)
    assert due is not None
    assert due <= 5.0
    assert programmer.write(5.0).ok
    assert kernel.log


def test_the_node_moves() -> None:
    """Another node address changes what depends on it, and only that."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    want(programmer, A, C)
    programmer.write(0.0)
    kernel.log.clear()
    programmer.move(type(PLACE)(family=4, node_addresses=("192.0.2.9",)))
    programmer.write(1.0)
    assert {(operation.verb, operation.key.kind) for operation in kernel.log} == {(Verb.SET, "route")}


@pytest.mark.acceptance(98)
def test_after_news_of_the_host_the_kernel_is_read_again() -> None:
    """What an address that came or went took along is mended now, not with the next audit."""
    kernel = FakeKernel()
    programmer = agent(kernel, Disk())
    want(programmer, A)
    programmer.write(0.0)
    lost = next(key for key in kernel.state if key.kind == "route")
    value = kernel.state.pop(lost)
    programmer.distrust()
    programmer.change({}, 1, 10.0)
    due = programmer.pace.next(10.0)
    assert due is not None
    assert programmer.write(max(due, 10.0)).ok
    assert kernel.state[lost] == value
