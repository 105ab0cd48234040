"""Probes: one new flow, and what became of it."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import NamedTuple

from tests.kernel.lab.net import inside
from tests.kernel.lab.servers import KINDS

#: Seconds. Long enough for a busy machine, where an answer is expected.
PATIENCE = 8.0
#: Seconds. Where none is expected: longer would find nothing either, since everything is on one machine.
SILENCE = 0.4

_REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET}


# Those without fields are no tuples: empty ones would all be equal.


class Answered(NamedTuple):
    """By which endpoint, and the source address that it saw."""

    endpoint: str
    port: int
    source: str
    source_port: int


@dataclass(frozen=True)
class Refused:
    """At once: a reset or ICMP port unreachable."""


@dataclass(frozen=True)
class Silent:
    """Nothing came back in time."""


@dataclass(frozen=True)
class Denied:
    """A datagram of the node's own was taken from its sender's hands: a drop and a refusal look like this there."""


class Failed(NamedTuple):
    """The flow could not even be begun, or ended by an error of another kind."""

    error: str


Outcome = Answered | Refused | Silent | Denied | Failed


class Flow:
    """A flow that stays open. Raises OSError as sockets do."""

    def __init__(
        self,
        space: str,
        protocol: str,
        address: str,
        port: int,
        *,
        patience: float = PATIENCE,
        source: str = "",
        source_port: int = 0,
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(space):
            self.socket = socket.socket(family, *KINDS[protocol])
        self.socket.settimeout(patience)
        try:
            if source or source_port:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind((source, source_port))
            self.socket.connect((address, port))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, patience: float | None = None) -> Answered:
        """Send something, and hear who answers."""
        if patience is not None:
            self.socket.settimeout(patience)
        self.socket.send(b"?")
        data = self.socket.recv(2048)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the other side")
        endpoint, port, source, source_port = data.decode().split()
        return Answered(endpoint, int(port), source, int(source_port))


def probe(
    space: str,
    protocol: str,
    address: str,
    port: int,
    *,
    patience: float = PATIENCE,
    source: str = "",
    source_port: int = 0,
) -> Outcome:
    """One new flow: who answers, or how it fails."""
    try:
        with Flow(
            space, protocol, address, port, patience=patience, source=source, source_port=source_port
        ) as flow:
            return flow.ask()
    except TimeoutError:
        return Silent()
    except OSError as error:
        if error.errno in _REFUSED:
            return Refused()
        if error.errno == errno.EPERM:
            return Denied()
        return Failed(os.strerror(error.errno) if error.errno else str(error))
