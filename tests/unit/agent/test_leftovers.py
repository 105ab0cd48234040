"""Changing the mode: the old one's objects go, after the new one has everything, and nobody else's ever."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from meshlib.agent.backends.base import Probe
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.leftovers import RETRY, Departed, Leftovers, entry, others
from meshlib.agent.objects import ObjectKey, Operation, Verb
from tests.unit.agent.fake_kernel import PLACE, FakeKernel, frontend
from tests.unit.agent.test_sweep import World, facts


@dataclass
class Drains(FakeKernel):
    """Destinations that were removed keep it busy until a time."""

    busy_until: float = 0.0

    def tick(self, now: float) -> float | None:
        return self.busy_until if now < self.busy_until else None


@dataclass
class Old:
    kernel: Drains = field(default_factory=Drains)
    ledger: Ledger = field(default_factory=Ledger)
    lines: list[bytes] = field(default_factory=list)
    told: list[Departed] = field(default_factory=list)

    def __post_init__(self) -> None:
        for objects in (
            self.kernel.fixed(PLACE),
            self.kernel.translate(frontend("10.96.0.1", 80, "10.1.0.1"), PLACE),
        ):
            self.kernel.state.update(objects)
        self.ledger.own(key for key in self.kernel.state if self.kernel.ledger_key(key) == key)

    def leftovers(self, kept: tuple[str, ...] = ()) -> Leftovers:
        olds = others("new", kept, [("old", 4, self.kernel)])
        return Leftovers(olds, self.ledger, self.lines.append, self.told.append)


def test_endpoints_first_and_the_rest_when_they_have_drained() -> None:
    """Endpoints are removed, which makes them drain; virtual servers and addresses stay until then."""
    old = Old(Drains(busy_until=100.0))
    going = old.leftovers()
    assert going.step(0.0) == 100.0
    assert {key.kind for key in old.kernel.state} == {"table", "route", "service"}
    assert going.step(50.0) == 100.0
    assert old.kernel.state
    assert going.step(100.0) is None
    assert old.kernel.state == {}
    assert [each.key.kind for each in old.kernel.log] == ["destination", "service", "route", "table"]
    assert not old.ledger.owned
    assert Ledger().owned == old.ledger.owned
    assert [each.removed for each in old.told] == [1, 3]
    assert going.removed == 4


def test_one_shape_after_the_other() -> None:
    """Two shapes of one mode: what the second holds up stays until the first one's endpoints have drained."""
    old = Old(Drains(busy_until=100.0))
    device = FakeKernel(kinds=("device",), state={ObjectKey("device", "meshlib0"): None})
    olds = others("new", (), [("old", 4, old.kernel), ("old", 4, device), ("old", 6, FakeKernel())])
    going = Leftovers(olds, old.ledger, old.lines.append, old.told.append)
    assert going.step(0.0) == 100.0
    assert device.state
    assert going.step(100.0) is None
    assert (old.kernel.state, device.state) == ({}, {})


def test_what_both_modes_have_stays() -> None:
    """A table that the new mode has made its own is not the old one's any more."""
    old = Old()
    old.leftovers(kept=("table", "other")).step(0.0)
    assert {key.kind for key in old.kernel.state} == {"table"}


def test_foreign_objects_stay() -> None:
    """A virtual server that is not in the ledger is somebody else's, and so are its endpoints."""
    old = Old()
    old.ledger.owned.clear()
    assert old.leftovers().step(0.0) is None
    assert {key.kind for key in old.kernel.state} == {"service", "destination"}


def test_what_is_refused_is_tried_again() -> None:
    """The kernel refuses for a while: told, tried again, and gone in the end."""
    old = Old()

    def busy(operation: Operation) -> int:
        return errno.EBUSY if operation.key.kind == "route" else 0

    old.kernel.fault = busy
    going = old.leftovers()
    assert going.step(0.0) == RETRY
    assert [len(each.failed) for each in old.told] == [0, 1]
    old.kernel.fault = lambda operation: 0
    assert going.step(RETRY) is None
    assert old.kernel.state == {}


def test_a_mode_that_the_kernel_lacks() -> None:
    """It has none of its objects: silence. Its state cannot be read for another reason: told once."""
    old = Old()
    number = errno.ENOENT

    def lacks(family: int) -> dict[ObjectKey, object]:
        raise OSError(number, "no such family")

    old.kernel.dump = lacks  # type: ignore[method-assign]
    assert old.leftovers().step(0.0) is None
    assert old.told == []
    number = errno.EPERM
    assert old.leftovers().step(0.0) is None
    assert [each.error for each in old.told] == ["[Errno 1] no such family"]
    assert all(each.verb is not Verb.REMOVE for each in old.kernel.log)


def test_rules_that_programs_alone_can_read() -> None:
    """The ledger says that they are here: without the program they stay, which is told, and the ledger goes on saying
    so; with it they go, and so does the entry. Whoever runs the program is told when it is needed no more."""
    old, over = Old(), list[bool]()
    noted = entry("iptables", 4)
    old.ledger.own([noted])
    olds = others("new", (), [("iptables", 4, old.kernel)])
    old.kernel.probe = lambda: Probe(False, "not installed", ())  # type: ignore[method-assign]
    going = Leftovers(olds, old.ledger, old.lines.append, old.told.append, lambda: over.append(True))
    assert going.step(0.0) is None
    assert [each.error for each in old.told] == ["its rules stay: not installed"]
    assert (noted in old.ledger.owned, bool(old.kernel.state), over) == (True, True, [True])
    old.kernel.probe = lambda: Probe(True, "fake")  # type: ignore[method-assign]
    going = Leftovers(olds, old.ledger, old.lines.append, old.told.append, lambda: over.append(True))
    assert going.step(0.0) is None
    assert (old.ledger.owned, old.kernel.state, over) == (set(), {}, [True, True])


def test_a_ledger_that_cannot_be_written() -> None:
    """A full file system: what is gone is gone, it is told, and the agent goes on."""
    old = Old()

    def full(lines: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    olds = others("new", (), [("old", 4, old.kernel)])
    assert Leftovers(olds, old.ledger, full, old.told.append).step(0.0) is None
    assert old.kernel.state == {}
    assert "No space left" in old.told[-1].error


def test_looked_at_again_only_when_something_went() -> None:
    """After leftovers went the kernel is read once more, as they may have stood in the way; else it is not."""
    for there in (True, False):
        world, old = World(), Old()
        if not there:
            old.kernel.state.clear()
        world.engine.leftovers = old.leftovers()
        due = world.tell(facts("10.1.0.1"))
        assert getattr(world.engine, "leftovers", "") is None
        assert due is not None
        assert (due <= world.now) is there
        world.engine.step()
        assert len(world.steps) == (2 if there else 1)
        assert world.engine.pending_since is None
