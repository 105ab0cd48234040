"""Which server to ask next, from what each did lately. Pure; times are monotonic seconds. Reference R9."""

from __future__ import annotations

from dataclasses import dataclass, field

#: A server that failed is asked last for this long: about the time a node-local cache takes to restart, and short
#: enough that the preferred (first) server of resolv.conf is back in its place soon.
PENALTY = 30.0
#: A server that cannot read EDNS is asked without it for this long, then tried again (RFC 6891 6.2.2: may be upgraded).
EDNS_MEMORY = 900.0


@dataclass(slots=True)
class ServerState:
    """What one server did. ``rtt``: smoothed seconds of a reply, for people."""

    failed_at: float | None = None
    failures: int = 0
    no_edns_at: float | None = None
    rtt: float | None = None


@dataclass(slots=True)
class ServerBoard:
    """The states of all servers of one resolver. Lives on the control loop."""

    states: dict[str, ServerState] = field(default_factory=dict)
    turn: int = 0

    def order(
        self, servers: tuple[str, ...], now: float, avoid: str = "", rotate: bool = False
    ) -> tuple[str, ...]:
        """All ``servers``, best first: those without a recent failure, in the given order (rotated when asked).

        ``avoid``: the server whose statement is to be confirmed by another; it comes last.
        """
        if not servers:
            return ()
        if rotate:
            start = self.turn % len(servers)
            self.turn += 1
            servers = servers[start:] + servers[:start]
        return tuple(sorted(servers, key=lambda server: (server == avoid, self._penalised(server, now))))

    def _penalised(self, server: str, now: float) -> bool:
        failed_at = self._state(server).failed_at
        return failed_at is not None and now - failed_at < PENALTY

    def _state(self, server: str) -> ServerState:
        return self.states.setdefault(server, ServerState())

    def answered(self, server: str, seconds: float) -> None:
        """The server gave a usable reply."""
        state = self._state(server)
        state.failed_at, state.failures = None, 0
        # RFC 6298's gain of 1/8: one slow reply does not hide the usual time.
        state.rtt = seconds if state.rtt is None else state.rtt + (seconds - state.rtt) / 8

    def failed(self, server: str, now: float) -> None:
        """The server gave no usable reply."""
        state = self._state(server)
        state.failed_at = now
        state.failures += 1

    def edns(self, server: str, now: float) -> bool:
        """Whether to offer EDNS to this server."""
        no_edns_at = self._state(server).no_edns_at
        return no_edns_at is None or now - no_edns_at > EDNS_MEMORY

    def refuses_edns(self, server: str, now: float) -> None:
        self._state(server).no_edns_at = now
