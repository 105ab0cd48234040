"""kube-proxy's live rules on this node, read: its virtual servers, and what iptables-save prints."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from meshlib.agent.coexist import DEVICE
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
        program = shutil.which(name)
        if program is None:
            continue
        done = subprocess.run(  # noqa: S603 a fixed program without arguments
            [program], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
        if done.returncode != 0:
            continue  # this kind of iptables does not work in this kernel: it has no rules either
        rules = iptables_rules.project(done.stdout, node_addresses, family)
        if rules:
            found.rules.update(rules)
            found.by.append(name.removesuffix("-save"))
    return found
