"""The roll-out with real clients and servers: which way each request goes, and that nobody notices being watched."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

import meshlib
import meshlib.grpc
import meshlib.grpc.aio
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.rollout import Counts, TargetRollout
from meshlib.testing.manual import ManualResolver
from tests.components.backends import Backends
from tests.integration.grpc_support import UU, eventually

ROOT = Path(__file__).parents[2]
HOST = "orders.shop.svc"


class Shop:
    """Service orders.shop: one server behind its name (and its own address), two endpoints; installed."""

    def __init__(self, mesh: Mesh, resolver: ManualResolver, bare: Any, pods: list[Any]) -> None:
        self.mesh, self.resolver, self.bare, self.pods = mesh, resolver, bare, pods
        self.say("")

    def say(self, mode: str) -> None:
        """The Service's annotation."""
        annotations = (("meshlib.dev/mode", mode),) if mode else ()
        self.resolver.endpoints(
            "shop/orders",
            [pod.address for pod in self.pods],
            annotations=annotations,
            cluster_ips=(self.bare.host,),
            port=self.bare.port,
        )

    @property
    def target(self) -> str:
        return f"k8s:///orders.shop:{self.bare.port}"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.bare.port}/"

    @property
    def served(self) -> tuple[int, int]:
        """Requests behind the name, and at the endpoints."""
        return self.bare.requests, sum(pod.requests for pod in self.pods)

    def known(self, target: str = "") -> None:
        handle = self.mesh.target(target or self.target)
        handle.try_start()
        eventually(lambda: handle.state.settled)

    def rollout(self, target: str = "") -> TargetRollout:
        return self.mesh.target(target or f"{HOST}:{self.bare.port}").rollout

    def counts(self, target: str = "") -> Counts:
        return self.rollout(target).counts()

    def look(self) -> None:
        """As the control thread does, once the file rests."""
        watch: Any = self.mesh.rollout._file
        now = watch._now
        for later in (3600.0, 7200.0):
            watch._now = lambda later=later: now() + later
            self.mesh.rollout.look()
        watch._now = now


@contextmanager
def opened(bare: Any, pods: list[Any], file: Path, **settings: Any) -> Iterator[Shop]:
    resolver = ManualResolver("k8s")
    config = load_config({"picker": "round_robin", **settings}, {}, file)
    mesh = Mesh(config=config, resolvers={"k8s": resolver})
    meshlib.install(mesh=mesh)
    try:
        yield Shop(mesh, resolver, bare, pods)
    finally:
        meshlib.uninstall()
        mesh.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "meshlib.toml"
    path.write_text("")
    return path


