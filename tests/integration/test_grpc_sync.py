"""The blocking gRPC client against real grpcio servers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import meshlib.grpc
from meshlib.errors import NoEndpoints, TargetError
from meshlib.model.update import DoesNotExist
from tests.components.backends import Backends
from tests.components.process import free_port
from tests.integration.grpc_support import SERVICE, SS, SU, TARGET, US, UU, Shop, ending, eventually, shop


@pytest.fixture
def mesh() -> Iterator[Shop]:
    with shop() as made:
        yield made


# -- balancing and the four arities ------------------------------------------------------------------------------


def test_calls_reach_every_endpoint(mesh: Shop, backends: Backends) -> None:
    """Unary calls spread over all endpoints, and each is counted exactly once by exactly one server."""
    servers = backends.grpc(3)
    mesh.serve(servers)
    call = mesh.channel().unary_unary(UU)
    got = Counter(call(b"x") for _ in range(60))
    assert sum(server.requests for server in servers) == 60
    assert {name.decode().split(":")[0] for name in got} == {server.name for server in servers}
    assert mesh.inflight == 0


def test_streams_of_every_kind(mesh: Shop, backends: Backends) -> None:
    """Streaming requests and responses arrive whole, blocking and as futures."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    channel = mesh.channel()
    name = server.name.encode()
    assert list(channel.unary_stream(US)(b"x")) == [name + b":x:%d" % i for i in range(5)]
    assert channel.stream_unary(SU)(iter([b"a", b"b", b"c"])) == name + b":a,b,c"
    response, call = channel.stream_unary(SU).with_call(iter([b"a"]))
    assert (response, call.code()) == (name + b":a", grpc.StatusCode.OK)
    assert channel.stream_unary(SU).future(iter([b"a", b"b"])).result(10) == name + b":a,b"
    assert list(channel.stream_stream(SS)(iter([b"a", b"b"]))) == [name + b":a", name + b":b"]
    eventually(lambda: mesh.inflight == 0)


