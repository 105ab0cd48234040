"""install() and grpc: which channels are ours, names imported earlier, static stubs, and taking it back."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import grpc._channel
import grpc.aio._channel
import grpc.experimental
import pytest
from grpc import insecure_channel as imported_before
from grpc_health.v1 import health_pb2, health_pb2_grpc

import meshlib
import meshlib.grpc.aio
from meshlib.clients.grpc import routing
from meshlib.clients.grpc.aio_channel import AioMeshChannel
from meshlib.clients.grpc.channel import MeshChannel
from meshlib.clients.grpc.switch import AioSwitchChannel, SwitchChannel
from meshlib.errors import TargetError
from meshlib.model.update import DoesNotExist
from tests.components.backends import Backends, GrpcBackend
from tests.integration.grpc_support import SS, SU, US, UU, eventually
from tests.integration.install_support import Installed, installed, mesh_for_tests

TARGET = "k8s:///orders.shop:80"
HOST = "orders.shop.svc:80"
#: What generated code passes since grpcio 1.63.
KNOWS_REGISTERED = "_registered_method" in inspect.signature(grpc.experimental.unary_unary).parameters


@pytest.fixture
def mesh() -> Iterator[Installed]:
    with installed(aliases={"orders.internal": TARGET}) as made:
        yield made


def served(call: Any, servers: list[GrpcBackend], times: int = 6) -> None:
    """Unary calls reach every server."""
    names = {call(b"x", timeout=10).decode().split(":")[0] for _ in range(times)}
    assert names == {server.name for server in servers}


@pytest.mark.parametrize("target", [TARGET, HOST, "orders.shop.svc.cluster.local:80", "orders.internal:1234"])
def test_channels_of_mesh_targets_are_balanced(mesh: Installed, backends: Backends, target: str) -> None:
    """By scheme, by cluster host name, by alias."""
    servers = backends.grpc(2)
    mesh.serve(servers)
    with grpc.insecure_channel(target) as channel:
        served(channel.unary_unary(UU), servers)


def test_secure_channel_verifies_the_name_that_was_typed(mesh: Installed, backends: Backends) -> None:
    """grpc.secure_channel too; :authority stays what a bare channel sends."""
    servers = backends.grpc(2, tls="orders.shop.svc")
    mesh.serve(servers)
    credentials = grpc.ssl_channel_credentials(backends.ca_pem)
    for target in (TARGET, HOST):
        with grpc.secure_channel(target, credentials) as channel:
            served(channel.unary_unary(UU), servers)


def test_functions_imported_before_install(mesh: Installed, backends: Backends) -> None:
    """`from grpc import insecure_channel` at the top of a module that was loaded first."""
    servers = backends.grpc(2)
    mesh.serve(servers)
    with imported_before(TARGET) as channel:
        served(channel.unary_unary(UU), servers)


def test_every_arity_through_a_host_channel(mesh: Installed, backends: Backends) -> None:
    """A channel by host name hands every kind of call on, and with_call and future."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    name = server.name.encode()
    with grpc.insecure_channel(HOST) as channel:
        assert isinstance(channel, SwitchChannel)
        assert isinstance(channel.unary_unary(UU), grpc.UnaryUnaryMultiCallable)
        assert list(channel.unary_stream(US)(b"x")) == [name + b":x:%d" % i for i in range(5)]
        assert channel.stream_unary(SU)(iter([b"a", b"b"])) == name + b":a,b"
        assert channel.stream_unary(SU).with_call(iter([b"a"]))[1].code() is grpc.StatusCode.OK
        assert channel.unary_unary(UU).future(b"x").result(10) == name + b":x"
        assert list(channel.stream_stream(SS)(iter([b"a"]))) == [name + b":a"]
        grpc.channel_ready_future(channel).result(10)
    with pytest.raises(ValueError, match="closed channel"):
        channel.unary_unary(UU)(b"x")


