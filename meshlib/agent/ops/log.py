"""The agent's log: one line per change, for people or (``--log json``) for programs. Pure, but for the writing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.desired import Action, Frontend, FrontendKey, Route
from meshlib.agent.engine.leftovers import Departed
from meshlib.agent.engine.node import Step
from meshlib.agent.objects import ObjectKey
from meshlib.model.events import EntrySkipped, Event, SourceFailed, SourceRecovered

#: Frontends of one change that are told one by one; more (a start, a relist) become one line.
MOST = 50
#: Endpoints named in a line; the rest is a number. A line should fit on a screen.
NAMED = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``event``: a stable word; ``fields``: plain values, their names are part of the interface."""

    event: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class Log:
    """``write`` takes one line; ``wall`` is Unix seconds. From any thread that ``write`` allows."""

    def __init__(
        self, write: Callable[[str], None], wall: Callable[[], float], *, as_json: bool = False
    ) -> None:
        self._write = write
        self._wall = wall
        self._json = as_json
        self._sweep_problem: dict[int, str] = {}
        self._held: dict[int, int] = {}

    def entry(self, entry: Entry) -> None:
        """Write it."""
        if not self._json:
            self._write(entry.text)
            return
        document = {
            "time": round(self._wall(), 3),
            "event": entry.event,
            "message": entry.text,
            **entry.fields,
        }
        self._write(json.dumps(document, default=str))

    def say(self, text: str) -> None:
        """A line without fields."""
        self.entry(Entry("agent", text))

    def step(self, step: Step, words: Callable[[ObjectKey, Any], str]) -> None:
        """One write. A sweep that goes on failing for the same reason is told once."""
        swept = step.swept
        for entry in step_entries(step, words):
            if entry.event == "sweep-failed" and swept is not None:
                if self._sweep_problem.get(step.family) == swept.error:
                    continue
                self._sweep_problem[step.family] = swept.error
            self.entry(entry)
        if swept is not None and not swept.error:
            self._sweep_problem.pop(step.family, None)

    def change(self, family: int, change: DesiredChange) -> None:
        """What will be written."""
        for entry in change_entries(family, change):
            self.entry(entry)

    def held(self, family: int, count: int) -> None:
        """How many removals the guard holds back now; told when it is another number than before."""
        if self._held.get(family, 0) == count:
            return
        self._held[family] = count
        text = (
            f"IPv{family}: {count} removals are held back, as too much would go: `meshlib agent approve` lets them "
            "through, and so do further complete lists that say the same"
            if count
            else f"IPv{family}: no removal is held back any more"
        )
        self.entry(Entry("held", text, {"family": family, "count": count}))

    def event(self, event: Event) -> None:
        """What the source says."""
        entry = event_entry(event)
        if entry is not None:
            self.entry(entry)

    def departed(self, departed: Departed) -> None:
        """Something of another mode went, or would not."""
        self.entry(departed_entry(departed))


def change_entries(family: int, change: DesiredChange) -> Iterator[Entry]:
    """The lines of one difference."""
    name = f"IPv{family}"
    if change.place is not None:
        addresses = ", ".join(change.place.node_addresses) or "none"
        yield Entry(
            "node",
            f"{name}: node ports on {addresses}",
            {"family": family, "addresses": list(change.place.node_addresses)},
        )
    if len(change.frontends) > MOST:
        gone = sum(new is None for _, new in change.frontends.values())
        text = f"{name}: {len(change.frontends)} frontends changed, {gone} of them gone"
        yield Entry("frontends", text, {"family": family, "changed": len(change.frontends), "gone": gone})
    else:
        for key, (old, new) in sorted(change.frontends.items()):
            yield _frontend(family, key, old, new)
    for note in change.notes_added:
        yield Entry(
            "note",
            f"{name}: {note.service}: {note.text} ({note.reason})",
            {"family": family, "service": str(note.service), "reason": note.reason},
        )


