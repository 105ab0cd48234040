"""Reach: whether one endpoint's channel is connected, and waiting for that before anything is sent.

A call handed to a channel that is still connecting waits inside core, for as long as its deadline allows, and cannot be
taken back without a doubt about what was sent. So a call is handed over once there is a connection, or a reason why
not; until then its endpoint can be exchanged freely.

States are core's numbers (``grpc.ChannelConnectivity``), and both colours of grpcio's channels answer through the same
attribute. A channel that does not (a grpcio we do not know, decision D18) is taken for connected: its calls wait inside
core, as with bare channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpc import ChannelConnectivity
from grpc.aio import UsageError

from meshlib.runtime.clock import SYSTEM

if TYPE_CHECKING:
    from threading import Event

    from meshlib.clients.grpc.transport import Transport

IDLE, CONNECTING, READY, TRANSIENT_FAILURE, SHUTDOWN = (
    state.value[0]
    for state in (
        ChannelConnectivity.IDLE,
        ChannelConnectivity.CONNECTING,
        ChannelConnectivity.READY,
        ChannelConnectivity.TRANSIENT_FAILURE,
        ChannelConnectivity.SHUTDOWN,
    )
)

_CONNECTED: int = READY

#: Seconds between two looks of a thread that waits: the first, doubled up to the longest. A connection takes half a
#: millisecond on loopback. Waiting inside core (``watch_connectivity_state``) needs no looks, but an interrupt there
#: leaves a watch behind that the channel's ``close()`` waits for, for ever.
FIRST_PAUSE = 0.0005
LONGEST_PAUSE = 0.01


def state_of(channel: Any) -> Callable[[bool], int]:
    """The question for a channel's state: a call into core of 0.3 microseconds that starts no thread."""
    look: Callable[[bool], int] | None = getattr(
        getattr(channel, "_channel", None), "check_connectivity_state", None
    )
    return look if look is not None else _connected


def _connected(connect: bool) -> int:
    return _CONNECTED


def undecided(state: int) -> bool:
    """Whether a call that is sent now would wait inside core: no connection, and no failure to tell."""
    return state in (IDLE, CONNECTING)


def connected_now(transport: Transport) -> bool:
    """Whether there is a connection; of a channel that was closed meanwhile there is none."""
    try:
        return transport.look(False) == _CONNECTED
    except ValueError:
        return False


def reach(transport: Transport, seconds: float, closed: Event, alive: Callable[[], bool]) -> bool:
    """Block until there is a connection or a failure that a call would show at once. False: not within ``seconds``.

    ``closed`` or ``alive`` False ends the wait early.
    """
    until = SYSTEM.now() + seconds
    pause = FIRST_PAUSE
    try:
        while undecided(transport.look(True)):
            left = until - SYSTEM.now()
            if left <= 0 or not alive() or closed.wait(min(left, pause)):
                return False
            pause = min(pause * 2, LONGEST_PAUSE)
    except ValueError:
        return True  # closed: a call says so itself
    return True


async def reach_async(transport: Transport, seconds: float) -> bool:
    """``reach`` on the channel's own loop, where nobody can take another's news."""
    until = SYSTEM.now() + seconds
    try:
        while undecided(state := transport.look(True)):
            left = until - SYSTEM.now()
            if left <= 0:
                return False
            await transport.channel._channel.watch_connectivity_state(state, SYSTEM.wall() + left)
    except (ValueError, UsageError):
        return True
    return True