def test_metadata_compression_and_logical_authority(mesh: Shop, backends: Backends) -> None:
    """Metadata goes both ways, compression is accepted, and the endpoint sees a call made for it."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    call = mesh.channel(compression=grpc.Compression.Gzip).unary_unary(UU)
    response, info = call.with_call(b"x" * 1000, metadata=(("k", "v"),), compression=grpc.Compression.Deflate)
    assert response.endswith(b"x" * 1000)
    headers = dict(info.initial_metadata())
    assert headers["x-backend"] == server.name
    assert headers["x-got-k"] == "v"


def test_tls_verifies_the_logical_name(mesh: Shop, backends: Backends) -> None:
    """TLS checks NAME.NS.svc, not the address; per-call credentials travel; another name's certificate is refused."""
    servers = backends.grpc(2, tls="echo.shop.svc")
    mesh.serve(servers)
    credentials = grpc.ssl_channel_credentials(backends.ca_pem)
    with meshlib.grpc.secure_channel(TARGET, credentials, mesh=mesh.mesh) as channel:
        _, info = channel.unary_unary(UU).with_call(
            b"x", credentials=grpc.access_token_call_credentials("secret"), timeout=10
        )
        assert dict(info.initial_metadata())["x-got-authorization"] == "Bearer secret"
    mesh.serve(backends.grpc(1, tls="other.shop.svc"))
    eventually(lambda: len(mesh.mesh.target(TARGET).status()["endpoints"]) == 1)
    with meshlib.grpc.secure_channel(TARGET, credentials, mesh=mesh.mesh) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(UU)(b"x", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_generated_stubs_work_unchanged(mesh: Shop, backends: Backends) -> None:
    """A stub from grpcio-tools (the health service's), which passes _registered_method, takes the channel as it is."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    mesh.serve(backends.grpc(2))
    stub = health_pb2_grpc.HealthStub(mesh.channel())
    for _ in range(4):
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(watch).status == 1
    watch.cancel()


def test_intercept_channel_sees_every_call(mesh: Shop, backends: Backends) -> None:
    """grpc.intercept_channel works around the channel, and does not build a new method per call."""

    class Tag(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
        seen = 0

        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            self.seen += 1
            return continuation(details, request + b"!")

        def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
            self.seen += 1
            return continuation(details, request)

    mesh.serve(backends.grpc(2))
    base = mesh.channel()
    tag = Tag()
    channel = grpc.intercept_channel(base, tag)
    for _ in range(5):
        assert channel.unary_unary(UU)(b"x", timeout=10).endswith(b"x!")
    assert channel.unary_unary(UU).future(b"x").result(10).endswith(b"x!")
    assert len(list(channel.unary_stream(US)(b"x"))) == 5
    assert tag.seen == 7
    assert len(base._methods) == 2


# -- refused connections ---------------------------------------------------------------------------------------------


def test_refused_connections_move_on(mesh: Shop, backends: Backends) -> None:
    """With two of three endpoints refusing, no call of any kind fails, and the server sees each exactly once."""
    (server,) = backends.grpc(1)
    mesh.serve([server, f"127.0.0.200:{free_port('127.0.0.200')}", f"127.0.0.201:{free_port('127.0.0.201')}"])
    channel = mesh.channel()
    for index in range(10):
        channel.unary_unary(UU)(b"x", timeout=10)
        channel.unary_unary(UU).future(b"x", timeout=10).result(10)
        assert len(list(channel.unary_stream(US)(b"x", timeout=10))) == 5
        assert channel.stream_unary(SU)(iter([b"a", b"b"]), timeout=10).endswith(b":a,b")
        assert channel.stream_unary(SU).future(iter([b"a", b"b"]), timeout=10).result(10).endswith(b":a,b")
        assert len(list(channel.stream_stream(SS)(iter([b"a", b"b"]), timeout=10))) == 2
        assert server.requests == 6 * (index + 1)
    eventually(lambda: mesh.inflight == 0)


def test_a_server_that_answers_unavailable_is_not_asked_twice(mesh: Shop, backends: Backends) -> None:
    """UNAVAILABLE said by a server is the caller's: grpc's own error, one request in all."""
    servers = backends.grpc(3)
    for server in servers:
        server.status = grpc.StatusCode.UNAVAILABLE
    mesh.serve(servers)
    with pytest.raises(grpc.RpcError) as caught:
        mesh.channel().unary_unary(UU)(b"x")
    assert type(caught.value).__name__ == "_InactiveRpcError"
    assert sum(server.requests for server in servers) == 1


def test_a_forwarded_connection_error_is_not_taken_for_ours(mesh: Shop) -> None:
    """A server that forwards its own backend's connection error, in grpc's very words, is not asked again."""
    asked = []

    class Proxy(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            def handler(request: bytes, context: Any) -> bytes:
                asked.append(request)
                words = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.9.8.7:80: Failed to connect"
                context.abort(grpc.StatusCode.UNAVAILABLE, words)

            return grpc.unary_unary_rpc_method_handler(handler)

    server = grpc.server(ThreadPoolExecutor(2), handlers=(Proxy(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        mesh.serve([f"127.0.0.1:{port}", f"127.0.0.1:{port}"])
        with pytest.raises(grpc.RpcError, match=r"10\.9\.8\.7"):
            mesh.channel().unary_unary(UU)(b"x")
        assert asked == [b"x"]
    finally:
        server.stop(None).wait(10)


def test_all_refused_shows_grpcs_own_error(mesh: Shop) -> None:
    """When every endpoint refuses and there is no Service address, the last connection's own error is raised."""
    mesh.serve([f"127.0.0.20{n}:{free_port(f'127.0.0.20{n}')}" for n in range(3)])
    channel = mesh.channel()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(UU)(b"x", timeout=10)
    assert type(caught.value).__name__ == "_InactiveRpcError"
    assert "failed to connect" in str(caught.value.details())
    stream = channel.unary_stream(US)(b"x", timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    future = channel.unary_unary(UU).future(b"x", timeout=10)
    assert future.exception(10).code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: mesh.inflight == 0)


def test_all_pods_refused_goes_to_the_service_address(mesh: Shop, backends: Backends) -> None:
    """Decision D3: pods that refuse (mTLS-only) are left for the Service address, and the calls stay there."""
    (server,) = backends.grpc(1)
    dead = free_port("127.0.0.210")
    mesh.resolver.endpoints(SERVICE, [f"127.0.0.210:{dead}"], cluster_ips=(server.host,), port=server.port)
    with meshlib.grpc.insecure_channel(f"k8s:///echo.shop:{server.port}", mesh=mesh.mesh) as channel:
        for _ in range(5):
            channel.unary_unary(UU)(b"x", timeout=10)
        assert server.requests == 5
        handle = mesh.mesh.target(f"k8s:///echo.shop:{server.port}")
        eventually(lambda: handle.status()["way"] == "service-address")


def test_many_refusing_endpoints_do_not_recurse(mesh: Shop, backends: Backends) -> None:
    """Moving on past hundreds of endpoints that fail at once is a loop: the call still arrives, once."""
    (server,) = backends.grpc(1)
    dead = free_port("127.0.1.1")
    mesh.serve([f"127.0.{1 + n // 200}.{1 + n % 200}:{dead}" for n in range(400)] + [server.address])
    channel = mesh.channel()
    for _ in range(3):
        assert len(list(channel.unary_stream(US)(b"x", timeout=60))) == 5
    assert server.requests == 3


# -- waiting for endpoints ------------------------------------------------------------------------------------------


def test_wait_for_ready_waits_for_endpoints(mesh: Shop, backends: Backends) -> None:
    """A wait_for_ready call made while the set is known to be empty succeeds when an endpoint appears."""
    mesh.serve([])
    channel = mesh.channel()
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(UU)(b"x")  # the empty set is known now
    with ThreadPoolExecutor(4) as threads:
        blocking = threads.submit(channel.unary_unary(UU), b"x", timeout=30, wait_for_ready=True)
        future = channel.unary_unary(UU).future(b"x", timeout=30, wait_for_ready=True)
        stream = channel.unary_stream(US)(b"x", timeout=30, wait_for_ready=True)
        assert not future.done()
        assert stream.is_active()
        mesh.serve(backends.grpc(1))
        assert blocking.result(20)
        assert future.result(20)
        assert len(list(stream)) == 5


def test_wait_for_ready_survives_a_dead_endpoint(mesh: Shop, backends: Backends) -> None:
    """wait_for_ready waits over all endpoints: one that refuses does not swallow the deadline when it comes back."""
    (server,) = backends.grpc(1)
    server.stop()
    mesh.serve([server])
    channel = mesh.channel()
    future = channel.unary_unary(UU).future(b"x", timeout=30, wait_for_ready=True)
    time.sleep(0.05)
    assert not future.done()
    server.start()
    assert future.result(20)


def test_deadline_while_waiting(mesh: Shop) -> None:
    """With nothing to pick the deadline ends the call with DEADLINE_EXCEEDED and the reason as cause."""
    mesh.serve([])
    channel = mesh.channel()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(UU)(b"x", timeout=0.2, wait_for_ready=True)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert isinstance(caught.value.__cause__, NoEndpoints)
    stream = channel.unary_stream(US)(b"x", timeout=0.2, wait_for_ready=True)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("kind", ["blocking", "future", "stream"])
def test_known_empty_is_unavailable_at_once(mesh: Shop, kind: str) -> None:
    """No endpoints: UNAVAILABLE that is RpcError, Call and Future, with the meshlib error in details and cause."""
    mesh.serve([])
    channel = mesh.channel()
    calls = {
        "blocking": lambda: channel.unary_unary(UU)(b"x"),
        "future": lambda: channel.unary_unary(UU).future(b"x").result(10),
        "stream": lambda: next(channel.unary_stream(US)(b"x")),
    }
    with pytest.raises(grpc.RpcError) as caught:
        calls[kind]()
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert isinstance(error, grpc.Future)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "NoEndpoints" in error.details()
    assert isinstance(error.__cause__, NoEndpoints)
    assert error.initial_metadata() == error.trailing_metadata() == ()


def test_service_that_does_not_exist(mesh: Shop) -> None:
    """A Service that the control plane denies is UNAVAILABLE and says so."""
    mesh.resolver.publish(SERVICE, DoesNotExist("no such Service"))
    with pytest.raises(grpc.RpcError, match="ServiceNotFound"):
        mesh.channel().unary_unary(UU)(b"x")


def test_bad_targets_are_refused_when_the_channel_is_made(mesh: Shop) -> None:
    """A target that cannot be parsed is an error of insecure_channel itself, pointing at the part."""
    with pytest.raises(TargetError):
        meshlib.grpc.insecure_channel("k8s:///echo.shop:notaport!", mesh=mesh.mesh)


# -- leaving, cancelling, closing ------------------------------------------------------------------------------------


def test_removed_endpoint_finishes_its_stream_and_gets_nothing_new(mesh: Shop, backends: Backends) -> None:
    """A stream on an endpoint that leaves runs to its end, then its channel is closed; new calls go elsewhere."""
    old, new = backends.grpc(2)
    old.delay = 0.05
    mesh.serve([old])
    channel = mesh.channel()
    stream = channel.unary_stream(US)(b"x", timeout=30)
    assert next(stream).startswith(old.name.encode())
    (transport,) = channel._pool.transports()
    mesh.serve([new])
    eventually(lambda: not channel._pool.transports())
    assert transport.calls == 1
    for _ in range(5):
        assert channel.unary_unary(UU)(b"x", timeout=10).startswith(new.name.encode())
    assert len(list(stream)) == 4
    eventually(lambda: transport.calls == 0)
    assert old.requests == 1


def test_endpoint_killed_mid_stream(mesh: Shop, backends: Backends) -> None:
    """A server that dies in the middle of a stream ends it with grpc's own error, and it is not started again."""
    one, two = backends.grpc(2)
    for server in (one, two):
        server.delay = 0.2
    mesh.serve([one, two])
    stream = mesh.channel().unary_stream(US)(b"x", timeout=30)
    victim = one if next(stream).startswith(one.name.encode()) else two
    victim.stop()
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert one.requests + two.requests == 1
    eventually(lambda: mesh.inflight == 0)


def test_abandoned_and_cancelled_calls_leave_no_count(mesh: Shop, backends: Backends) -> None:
    """Streams dropped half-way, cancelled futures and deadlines all give their in-flight count back."""
    (server,) = backends.grpc(1)
    server.delay = 0.2
    mesh.serve([server])
    channel = mesh.channel()
    stream = channel.unary_stream(US)(b"x")
    next(stream)
    assert mesh.inflight == 1
    del stream
    gc.collect()
    eventually(lambda: mesh.inflight == 0)
    eventually(lambda: server.in_flight == 0)
    future = channel.unary_unary(UU).future(b"x")
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(grpc.FutureCancelledError):
        future.result(10)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(UU)(b"x", timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: mesh.inflight == 0)


def test_done_callbacks_come_although_the_future_is_dropped(mesh: Shop, backends: Backends) -> None:
    """A fire-and-forget future with a callback is kept until its end."""
    (server,) = backends.grpc(1)
    server.delay = 0.05
    mesh.serve([server])
    got: list[bytes] = []
    mesh.channel().unary_unary(UU).future(b"x").add_done_callback(lambda f: got.append(f.result()))
    gc.collect()
    eventually(lambda: got)


def test_a_callback_that_raises_harms_nobody(
    mesh: Shop, backends: Backends, caplog: pytest.LogCaptureFixture
) -> None:
    """The other callbacks run, the call is accounted for, and the error is logged."""
    mesh.serve(backends.grpc(1))
    future = mesh.channel().unary_unary(UU).future(b"x")
    got: list[object] = []
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(got.append)
    assert future.result(10)
    eventually(lambda: got == [future])
    eventually(lambda: mesh.inflight == 0)
    assert "ZeroDivisionError" in caplog.text


def test_cancel_before_an_endpoint_is_known(mesh: Shop) -> None:
    """A call that still waits for an endpoint can be cancelled, and its waiter ends."""
    mesh.serve([])
    future = mesh.channel().unary_unary(UU).future(b"x", wait_for_ready=True)
    assert future.cancel()
    assert not future.cancel()
    assert future.done()
    with pytest.raises(grpc.FutureCancelledError):
        future.result(10)
    eventually(lambda: not any(t.name == "meshlib-grpc-pick" for t in threading.enumerate()))


def test_close_ends_everything(mesh: Shop, backends: Backends) -> None:
    """close() cancels what is in flight and what waits, like a bare channel; later calls raise ValueError."""
    (server,) = backends.grpc(1)
    server.delay = 5
    mesh.serve([server])
    channel = mesh.channel()
    running = channel.unary_unary(UU).future(b"x")
    eventually(lambda: server.in_flight == 1)
    channel.close()
    assert running.exception(10).code() is grpc.StatusCode.CANCELLED
    for call in (channel.unary_unary(UU), channel.unary_unary(UU).future, channel.unary_stream(US)):
        with pytest.raises(ValueError, match="closed"):
            call(b"x")
    assert mesh.inflight == 0


def test_close_ends_calls_on_endpoints_that_left(mesh: Shop, backends: Backends) -> None:
    """A stream that may finish although its endpoint is gone does not outlive its channel."""
    old, new = backends.grpc(2)
    old.delay = 60
    mesh.serve([old])
    channel = mesh.channel()
    stream = channel.unary_stream(US)(b"x", timeout=60)
    eventually(lambda: old.in_flight == 1)
    mesh.serve([new])
    eventually(lambda: not channel._pool.transports())
    channel.close()
    assert stream.code() is grpc.StatusCode.CANCELLED
    eventually(lambda: mesh.inflight == 0)


def test_calls_after_close_say_so_whatever_the_set_is(mesh: Shop) -> None:
    """No endpoint known, or known that there is none: a closed channel is still what the caller hears of."""
    for known in (False, True):
        if known:
            mesh.serve([])
            mesh.known()
        channel = mesh.channel()
        channel.close()
        for call in (channel.unary_unary(UU), channel.unary_unary(UU).future, channel.unary_stream(US)):
            with pytest.raises(ValueError, match="closed"):
                call(b"x", wait_for_ready=True)


def test_exceptions_of_the_request_iterator_end_the_call(mesh: Shop, backends: Backends) -> None:
    """A request iterator that raises ends the call as it does in grpc, and frees the count."""
    mesh.serve(backends.grpc(1))

    def broken() -> Iterator[bytes]:
        yield b"a"
        raise RuntimeError("no more")

    with pytest.raises(grpc.RpcError) as caught:
        mesh.channel().stream_unary(SU)(broken(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    eventually(lambda: mesh.inflight == 0)


# -- connectivity and threads ----------------------------------------------------------------------------------------


def test_channel_ready_future(mesh: Shop, backends: Backends) -> None:
    """grpc.channel_ready_future resolves only once an endpoint is connected, and leaves no thread behind."""
    mesh.serve([])
    channel = mesh.channel()
    ready = grpc.channel_ready_future(channel)
    with pytest.raises(grpc.FutureTimeoutError):
        ready.result(0.1)
    mesh.serve(backends.grpc(2))
    ready.result(10)
    eventually(lambda: not any(t.name == "meshlib-grpc-connectivity" for t in threading.enumerate()))


def test_subscribe_reports_states_in_order(mesh: Shop, backends: Backends) -> None:
    """A subscriber hears the state at once, READY after connecting, and that the connection is gone."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    channel = mesh.channel()
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append, try_to_connect=False)
    eventually(lambda: states)
    assert states == [grpc.ChannelConnectivity.IDLE]
    channel.unary_unary(UU)(b"x", timeout=10)
    eventually(lambda: states[-1] is grpc.ChannelConnectivity.READY)
    server.stop()
    eventually(lambda: states[-1] is not grpc.ChannelConnectivity.READY)
    channel.unsubscribe(states.append)


def test_no_thread_per_endpoint(mesh: Shop, backends: Backends) -> None:
    """Two hundred endpoints in use and a subscription cost no thread each."""
    (server,) = backends.grpc(1)
    host = grpc.server(ThreadPoolExecutor(1), handlers=())
    port = host.add_insecure_port("0.0.0.0:0")
    host.start()
    try:
        mesh.serve([server.address])
        channel = mesh.channel()
        channel.unary_unary(UU)(b"x", timeout=10)
        before = threading.active_count()
        mesh.serve([f"127.0.3.{n}:{port}" for n in range(1, 201)])
        eventually(lambda: len(mesh.mesh.target(TARGET).status()["endpoints"]) == 200)
        states: list[Any] = []
        channel.subscribe(states.append)
        for _ in range(2000):
            with pytest.raises(grpc.RpcError):  # UNIMPLEMENTED: the server has no methods
                channel.unary_unary(UU)(b"x", timeout=10)
        assert len(channel._pool.transports()) >= 150
        assert threading.active_count() <= before + 3
        channel.unsubscribe(states.append)
    finally:
        host.stop(None).wait(10)


def test_threads_share_a_channel(mesh: Shop, backends: Backends) -> None:
    """Eight threads on one channel: every call answered, every count exact."""
    servers = backends.grpc(3)
    mesh.serve(servers)
    call = mesh.channel().unary_unary(UU)
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(lambda n: call(b"%d" % n, timeout=30), range(400)))) == 400
    assert sum(server.requests for server in servers) == 400
    assert mesh.inflight == 0


def test_churn_under_load_loses_nothing(mesh: Shop, backends: Backends) -> None:
    """Endpoints leave and return while threads call: no call fails, each is served once, no channel stays open."""
    servers = backends.grpc(3)
    mesh.serve(servers)
    channel = mesh.channel()
    call = channel.unary_unary(UU)
    stop = threading.Event()

    def work() -> int:
        done = 0
        while not stop.is_set():
            call(b"x", timeout=30)
            done += 1
        return done

    with ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(work) for _ in range(4)]
        for round_ in range(30):
            mesh.serve([servers[round_ % 3], servers[(round_ + 1) % 3]])
            time.sleep(0.02)
        stop.set()
        total = sum(worker.result(30) for worker in workers)
    assert sum(server.requests for server in servers) == total
    assert len(channel._pool.transports()) <= 3
    assert mesh.inflight == 0


def test_rolling_restart_loses_no_call(mesh: Shop, backends: Backends) -> None:
    """Servers stop gracefully and start again, one by one, under calls of every kind: nobody sees a lost connection.

    A server that goes away may itself answer CANCELLED to a call that reaches it at that moment, as to a bare channel.
    """
    servers = backends.grpc(3)
    mesh.serve(servers)
    mesh.known()
    channel = mesh.channel()
    stop = threading.Event()
    seen: Counter[grpc.StatusCode] = Counter()
    kinds = (
        lambda: channel.unary_unary(UU)(b"x", timeout=30),
        lambda: channel.unary_unary(UU).future(b"x", timeout=30).result(),
        lambda: list(channel.unary_stream(US)(b"x", timeout=30)),
        lambda: channel.stream_unary(SU)(iter([b"a", b"b"]), timeout=30),
    )

    def work(call: Any) -> Counter[grpc.StatusCode]:
        codes: Counter[grpc.StatusCode] = Counter()
        while not stop.is_set():
            try:
                call()
                codes[grpc.StatusCode.OK] += 1
            except grpc.RpcError as error:
                codes[ending(error)] += 1
        return codes

    with ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(work, kind) for kind in kinds]
        for server in (*servers, *servers):
            server.stop(30)
            time.sleep(0.05)
            server.start()
            served = server.requests
            eventually(lambda: server.requests > served)  # noqa: B023
        stop.set()
        for worker in workers:
            seen += worker.result(30)
    assert set(seen) <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert seen[grpc.StatusCode.OK] <= sum(server.requests for server in servers) <= seen.total()
    eventually(lambda: mesh.inflight == 0)


# -- fork ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(
    tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 80),
    reason="an older grpcio dies of it (docs/clients-grpc.md)",
)
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_both_sides_of_a_fork_go_on(mesh: Shop, tmp_path: Any) -> None:
    """Calls of every kind: after a fork the children make them over channels of their own, and the parent's go on
    working, a stream included that was open at the fork."""
    # A program of its own: forking the test process would take the servers' threads with it.
    program = tmp_path / "forks.py"
    program.write_text(_FORKING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["parent", "20", "after", "children", "20", "20"]


_FORKING = """
import os, queue, warnings
warnings.simplefilter("ignore")
import meshlib.grpc
from meshlib.runtime.mesh import Mesh
from tests.components.grpc_fast import METHODS, serving

with serving(3) as addresses:
    mesh = Mesh()
    channel = meshlib.grpc.insecure_channel("static:///" + ",".join(addresses), mesh=mesh)
    unary, responses, requests, both = (
        getattr(channel, kind)(METHODS[kind])
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    )

    def work(name):
        good = 0
        for number in range(20):
            message = b"%s%d" % (name, number)
            good += (
                unary(message, timeout=20) == message
                and unary.future(message, timeout=20).result() == message
                and list(responses(b"5", timeout=20)) == [b"x"] * 5
                and requests(iter([message] * 2), timeout=20) == b"2"
                and list(both(iter([message]), timeout=20)) == [message]
            )
        return good

    assert work(b"before") == 20
    # Open at the fork, but quiet: of what arrives at that very moment grpcio may lose some, on bare channels too.
    messages = queue.SimpleQueue()
    open_at_the_fork = both(iter(messages.get, None), timeout=60)
    messages.put(b"before")
    assert next(open_at_the_fork) == b"before"
    children = []
    for number in range(2):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                unary(b"up", timeout=20)
                os.write(writer, b"up")
                os.write(writer, b"%d" % work(b"child%d" % number))
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        assert os.read(reader, 2) == b"up"
        children.append((child, reader))
    good = work(b"parent")
    messages.put(b"after")
    messages.put(None)
    print("parent", good, *(each.decode() for each in open_at_the_fork), "children")
    for child, reader in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        print(os.read(reader, 10).decode())
    channel.close()
    mesh.close()
"""


# -- hash keys, and coming to an end ---------------------------------------------------------------------------------


def test_hash_key_from_metadata(backends: Backends) -> None:
    """With a hash policy and `metadata:user`, equal keys go to one endpoint and different keys spread."""
    servers = backends.grpc(3)
    with shop(picker="ring_hash", hash_key="metadata:user") as mesh:
        mesh.serve(servers)
        mesh.known()
        call = mesh.channel().unary_unary(UU)
        homes: dict[str, set[bytes]] = {}
        for user in (f"user{n}" for n in range(30)):
            homes[user] = {call(b"x", metadata=(("user", user),)) for _ in range(3)}
        assert all(len(home) == 1 for home in homes.values())
        assert len(set().union(*homes.values())) == 3


def test_hash_key_from_a_function(backends: Backends) -> None:
    """hash_key= given in code wins: a function of the metadata."""
    servers = backends.grpc(3)
    with shop(picker="ring_hash", hash_key="metadata:user") as mesh:
        mesh.serve(servers)
        mesh.known()
        call = mesh.channel(hash_key=lambda metadata: "always").unary_unary(UU)
        assert len({call(b"x", metadata=(("user", f"u{n}"),)) for n in range(20)}) == 1


def test_a_dropped_channel_lets_go_of_its_connections(mesh: Shop, backends: Backends) -> None:
    """Without close(), the connections of a channel that nobody holds are gone after a garbage collection."""
    (server,) = backends.grpc(1)
    mesh.serve([server])

    def connections() -> int:
        tables = [Path(f"/proc/self/net/{name}").read_text() for name in ("tcp", "tcp6")]
        return sum(_established(line, server.port) for table in tables for line in table.splitlines())

    channel = meshlib.grpc.insecure_channel(TARGET, mesh=mesh.mesh)
    channel.unary_unary(UU)(b"x", timeout=10)
    assert connections()
    del channel
    gc.collect()
    eventually(lambda: not connections())
    channel = meshlib.grpc.insecure_channel(TARGET, mesh=mesh.mesh)
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append, try_to_connect=True)
    eventually(lambda: grpc.ChannelConnectivity.READY in states)
    del channel

    def gone() -> bool:  # the helper thread of the subscription ends first
        gc.collect()
        return not connections()

    eventually(gone)


def _established(line: str, port: int) -> bool:
    fields = line.split()
    return len(fields) > 3 and fields[2].endswith(f":{port:04X}") and fields[3] == "01"


def test_exit_does_not_wait_for_calls(tmp_path: Any) -> None:
    """A program that ends with calls pending of every kind ends at once, with its own exit code and no traceback."""
    program = tmp_path / "exits.py"
    program.write_text(_EXITING)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (7, False), done.stderr[-2000:]
    assert float(done.stdout) > 0


_EXITING = """
import sys, threading, time
import grpc
import meshlib.grpc
from meshlib.runtime.mesh import Mesh
from meshlib.testing.manual import ManualResolver
channel = meshlib.grpc.insecure_channel("k8s:///echo.shop:80", mesh=Mesh(resolvers={"k8s": ManualResolver()}))
call = channel.unary_unary("/a/b")
calls = [call.future(b"x", wait_for_ready=True), channel.unary_stream("/a/c")(b"x", wait_for_ready=True)]
grpc.channel_ready_future(channel)
threading.Thread(target=lambda: call(b"x", wait_for_ready=True), daemon=True).start()
time.sleep(0.2)
print(time.time())
sys.exit(7)
"""
