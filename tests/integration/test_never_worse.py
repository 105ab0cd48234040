"""Never worse than without meshlib (decision D3): whatever is missing, calls end where the bare client's would have.

Each test counts requests at the backends. "Bare" is the server behind the Service's name or own address, "pods" are the
endpoints that discovery would give.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.components.process import NotAvailable, leave_out, wait_for

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs Linux")

METHOD = "/test.Echo/UnaryUnary"
CONFIG = """
sync_timeout = 0.5
picker = "round_robin"
[address]
allow_loopback = true
"""
PATIENT = CONFIG.replace("sync_timeout = 0.5", "sync_timeout = 30")  # for tests that are about what is known


class Scene:
    """A bare backend, two pods, and a caller in a pod of its own."""

    def __init__(self, folder: Path, backends: Any, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.bare, *self.pods = backends.http(3)
        self.bare_rpc, *self.pod_rpcs = backends.grpc(3)
        (folder / "meshlib.toml").write_text(CONFIG)

    def pod(self, hosts: dict[str, str], config: str = CONFIG, **environ: str) -> Any:
        from tests.components.pod import Pod

        (self.folder / "meshlib.toml").write_text(config)
        try:
            made = Pod(self.folder, hosts, {"MESHLIB_CONFIG": str(self.folder / "meshlib.toml"), **environ})
        except NotAvailable as error:
            leave_out("pod", error)
        return self._stack.enter_context(made)

    def manifests(
        self, service: dict[str, Any], slices: list[dict[str, Any]], name: str = "shop.json"
    ) -> str:
        """Write a file registry; returns its path."""
        path = self.folder / name
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, *slices]}))
        return str(path)


@pytest.fixture
def scene(tmp_path: Path, backends: Any) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(tmp_path, backends, stack)


def service(port: int, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"clusterIP": "127.0.0.2", "ports": [{"name": "http", "port": port}], **spec},
    }


def slices(port: int, *addresses: str, **fields: Any) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "orders-1",
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "orders"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": port}],
            "endpoints": [{"addresses": [address], **fields} for address in addresses],
        }
    ]


def counts(scene: Scene) -> tuple[int, int]:
    """(requests at the bare backend, requests at the pods)"""
    return (
        scene.bare.requests + scene.bare_rpc.requests,
        sum(b.requests for b in (*scene.pods, *scene.pod_rpcs)),
    )


def warnings_of(pod: Any) -> str:
    code, errors = pod.end()
    assert code == 0, errors
    return str(errors)


class TestWithoutRights:
    """A real API server that answers 403."""

    def calls(self, pod: Any, scene: Scene, name: str) -> list[list[str]]:
        host = f"orders.{name}.svc.cluster.local"
        url = f"http://{host}:{scene.bare.port}/"
        return [
            pod.do(do="http", url=url, count=5)["answer"],
            pod.do(do="http_async", url=url, count=5)["answer"],
            pod.do(do="grpc", target=f"k8s:///orders.{name}:{scene.bare_rpc.port}", method=METHOD, count=5)[
                "answer"
            ],
        ]

    def test_calls_take_the_bare_path_then_adopt_what_is_granted(
        self, scene: Scene, kube_v1: Any, namespace: Callable[[Any], str]
    ) -> None:
        """No Role: every call is served through the Service's name, one warning names the Role; granted: the pods."""
        name = namespace(kube_v1)
        kube_v1.create_service(
            name,
            "orders",
            ports=[
                {"name": "http", "port": scene.bare.port},
                {"name": "grpc", "port": scene.bare_rpc.port},
            ],
        )
        ports = [
            {"name": "http", "port": scene.bare.port, "protocol": "TCP"},
            {"name": "grpc", "port": scene.bare_rpc.port, "protocol": "TCP"},
        ]
        http_hosts = [b.host for b in scene.pods]
        grpc_hosts = [b.host for b in scene.pod_rpcs]
        kube_v1.put_slice(name, "orders-http", "orders", http_hosts, ports=ports[:1])
        kube_v1.put_slice(name, "orders-grpc", "orders", grpc_hosts, ports=ports[1:])
        token = kube_v1.service_account(name)
        kubeconfig = kube_v1.write_kubeconfig(scene.folder / "kubeconfig", token, name)
        hosts = {f"orders.{name}.svc.cluster.local": scene.bare.host}
        pod = scene.pod({**hosts}, KUBECONFIG=str(kubeconfig))
        # One name, two ports, two loopback addresses: the bare gRPC backend must live where the name leads.
        scene.bare_rpc.stop()
        scene.bare_rpc.host = scene.bare.host
        scene.bare_rpc.start()

        served = self.calls(pod, scene, name)
        assert counts(scene) == (15, 0), served
        fell_back = pod.do(do="happened")["answer"]["fell_back"]
        assert {way for way, _ in fell_back} == {"dns"}

        kube_v1.grant(name)
        target = f"k8s:///orders.{name}:http"
        wait_for(
            lambda: pod.do(do="status", target=target)["answer"]["way"] == "pods",
            what="the granted rights to be adopted",
            timeout=90,
        )
        wait_for(
            lambda: (self.calls(pod, scene, name), counts(scene)[1])[1] > 0,
            what="a call to a pod",
            timeout=90,
        )
        before = counts(scene)
        served = self.calls(pod, scene, name)
        assert counts(scene) == (before[0], before[1] + 15), served
        errors = warnings_of(pod)
        assert "kind: Role" in errors, errors


