"""Reach: whether one endpoint's channel is connected, and waiting for that before anything is sent.

A call handed to a channel that is still connecting waits inside core, for as long as its deadline allows, and cannot be
taken back without a doubt about what was sent. So a call is handed over once there is a connection, or a reason why
not; until then its endpoint can be exchanged freely.

States are core's numbers (``grpc.ChannelConnectivity``), and both colours of grpcio's channels answer through the same
attribute. A channel that does not (a grpcio we do not know, decision D18) is taken for connected: its calls wait inside
core, as with bare channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc import ChannelConnectivity
from grpc.aio import UsageError

from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.primitives import start_helper

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

#: Seconds between two looks of a thread that waits: the first, and then a share of what it has waited, so that waiting
#: costs a hundred looks at most in the first second and twenty in each later one, and ends a tenth late at most. A
#: connection takes half a millisecond on loopback.
FIRST_PAUSE = 0.0005
PAUSE_SHARE = 0.1
LONGEST_PAUSE = 0.05
#: After so many seconds of looking on, a helper thread moves the connection forward (see ``_drive``).
UNAIDED = 0.005
#: Seconds of one wait inside core: the channel's ``close()`` waits for its end.
STEP = 0.05


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


def holds_calls(transport: Transport) -> bool:
    """Whether a call that is sent now could stay inside core although it fails to connect."""
    try:
        return transport.core_waits and transport.look(False) == TRANSIENT_FAILURE
    except ValueError:
        return False  # closed: a call says so itself


def connected_now(transport: Transport) -> bool:
    """Whether there is a connection; of a channel that was closed meanwhile there is none."""
    try:
        return transport.look(False) == _CONNECTED
    except ValueError:
        return False


def reach(
    transport: Transport,
    seconds: float,
    closed: Event,
    alive: Callable[[], bool],
    rivals: Sequence[Transport] = (),
) -> bool:
    """Block until there is a connection or a failure that a call would show at once. False: not within ``seconds``.

    ``closed``, ``alive`` False, or a connection of one of ``rivals`` ends the wait early.
    """
    began = SYSTEM.now()
    try:
        while undecided(transport.look(True)):
            waited = SYSTEM.now() - began
            if waited >= seconds or not alive() or any(map(connected_now, rivals)):
                return False
            if waited >= UNAIDED and not transport.driven:
                transport.driven = True
                with contextlib.suppress(
                    RuntimeError
                ):  # no thread to be had: core looks every few seconds itself
                    start_helper("grpc-connect", partial(_drive, transport))
            pause = min(max(FIRST_PAUSE, waited * PAUSE_SHARE), LONGEST_PAUSE, seconds - waited)
            if closed.wait(pause):
                return False
    except ValueError:
        return True  # closed: a call says so itself
    return True


def _drive(transport: Transport) -> None:
    """Wait inside core while anybody waits for this transport: one thread for all who do.

    Most versions of grpcio (1.85 no longer) read a connection's socket only while a thread waits inside core, and every
    five seconds otherwise. That thread must not be the caller's: an interrupt there, which only the main thread gets,
    leaves a watch behind that the channel's ``close()`` waits for, for ever.
    """
    try:
        while transport.open and undecided(state := transport.look(True)):
            transport.channel._channel.watch_connectivity_state(state, SYSTEM.wall() + STEP)
    except ValueError:
        pass  # closed meanwhile
    finally:
        transport.driven = False


async def reach_async(transport: Transport, seconds: float, rivals: Sequence[Transport] = ()) -> bool:
    """``reach`` on the channel's own loop, where nobody can take another's news and closing cancels who waits."""
    until = SYSTEM.now() + seconds
    try:
        while undecided(state := transport.look(True)):
            left = until - SYSTEM.now()
            if left <= 0 or any(map(connected_now, rivals)):
                return False
            step = min(left, STEP) if rivals else left
            await transport.channel._channel.watch_connectivity_state(state, SYSTEM.wall() + step)
    except (ValueError, UsageError):
        return True
    return True
