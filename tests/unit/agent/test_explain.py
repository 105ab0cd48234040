"""What ``agent explain`` says about an address and port, and how it notices a kernel that was changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.desired import FrontendKey
from meshlib.agent.explain import explain, parse_frontend
from meshlib.model.cluster import ClusterChange, Node
from tests.unit.agent.test_sweep import FRONTEND, KEY, World, facts


def test_served() -> None:
    """The Service, its endpoints and the reasons; the kernel agrees until somebody removes an object."""
    world = World()
    world.tell(facts("10.1.0.1"))
    found = explain(world.engine.families, FRONTEND)
    assert (found["served"], found["service"], found["port"]) == (True, "shop/dns", "dns")
    assert found["everybody"] == {
        "action": "forward",
        "endpoints": [{"address": "10.1.0.1", "port": 5353, "weight": 1}],
    }
    assert "pods' range is not known" in found["masquerade_why"]
    assert (found["kernel"]["missing"], found["kernel"]["different"]) == ([], [])
    assert len(found["kernel"]["objects"]) == 3
    gone = next(key for key in world.kernel.state if key.kind == "destination")
    del world.kernel.state[gone]
    assert len(explain(world.engine.families, FRONTEND)["kernel"]["missing"]) == 1


def test_why_not() -> None:
    """Another port of a virtual address, the node's own address, somebody else's, a family without a backend."""
    world = World()
    world.tell(facts("10.1.0.1"))
    families = world.engine.families

    def why(address: str, port: int, protocol: str = "UDP") -> str:
        found = explain(families, FrontendKey(protocol, address, port))
        assert not found["served"]
        return str(found["why"])

    assert why(FRONTEND.address, 54) == "a virtual address, but not this port: refused. Served there: 53/UDP"
    assert why(FRONTEND.address, 53, "TCP").endswith("53/UDP")
    assert "the host's own servers" in why("192.0.2.1", 22, "TCP")
    assert "not ours" in why("198.51.100.1", 80)
    assert "no backend" in why("2001:db8::1", 80)


def test_empty_and_unreadable() -> None:
    """No endpoint at all is refused; a kernel that cannot be read is told, and the rest is answered."""
    world = World()
    world.engine.tell(ClusterChange({KEY: facts()}, Node("n"), complete=True, lists=1))
    world.engine.step()

    def fails(family: int) -> object:
        raise PermissionError(1, "Operation not permitted")

    world.kernel.dump = fails  # type: ignore[method-assign,assignment]
    found = explain(world.engine.families, FRONTEND)
    assert found["everybody"]["action"] == "reject"
    assert found["why"].startswith("no endpoint anywhere is ready")
    assert "not permitted" in found["kernel"]["error"]


@pytest.mark.parametrize(
    ("text", "address", "port"), [("10.96.0.1:443", "10.96.0.1", 443), ("[FD00::1]:53", "fd00::1", 53)]
)
def test_asking(text: str, address: str, port: int) -> None:
    """IPv4, and IPv6 in brackets, in any spelling."""
    assert parse_frontend(text) == FrontendKey("TCP", address, port)


@pytest.mark.parametrize(
    "text", ["10.96.0.1", "fd00::1:53", "a:80", "10.96.0.1:0", "10.96.0.1:99999999999", ":"]
)
def test_asking_wrongly(text: str) -> None:
    """What is no address and port is refused in words."""
    with pytest.raises(ValueError, match=r"not ADDRESS:PORT|ambiguous|not an IP address"):
        parse_frontend(text)


@given(st.text(max_size=60))
def test_asking_with_any_text(text: str) -> None:
    """An address and port that can be printed back, or ValueError."""
    try:
        key = parse_frontend(text)
    except ValueError:
        return
    assert parse_frontend(str(key).removeprefix("TCP ")) == key
