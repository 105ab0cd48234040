"""AgentSettings: what is accepted and how it is stored, and what each refusal says."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.agent.settings import AgentSettings, agent_settings
from meshlib.errors import ConfigError


def test_defaults_are_those_of_kube_proxy() -> None:
    """Where kube-proxy has the same knob, the default is its own."""
    made = AgentSettings()
    assert (made.scheduler, made.masquerade_bit, made.masquerade_all) == ("rr", 14, False)
    assert (made.sync_period, made.min_sync_period) == (30.0, 1.0)
    assert (made.health_address, made.metrics_address) == ("0.0.0.0:10256", "127.0.0.1:10249")
    assert (made.conntrack_max_per_core, made.conntrack_min) == (32768, 131072)
    assert (made.conntrack_tcp_established, made.conntrack_tcp_close_wait) == (86400.0, 3600.0)


def test_nothing_is_claimable_by_default() -> None:
    """externalIPs and node addresses are nobody's unless somebody says so (decision D14)."""
    made = AgentSettings()
    assert made.external_ip_cidrs == ()
    assert made.allow_node_addresses is False
    assert made.adopt is False


def test_spelling_is_made_canonical() -> None:
    """Networks lose their host bits, addresses their zeros, and lists become tuples."""
    made = agent_settings(
        {
            "service_cidrs": ["10.96.1.2/12", " FD00:96:0::/64 "],
            "node_addresses": ["192.0.2.1", "2001:DB8:0::1"],
            "health_address": "[::]:010256",
            "metrics_address": "",
            "sync_period": 10,
        }
    )
    assert made.service_cidrs == ("10.96.0.0/12", "fd00:96::/64")
    assert made.node_addresses == ("192.0.2.1", "2001:db8::1")
    assert (made.health_address, made.metrics_address) == ("[::]:10256", "")
    assert made.sync_period == 10.0
    assert agent_settings({"node_port_addresses": ["192.0.2.7"]}).node_port_addresses == ("192.0.2.7/32",)


def test_private_addresses_are_nobody_elses() -> None:
    """A cluster that lives in the block has to name another part of it."""
    with pytest.raises(ConfigError) as refused:
        agent_settings({"cluster_cidrs": ["241.0.0.0/16"]})
    assert refused.value.where == "private_cidr"
    free = agent_settings({"cluster_cidrs": ["241.0.0.0/16"], "private_cidr": "250.1.2.3/8"})
    assert free.private_cidr == "250.0.0.0/8"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "ebpf"),
        ("mode", "userspace"),
        ("scheduler", "fastest"),
        ("affinity", "sticky"),
        ("detect_local", "cluster"),
        ("vip_binding", "bridge"),
        ("families", []),
        ("families", [4, 4]),
        ("families", [5]),
        ("node_name", "a\nb"),
        ("node_name", 7),
        ("api_server", None),
        ("service_cidrs", "10.0.0.0/8"),
        ("service_cidrs", ["10.0.0.0/33"]),
        ("service_cidrs", ["everything"]),
        ("service_cidrs", [10]),
        ("node_addresses", ["host.example"]),
        ("private_cidr", "240.0.0.0/9"),
        ("private_cidr", "fd00::/8"),
        ("private_cidr", "somewhere"),
        ("private_cidr", ["240.0.0.0/4"]),
        ("listen_addresses", ["127.0.0.1"]),
        ("masquerade_bit", 32),
        ("masquerade_bit", -1),
        ("masquerade_bit", 1.5),
        ("masquerade_bit", True),
        ("masquerade_all", "yes"),
        ("sync_period", 0),
        ("sync_period", "30s"),
        ("sync_period", float("nan")),
        ("min_sync_period", 45),
        ("drain_seconds", -1),
        ("panic_share", 1.1),
        ("confirmations", 0),
        ("health_address", "10256"),
        ("health_address", "localhost:10256"),
        ("health_address", "0.0.0.0:65536"),
        ("health_address", "0.0.0.0:99999999999"),
        ("health_address", ":::10256"),
        ("metrics_address", 10249),
        ("beside_kube_proxy", True),
        ("masqueradeBit", 14),
    ],
)
def test_refusals_name_the_key(key: str, value: Any) -> None:
    """Every value that cannot be meant is refused with the key that it stands under."""
    with pytest.raises(ConfigError) as refused:
        agent_settings({key: value})
    assert refused.value.where in (key, "listen_addresses")
    assert refused.value.reason


def test_what_belongs_together_is_accepted_together() -> None:
    """Beside kube-proxy with a name of our own, userspace with addresses, the cluster's ranges with their detection."""
    assert AgentSettings(beside_kube_proxy=True, service_proxy_name="meshlib").beside_kube_proxy
    assert AgentSettings(mode="userspace", listen_addresses=("127.0.0.1",)).listen_addresses == ("127.0.0.1",)
    made = AgentSettings(detect_local="cluster", cluster_cidrs=("10.0.0.0/8",))
    assert made.cluster_cidrs == ("10.0.0.0/8",)
