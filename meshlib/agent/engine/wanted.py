"""Wanted: which kernel objects are needed, and for whose sake. Pure bookkeeping; belongs to one thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from typing import Any

from meshlib.agent.objects import ObjectKey, Objects


class _Sources:
    """The sources of one shared object, with what each asks for. The smallest is at hand, however many there are: all
    Services with three endpoints may share one chain."""

    __slots__ = ("_order", "values")

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}
        self._order: list[Any] = []  # a heap; sources that went are dropped when they come up

    def put(self, source: Any, value: Any) -> None:
        if source not in self.values:
            heappush(self._order, source)
        self.values[source] = value
        if len(self._order) > 2 * len(self.values) + 16:  # sources that came and went many times
            self._order = sorted(self.values)

    def smallest(self) -> Any:
        while self._order[0] not in self.values:
            heappop(self._order)
        return self._order[0]


class Wanted:
    """Objects by key, each with the sources (frontends, hairpins, the fixed part) that need it.

    Nearly every object has one source, so that one is kept beside the value and only shared objects (the route of an
    address with several ports) pay for a table. Where sources ask for different values of one object, the smallest
    source has its way: the outcome must not depend on who came first.
    """

    __slots__ = ("_counts", "_only", "_shared")

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._only: dict[ObjectKey, tuple[Hashable, Any]] = {}
        self._shared: dict[ObjectKey, _Sources] = {}

    def __len__(self) -> int:
        return len(self._only) + len(self._shared)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._only or key in self._shared

    def __iter__(self) -> Iterator[ObjectKey]:
        yield from self._only
        yield from self._shared

    def count_by_kind(self) -> dict[str, int]:
        """How many objects of each kind are wanted."""
        return {kind: count for kind, count in self._counts.items() if count}

    def find(self, key: ObjectKey) -> tuple[Any, Any] | None:
        """For whose sake an object is wanted (the smallest, where several need it), and its value; None: it is not."""
        held = self._only.get(key)
        if held is not None or key not in self._shared:
            return held
        sources = self._shared[key]
        smallest = sources.smallest()
        return smallest, sources.values[smallest]

    def value(self, key: ObjectKey) -> Any:
        """The value that is wanted; KeyError where the object is not."""
        found = self.find(key)
        if found is None:
            raise KeyError(key)
        return found[1]

    def change(self, source: Any, old: Objects, new: Objects) -> list[ObjectKey]:
        """One source needs ``new`` instead of ``old``. Returns the objects that may be different now.

        Sources of one Wanted are ordered among each other (``<``).
        """
        gone = [key for key in old if key not in new]
        for key in gone:
            self._release(source, key)
        needed = (
            [key for key, value in new.items() if key not in old or old[key] != value] if old else list(new)
        )
        nothing = (source, None)  # one for all objects whose key says everything: most of them
        for key in needed:
            value = new[key]
            self._need(key, nothing if value is None else (source, value))
        return gone + needed

    def _need(self, key: ObjectKey, needed: tuple[Any, Any]) -> None:
        if key in self._shared:
            self._shared[key].put(*needed)
            return
        held = self._only.get(key)
        if held is None or held[0] == needed[0]:
            self._counts[key.kind] += held is None
            self._only[key] = needed
        else:
            del self._only[key]
            shared = self._shared[key] = _Sources()
            shared.put(*held)
            shared.put(*needed)

    def _release(self, source: Any, key: ObjectKey) -> None:
        sources = self._shared.get(key)
        if sources is None:
            held = self._only.get(key)
            if held is not None and held[0] == source:
                del self._only[key]
                self._counts[key.kind] -= 1
            return
        sources.values.pop(source, None)
        if len(sources.values) == 1:
            del self._shared[key]
            ((last, value),) = sources.values.items()
            self._only[key] = (last, value)