def test_generated_stubs_and_interceptors(mesh: Installed, backends: Backends) -> None:
    """Stubs of grpcio-tools, old (without _registered_method) and new, over grpc.intercept_channel."""
    servers = backends.grpc(2)
    mesh.serve(servers)
    seen: list[str] = []

    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            seen.append(details.method)
            return continuation(details, request)

    for target in (TARGET, HOST):
        with grpc.insecure_channel(target) as bare:
            channel = grpc.intercept_channel(bare, Interceptor())
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            old = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            assert old(health_pb2.HealthCheckRequest(), timeout=10).status == reply.status
    assert seen == ["/grpc.health.v1.Health/Check"] * 4


@pytest.fixture
def own_cache() -> Iterator[None]:
    """The channels that static stubs keep for ten minutes go with the test."""
    import grpc._simple_stubs as stubs

    yield
    cache = stubs.ChannelCache.get()
    with cache._lock:
        for key in list(cache._mapping):
            cache._evict_locked(key)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("target", [TARGET, HOST])
@pytest.mark.parametrize("registered", [False, True] if KNOWS_REGISTERED else [False])
@pytest.mark.filterwarnings("ignore::grpc.experimental.ExperimentalApiWarning")
def test_static_stubs(mesh: Installed, backends: Backends, target: str, registered: bool) -> None:
    """grpc.experimental's stubs without a channel make theirs with the same function."""
    servers = backends.grpc(2)
    mesh.serve(servers)
    more = {"_registered_method": True} if registered else {}

    def call(request: bytes, timeout: float) -> bytes:
        options = ((f"test.{registered}", "1"),)  # a channel of its own in grpc's cache
        reply: bytes = grpc.experimental.unary_unary(
            request,
            target,
            UU,
            options=options,
            insecure=True,
            timeout=timeout,
            **more,
        )
        return reply

    served(call, servers)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.filterwarnings("ignore::grpc.experimental.ExperimentalApiWarning")
def test_static_stub_classes(mesh: Installed, backends: Backends) -> None:
    """The generated class-level methods."""
    servers = backends.grpc(2)
    mesh.serve(servers)
    for _ in range(4):
        reply = health_pb2_grpc.Health.Check(
            health_pb2.HealthCheckRequest(), TARGET, insecure=True, timeout=10
        )
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "ipv4:127.0.0.1:1", "unix:///tmp/none", "example.org.:443", "dns:x:1", "[::1]:1"],
)
def test_everything_else_is_grpcs_own(mesh: Installed, target: str) -> None:
    """The very class, not something that looks like it."""
    original = grpc._channel.Channel.original
    with grpc.insecure_channel(target) as channel:
        assert type(channel) is original


def test_dns_channels_with_their_own_balancing(mesh: Installed) -> None:
    """Decision D10."""
    with grpc.insecure_channel("dns:///127.0.0.1:1") as plain:
        assert isinstance(plain, SwitchChannel)  # the roll-out chooses for each call
    with grpc.insecure_channel("dns:///127.0.0.1:1", options=[("grpc.lb_policy_name", "round_robin")]) as own:
        assert type(own).__module__ == "grpc._channel"


def test_a_wrong_target_of_ours_says_so(mesh: Installed) -> None:
    """grpc would fail later and elsewhere, with "DNS resolution failed"."""
    with pytest.raises(TargetError):
        grpc.insecure_channel("k8s:///Orders:80")


def test_a_host_that_is_no_service_takes_the_bare_way(mesh: Installed, backends: Backends) -> None:
    """Decision D2: neither an unknown port nor an unknown Service is an error; the name goes to grpc, and back."""
    (server,) = backends.grpc(1)
    mesh.resolver.publish("shop/orders", DoesNotExist("no such Service"))
    mesh.known()
    with grpc.insecure_channel(HOST) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(UU)(b"x", timeout=10)
        assert caught.value.__cause__ is None  # grpc's own failure to resolve the name, not one of ours
        mesh.serve([server])
        handle = mesh.mesh.target(HOST)
        eventually(lambda: handle.state.picker is not None)
        assert channel.unary_unary(UU)(b"x", timeout=10) == server.name.encode() + b":x"


