"""Transparent use on the real thing: an unmodified program under `meshlib run`, real DNS, and install() under load."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.errors import ConfigError
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.backends import Backends
from tests.components.process import wait_for
from tests.integration.install_support import URL, installed, mesh_for_tests
from tests.integration.test_end_to_end import (
    NODE,
    PATIENCE,
    Shop,
    check_counts,
    pod_name,
    until_served_by,
)

ROOT = Path(__file__).parents[2]

#: Knows nothing of meshlib. Clients made at import, by a class of its own, in threads and on a loop; old and new gRPC.
PROGRAM = """
import asyncio, signal, sys, threading, time
import grpc, httpx
URL, TARGET = sys.argv[1:]

class Session(httpx.Client):
    pass

shared, own = httpx.AsyncClient(timeout=15), Session(timeout=15)
stop = threading.Event()
lock = threading.Lock()

def say(*words):
    with lock:
        print(*words, flush=True)

def repeat(call):
    while not stop.wait(0.005):
        try:
            say("served", call())
        except Exception as error:
            say("failed", repr(error))

async def on_a_loop():
    async with shared:
        while not stop.is_set():
            try:
                say("served", (await shared.get(URL)).text)
            except Exception as error:
                say("failed", repr(error))
            await asyncio.sleep(0.005)

signal.signal(signal.SIGTERM, lambda *_: stop.set())
channel = grpc.insecure_channel(TARGET)
call = channel.unary_unary("/test.Echo/UnaryUnary")
threads = [
    threading.Thread(target=repeat, args=(lambda: own.get(URL).text,)),
    threading.Thread(target=repeat, args=(lambda: call(b"", timeout=15).decode().removesuffix(":"),)),
    threading.Thread(target=lambda: asyncio.run(on_a_loop())),
]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    time.sleep(0.05)
own.close()
channel.close()
say("ended")
"""


class Program:
    """The program's traffic, as ``Traffic`` tells it."""

    def __init__(
        self, folder: Path, words: list[str], environ: dict[str, str], url: str, target: str
    ) -> None:
        path = folder / "program.py"
        path.write_text(PROGRAM)
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        env |= {"PYTHONPATH": str(ROOT), **environ}
        self._errors = open(folder / "stderr", "w+")  # noqa: SIM115 - closed at the end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "meshlib", "run", *words, "--", str(path), url, target],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
        )
        self._lock = threading.Lock()
        self.served: Counter[str] = Counter()
        self.failures: list[str] = []
        self.ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._reader.join(30)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            with self._lock:
                if word == "served":
                    self.served[rest] += 1
                elif word == "failed":
                    self.failures.append(rest)
                else:
                    self.ended = word == "ended"

    @property
    def total(self) -> int:
        return sum(self.served.values())

    def mark(self) -> Counter[str]:
        with self._lock:
            return Counter(self.served)

    def since(self, before: Counter[str]) -> Counter[str]:
        with self._lock:
            return self.served - before


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


def test_a_program_under_meshlib_run(
    own_kube: Callable[..., Any], backends: Any, tmp_path: Path, stack: ExitStack
) -> None:
    """Pods join and leave, the API server is killed and comes back: no request fails, none is sent twice."""
    kube = own_kube("v1beta1")
    shop = Shop(kube, kube.create_namespace(), backends, tmp_path, stack)
    first = shop.backend()
    shop.service()
    kube.create_pod(shop.name, pod_name(first), {"app": "orders"}, first, node=NODE)
    second = shop.add()
    kube.wait_endpoints(shop.name, "orders", {first, second})
    environ = {
        "MESHLIB_PICKER": "round_robin",
        "MESHLIB_ADDRESS_ALLOW_LOOPBACK": "1",
        "MESHLIB_SYNC_TIMEOUT": "30",
        "NODE_NAME": NODE,
    }
    words = ["--kubeconfig", str(kube.write_kubeconfig(tmp_path / "kubeconfig", namespace=shop.name))]
    url, target = f"http://orders.{shop.name}.svc/", f"k8s:///orders.{shop.name}:grpc"
    traffic: Any
    with Program(tmp_path, words, environ, url, target) as traffic:
        until_served_by(traffic, shop.names(first, second), "the first pods")
        third = shop.add()
        until_served_by(traffic, shop.names(first, second, third), "the pod that joined")
        kube.kill_api()
        mark = traffic.mark()
        wait_for(lambda: traffic.since(mark).total() > 300, timeout=PATIENCE, what="traffic without an API")
        assert set(traffic.since(mark)) == shop.names(first, second, third)
        kube.start_api()
        kube.delete_pod(shop.name, pod_name(second))
        until_served_by(traffic, shop.names(first, third), "the pod that left to get nothing")
    assert traffic.ended
    check_counts(shop, traffic)


def test_a_name_of_a_real_dns_server(knot: Any, backends: Backends) -> None:
    """An alias that leads to DNS: existing and new clients follow its records while they change."""
    servers = backends.http(3)
    name = knot.fresh_name("orders")
    knot.set_records(name, "A", [servers[0].host], ttl=1)
    host, port = knot.address
    config = load_config(
        {
            "picker": "round_robin",
            "sync_timeout": 30.0,
            "discovery": {"dns": {"allow_loopback": True, "floor": 1.0}},
            "address": {"allow_loopback": True},
            "aliases": {"orders.internal": f"dns://{host}:{port}/{name}:{servers[0].port}"},
        },
        environ={},
    )
    with httpx.Client(timeout=30) as client, Mesh(config=config) as mesh:
        meshlib.install(mesh=mesh)
        try:

            def served() -> set[str]:
                return {client.get("http://orders.internal/").text for _ in range(6)}

            assert served() == {servers[0].name}
            knot.set_records(name, "A", [server.host for server in servers[1:]], ttl=1)
            wait_for(
                lambda: served() == {server.name for server in servers[1:]},
                timeout=PATIENCE,
                what="the new records",
            )
            assert httpx.get("http://orders.internal/").headers["x-host"] == "orders.internal"
        finally:
            meshlib.uninstall()


