"""What is opened ahead for endpoints that join. Pure decisions: no IO, no clock, no lock; randomness is an argument.

A new pod should not make its first requests wait for connections, and a hundred clients should not greet it in the same
millisecond. The rule: a joiner gets as many connections as the traffic of the last seconds gives the endpoint in the
middle of its peers, and no more than its share of all of them, spread over a second at random. So a client that is
hardly used opens nothing, and neither does one whose traffic goes to few of many endpoints. (Envoy's preconnect ratio
looks at streams that wait; a client that picks per request knows more.) Endpoints that were there when the client began
have no peers and are connected when they are first picked; so are all endpoints of a large Service.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: Endpoints of a Service up to which it is done: as many as Kubernetes puts in one slice. Of more, each gets so little
#: of one client's traffic that a connection ahead would mostly expire unused.
MANY = 100
#: Connections for one joiner, at most: enough to take the first burst; what traffic needs beyond is opened by it.
PER_ENDPOINT = 8
#: Connections that one client wants to open at a time, over all joiners: a rollout that replaces all endpoints at once
#: must not cost more than serving does.
IN_ALL = 32
#: Of those, under way at once.
AT_ONCE = 4
#: Seconds over which they are spread. A hundred clients with four connections each are then 0.4 a millisecond, and
#: their TLS handshakes, about a millisecond each, less than half a processor of the new pod.
SPREAD = 1.0
#: Seconds: a connection that was not used for so long is no part of what traffic needs (httpx's keepalive_expiry).
RECENT = 5.0
#: Seconds that one may take. A slower endpoint is no use ahead; the request that needs it has its own patience.
TIMEOUT = 1.0


def wanted(carried: Sequence[int], members: int) -> int:
    """Connections for each joiner. ``carried``: how many recent traffic used to each peer, those that leave at the same
    time included. ``members``: endpoints of the set as it is now."""
    if not carried or not 0 < members <= MANY:
        return 0
    middle = sorted(carried)[(len(carried) - 1) // 2]
    share = -(-sum(carried) // members)
    return min(middle, share, PER_ENDPOINT)


class Plan(Generic[K]):
    """The openings that are planned and under way, by endpoint and TLS name. Not thread-safe.

    ``joined`` plans; the driver calls ``due`` when a delay has passed, opens what that returns, and tells ``ended``,
    which may return more to open.
    """

    __slots__ = ("_due", "_opening", "_random", "_units", "_want")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._want: dict[K, int] = {}  #: absent: nothing more for this one
        self._units: dict[K, int] = {}  #: openings planned, due or under way
        self._due: deque[K] = deque()  #: delay over, waiting for one of those under way to end
        self._opening = 0

    @property
    def planned(self) -> int:
        """Openings planned or under way."""
        return sum(self._units.values())

    def joined(self, joiners: Sequence[K], each: int) -> list[tuple[float, K]]:
        """Plan ``each`` connections for every joiner, as far as there is room. Returns (seconds from now, joiner)."""
        fresh = [key for key in joiners if key not in self._units]
        found: list[tuple[float, K]] = []
        room = IN_ALL - self.planned
        for _ in range(each):  # one for everybody before anybody gets a second
            for key in fresh[: max(0, room - len(found))]:
                self._units[key] = self._units.get(key, 0) + 1
                self._want[key] = each
                found.append((self._random() * SPREAD, key))
        return found

    def due(self, key: K) -> list[K]:
        """A delay has passed. Returns what to open now."""
        if key in self._units:  # else stopped meanwhile
            self._due.append(key)
        return self._next()

    def want(self, key: K) -> int:
        """How many connections the endpoint should have; none are opened beyond. 0: it has left."""
        return self._want.get(key, 0)

    def ended(self, key: K, opened: bool) -> list[K]:
        """An opening ended. One that failed, or was not needed, ends what is planned for its endpoint."""
        self._opening -= 1
        if not opened:
            self.left(key)
        self._release(key)
        return self._next()

    def left(self, key: K) -> None:
        """The endpoint left: nothing more for it."""
        self._want.pop(key, None)

    def joiners(self) -> list[K]:
        """Endpoints for which something is planned."""
        return list(self._want)

    def stop(self) -> None:
        """Nothing more for anybody; what is under way still ends."""
        self._want.clear()
        self._units.clear()
        self._due.clear()

    def _next(self) -> list[K]:
        found: list[K] = []
        while self._due and self._opening < AT_ONCE:
            key = self._due.popleft()
            if key in self._want:
                self._opening += 1
                found.append(key)
            else:
                self._release(key)
        return found

    def _release(self, key: K) -> None:
        """One opening less; an endpoint without any is forgotten, and planned anew should it join again."""
        left = self._units.get(key, 0) - 1
        if left > 0:
            self._units[key] = left
        else:
            self._units.pop(key, None)
            self._want.pop(key, None)
