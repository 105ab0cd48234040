"""Backend: how the engine's worker reaches the proxy on the loop."""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from meshlib.agent.backends.base import Probe
from meshlib.agent.backends.userspace import translate
from meshlib.agent.backends.userspace.proxy import Proxy
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.objects import Failed, ObjectKey, Objects, Plan

T = TypeVar("T")


class OnLoop(Protocol):
    """Runs something on the agent's loop, and waits for it. Never called on the loop itself."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


class UserspaceBackend:
    """The listeners of one family; see ``Backend`` for the contract.

    The engine's worker hands each plan to the loop and waits for it, so the sockets belong to the loop alone and the
    backend has no thread, loop or clock of its own (decision D9). ``proxy`` None: there is no loop to serve on (a dry
    run, ``agent cleanup``), and nothing outlives the process that served.
    """

    name = "userspace"
    kinds: tuple[str, ...] = (translate.LISTENER,)

    def __init__(
        self, family: int, listen: Sequence[str], proxy: Proxy | None = None, on_loop: OnLoop | None = None
    ) -> None:
        self.family = family
        self._listen = tuple(address for address in listen if (":" in address) == (family == 6))
        self._proxy, self._on_loop = proxy, on_loop

    @property
    def draining(self) -> int:
        """Connections to endpoints that were removed."""
        return self._proxy.draining if self._proxy is not None else 0

    def probe(self) -> Probe:
        """Usable wherever there is an address to listen on."""
        if not self._listen:
            return Probe(False, f"listen_addresses has none of IPv{self.family}", ())
        return Probe(True, f"listening on {', '.join(self._listen)}", (self.family,))

    def fixed(self, place: Place) -> Objects:
        """Nothing is there whatever the frontends are."""
        return {}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        return translate.translate(frontend, place, self._listen)

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Every connection is our own: an endpoint that calls itself sees us."""
        return {}

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """Nothing here can be somebody else's."""
        return None

    def words(self, key: ObjectKey, value: Any) -> str:
        """A socket, and for whom."""
        return translate.words(key, value)

    def dump(self, family: int) -> Objects:
        """What is served."""
        proxy, on_loop = self._proxy, self._on_loop
        if proxy is None or on_loop is None:
            return {}

        async def ask() -> Objects:
            return proxy.claims()

        return on_loop(ask())

    def apply(self, plan: Plan, now: float) -> Sequence[Failed]:
        """Opens, changes and closes listeners; a socket that cannot be had fails its own claims only."""
        proxy, on_loop = self._proxy, self._on_loop
        if proxy is None or on_loop is None:
            return [
                Failed(each, errno.ENOTSUP, "listeners live in `meshlib agent run` only") for each in plan
            ]
        return on_loop(proxy.apply(plan, now))

    def tick(self, now: float) -> float | None:
        """Ends connections to removed endpoints whose time is over."""
        proxy, on_loop = self._proxy, self._on_loop
        if proxy is None or on_loop is None:
            return None

        async def tick() -> float | None:
            return proxy.tick(now)

        return on_loop(tick())


def waiting(submit: Callable[[Coroutine[Any, Any, Any]], Any]) -> OnLoop:
    """An OnLoop of what gives a future with ``result()``: ``asyncio.run_coroutine_threadsafe`` and its like."""

    def on_loop(coroutine: Coroutine[Any, Any, T], /) -> T:
        found: T = submit(coroutine).result()
        return found

    return on_loop
