"""The contract between pickers and those who call them. Only nouns; each policy is a module of its own."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from meshlib.pickers.subchannel import Subchannel


class ContractClass(enum.Enum):
    """What a picker promises, and so which contract tests it must pass."""

    UNIFORM = "uniform"
    WEIGHTED = "weighted"
    LOAD_AWARE = "load-aware"
    HASH = "hash"


class PickInfo:
    """What a picker may know about the request. Made per call; not kept.

    ``now``: seconds of the runtime's monotonic clock. ``hash_key``: for hash pickers; None: pick at random.
    ``exclude``: subchannels already tried in this attempt.
    """

    __slots__ = ("exclude", "hash_key", "now")

    def __init__(
        self, now: float = 0.0, hash_key: str | bytes | None = None, exclude: Set[Subchannel] = frozenset()
    ) -> None:
        self.now = now
        self.hash_key = hash_key
        self.exclude = exclude


#: A pick without anything known about the request.
NO_INFO = PickInfo()


class Picker(Protocol):
    """An immutable choice over a fixed list of Subchannels.

    ``pick`` may be called from any thread and never blocks, waits or does IO. It returns None when nothing can
    be picked (no subchannels, all of weight 0, all excluded). If ``counts`` is True, the picker depends on
    in-flight counts and ``pick`` has already called ``begin()`` on the returned Subchannel; otherwise the
    caller calls it. Either way the caller calls ``observe()`` and ``end()`` on the Subchannel itself.
    """

    @property
    def counts(self) -> bool: ...

    @property
    def contract(self) -> ContractClass: ...

    @property
    def subchannels(self) -> Sequence[Subchannel]:
        """All it was built from, those of weight 0 included."""
        ...

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None: ...


def no_lock() -> AbstractContextManager[object]:
    """Stands where no lock factory was given: a picker that needs one fails when it is built, not under load."""
    raise RuntimeError("this picker shares counts between threads: PickerContext.new_lock must be given")


@dataclass(frozen=True, slots=True)
class PickerContext:
    """What a picker may use when it is built.

    ``random`` gives floats in [0, 1) and may be called from any thread; ``client_identity`` identifies this
    client; ``previous`` is the picker that is replaced, to carry a position or an index over (ignored when it
    is of another policy); ``new_lock`` makes a lock for the few policies that share counts between threads.
    """

    random: Callable[[], float]
    client_identity: str = ""
    previous: Picker | None = None
    new_lock: Callable[[], AbstractContextManager[object]] = no_lock


class PickerBuilder(Protocol):
    """Found by name (``name``), from the built-ins or the entry-point group ``meshlib.pickers``.

    Called on one thread at a time, never on the path of a request. ``subchannels`` may hold endpoints of weight
    0: a picker never picks them.
    """

    name: str
    contract: ContractClass

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        """Check settings; raise ConfigError(where + key, reason). Returns what ``build`` gets as ``config``."""
        ...

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker: ...
