"""AioMeshChannel: a ``grpc.aio.Channel`` over all endpoints of a target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import grpc
from grpc import ChannelConnectivity

from meshlib.clients.grpc.aio_interceptors import intercepted, split
from meshlib.clients.grpc.aio_multicallables import (
    AioMultiCallable,
    StreamStream,
    StreamUnary,
    UnaryStream,
    UnaryUnary,
)
from meshlib.clients.grpc.aio_pool import LoopPool
from meshlib.clients.grpc.attempts import SHORT_PATIENCE
from meshlib.clients.grpc.connectivity import EAGER, RELAXED, aggregate
from meshlib.clients.grpc.hash_key import HashKey, Keys
from meshlib.clients.grpc.methods import KINDS, Methods
from meshlib.clients.grpc.options import Options, channel_options, core_waits
from meshlib.clients.grpc.otherwise import Bare
from meshlib.clients.grpc.routing import AIO, Make, channel
from meshlib.errors import MeshError
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.default import default_mesh
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.primitives import new_lock
from meshlib.runtime.process import rebuild_after_fork

#: Loops and channels inherited over a fork: referenced until exit, because closing or collecting them in the child
#: would end connections, and disturb event loops, that belong to the parent.
_graveyard: list[object] = []
_closing: set[asyncio.Task[None]] = set()


class AioMeshChannel(Methods, grpc.aio.Channel):
    """Balances every call over one single-address channel per endpoint and event loop. Usable after fork.

    Made by ``meshlib.grpc.aio.insecure_channel`` and ``secure_channel``. May be used from several loops in several
    threads; ``close`` closes all of it.
    """

    def __init__(
        self,
        handle: TargetHandle,
        connect: Callable[[str], grpc.aio.Channel],
        hash_key: HashKey | None = None,
        bare: Bare | None = None,
        core_waits: bool = False,
    ) -> None:
        super().__init__()
        self._handle = handle
        self._make_bare = bare
        self._bare: dict[asyncio.AbstractEventLoop, Any] = {}
        self._key = Keys(handle, hash_key)
        self._connect = connect
        self._core_waits = core_waits
        self._pools: dict[asyncio.AbstractEventLoop, LoopPool] = {}
        self._closed = False
        handle.on_removed(self._drop)
        rebuild_after_fork(self)

    # -- methods -------------------------------------------------------------------------------------------------

    def _made(self, kind: str, make: Callable[[Any], Any], serializer: Any) -> AioMultiCallable:
        bare = self._otherwise if self._make_bare is not None else None
        return _KINDS[kind](self._handle, self._pool, SYSTEM.now, self._key, make, bare)

    def _otherwise(self) -> Any:
        """grpc's own channel to the same target, of the running loop; see ``otherwise``."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._bare and self._make_bare is not None:
                self._bare[loop] = self._make_bare()
            return self._bare[loop]

    def _forget(self, method: AioMultiCallable) -> None:
        for loop, pool in list(self._pools.items()):
            _on_loop(loop, partial(pool.forget_method, method))

    # -- loops ---------------------------------------------------------------------------------------------------

    def _pool(self) -> LoopPool:
        """The running loop's channels."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # The one that ``run_until_complete(stub.Method(request))`` is about to run.
            loop = asyncio.get_event_loop()
        pool = self._pools.get(loop)
        if pool is None:
            with self._lock:
                if self._closed:
                    raise grpc.aio.UsageError("Channel is closed.")
                for other in [known for known in self._pools if known.is_closed()]:
                    self._pools.pop(other).abandon()
                pool = self._pools[loop] = LoopPool(loop, self._connect, self._core_waits)
        return pool

    def _drop(self, subchannel: Subchannel) -> None:
        """The endpoint left the set (control thread)."""
        with self._lock:
            pools = list(self._pools.items())
        for loop, pool in pools:
            _on_loop(loop, partial(pool.drop, subchannel))

    def after_fork(self) -> None:
        """In a forked child (called by the runtime): forget everything inherited, close nothing."""
        _graveyard.append((self._pools, self._bare))
        self._bare = {}
        self._lock = new_lock()
        self._pools = {}

    # -- state ---------------------------------------------------------------------------------------------------

    def get_state(self, try_to_connect: bool = False) -> ChannelConnectivity:
        """READY if an endpoint of this loop is connected, else as round_robin aggregates; SHUTDOWN after close."""
        if self._closed:
            return ChannelConnectivity.SHUTDOWN
        pool = self._pool()
        state = aggregate(pool.states())
        if not try_to_connect or state in (ChannelConnectivity.READY, ChannelConnectivity.CONNECTING):
            return state
        return self._connect_another(pool, state)

    def _connect_another(self, pool: LoopPool, state: ChannelConnectivity) -> ChannelConnectivity:
        tried = {
            t.subchannel for t in pool.transports if t.channel.get_state() is not ChannelConnectivity.IDLE
        }
        try:
            lease = self._handle.try_acquire(None, exclude=tried)
        except MeshError:
            return ChannelConnectivity.TRANSIENT_FAILURE
        if lease is None:
            return state if tried else ChannelConnectivity.CONNECTING
        try:
            pool.transport(lease).channel.get_state(try_to_connect=True)
        finally:
            lease.done()
        return aggregate(pool.states())

    async def wait_for_state_change(self, last_observed_state: ChannelConnectivity) -> None:
        """Return when the state is another. It is looked at every 10 ms while connecting, every 200 ms otherwise."""
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        settled = last_observed_state in (ChannelConnectivity.READY, ChannelConnectivity.IDLE)
        while True:
            if self.get_state() is not last_observed_state:
                return
            await asyncio.sleep(RELAXED if settled else EAGER)

    async def channel_ready(self) -> None:
        """Return when an endpoint is connected."""
        patient_until = SYSTEM.now() + SHORT_PATIENCE
        while True:
            state = self.get_state(try_to_connect=True)
            if state is ChannelConnectivity.READY:
                return
            if state is ChannelConnectivity.SHUTDOWN:
                raise grpc.aio.UsageError("Channel is closed.")
            if SYSTEM.now() >= patient_until:
                self._connect_another(self._pool(), state)
                patient_until = SYSTEM.now() + SHORT_PATIENCE
            await asyncio.sleep(EAGER)

    # -- life ----------------------------------------------------------------------------------------------------

    async def close(self, grace: float | None = None) -> None:
        """Close every endpoint's channel, in every loop. Calls in flight may finish within ``grace`` seconds."""
        if grace is not None and grace < 0:
            raise ValueError(f"grace must be non-negative, got {grace}.")
        with self._lock:
            self._closed = True
            pools = dict(self._pools)
            bare, self._bare = self._bare, {}
        for loop, one in bare.items():
            if loop is asyncio.get_running_loop():
                await one.close(grace)
            else:
                _on_loop(loop, partial(_close_later, loop, one, grace))
        own = pools.pop(asyncio.get_running_loop(), None)
        for loop, pool in pools.items():
            _on_loop(loop, partial(pool.close_later, grace))
        if own is not None:
            await own.close(grace)

    async def __aenter__(self) -> AioMeshChannel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._handle.target}: {len(self._pools)} event loops>"


