"""MeshPool and AsyncMeshPool: what stands in the place of ``transport._pool`` and decides where each request goes.

Requests for hosts that are not ours go to the original pool, untouched. Connections belong to the process that made
them and, in asyncio, to the event loop that made them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from meshlib.clients.httpx import engines
from meshlib.clients.httpx.allowance import KEY, Allowance
from meshlib.clients.httpx.attempt import Dial, Exchange, Pause, Wait, attempt
from meshlib.clients.httpx.body import AsyncLeasedBody, LeasedBody, RequestBody, settle_abandoned
from meshlib.clients.httpx.exceptions import as_httpcore
from meshlib.clients.httpx.fast.bodies import AioBody, SyncBody
from meshlib.clients.httpx.faults import Fault, fault_of, is_blamed
from meshlib.clients.httpx.flavour import Flavour
from meshlib.clients.httpx.outgoing import Outgoing
from meshlib.errors import HeldBack, ResolveError
from meshlib.pickers.hash_key import HashKeySource
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.default import default_mesh
from meshlib.runtime.factory import client_identity
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.observed import Observed, count_held_back
from meshlib.runtime.primitives import new_lock
from meshlib.runtime.process import rebuild_after_fork

#: Engines inherited through fork. Their connections belong to the parent: closing them, or letting a finalizer close
#: them, would speak on the parent's sockets, so they are kept until the process ends.
_graveyard: list[object] = []

_SCHEMES = {b"http": "http", b"ws": "http", b"https": "https", b"wss": "https"}

#: Gives the key for hash policies from an httpcore request (``method``, ``url``, ``headers``, all in bytes).
HashKey = Callable[[Any], str | bytes | None]
#: The request extension that gives the key for one request; wins over everything else.
HASH_KEY_EXTENSION = "meshlib_hash_key"


@dataclass(frozen=True, slots=True)
class _Identity:
    """What replaces the URL's host in Host and TLS; None: nothing, the user typed it."""

    authority: bytes | None
    tls_name: str | None


def _identity(handle: TargetHandle) -> _Identity:
    if not handle.authority or handle.authority == handle.target.authority:
        return _Identity(None, None)
    return _Identity(handle.authority.encode("ascii"), _host_of(handle.authority))


