"""Flow: one client's connection or exchange of datagrams, as the proxy keeps it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Set
from typing import Protocol

from meshlib.agent.backends.userspace.choose import Chooser
from meshlib.pickers.subchannel import Subchannel

#: Makes a socket of a family and a type: in the network namespace that is served.
MakeSocket = Callable[[int, int], socket.socket]
#: From the address that a flow was made to, its chooser; None: nobody serves it (any more).
Find = Callable[[str], Chooser | None]


class Flow(Protocol):
    """Its endpoint, and its end."""

    @property
    def local(self) -> str:
        """The address that the client called."""
        ...

    @property
    def subchannel(self) -> Subchannel | None:
        """Where it goes; None: not known yet."""
        ...

    def abort(self) -> None:
        """End it now. Safe to call twice."""
        ...


class Listener(Protocol):
    """An open socket with its flows."""

    @property
    def flows(self) -> Set[Flow]: ...

    def close(self) -> None:
        """No new flows; those that are there go on."""
        ...


def family_of(address: str) -> int:
    """The socket family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def new_socket(family: int, kind: int) -> socket.socket:
    """Where nobody else makes them."""
    return socket.socket(family, kind | socket.SOCK_CLOEXEC)


def plain(address: str) -> str:
    """Without the zone of a link-local IPv6 address."""
    return address.partition("%")[0]