def _frontend(family: int, key: FrontendKey, old: Frontend | None, new: Frontend | None) -> Entry:
    shown = new or old
    owner = str(shown.owner) if shown is not None else ""
    before = _endpoints(old.route if old else None)
    after = _endpoints(new.route if new else None)
    added, removed = sorted(after - before), sorted(before - after)
    fields = {"family": family, "frontend": str(key), "service": owner, "added": added, "removed": removed}
    if new is None:
        return Entry("frontend-gone", f"{key} of {owner}: gone", {**fields, "action": "none", "endpoints": 0})
    state = {
        Action.FORWARD: f"{len(after)} endpoints",
        Action.REJECT: "no endpoint: refused",
        Action.DROP: "no endpoint on this node: dropped",
    }[new.route.action]
    moved = ", ".join(_named("+", added) + _named("-", removed))
    text = f"{key} of {owner}: {state}" + (f" ({moved})" if moved else "")
    word = "frontend-new" if old is None else "frontend-changed"
    return Entry(word, text, {**fields, "action": new.route.action.value, "endpoints": len(after)})


def _endpoints(route: Route | None) -> set[str]:
    found = set()
    for address, port, _ in route.targets if route is not None else ():
        found.add(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
    return found


def _named(sign: str, endpoints: list[str]) -> list[str]:
    shown = [sign + each for each in endpoints[:NAMED]]
    return [*shown, f"{sign}{len(endpoints) - NAMED} more"] if len(endpoints) > NAMED else shown


def step_entries(step: Step, words: Callable[[ObjectKey, Any], str]) -> Iterator[Entry]:
    """The lines of one write; none when nothing was done."""
    written, drift, name = step.written, step.written.drift, f"IPv{step.family}"
    fields: dict[str, Any] = {"family": step.family, "seconds": round(step.seconds, 6)}
    if drift is not None and drift.count:
        counts = {what: len(getattr(drift, what)) for what in ("missing", "different", "surplus")}
        text = ", ".join(f"{count} {what}" for what, count in counts.items())
        yield Entry(
            "drift",
            f"{name}: changed behind our back: {text}",
            {**fields, **counts},
        )
    if drift is not None and drift.foreign:
        text = f"{name}: {len(drift.foreign)} places are taken by somebody else and left alone"
        yield Entry("foreign", text, {**fields, "count": len(drift.foreign)})
    if written.plan:
        done = len(written.plan) - len(written.failed)
        text = f"{name}: {done} operations in {step.seconds * 1000:.1f} ms"
        yield Entry("written", text, {**fields, "operations": done, "failed": len(written.failed)})
    for failure in written.failed[:NAMED]:
        operation = failure.operation
        what = f"{operation.verb.value} {words(operation.key, operation.value)}"
        yield Entry(
            "refused",
            f"{name}: {what}: {failure.text}",
            {**fields, "errno": failure.errno, "operation": what},
        )
    if len(written.failed) > NAMED:
        yield Entry(
            "refused", f"{name}: and {len(written.failed) - NAMED} operations more were refused", fields
        )
    if written.error is not None:
        yield Entry("failed", f"{name}: nothing was written: {written.error}", fields)
    swept = step.swept
    if swept is not None and swept.error:
        yield Entry("sweep-failed", f"{name}: stale flows could not be looked for: {swept.error}", fields)
    elif (
        swept is not None
        and swept.forgotten is not None
        and (swept.forgotten.deleted or swept.forgotten.refused)
    ):
        deleted, refused = swept.forgotten.deleted, len(swept.forgotten.refused)
        text = f"{name}: {deleted} stale flows forgotten" + (f", {refused} refused" if refused else "")
        yield Entry("swept", text, {**fields, "deleted": deleted, "refused": refused})


def departed_entry(departed: Departed) -> Entry:
    """The line about another mode."""
    name = f"{departed.mode} IPv{departed.family}"
    if departed.error:
        return Entry(
            "leftovers", f"{name}: not looked for leftovers: {departed.error}", {"mode": departed.mode}
        )
    text = f"{name}: {departed.removed} objects of that mode went"
    if departed.failed:
        text += f"; {len(departed.failed)} would not, first: {departed.failed[0].text}"
    fields = {"mode": departed.mode, "removed": departed.removed, "failed": len(departed.failed)}
    return Entry("leftovers", text, fields)


def event_entry(event: Event) -> Entry | None:
    """The line about a source; None for what is not worth one."""
    match event:
        case SourceFailed():
            text = f"{event.source}: {event.error}" + ("; the last good state stays" if event.stale else "")
            return Entry("source-failed", text, {"source": event.source, "stale": event.stale})
        case SourceRecovered():
            return Entry("source-recovered", f"{event.source}: answers again", {"source": event.source})
        case EntrySkipped():
            text = f"{event.source}: skipped {event.where}: {event.reason}"
            return Entry("entry-skipped", text, {"source": event.source, "where": event.where})
        case _:
            return None
