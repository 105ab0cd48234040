"""What the agent asks of its metrics; ``metrics`` makes them with prometheus_client, which an extra brings."""

from __future__ import annotations

from typing import Protocol

from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.engine.leftovers import Departed
from meshlib.agent.engine.node import Step


class MetricsPage(Protocol):
    """See ``meshlib.agent.ops.metrics.Metrics``."""

    @property
    def content_type(self) -> str: ...

    def page(self) -> bytes: ...

    def step(self, step: Step) -> None: ...

    def change(self, family: int, change: DesiredChange) -> None: ...

    def probe(self, path: str, code: int) -> None: ...

    def departed(self, departed: Departed) -> None: ...
