"""Proxy: all sockets of one family, on the agent's asyncio loop; nothing here is for another thread, but counting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterable

from meshlib.agent.backends.userspace.choose import Chooser, Choosers
from meshlib.agent.backends.userspace.datagrams import DatagramListener, SilentDatagrams
from meshlib.agent.backends.userspace.flow import Flow, Listener, MakeSocket, new_socket
from meshlib.agent.backends.userspace.room import Room
from meshlib.agent.backends.userspace.streams import Ends, SilentStreams, StreamListener
from meshlib.agent.backends.userspace.translate import (
    LISTENER,
    Bind,
    Claim,
    Served,
    Shape,
    reachable,
    serving,
    shape,
)
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb

#: Sockets that are opened or closed before the loop does something else.
_AT_ONCE = 50
#: Seconds that ending by force may take: a few turns of the loop.
_LAST = 1.0
#: Seconds of silence after which a UDP flow is forgotten where nothing else is set: connection tracking's, for flows
#: that were answered.
UDP_IDLE = 120.0


class _Port:
    """One socket's address: who wants it, and what is there."""

    def __init__(self) -> None:
        self.claims: dict[str, Served] = {}
        self.choosers: dict[str, Chooser] = {}
        self.listener: Listener | None = None
        self.shape = Shape.CLOSED
        self.told: tuple[str, ...] = ()

    def find(self, local: str) -> Chooser | None:
        """The chooser of flows to an address."""
        return self.choosers[serving(self.choosers, local)] if self.choosers else None


