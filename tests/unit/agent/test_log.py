"""The agent's log: one line per change, in text and in JSON; bounded whatever happens."""

from __future__ import annotations

import errno
import json
from typing import Any

from meshlib.agent.backends.base import words
from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.desired import Action, Frontend, Note, Place, Route
from meshlib.agent.engine.leftovers import Departed
from meshlib.agent.engine.node import Step
from meshlib.agent.engine.planner import Drift
from meshlib.agent.engine.programmer import Written
from meshlib.agent.engine.sweep import Swept
from meshlib.agent.objects import Failed, ObjectKey, Operation, Verb
from meshlib.agent.ops.log import MOST, NAMED, Log, change_entries, step_entries
from meshlib.model.service import ServiceKey
from tests.unit.agent.fake_kernel import FakeKernel, frontend


def say(key: ObjectKey, value: Any) -> str:
    return words(FakeKernel(), key, value)


def test_removals_that_are_held_back() -> None:
    """Told when there are some, and when there are none any more; not with every change in between."""
    lines: list[str] = []
    log = Log(lines.append, lambda: 0.0)
    for count in (0, 40, 40, 41, 0, 0):
        log.held(4, count)
    assert [line.split(",")[0] for line in lines] == [
        "IPv4: 40 removals are held back",
        "IPv4: 41 removals are held back",
        "IPv4: no removal is held back any more",
    ]


def test_a_frontend_from_birth_to_end() -> None:
    """New, changed, without endpoints, dropping, gone: who, where, and which endpoints came and went."""
    one = frontend("10.96.0.1", 80, "10.1.0.1")
    two = frontend("10.96.0.1", 80, "10.1.0.2", "10.1.0.3")
    empty = frontend("10.96.0.1", 80)
    dropping = Frontend(one.key, one.kind, one.owner, Route(Action.DROP))
    pairs = [(None, one), (one, two), (two, empty), (empty, dropping), (dropping, None)]
    lines = [
        entry.text for pair in pairs for entry in change_entries(4, DesiredChange(frontends={one.key: pair}))
    ]
    assert lines == [
        "TCP 10.96.0.1:80 of shop/s-10.96.0.1:80/TCP: 1 endpoints (+10.1.0.1:8080)",
        "TCP 10.96.0.1:80 of shop/s-10.96.0.1:80/TCP: 2 endpoints (+10.1.0.2:8080, +10.1.0.3:8080, -10.1.0.1:8080)",
        "TCP 10.96.0.1:80 of shop/s-10.96.0.1:80/TCP: no endpoint: refused (-10.1.0.2:8080, -10.1.0.3:8080)",
        "TCP 10.96.0.1:80 of shop/s-10.96.0.1:80/TCP: no endpoint on this node: dropped",
        "TCP 10.96.0.1:80 of shop/s-10.96.0.1:80/TCP: gone",
    ]


def test_lines_are_bounded() -> None:
    """A start with many frontends is one line; many endpoints are a few and a number; so are many refusals."""
    many = {each.key: (None, each) for each in (frontend("10.96.0.1", port) for port in range(1, MOST + 2))}
    (line,) = change_entries(4, DesiredChange(frontends=many))
    assert (line.text, line.fields["changed"]) == (
        f"IPv4: {MOST + 1} frontends changed, 0 of them gone",
        MOST + 1,
    )
    wide = frontend("10.96.0.1", 80, *(f"10.1.0.{n}" for n in range(NAMED + 3)))
    (line,) = change_entries(4, DesiredChange(frontends={wide.key: (None, wide)}))
    assert line.text.endswith(", +3 more)")
    assert len(line.fields["added"]) == NAMED + 3
    operation = Operation(Verb.ADD, ObjectKey("service", ("TCP", "10.96.0.1", 80)), "rr")
    failed = tuple(Failed(operation, errno.ENOMEM, "out of memory") for _ in range(NAMED + 5))
    lines = [entry.text for entry in step_entries(Step(4, Written((operation,), failed), 0.001), say)]
    assert len(lines) == 1 + NAMED + 1
    assert lines[-1] == "IPv4: and 5 operations more were refused"


def test_steps() -> None:
    """What was written, what drifted, what would not go; silence when nothing happened."""
    assert list(step_entries(Step(4, Written(), 0.1), say)) == []
    key = ObjectKey("route", "10.96.0.1")
    drift = Drift(missing=(key,), foreign=(key,))
    written = Written((Operation(Verb.ADD, key, None),), (), drift)
    events = [entry.event for entry in step_entries(Step(4, written, 0.1), say)]
    assert events == ["drift", "foreign", "written"]
    (line,) = step_entries(Step(6, Written(error=OSError(5, "Input/output error")), 0.1), say)
    assert (line.event, line.text) == ("failed", "IPv6: nothing was written: [Errno 5] Input/output error")


def test_json_and_repetition() -> None:
    """JSON lines carry time, event and fields; a sweep that goes on failing is told once, and again after it worked."""
    lines: list[str] = []
    log = Log(lines.append, lambda: 1700000000.1234, as_json=True)
    note = Note(ServiceKey("shop", "a\x1b[31m"), "conflict", "served for another")
    log.change(6, DesiredChange(place=Place(6, ("2001:db8::1",)), notes_added=(note,)))
    node, noted = map(json.loads, lines)
    assert node == {
        "time": 1700000000.123,
        "event": "node",
        "message": "IPv6: node ports on 2001:db8::1",
        "family": 6,
        "addresses": ["2001:db8::1"],
    }
    assert (noted["event"], noted["reason"]) == ("note", "conflict")
    assert all("\x1b" not in line for line in lines)
    lines.clear()
    failing = Step(4, Written(), 0.0, swept=Swept(None, 0.1, "not permitted"))
    for step in (failing, failing, Step(4, Written(), 0.0, swept=Swept(None, 0.1)), failing):
        log.step(step, say)
    assert [json.loads(line)["event"] for line in lines] == ["sweep-failed", "sweep-failed"]
    log.departed(Departed("ipvs", 4, 3))
    assert json.loads(lines[-1])["removed"] == 3
