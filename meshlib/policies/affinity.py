"""sessionAffinity ClientIP: all requests of this client to one ServicePort stay with one endpoint.

Kubernetes keys affinity by ServicePort and source address. In process both are fixed: a target is one
ServicePort and the source is this pod, so that one sticky endpoint per target is all there is to remember. As
on the kernel path the timeout slides with every use and the endpoint must still be in the set. Both paths stick
to a member of the same set, but not to the same member: neither knows the other's choice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickInfo
from meshlib.pickers.subchannel import Subchannel


class Affinity:
    """The sticky endpoint of one target; outlives its pickers. Created by the runtime, which gives the lock.

    ``timeout``: seconds without a pick after which the next pick is free (``timeoutSeconds``, sliding;
    Kubernetes allows 1 to 86,400). May be set anew at any time.
    """

    __slots__ = ("_lock", "_sticky", "_used_at", "timeout")

    def __init__(self, timeout: float, lock: AbstractContextManager[object]) -> None:
        self.timeout = timeout
        self._lock = lock
        self._sticky: Subchannel | None = None
        self._used_at = 0.0

    def pick(self, picker: Picker, members: frozenset[Subchannel], info: PickInfo) -> Subchannel | None:
        """The sticky endpoint, or the picker's choice when there is none, it left, or its time is over.

        An excluded one (it failed in this attempt) is passed over, and the request that then succeeds elsewhere
        moves the affinity there: staying with an endpoint that refuses connections would fail every request
        first.
        """
        with self._lock:
            sticky = self._sticky
            if (
                sticky is None
                or sticky not in members
                or sticky in info.exclude
                or info.now - self._used_at >= self.timeout
            ):
                sticky = picker.pick(info)
                if sticky is None:
                    return None
                self._sticky = sticky
            elif picker.counts:
                sticky.begin()
            self._used_at = max(self._used_at, info.now)
            return sticky


class AffinityPicker:
    """A picker whose choice is kept. ``counts`` follows the wrapped picker; ``inner`` is what a successor continues."""

    contract: ClassVar[ContractClass] = ContractClass.HASH
    __slots__ = ("_affinity", "_members", "counts", "inner", "subchannels")

    def __init__(self, inner: Picker, affinity: Affinity) -> None:
        self.inner = inner
        self.counts = inner.counts
        self.subchannels = inner.subchannels
        self._affinity = affinity
        self._members = frozenset(s for s in inner.subchannels if s.endpoint.weight > 0)

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        return self._affinity.pick(self.inner, self._members, info)
