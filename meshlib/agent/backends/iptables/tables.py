"""Tables: what is in our chains, the text that changes it, and its reading back. Pure; belongs to one thread.

A chain that changes is written anew as a whole, in its order: the text never names a rule that may have gone, and
whatever somebody else put into our chains goes with it. Only rules in built-in chains are removed one by one. Each
table is one transaction of the kernel's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from meshlib.agent.backends.iptables.rules import HOOK, PREFIX, RULES, Name, Rules, identity
from meshlib.agent.objects import ObjectKey, Objects, Operation, Verb

Chain = tuple[str, str]
_Content = dict[tuple[int, str], Rules]
#: In the order in which they are written: what refuses before what translates.
_TABLES = ("mangle", "filter", "nat")


@dataclass(slots=True)
class Text:
    """What iptables-restore is given. ``blame``: by line (the first is 1) the object that it is about."""

    lines: list[str] = field(default_factory=list)
    blame: dict[int, ObjectKey] = field(default_factory=dict)
    changed: dict[Chain, _Content] = field(default_factory=dict)
    hooks: dict[Name, Rules | None] = field(default_factory=dict)
    made: set[Chain] = field(default_factory=set)
    gone: set[Chain] = field(default_factory=set)

    def add(self, line: str, about: ObjectKey | None = None) -> None:
        """One line more."""
        self.lines.append(line)
        if about is not None:
            self.blame[len(self.lines)] = about

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"


class Tables:
    """What the kernel holds of ours."""

    def __init__(self) -> None:
        self._chains: dict[Chain, _Content] = {}
        self._present: set[Chain] = set()
        self._led_to: Counter[Chain] = Counter()
        self._hooks: dict[Name, Rules] = {}

    def objects(self) -> Objects:
        """All of it. An empty chain that nothing leads to is an object that nobody wants."""
        found: dict[ObjectKey, Any] = {ObjectKey(HOOK, name): value for name, value in self._hooks.items()}
        for (table, chain), content in self._chains.items():
            for (rank, words), value in content.items():
                found[ObjectKey(RULES, Name(table, chain, rank, words))] = value
        for table, chain in self._present:
            if not self._chains.get((table, chain)) and not self._led_to[table, chain]:
                found[ObjectKey(RULES, Name(table, chain, 0, ""))] = Rules(())
        return found

    def text(self, plan: Iterable[Operation]) -> Text:
        """What carries out a plan; nothing is remembered before ``done``."""
        text = Text()
        led_to = Counter[Chain]()
        for operation in plan:
            name: Any = operation.key.name
            value: Rules | None = None if operation.verb is Verb.REMOVE else operation.value
            if operation.key.kind == HOOK:
                old = self._hooks.get(name)
                text.hooks[name] = value
            else:
                chain = (name.table, name.chain)
                content = text.changed.setdefault(chain, dict(self._chains.get(chain, {})))
                old = content.pop((name.rank, name.words), None)
                if value is not None:
                    content[name.rank, name.words] = value
            for target in old.targets if old is not None else ():
                led_to[name.table, target] -= 1
            for target in value.targets if value is not None else ():
                led_to[name.table, target] += 1
        after = Counter(self._led_to)
        after.update(led_to)
        for chain in {*text.changed, *led_to}:
            content = text.changed.get(chain, self._chains.get(chain, {}))
            if content or after[chain]:
                if chain not in self._present:
                    text.made.add(chain)
            elif chain in self._present:
                text.gone.add(chain)
        for table in _TABLES:
            self._write(text, table)
        return text

    def done(self, text: Text) -> None:
        """It was carried out."""
        for chain, content in text.changed.items():
            self._lead(chain[0], self._chains.pop(chain, {}).values(), -1)
            if content:
                self._chains[chain] = content
                self._lead(chain[0], content.values(), 1)
        for name, value in text.hooks.items():
            if (old := self._hooks.pop(name, None)) is not None:
                self._lead(name.table, [old], -1)
            if value is not None:
                self._hooks[name] = value
                self._lead(name.table, [value], 1)
        self._present |= text.made
        self._present -= text.gone

    def _lead(self, table: str, values: Iterable[Rules], count: int) -> None:
        for value in values:
            for target in value.targets:
                self._led_to[table, target] += count
                if not self._led_to[table, target]:
                    del self._led_to[table, target]

    def _write(self, text: Text, table: str) -> None:
        changed = sorted(chain for chain in text.changed if chain[0] == table and chain not in text.gone)
        made = sorted(chain for chain in text.made if chain[0] == table and chain not in text.changed)
        gone = sorted(chain for chain in text.gone if chain[0] == table)
        hooks = sorted(name for name in text.hooks if name.table == table)
        if not (changed or made or gone or hooks):
            return
        text.add(f"*{table}")
        for chain in (*changed, *made, *gone):  # makes it, or empties it
            text.add(f":{chain[1]} - [0:0]")
        for chain in changed:
            for (rank, words), value in sorted(text.changed[chain].items()):
                about = ObjectKey(RULES, Name(*chain, rank, words))
                for rule in value.texts:
                    text.add(f"-A {chain[1]} {rule}", about)
        for name in hooks:
            about = ObjectKey(HOOK, name)
            old, new = self._hooks.get(name), text.hooks[name]
            for rule in old.texts if old is not None else ():
                text.add(f"-D {name.chain} {rule}", about)
            for rule in reversed(new.texts if new is not None else ()):
                text.add(f"-I {name.chain} 1 {rule}", about)
        for chain in gone:
            text.add(f"-X {chain[1]}")
        text.add("COMMIT")


def read(saved: str) -> Tables:
    """What iptables-save says of ours. A rule in our chains that is none of ours counts as one that nobody wants."""
    tables = Tables()
    table = ""
    found: dict[Name, list[tuple[str, str]]] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(f":{PREFIX}"):
            tables._present.add((table, line[1:].split(" ", 1)[0]))
        elif line.startswith("-A "):
            _, chain, text = line.split(" ", 2) if line.count(" ") > 1 else (*line.split(" "), "")
            own = chain.startswith(PREFIX)
            said = identity(text)
            if said is None and own:
                said = (0, f"not ours: {text}", "")
            if said is not None and (own or f"-j {PREFIX}" in text):
                found.setdefault(Name(table, chain, *said[:2]), []).append((said[2], text))
    for name, rules in found.items():
        value = Rules(tuple(digest for digest, _ in rules), tuple(text for _, text in rules))
        if name.chain.startswith(PREFIX):
            tables._chains.setdefault((name.table, name.chain), {})[name.rank, name.words] = value
        else:
            tables._hooks[name] = value
        tables._lead(name.table, [value], 1)
    return tables
