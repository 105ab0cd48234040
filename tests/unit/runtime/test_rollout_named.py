"""Mode off and targets that the code names itself: what docs/rollout.md says of their discovery."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlib.discovery.dns import lookup
from meshlib.errors import AccessDenied
from meshlib.model.update import Failure
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.testing.manual import ManualResolver

TARGET = "k8s:///orders.shop:80"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No meshlib.toml, and a DNS server that knows two addresses of everything."""
    monkeypatch.chdir(tmp_path)

    async def two(host: str, context: object, timeout: float) -> tuple[str, ...]:
        return ("10.9.9.1", "10.9.9.2")

    monkeypatch.setattr(lookup, "addresses", two)


def picks(resolver: ManualResolver, count: int) -> tuple[set[str], int]:
    """The addresses of so many picks in mode off, and how many of them count as bare."""
    config = load_config({"mode": "off", "sync_timeout": 30.0}, {})
    with Mesh(config=config, resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        found = set()
        for _ in range(count):
            with handle.pick() as endpoint:
                found.add(endpoint.address)
        return found, handle.rollout.counts().bare_off


def test_the_first_pick_waits_for_discovery() -> None:
    """It starts in mode off, too: the Service's own address comes from there."""
    resolver = ManualResolver("k8s")
    resolver.endpoints("shop/orders", ["10.0.0.1:80"], cluster_ips=("10.96.0.7",))
    assert picks(resolver, 4) == ({"10.96.0.7"}, 4)
    assert resolver.watched


def test_a_target_of_which_nothing_is_known_goes_to_what_dns_says() -> None:
    """And those picks are not counted as bare."""
    resolver = ManualResolver("k8s")
    resolver.publish("shop/orders", Failure(AccessDenied("no right to list"), hopeless=True))
    found, bare = picks(resolver, 16)
    assert found == {"10.9.9.1", "10.9.9.2"}
    assert bare == 0
