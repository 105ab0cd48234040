"""Relays: the sockets of userspace mode, on the agent's loop, for as long as the agent runs."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshlib.agent.backends.base import Backend
from meshlib.agent.settings import AgentSettings
from meshlib.runtime.clock import SYSTEM

if TYPE_CHECKING:
    from meshlib.agent.backends.userspace import Proxy
    from meshlib.agent.backends.userspace.room import Room

#: Seconds that open connections have to end by themselves when the agent is told to stop: a kubelet kills after 30.
GRACE = 20.0


def userspace(settings: AgentSettings, family: int) -> Backend:
    """A backend without a loop to serve on: for dry runs and for cleaning up."""
    from meshlib.agent.backends.userspace import UserspaceBackend

    return UserspaceBackend(family, settings.listen_addresses)


def _descriptors() -> int:
    """All that a process may give itself; the lower limit is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Relays:
    """Made on the running loop; ``report`` hears one line for people."""

    def __init__(self, settings: AgentSettings, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._room: Room | None = None
        self._proxies: list[Proxy] = []

    def __call__(self, family: int) -> Backend:
        """The backend of a family. On any thread but the loop's may it be used."""
        from meshlib.agent.backends.userspace import Proxy, UserspaceBackend
        from meshlib.agent.backends.userspace.backend import waiting
        from meshlib.agent.backends.userspace.proxy import UDP_IDLE
        from meshlib.agent.backends.userspace.room import Room, room_for

        settings, loop = self._settings, self._loop
        drain, idle = settings.drain_seconds, settings.udp_timeout or UDP_IDLE
        if self._room is None:
            self._room = Room(room_for(_descriptors()))
        proxy = Proxy(loop, self._room, SYSTEM.random, self._report, drain, idle)
        self._proxies.append(proxy)
        submit = waiting(lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop))
        return UserspaceBackend(family, settings.listen_addresses, proxy, submit)

    async def close(self) -> None:
        """No new connections; those that are open have GRACE seconds."""
        await asyncio.gather(*(proxy.close(GRACE) for proxy in self._proxies))
