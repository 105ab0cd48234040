"""least_connections: the least of all requests in flight per weight, exactly, over the whole set.

An index groups the members by ``inflight / weight``; the least group is found through a heap of the groups, so
that a pick takes the same time for 10 and 10,000 endpoints. Among the members of the least group each is drawn
in proportion to its weight, so that neither the first in the list nor the last one freed is favoured.

Latency is not looked at, and a joiner is at once the least busy: prefer ``peak_ewma`` unless requests cost very
unlike amounts and one client sends most of the traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from heapq import heapify, heappop, heappush
from typing import ClassVar

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.candidates import weighted
from meshlib.pickers.load_watch import LoadWatch
from meshlib.pickers.settings import no_settings
from meshlib.pickers.subchannel import Subchannel

#: Draws among ties of unlike weights before the next one is taken whatever its weight. Only a set in which one
#: weighs more than sixteen times the mean comes near it.
TIE_DRAWS = 16
#: Empty groups that are kept per member (and at least 64) before the index is swept; small against the members
#: themselves.
SPARE_GROUPS = 4


class LoadIndex(LoadWatch):
    """Members by ``inflight / weight``. A group's key is in the heap exactly as long as it is in the dict."""

    __slots__ = ("_groups", "_heap", "_heaviest", "_keys", "_positions", "_uneven")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        super().__init__(lock)
        self._groups: dict[float, list[Subchannel]] = {}
        self._heap: list[float] = []
        self._keys: dict[Subchannel, float] = {}
        self._positions: dict[Subchannel, int] = {}
        self._heaviest = 1
        self._uneven = False

    def take(self, exclude: Set[Subchannel], random: Callable[[], float]) -> Subchannel | None:
        """The least loaded member that is not excluded, already counted; None when there is none."""
        with self._lock:
            self.catch_up()
            hidden = [m for m in exclude if m in self._keys]
            for member in hidden:
                self._remove(member)
            chosen = self._least(random)
            for member in hidden:
                self._add(member)
            if chosen is not None:
                self._begin(chosen)
            return chosen

    def _least(self, random: Callable[[], float]) -> Subchannel | None:
        heap, groups = self._heap, self._groups
        while heap:
            group = groups[heap[0]]
            if group:
                return self._tie(group, random) if len(group) > 1 else group[0]
            del groups[heappop(heap)]
        return None

    def _tie(self, group: list[Subchannel], random: Callable[[], float]) -> Subchannel:
        chosen = group[int(random() * len(group))]
        if self._uneven:
            for _ in range(TIE_DRAWS):
                if random() * self._heaviest < self._weights[chosen]:
                    break
                chosen = group[int(random() * len(group))]
        return chosen

    def _add(self, member: Subchannel) -> None:
        key = member.inflight / self._weights[member]
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = []
            heappush(self._heap, key)
        self._keys[member] = key
        self._positions[member] = len(group)
        group.append(member)

    def _remove(self, member: Subchannel) -> None:
        group = self._groups[self._keys.pop(member)]
        position = self._positions.pop(member)
        last = group.pop()
        if last is not member:
            group[position] = last
            self._positions[last] = position

    def _update(self, member: Subchannel) -> None:
        key = self._keys.get(member)
        if key is None or key == member.inflight / self._weights[member]:
            return
        self._remove(member)
        self._add(member)
        if len(self._heap) > SPARE_GROUPS * len(self._keys) + 64:
            self._sweep()

    def _sweep(self) -> None:
        self._groups = {key: group for key, group in self._groups.items() if group}
        self._heap = list(self._groups)
        heapify(self._heap)

    def _synced(self) -> None:
        self._heaviest = max(self._weights.values(), default=1)
        self._uneven = any(weight != self._heaviest for weight in self._weights.values())


class LeastConnections:
    """Exact under threads: choosing and counting are one step under the index's lock."""

    counts: ClassVar[bool] = True
    contract: ClassVar[ContractClass] = ContractClass.LOAD_AWARE
    __slots__ = ("_index", "_random", "subchannels")

    def __init__(self, subchannels: Sequence[Subchannel], context: PickerContext) -> None:
        self.subchannels = tuple(subchannels)
        self._random = context.random
        previous = context.previous
        if isinstance(previous, LeastConnections):
            self._index: LoadIndex = previous._index
        else:
            self._index = LoadIndex(context.new_lock())
        self._index.sync(weighted(subchannels))

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        return self._index.take(info.exclude, self._random)


class LeastConnectionsBuilder:
    name = "least_connections"
    contract = ContractClass.LOAD_AWARE

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        no_settings(settings, where)
        return None

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return LeastConnections(subchannels, context)


BUILDER = LeastConnectionsBuilder()
