"""The reflector against a model server with random faults: it converges and invents nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.discovery.kubernetes.faults import Fault, FaultKind
from meshlib.discovery.kubernetes.gate import Gate, Ticket
from meshlib.discovery.kubernetes.lines import LineSplitter
from meshlib.discovery.kubernetes.reflector import (
    Changed,
    EventKind,
    Key,
    List,
    ListPage,
    Reflector,
    Sleep,
    Watch,
    WatchEvent,
)

FAULTS = st.sampled_from([kind for kind in FaultKind if kind is not FaultKind.SHORT_WATCH])
Item = tuple[int, int]  # name, generation


class ReflectorMachine(RuleBasedStateMachine):
    """The server holds objects, a version and a history; the machine plays driver and network."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.version = 10
        self.oldest = 0
        self.objects: dict[Key, Item] = {}
        self.history: list[tuple[int, EventKind, Key, Item]] = []
        self.ever: set[tuple[Key, Item]] = set()
        self.seen_versions = {"", "0"}
        self.luck = 0.5
        self.reflector: Reflector[Item] = Reflector(lambda: self.luck, weight=lambda item: 1)
        self.mirror: dict[Key, Item] = {}
        self.action: Any = None
        self.since = 0  # position of the open watch
        self.open = False
        self.requests: list[float] = []
        self.unread: set[Key] = set()  # the server's latest state of these was unreadable when it was listed
        self.take(self.reflector.start(self.now))

    def take(self, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Changed):
                self.mirror.update(command.upserts)
                for key in command.removals:
                    assert key in self.mirror
                    del self.mirror[key]
            elif isinstance(command, List | Watch | Sleep):
                self.action = command
                self.open = False
                if not isinstance(command, Sleep):
                    self.requests.append(self.now)
                    assert command.resource_version in self.seen_versions

    # the world

    @rule(name=st.integers(0, 6))
    def put(self, name: int) -> None:
        key = ("ns", str(name))
        self.version += 1
        item = (name, self.version)
        kind = EventKind.MODIFIED if key in self.objects else EventKind.ADDED
        self.objects[key] = item
        self.ever.add((key, item))
        self.history.append((self.version, kind, key, item))

    @rule(name=st.integers(0, 6))
    def delete(self, name: int) -> None:
        key = ("ns", str(name))
        if key in self.objects:
            self.version += 1
            self.history.append((self.version, EventKind.DELETED, key, self.objects.pop(key)))

    @rule()
    def compact(self) -> None:
        behind = self.open and any(each[0] > self.since for each in self.history)
        self.oldest = self.version
        self.history.clear()
        if behind:  # a server cannot go on with a watch whose events it has lost
            self.take(self.reflector.watch_ended(self.now, Fault(FaultKind.EXPIRED, "too old")))

    @rule(seconds=st.floats(0.1, 2000), luck=st.floats(0, 1, exclude_max=True))
    def pass_time(self, seconds: float, luck: float) -> None:
        self.now += seconds
        self.luck = luck
        if self.open:
            self.take(self.reflector.tick(self.now))

    # the network

    @precondition(lambda self: isinstance(self.action, Sleep))
    @rule()
    def wake(self) -> None:
        self.now += self.action.seconds
        self.take(self.reflector.slept(self.now))

    @precondition(lambda self: isinstance(self.action, List))
    @rule(unreadable=st.booleans())
    def answer_list(self, unreadable: bool) -> None:
        items: dict[Key, Item | None] = dict(self.objects)
        self.unread.clear()
        if unreadable and items:
            items[min(items)] = None
            self.unread.add(min(items))
        self.seen_versions.add(str(self.version))
        self.take(self.reflector.listed(ListPage(str(self.version), items), self.now))

    @precondition(lambda self: isinstance(self.action, List))
    @rule(kind=FAULTS, after=st.none() | st.floats(0, 300))
    def fail_list(self, kind: FaultKind, after: float | None) -> None:
        self.take(self.reflector.list_failed(Fault(kind, "made up", retry_after=after), self.now))

    @precondition(lambda self: isinstance(self.action, Watch) and not self.open)
    @rule()
    def open_watch(self) -> None:
        version = int(self.action.resource_version)
        if version < self.oldest:
            self.take(self.reflector.watch_ended(self.now, Fault(FaultKind.EXPIRED, "too old")))
            return
        self.reflector.watch_opened(self.now)
        self.open, self.since = True, version

    @precondition(lambda self: isinstance(self.action, Watch))
    @rule(kind=st.none() | FAULTS)
    def break_watch(self, kind: FaultKind | None) -> None:
        fault = Fault(kind, "made up") if kind is not None else None
        if self.open or fault is not None:
            self.take(self.reflector.watch_ended(self.now, fault))

    @precondition(lambda self: self.open)
    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        pending = [each for each in self.history if each[0] > self.since]
        for version, kind, key, item in pending[:count]:
            self.since = version
            self.seen_versions.add(str(version))
            self.unread.discard(key)
            self.take(self.reflector.received(WatchEvent(kind, str(version), key, item), self.now))

    @precondition(lambda self: self.open and not any(each[0] > self.since for each in self.history))
    @rule()
    def bookmark(self) -> None:
        self.seen_versions.add(str(self.version))
        self.since = max(self.since, self.version)
        self.take(self.reflector.received(WatchEvent(EventKind.BOOKMARK, str(self.version)), self.now))

    # what must hold

    @invariant()
    def changes_add_up(self) -> None:
        assert self.mirror == self.reflector.items

    @invariant()
    def nothing_is_invented(self) -> None:
        assert self.reflector.items.items() <= {(k, v) for k, v in self.ever}

    @invariant()
    def sleeps_are_bounded(self) -> None:
        if isinstance(self.action, Sleep):
            assert 0 <= self.action.seconds <= 300

    def teardown(self) -> None:
        for _ in range(60):  # the world stands still and nothing fails any more
            if isinstance(self.action, Sleep):
                self.wake()
            elif isinstance(self.action, List):
                self.answer_list(unreadable=False)
            elif not self.open:
                self.open_watch()
            else:
                self.deliver(100)
                break
        assert self.open
        for key in self.unread:
            self.objects.pop(key, None)
        copy = {key: item for key, item in self.reflector.items.items() if key not in self.unread}
        assert copy == self.objects


ReflectorMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestReflector(ReflectorMachine.TestCase):  # type: ignore[misc,valid-type]
    """After quiescence the copy equals the server, whatever happened before."""


@given(st.lists(st.binary(max_size=30)), st.data())
def test_lines_do_not_depend_on_chunks(lines: list[bytes], data: st.DataObject) -> None:
    """However the bytes are cut, the same lines come out, and an unfinished last one stays inside."""
    lines = [line.replace(b"\n", b"") for line in lines]
    stream = b"".join(line + b"\n" for line in lines) + b"unfinished"
    splitter, out = LineSplitter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        out += list(splitter.feed(stream[:size]))
        stream = stream[size:]
    assert out == [line for line in lines if line.strip()]
    assert splitter.pending == len(b"unfinished")


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.sampled_from(["ask", "fail", "retry-after"])), max_size=200),
    st.floats(0, 0.99),
)
def test_gate_bounds_a_failing_minute(steps: list[tuple[float, str]], luck: float) -> None:
    """However many ask and however long each waits, a server that only fails is asked 7 times in its first minute."""
    gate = Gate(lambda: luck)
    now, out = 0.0, 0
    waiting: list[Ticket] = []
    for delay, what in steps:
        now += delay
        if now > 60:
            break
        answer = gate.admit(now)
        if isinstance(answer, Ticket):
            out += 1
            waiting.append(answer)
        elif what != "ask" and waiting:
            gate.failed(waiting.pop(), now, 5.0 if what == "retry-after" else None)
    assert out <= 7
    assert len(waiting) <= 1