def test_dropped_packets_cost_a_bounded_wait(scene: Scene) -> None:
    """An API server that is a black hole: the calls are served by name, within the client's own timeouts."""
    with black_hole() as address:
        kubeconfig = scene.folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_for(f"http://{address}")))
        pod = scene.pod({"orders.shop.svc.cluster.local": scene.bare.host}, KUBECONFIG=str(kubeconfig))
        url = f"http://orders.shop.svc.cluster.local:{scene.bare.port}/"
        assert pod.do(do="http", url=url, count=10)["answer"] == [scene.bare.name] * 10
        assert pod.do(do="http_async", url=url, count=10)["answer"] == [scene.bare.name] * 10
        assert counts(scene) == (20, 0)


@pytest.mark.parametrize("transparent", [True, False])
def test_without_any_credentials_the_name_decides(scene: Scene, transparent: bool) -> None:
    """No service account and no kubeconfig: DNS, at once, for URLs and for explicit targets."""
    pod = scene.pod({"orders.shop.svc.cluster.local": scene.bare.host})
    url = f"http://orders.shop.svc.cluster.local:{scene.bare.port}/"
    target = None if transparent else f"k8s:///orders.shop:{scene.bare.port}"
    assert pod.do(do="http", url=url, target=target, count=10)["answer"] == [scene.bare.name] * 10
    assert counts(scene) == (10, 0)
    assert len(pod.do(do="happened")["answer"]["fell_back"]) == 1
    assert warnings_of(pod).count("WARNING") >= 1


def test_without_credentials_and_without_dns_it_is_not_synced(scene: Scene) -> None:
    """Nothing can be known: httpx's own ConnectError, with NotSynced and the discovery error behind it."""
    pod = scene.pod({})
    (outcome,) = pod.do(do="http", url="http://x/", target=f"k8s:///orders.shop:{scene.bare.port}", count=1)[
        "answer"
    ]
    assert outcome.startswith("ConnectError")
    assert "NotSynced" in outcome


def test_strict_refuses_every_detour(scene: Scene) -> None:
    """strict: the same missing credentials are an error, and the bare backend is not called."""
    pod = scene.pod({"orders.shop.svc.cluster.local": scene.bare.host}, "strict = true\n" + CONFIG)
    url = f"http://orders.shop.svc.cluster.local:{scene.bare.port}/"
    outcomes = pod.do(do="http", url=url, count=3)["answer"]
    assert all(outcome.startswith("ConnectError") for outcome in outcomes), outcomes
    assert counts(scene) == (0, 0)


def test_a_local_policy_on_an_unknown_node_dials_the_service(scene: Scene) -> None:
    """Own node unknown: the Service address, where the kernel knows what is local."""
    path = scene.manifests(
        service(scene.bare.port, internalTrafficPolicy="Local"),
        slices(scene.pods[0].port, *[b.host for b in scene.pods], nodeName="elsewhere"),
    )
    pod = scene.pod({})
    target = f"file://{path}#shop/orders:http"
    url = "http://orders.shop.svc/"
    assert pod.do(do="http", url=url, target=target, count=10)["answer"] == [scene.bare.name] * 10
    assert counts(scene) == (10, 0)


