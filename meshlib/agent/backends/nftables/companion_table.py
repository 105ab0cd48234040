"""CompanionTable: the table beside virtual servers, as a part of the ipvs backend. Belongs to one thread."""

from __future__ import annotations

from collections.abc import Callable

from meshlib.agent.backends.nftables import companion
from meshlib.agent.backends.nftables.backend import NftablesBackend
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import Frontend, FrontendKey, Place, Target
from meshlib.agent.objects import Objects


class CompanionTable(NftablesBackend):
    """``inside(key, family)``: the virtual server that stands for a frontend to sources on this node."""

    def __init__(
        self,
        family: int,
        inside: Callable[[FrontendKey, int], FrontendKey],
        table: str = "meshlib",
        connect: Callable[[], TransactionSocket] = TransactionSocket,
    ) -> None:
        super().__init__(family, table, connect)
        self._inside = inside

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """What the virtual servers of a frontend leave to this table. Pure."""
        key = self._inside(frontend.key, place.family)
        return companion.translate(frontend, place, Target(key.address, key.port))
