"""Running what users registered for the end of a call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

_log = logging.getLogger("meshlib.grpc")


def run_callbacks(callbacks: Iterable[Callable[[], object]]) -> None:
    """Run each. One that raises is logged, as in grpcio; the others run and the call is accounted for."""
    for callback in callbacks:
        try:
            callback()
        except Exception:
            _log.exception("done callback failed")
