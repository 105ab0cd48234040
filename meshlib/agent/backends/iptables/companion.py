"""Companion: the same chains beside virtual servers (IPVS), where the kernel's nf_tables lacks a family. One thread.

They refuse and drop, filter by source range, masquerade, and lead those inside past a Local policy. What a virtual
server is to have is settled as it is, so that host ports of the container network do not take it; exact affinity, which
virtual servers cannot do, is translated here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshlib.agent.backends.iptables import programs, translate
from meshlib.agent.backends.iptables.backend import IptablesBackend
from meshlib.agent.backends.iptables.programs import FLAVOURS, Run
from meshlib.agent.desired import Frontend, FrontendKey, Place, Target
from meshlib.agent.objects import Objects


class IptablesCompanion(IptablesBackend):
    """``inside(key, family)``: the virtual server that stands for a frontend to sources on this node."""

    def __init__(
        self,
        family: int,
        inside: Callable[[FrontendKey, int], FrontendKey],
        run: Run = programs.run,
        flavours: Sequence[str] = FLAVOURS,
    ) -> None:
        super().__init__(family, run, flavours)
        self._inside = inside

    def fixed(self, place: Place) -> Objects:
        """What is there whatever the frontends are. Pure."""
        return translate.fixed(place, self._fully_random, translated=False)

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """What the virtual servers of a frontend leave to these chains. Pure."""
        if frontend.exact_affinity and frontend.affinity_seconds:
            return translate.translate(frontend, place)
        key = self._inside(frontend.key, place.family)
        return translate.translate(frontend, place, Target(key.address, key.port))

    def close(self) -> None:
        """Nothing is open; the rules stay."""
