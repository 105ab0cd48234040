"""Target strings: what each form means, and where an error points."""

from __future__ import annotations

import pytest

from meshlib.errors import TargetError
from meshlib.model.target import StaticAddress, Target, TargetDefaults

DEFAULTS = TargetDefaults(namespace="shop", cluster_domain="k8s.example")

GOOD = {
    "k8s:///orders.eu:http": Target.kubernetes("orders", "eu", "http"),
    "k8s:///orders:8080": Target.kubernetes("orders", "shop", 8080),
    "kubernetes:///orders.eu:8080": Target.kubernetes("orders", "eu", 8080),
    "K8S:///orders.eu:1": Target.kubernetes("orders", "eu", 1),
    "k8s:///orders.eu:8080-tcp": Target.kubernetes("orders", "eu", "8080-tcp"),
    "orders.eu.svc:80": Target.kubernetes("orders", "eu", 80, by_host=True),
    "orders.eu.svc.:80": Target.kubernetes("orders", "eu", 80, by_host=True),
    "Orders.EU.svc.K8S.Example:http": Target.kubernetes("orders", "eu", "http", by_host=True),
    "orders.eu.svc.k8s.example.:80": Target.kubernetes("orders", "eu", 80, by_host=True),
    "db-0.db.eu.svc:5432": Target.kubernetes("db", "eu", 5432, hostname="db-0", by_host=True),
    "dns:///api.example.com:443": Target(
        "dns", name="api.example.com", port=443, authority="api.example.com"
    ),
    "dns:///API.example.com.:443": Target(
        "dns", name="api.example.com.", port=443, authority="api.example.com"
    ),
    "dns:///127.0.0.1:80": Target("dns", name="127.0.0.1", port=80, authority="127.0.0.1"),
    "dns:///[FD00:0::1]:80": Target("dns", name="fd00::1", port=80, authority="[fd00::1]"),
    "dns://10.0.0.10/a.b:1": Target("dns", name="a.b", port=1, server="10.0.0.10:53", authority="a.b"),
    "dns://[fd00::a]:5353/a.b:1": Target("dns", name="a.b", port=1, server="[fd00::a]:5353", authority="a.b"),
    "dns+srv:///_http._tcp.api.example.com": Target(
        "dns+srv", name="_http._tcp.api.example.com", authority="api.example.com"
    ),
    "static:///10.0.0.1:80,[fd00::1]:81;weight=3,127.0.0.1:1;weight=0": Target(
        "static",
        addresses=(
            StaticAddress("10.0.0.1", 80),
            StaticAddress("fd00::1", 81, 3),
            StaticAddress("127.0.0.1", 1, 0),
        ),
        authority="10.0.0.1",
    ),
    "file:///etc/mesh/shop.yaml#eu/orders:http": Target(
        "file",
        name="orders",
        namespace="eu",
        port="http",
        path="/etc/mesh/shop.yaml",
        authority="orders.eu.svc",
    ),
    "file:///etc/mesh/#eu/orders:80": Target(
        "file", name="orders", namespace="eu", port=80, path="/etc/mesh", authority="orders.eu.svc"
    ),
    "consul://agent:8500/Orders?tag=a%20b": Target("consul", path="agent:8500/Orders?tag=a%20b"),
}

