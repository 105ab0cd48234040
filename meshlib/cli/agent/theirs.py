"""kube-proxy's live rules on this node, read: its virtual servers, and what iptables-save prints."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from meshlib.agent.coexist import CHAIN, DEVICE
from meshlib.agent.compare import iptables_rules, ipvs_rules
from meshlib.agent.compare.projection import Projection
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.socket import GENERIC, ROUTE, NetlinkSocket

#: By family; the rules of both kinds of iptables may be there, and only the program of its kind shows each.
_PROGRAMS = {
    4: ("iptables-legacy-save", "iptables-nft-save"),
    6: ("ip6tables-legacy-save", "ip6tables-nft-save"),
}
#: Seconds; 5,000 Services print in two.
_PATIENCE = 60.0


@dataclass(slots=True)
class Theirs:
    """One family. ``by``: through what they were found; empty: there are none."""

    rules: Projection = field(default_factory=dict)
    by: list[str] = field(default_factory=list)


def read(family: int, node_addresses: Sequence[str]) -> Theirs:
    """Raises OSError where the kernel refuses to tell, PermissionError among them."""
    found = Theirs()
    with NetlinkSocket(ROUTE) as netlink:
        links = rtnl.parse_links(netlink.dump(rtnl.list_links()))
    if any(link.name == DEVICE for link in links):
        try:
            with NetlinkSocket(GENERIC) as netlink:
                found.rules.update(ipvs_rules.read(netlink, family))
            found.by.append("ipvs")
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    for name in _PROGRAMS[family]:
        text = _saved(name)
        rules = iptables_rules.project(text, node_addresses, family)
        if rules:
            found.rules.update(rules)
            found.by.append(name.removesuffix("-save"))
    return found


def legacy_chains() -> tuple[str, ...]:
    """kube-proxy's chains of iptables' old kind, in words; () where its program is not there to tell."""
    return tuple(
        f"chain {CHAIN} of {name.removesuffix('-save')}"
        for name in (_PROGRAMS[4][0], _PROGRAMS[6][0])
        if f":{CHAIN} " in _saved(name)
    )


def _saved(name: str) -> str:
    """What a program prints; "" where it is not there, or its kind of iptables does not work in this kernel, which
    then has no such rules either."""
    program = shutil.which(name)
    if program is None:
        return ""
    done = subprocess.run(  # noqa: S603 a fixed program without arguments
        [program], capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    return done.stdout if done.returncode == 0 else ""
