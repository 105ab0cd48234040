"""The same scenario on a bare grpcio channel and on a mesh channel: what the caller can see must be equal.

Nothing here says what is right; grpcio does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.components.process import free_port
from tests.integration.grpc_support import shop

M = "/s/"


class Server(grpc.GenericRpcHandler):
    """Answers by method name; slow ones wait long enough for every deadline and cancellation here."""

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        return {
            "echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "raise": grpc.unary_unary_rpc_method_handler(self.crash),
            "slow": grpc.unary_unary_rpc_method_handler(self.slow),
            "count": grpc.unary_stream_rpc_method_handler(self.count),
            "breaks": grpc.unary_stream_rpc_method_handler(self.breaks),
            "forever": grpc.unary_stream_rpc_method_handler(self.forever),
            "join": grpc.stream_unary_rpc_method_handler(lambda messages, _: b"".join(messages)),
            "early": grpc.stream_unary_rpc_method_handler(lambda messages, _: next(messages)),
            "chat": grpc.stream_stream_rpc_method_handler(lambda messages, _: (m + b"!" for m in messages)),
        }.get(name)

    def echo(self, request: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bin", b"\0")))
        sent = dict(context.invocation_metadata())
        return request + sent.get("k", "").encode() + sent.get("grpc-accept-encoding", "").encode()[:0]

    def fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-last", "2"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no: " + request.decode())

    def crash(self, request: bytes, context: Any) -> bytes:
        raise KeyError("crash")

    def slow(self, request: bytes, context: Any) -> bytes:
        end = time.monotonic() + 3
        while context.is_active() and time.monotonic() < end:
            time.sleep(0.01)
        return request

    def count(self, request: bytes, context: Any) -> Iterator[bytes]:
        return (b"%d" % n for n in range(int(request)))

    def breaks(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"1"
        context.abort(grpc.StatusCode.ABORTED, "half-way")

    def forever(self, request: bytes, context: Any) -> Iterator[bytes]:
        while context.is_active():
            yield b"."
            time.sleep(0.01)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    limit = [("grpc.max_receive_message_length", 5000)]
    server = grpc.server(ThreadPoolExecutor(16), handlers=(Server(),), options=limit)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(10)


def told(error: Any) -> tuple[Any, ...]:
    """What a caller can learn from an error of an RPC."""
    kinds = tuple(isinstance(error, kind) for kind in (grpc.RpcError, grpc.Call, grpc.Future))
    return (
        type(error).__name__,
        kinds,
        error.code(),
        # Core wraps a deadline in the other words when the stream was already being torn down: chance, not behaviour.
        str(error.details()).replace("Stream removed (Deadline Exceeded)", "Deadline Exceeded"),
        tuple(error.initial_metadata()),
        tuple(error.trailing_metadata()),
    )


def outcome(action: Callable[[], Any]) -> Any:
    try:
        return ("returned", action())
    except grpc.RpcError as error:
        return ("raised", *told(error))
    except Exception as error:
        return ("raised", type(error), str(error))


def identity_or_raise(message: Any) -> bytes:
    if message == b"bad":
        raise ValueError("cannot serialise")
    return bytes(message)


def with_call(channel: Any) -> Any:
    response, call = channel.unary_unary(M + "echo").with_call(b"x", metadata=(("k", "v"),))
    trailing = tuple(call.trailing_metadata())
    return response, call.code(), call.details(), tuple(call.initial_metadata()), trailing, call.is_active()


def future_states(channel: Any) -> Any:
    future = channel.unary_unary(M + "echo").future(b"x")
    result = future.result(10)
    called: list[bool] = []
    future.add_done_callback(lambda f: called.append(f is future))
    seen = (
        future.done(),
        future.running(),
        future.cancelled(),
        future.cancel(),
        future.exception(),
        future.traceback(),
    )
    return result, seen, called, future.add_callback(lambda: None), tuple(future.trailing_metadata())


def future_cancelled(channel: Any) -> Any:
    future = channel.unary_unary(M + "slow").future(b"x")
    cancelled = future.cancel(), future.cancelled(), future.done(), future.running(), future.cancel()
    out = outcome(lambda: future.result(5)), outcome(lambda: future.exception(5))
    return cancelled, out, future.code(), future.details()


def future_in_time(channel: Any) -> Any:
    future = channel.unary_unary(M + "slow").future(b"x")
    out = outcome(lambda: future.result(0.05)), future.running()
    future.cancel()
    return out


def stream_half_way(channel: Any) -> Any:
    stream = channel.unary_stream(M + "forever")(b"x")
    first = next(stream)
    active = stream.is_active(), stream.done(), stream.running()
    cancelled = stream.cancel()
    return first, active, cancelled, outcome(lambda: list(stream)), stream.cancelled(), stream.code()


def stream_that_breaks(channel: Any) -> Any:
    stream = channel.unary_stream(M + "breaks")(b"x")
    return (
        next(stream),
        outcome(lambda: next(stream)),
        outcome(lambda: next(stream)),
        told(stream)[2:],
        stream.done(),
    )


def iterates(channel: Any) -> Any:
    stream = channel.unary_stream(M + "count")(b"3")
    return (
        iter(stream) is stream,
        list(stream),
        outcome(lambda: next(stream)),
        stream.code(),
        stream.details(),
    )


def broken_requests(channel: Any) -> Any:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise KeyError("mine")

    call = channel.stream_stream(M + "chat")(broken())
    return outcome(lambda: list(call) and None)


def closes(channel: Any) -> Any:
    warm, stream = channel.unary_unary(M + "echo"), channel.unary_stream(M + "count")
    warm(b"x")
    list(stream(b"1"))
    running = channel.unary_unary(M + "slow").future(b"x")
    channel.close()
    after = outcome(lambda: warm(b"x")), outcome(lambda: warm.future(b"x")), outcome(lambda: stream(b"1"))
    error = running.exception(10)
    return after, error.code(), error.details(), outcome(channel.close)


SYNC: dict[str, Callable[[Any], Any]] = {
    "unary": lambda c: c.unary_unary(M + "echo")(b"x", metadata=(("k", "v"),)),
    "with_call": with_call,
    "positional": lambda c: c.unary_unary(M + "echo")(
        b"x", 5, (("k", "v"),), None, False, grpc.Compression.Gzip
    ),
    "error": lambda c: c.unary_unary(M + "fail")(b"x"),
    "server exception": lambda c: c.unary_unary(M + "raise")(b"x"),
    "unimplemented": lambda c: c.unary_unary(M + "nothing")(b"x"),
    "deadline": lambda c: c.unary_unary(M + "slow")(b"x", timeout=0.05),
    "deadline already over": lambda c: c.unary_unary(M + "echo")(b"x", timeout=-1),
    "wait_for_ready": lambda c: c.unary_unary(M + "echo")(b"x", wait_for_ready=True, timeout=10),
    "too large": lambda c: c.unary_unary(M + "echo")(b"x" * 6000),
    "credentials without TLS": lambda c: c.unary_unary(M + "echo")(
        b"x", credentials=grpc.access_token_call_credentials("secret"), timeout=10
    ),
    "compressed stream": lambda c: list(
        c.unary_stream(M + "count")(b"3", compression=grpc.Compression.Deflate, timeout=10)
    ),
    "bad metadata": lambda c: c.unary_unary(M + "echo")(b"x", metadata=(("NOT ALLOWED", "v"),)),
    "bad metadata of a future": lambda c: told(
        c.unary_unary(M + "echo").future(b"x", metadata=(("NOT ALLOWED", "v"),)).exception(10)
    ),
    "bad metadata of a stream": lambda c: list(
        c.unary_stream(M + "count")(b"3", metadata=(("NOT ALLOWED", "v"),))
    ),
    "serializer fails of a future": lambda c: c.unary_unary(M + "echo", identity_or_raise, None).future(
        b"bad"
    ),
    "serializer fails": lambda c: c.unary_unary(M + "echo", identity_or_raise, None)(b"bad"),
    "serializer fails in a stream": lambda c: c.unary_stream(M + "count", identity_or_raise, None)(b"bad"),
    "deserializer fails": lambda c: c.unary_unary(M + "echo", None, lambda raw: 1 / 0)(b"x"),
    "deserializer": lambda c: c.unary_unary(M + "echo", None, len)(b"xyz"),
    "future": future_states,
    "future error": lambda c: told(c.unary_unary(M + "fail").future(b"x").exception(10)),
    "future raises": lambda c: c.unary_unary(M + "fail").future(b"x").result(10),
    "future cancelled": future_cancelled,
    "future in time": future_in_time,
    "stream": iterates,
    "stream cancelled": stream_half_way,
    "stream breaks": stream_that_breaks,
    "stream deadline": lambda c: list(c.unary_stream(M + "forever")(b"x", timeout=0.1)) and None,
    "requests": lambda c: c.stream_unary(M + "join")(iter([b"a", b"b", b"c"])),
    "no requests": lambda c: c.stream_unary(M + "join")(iter([])),
    "answered early": lambda c: c.stream_unary(M + "early")(b"%d" % n for n in range(50)),
    "a list is no iterator": lambda c: c.stream_unary(M + "join")([b"a"]),
    "chat": lambda c: list(c.stream_stream(M + "chat")(iter([b"a", b"b"]))),
    "broken requests": broken_requests,
    "closed": closes,
}


UNCONNECTED = {"bad metadata of a future", "bad metadata of a stream"}


@pytest.mark.parametrize("name", SYNC)
def test_a_sync_caller_sees_no_difference(name: str, address: str) -> None:
    """Results, exceptions (type, code, details, metadata), call states and closing are grpcio's own."""
    with grpc.insecure_channel(address) as bare:
        expected = outcome(lambda: SYNC[name](bare))
    with shop() as mesh:
        mesh.serve([address])
        mesh.known()
        got = outcome(lambda: SYNC[name](mesh.channel()))
    if name in UNCONNECTED and expected[1] is ValueError:
        # an older grpcio raises at once, which a call that waits for its connection cannot; the words are grpcio's
        error = got[1] if got[0] == "returned" else got[1:]
        assert error[2:4] == (grpc.StatusCode.INTERNAL, expected[2])
    else:
        assert got == expected


