"""The host's own addresses, from rtnetlink: now, and whenever they change. Needs no privilege.

Asked of the kernel, not of the Node object: a floating address or a second network card is not in there.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address

from meshlib.agent.facts import Host
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.messages import Malformed
from meshlib.agent.netlink.rtnl import HostAddress, Link
from meshlib.agent.netlink.socket import ROUTE, NetlinkSocket

#: Devices that hold virtual addresses: ours and kube-proxy's.
VIRTUAL = frozenset({"meshlib0", "kube-ipvs0"})
#: Seconds that a burst of changes may last (an interface coming up tells of several) before it is looked at.
SETTLE = 0.1
#: Seconds until the socket is opened again after an error.
RETRY = 5.0


def host_of(addresses: Iterable[HostAddress], links: Iterable[Link]) -> Host:
    """What node ports may be served on: every address but loopback, link-local and virtual ones. Pure."""
    ignored = {link.number for link in links if link.name in VIRTUAL}
    found = set()
    for each in addresses:
        parsed = ip_address(each.address)
        if each.device not in ignored and not (parsed.is_loopback or parsed.is_link_local):
            found.add(str(parsed))
    return Host(tuple(sorted(found)))


def read_host(netlink: NetlinkSocket) -> Host:
    """What the kernel says now. Raises OSError, Malformed."""
    links = rtnl.parse_links(netlink.dump(rtnl.list_links()))
    addresses = [
        each for family in (4, 6) for each in rtnl.parse_addresses(netlink.dump(rtnl.list_addresses(family)))
    ]
    return host_of(addresses, links)


class HostWatch:
    """Tells of the host once at the start, and after changes. On one asyncio loop.

    ``connect`` opens a socket that listens to groups; ``report`` hears what went wrong, once per kind of trouble.
    """

    def __init__(
        self,
        tell: Callable[[Host], None],
        report: Callable[[str], None],
        connect: Callable[[tuple[int, ...]], NetlinkSocket] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._tell = tell
        self._report = report
        self._connect = connect or (lambda groups: NetlinkSocket(ROUTE, groups))
        self._sleep = sleep
        self._told: Host | None = None
        self._problem = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._follow()
            except (OSError, Malformed) as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    self._report(f"the host's addresses cannot be read; the last ones stay: {error}")
            await self._sleep(RETRY)

    async def _follow(self) -> None:
        """Listens from before the first look, so that nothing falls in between."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with self._connect((rtnl.ADDRESSES_V4, rtnl.ADDRESSES_V6)) as news, self._connect(()) as asking:
            loop.add_reader(news.fileno(), changed.set)
            try:
                while True:
                    host = read_host(asking)
                    self._problem = ""
                    if host != self._told:
                        self._told = host
                        self._tell(host)
                    await changed.wait()
                    await self._sleep(SETTLE)
                    changed.clear()
                    # Lost news (ENOBUFS) are news as well: everything is read anyway.
                    try:
                        news.notifications()
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
            finally:
                loop.remove_reader(news.fileno())
