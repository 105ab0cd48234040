"""What tests change for this process: nothing may start, or stand-ins answer for every target.

Set by the pytest plugin (``meshlib.testing.pytest_plugin``), read where a Mesh starts a target and where a host is
looked up. Imports nothing of ours at run time: every pytest run of whoever has meshlib installed loads this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshlib.discovery.base import ResolverBuilder
    from meshlib.model.target import Target
    from meshlib.runtime.names import UrlTable


class StandIns(Protocol):
    """Answers for targets in the place of discovery. Called from any thread."""

    def target(self, asked: Target) -> Target:
        """What is watched for a target; the same one where nothing has to stand in (``static``)."""
        ...

    @property
    def aliases(self) -> Mapping[str, Target]:
        """Further hosts that are ours, ``host`` or ``host:port`` in lower case."""
        ...

    def builder(self, scheme: str) -> ResolverBuilder | None:
        """The resolver of the targets that ``target`` gives; None for any other scheme."""
        ...


class UnderTest:
    """One for the process. ``off`` says why nothing may start; empty: it may. Written by the main thread, between
    tests; read by all."""

    def __init__(self) -> None:
        self.off = ""
        self.stand_ins: StandIns | None = None
        #: What each Mesh remembers of hosts, to be told to forget it when they come to mean something else.
        self.tables: WeakSet[UrlTable] = WeakSet()


under_test = UnderTest()
