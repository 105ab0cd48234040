"""The engine's pure parts under any sequence of events."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.pace import RETRY_MOST, Pace
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.objects import ObjectKey, Operation
from tests.unit.agent.fake_kernel import PLACE, FakeKernel, frontend

ADDRESSES = ["10.96.0.1", "10.96.0.2"]
FRONTENDS = st.builds(
    lambda address, port, targets, scheduler: frontend(address, port, *targets, scheduler=scheduler),
    st.sampled_from(ADDRESSES),
    st.sampled_from([80, 443]),
    st.lists(st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3"]), unique=True, max_size=3),
    st.sampled_from(["rr", "sh"]),
)
WORLDS = st.lists(FRONTENDS, max_size=4).map(lambda some: {one.key: one for one in some})
#: Per step: what is wanted, which operations fail (by their number), and whether the process starts anew before it.
STEPS = st.lists(st.tuples(WORLDS, st.sets(st.integers(0, 12)), st.booleans()), min_size=1, max_size=6)


@given(STEPS, st.booleans())
def test_any_history_ends_the_same(steps: Any, foreigner: bool) -> None:
    """Whatever was wanted before, failed or was interrupted: the kernel ends at what is wanted last, nothing more,
    and a foreign object stays untouched."""
    kernel = FakeKernel()
    foreign = ObjectKey("service", ("TCP", "198.51.100.1", 80))
    if foreigner:
        kernel.state[foreign] = "wlc"
    disk = bytearray()
    programmer = None
    now = 0.0
    for world, failing, restart in steps:
        if programmer is None or restart:
            ledger = Ledger()
            ledger.read(bytes(disk))
            programmer = Programmer(kernel, PLACE, ledger, disk.extend)
        gone = {key: None for key in programmer.frontends if key not in world}
        programmer.change({**world, **gone}, 1, now)
        counter = iter(range(1000))
        kernel.fault = lambda operation, c=counter, f=failing: (  # type: ignore[misc]
            errno.ENOMEM if next(c) in f else 0
        )
        programmer.write(now)
        now += 100.0
    assert programmer is not None
    kernel.fault = lambda operation: 0
    for _ in range(3):
        programmer.write(now)
        now += 100.0
    expected: dict[ObjectKey, Any] = dict(kernel.fixed(PLACE))
    for one in steps[-1][0].values():
        expected.update(kernel.translate(one, PLACE))
    if foreigner:
        expected[foreign] = "wlc"
    assert kernel.state == expected
    assert programmer.write(now).plan == ()


@given(st.lists(WORLDS, min_size=1, max_size=5))
def test_shadow_equals_scratch(worlds: Any) -> None:
    """Changes one after another lead to the plan that a fresh start would make; the order of sources is no matter."""
    step = Programmer(FakeKernel(), PLACE, Ledger(), lambda lines: None)
    for world in worlds:
        step.change({**{key: None for key in step.frontends if key not in world}, **world}, 1, 0.0)
    fresh = Programmer(FakeKernel(), PLACE, Ledger(), lambda lines: None)
    fresh.change(dict(reversed(list(worlds[-1].items()))), 1, 0.0)

    def shape(programmer: Programmer) -> list[Operation]:
        return list(programmer.preview())

    assert shape(step) == shape(fresh)


NAMES = st.recursive(
    st.one_of(st.text(max_size=5), st.integers(0, 65535)),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
KEYS = st.builds(ObjectKey, st.sampled_from(["service", "chain"]), NAMES)
RECORDS = st.lists(
    st.one_of(
        st.tuples(st.just("own"), st.lists(KEYS, max_size=3)),
        st.tuples(st.just("disown"), st.lists(KEYS, max_size=3)),
        st.tuples(st.just("sysctl"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("restored"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("compact"), st.none()),
    ),
    max_size=12,
)


@given(RECORDS, st.integers(0, 40))
def test_the_journal_says_what_the_ledger_knew(records: Any, torn: int) -> None:
    """Replayed, compacted or cut in its last line, the journal gives the ledger that wrote it (or the one before)."""
    ledger, data = Ledger(), b""
    for what, value in records:
        match what:
            case "own":
                data += ledger.own(value)
            case "disown":
                data += ledger.disown(value)
            case "sysctl":
                data += ledger.note_sysctl(value, "0")
            case "restored":
                data += ledger.restored_sysctl(value)
            case _:
                data = ledger.compact()
    again = Ledger()
    again.read(data)
    assert (again.owned, again.sysctls, again.broken, again.unknown) == (ledger.owned, ledger.sysctls, 0, [])
    cut = Ledger()
    cut.read(data[: len(data) - torn] if torn else data)
    assert cut.broken <= 1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_journal(data: bytes) -> None:
    """A damaged file raises nothing; what it does not say is not ours, and records of another version are kept."""
    ledger = Ledger()
    ledger.read(data)
    once = ledger.compact()
    again = Ledger()
    again.read(once)
    assert (again.owned, again.sysctls) == (ledger.owned, ledger.sysctls)
    assert again.compact() == once


EVENTS = st.lists(st.tuples(st.sampled_from(["want", "ok", "fail"]), st.floats(0, 40)), max_size=30)


@pytest.mark.acceptance(103)
@given(EVENTS)
def test_pace_forgets_nothing_and_never_hurries(events: Any) -> None:
    """A change is due until a write that began after it succeeded; writes keep the interval, failures the wait."""
    pace = Pace(min_interval=1.0, max_interval=30.0, burst=2)
    now, pending, starts = 0.0, False, []
    for what, wait in events:
        now += wait
        if what == "want":
            pace.want(now)
            pending = True
        else:
            due = pace.next(now)
            if due is None:
                assert not pending
                continue
            now = max(now, due)
            pace.began(now)
            starts.append(now)
            if what == "ok":
                pace.succeeded(now, pace.audit_due(now))
                pending = False
            else:
                pace.failed(now)
                pending = True
                retry = pace.next(now)
                assert retry is not None
                assert now < retry <= now + RETRY_MOST
        if pending:
            assert pace.next(now) is not None
            assert pace.wanted_since is not None
    for first, third in zip(starts, starts[2:], strict=False):
        assert third - first > 1.0 - 1e-6
