"""The namespace's IPVS timeouts, where somebody asked for others than the kernel's own. One thread.

They count for every virtual server of the host, whoever made it, and what was there before is not put back: nobody
knows who else has come to rely on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.agent.backends.ipvs.kernel import IpvsKernel
from meshlib.agent.backends.ipvs.refused import failed
from meshlib.agent.backends.ipvs.translate import TIMEOUTS
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.netlink.ipvs import Timeouts
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb

_KEY = ObjectKey(TIMEOUTS, "")


class NamespaceTimeouts:
    """Objects: the kind ``timeouts``, one for both families, value Timeouts with 0 for what is left alone."""

    kinds = (TIMEOUTS,)

    def __init__(self, kernel: IpvsKernel, wanted: Timeouts) -> None:
        self._kernel = kernel
        self._wanted = wanted

    def fixed(self, place: Place) -> Objects:
        """What is asked for."""
        return {_KEY: self._wanted}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """Nothing."""
        return {}

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Nothing."""
        return {}

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """None: there is one of them, and whoever is told to sets it."""
        return None

    def dump(self, family: int) -> Objects:
        """Those that are asked for, as the kernel has them. Raises OSError."""
        actual = self._kernel.timeouts()
        told = (there if asked else 0 for asked, there in zip(self._wanted, actual, strict=True))
        return {_KEY: Timeouts._make(told)}

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """Removing does nothing."""
        settings = [each for each in plan if each.verb is not Verb.REMOVE]
        codec = self._kernel.codec
        refusals = self._kernel.batch(codec.set_timeouts(each.value) for each in settings)
        return [failed(settings[index], refusal) for index, refusal in refusals.items()]

    def close(self) -> None:
        """Nothing: the kernel is reached by all of this backend."""
