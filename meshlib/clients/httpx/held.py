"""httpcore's pools, made to hold what they have promised.

A pool gives a waiting request an idle connection, and the request's thread or task goes on a little later. Until then
the connection looks idle, so whoever has idle connections closed in between (an endpoint leaves, the total cap wants
room, a request was refused) would close it under the request, and a POST would fail for it.
"""

from __future__ import annotations

from typing import Any

_kinds: dict[Any, Any] = {}


def holding(base: Any) -> Any:
    """The pool class with this behaviour; the same one for equal arguments."""
    kind = _kinds.get(base)
    if kind is None:

        class HoldingPool(base):  # type: ignore[misc]
            def _assign_requests_to_connections(self) -> list[Any]:
                closing: list[Any] = super()._assign_requests_to_connections()
                if closing:
                    given = {id(request.connection) for request in self._requests}
                    self._connections += [one for one in closing if id(one) in given]
                    closing = [one for one in closing if id(one) not in given]
                return closing

        kind = _kinds.setdefault(base, HoldingPool)
    return kind
