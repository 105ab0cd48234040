"""Whose fault an exception is, on exceptions that the real backends raise."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl

import httpcore
import pytest

from meshlib.clients.httpx.faults import Fault, fault_of, is_blamed, local_errno


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_refused_by_the_real_sync_backend_is_unreached() -> None:
    """ECONNREFUSED, as httpcore raises it in threads, is the endpoint's fault."""
    with httpcore.ConnectionPool() as pool, pytest.raises(httpcore.ConnectError) as caught:
        pool.request("GET", f"http://127.0.0.1:{closed_port()}/")
    assert fault_of(caught.value, httpcore) is Fault.UNREACHED
    assert local_errno(caught.value) is None


def test_refused_by_the_real_async_backend_is_unreached() -> None:
    """The same through asyncio and anyio, which wrap it several times."""

    async def call() -> None:
        async with httpcore.AsyncConnectionPool() as pool:
            await pool.request("GET", f"http://127.0.0.1:{closed_port()}/")

    with pytest.raises(httpcore.ConnectError) as caught:
        asyncio.run(call())
    assert fault_of(caught.value, httpcore) is Fault.UNREACHED


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.EMFILE, Fault.EXHAUSTED),
        (errno.ENFILE, Fault.EXHAUSTED),
        (errno.ENETUNREACH, Fault.UNROUTABLE),
        (errno.EADDRNOTAVAIL, Fault.UNROUTABLE),
        (errno.ECONNREFUSED, Fault.UNREACHED),
        (errno.EHOSTUNREACH, Fault.UNREACHED),
        (errno.ECONNRESET, Fault.UNREACHED),
    ],
)
def test_errno_decides_whose_fault_a_connect_error_is(code: int, fault: Fault) -> None:
    """Found however the library wrapped it: as cause, as context, as argument, inside a group."""
    inner = OSError(code, "inside")
    group = ExceptionGroup("several", [inner])
    wrapped = OSError("All connection attempts failed")
    wrapped.__cause__ = group
    by_cause, by_argument, by_context = (
        httpcore.ConnectError("x"),
        httpcore.ConnectError(inner),
        httpcore.ConnectError("x"),
    )
    by_cause.__cause__ = wrapped
    by_context.__context__ = inner
    for error in (by_cause, by_argument, by_context):
        assert fault_of(error, httpcore) is fault


def test_failed_tls_handshake_is_the_endpoints_fault() -> None:
    """OpenSSL's error numbers are no errnos: 1 is a failed verification there, and EPERM elsewhere."""
    error = httpcore.ConnectError("certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError(1, "certificate verify failed")
    assert fault_of(error, httpcore) is Fault.UNREACHED


def test_cycle_of_causes_ends() -> None:
    """Exceptions may refer to each other; looking through them is bounded."""
    one, two = httpcore.ConnectError("one"), OSError("two")
    one.__cause__, two.__cause__ = two, one
    assert fault_of(one, httpcore) is Fault.UNREACHED


@pytest.mark.parametrize(
    ("error", "fault", "blamed"),
    [
        (httpcore.ConnectTimeout(), Fault.SLOW_TO_CONNECT, True),
        (httpcore.ReadError(), Fault.RESET, True),
        (httpcore.WriteError(), Fault.RESET, True),
        (
            httpcore.RemoteProtocolError("Server disconnected without sending a response."),
            Fault.RESET,
            True,
        ),
        (httpcore.RemoteProtocolError("illegal status line"), Fault.BROKEN, True),
        (httpcore.ReadTimeout(), Fault.BROKEN, True),
        (httpcore.PoolTimeout(), Fault.OURS, False),
        (httpcore.LocalProtocolError(), Fault.OURS, False),
        (asyncio.CancelledError(), Fault.OURS, False),
        (ValueError(), Fault.OURS, False),
    ],
)
def test_exceptions_are_classified(error: BaseException, fault: Fault, blamed: bool) -> None:
    """One row per kind of exception."""
    assert fault_of(error, httpcore) is fault
    assert is_blamed(fault) is blamed
