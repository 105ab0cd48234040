"""The catalogue: names that both worlds accept, labels that hold no address."""

from __future__ import annotations

import re

import pytest

from meshlib.errors import NoLocalEndpoints
from meshlib.observe.catalogue import CATALOGUE, LABELS, Kind, error_type, target_label


def test_names_are_valid_and_used_once() -> None:
    """Prometheus' conventions: base units, _total for counters and for nothing else; OpenTelemetry's: dotted words."""
    names = [metric.prometheus for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        assert re.fullmatch(r"meshlib(_[a-z]+)+", metric.prometheus)
        assert re.fullmatch(r"meshlib(\.[a-z]+)+", metric.opentelemetry)
        assert metric.prometheus.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert ("_seconds" in metric.prometheus) == (metric.unit == "s")
        assert metric.help.endswith(".")


def test_every_label_is_described_and_only_two_metrics_are_per_endpoint() -> None:
    """An address is a label of those that are exported on request, and of no other."""
    assert {label for metric in CATALOGUE for label in metric.labels} == set(LABELS)
    assert {metric.prometheus for metric in CATALOGUE if metric.per_endpoint} == {
        "meshlib_endpoint_requests_total",
        "meshlib_endpoint_inflight_requests",
    }
    assert {metric for metric in CATALOGUE if "endpoint" in metric.labels} == {
        metric for metric in CATALOGUE if metric.per_endpoint
    }


@pytest.mark.parametrize(
    ("target", "label"),
    [
        ("k8s:///orders.shop:http", "k8s:///orders.shop:http"),
        ("static:///10.0.0.1:80", "static:///(1 address)"),
        ("static:///10.0.0.1:80;weight=2,[fd00::1]:80", "static:///(2 addresses)"),
    ],
)
def test_a_static_list_is_told_by_its_length(target: str, label: str) -> None:
    """Its addresses are often those of pods, which no label names."""
    assert target_label(target) == label


def test_an_error_is_told_by_its_class() -> None:
    """In the words of the documentation."""
    assert error_type(NoLocalEndpoints("x")) == "no_local_endpoints"