class Proxy:
    """``random``: floats in [0, 1). ``drain``: seconds that connections to removed endpoints may go on. ``report``:
    one line for people. ``make`` makes sockets in the network namespace that is served."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        room: Room,
        random: Callable[[], float],
        report: Callable[[str], None],
        drain: float = 900.0,
        udp_idle: float = UDP_IDLE,
        make: MakeSocket = new_socket,
    ) -> None:
        self._loop, self._room, self._report, self._make = loop, room, report, make
        self._drain, self._udp_idle = drain, udp_idle
        self._choosers = Choosers(random, loop.time)
        self._ports: dict[Bind, _Port] = {}
        self._old: set[Listener] = set()  #: closed, with connections that go on
        self._own: set[Ends] = set()
        self._deadlines: dict[Flow, float] = {}

    @property
    def draining(self) -> int:
        """Connections to endpoints that were removed. From any thread."""
        return len(self._deadlines)

    @property
    def flows(self) -> set[Flow]:
        """All that go through."""
        listeners = [port.listener for port in self._ports.values() if port.listener is not None]
        return {flow for listener in (*listeners, *self._old) for flow in listener.flows}

    def claims(self) -> Objects:
        """What is served."""
        return {
            ObjectKey(LISTENER, Claim(bind, virtual)): served
            for bind, port in self._ports.items()
            for virtual, served in port.claims.items()
        }

    async def apply(self, plan: Iterable[Operation], now: float) -> list[Failed]:
        """Opens, changes and closes. ``now``: seconds of the loop's clock, from which draining is counted."""
        touched: dict[Bind, list[Operation]] = {}
        for operation in plan:
            claim: Claim = operation.key.name  # type: ignore[assignment]
            touched.setdefault(claim.bind, []).append(operation)
            port = self._ports.setdefault(claim.bind, _Port())
            if operation.verb is Verb.REMOVE:
                port.claims.pop(claim.virtual, None)
                port.choosers.pop(claim.virtual, None)
            else:
                before = port.choosers.get(claim.virtual)
                port.claims[claim.virtual] = operation.value
                port.choosers[claim.virtual] = Chooser(operation.value, self._choosers, before)
        failed: list[Failed] = []
        for count, (bind, operations) in enumerate(touched.items()):
            if count % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            failed += self._settle(bind, operations, now)
        return failed

    def tick(self, now: float) -> float | None:
        """Ends connections whose time is over. Returns when the next one's is; None: none drains."""
        for flow, deadline in list(self._deadlines.items()):
            if deadline <= now:
                del self._deadlines[flow]
                flow.abort()
        self._sweep()
        return min(self._deadlines.values(), default=None)

    async def close(self, grace: float) -> None:
        """No new flows from now on; those that are there have ``grace`` seconds to end by themselves."""
        for port in self._ports.values():
            if port.listener is not None:
                port.listener.close()
        until = self._loop.time() + grace
        await self._emptied(until)
        for flow in self.flows:
            flow.abort()
        await self._emptied(until + _LAST)
        self._ports.clear()
        self._old.clear()
        self._deadlines.clear()

    async def _emptied(self, until: float) -> None:
        """Until no flow is left, or it is late."""
        while self.flows and self._loop.time() < until:
            gone = asyncio.Event()
            self._room.wait(gone.set)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await gone.wait()

    def _settle(self, bind: Bind, operations: list[Operation], now: float) -> list[Failed]:
        """One socket as its claims want it."""
        port = self._ports[bind]
        try:
            self._reshape(bind, port)
        except OSError as error:
            # Nothing of it is served; the engine reads that, and asks for what it wants again.
            port.claims.clear()
            port.choosers.clear()
            number, text = error.errno or errno.EIO, f"{bind}: {_advice(error)}"
            return [Failed(each, number, text) for each in operations if each.verb is not Verb.REMOVE]
        finally:
            self._drain_flows(port, now)
            if not port.claims:
                del self._ports[bind]
            else:
                self._tell(bind, port)
        return []

    def _reshape(self, bind: Bind, port: _Port) -> None:
        wanted = shape(port.claims, bind) if bind.protocol in ("TCP", "UDP") else Shape.CLOSED
        if wanted is port.shape and (port.listener is not None or wanted is Shape.CLOSED):
            return
        if port.listener is not None:
            port.listener.close()
            self._old.add(port.listener)
            port.listener = None
        port.shape = Shape.CLOSED
        if wanted is not Shape.CLOSED:
            port.listener = self._open(bind, port, wanted)
            port.shape = wanted

    def _open(self, bind: Bind, port: _Port, wanted: Shape) -> Listener:
        loop, room, make = self._loop, self._room, self._make
        if bind.protocol == "TCP":
            if wanted is Shape.SILENT:
                return SilentStreams(bind, make)
            return StreamListener(loop, bind, port.find, room, make, self._own)
        if wanted is Shape.SILENT:
            return SilentDatagrams(bind, make)
        return DatagramListener(loop, bind, port.find, room, make, self._udp_idle)

    def _drain_flows(self, port: _Port, now: float) -> None:
        """Connections to endpoints that are none any more get a time to end; exchanges of datagrams end now, as their
        next datagram finds another endpoint."""
        self._sweep()
        listeners = [port.listener] if port.listener is not None else []
        for listener in (*listeners, *self._old):
            for flow in tuple(listener.flows):
                if flow.subchannel is None:
                    continue
                chooser = port.find(flow.local) if listener not in self._old else None
                if chooser is not None and flow.subchannel in chooser:
                    self._deadlines.pop(flow, None)
                elif isinstance(listener, DatagramListener) or self._drain <= 0:
                    self._deadlines.pop(flow, None)
                    flow.abort()
                else:
                    self._deadlines.setdefault(flow, now + self._drain)

    def _sweep(self) -> None:
        """Forget what ended by itself."""
        self._old = {listener for listener in self._old if listener.flows}
        if self._deadlines:
            alive = self.flows
            self._deadlines = {flow: at for flow, at in self._deadlines.items() if flow in alive}

    def _tell(self, bind: Bind, port: _Port) -> None:
        found = reachable(port.claims, bind)
        losers = tuple(
            f"{virtual or 'node port'} ({served.owner})"
            for virtual, served in sorted(port.claims.items())
            if virtual not in found
        )
        if bind.protocol not in ("TCP", "UDP"):
            found, losers = {}, tuple(str(served.owner) for served in port.claims.values())
        if losers and losers != port.told:
            winner = next((str(served.owner) for served in found.values()), "nobody")
            reason = "" if found else f": userspace mode does not carry {bind.protocol}"
            self._report(f"{bind} serves {winner}, and cannot serve {', '.join(losers)}{reason}")
        port.told = losers


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return (
                "not permitted: the agent holds no capability, so that the sysctl net.ipv4.ip_unprivileged_port_start "
                "must be as low as this port; node ports need nothing"
            )
        case errno.EADDRINUSE:
            return "another process (or another address of listen_addresses) has this port"
        case errno.EADDRNOTAVAIL:
            return "this host has no such address: give it to an interface, or change listen_addresses"
        case errno.EMFILE | errno.ENFILE:
            return "too many open files: raise the limit of this process (LimitNOFILE)"
        case number:
            return os.strerror(number) if number else str(error)