LIMITED = {
    "received": (
        [("grpc.max_receive_message_length", 100)],
        lambda c: c.unary_unary(M + "echo")(b"x" * 200, timeout=10),
    ),
    "sent": (
        [("grpc.max_send_message_length", 100)],
        lambda c: c.unary_unary(M + "echo")(b"x" * 200, timeout=10),
    ),
    "received in a stream": (
        [("grpc.max_receive_message_length", 100)],
        lambda c: list(c.stream_stream(M + "chat")(iter([b"x" * 50, b"x" * 200]), timeout=10)),
    ),
    "no limit": (
        [("grpc.max_receive_message_length", -1)],
        lambda c: c.unary_unary(M + "echo")(b"x" * 4000, timeout=10),
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_the_clients_own_limits(name: str, address: str) -> None:
    """Message sizes, given as options of the channel."""
    options, call = LIMITED[name]
    with grpc.insecure_channel(address, options=options) as bare:
        expected = outcome(lambda: call(bare))
    with shop() as mesh:
        mesh.serve([address])
        assert outcome(lambda: call(mesh.channel(options=options))) == expected


REFUSED = {
    "unary": lambda c: c.unary_unary(M + "echo")(b"x", timeout=5),
    "future": lambda c: told(c.unary_unary(M + "echo").future(b"x", timeout=5).exception(5)),
    "stream": lambda c: list(c.unary_stream(M + "count")(b"3", timeout=5)),
    "requests": lambda c: c.stream_unary(M + "join")(iter([b"a", b"b"]), timeout=5),
    "chat": lambda c: list(c.stream_stream(M + "chat")(iter([b"a"]), timeout=5)),
    "wait_for_ready": lambda c: c.unary_unary(M + "echo")(b"x", timeout=0.3, wait_for_ready=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_dead_server_looks_the_same(name: str) -> None:
    """A refused connection, with nowhere else to go, is reported in grpcio's own words and types."""
    port = free_port("127.0.0.1")
    with grpc.insecure_channel(f"ipv4:127.0.0.1:{port}") as bare:
        expected = outcome(lambda: REFUSED[name](bare))
    with shop() as mesh:
        mesh.serve([f"127.0.0.1:{port}"])
        got = outcome(lambda: REFUSED[name](mesh.channel()))
    if name == "wait_for_ready":  # ours waits itself, over all endpoints, and says for what
        assert (got[0], got[2], got[3]) == (expected[0], expected[2], expected[3])
        assert got[4].startswith(expected[4])
    else:
        assert got == expected


# -- asyncio -----------------------------------------------------------------------------------------------------------


async def aoutcome(action: Callable[[], Any]) -> Any:
    try:
        return ("returned", await action())
    except grpc.RpcError as error:
        return ("raised", *told(error))
    except (Exception, asyncio.CancelledError) as error:
        return ("raised", type(error), str(error))


async def seen(call: Any) -> Any:
    return (
        await call.code(),
        await call.details(),
        tuple(await call.initial_metadata()),
        tuple(await call.trailing_metadata()),
        call.done(),
        call.cancelled(),
    )


async def a_unary(c: Any) -> Any:
    call = c.unary_unary(M + "echo")(b"x", metadata=(("k", "v"),))
    response = await call
    return response, await call, await seen(call), call.cancel(), call.time_remaining()


async def a_error(c: Any) -> Any:
    call = c.unary_unary(M + "fail")(b"x")
    return await aoutcome(lambda: awaited(call)), await seen(call)


async def awaited(call: Any) -> Any:
    return await call


async def listed(call: Any) -> Any:
    return [message async for message in call]


async def a_cancelled(c: Any) -> Any:
    call = c.unary_unary(M + "slow")(b"x")
    await asyncio.sleep(0.05)
    first = call.cancel()
    return first, await aoutcome(lambda: awaited(call)), call.cancelled(), call.done(), await call.code()


async def a_waiter_cancelled(c: Any) -> Any:
    call = c.unary_unary(M + "slow")(b"x")
    task = asyncio.ensure_future(awaited(call))
    await asyncio.sleep(0.05)
    task.cancel()
    return await aoutcome(lambda: awaited(task)), call.cancelled(), await call.code()


async def a_stream_read(c: Any) -> Any:
    call = c.unary_stream(M + "count")(b"2")
    got = [await call.read() for _ in range(3)]
    return got[:2], got[2] is grpc.aio.EOF, await call.read() is grpc.aio.EOF, await seen(call)


async def a_mixed_styles(c: Any) -> Any:
    call = c.unary_stream(M + "count")(b"2")
    await call.read()
    return await aoutcome(lambda: listed(call))


async def a_breaks(c: Any) -> Any:
    call = c.unary_stream(M + "breaks")(b"x")
    return await aoutcome(lambda: listed(call)), await seen(call)


async def a_writes(c: Any) -> Any:
    call = c.stream_stream(M + "chat")()
    await call.write(b"a")
    first = await call.read()
    await call.done_writing()
    return (
        first,
        await call.read() is grpc.aio.EOF,
        await aoutcome(lambda: call.write(b"b")),
        await seen(call),
    )


async def a_write_with_iterator(c: Any) -> Any:
    call = c.stream_unary(M + "join")(iter([b"a"]))
    out = await aoutcome(lambda: call.write(b"b"))
    return out, await call


async def a_callback(c: Any) -> Any:
    called = asyncio.Event()
    call = c.unary_unary(M + "echo")(b"x")
    given: list[Any] = []
    call.add_done_callback(lambda done: (given.append(done is call), called.set()))
    await call
    await asyncio.wait_for(called.wait(), 5)
    return given


async def a_iterating_broken(c: Any) -> Any:
    async def broken() -> Any:
        yield b"a"
        raise KeyError("mine")

    return await aoutcome(lambda: awaited(c.stream_unary(M + "join")(broken())))


async def a_closed(c: Any) -> Any:
    await c.unary_unary(M + "echo")(b"x")
    running = c.unary_unary(M + "slow")(b"x")
    await asyncio.sleep(0.05)
    await c.close()
    late = await aoutcome(lambda: awaited(c.unary_unary(M + "echo")(b"x")))
    return late, await aoutcome(lambda: awaited(running)), c.get_state(), await aoutcome(lambda: c.close())


AIO: dict[str, Callable[[Any], Any]] = {
    "unary": a_unary,
    "error": a_error,
    "server exception": lambda c: awaited(c.unary_unary(M + "raise")(b"x")),
    "deadline": lambda c: awaited(c.unary_unary(M + "slow")(b"x", timeout=0.05)),
    "too large": lambda c: awaited(c.unary_unary(M + "echo")(b"x" * 6000)),
    "deserializer": lambda c: awaited(c.unary_unary(M + "echo", None, len)(b"xyz")),
    "cancelled": a_cancelled,
    "waiter cancelled": a_waiter_cancelled,
    "stream": lambda c: listed(c.unary_stream(M + "count")(b"3")),
    "stream read": a_stream_read,
    "mixed styles": a_mixed_styles,
    "stream breaks": a_breaks,
    "stream deadline": lambda c: listed(c.unary_stream(M + "forever")(b"x", timeout=0.1)),
    "requests": lambda c: awaited(c.stream_unary(M + "join")(iter([b"a", b"b"]))),
    "writes": a_writes,
    "write with iterator": a_write_with_iterator,
    "chat": lambda c: listed(c.stream_stream(M + "chat")([b"a", b"b"])),
    "callback": a_callback,
    "broken requests": a_iterating_broken,
    "closed": a_closed,
}


@pytest.mark.parametrize("connected", [False, True], ids=["fresh", "connected"])
@pytest.mark.parametrize("name", AIO)
def test_an_asyncio_caller_sees_no_difference(name: str, connected: bool, address: str) -> None:
    """The same for grpc.aio, on a channel that has no connection yet and on one that has."""

    async def run(channel: Any) -> Any:
        try:
            if connected:
                await channel.channel_ready()
            return await asyncio.wait_for(aoutcome(lambda: AIO[name](channel)), 30)
        finally:
            await channel.close()

    async def bare() -> Any:
        return await run(grpc.aio.insecure_channel(address))

    with shop() as mesh:
        mesh.serve([address])
        mesh.known()  # a busy machine must not spend the deadline on that

        async def ours() -> Any:
            return await run(mesh.aio_channel())

        assert asyncio.run(ours()) == asyncio.run(bare())
