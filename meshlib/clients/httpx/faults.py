"""Whose fault an exception is: what may be tried again, and what counts against the endpoint."""

from __future__ import annotations

import errno
import ssl
from enum import Enum
from typing import Any

from meshlib.clients.httpx.goaway import is_refusal


class Fault(Enum):
    """What an exception of one exchange means for the endpoint and for the request."""

    #: No connection, nothing sent: blamed, another endpoint may be tried.
    UNREACHED = "unreached"
    #: The same by time-out.
    SLOW_TO_CONNECT = "slow-to-connect"
    #: Our own host cannot reach that family or network: not blamed, another may be tried.
    UNROUTABLE = "unroutable"
    #: Our own process or host is out of something: not blamed, no other endpoint would do better.
    EXHAUSTED = "exhausted"
    #: The connection ended before the head of the reply: blamed; perhaps it was stale.
    RESET = "reset"
    #: The endpoint says that it did not look at the request (HTTP/2): not blamed, any method may be sent again.
    REFUSED = "refused"
    #: The endpoint failed after the request was sent: blamed, never tried again.
    BROKEN = "broken"
    #: Cancellation, a full pool, the caller's own body or hooks: not blamed.
    OURS = "ours"


#: Out of descriptors or memory: dialling somebody else needs the same thing.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: No route, interface or local port, no such family, forbidden by a local filter: says nothing about the endpoint.
#: EHOSTUNREACH is not here: it is what a dead node looks like.
_UNROUTABLE = frozenset(
    {
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EACCES,
        errno.EPERM,
    }
)
_LOCAL = _EXHAUSTED | _UNROUTABLE
#: How deep chains of causes are followed: httpcore, anyio and asyncio add at most one link each, twice that is ample.
_DEPTH = 8

#: httpcore's wording (its HTTP/1.1 connection) for a connection that ended before any complete reply head.
_DISCONNECTED = "Server disconnected"


def fault_of(error: BaseException, core: Any) -> Fault:
    """Classify an exception raised while sending a request or reading its reply."""
    if isinstance(error, core.ConnectTimeout):
        return Fault.SLOW_TO_CONNECT
    if isinstance(error, core.ConnectError):
        code = local_errno(error)
        if code in _EXHAUSTED:
            return Fault.EXHAUSTED
        return Fault.UNROUTABLE if code in _UNROUTABLE else Fault.UNREACHED
    if isinstance(error, core.ReadError | core.WriteError):
        return Fault.RESET
    if isinstance(error, core.RemoteProtocolError):
        if is_refusal(error):
            return Fault.REFUSED
        return Fault.RESET if str(error).startswith(_DISCONNECTED) else Fault.BROKEN
    if isinstance(error, core.ReadTimeout | core.WriteTimeout):
        return Fault.BROKEN
    return Fault.OURS


def is_blamed(fault: Fault) -> bool:
    """Whether the fault counts as a failure of the endpoint."""
    return fault in (Fault.UNREACHED, Fault.SLOW_TO_CONNECT, Fault.RESET, Fault.BROKEN)


def local_errno(error: BaseException) -> int | None:
    """The first errno that says something about our own side, in the exception or in what caused it."""
    pending: list[BaseException] = [error]
    for _ in range(_DEPTH):
        found: list[BaseException] = []
        for one in pending:
            # an SSLError is an OSError whose errno is OpenSSL's number for it
            if isinstance(one, OSError) and not isinstance(one, ssl.SSLError) and one.errno in _LOCAL:
                return one.errno
            if isinstance(one, BaseExceptionGroup):
                found.extend(one.exceptions)
            found.extend(link for link in (one.__cause__, one.__context__) if link is not None)
            found.extend(argument for argument in one.args if isinstance(argument, BaseException))
        if not found:
            return None
        pending = found
    return None
