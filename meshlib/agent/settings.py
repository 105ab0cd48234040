"""AgentSettings: everything that a person may set about the node agent, checked once.

Where the values come from (file, environment, flags) is another module's business: here are plain values, what they
mean, why the default is what it is, and what is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Literal

from meshlib.errors import ConfigError
from meshlib.model.names import MAX_NAME, MAX_PORT

Mode = Literal["auto", "ipvs", "nftables", "iptables", "userspace"]
LocalDetection = Literal["node", "cluster", "none"]
KernelAffinity = Literal["persistent", "exact"]
VipBinding = Literal["anyip", "dummy"]
Companion = Literal["nftables", "iptables", "none"]

#: ip_vs_* schedulers of current kernels that need nothing but the packet (lblc and lblcr are for caches).
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf")
MAX_TIMEOUT = 31 * 86400  #: seconds; the kernel counts in ticks of an int, and nobody means more than a month

_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("auto", "ipvs", "nftables", "iptables", "userspace"),
    "scheduler": SCHEDULERS,
    "affinity": ("persistent", "exact"),
    "detect_local": ("node", "cluster", "none"),
    "vip_binding": ("anyip", "dummy"),
    "companion": ("nftables", "iptables", "none"),
}
#: The room that private addresses need for their choices: the longest prefix.
_PRIVATE_PREFIX = 8
_NETWORKS = (
    "pod_cidrs",
    "cluster_cidrs",
    "service_cidrs",
    "node_cidrs",
    "external_ip_cidrs",
    "node_port_addresses",
    "exclude_cidrs",
)
_ADDRESSES = ("node_addresses", "listen_addresses")
_BINDS = ("health_address", "metrics_address")
#: Seconds, with the least and the greatest value.
_SECONDS: dict[str, tuple[float, float]] = {
    "sync_period": (1.0, 86400.0),
    "min_sync_period": (0.0, 60.0),
    "drain_seconds": (0.0, 86400.0),
    "tcp_timeout": (0.0, MAX_TIMEOUT),
    "tcp_fin_timeout": (0.0, MAX_TIMEOUT),
    "udp_timeout": (0.0, MAX_TIMEOUT),
    "conntrack_tcp_established": (0.0, MAX_TIMEOUT),
    "conntrack_tcp_close_wait": (0.0, MAX_TIMEOUT),
}
_NUMBERS: dict[str, tuple[int, int]] = {
    "masquerade_bit": (0, 31),
    "sync_burst": (1, 100),
    "confirmations": (1, 100),
    "conntrack_max_per_core": (0, 1 << 24),
    "conntrack_min": (0, 1 << 31),
}
_FLAGS = (
    "masquerade_all",
    "strict_source_ranges",
    "allow_node_addresses",
    "silent_arp",
    "strict_arp",
    "adopt",
    "beside_kube_proxy",
    "take_over",
)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Immutable. The constructor checks everything and raises ConfigError with the key and what is allowed.

    Networks and addresses may be given in any spelling of ``ipaddress``; they are stored in the canonical one.
    """

    # -- who we are ------------------------------------------------------------------------------------------------
    #: The name of our Node object: which endpoints are local. Without it none is, and no hint applies.
    node_name: str = ""
    #: For a node without a Node object (file discovery); what the Node object says wins.
    zone: str = ""
    #: For a node without a Node object: its addresses, the one it talks from first.
    node_addresses: tuple[str, ...] = ()
    #: For a node without a Node object: networks of the pods on it.
    pod_cidrs: tuple[str, ...] = ()
    #: Families to program, each on its own.
    families: tuple[int, ...] = (4, 6)
    #: URL of the API server that does not lead through a Service, or "": as the credentials say. Programming the way to
    #: the API server through itself ends when it breaks (decision D15).
    api_server: str = ""

    # -- what is programmed ----------------------------------------------------------------------------------------
    #: auto: ipvs, else nftables, else iptables. Named explicitly there is no falling back (decision D13).
    mode: Mode = "auto"
    #: Only Services whose label service.kubernetes.io/service-proxy-name has this value; "": those without the label,
    #: as kube-proxy does. The way to start on one Service (decision D16).
    service_proxy_name: str = ""
    #: kube-proxy runs here too, and we are told to live with it: only together with service_proxy_name.
    beside_kube_proxy: bool = False
    #: kube-proxy's rules are still here and are being replaced: ours go before them (`agent handover`).
    take_over: bool = False
    #: For Services that do not ask for one; kube-proxy's default.
    scheduler: str = "rr"
    #: persistent: IPVS's own (per address, ends about a minute late); exact: by nftables, on time.
    affinity: KernelAffinity = "persistent"
    #: userspace mode listens on these addresses only, and has no others (decision D13).
    listen_addresses: tuple[str, ...] = ()

    # -- masquerade ------------------------------------------------------------------------------------------------
    #: Replace the source address of everything that goes to a ClusterIP.
    masquerade_all: bool = False
    masquerade_bit: int = 14  #: kube-proxy's, so that CNI plugins that know 0x4000 know us
    #: How traffic of pods is told from other traffic to a ClusterIP: by the node's own podCIDRs, by cluster_cidrs, or
    #: not at all (then nothing is masqueraded there).
    detect_local: LocalDetection = "node"
    cluster_cidrs: tuple[str, ...] = ()  #: pods of the whole cluster

    # -- what tenants may claim (decision D14) ---------------------------------------------------------------------
    #: spec.externalIPs count only inside these; none: never (CVE-2020-8554).
    external_ip_cidrs: tuple[str, ...] = ()
    #: Where ClusterIPs come from, beside what the cluster's ServiceCIDR objects say: no load-balancer address may lie
    #: here, and an address that no Service has answers nothing (unless service_proxy_name says that others serve here).
    service_cidrs: tuple[str, ...] = ()
    #: Addresses of nodes: no load-balancer address may lie here. Our own are known without.
    node_cidrs: tuple[str, ...] = ()
    #: Let load-balancer addresses be node addresses all the same (a bare-metal load balancer that announces them).
    allow_node_addresses: bool = False
    #: Source ranges of the other family only: deny everybody, instead of (like kube-proxy) restrict nobody.
    strict_source_ranges: bool = False

    # -- node ports and addresses ----------------------------------------------------------------------------------
    #: CIDRs of host addresses that answer node ports; none: the node's own address; 0.0.0.0/0, ::/0: all of them.
    node_port_addresses: tuple[str, ...] = ()
    #: How virtual addresses become the node's own in mode ipvs: local routes, or addresses of the device meshlib0 (for
    #: container networks that look for addresses on devices).
    vip_binding: VipBinding = "anyip"
    #: What says in mode ipvs what virtual servers cannot: drop, masquerade, source ranges, exact affinity. iptables is
    #: for kernels whose nf_tables lacks these families. none: nothing does, and a Service that needs it is served
    #: without.
    companion: Companion = "nftables"
    #: Where mode ipvs has private virtual servers, which nobody else may use: IPv4, /8 or larger. Clusters that number
    #: their pods out of 240.0.0.0/4 give another part of it.
    private_cidr: str = "240.0.0.0/4"
    #: No answer to ARP for virtual addresses that no device has (mode ipvs, with the nftables companion).
    silent_arp: bool = True
    strict_arp: bool = False  #: arp_ignore/arp_announce for the whole host: breaks some CNI plugins
    exclude_cidrs: tuple[str, ...] = ()  #: virtual servers here are never touched: a fence beside the ledger
    adopt: bool = False  #: take over a foreign virtual server that equals a wanted one

    # -- pace ------------------------------------------------------------------------------------------------------
    sync_period: float = 30.0  #: seconds between two whole audits; kube-proxy's
    min_sync_period: float = 1.0  #: seconds between two writes, after a burst; kube-proxy's
    sync_burst: int = 2  #: so that a single change after silence is written at once
    #: Seconds that a removed endpoint keeps its established connections. kube-proxy waits for ever.
    drain_seconds: float = 900.0
    #: Largest share of all frontends that may go at once or within five minutes; more waits for `confirmations` further
    #: complete lists.
    panic_share: float = 0.5
    confirmations: int = 2  #: complete lists of the source that a large removal has to outlive

    # -- kernel timeouts and tables --------------------------------------------------------------------------------
    # Seconds; 0 leaves the kernel's own (900, 120, 300). They are the host's, so only on request.
    tcp_timeout: float = 0.0
    tcp_fin_timeout: float = 0.0
    udp_timeout: float = 0.0
    # kube-proxy's, only ever raised; 0 leaves them alone.
    conntrack_max_per_core: int = 32768
    conntrack_min: int = 131072
    conntrack_tcp_established: float = 86400.0
    conntrack_tcp_close_wait: float = 3600.0

    # -- listeners -------------------------------------------------------------------------------------------------
    health_address: str = "0.0.0.0:10256"  #: kube-proxy's; load balancers ask here. "": none
    metrics_address: str = "127.0.0.1:10249"  #: kube-proxy's. "": none

    def __post_init__(self) -> None:
        for key in ("node_name", "zone", "service_proxy_name"):
            text = getattr(self, key)
            if not isinstance(text, str) or len(text) > MAX_NAME or not text.isprintable():
                raise ConfigError(key, f"{text!r:.80} is not a name")
        if not isinstance(self.api_server, str):
            raise ConfigError("api_server", f"{self.api_server!r:.80} is not a URL")
        if (
            not self.families
            or not set(self.families) <= {4, 6}
            or len(set(self.families)) != len(self.families)
        ):
            raise ConfigError("families", f"{self.families!r:.80} is not 4, 6 or both")
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ConfigError(
                    key, f"{getattr(self, key)!r:.80} is unknown", f"one of {', '.join(choices)}"
                )
        for key in _NETWORKS:
            self._put(key, tuple(_network(text, key) for text in _texts(getattr(self, key), key)))
        for key in _ADDRESSES:
            self._put(key, tuple(_address(text, key) for text in _texts(getattr(self, key), key)))
        for key in _BINDS:
            self._put(key, _bind(getattr(self, key), key))
        for key, (least, most) in _SECONDS.items():
            self._put(key, float(_number(getattr(self, key), key, least, most, "seconds")))
        for key, bounds in _NUMBERS.items():
            value = _number(getattr(self, key), key, *bounds, "")
            if value != int(value):
                raise ConfigError(key, f"{value!r} is not a whole number")
            self._put(key, int(value))
        self._put("panic_share", float(_number(self.panic_share, "panic_share", 0.0, 1.0, "a share")))
        for key in _FLAGS:
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(key, f"{getattr(self, key)!r:.80} is not true or false")
        self._check_together()

    def _check_together(self) -> None:
        if self.mode == "userspace" and not self.listen_addresses:
            raise ConfigError("listen_addresses", "userspace mode needs them", "for example 127.0.0.1")
        if self.mode != "userspace" and self.listen_addresses:
            raise ConfigError("listen_addresses", f"has no meaning in mode {self.mode}")
        if self.beside_kube_proxy and not self.service_proxy_name:
            raise ConfigError(
                "beside_kube_proxy",
                "two proxies on the same Services fight",
                "set service_proxy_name as well",
            )
        if self.beside_kube_proxy and self.take_over:
            raise ConfigError("take_over", "contradicts beside_kube_proxy", "set one of the two")
        if self.companion == "iptables" and self.vip_binding == "dummy":
            # The node would talk from virtual addresses, and these chains masquerade none of them.
            raise ConfigError("companion", "iptables does not go with vip_binding = dummy", "use anyip")
        self._check_private()
        if self.detect_local == "cluster" and not self.cluster_cidrs:
            raise ConfigError("detect_local", "cluster needs cluster_cidrs")
        if self.min_sync_period > self.sync_period:
            raise ConfigError("min_sync_period", f"is longer than sync_period ({self.sync_period} s)")

    def _check_private(self) -> None:
        """One address for a Service and for what stands for another one would mix their endpoints."""
        if not isinstance(self.private_cidr, str):
            raise ConfigError("private_cidr", f"{self.private_cidr!r:.80} is not a network")
        text = _network(self.private_cidr, "private_cidr")
        block = ip_network(text)
        if block.version != 4 or block.prefixlen > _PRIVATE_PREFIX:
            raise ConfigError(
                "private_cidr", f"{text} is too small, or not of IPv4", f"/{_PRIVATE_PREFIX} or larger"
            )
        for key in _NETWORKS:
            for used in networks(getattr(self, key), 4):
                # Everything (0.0.0.0/0) is a way to say that there is no restriction.
                if used.prefixlen and used.overlaps(block):
                    raise ConfigError(
                        "private_cidr", f"{text} overlaps {used} of {key}", "name a free network"
                    )
        self._put("private_cidr", text)

    def _put(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)