@pytest.fixture
def shop(backends: Backends, file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """shop(**settings): with HTTP servers; their name leads to the bare one."""
    bare, *pods = backends.http(3)
    real = socket.getaddrinfo

    def lookup(host: Any, *rest: Any, **more: Any) -> Any:
        return real(bare.host if host in (HOST, HOST.encode()) else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return lambda **settings: opened(bare, pods, file, **settings)


def get(url: str, times: int) -> None:
    """Half of them by threads' client, half by asyncio's."""
    with httpx.Client(trust_env=False) as client:
        for _ in range(times // 2):
            assert client.get(url).status_code == 200

    async def main() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(times - times // 2):
                assert (await client.get(url)).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    "settings, bare, counted",
    [
        ({"mode": "off"}, 40, "bare_off"),
        ({"mode": "observe"}, 40, "bare_observe"),
        ({"percent": 25}, 30, "bare_percent"),
        ({"percent": 0}, 40, "bare_percent"),
        ({"percent": 100}, 0, "bare_percent"),
        ({"allow_targets": [HOST]}, 0, "bare_off"),
        ({"allow_targets": ["stock.shop.svc"]}, 40, "bare_off"),
    ],
    ids=str,
)
def test_httpx_goes_the_way_that_is_set(
    shop: Callable[..., Any], settings: dict[str, Any], bare: int, counted: str
) -> None:
    """Counted where the requests arrive, and by the roll-out: both agree."""
    with shop(**settings) as made:
        if made.mesh.config.mode != "off" and bare < 40:
            made.known(f"{HOST}:{made.bare.port}")
        before = made.counts().mesh
        get(made.url, 40)
        assert abs(made.served[0] - bare) <= 2
        assert sum(made.served) == 40
        counts = made.counts()
        assert getattr(counts, counted) == made.served[0]
        assert counts.mesh - before == made.served[1]


def test_observe_tells_where_the_bare_way_led(shop: Callable[..., Any]) -> None:
    """The Service's own address here; elsewhere, once the Service has moved."""
    with shop(mode="observe") as made:
        made.known(f"{HOST}:{made.bare.port}")
        get(made.url, 6)
        assert made.counts().observed_reached == {"service": 6}
        assert made.counts().observed_picks == 6
        made.resolver.endpoints("shop/orders", [pod.address for pod in made.pods], cluster_ips=("10.0.0.1",))
        made.resolver.settle()
        get(made.url, 4)
        assert made.counts().observed_reached == {"service": 6, "elsewhere": 4}


def test_observe_never_raises_for_the_mesh(shop: Callable[..., Any]) -> None:
    """No endpoints, no such Service, nothing known: the bare way serves, and each is counted."""
    from meshlib.model.update import DoesNotExist

    with shop(mode="observe") as made:
        made.known(f"{HOST}:{made.bare.port}")
        made.resolver.publish("shop/orders", DoesNotExist("gone"))
        made.resolver.settle()
        get(made.url, 4)
        get(f"http://{HOST}:{made.bare.port}/other", 2)
        assert made.counts().observed_refusals == {"service_not_found": 6}
        assert made.served == (6, 0)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
def test_the_first_request_obeys_an_annotation(shop: Callable[..., Any], asynchronous: bool) -> None:
    """It had to wait for the knowledge that it is to go the bare way, and goes there; nothing was sent before."""
    with shop(sync_timeout=30) as made:
        made.say("off")
        if asynchronous:

            async def main() -> int:
                async with httpx.AsyncClient(trust_env=False) as client:
                    return (await client.post(made.url, content=b"x")).status_code

            assert asyncio.run(main()) == 200
        else:
            with httpx.Client(trust_env=False) as client:
                assert client.post(made.url, content=b"x").status_code == 200
        assert made.served == (1, 0)
        assert (made.counts().mesh, made.counts().bare_off) == (0, 1)


def test_a_kill_switch_under_load(shop: Callable[..., Any], file: Path) -> None:
    """off and on again in the file while threads send: nobody notices; what began on an endpoint ends there."""
    with shop() as made, httpx.Client(trust_env=False) as client:
        made.known(f"{HOST}:{made.bare.port}")
        stop, errors = threading.Event(), []

        def send() -> None:
            while not stop.is_set():
                try:
                    assert client.get(made.url).status_code == 200
                except Exception as error:
                    errors.append(error)

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        with client.stream("GET", f"http://{HOST}:{made.bare.port}/stream/5/0.01") as reply:
            eventually(lambda: made.served[1] > 20)
            file.write_text('mode = "off"')
            made.look()
            assert len(reply.read()) > 0
        mark = made.served[0]
        eventually(lambda: made.served[0] > mark + 20)
        before = made.served[1]
        eventually(lambda: made.served[0] > mark + 40)
        after = made.served[1]
        file.write_text("")
        made.look()
        eventually(lambda: made.served[1] > after + 20)
        stop.set()
        for thread in threads:
            thread.join(10)
        assert errors == []
        assert after == before
        assert made.counts().bare_off == made.served[0]


def test_going_off_closes_what_is_idle(shop: Callable[..., Any], file: Path) -> None:
    """Connections to endpoints are not kept for requests that will not come."""
    with shop() as made, httpx.Client(trust_env=False) as client:
        made.known(f"{HOST}:{made.bare.port}")
        for _ in range(4):
            client.get(made.url)
        assert sum(pod.connections for pod in made.pods) == 2
        file.write_text('mode = "off"')
        made.look()
        eventually(lambda: not any(pod.connections for pod in made.pods))


@pytest.mark.parametrize("mode, percent, aside", [("off", 100, 8), ("observe", 100, 8), ("on", 50, 4)])
def test_explicit_targets_have_the_services_address(
    shop: Callable[..., Any], mode: str, percent: int, aside: int
) -> None:
    """MeshTransport(target=) and pick(): what the roll-out holds back goes to clusterIP:port, on kept connections."""
    with shop(mode=mode, percent=percent) as made:
        transport = meshlib.MeshTransport(made.target, mesh=made.mesh)
        with httpx.Client(transport=transport) as client:
            for _ in range(8):
                assert client.get("http://whatever.example/").status_code == 200
        here = made.served[0]
        assert sum(made.served) == 8
        assert abs(here - aside) <= (1 if percent < 100 else 0)
        assert made.bare.accepted == 1
        picked = []
        for _ in range(8):
            with made.mesh.target(made.target).pick() as endpoint:
                picked.append(endpoint.address)
        assert abs(picked.count(made.bare.host) - aside) <= 1
        counts = made.counts(made.target)
        held_back = counts.bare_off + counts.bare_observe + counts.bare_percent
        assert held_back == here + picked.count(made.bare.host)
        assert counts.observed_picks == (16 if mode == "observe" else 0)


def test_an_explicit_target_without_such_an_address_is_balanced(shop: Callable[..., Any]) -> None:
    """A headless Service, a static list: there is nothing less to do."""
    with shop(mode="off") as made:
        static = "static:///" + ",".join(pod.address for pod in made.pods)
        transport = meshlib.MeshTransport(static, mesh=made.mesh)
        with httpx.Client(transport=transport) as client:
            for _ in range(4):
                assert client.get("http://whatever.example/").status_code == 200
        assert made.served == (0, 4)


def test_a_dead_service_address_is_an_error_like_any(shop: Callable[..., Any]) -> None:
    """Held back and refused: one error of the library, no detour over the pods, and nothing is learned from it."""
    with shop(mode="off") as made:
        made.bare.stop()
        transport = meshlib.MeshTransport(made.target, mesh=made.mesh)
        with httpx.Client(transport=transport) as client, pytest.raises(httpx.ConnectError):
            client.get("http://whatever.example/")
        assert made.served[1] == 0
        assert made.mesh.target(made.target).balancer.way.value == "pods"
        made.bare.start()


class TestGrpc:
    """By host name (an alias of localhost, which grpc itself can resolve) and by target."""

    @pytest.fixture
    def shop(self, backends: Backends, file: Path) -> Callable[..., Any]:
        bare, *pods = backends.grpc(3)
        name = f"localhost:{bare.port}"
        bare.stop()
        bare.host = "127.0.0.1"
        bare.start()
        aliases = {name: f"k8s:///orders.shop:{bare.port}"}
        return lambda **settings: opened(bare, pods, file, aliases=aliases, **settings)

    def call(self, made: Shop, channel: Any, times: int) -> None:
        call = channel.unary_unary(UU)
        for _ in range(times):
            call(b"x", timeout=10)

    async def acall(self, channel: Any, times: int) -> None:
        call = channel.unary_unary(UU)
        for _ in range(times):
            await call(b"x", timeout=10)

    @pytest.mark.parametrize(
        "settings, bare, counted",
        [
            ({"mode": "off"}, 20, "bare_off"),
            ({"mode": "observe"}, 20, "bare_observe"),
            ({"percent": 50}, 10, "bare_percent"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("form", ["host", "target"])
    def test_calls_go_the_way_that_is_set(
        self, shop: Callable[..., Any], settings: dict[str, Any], bare: int, counted: str, form: str
    ) -> None:
        """Per call, sync and asyncio, under install; a k8s:/// target has the Service's address instead."""
        with shop(**settings) as made:
            if settings.get("mode") != "off":
                made.known()
            target = made.target if form == "target" else f"localhost:{made.bare.port}"
            with grpc.insecure_channel(target) as channel:
                self.call(made, channel, 10)

            async def main() -> None:
                async with grpc.aio.insecure_channel(target) as channel:
                    await self.acall(channel, 10)

            asyncio.run(main())
            assert abs(made.served[0] - bare) <= 2
            assert sum(made.served) == 20
            assert getattr(made.counts(made.target), counted) == made.served[0]

    def test_explicit_channels(self, shop: Callable[..., Any], file: Path) -> None:
        """meshlib.grpc.*: the Service's address in mode off, the endpoints when it is on again."""
        with shop(sync_timeout=30) as made:
            file.write_text('mode = "off"')
            made.look()

            async def main() -> None:
                async with meshlib.grpc.aio.insecure_channel(made.target, mesh=made.mesh) as channel:
                    await self.acall(channel, 3)

            with meshlib.grpc.insecure_channel(made.target, mesh=made.mesh) as channel:
                self.call(made, channel, 3)
                asyncio.run(main())
                assert made.served == (6, 0)
                lease = made.mesh.target(made.target).service_lease()
                assert lease.subchannel.target == made.target  # metrics call it so
                lease.withdraw()
                file.write_text("")
                made.look()
                self.call(made, channel, 4)
            assert made.served == (6, 4)

    def test_dns_channels_have_a_bare_side(self, shop: Callable[..., Any], file: Path) -> None:
        """dns:/// under install: grpc's own in mode off, ours when it is on, in one channel."""
        with shop(mode="on") as made:
            target = f"dns:///localhost:{made.bare.port}"
            file.write_text(f'[target."{target}"]\nmode = "off"')
            with grpc.insecure_channel(target) as channel:
                self.call(made, channel, 2)
                made.look()
                self.call(made, channel, 2)
            counts = made.counts(target)
            assert (made.served, counts.bare_off, counts.mesh) == ((4, 0), 2, 2)

    @pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
    def test_the_first_call_obeys_an_annotation(self, shop: Callable[..., Any], asynchronous: bool) -> None:
        """A call that waited for the knowledge goes grpc's own way, wait_for_ready or not."""
        with shop(sync_timeout=30) as made:
            made.say("observe")
            host = f"localhost:{made.bare.port}"

            async def main() -> None:
                async with grpc.aio.insecure_channel(host) as channel:
                    await channel.unary_unary(UU)(b"x", timeout=10, wait_for_ready=True)

            if asynchronous:
                asyncio.run(main())
            else:
                with grpc.insecure_channel(host) as channel:
                    channel.unary_unary(UU)(b"x", timeout=10, wait_for_ready=True)
            assert made.served == (1, 0)
            assert made.counts(made.target).bare_observe == 1


WORKERS = """
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and newer warn about any fork with threads
import httpx, meshlib

url, bare = sys.argv[1:]
meshlib.install()
with httpx.Client() as client:
    assert client.get(url).text != bare
children = []
for _ in range(2):
    pid = os.fork()
    if not pid:
        children = None
        break
    children.append(pid)
with httpx.Client() as client:
    assert client.get(url).text != bare
    os.write(1, b"balanced\\n")  # in one piece: three processes write here
    end = time.monotonic() + 60
    while client.get(url).text != bare:
        assert time.monotonic() < end
        time.sleep(0.01)
assert not children or [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
"""


def test_every_worker_obeys_the_file(backends: Backends, file: Path) -> None:
    """Forked after use: the parent and two children, each on its own; the file is swapped as a ConfigMap is."""
    bare, *pods = backends.http(3)
    bare.stop()
    bare.host = "127.0.0.1"
    bare.start()
    targets = ",".join(pod.address for pod in pods)
    settings = (
        f'[address]\nallow_loopback = true\n[aliases]\n"localhost:{bare.port}" = "static:///{targets}"\n'
    )
    link = file.parent / "..data"
    for name, mode in (("one", "on"), ("two", "off")):
        (file.parent / name).mkdir()
        (file.parent / name / "settings.toml").write_text(f'mode = "{mode}"\n{settings}')
    link.symlink_to("one")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    env |= {"PYTHONPATH": str(ROOT), "MESHLIB_CONFIG": str(link / "settings.toml"), "NO_PROXY": "*"}
    program = subprocess.Popen(
        [sys.executable, "-c", WORKERS, f"http://localhost:{bare.port}/", bare.name],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert [program.stdout.readline() for _ in range(3)] == ["balanced\n"] * 3
        (file.parent / "next").symlink_to("two")
        (file.parent / "next").replace(link)
        _, errors = program.communicate(timeout=60)
        assert (program.returncode, errors) == (0, "")
    finally:
        program.kill()
        program.communicate()
