"""HTTP to one API server: headers, TLS, limits and time limits. Uses httpx's transport, below its client.

Without the client there are no redirects, no cookies, no proxies or netrc from the environment, and no request URLs in
the log: nothing there can carry the token anywhere else.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import urlencode

import httpx

from meshlib import __version__
from meshlib.discovery.kubernetes.credentials import TlsMaterial
from meshlib.discovery.kubernetes.faults import Fault, FaultKind, from_response

#: Seconds for TCP and TLS.
CONNECT_TIMEOUT = 10.0
#: Seconds until the headers of an answer are there; a server that accepts and says nothing counts as dead after it.
HEADER_TIMEOUT = 30.0
#: Seconds that a cancelled request may go on: longer than a handshake, and well below the 1.5 s of a process's exit.
CANCEL_PATIENCE = 0.5
#: Longest list in bytes: 100,000 endpoints are about 25 MB.
MAX_LIST = 64 * 1024 * 1024
#: Bytes of an error's body that are read.
_MAX_ERROR = 64 * 1024
#: A watch may be silent for minutes, so the kernel finds out whether the peer is there: first probe after 30 s of
#: silence, then every 10 s, dead after 3 (60 s in all); data not acknowledged for 30 s ends the connection, too.
_KEEP_IDLE, _KEEP_INTERVAL, _KEEP_COUNT, _USER_TIMEOUT_MS = 30, 10, 3, 30_000


class RequestFailed(Exception):
    """A request or a watch ended with a fault. Never holds headers, so never the token."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.message)


TransportFactory = Callable[[TlsMaterial, str], httpx.AsyncBaseTransport]


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (
        ("TCP_KEEPIDLE", _KEEP_IDLE),
        ("TCP_KEEPINTVL", _KEEP_INTERVAL),
        ("TCP_KEEPCNT", _KEEP_COUNT),
        ("TCP_USER_TIMEOUT", _USER_TIMEOUT_MS),  # Linux only
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def tls_context(tls: TlsMaterial) -> ssl.SSLContext:
    """A client context. Reads files: call it in a helper thread. Made by hand, because the standard library's default
    one writes session keys to the file that SSLKEYLOGFILE names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca_data:
        # Bundles carry comments in any language, and OpenSSL takes ASCII only.
        context.load_verify_locations(cadata=tls.ca_data.decode("ascii", "ignore"))
    else:
        context.load_default_certs()
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_data:
        # OpenSSL's reader wants a file; this one is readable for us only, and gone at once. The empty password keeps it
        # from asking for one at the terminal.
        with tempfile.NamedTemporaryFile(prefix="meshlib-") as file:
            file.write(tls.cert_data + b"\n" + tls.key_data)
            file.flush()
            context.load_cert_chain(file.name, password="")
    return context


def open_transport(tls: TlsMaterial, proxy: str) -> httpx.AsyncBaseTransport:
    """The real transport. Blocks for milliseconds: call it in a helper thread."""
    return httpx.AsyncHTTPTransport(
        verify=tls_context(tls),
        trust_env=False,
        # One connection per watch: a limit would make the watch of the 101st namespace wait for ever.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=4, keepalive_expiry=30.0),
        proxy=httpx.Proxy(proxy) if proxy else None,
        socket_options=_socket_options(),
    )


def _refused(error: BaseException | None, depth: int = 6) -> bool:
    if error is None or depth == 0:
        return False
    if isinstance(error, ConnectionRefusedError):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(_refused(each, depth - 1) for each in error.exceptions)
    return _refused(error.__cause__ or error.__context__, depth - 1)


def unreachable(error: Exception, what: str) -> Fault:
    """The fault for an exception of the transport."""
    text = str(error) or type(error).__name__
    return Fault(FaultKind.UNREACHABLE, f"{what}: {text}", refused=_refused(error))


class Answer:
    """A 200 answer whose body is still to be read. Close it in ``finally``."""

    def __init__(self, response: httpx.Response, what: str) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] = _iterate(response)
        self._what = what

    async def chunk(self) -> bytes:
        """The next bytes; b"" at the end. Raises RequestFailed when the connection breaks."""
        try:
            return await anext(self._chunks, b"")
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise RequestFailed(unreachable(error, self._what)) from None

    async def body(self, limit: int) -> bytes:
        """All of it; raises RequestFailed beyond ``limit`` bytes."""
        parts, size = [], 0
        while chunk := await self.chunk():
            size += len(chunk)
            if size > limit:
                raise RequestFailed(
                    Fault(FaultKind.BAD_DATA, f"{self._what}: the answer is longer than {limit} bytes")
                )
            parts.append(chunk)
        return b"".join(parts)

    async def close(self) -> None:
        """Also for a task that is cancelled meanwhile: half closed, the connection would be busy for ever."""
        await to_the_end(self._response.aclose())


async def _iterate(response: httpx.Response) -> AsyncIterator[bytes]:
    stream = response.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError("the transport gave a body that is not asynchronous")
    async for chunk in stream:
        if chunk:
            yield chunk


async def send(
    transport: httpx.AsyncBaseTransport,
    server: str,
    path: str,
    params: Mapping[str, str],
    token: str,
    server_name: str,
    what: str,
) -> Answer:
    """GET; returns when the headers of a 200 are there, raises RequestFailed for anything else."""
    headers = {
        "accept": "application/json",
        "accept-encoding": "identity",  # the limits count what arrives; a compressed bomb would pass them
        "user-agent": f"meshlib/{__version__}",
    }
    if token:
        headers["authorization"] = f"Bearer {token}"
    extensions: dict[str, Any] = {"timeout": {"connect": CONNECT_TIMEOUT, "write": CONNECT_TIMEOUT}}
    if server_name:
        extensions["sni_hostname"] = server_name
    url = server + path + (f"?{urlencode(params)}" if params else "")
    try:
        async with asyncio.timeout(HEADER_TIMEOUT):
            request = httpx.Request("GET", url, headers=headers, extensions=extensions)
            response = await _patiently(transport.handle_async_request(request))
    except TimeoutError:
        raise RequestFailed(
            Fault(FaultKind.UNREACHABLE, f"{what}: no answer within {HEADER_TIMEOUT:.0f} s")
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        raise RequestFailed(unreachable(error, what)) from None
    answer = Answer(response, what)
    try:
        if response.status_code != 200:
            fault = await _refusal(answer, response, what)
            raise RequestFailed(fault)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise RequestFailed(Fault(FaultKind.BAD_DATA, f"{what}: compressed though not asked for"))
    except BaseException:
        await answer.close()
        raise
    return answer


async def _patiently(sending: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    """Cancelled during a TLS handshake, the HTTP library forgets the socket and leaves it to the garbage collector; so
    a request that is cancelled gets a moment to come to a point where everything can be closed."""
    task = asyncio.ensure_future(sending)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=CANCEL_PATIENCE)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await task.result().aclose()
        raise


async def to_the_end(closing: Coroutine[Any, Any, None]) -> None:
    """Await what closes something; a cancellation that comes meanwhile is raised when it is closed."""
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=CANCEL_PATIENCE)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        raise


async def _refusal(answer: Answer, response: httpx.Response, what: str) -> Fault:
    body = b""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            body = await answer.body(_MAX_ERROR)
    except (TimeoutError, RequestFailed):
        body = b""  # the status alone says enough
    return from_response(response.status_code, body, response.headers, what)
