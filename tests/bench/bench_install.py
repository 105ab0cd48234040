"""What install() costs where it changes nothing, and beside explicit use: each with its peer, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import httpx

import meshlib
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.testing.manual import ManualResolver
from tests.components.backends import Backends

NAME = "Transparent use"
TARGETS = (
    "requests and calls that are not ours cost at most 1.05 x what they cost without install(); "
    "ours cost the same as with an explicit wrap or meshlib.grpc channel"
)

_METHOD = "/test.Echo/UnaryUnary"


@contextmanager
def _installed(mesh: Mesh) -> Any:
    meshlib.install(mesh=mesh)
    try:
        yield
    finally:
        meshlib.uninstall()


def _rate(work: Callable[[], object], seconds: float) -> float:
    """Calls per second."""
    count, begin = 0, time.perf_counter()
    end = begin + seconds
    while (now := time.perf_counter()) < end:
        for _ in range(10):
            work()
        count += 10
    return count / (now - begin)


def _turns(
    name: str, base: Callable[[], object], tried: Callable[[], object], mesh: Mesh, on: bool, quick: bool
) -> list[str]:
    """``tried`` against ``base``; ``on``: ``tried`` runs under install(), ``base`` never does."""
    ratios, bases = [], []
    seconds, rounds = (0.05, 5) if quick else (0.25, 21)
    for turn in range(rounds + 1):
        pair = {}
        for which in ("base", "tried") if turn % 2 else ("tried", "base"):
            with ExitStack() as stack:
                if on and which == "tried":
                    stack.enter_context(_installed(mesh))
                work = base if which == "base" else tried
                work()  # connections are there
                pair[which] = _rate(work, seconds)
        if turn:  # the first one warms up
            ratios.append(pair["tried"] / pair["base"])
            bases.append(pair["base"])
    ratios.sort()
    return [
        name,
        f"{statistics.median(bases):,.0f}/s",
        f"{statistics.median(ratios):.3f}",
        f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}",
    ]


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Medians of ratios, with their middle half."""
    header = ["", "base", "ratio (higher is better)", "middle half"]
    rows = []
    with ExitStack() as stack:
        backends = stack.enter_context(Backends())
        (http,), (rpc,) = backends.http(1), backends.grpc(1)
        resolver = ManualResolver()
        mesh = stack.enter_context(
            Mesh(resolvers={"k8s": resolver}, config=load_config({"picker": "round_robin"}))
        )
        resolver.endpoints("shop/http", [http.address])
        resolver.endpoints("shop/rpc", [rpc.address])
        for name in ("http", "rpc"):
            mesh.target(f"{name}.shop.svc:80").acquire(10).done()

        client = stack.enter_context(httpx.Client(trust_env=False))
        rows.append(
            _turns(
                "httpx sync, a host that is not ours: installed / not installed",
                lambda: client.get(http.url),
                lambda: client.get(http.url),
                mesh,
                True,
                quick,
            )
        )
        wrapped = meshlib.wrap(stack.enter_context(httpx.Client(trust_env=False)), mesh)
        rows.append(
            _turns(
                "httpx sync, a Service: installed / wrapped by hand",
                lambda: wrapped.get("http://http.shop.svc/"),
                lambda: client.get("http://http.shop.svc/"),
                mesh,
                True,
                quick,
            )
        )

        def method(channel: Any) -> Callable[[], object]:
            call = stack.enter_context(channel).unary_unary(_METHOD)
            return lambda: call(b"x")

        bare = method(grpc.insecure_channel(rpc.address))
        explicit = method(meshlib.grpc.insecure_channel("k8s:///rpc.shop:80", mesh=mesh))
        with _installed(mesh):
            other = method(grpc.insecure_channel(rpc.address))
            by_host = method(grpc.insecure_channel("rpc.shop.svc:80"))
        rows.append(
            _turns("grpc sync, an address: installed / not installed", bare, other, mesh, False, quick)
        )
        rows.append(
            _turns(
                "grpc sync, a host name: installed / explicit channel", explicit, by_host, mesh, False, quick
            )
        )
        rows.append(
            _turns("grpc sync, a host name: installed / bare channel", bare, by_host, mesh, False, quick)
        )
    return header, rows