def test_a_known_node_gets_its_local_pods_and_an_error_without_any(scene: Scene) -> None:
    """NODE_NAME known: local pods only; none local is its own error, not a detour."""
    path = scene.manifests(
        service(scene.bare.port, internalTrafficPolicy="Local"),
        slices(scene.pods[0].port, scene.pods[0].host, nodeName="here")
        + [
            {**s, "metadata": {**s["metadata"], "name": "orders-2"}}
            for s in slices(scene.pods[0].port, scene.pods[1].host, nodeName="elsewhere")
        ],
    )
    target = f"file://{path}#shop/orders:http"
    url = "http://orders.shop.svc/"
    pod = scene.pod({}, NODE_NAME="here")
    assert pod.do(do="http", url=url, target=target, count=10)["answer"] == [scene.pods[0].name] * 10
    other = scene.pod({}, NODE_NAME="third")
    (outcome,) = other.do(do="http", url=url, target=target, count=1)["answer"]
    assert "NoLocalEndpoints" in outcome
    assert (scene.bare.requests, scene.pods[0].requests, scene.pods[1].requests) == (0, 10, 0)


def test_hints_in_an_unknown_zone_dial_the_service(scene: Scene) -> None:
    """Own zone unknown and hints in use: the Service address; MESHLIB_ZONE: the pods of the zone."""
    path = scene.manifests(
        service(scene.bare.port),
        slices(scene.pods[0].port, scene.pods[0].host, zone="z1", hints={"forZones": [{"name": "z1"}]}),
    )
    target, url = f"file://{path}#shop/orders:http", "http://orders.shop.svc/"
    assert scene.pod({}).do(do="http", url=url, target=target, count=5)["answer"] == [scene.bare.name] * 5
    known = scene.pod({}, MESHLIB_ZONE="z1")
    assert known.do(do="http", url=url, target=target, count=5)["answer"] == [scene.pods[0].name] * 5


def test_pods_that_all_refuse_lead_to_the_service_address(scene: Scene) -> None:
    """mTLS-only pods: one try through the Service address, sticky, one warning."""
    for backend in (*scene.pods, *scene.pod_rpcs):
        backend.stop()
    target, url = {}, "http://orders.shop.svc/"
    for kind, bare, pods in (
        ("http", scene.bare, scene.pods),
        ("grpc", scene.bare_rpc, scene.pod_rpcs),
    ):
        spec = service(bare.port, clusterIP=bare.host)
        path = scene.manifests(spec, slices(pods[0].port, *[b.host for b in pods]), f"{kind}.json")
        target[kind] = f"file://{path}#shop/orders:http"
    pod = scene.pod({})
    assert pod.do(do="http", url=url, target=target["http"], count=10)["answer"] == [scene.bare.name] * 10
    answers = pod.do(do="grpc", target=target["grpc"], method=METHOD, count=10)["answer"]
    assert answers == [f"{scene.bare_rpc.name}:hello"] * 10
    assert counts(scene) == (20, 0)
    happened = pod.do(do="happened")["answer"]
    assert [way for way, _ in happened["fell_back"]] == ["service-address"] * 2
    assert warnings_of(pod).count("WARNING") >= 2


def test_refusing_pods_under_strict_are_an_error(scene: Scene) -> None:
    """strict: the connection error of the pods, and no call through the Service address."""
    for backend in scene.pods:
        backend.stop()
    path = scene.manifests(
        service(scene.bare.port), slices(scene.pods[0].port, *[b.host for b in scene.pods])
    )
    pod = scene.pod({}, "strict = true\n" + CONFIG)
    (outcome,) = pod.do(do="http", url="http://o/", target=f"file://{path}#shop/orders:http", count=1)[
        "answer"
    ]
    assert outcome.startswith("ConnectError")
    assert counts(scene) == (0, 0)