NOT_OURS = {
    "unary": lambda c: c.unary_unary(UU)(b"x", timeout=20),
    "with_call": lambda c: c.unary_unary(UU).with_call(b"x", timeout=20),
    "future": lambda c: c.unary_unary(UU).future(b"x", timeout=20).result(),
    "stream": lambda c: list(c.unary_stream(US)(b"x", timeout=20)),
    "requests": lambda c: c.stream_unary(SU)(iter([b"a", b"b"]), timeout=20),
    "chat": lambda c: list(c.stream_stream(SS)(iter([b"a", b"b"]), timeout=20)),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_host_that_turns_out_not_to_be_ours(mesh: Installed, backends: Backends, name: str) -> None:
    """The very first call waits for the knowledge, and then goes where grpc itself would have gone, like later ones."""
    (server,) = backends.grpc(1)
    # localhost is never ours, so grpc can resolve it; the mesh is asked about another name, which does not exist.
    handle = mesh.mesh.target("k8s:///nobody.shop:80")
    with MeshChannel(handle, pytest.fail, bare=lambda: imported_before(server.address)) as channel:
        call = threading.Thread(target=lambda: answers.append(NOT_OURS[name](channel)), daemon=True)
        answers: list[Any] = []
        call.start()
        eventually(lambda: handle.live is not None)
        mesh.resolver.publish("shop/nobody", DoesNotExist("no such Service"))
        call.join(20)
        answers.append(NOT_OURS[name](channel))
    assert len(answers) == 2
    assert server.requests == 2


@pytest.mark.parametrize("streams", [False, True])
def test_an_asyncio_host_that_turns_out_not_to_be_ours(
    mesh: Installed, backends: Backends, streams: bool
) -> None:
    """The same for grpc.aio."""
    (server,) = backends.grpc(1)

    async def calls() -> None:
        handle = mesh.mesh.target("k8s:///nobody.shop:80")
        bare = grpc.aio.insecure_channel
        async with AioMeshChannel(handle, pytest.fail, bare=lambda: bare(server.address)) as channel:
            for known in (False, True):
                call = channel.stream_stream(SS)(iter([b"a"])) if streams else channel.unary_unary(UU)(b"x")
                if not known:
                    await asyncio.sleep(0.01)
                    mesh.resolver.publish("shop/nobody", DoesNotExist("no such Service"))
                assert [m async for m in call] if streams else await call
                assert await call.code() is grpc.StatusCode.OK

    asyncio.run(calls())
    assert server.requests == 2


def test_a_port_that_the_service_does_not_list(mesh: Installed, backends: Backends) -> None:
    """Decision D2: the name goes to grpc, which cannot resolve it here; also for the call that had to find out."""
    mesh.serve(backends.grpc(1))
    with grpc.insecure_channel("orders.shop.svc:81") as channel:
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(UU)(b"x", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            assert caught.value.__cause__ is None  # grpc's own failure to resolve the name, not one of ours


def test_channels_made_before_stay_bare(backends: Backends) -> None:
    """They know their address already."""
    (server,) = backends.grpc(1)
    with grpc.insecure_channel(server.address) as before, installed() as mesh:
        mesh.serve(backends.grpc(1))
        assert type(before).__module__ == "grpc._channel"
        assert before.unary_unary(UU)(b"x", timeout=10).startswith(server.name.encode())


def test_uninstall_restores_exactly(backends: Backends) -> None:
    """Names are the objects they were; channels that were made keep working."""
    (server,) = backends.grpc(1)
    homes: list[Any] = [grpc, grpc.aio, grpc._channel, grpc.aio._channel]
    before = [dict(vars(home)) for home in homes]
    with installed() as mesh:
        assert [dict(vars(home)) for home in homes[:2]] == before[:2]  # only private names are ever replaced
        mesh.serve([server])
        channel = grpc.insecure_channel(TARGET)
        bare = grpc.insecure_channel("127.0.0.1:1")
        assert isinstance(bare, grpc._channel.Channel)
        meshlib.uninstall()
        assert [dict(vars(home)) for home in homes] == before
        assert channel.unary_unary(UU)(b"x", timeout=10) == server.name.encode() + b":x"
        with grpc.insecure_channel(TARGET) as later:
            assert type(later) is grpc._channel.Channel
        channel.close()
        bare.close()


def test_subclasses_of_the_private_class_are_left_alone(mesh: Installed) -> None:
    """Somebody's own Channel is what they made of it."""

    class Own(grpc._channel.Channel):  # type: ignore[misc]
        pass

    made = Own(TARGET, (), None, None)
    assert type(made) is Own
    made.close()


def test_only_httpx() -> None:
    """The two are separate switches."""
    before = dict(vars(grpc._channel))
    with installed(grpc=False):
        assert dict(vars(grpc._channel)) == before


def test_aio_channels(mesh: Installed, backends: Backends) -> None:
    """grpc.aio.insecure_channel and secure_channel, by scheme and by host name."""
    servers = backends.grpc(2)
    mesh.serve(servers)

    async def main() -> None:
        for target, kind in ((TARGET, AioMeshChannel), (HOST, AioSwitchChannel)):
            async with grpc.aio.insecure_channel(target) as channel:
                assert isinstance(channel, kind)
                await asyncio.wait_for(channel.channel_ready(), 10)
                call = channel.unary_unary(UU)
                names = {(await call(b"x", timeout=10)).decode().split(":")[0] for _ in range(6)}
                assert names == {server.name for server in servers}
                assert len([m async for m in channel.unary_stream(US)(b"x", timeout=10)]) == 5
                assert (await channel.stream_unary(SU)(iter([b"a", b"b"]), timeout=10)).endswith(b":a,b")
                assert [m async for m in channel.stream_stream(SS)(iter([b"a"]), timeout=10)]
                assert channel.get_state() is grpc.ChannelConnectivity.READY
            assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        async with grpc.aio.insecure_channel("127.0.0.1:1") as bare:
            assert type(bare).__module__ == "grpc.aio._channel"

    asyncio.run(main())


def test_another_grpcio_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Decision D18: one warning, nothing replaced, channels work."""

    class Other:
        def __init__(self, target: str, *, everything: Any = None) -> None: ...

    monkeypatch.setattr(grpc._channel, "Channel", Other)
    routing.differences.cache_clear()
    request.addfinalizer(routing.differences.cache_clear)
    with pytest.warns(RuntimeWarning, match="grpc is left as it is") as caught, installed():
        assert grpc._channel.Channel is Other
    assert len(caught) == 1


def test_explicit_channels_with_another_grpcio(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision D18: they are built from grpc's public functions alone."""
    monkeypatch.setattr(routing, "differences", lambda: "grpcio 9.9 is not a version this meshlib knows")
    servers = backends.grpc(2)
    with mesh_for_tests() as own:
        own.serve(servers)
        with meshlib.grpc.insecure_channel(TARGET, mesh=own.mesh) as channel:
            served(channel.unary_unary(UU), servers)

        async def main() -> None:
            async with meshlib.grpc.aio.insecure_channel(TARGET, mesh=own.mesh) as channel:
                assert await channel.unary_unary(UU)(b"x", timeout=10)

        asyncio.run(main())


def test_explicit_channels_under_install(mesh: Installed, backends: Backends) -> None:
    """Their own Mesh and target, whatever is installed; what is installed stays."""
    servers = backends.grpc(1)
    before = grpc._channel.Channel
    with mesh_for_tests() as own:
        own.serve(servers)
        with meshlib.grpc.insecure_channel(TARGET, mesh=own.mesh) as channel:
            assert type(channel) is MeshChannel
            served(channel.unary_unary(UU), servers)
    assert grpc._channel.Channel is before
