"""Decision D1: which hosts of URLs are ours."""

from __future__ import annotations

import pytest

from meshlib.model.hosts import HostKind, cluster_domain_of, match_host
from meshlib.model.target import Target, TargetDefaults

POD = TargetDefaults(
    namespace="shop",
    cluster_domain="cluster.local",
    search=("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example.com"),
    ndots=5,
)
ALIASES = {
    "orders.example.com": Target.kubernetes("orders", "shop", "http"),
    "localhost:9000": Target.parse("static:///127.0.0.1:9001"),
}


def by_host(name: str, namespace: str, port: int, hostname: str = "") -> Target:
    return Target.kubernetes(name, namespace, port, hostname=hostname, by_host=True)


@pytest.mark.parametrize(
    ("scheme", "host", "port", "target"),
    [
        ("http", "orders.eu.svc", None, by_host("orders", "eu", 80)),
        ("https", "orders.eu.svc", None, by_host("orders", "eu", 443)),
        ("HTTP", "orders.eu.svc", 8080, by_host("orders", "eu", 8080)),
        ("http", "Orders.EU.SVC.", None, by_host("orders", "eu", 80)),
        ("http", "orders.eu.svc.cluster.local", None, by_host("orders", "eu", 80)),
        ("http", "orders.eu.svc.cluster.local.", None, by_host("orders", "eu", 80)),
        ("http", "db-0.db.eu.svc", 5432, by_host("db", "eu", 5432, "db-0")),
        ("http", "10-1-2-3.db.eu.svc.cluster.local", 80, by_host("db", "eu", 80, "10-1-2-3")),
    ],
)
def test_cluster_names(scheme: str, host: str, port: int | None, target: Target) -> None:
    """Cluster host names are ours with any case and trailing dot; the port defaults by scheme (D2)."""
    match = match_host(scheme, host, port, POD, {})
    assert (match.kind, match.target) == (HostKind.CLUSTER, target)


@pytest.mark.parametrize(
    ("host", "port"),
    [("orders.example.com", 80), ("ORDERS.example.com.", 8443), ("localhost", 9000)],
)
def test_aliases_come_first(host: str, port: int) -> None:
    """A host of the configuration is ours whatever it looks like; an alias may name a port."""
    match = match_host("http", host, port, POD, ALIASES)
    assert match.kind is HostKind.ALIAS
    assert match.target in ALIASES.values()


@pytest.mark.parametrize(
    ("host", "candidates"),
    [
        ("orders", [by_host("orders", "shop", 80)]),
        ("ORDERS", [by_host("orders", "shop", 80)]),
        ("orders.eu", [by_host("eu", "shop", 80, "orders"), by_host("orders", "eu", 80)]),
        ("db-0.db.eu", [by_host("db", "eu", 80, "db-0")]),
    ],
)
def test_short_names(host: str, candidates: list[Target]) -> None:
    """A short name gives the Services that the pod's resolver would try, in its order."""
    match = match_host("http", host, None, POD, {})
    assert match.kind is HostKind.SHORT
    assert list(match.targets) == candidates
    assert match.target is None


@pytest.mark.parametrize(
    ("host", "word"),
    [
        ("127.0.0.1", "IPv4"),
        ("127.1", "IPv4"),
        ("0x7f.1", "IPv4"),
        ("2130706433", "IPv4"),
        ("0", "IPv4"),
        ("010.0.0.1", "IPv4"),
        ("10.0.0.1.", "IPv4"),
        ("::1", "IPv6"),
        ("[fd00::1]", "IPv6"),
        ("localhost", "this machine"),
        ("LOCALHOST.", "this machine"),
        ("app.localhost", "this machine"),
        ("", "not a host name"),
        ("a b", "not a host name"),
        ("a..b", "not a host name"),
        ("bücher", "not a host name"),
        ("orders.", "ends in a dot"),
        ("orders.eu.", "ends in a dot"),
        ("a.b.c.d.e.f", "ndots"),
        ("a.b.c.d.e", "search list"),
        ("orders.eu.svc.other.domain.x", "ndots"),
    ],
)
def test_not_ours(host: str, word: str) -> None:
    """Addresses in any spelling, localhost, absolute and long names take the bare path, and the reason is told."""
    match = match_host("http", host, None, POD, {})
    assert match.kind is HostKind.NOT_OURS
    assert match.targets == ()
    assert word in match.reason


def test_short_names_can_be_switched_off() -> None:
    """With short_names = false a short name is not looked at, while full names still are ours."""
    assert match_host("http", "orders", None, POD, {}, short_names=False).kind is HostKind.NOT_OURS
    assert match_host("http", "orders.eu.svc", None, POD, {}, short_names=False).kind is HostKind.CLUSTER


def test_foreign_search_entry_ends_the_candidates() -> None:
    """What a resolver tries after a domain outside the cluster is not certain, so it does not count."""
    mixed = TargetDefaults(
        search=("shop.svc.cluster.local", "corp.example.com", "eu.svc.cluster.local"), ndots=5
    )
    match = match_host("http", "orders", None, mixed, {})
    assert match.targets == (by_host("orders", "shop", 80),)
    assert "corp.example.com" in match.reason
    first = TargetDefaults(search=("corp.example.com", "shop.svc.cluster.local"), ndots=5)
    assert match_host("http", "orders", None, first, {}).kind is HostKind.NOT_OURS


def test_a_search_entry_given_twice_is_tried_once() -> None:
    """Repeated search entries, in any spelling, give one candidate."""
    twice = TargetDefaults(search=("shop.svc.cluster.local", "shop.svc.Cluster.Local."), ndots=5)
    assert match_host("http", "orders", None, twice, {}).targets == (by_host("orders", "shop", 80),)


def test_outside_a_cluster_short_names_are_not_ours() -> None:
    """Without a search list, or with ndots 1 and a dotted name, nothing is a Service."""
    assert match_host("http", "orders", None, TargetDefaults(), {}).kind is HostKind.NOT_OURS
    laptop = TargetDefaults(search=("shop.svc.cluster.local",), ndots=1)
    assert match_host("http", "orders.eu", None, laptop, {}).kind is HostKind.NOT_OURS
    assert match_host("http", "orders", None, laptop, {}).kind is HostKind.SHORT


@pytest.mark.parametrize(("scheme", "port"), [("ws", None), ("http", 0), ("http", 65536), ("http", -1)])
def test_unusable_port(scheme: str, port: int | None) -> None:
    """No port for a scheme without a default, or an impossible one: the bare client shall say so."""
    assert match_host(scheme, "orders.eu.svc", port, POD, {}).kind is HostKind.NOT_OURS


def test_cluster_domain_from_search_list() -> None:
    """The cluster domain is what follows ``svc.`` in the pod's search list."""
    assert cluster_domain_of(POD.search) == "cluster.local"
    assert cluster_domain_of(("a.svc.k8s.example.", "SVC.k8s.example.")) == "k8s.example"
    assert cluster_domain_of(("corp.example.com", "svc.")) == ""
