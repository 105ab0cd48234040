"""The real components do what the other tests rely on."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import grpc
import httpx
import pytest

from tests.components.process import NotAvailable, can_connect, leave_out, wait_for

if TYPE_CHECKING:
    from tests.components.backends import Backends
    from tests.components.dns import Dnsmasq, Knot, Unbound
    from tests.components.kube import KubeCluster

Namespace = Callable[["KubeCluster"], str]


def client_with(kube: KubeCluster, token: str) -> httpx.Client:
    trust = ssl.create_default_context(cafile=str(kube.ca_file))
    return httpx.Client(
        base_url=kube.url, verify=trust, headers={"Authorization": f"Bearer {token}"}, timeout=10
    )


# Kubernetes


def test_controllers_make_slices_from_pods(kube_v1beta1: KubeCluster, namespace: Namespace) -> None:
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    kube.create_node("node-a", zone="zone-1")
    kube.create_service(ns, "orders", target_port="web")
    for number in (1, 2, 3):
        kube.create_pod(
            ns,
            f"orders-{number}",
            {"app": "orders"},
            f"10.0.0.{number}",
            ports=[{"name": "web", "containerPort": 8081}],
        )
    kube.wait_endpoints(ns, "orders", ready={"10.0.0.1", "10.0.0.2", "10.0.0.3"})
    assert [p["port"] for p in kube.slices(ns, "orders")[0]["ports"]] == [8081]

    kube.set_pod_ready(ns, "orders-2", False)
    kube.terminate_pod(ns, "orders-1")
    kube.wait_endpoints(ns, "orders", ready={"10.0.0.3"})
    endpoints = kube.slice_endpoints(ns, "orders")
    assert endpoints["10.0.0.1"]["conditions"] == {"ready": False, "serving": True, "terminating": True}
    assert endpoints["10.0.0.2"]["conditions"] == {"ready": False, "serving": False, "terminating": False}
    assert endpoints["10.0.0.3"]["nodeName"] == "node-a"
    assert endpoints["10.0.0.3"]["topology"]["topology.kubernetes.io/zone"] == "zone-1"

    kube.delete_pod(ns, "orders-1")
    wait_for(lambda: "10.0.0.1" not in kube.slice_endpoints(ns, "orders"))
    core = kube.request("GET", f"/api/v1/namespaces/{ns}/endpoints/orders")
    assert [a["ip"] for a in core["subsets"][0]["addresses"]] == ["10.0.0.3"]


def test_v1_slices_written_by_the_test(kube_v1: KubeCluster, namespace: Namespace) -> None:
    kube, ns = kube_v1, namespace(kube_v1)
    version = kube.request("GET", "/apis/discovery.k8s.io/v1")["resources"]
    assert "endpointslices" in {r["name"] for r in version}
    first = kube.put_slice(ns, "orders-a", "orders", ["10.0.0.1"])
    hinted = {
        "addresses": ["10.0.0.2"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": "node-a",
        "zone": "zone-1",
        "hints": {"forZones": [{"name": "zone-1"}]},
    }
    kube.put_slice(ns, "orders-a", "orders", ["10.0.0.1", hinted])
    assert kube.slice_endpoints(ns, "orders")["10.0.0.2"] == hinted

    path = f"/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices"
    kind, changed = next(kube.watch(path, first["metadata"]["resourceVersion"]))
    assert (kind, len(changed["endpoints"])) == ("MODIFIED", 2)
    kube.delete_slice(ns, "orders-a")
    assert kube.slices(ns) == []


def test_flavour_without_slices(own_kube: Callable[..., KubeCluster]) -> None:
    kube = own_kube("endpoints")
    assert kube.client.get("/apis/discovery.k8s.io").status_code == 404
    kube.create_node("node-a")
    kube.create_service("default", "orders")
    kube.create_pod("default", "orders-1", {"app": "orders"}, "10.0.0.1")
    path = "/api/v1/namespaces/default/endpoints/orders"
    wait_for(lambda: kube.client.get(path).json().get("subsets"), what="Endpoints")


def test_old_revisions_are_gone_after_compaction(own_kube: Callable[..., KubeCluster]) -> None:
    """410 comes as a status of the list, and as an event inside a watch that was accepted."""
    kube = own_kube("v1", controllers=False, watch_cache=False)
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    for number in range(3):
        kube.put_slice("default", f"orders-{number}", "orders", [f"10.0.0.{number + 1}"])
    page = kube.request("GET", path, params={"limit": 1})
    token, version = page["metadata"]["continue"], page["metadata"]["resourceVersion"]
    # Twice: etcd keeps the newest compacted revision, without its previous value, and the server makes a 500 of it.
    for last in (8, 9):
        kube.put_slice("default", "orders-0", "orders", [f"10.0.0.{last}"])
    kube.compact()
    assert kube.client.get(path, params={"limit": 1, "continue": token}).status_code == 410
    kind, status = next(kube.watch(path, version))
    assert (kind, status["code"]) == ("ERROR", 410)


def test_watch_cache_forgets_after_restart(own_kube: Callable[..., KubeCluster]) -> None:
    kube = own_kube("v1beta1")
    version = kube.create_service("default", "orders")["metadata"]["resourceVersion"]
    kube.create_node("node-a")
    kube.compact(forget=True)
    kind, status = next(kube.watch("/api/v1/namespaces/default/services", version))
    assert (kind, status["code"]) == ("ERROR", 410)


def test_api_server_dies_pauses_and_returns(own_kube: Callable[..., KubeCluster]) -> None:
    kube = own_kube("v1", controllers=False)
    kube.put_slice("default", "orders-a", "orders", ["10.0.0.1"])
    kube.pause_api()
    with pytest.raises(httpx.TimeoutException):
        kube.client.get("/readyz", timeout=0.5)
    kube.resume_api()
    assert kube.client.get("/readyz").text == "ok"
    kube.kill_api()
    assert not can_connect("127.0.0.1", kube.port)
    kube.start_api()
    assert list(kube.slice_endpoints("default", "orders")) == ["10.0.0.1"]


def test_tokens_and_roles(kube_v1: KubeCluster, namespace: Namespace) -> None:
    kube, ns = kube_v1, namespace(kube_v1)
    path = f"/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices"
    with client_with(kube, kube.service_account(ns, "reader")) as client:
        refused = client.get(path)
        assert (refused.status_code, refused.json()["reason"]) == (403, "Forbidden")
        kube.grant(ns, "reader")
        wait_for(lambda: client.get(path).is_success, what="the new role to count")
        assert client.get("/api/v1/namespaces/default/services").status_code == 403
        assert client.post(path, json={}).status_code == 403
    with client_with(kube, kube.service_account(ns, "reader", legacy=True)) as client:
        assert client.get(path).is_success
    with client_with(kube, "nonsense") as client:
        assert client.get(path).status_code == 401


@pytest.mark.slow
def test_short_token_expires(kube_v1: KubeCluster, namespace: Namespace) -> None:
    kube, ns = kube_v1, namespace(kube_v1)
    path = f"/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices"
    token = kube.service_account(ns, "reader", expires_in=2)
    kube.grant(ns, "reader")
    with client_with(kube, token) as client:
        assert client.get(path).is_success
        wait_for(
            lambda: client.get(path).status_code == 401, timeout=20, interval=0.2, what="the token to expire"
        )


def test_loopback_addresses_are_accepted_by_this_server(
    kube_v1beta1: KubeCluster, namespace: Namespace
) -> None:
    """CVE-2021-25737: why the client checks addresses itself."""
    if kube_v1beta1._binaries.minor > 20:
        pytest.skip("newer servers refuse them")
    ns = namespace(kube_v1beta1)
    kube_v1beta1.put_slice(ns, "evil", "orders", ["127.0.0.1", "169.254.169.254"])
    assert set(kube_v1beta1.slice_endpoints(ns, "orders")) == {"127.0.0.1", "169.254.169.254"}


# DNS


def records(answer: dns.message.Message) -> set[str]:
    return {str(record) for rrset in answer.answer for record in rrset}


def test_knot_changes_live(knot: Knot) -> None:
    name = knot.fresh_name()
    assert knot.query(name).rcode() == dns.rcode.NXDOMAIN
    knot.set_records(name, "A", ["10.0.0.1", "10.0.0.2"], ttl=7)
    answer = knot.query(name)
    assert records(answer) == {"10.0.0.1", "10.0.0.2"}
    assert answer.answer[0].ttl == 7
    knot.set_records(name, "A", ["10.0.0.3"])
    knot.set_records(f"_grpc._tcp.{name}", "SRV", [f"0 5 8080 {name}."])
    assert records(knot.query(name)) == {"10.0.0.3"}
    assert records(knot.query(f"_grpc._tcp.{name}", "SRV")) == {f"0 5 8080 {name}."}
    knot.delete(name)
    assert knot.query(name, "A").answer == []


def test_unbound_caches_and_misbehaves(knot: Knot, unbound: Unbound) -> None:
    name = knot.fresh_name()
    knot.set_records(name, "A", ["10.0.0.1"], ttl=60)
    assert records(unbound.query(name)) == {"10.0.0.1"}
    knot.set_records(name, "A", ["10.0.0.2"], ttl=60)
    assert records(unbound.query(name)) == {"10.0.0.1"}, "the old answer is still good"
    unbound.flush(name)
    assert records(unbound.query(name)) == {"10.0.0.2"}

    unbound.drop(name)
    with pytest.raises(dns.exception.Timeout):
        unbound.query(name, timeout=0.3)
    unbound.refuse(name)
    assert unbound.query(name).rcode() == dns.rcode.REFUSED
    unbound.nxdomain(name)
    assert unbound.query(name).rcode() == dns.rcode.NXDOMAIN
    unbound.nodata(name)
    assert (unbound.query(name).rcode(), records(unbound.query(name))) == (dns.rcode.NOERROR, set())
    unbound.servfail(name)
    assert unbound.query(name).rcode() == dns.rcode.SERVFAIL
    unbound.clear()
    assert records(unbound.query(name)) == {"10.0.0.2"}


@pytest.fixture
def dnsmasq(tmp_path: Path) -> Iterator[Dnsmasq]:
    from tests.components.dns import Dnsmasq

    many = [f"10.0.1.{number}" for number in range(1, 101)]
    try:
        server = Dnsmasq(tmp_path, {"many.mesh.test": many})
    except NotAvailable as error:
        leave_out("dns", error)
    with server:
        yield server


@pytest.mark.dns
def test_dnsmasq_truncates_in_the_middle(dnsmasq: Dnsmasq) -> None:
    answer = dnsmasq.query("many.mesh.test")
    assert answer.flags & dns.flags.TC
    assert 0 < len(records(answer)) < 100
    assert len(records(dnsmasq.query("many.mesh.test", tcp=True))) == 100


# backends


@pytest.mark.parametrize("http2", [False, True])
def test_http_backends_count_and_fail(backends: Backends, http2: bool) -> None:
    one, two = backends.http(2)
    assert one.port == two.port
    assert one.host != two.host
    with httpx.Client(http1=not http2, http2=http2) as client:
        assert [client.get(b.url).text for b in (one, two, two)] == [one.name, two.name, two.name]
        assert (one.requests, two.requests, two.accepted) == (1, 2, 1)
        assert client.post(f"{one.url}/echo", content=b"x" * 200_000).content == b"x" * 200_000
        assert client.get(f"{one.url}/stream/3/0").text.count("\n") == 3
        one.status = 503
        assert client.get(one.url).status_code == 503
        for fault in ("close", "truncate"):
            one.fault = fault
            with pytest.raises(httpx.TransportError):
                client.get(one.url)
        one.delay = float("inf")
        with pytest.raises(httpx.ReadTimeout):
            client.get(one.url, timeout=0.2)
        if http2:  # the connection lives on, and httpx does not cancel the stream
            one.delay = 0
        wait_for(lambda: one.in_flight == 0)
        two.stop()
        with pytest.raises(httpx.TransportError):
            client.get(two.url)
        two.start()
        assert client.get(two.url).text == two.name


def test_http_backend_tls(backends: Backends) -> None:
    [backend] = backends.http(tls="orders.shop.svc")
    name = {"sni_hostname": "orders.shop.svc"}
    for http2 in (False, True):
        with httpx.Client(http2=http2, verify=backends.client_context()) as client:
            answer = client.get(backend.url, extensions=name)
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    with (
        httpx.Client(verify=backends.client_context()) as client,
        pytest.raises(httpx.ConnectError, match="certificate"),
    ):
        client.get(backend.url)


def test_grpc_backends_all_arities(backends: Backends) -> None:
    one, two = backends.grpc(2)
    assert one.port == two.port
    with grpc.insecure_channel(one.address) as channel:
        call = channel.unary_unary("/test.Echo/UnaryUnary")
        assert call(b"a") == one.name.encode() + b":a"
        assert len(list(channel.unary_stream("/test.Echo/UnaryStream")(b"a"))) == 5
        assert (
            channel.stream_unary("/test.Echo/StreamUnary")(iter([b"a", b"b"])) == one.name.encode() + b":a,b"
        )
        assert len(list(channel.stream_stream("/test.Echo/StreamStream")(iter([b"a", b"b"])))) == 2
        assert (one.requests, two.requests) == (4, 0)
        one.status = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as failed:
            call(b"a")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        one.status, one.delay = grpc.StatusCode.OK, 60
        pending = call.future(b"a")
        wait_for(lambda: one.in_flight == 1)
        one.stop()
        assert pending.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        one.delay = 0
        one.start()
        assert call(b"b", wait_for_ready=True, timeout=20) == one.name.encode() + b":b"


def test_grpc_backend_tls(backends: Backends) -> None:
    [backend] = backends.grpc(tls="orders.shop.svc")
    credentials = grpc.ssl_channel_credentials(backends.ca_pem)
    options = [("grpc.ssl_target_name_override", "orders.shop.svc")]
    with grpc.secure_channel(backend.address, credentials, options) as channel:
        assert channel.unary_unary("/test.Echo/UnaryUnary")(b"a") == backend.name.encode() + b":a"