class _Pool:
    """What both colours share: whose host it is, and the request that is sent to an endpoint."""

    def __init__(
        self,
        original: Any,
        flavour: Flavour,
        *,
        mesh: Mesh | None = None,
        handle: TargetHandle | None = None,
        hash_key: HashKey | None = None,
        from_wrap: bool = False,
        wire: str = "",
        now: Callable[[], float] = SYSTEM.now,
    ) -> None:
        self.original = original  #: the pool that was here before; serves what is not ours
        self.mesh = mesh
        self._flavour = flavour
        self._handle = handle
        self._hash_key = hash_key
        self.from_wrap = from_wrap
        self._wire_option = wire
        self._now = now
        self._identities: dict[TargetHandle, _Identity] = {}
        self._client_key: str | None = None
        self._retries: int = original._retries
        rebuild_after_fork(self)

    @property
    def connections(self) -> list[Any]:
        """The connections of the original pool (httpcore's attribute); those to endpoints are not among them."""
        found: list[Any] = self.original.connections
        return found

    def _handle_for(self, url: Any) -> TargetHandle | Observed | None:
        """The target that serves this request; else the original pool does, under observation or not."""
        if self._flavour.is_mocked(self.original):
            return None
        handle = self._handle
        if handle is None:
            scheme = _SCHEMES.get(url.scheme)
            if scheme is None:
                return None
            if self.mesh is None:
                self.mesh = default_mesh()
            found = self.mesh.for_url(scheme, url.host.decode("ascii"), url.port)
            if found is None or type(found) is Observed:
                return found
            handle = found
        if handle not in self._identities:
            handle.on_removed(self._removed)  # first: another thread goes on as soon as it finds the identity
            handle.on_joined(self._joined)
            self._identities[handle] = _identity(handle)
        return handle

    def _is_bare_after_all(self, url: Any, exchange: Exchange) -> bool:
        """Whether what was learned while waiting says that this URL is not ours (decision D2: a port not listed), or
        that the roll-out holds it back (an annotation)."""
        if not exchange.body.can_begin or self._handle is not None or self.mesh is None:
            return False
        host = url.host.decode("ascii")
        return self.mesh.serving_url(_SCHEMES[url.scheme], host, url.port) is None

    def _obeying(self, handle: TargetHandle, lease: Lease) -> Lease:
        """The first lease of a request. The roll-out may have closed the gate after the request went through: a
        Service's annotation is part of the first knowledge. Raises HeldBack: nothing was sent, it goes the bare way."""
        if self._handle is None and handle.rollout.lowered:
            lease.withdraw()
            count_held_back(handle)
            raise HeldBack(f"{handle.target}: {handle.rollout.decision.reason}")
        return lease

    def _removed(self, subchannel: Subchannel) -> None:
        raise NotImplementedError

    def _joined(self, joiners: tuple[Subchannel, ...], peers: tuple[Subchannel, ...], members: int) -> None:
        raise NotImplementedError

    def after_fork(self) -> None:
        """In a forked child, before any other code of it runs: forget the engines, leave their connections alone."""
        self._client_key = None
        # Closing the client closes the original pool, whose lock another thread of the parent may have held.
        self.original._optional_thread_lock = type(self.original._optional_thread_lock)()

    def _exchange(self, handle: TargetHandle, request: Any) -> Exchange:
        timeouts = request.extensions.get("timeout") or {}
        replayable = isinstance(request.stream, self._flavour.httpx.ByteStream)
        return Exchange(
            method=request.method,
            body=RequestBody(request.stream, replayable),
            connect_timeout=timeouts.get("connect"),
            pool_timeout=timeouts.get("pool"),
            hash_key=self._key(handle, request),
            retries=self._retries,
            secure=_SCHEMES.get(request.url.scheme) == "https",
        )

    def _key(self, handle: TargetHandle, request: Any) -> str | bytes | None:
        key: str | bytes | None = request.extensions.get(HASH_KEY_EXTENSION)
        if key is not None:
            return key
        if self._hash_key is not None:
            return self._hash_key(request)
        spec = handle.hash_key
        if spec is None:
            return None
        if spec.source is HashKeySource.CLIENT:
            if self._client_key is None:
                self._client_key = client_identity()
            return self._client_key
        return spec.from_headers(
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
        )

    def _to_endpoint(self, handle: TargetHandle, request: Any, exchange: Exchange, step: Dial) -> Outgoing:
        """The request as it goes to the endpoint: only the dialled address differs from what httpx made."""
        tls_name = ""
        identity = self._identities[handle]
        if exchange.secure:
            typed = request.url.host.decode("ascii").removesuffix(
                "."
            )  # RFC 6066 3: a server name has no trailing dot
            tls_name = request.extensions.get("sni_hostname") or identity.tls_name or typed
        headers = request.headers
        if identity.authority is not None:
            headers = [(k, identity.authority if k.lower() == b"host" else v) for k, v in headers]
        return Outgoing(request, headers, exchange.body, exchange.secure, tls_name, step.connect_timeout)

    @property
    def _wire(self) -> str:
        """The wire that was asked for here, else the Mesh's."""
        return self._wire_option or (self.mesh.config.wire if self.mesh is not None else engines.DEFAULT)

    def _new_allowance(self, lock: Any) -> Allowance:
        if self.mesh is None:
            return Allowance(lock)
        config = self.mesh.config
        return Allowance(lock, config.total_connections, config.source(KEY))

    def _fault_of(self, error: BaseException) -> Fault:
        return fault_of(error, self._flavour.core)

    def _blames(self, error: BaseException) -> bool:
        return is_blamed(fault_of(error, self._flavour.core))

    def __repr__(self) -> str:
        served = str(self._handle.target) if self._handle is not None else "hosts of the cluster"
        return f"<{type(self).__name__} for {served} over {self.original!r}>"