def test_a_mesh_that_is_there_already_is_left_to_work(
    scene: Scene, kube_v1: Any, namespace: Callable[[Any], str]
) -> None:
    """A sidecar answers on its health port: meshlib dials the Service's own address, unless told to ignore it."""
    name = namespace(kube_v1)
    made = kube_v1.create_service(name, "orders", ports=[{"name": "http", "port": scene.bare.port}])
    kube_v1.put_slice(
        name,
        "orders-1",
        "orders",
        [b.host for b in scene.pods],
        ports=[{"name": "http", "port": scene.pods[0].port, "protocol": "TCP"}],
    )
    kubeconfig = kube_v1.write_kubeconfig(scene.folder / "kubeconfig")
    environ = {"KUBECONFIG": str(kubeconfig), "KUBERNETES_SERVICE_HOST": "127.0.0.1"}
    target = f"k8s:///orders.{name}:http"
    with health_port():
        pod = scene.pod({}, **environ)
        pod.do(do="http", url="http://orders/", target=target, timeout=0.2, count=1)
        wait_for(
            lambda: pod.do(do="status", target=target)["answer"]["way"] == "service-address",
            what="the first sync",
            timeout=30,
        )
        status = pod.do(do="status", target=target)["answer"]
        assert (status["way"], [e["address"] for e in status["endpoints"]]) == (
            "service-address",
            [made["spec"]["clusterIP"]],
        )
        ignoring = scene.pod({}, 'sidecar = "ignore"\n' + PATIENT, **environ)
        served = ignoring.do(do="http", url="http://orders/", target=target, count=10)["answer"]
    assert set(served) == {b.name for b in scene.pods}
    assert counts(scene) == (0, 10)


def test_a_port_that_the_service_does_not_list(
    scene: Scene, kube_v1: Any, namespace: Callable[[Any], str]
) -> None:
    """A URL takes the bare path; an explicit target gets UnknownPort with the list."""
    name = namespace(kube_v1)
    kube_v1.create_service(name, "orders", ports=[{"name": "http", "port": 80}])
    kube_v1.put_slice(name, "orders-1", "orders", [scene.pods[0].host])
    kubeconfig = kube_v1.write_kubeconfig(scene.folder / "kubeconfig")
    host = f"orders.{name}.svc.cluster.local"
    pod = scene.pod({host: scene.bare.host}, PATIENT, KUBECONFIG=str(kubeconfig))
    url = f"http://{host}:{scene.bare.port}/"
    assert pod.do(do="http", url=url, count=5)["answer"] == [scene.bare.name] * 5
    assert pod.do(do="wrapped", url=url, count=5)["answer"] == [scene.bare.name] * 5
    (outcome,) = pod.do(do="http", url=url, target=f"k8s:///orders.{name}:{scene.bare.port}", count=1)[
        "answer"
    ]
    assert "UnknownPort" in outcome
    assert "80" in outcome
    assert counts(scene) == (10, 0)


def test_a_set_that_is_known_to_be_empty_is_an_error_at_once(scene: Scene) -> None:
    """No detour through the Service address, which would only be refused later."""
    path = scene.manifests(service(scene.bare.port), slices(scene.bare.port))
    pod = scene.pod({})
    (outcome,) = pod.do(do="http", url="http://o/", target=f"file://{path}#shop/orders:http", count=1)[
        "answer"
    ]
    assert outcome.startswith("ConnectError")
    assert "NoEndpoints" in outcome
    (outcome,) = pod.do(do="grpc", target=f"file://{path}#shop/orders:http", method=METHOD, count=1)["answer"]
    assert "UNAVAILABLE" in outcome
    assert counts(scene) == (0, 0)


# -- parts ---------------------------------------------------------------------------------------------------------


def kubeconfig_for(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }


@contextmanager
def black_hole() -> Iterator[str]:
    """An address whose SYNs the kernel drops: a listener with a full backlog that nobody accepts from."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(16):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield f"{address[0]}:{address[1]}"


@contextmanager
def health_port() -> Iterator[None]:
    """What a sidecar shows on its health port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 15021))
        listener.listen()
        closing = threading.Event()

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if closing.is_set():
                        return
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            closing.set()
            socket.create_connection(("127.0.0.1", 15021)).close()
            thread.join()
