"""httpcore's pools, made to hold what they have promised.

A pool gives a waiting request an idle connection, and the request's thread or task goes on a little later. Until then
the connection looks idle, so whoever has idle connections closed in between (an endpoint leaves, the total cap wants
room, a request was refused) would close it under the request, and a POST would fail for it. The same happens to a
connection whose request begins, and is answered, while another thread asks whether it is idle and readable, which is
how httpcore knows that a server hung up.
"""

from __future__ import annotations

from typing import Any

_kinds: dict[Any, Any] = {}


def holding(base: Any) -> Any:
    """The pool class with this behaviour; the same one for equal arguments."""
    kind = _kinds.get(base)
    if kind is None:

        class HoldingPool(base):  # type: ignore[misc]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self._given: set[int] = set()

            def create_connection(self, origin: Any) -> Any:
                return HeldConnection(super().create_connection(origin), self._given)

            def _assign_requests_to_connections(self) -> list[Any]:
                try:
                    self._given.update(id(request.connection) for request in self._requests)
                    closing: list[Any] = super()._assign_requests_to_connections()
                finally:
                    self._given.clear()
                return closing

        kind = _kinds.setdefault(base, HoldingPool)
    return kind


class HeldConnection:
    """httpcore's interface to a connection of its pool: neither idle nor expired while the pool, which is looking for
    connections to close and holds its lock, has a request that was given it.

    Said beforehand rather than mended afterwards: a pool that believes a connection gone opens another in its place.
    """

    def __init__(self, inner: Any, given: set[int]) -> None:
        """``given``: the pool's own set, empty unless it is looking. Not the pool: in a cycle with it the connections
        of a dropped client would stay open.
        """
        self.inner = inner
        self._given = given

    def has_expired(self) -> bool:
        return id(self) not in self._given and bool(self.inner.has_expired())

    def is_idle(self) -> bool:
        return id(self) not in self._given and bool(self.inner.is_idle())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return f"<HeldConnection {self.inner!r}>"