def test_install_and_uninstall_under_load(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads and a loop share clients while meshlib comes and goes ten times: each request is served, by an endpoint
    or the bare way; another Mesh is refused meanwhile; at the end nothing is left."""
    servers, (bare,) = backends.http(2), backends.http(1)
    names, url = {server.name for server in servers}, f"http://orders.internal:{bare.port}/"
    look_up = socket.getaddrinfo  # what DNS would say of the name, without asking one

    def known(host: Any, *arguments: Any, **options: Any) -> Any:
        return look_up(
            bare.host if host in ("orders.internal", b"orders.internal") else host, *arguments, **options
        )

    monkeypatch.setattr(socket, "getaddrinfo", known)
    before = {kind: dict(vars(kind)) for kind in (httpx.HTTPTransport, httpx.AsyncHTTPTransport)}
    stop = threading.Event()
    seen: Counter[str] = Counter()
    client, shared = httpx.Client(timeout=10), httpx.AsyncClient(timeout=10)

    lock = threading.Lock()

    def count(outcome: str) -> None:
        with lock:
            seen["mesh" if outcome in names else outcome] += 1

    def hammer() -> None:
        while not stop.is_set():
            try:
                count(client.get(url).text)
            except Exception as error:
                count(repr(error))

    async def loop() -> None:
        async def one() -> None:
            while not stop.is_set():
                try:
                    count((await shared.get(bare.url)).text)
                except Exception as error:
                    count(repr(error))
                await asyncio.sleep(0)

        async with shared:
            await asyncio.gather(*(one() for _ in range(4)))

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: asyncio.run(loop())))
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            with installed(aliases={"orders.internal": "k8s:///orders.shop:80"}) as mesh:
                mesh.serve(servers)
                mark = seen["mesh"]
                wait_for(lambda mark=mark: seen["mesh"] > mark + 20, timeout=30, what="balanced requests")
                with mesh_for_tests() as other, pytest.raises(ConfigError):
                    meshlib.install(mesh=other.mesh)
            mark = seen[bare.name]
            wait_for(lambda mark=mark: seen[bare.name] > mark + 5, timeout=30, what="bare requests")
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        client.close()
    assert set(seen) == {"mesh", bare.name}, seen
    assert sum(server.requests for server in servers) == seen["mesh"]
    wait_for(lambda: not any(server.connections for server in servers), timeout=30, what="closed connections")
    assert {kind: dict(vars(kind)) for kind in before} == before
    assert "_meshlib_pool" not in vars(client._transport)


def test_uninstall_leaves_nothing(backends: Backends) -> None:
    """No thread, descriptor, patched name or hook more than before, also while the client lives on."""
    servers = backends.http(3)

    def state() -> tuple[Any, ...]:
        gc.collect()
        names = sorted(thread.name for thread in threading.enumerate())
        kinds = [dict(vars(kind)) for kind in (httpx.HTTPTransport, httpx.AsyncHTTPTransport, httpx.Client)]
        return names, len(os.listdir("/proc/self/fd")), list(sys.meta_path), kinds

    def nothing_more(now: tuple[Any, ...]) -> bool:
        # What an earlier test left may end meanwhile: a thread of chores, say, that has had nothing to do for a while.
        return not Counter(now[0]) - Counter(before[0]) and now[1] <= before[1] and now[2:] == before[2:]

    with httpx.Client() as client:
        before = state()
        with installed() as mesh:
            mesh.serve(servers)
            mesh.known()
            for _ in range(6):
                assert client.get(URL).status_code == 200
            assert not nothing_more(state())
        wait_for(lambda: not any(server.connections for server in servers), timeout=30, what="closed sockets")
        wait_for(lambda: nothing_more(state()), timeout=30, what=f"{before}, not {state()}")


@pytest.mark.parametrize("transparent", [False, True], ids=["not installed", "installed"])
@pytest.mark.parametrize("wire", ["httpcore", "fast"])
def test_balancing_and_the_engine_are_two_switches(
    backends: Backends, transparent: bool, wire: str, tmp_path: Path
) -> None:
    """MESHLIB_DISABLED and MESHLIB_WIRE in all four combinations: who answers, and whose connections carry it."""
    servers = backends.http(2)
    targets = ",".join(server.address for server in servers)
    program = """
import json, socket, httpx, meshlib
meshlib.install()
with httpx.Client() as client:
    try:
        replies = [client.get("http://orders.internal/") for _ in range(4)]
        kinds = {type(reply.extensions["network_stream"]).__name__ for reply in replies}
        print(json.dumps([sorted({reply.text for reply in replies}), sorted(kinds)]))
    except httpx.ConnectError as error:
        print(json.dumps("bare"))
"""
    settings = f'picker = "round_robin"\nwire = "{wire}"\n[address]\nallow_loopback = true\n'
    (tmp_path / "meshlib.toml").write_text(
        settings + f'[aliases]\n"orders.internal" = "static:///{targets}"\n'
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    env |= {"PYTHONPATH": str(ROOT), "MESHLIB_CONFIG": str(tmp_path / "meshlib.toml")}
    if not transparent:
        env["MESHLIB_DISABLED"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if not transparent:
        assert found == "bare"
        return
    names, streams = found
    assert names == sorted(server.name for server in servers)
    assert (streams == ["SyncStream"]) == (wire == "fast")