def agent_settings(values: Mapping[str, Any]) -> AgentSettings:
    """From plain values by key, as a file or flags give them (lists for tuples). Raises ConfigError."""
    known = {each.name for each in fields(AgentSettings)}
    for key in values:
        if key not in known:
            raise ConfigError(key, "unknown setting", f"known: {', '.join(sorted(known))}")
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return AgentSettings(**given)


def _texts(value: object, key: str) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise ConfigError(key, f"{value!r:.80} is not a list of texts")
    return value


def _network(text: str, key: str) -> str:
    try:
        return str(ip_network(text.strip(), strict=False))
    except ValueError:
        raise ConfigError(
            key, f"{text!r:.80} is not a network", "write it like 10.0.0.0/8 or fd00::/8"
        ) from None


def _address(text: str, key: str) -> str:
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        raise ConfigError(key, f"{text!r:.80} is not an IP address") from None


def _bind(text: object, key: str) -> str:
    if text == "":
        return ""
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    bare = host.removeprefix("[").removesuffix("]")
    if not (port.isascii() and port.isdigit() and 0 <= int(port[:6]) <= MAX_PORT):
        raise ConfigError(key, f"{text!r:.80} is not an address and a port", "write it like 127.0.0.1:10249")
    if (":" in bare) != (bare != host):
        raise ConfigError(key, f"{text!r:.80} is ambiguous", "write IPv6 in brackets: [::]:10256")
    address = _address(bare, key)
    return f"[{address}]:{int(port)}" if ":" in address else f"{address}:{int(port)}"


def _number(value: object, key: str, least: float, most: float, unit: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ConfigError(key, f"{value!r:.80} is not a number")
    if not least <= value <= most:
        raise ConfigError(
            key, f"{value} is not within {least:g} to {most:g}" + (f" ({unit})" if unit else "")
        )
    return value


def networks(texts: tuple[str, ...], family: int) -> tuple[IPv4Network | IPv6Network, ...]:
    """Those of one family, of networks that a setting holds."""
    return tuple(net for net in map(ip_network, texts) if net.version == family)
