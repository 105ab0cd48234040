"""The ledger: which kernel objects are ours, where the kernel cannot tell. Written before an object is made.

A virtual server bears no owner's name, so what is not in the ledger is never touched. The file is a journal of JSON
lines that any version reads: a record of an unknown kind is kept and skipped, a torn last line (a crash while writing)
is dropped. An entry without an object is harmless; an object without an entry would be orphaned, hence the order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshlib.agent.objects import ObjectKey

#: Raised when a reader of the old format would misunderstand the new one; a new kind of record does not.
VERSION = 1
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Ledger:
    """What the journal says. ``sysctls``: name to the value that was there before we wrote."""

    owned: set[ObjectKey] = field(default_factory=set)
    sysctls: dict[str, str] = field(default_factory=dict)
    unknown: list[bytes] = field(default_factory=list)  #: records of another version: kept as they are
    broken: int = 0  #: lines that are no records
    lines: int = 0

    @property
    def needs_compaction(self) -> bool:
        """Whether most lines say nothing new any more."""
        return self.lines > 2 * (len(self.owned) + len(self.sysctls) + len(self.unknown)) + 1000

    def read(self, data: bytes) -> None:
        """Replay a journal. Raises nothing: what cannot be read is counted, and is then not ours."""
        *lines, torn = data.split(b"\n")
        if torn:
            self.broken += 1
        for line in lines:
            self.lines += 1
            try:
                record = msgspec.json.decode(line)
            except msgspec.DecodeError:
                self.broken += 1
                continue
            try:
                known = self._replay(record)
            except TypeError:  # a name that is no name of ours: an object, say
                known = False
            if not known:
                self.unknown.append(line)

    def _replay(self, record: Any) -> bool:
        match record:
            case {"ledger": int()}:
                return True
            case ["+", str(kind), name]:
                self.owned.add(ObjectKey(kind, _frozen(name)))
            case ["-", str(kind), name]:
                self.owned.discard(ObjectKey(kind, _frozen(name)))
            case ["sysctl", str(name), str(before)]:
                self.sysctls.setdefault(name, before)
            case ["restored", str(name)]:
                self.sysctls.pop(name, None)
            case _:
                return False
        return True

    def own(self, keys: Iterable[ObjectKey]) -> bytes:
        """The lines to be written before these objects are made; empty when all are known already."""
        new = [key for key in keys if key not in self.owned]
        self.owned.update(new)
        return self._lines(["+", key.kind, key.name] for key in new)

    def disown(self, keys: Iterable[ObjectKey]) -> bytes:
        """The lines to be written after these objects are gone."""
        gone = [key for key in keys if key in self.owned]
        self.owned.difference_update(gone)
        return self._lines(["-", key.kind, key.name] for key in gone)

    def note_sysctl(self, name: str, before: str) -> bytes:
        """The line to be written before a sysctl is changed; the first value that was found counts."""
        if name in self.sysctls:
            return b""
        self.sysctls[name] = before
        return self._lines([["sysctl", name, before]])

    def restored_sysctl(self, name: str) -> bytes:
        """The line to be written after a sysctl was put back."""
        return self._lines([["restored", name]]) if self.sysctls.pop(name, None) is not None else b""

    def compact(self) -> bytes:
        """A whole journal that says the same in the fewest lines."""
        self.lines = 0
        head = self._lines([{"ledger": VERSION}])
        kept = b"".join(line + b"\n" for line in self.unknown)
        self.lines += len(self.unknown)
        sysctls = self._lines(["sysctl", name, before] for name, before in sorted(self.sysctls.items()))
        owned = sorted(self.owned, key=repr)
        return head + kept + sysctls + self._lines(["+", key.kind, key.name] for key in owned)

    def _lines(self, records: Iterable[Any]) -> bytes:
        encoded = [_encode(record) + b"\n" for record in records]
        self.lines += len(encoded)
        return b"".join(encoded)


def _frozen(name: Any) -> Hashable:
    """Lists as tuples again, which JSON does not know."""
    return tuple(_frozen(part) for part in name) if isinstance(name, list) else name