_KINDS: dict[str, type[AioMultiCallable]] = dict(
    zip(KINDS, (UnaryUnary, UnaryStream, StreamUnary, StreamStream), strict=True)
)


def _on_loop(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> None:
    """Run ``work`` on another thread's loop; a loop that was closed has nothing left to do it to."""
    if loop.is_closed():
        return
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        return  # closed between the look and the call


def _close_later(loop: asyncio.AbstractEventLoop, channel: Any, grace: float | None) -> None:
    """Close another loop's channel, on that loop. The task is referenced until done, as asyncio does not."""
    task = loop.create_task(channel.close(grace))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def insecure_channel(
    target: str,
    options: Options | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    *,
    mesh: Mesh | None = None,
    hash_key: HashKey | None = None,
) -> grpc.aio.Channel:
    """``grpc.aio.insecure_channel`` over all endpoints of a mesh target.

    ``interceptors`` run once per call, as in grpc. The rest as ``meshlib.grpc.insecure_channel``. Needs no running
    loop; channels are made per loop, on first use.
    """
    make = _maker((mesh or default_mesh()).target(target).explicit, hash_key)
    rest = {"compression": compression, "interceptors": interceptors}
    made: grpc.aio.Channel = channel(AIO, grpc.aio.insecure_channel, target, (), options, rest, make)
    return made


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: Options | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    *,
    mesh: Mesh | None = None,
    hash_key: HashKey | None = None,
) -> grpc.aio.Channel:
    """``grpc.aio.secure_channel`` over all endpoints of a mesh target; TLS verifies the target's logical authority."""
    make = _maker((mesh or default_mesh()).target(target).explicit, hash_key)
    rest = {"compression": compression, "interceptors": interceptors}
    made: grpc.aio.Channel = channel(
        AIO, grpc.aio.secure_channel, target, (credentials,), options, rest, make
    )
    return made


def _maker(handle: TargetHandle, hash_key: HashKey | None) -> Make:
    """``rest``: credentials, compression and interceptors, as grpc's own class takes them."""

    def make(original: Any, target: str, options: Options, *rest: Any) -> grpc.aio.Channel:
        merged = channel_options(options, handle.authority)
        *others, interceptors = rest
        around, below = split(interceptors)
        return intercepted(
            AioMeshChannel(
                handle,
                lambda address: original(address, merged, *others, below),
                hash_key,
                core_waits=core_waits(merged),
            ),
            around,
        )

    return make