# text: the part that the error points at, and a word of the reason or hint
BAD = {
    "": ("", "empty"),
    "k8s://orders.eu:80": ("orders.eu:80", "three slashes"),
    "k8s:///orders.eu": ("orders.eu", "port is missing"),
    "k8s:///orders.eu:": ("", "port is missing"),
    "k8s:///orders.eu:0": ("0", "1 to 65535"),
    "k8s:///orders.eu:65536": ("65536", "1 to 65535"),
    "k8s:///orders.eu:" + "9" * 5000: ("9" * 5000, "1 to 65535"),
    "k8s:///orders.eu:080": ("080", "leading zeros"),
    "k8s:///orders.eu:-1": ("-1", "number"),
    "k8s:///orders.eu:٨٠": ("٨٠", "number"),
    "k8s:///orders.eu:Http": ("Http", "name of a Service port"),
    "k8s:///:80": ("", "Service name is missing"),
    "k8s:///orders.:80": ("", "namespace is missing"),
    "k8s:///Orders.eu:80": ("Orders", "write orders"),
    "k8s:///orders.*:80": ("*", "wildcards"),
    "k8s:///../eu:80": ("../eu", "stand before the port"),
    "k8s:///a/../b.eu:80": ("a/../b.eu", "stand before the port"),
    "k8s:///orders.eu/x:80": ("eu/x", "not a namespace"),
    "k8s:///orders.a),x in (b:80": (" ", "cannot be part"),
    "k8s:///orders.a),x(b:80": ("a),x(b", "not a namespace"),
    "k8s:///orders%2e.eu:80": ("orders%2e", "percent"),
    "k8s:///user@orders.eu:80": ("user@", "user"),
    "k8s:///orders.eu.svc.cluster.local:80": ("orders.eu.svc.cluster.local", "k8s:///orders.eu:80"),
    "k8s:///a.b.c:80": ("a.b.c", "NAME.NAMESPACE"),
    "k8s:///" + "a" * 64 + ":80": ("a" * 64, "63 characters"),
    "k8s:///-a:80": ("-a", "not a Service name"),
    "k8s:///orders.eu:80\n": ("\n", "remove"),
    "\tk8s:///orders.eu:80": ("\t", "remove"),
    "k8s:///orders.eu:80\0": ("\0", "remove"),
    "k8s:orders.eu:80": ("k8s:", "://"),
    "orders:80": ("orders", "k8s:///orders:80"),
    "orders.eu:80": ("orders.eu", "k8s:///orders.eu:80"),
    "orders.eu.svc": ("orders.eu.svc", "port is missing"),
    "orders.eu.svc:x/y": ("orders.eu.svc:x/y", "without a path"),
    "u@orders.eu.svc:80": ("u@", "user"),
    "orders.eu.svc.cluster.local:80": ("orders.eu.svc.cluster.local", "k8s.example"),
    "example.com:80": ("example.com", "k8s:///example.com:80"),
    "http://orders.eu.svc/": ("http://", "URL"),
    "dns:///api.example.com": ("api.example.com", "port is missing"),
    "dns:///api.example.com:http": ("http", "1 to 65535"),
    "dns:///api..com:80": ("api..com", "not a host name"),
    "dns:///a.b/c:80": ("/c:80", "slash"),
    "dns:///a%2eb:80": ("a%2eb", "percent"),
    "dns:///bücher.example:80": ("bücher.example", "xn--"),
    "dns:///127.1:80": ("127.1", "IP address"),
    "dns:///0x7f.1:80": ("0x7f.1", "IP address"),
    "dns:///010.0.0.1:80": ("010.0.0.1", "IP address"),
    "dns:///" + "a." * 127 + "a:80": ("a." * 127 + "a", "253"),
    "dns://resolver/a.b:1": ("resolver", "IP address"),
    "dns://a.b:1": ("a.b:1", "slash"),
    "dns+srv:///_http._tcp.x:80": (":80", "carry the port"),
    "dns+srv:///api.example.com": ("api.example.com", "_NAME._PROTO."),
    "static:///": ("", "address is missing"),
    "static:///10.0.0.1": ("10.0.0.1", "port is missing"),
    "static:///10.0.0.1:80,": ("", "address is missing"),
    "static:///localhost:80": ("localhost", "IP address"),
    "static:///127.1:80": ("127.1", "IP address"),
    "static:///0.0.0.0:80": ("0.0.0.0", "unspecified"),
    "static:///fd00::1:80": ("fd00::1:80", "brackets"),
    "static:///[fd00::1:80": ("[fd00::1:80", "not closed"),
    "static:///[10.0.0.1]:80": ("10.0.0.1", "IPv6"),
    "static:///[fd00::1]80": ("80", "may follow"),
    "static:///[fe80::1%eth0]:80": ("fe80::1%eth0", "zone"),
    "static:///10.0.0.1:80;weight=-1": ("-1", "weight"),
    "static:///10.0.0.1:80;weight=65536": ("65536", "weight"),
    "static:///10.0.0.1:80;tier=1": ("tier=1", "only option"),
    "static:///10.0.0.1:80;weight=1;weight=2": ("weight=2", "twice"),
    "static:///10.0.0.1:80,10.0.0.1:80": ("10.0.0.1:80", "twice"),
    "file://x/y#a/b:1": ("x/y#a/b:1", "absolute"),
    "file:///x": ("/x", "Service is missing"),
    "file:///x#orders:80": ("orders", "#NAMESPACE/orders:80"),
    "file:///x/../y#a/b:80": ("..", "'..'"),
    "file:///x//y#a/b:80": ("", "empty"),
    "file:///x%20y#a/b:80": ("/x%20y", "percent"),
    "file:///x#a/b": ("a/b", "port is missing"),
    "file:///x#*/b:80": ("*", "wildcards"),
    "consul://": ("consul://", "nothing follows"),
    "static:///" + "1" * 70000: ("static:///" + "1" * 70000, "longer"),
}


@pytest.mark.parametrize("text", GOOD)
def test_parses(text: str) -> None:
    """Every form gives the parts it names."""
    assert Target.parse(text, DEFAULTS) == GOOD[text]


@pytest.mark.parametrize("text", GOOD)
def test_canonical_text_means_the_same_under_any_defaults(text: str) -> None:
    """The canonical text of a target parses to the same target, wherever it is read."""
    target = Target.parse(text, DEFAULTS)
    assert Target.parse(str(target), TargetDefaults(namespace="elsewhere", cluster_domain="other")) == target


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text)[:60])
def test_error_points_at_the_part(text: str) -> None:
    """A wrong target is refused, the error points at the offending part and says what is wrong or what to write."""
    part, words = BAD[text]
    with pytest.raises(TargetError) as caught:
        Target.parse(text, DEFAULTS)
    error = caught.value
    assert error.text == text
    assert text[error.start : error.end] == part
    assert words in f"{error.reason} {error.hint}"
    assert error.reason in str(error)


def test_forms_of_one_service_share_a_target() -> None:
    """Host names that differ only in case, trailing dot and cluster domain are the same target, so they share state."""
    forms = ["orders.eu.svc:80", "ORDERS.eu.svc.:80", "orders.eu.svc.cluster.local:80"]
    assert len({Target.parse(form) for form in forms}) == 1
    assert Target.parse(forms[0]) != Target.parse("k8s:///orders.eu:80"), (
        "only the former is by host (headless ports)"
    )
