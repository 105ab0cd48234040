"""What ``meshlib agent preflight`` looks at: one function per subject, each finding with its fix."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from meshlib.agent import coexist
from meshlib.agent.assembly import makers
from meshlib.agent.backends.ipvs.sysctls import kernel_version
from meshlib.agent.broker.privileges import NET_ADMIN, capabilities
from meshlib.agent.modes import AUTO
from meshlib.agent.netlink.messages import Malformed
from meshlib.agent.netlink.socket import NETFILTER, NetlinkSocket
from meshlib.agent.preparation import lacking, needed
from meshlib.agent.settings import AgentSettings
from meshlib.agent.surroundings import Chain, dropping, policies, read_chains
from meshlib.cli.agent.theirs import legacy_chains
from meshlib.cli.doctor.findings import Finding, lack, note, ok

#: The API server's default range of node ports (--service-node-port-range).
NODE_PORTS = (30000, 32767)
_PREPARE = "meshlib agent prepare   # as root, once per boot; the DaemonSet does it in its init container"


def check_rights(settings: AgentSettings) -> Iterator[Finding]:
    """The one capability that the agent needs."""
    if settings.mode == "userspace":
        yield ok("rights", "mode userspace needs none")
    elif capabilities() >> NET_ADMIN & 1:
        yield ok("rights", "CAP_NET_ADMIN is there")
    else:
        yield lack(
            "rights",
            "CAP_NET_ADMIN is missing: nothing can be programmed",
            "run it as root, or give the pod the capability (`meshlib agent manifests` does)",
        )


def check_modes(settings: AgentSettings) -> Iterator[Finding]:
    """What each mode says to a trial, and which one would be used."""
    found = makers(settings)
    usable: list[str] = []
    for name in AUTO if settings.mode == "auto" else (settings.mode,):
        make = found.get(name)
        if make is None:
            yield note("mode", f"{name}: this build of the agent does not have it")
            continue
        probes = {family: make(family).probe() for family in settings.families}
        good = [family for family, probe in probes.items() if probe.usable and family in probe.families]
        reason = "; ".join(dict.fromkeys(probe.reason for probe in probes.values()))
        if not good:
            yield note("mode", f"{name}: not usable: {reason}")
            continue
        usable.append(name)
        which = "" if len(usable) > 1 else " (would be used)"
        yield ok("mode", f"{name}{which}: IPv{', IPv'.join(map(str, good))}: {reason}")
        for family in settings.families:
            if family not in good:
                yield note("mode", f"{name}: IPv{family} is left out: {probes[family].reason}")
    if not usable:
        yield lack("mode", "no mode works on this kernel", _PREPARE)


def check_settings(settings: AgentSettings, root: Path = Path("/proc/sys")) -> Iterator[Finding]:
    """Kernel settings against what ``prepare`` would set."""
    wanted = needed(settings, kernel_version(platform.release()), os.cpu_count() or 1)
    there = lacking(wanted, root)
    for name, actual in there.items():
        if not actual:
            yield note("kernel", f"{name} does not exist here (a module is not loaded, or the family is off)")
        elif name in wanted.raise_only:
            yield note("kernel", f"{name} is {actual}, better {wanted.sysctls[name]}", _PREPARE)
        else:
            yield lack("kernel", f"{name} is {actual}, has to be {wanted.sysctls[name]}", _PREPARE)
    if not there:
        yield ok("kernel", f"{len(wanted.sysctls)} settings are as they should be")
    bridged = root / "net/bridge/bridge-nf-call-iptables"
    if bridged.exists() and bridged.read_text().strip() == "0":
        yield note(
            "kernel",
            "net.bridge.bridge-nf-call-iptables is 0: on a bridge network, pods of one node bypass the rules",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1   # where the container network uses a bridge",
        )


def check_ports(settings: AgentSettings, root: Path = Path("/proc/sys")) -> Iterator[Finding]:
    """Node ports that the host may hand to its own connections, and listeners that are taken."""
    try:
        first, last = map(int, (root / "net/ipv4/ip_local_port_range").read_text().split())
        reserved = (root / "net/ipv4/ip_local_reserved_ports").read_text().strip()
    except (OSError, ValueError) as error:
        yield note("ports", f"the range of ephemeral ports cannot be read: {error}")
    else:
        shared = overlap((first, last), NODE_PORTS, reserved)
        if shared:
            yield note(
                "ports",
                f"{shared} node ports may be taken by the host's own connections ({first} to {last})",
                f"sysctl -w net.ipv4.ip_local_reserved_ports={NODE_PORTS[0]}-{NODE_PORTS[1]}",
            )
        else:
            yield ok("ports", "node ports are apart from ephemeral ports")
    for what, address in (("health", settings.health_address), ("metrics", settings.metrics_address)):
        if address and (problem := _taken(address)):
            yield lack(
                "ports", f"{what}_address {address}: {problem}", f"--set {what}_address=..., or end its owner"
            )


def overlap(ephemeral: tuple[int, int], node: tuple[int, int], reserved: str) -> int:
    """How many node ports may be handed out. ``reserved``: as the kernel prints it ("30000-32767,40000"). Pure."""
    kept: set[int] = set()
    for part in filter(None, reserved.split(",")):
        first, _, last = part.partition("-")
        kept.update(range(int(first), int(last or first) + 1))
    low, high = max(ephemeral[0], node[0]), min(ephemeral[1], node[1])
    return len(set(range(low, high + 1)) - kept)


def check_others(settings: AgentSettings) -> Iterator[Finding]:
    """Other proxies and firewalls."""
    noticed = (*coexist.signs(), *legacy_chains())
    try:
        coexist.check(settings, noticed)
    except coexist.OtherProxy as error:
        yield lack("others", f"kube-proxy: {'; '.join(noticed)}", str(error))
    else:
        if noticed:
            yield note("others", f"kube-proxy is here, and we were told about it: {'; '.join(noticed)}")
        else:
            yield ok("others", "no sign of kube-proxy")
    try:
        with NetlinkSocket(NETFILTER) as netlink:
            chains = read_chains(netlink)
    except (OSError, Malformed) as error:
        yield note("firewall", f"nf_tables cannot be read: {error}")
        return
    yield from _firewalls(chains)


def _firewalls(chains: list[Chain]) -> Iterator[Finding]:
    for chain in dropping(chains):
        yield note(
            "firewall",
            f"{chain.family} {chain.table} {chain.name} drops at {chain.hook} what it does not accept",
            _accept(chain.hook, chain.family, chain.table, chain.name),
        )
    for name in policies(chains):
        yield note(
            "firewall",
            f"{name} filters by NetworkPolicy in netfilter; in mode ipvs, requests to Services do not pass FORWARD",
            "use mode nftables (--set mode=nftables): there they do",
        )


def _accept(hook: str, family: str, table: str, chain: str) -> str:
    """An accept of ours ends only our own chain: it has to be in theirs."""
    if hook == "input":
        return (
            "in mode ipvs requests arrive at INPUT; accept them there, for example\n"
            f"nft insert rule {family} {table} {chain} ct status dnat accept   # mode nftables does not need it"
        )
    return (
        "accept what connection tracking knows, for example\n"
        f"nft insert rule {family} {table} {chain} ct state established,related accept\n"
        f"nft insert rule {family} {table} {chain} ct status dnat accept"
    )


def check_identity(settings: AgentSettings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Which node we are, and how the API server is reached without our own rules."""
    if settings.node_name:
        yield ok("node", f"node_name is {settings.node_name}")
    else:
        yield lack(
            "node",
            "node_name is not known: no endpoint is local, no hint applies",
            "NODE_NAME from the downward API (spec.nodeName), or --set node_name=...",
        )
    host = environ.get("KUBERNETES_SERVICE_HOST", "")
    if host and not settings.api_server and not environ.get("KUBECONFIG"):
        yield note(
            "API server",
            f"it is reached at {host}, a Service address: after a boot without kube-proxy nobody serves it",
            "--set api_server=https://ADDRESS:6443 (an address that needs no Service)",
        )


def check_state(state: Path) -> Iterator[Finding]:
    """The ledger's folder."""
    folder = state if state.exists() else state.parent
    if not os.access(folder, os.W_OK):
        yield lack("state", f"{folder} cannot be written", "run it as root, or name another with --state")
        return
    kind = _file_system(folder)
    if kind not in ("tmpfs", "ramfs", ""):
        yield note(
            "state",
            f"{folder} is on {kind}: the ledger must not outlive the kernel's state",
            "a folder on tmpfs, as /run",
        )
    else:
        yield ok("state", f"{folder} can be written")


def _file_system(folder: Path) -> str:
    """Its type, by the longest mount point that holds it; "" when not known."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    where = str(folder.resolve())
    for line in lines:
        _, point, found, *_ = line.split(" ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


def _taken(address: str) -> str:
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((bare, int(port)))
    except OSError as error:
        return error.strerror or str(error)
    return ""
