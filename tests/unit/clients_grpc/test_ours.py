"""Whose channel: the table of docs/transparent.md, row by row, and the proxy rules of grpc core."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.clients.grpc.ours import ByHost, Ours, whose

LB = (("grpc.lb_policy_name", "round_robin"),)
CONFIG = (("grpc.service_config", "{}"),)


@pytest.mark.parametrize(
    "target, expected",
    [
        ("k8s:///orders.shop:grpc", Ours("k8s", "k8s:///orders.shop:grpc")),
        ("K8S:///orders.shop:grpc", Ours("k8s", "K8S:///orders.shop:grpc")),
        ("static:///10.0.0.1:80", Ours("static", "static:///10.0.0.1:80")),
        (
            "dns:///orders.shop.svc:50051",
            Ours("dns", "dns:///orders.shop.svc:50051", "orders.shop.svc:50051"),
        ),
        ("dns://10.0.0.10/orders:80", Ours("dns", "dns://10.0.0.10/orders:80", "orders:80")),
        ("orders.shop.svc:50051", ByHost("orders.shop.svc", 50051, "orders.shop.svc:50051")),
        ("ORDERS.shop.svc.:1", ByHost("ORDERS.shop.svc.", 1, "ORDERS.shop.svc.:1")),
        ("orders:50051", ByHost("orders", 50051, "orders:50051")),
        ("orders.shop.svc", None),
        ("dns:orders.shop.svc:50051", None),
        ("ipv4:10.0.0.1:80", None),
        ("ipv4://10.0.0.1:80", None),
        ("[fd00::1]:80", None),
        ("unix:///run/app.sock", None),
        ("unix:/run/app.sock", None),
        ("xds:///orders", None),
        (b"orders.shop.svc:50051", None),
    ],
)
def test_whose(target: Any, expected: Any) -> None:
    """Without options or proxies."""
    assert whose(target, (), {}) == expected


@pytest.mark.parametrize("options", [LB, CONFIG, ((b"grpc.lb_policy_name", b"pick_first"),)])
@pytest.mark.parametrize("target", ["dns:///orders.shop.svc:50051", "orders.shop.svc:50051"])
def test_own_balancing_is_left_to_grpc(target: str, options: Any) -> None:
    """Decision D10: whoever brings a policy or a service config for a DNS name means it."""
    assert whose(target, options, {}) is None


def test_own_balancing_of_a_target_that_only_we_know() -> None:
    """grpc could not resolve it at all."""
    assert whose("k8s:///orders.shop:grpc", LB, {}) is not None


@pytest.mark.parametrize(
    "environ, options, ours",
    [
        ({"https_proxy": "http://proxy:3128"}, (), False),
        ({"grpc_proxy": "http://proxy:3128"}, (), False),
        ({"HTTPS_PROXY": "http://proxy:3128"}, (), True),  # core reads lower case only
        ({"https_proxy": "http://proxy:3128", "no_proxy": "localhost,.svc"}, (), True),
        ({"https_proxy": "http://proxy:3128", "no_grpc_proxy": "other", "no_proxy": ".svc"}, (), False),
        ({"https_proxy": "http://proxy:3128"}, (("grpc.enable_http_proxy", 0),), True),
        ({}, (("grpc.http_proxy", "http://proxy:3128"),), False),
    ],
)
@pytest.mark.parametrize("target", ["dns:///orders.shop.svc:50051", "orders.shop.svc:50051"])
def test_proxies_are_left_alone(target: str, environ: Any, options: Any, ours: bool) -> None:
    """What grpc would send through a proxy, it still does."""
    assert (whose(target, options, environ) is not None) is ours


def test_no_proxy_may_be_a_network() -> None:
    """As core reads it."""
    environ = {"http_proxy": "http://proxy:3128", "no_proxy": "10.0.0.0/8"}
    assert whose("dns:///10.1.2.3:80", (), environ) is not None
    assert whose("dns:///11.1.2.3:80", (), environ) is None


def test_a_proxy_does_not_matter_for_what_grpc_cannot_resolve() -> None:
    """k8s:/// never went through one."""
    assert whose("k8s:///orders.shop:grpc", (), {"https_proxy": "http://proxy:3128"}) is not None
