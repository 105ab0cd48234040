"""IO out: what meshlib did, as log lines, callbacks and metrics (``catalogue``, which the exporters are fed from).

The runtime owns one ``Observer`` and hands it to everybody as their ``emit``; it is the only sink of events.
"""

from __future__ import annotations

from meshlib.observe.counters import Counters
from meshlib.observe.hooks import Hooks
from meshlib.observe.log import LogEvents
from meshlib.observe.observer import Observer

__all__ = ["Counters", "Hooks", "LogEvents", "Observer"]
