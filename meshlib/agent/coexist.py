"""Another proxy on this node (decision D16): how it is noticed, and whether we may run beside it. Read only.

Rules of iptables' old kind (those that are not in nf_tables) are told by programs alone; a kube-proxy that writes them
is noticed while it runs, by its port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException

from meshlib.agent.backends.nftables import messages
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.messages import Malformed
from meshlib.agent.netlink.socket import NETFILTER, ROUTE, NetlinkSocket
from meshlib.agent.settings import AgentSettings
from meshlib.errors import MeshError

#: kube-proxy's device in ipvs mode, its chain in iptables and ipvs mode, its table in nftables mode.
DEVICE, CHAIN, TABLE = "kube-ipvs0", "KUBE-SERVICES", "kube-proxy"
#: Where kube-proxy says in which mode it is (its metrics address), and seconds that the answer may take.
MODE_ADDRESS = ("127.0.0.1", 10249)
_PATIENCE = 1.0
_MODES = frozenset({"iptables", "ipvs", "nftables", "userspace", "kernelspace"})

Connect = Callable[[int], NetlinkSocket]


class OtherProxy(MeshError):
    """kube-proxy serves the same Services here; the text says by what it was noticed, and what can be done."""


def traces(connect: Connect = NetlinkSocket) -> tuple[str, ...]:
    """What of kube-proxy the kernel holds, in words. What cannot be read is passed over: a kernel without nf_tables has
    none of its tables, and without the right to read them nothing can be programmed either."""
    found: list[str] = []
    try:
        with connect(ROUTE) as netlink:
            links = rtnl.parse_links(netlink.dump(rtnl.list_links()))
            found += [f"device {link.name}" for link in links if link.name == DEVICE]
    except (OSError, Malformed):
        pass
    try:
        with connect(NETFILTER) as netlink:
            for family in (4, 6):
                tables = map(messages.parse_table, netlink.dump(messages.get_tables(family)))
                found += [f"nftables table {name} (IPv{family})" for name, _ in tables if name == TABLE]
                chains = map(messages.parse_chain, netlink.dump(messages.get_chains(family)))
                held = [table for table, name, _ in chains if name == CHAIN]
                found += [f"chain {CHAIN} in table {table} (IPv{family})" for table in held]
    except (OSError, Malformed, KeyError):
        pass
    return tuple(found)


def running_mode(address: tuple[str, int] = MODE_ADDRESS) -> str:
    """The mode that a running kube-proxy tells; "" when none answers. Waits a second at most."""
    connection = HTTPConnection(*address, timeout=_PATIENCE)
    try:
        connection.request("GET", "/proxyMode")
        reply = connection.getresponse()
        # meshlib tells its mode on the same port; only kube-proxy's server is without this header.
        if reply.status != 200 or reply.headers.get("X-Meshlib-Mode"):
            return ""
        said = reply.read(64).decode("ascii", "replace").strip()
    except (OSError, HTTPException):
        return ""
    finally:
        connection.close()
    return said if said in _MODES else ""


def signs(connect: Connect = NetlinkSocket, address: tuple[str, int] = MODE_ADDRESS) -> tuple[str, ...]:
    """Everything by which kube-proxy is noticed; () when nothing is."""
    mode = running_mode(address)
    told = (f"a kube-proxy in mode {mode} answers on {address[0]}:{address[1]}",) if mode else ()
    return (*traces(connect), *told)


def check(settings: AgentSettings, noticed: Sequence[str]) -> None:
    """Raises OtherProxy where running would be a fight. Pure.

    Told to live beside kube-proxy we serve only Services that it ignores; told to take over, its rules are on their way
    out and ours come first.
    """
    if not noticed or settings.beside_kube_proxy:
        return
    found = "; ".join(noticed)
    if settings.take_over:
        by_ipvs = any(DEVICE in sign or "mode ipvs" in sign for sign in noticed)
        if settings.mode == "nftables" or (settings.mode == "iptables" and not by_ipvs):
            return
        raise OtherProxy(
            f"kube-proxy is here ({found}), and beside it mode {settings.mode} cannot serve the same Services: set "
            "mode = nftables until it is gone"
        )
    if settings.service_proxy_name:
        way = "It ignores Services with the label of service_proxy_name: set beside_kube_proxy = true"
    else:
        way = (
            "To try meshlib on single Services, set service_proxy_name and beside_kube_proxy; to replace kube-proxy, "
            "see `meshlib agent handover from-kube-proxy`"
        )
    raise OtherProxy(f"kube-proxy is, or was, at work on this node: {found}. {way}")
