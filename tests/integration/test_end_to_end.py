"""The whole client path on the real thing: API server, controllers, httpx and grpc traffic, every request counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import meshlib
from meshlib.errors import NoEndpoints, ServiceNotFound
from meshlib.runtime.mesh import Mesh
from tests.components.process import wait_for
from tests.components.traffic import Traffic

#: How long a change may take to reach traffic here, seconds: controllers batch for about a second, and CI is busy.
PATIENCE = 60.0
NODE = "node-a"
#: The API server is stopped (SIGSTOP) for this long, seconds: longer than the timeouts of any request to it.
STOPPED_FOR = 60.0


class Shop:
    """A Service ``orders`` in a fresh namespace, pods of it with real HTTP and gRPC servers behind, and a Mesh."""

    def __init__(self, kube: Any, name: str, backends: Any, folder: Any, stack: ExitStack) -> None:
        self.kube, self.name, self.backends = kube, name, backends
        self.kube.create_node(NODE, zone="z1")
        self.http: dict[str, Any] = {}
        self.grpc: dict[str, Any] = {}
        self.http_port = self.grpc_port = 0
        self.folder = folder
        self._stack = stack
        self._mesh: Mesh | None = None

    def start(self, count: int) -> None:
        """``count`` pods, one address each, serving both ports."""
        for _ in range(count):
            self.add()

    def backend(self) -> str:
        """A new address with both servers listening; returns it."""
        (http,) = self.backends.http(1, port=self.http_port or None)
        self.http_port = http.port
        from tests.components.grpc_backend import GrpcBackend
        from tests.components.process import free_port

        self.grpc_port = self.grpc_port or free_port(*[f"127.0.0.{n}" for n in range(2, 60)])
        rpc = GrpcBackend(f"grpc-{http.host}", http.host, self.grpc_port, None)
        rpc.start()
        self._stack.callback(rpc.stop)
        self.http[http.host], self.grpc[http.host] = http, rpc
        return str(http.host)

    def service(self) -> None:
        self.kube.create_service(
            self.name,
            "orders",
            ports=[
                {"name": "http", "port": 80, "targetPort": self.http_port},
                {"name": "grpc", "port": 90, "targetPort": self.grpc_port},
            ],
        )

    def add(self) -> str:
        address = self.backend()
        self.kube.create_pod(self.name, pod_name(address), {"app": "orders"}, address, node=NODE)
        return address

    @property
    def mesh(self) -> Mesh:
        if self._mesh is None:
            kubeconfig = self.kube.write_kubeconfig(self.folder / "kubeconfig", namespace=self.name)
            self._mesh = self._stack.enter_context(mesh_for(kubeconfig))
        return self._mesh

    @property
    def target(self) -> str:
        return f"k8s:///orders.{self.name}:http"

    @property
    def grpc_target(self) -> str:
        return f"k8s:///orders.{self.name}:grpc"

    def traffic(self) -> Traffic:
        return Traffic(self.mesh, self.target, self.grpc_target)

    def requests(self) -> int:
        return sum(b.requests for b in (*self.http.values(), *self.grpc.values()))

    def names(self, *addresses: str) -> set[str]:
        return {f"{kind}-{address}" for kind in ("http", "grpc") for address in addresses}


def mesh_for(kubeconfig: Any, **code: Any) -> Mesh:
    return Mesh(
        config=meshlib.load_config(
            {
                "address": {"allow_loopback": True},
                "discovery": {"k8s": {"kubeconfig": str(kubeconfig)}},
                "node": NODE,
                "zone": "z1",
                "sync_timeout": 30.0,
                "picker": "round_robin",  # these tests are about who may be picked, not about who is best
                **code,
            },
            environ={},
        )
    )


def pod_name(address: str) -> str:
    return f"orders-{address.replace('.', '-')}"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


def until_served_by(traffic: Traffic, wanted: set[str], what: str) -> None:
    """Until a whole stretch of traffic was served by exactly these backends."""

    def exactly() -> bool:
        nonlocal last
        mark = traffic.mark()
        wait_for(
            lambda: sum(traffic.since(mark).values()) >= 200 or traffic.failures,
            timeout=PATIENCE,
            what="200 requests",
        )
        last = traffic.since(mark)
        assert traffic.failures == []
        return set(last) == wanted

    last: Counter[str] = Counter()
    try:
        wait_for(exactly, timeout=PATIENCE, interval=0.0)
    except TimeoutError:
        raise AssertionError(f"still waiting for {what}: wanted {sorted(wanted)}, last {last}") from None


def check_counts(shop: Shop, traffic: Traffic) -> None:
    """Nothing failed, nothing was sent twice, nothing was lost."""
    assert traffic.failures == []
    assert traffic.total == shop.requests()


def test_pods_come_and_go_under_traffic(
    kube_v1beta1: Any, namespace: Callable[[Any], str], backends: Any, tmp_path: Any, stack: ExitStack
) -> None:
    """Join, not ready, ready again, terminating, deleted, replaced at the same address: no request fails."""
    kube = kube_v1beta1
    shop = Shop(kube, namespace(kube), backends, tmp_path, stack)
    first = shop.backend()
    shop.service()
    kube.create_pod(shop.name, pod_name(first), {"app": "orders"}, first, node=NODE)
    second, third = shop.add(), shop.add()
    kube.wait_endpoints(shop.name, "orders", {first, second, third})

    with shop.traffic() as traffic:
        until_served_by(traffic, shop.names(first, second, third), "the three first pods")

        fourth = shop.add()
        until_served_by(traffic, shop.names(first, second, third, fourth), "the pod that joined")

        kube.set_pod_ready(shop.name, pod_name(first), False)
        until_served_by(
            traffic, shop.names(second, third, fourth), "the pod that is not ready to get nothing"
        )
        kube.set_pod_ready(shop.name, pod_name(first), True)
        until_served_by(traffic, shop.names(first, second, third, fourth), "the pod to come back")

        kube.terminate_pod(shop.name, pod_name(second))
        until_served_by(traffic, shop.names(first, third, fourth), "the terminating pod to get nothing")
        shop.http[second].stop()
        shop.grpc[second].stop()
        kube.delete_pod(shop.name, pod_name(second))

        before = {s.endpoint.address: s for s in shop.mesh.target(shop.target).balancer.subchannels}
        kube.delete_pod(shop.name, pod_name(third))
        kube.create_pod(shop.name, f"{pod_name(third)}-new", {"app": "orders"}, third, node=NODE)

        def replaced() -> bool:
            now = {s.endpoint.address: s for s in shop.mesh.target(shop.target).balancer.subchannels}
            return third in now and now[third] is not before[third]

        wait_for(replaced, timeout=PATIENCE, what="the new pod at the old address")
        until_served_by(traffic, shop.names(first, third, fourth), "the replaced pod")
    check_counts(shop, traffic)


def test_the_api_server_dies_sleeps_and_forgets_under_traffic(
    own_kube: Callable[..., Any], backends: Any, tmp_path: Any, stack: ExitStack
) -> None:
    """Killed, restarted, stopped, compacted: no request fails because of it, and each later change is adopted."""
    kube = own_kube("v1beta1")
    shop = Shop(kube, kube.create_namespace(), backends, tmp_path, stack)
    first = shop.backend()
    shop.service()
    kube.create_pod(shop.name, pod_name(first), {"app": "orders"}, first, node=NODE)
    known = [first, shop.add()]
    kube.wait_endpoints(shop.name, "orders", known)

    with shop.traffic() as traffic:
        until_served_by(traffic, shop.names(*known), "the first pods")

        kube.kill_api()
        mark = traffic.mark()
        wait_for(
            lambda: sum(traffic.since(mark).values()) > 1000, timeout=PATIENCE, what="traffic without an API"
        )
        assert set(traffic.since(mark)) == shop.names(*known)
        kube.start_api()
        known.append(shop.add())
        until_served_by(traffic, shop.names(*known), "a pod made after the restart")

        kube.pause_api()
        mark, resumed_at = traffic.mark(), time.monotonic() + STOPPED_FOR
        wait_for(lambda: time.monotonic() > resumed_at, timeout=2 * STOPPED_FOR, interval=0.5)
        assert sum(traffic.since(mark).values()) > 1000
        assert set(traffic.since(mark)) == shop.names(*known)
        kube.resume_api()
        known.append(shop.add())
        until_served_by(traffic, shop.names(*known), "a pod made after the stop")

        kube.compact(forget=True)
        known.append(shop.add())
        until_served_by(traffic, shop.names(*known), "a pod made after the compaction")
    check_counts(shop, traffic)


def test_scale_to_zero_and_back(
    kube_v1beta1: Any, namespace: Callable[[Any], str], backends: Any, tmp_path: Any, stack: ExitStack
) -> None:
    """Zero is known at once as NoEndpoints; deletion as ServiceNotFound; both end without a restart."""
    kube = kube_v1beta1
    shop = Shop(kube, namespace(kube), backends, tmp_path, stack)
    address = shop.backend()
    shop.service()
    handle = shop.mesh.target(shop.target)

    def outcome() -> type[BaseException] | str:
        try:
            with handle.pick(timeout=PATIENCE) as endpoint:
                return endpoint.address
        except (NoEndpoints, ServiceNotFound) as error:
            return type(error)

    wait_for(lambda: outcome() is NoEndpoints, timeout=PATIENCE, what="an empty Service")
    kube.create_pod(shop.name, pod_name(address), {"app": "orders"}, address, node=NODE)
    wait_for(lambda: outcome() == address, timeout=PATIENCE, what="the first pod")
    kube.delete_pod(shop.name, pod_name(address))
    wait_for(lambda: outcome() is NoEndpoints, timeout=PATIENCE, what="zero again")
    kube.delete(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders", "namespace": shop.name}}
    )
    wait_for(lambda: outcome() is ServiceNotFound, timeout=PATIENCE, what="the deletion")
    shop.service()
    kube.create_pod(shop.name, pod_name(address), {"app": "orders"}, address, node=NODE)
    wait_for(lambda: outcome() == address, timeout=PATIENCE, what="the Service made again")


def test_a_service_edited_under_traffic(
    kube_v1: Any, namespace: Callable[[Any], str], backends: Any, tmp_path: Any, stack: ExitStack
) -> None:
    """A move between slices and another target port, under discovery.k8s.io/v1: nothing fails."""
    kube = kube_v1
    shop = Shop(kube, namespace(kube), backends, tmp_path, stack)
    one, two = shop.backend(), shop.backend()
    shop.service()

    def ports() -> list[dict[str, Any]]:
        return [
            {"name": "http", "port": shop.http_port, "protocol": "TCP"},
            {"name": "grpc", "port": shop.grpc_port, "protocol": "TCP"},
        ]

    kube.put_slice(shop.name, "orders-a", "orders", [one, two], ports=ports())
    with shop.traffic() as traffic:
        until_served_by(traffic, shop.names(one, two), "both pods")
        for turn in range(10):  # back and forth: the endpoint is in both, or for a moment in neither
            source, goal = ("orders-a", "orders-b") if turn % 2 == 0 else ("orders-b", "orders-a")
            kube.put_slice(shop.name, source, "orders", [one] if source == "orders-a" else [], ports=ports())
            kube.put_slice(
                shop.name, goal, "orders", [one, two] if goal == "orders-a" else [two], ports=ports()
            )
        until_served_by(traffic, shop.names(one, two), "both pods after the moves")
        assert not any(s.removed for s in shop.mesh.target(shop.target).balancer.subchannels)
    check_counts(shop, traffic)


def test_malicious_addresses_get_no_request(
    kube_v1: Any, namespace: Callable[[Any], str], backends: Any, tmp_path: Any, stack: ExitStack
) -> None:
    """What a tenant writes into a slice is refused by default and counted; the honest endpoint is served."""
    kube = kube_v1
    name = namespace(kube)
    (target,) = backends.http(1)
    kube.create_service(name, "orders", selector={})
    evil = ["127.0.0.2", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0", "224.0.0.1"]
    kube.put_slice(
        name,
        "orders-evil",
        "orders",
        evil,
        ports=[{"name": "http", "port": target.port, "protocol": "TCP"}],
    )
    kube.put_slice(name, "orders-good", "orders", ["10.9.8.7"])
    kubeconfig = kube.write_kubeconfig(tmp_path / "kubeconfig")
    mesh = stack.enter_context(mesh_for(kubeconfig, address={"allow_loopback": False}))
    handle = mesh.target(f"k8s:///orders.{name}:80")
    with handle.pick(timeout=PATIENCE) as endpoint:
        assert endpoint.address == "10.9.8.7"
    status = handle.status()
    assert [e["address"] for e in status["endpoints"]] == ["10.9.8.7"]
    assert status["skipped"] >= len(evil)
    assert target.accepted == 0


def test_thousands_of_endpoints_in_many_slices(
    kube_v1: Any, namespace: Callable[[Any], str], tmp_path: Any, stack: ExitStack
) -> None:
    """5,000 endpoints in 50 slices become one set; one slice edited changes exactly its endpoints."""
    kube = kube_v1
    name = namespace(kube)
    kube.create_service(name, "orders", selector={})

    def addresses(slice_: int) -> list[str]:
        return [f"10.{slice_ + 1}.0.{host}" for host in range(1, 101)]

    for number in range(50):
        kube.put_slice(name, f"orders-{number}", "orders", addresses(number))
    mesh = stack.enter_context(mesh_for(kube.write_kubeconfig(tmp_path / "kubeconfig")))
    handle = mesh.target(f"k8s:///orders.{name}:http")
    handle.acquire(PATIENCE).done()
    assert len(handle.balancer.subchannels) == 5000
    kept = {s.endpoint.address: s for s in handle.balancer.subchannels}
    changed = threading.Event()
    listener = _Listener(changed)
    handle.on_removed(listener.removed)
    kube.put_slice(name, "orders-7", "orders", addresses(7)[:-1])
    assert changed.wait(PATIENCE)
    after = {s.endpoint.address: s for s in handle.balancer.subchannels}
    assert set(kept) - set(after) == {"10.8.0.100"}
    assert all(after[address] is kept[address] for address in after)


class _Listener:
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def removed(self, subchannel: Any) -> None:
        self.event.set()
