"""What comes and goes before anybody looks has never been."""

from __future__ import annotations

import pytest

from meshlib.agent.compile.compiler import Compiler
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import Service, ServiceKey, ServicePort
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

KEY = ServiceKey("shop", "orders")
SERVICE = Service(key=KEY, cluster_ips=("10.96.0.1",), ports=(ServicePort("http", 80),))


def facts(*pods: str) -> ServiceFacts:
    """The Service with these endpoints."""
    endpoints = tuple(SliceEndpoint(address=pod) for pod in pods)
    ports = (SlicePort("http", 8080),)
    slice_ = EndpointSlice(
        namespace="shop", name="orders-1", service=KEY, family=4, ports=ports, endpoints=endpoints
    )
    return ServiceFacts(SERVICE, (slice_,))


@pytest.mark.acceptance(20)
@pytest.mark.parametrize("before", [None, facts("10.1.0.1")], ids=["a Service", "an endpoint"])
def test_a_change_and_its_opposite_cancel_out(before: ServiceFacts | None) -> None:
    """Nothing is to be written, and the times of both are dropped: no latency is told of what never was."""
    compiler = Compiler(AgentSettings(), 4)
    start = ClusterChange({KEY: before} if before else {}, Node(), complete=True)
    compiler.update(start, None)
    comes = ClusterChange({KEY: facts("10.1.0.1", "10.1.0.2")}, triggers={KEY: (5.0,)})
    goes = ClusterChange({KEY: before or ServiceFacts(None, ())}, triggers={KEY: (6.0,)})
    assert compiler.update(comes, None).triggers == (5.0,)
    compiler.update(goes, None)
    together = compiler.update(comes.then(goes), None)
    assert not together
    assert together.triggers == ()