class MeshPool(_Pool):
    """For httpx.HTTPTransport. All methods may be called from any thread."""

    def __init__(self, original: Any, flavour: Flavour, **options: Any) -> None:
        super().__init__(original, flavour, **options)
        self._engine: engines.Sync | None = None  #: made by the first request
        self._engine_lock = new_lock()

    def handle_request(self, request: Any) -> Any:
        """Send over a picked endpoint. Raises httpcore's exceptions; meshlib's own are children of them."""
        handle = self._handle_for(request.url)
        if handle is None:
            return self.original.handle_request(request)
        if type(handle) is Observed:
            return _compared(handle, self.original.handle_request(request))
        settle_abandoned()
        engine = self._engine or self._new_engine()
        engine.tidy()
        exchange = self._exchange(handle, request)
        steps = attempt(handle, exchange, self._fault_of, self._now)
        try:
            step = next(steps)
            if handle.rollout.gate is not None and type(step) is Dial:
                self._obeying(handle, step.lease)
            while True:
                try:
                    if type(step) is Dial:
                        out = self._to_endpoint(handle, request, exchange, step)
                        outcome: Any = engine.send(step, out, exchange)
                    else:
                        outcome = self._rest(step, handle, exchange)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as finished:
            response, lease = finished.value
            if type(response.stream) is SyncBody:
                response.stream.hold(lease, self._blames)
            else:
                response.stream = LeasedBody(response.stream, lease, self._blames, engine)
            return response
        except ResolveError as error:
            if self._is_bare_after_all(request.url, exchange):
                return self.original.handle_request(request)
            raise as_httpcore(error, self._flavour.core, exchange.pool_is_shorter) from error

    def _rest(self, step: Any, handle: TargetHandle, exchange: Exchange) -> Any:
        if isinstance(step, Wait):
            return self._obeying(handle, handle.acquire(step.timeout, exchange.hash_key))
        assert isinstance(step, Pause)  # noqa: S101 - for mypy; there is no fourth step
        return self.original._network_backend.sleep(step.seconds)

    def _new_engine(self) -> engines.Sync:
        try:
            made = engines.make_sync(
                self._wire, self._flavour.core, self.original, self._now, self._new_allowance
            )
        except OSError as error:  # its modules are loaded now, and that takes descriptors
            raise self._flavour.core.ConnectError(error) from error
        with self._engine_lock:  # two threads with a first request each must share one
            self._engine = self._engine or made
            return self._engine

    def _joined(self, joiners: tuple[Subchannel, ...], peers: tuple[Subchannel, ...], members: int) -> None:
        engine = self._engine
        if engine is not None:
            engine.joined(joiners, peers, members)

    def _removed(self, subchannel: Subchannel) -> None:
        engine = self._engine
        if engine is not None:
            engine.retire(subchannel)

    def after_fork(self) -> None:
        super().after_fork()
        if self._engine is not None:
            self._engine.after_fork()
            _graveyard.append(self._engine)
        self._engine = None
        self._engine_lock = new_lock()  # the old one may be held by a thread that is not here

    def drain(self) -> None:
        """Stop using endpoints; requests in flight finish, the original pool stays open."""
        if self._engine is not None:
            self._engine.drain()

    def close(self) -> None:
        settle_abandoned()
        if self._engine is not None:
            self._engine.close()
        self.original.close()

    def __enter__(self) -> MeshPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncMeshPool(_Pool):
    """For httpx.AsyncHTTPTransport. May be used on any number of asyncio loops, each in its own thread.

    Under another async library than asyncio (trio) requests go to the original pool.
    """

    def __init__(self, original: Any, flavour: Flavour, **options: Any) -> None:
        super().__init__(original, flavour, **options)
        self._engines: dict[asyncio.AbstractEventLoop, engines.Async] = {}

    async def handle_async_request(self, request: Any) -> Any:
        """Send over a picked endpoint. Raises httpcore's exceptions; meshlib's own are children of them."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._handle is not None:
                raise RuntimeError(
                    "AsyncMeshTransport(target=) needs asyncio, no loop of it is running"
                ) from None
            return await self.original.handle_async_request(request)
        handle = self._handle_for(request.url)
        if handle is None:
            return await self.original.handle_async_request(request)
        if type(handle) is Observed:
            return _compared(handle, await self.original.handle_async_request(request))
        settle_abandoned()
        engine = self._engines.get(loop) or self._new_engine(loop)
        engine.tidy()
        exchange = self._exchange(handle, request)
        steps = attempt(handle, exchange, self._fault_of, self._now)
        try:
            step = next(steps)
            if handle.rollout.gate is not None and type(step) is Dial:
                self._obeying(handle, step.lease)
            while True:
                try:
                    if type(step) is Dial:
                        out = self._to_endpoint(handle, request, exchange, step)
                        outcome: Any = await engine.send(step, out, exchange)
                    else:
                        outcome = await self._rest(step, handle, exchange)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as finished:
            response, lease = finished.value
            if type(response.stream) is AioBody:
                response.stream.hold(lease, self._blames)
            else:
                response.stream = AsyncLeasedBody(response.stream, lease, self._blames, engine)
            return response
        except ResolveError as error:
            if self._is_bare_after_all(request.url, exchange):
                return await self.original.handle_async_request(request)
            raise as_httpcore(error, self._flavour.core, exchange.pool_is_shorter) from error

    async def _rest(self, step: Any, handle: TargetHandle, exchange: Exchange) -> Any:
        if isinstance(step, Wait):
            return self._obeying(handle, await handle.acquire_async(step.timeout, exchange.hash_key))
        assert isinstance(step, Pause)  # noqa: S101 - for mypy; there is no fourth step
        return await self.original._network_backend.sleep(step.seconds)

    def _new_engine(self, loop: asyncio.AbstractEventLoop) -> engines.Async:
        """A loop's first request. Engines of closed loops are dropped: nothing can be awaited on them any more."""
        for other in list(self._engines):
            if other.is_closed():
                self._engines.pop(other, None)
        try:
            made = engines.make_async(
                self._wire, self._flavour.core, self.original, self._now, loop, self._new_allowance
            )
        except OSError as error:  # as in MeshPool
            raise self._flavour.core.ConnectError(error) from error
        return self._engines.setdefault(loop, made)

    def _joined(self, joiners: tuple[Subchannel, ...], peers: tuple[Subchannel, ...], members: int) -> None:
        for engine in list(self._engines.values()):
            engine.joined(joiners, peers, members)

    def _removed(self, subchannel: Subchannel) -> None:
        for engine in list(self._engines.values()):
            engine.retire(subchannel)

    def after_fork(self) -> None:
        super().after_fork()
        for engine in self._engines.values():
            engine.after_fork()
        _graveyard.append(self._engines)
        self._engines = {}

    def drain(self) -> None:
        """Stop using endpoints; requests in flight finish, the original pool stays open."""
        for engine in list(self._engines.values()):
            engine.drain()

    async def aclose(self) -> None:
        settle_abandoned()
        others, self._engines = self._engines, {}
        own: engines.Async | None = None
        with contextlib.suppress(RuntimeError):  # no asyncio loop here (trio), so no engine of our own either
            own = others.pop(asyncio.get_running_loop(), None)
        for engine in others.values():
            engine.close_elsewhere()
        if own is not None:
            await own.close()
        await self.original.aclose()

    async def __aenter__(self) -> AsyncMeshPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _compared(observed: Observed, response: Any) -> Any:
    """Tell where the bare way led, if the connection says so. The response is not touched."""
    stream = response.extensions.get("network_stream")
    try:
        peer = stream.get_extra_info("server_addr")
        observed.reached(peer[0], peer[1])
    except (
        Exception
    ):  # a Unix socket, a connection that ended, somebody's own backend: nothing to compare, and no
        return response  # request may fail of being watched
    return response


def _host_of(authority: str) -> str:
    """``host``, ``host:port``, ``[v6]`` or ``[v6]:port`` without its port, for TLS."""
    if authority.startswith("["):
        return authority[1 : authority.index("]")]
    return authority.partition(":")[0]
