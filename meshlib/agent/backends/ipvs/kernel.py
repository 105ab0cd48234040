"""The kernel's IPVS, reached on first use: the one socket of the parts that speak to it. Belongs to one thread."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import (
    FAMILY,
    Codec,
    Connections,
    RealKey,
    RealServer,
    ServiceKey,
    Timeouts,
    VirtualServer,
)
from meshlib.agent.netlink.messages import Malformed, Request
from meshlib.agent.netlink.socket import GENERIC, KernelRefused, NetlinkSocket

#: What refuses the removal of something that is gone: a destination, a virtual server.
GONE = frozenset({errno.ENOENT, errno.ESRCH})

Destinations = dict[RealKey, tuple[RealServer, Connections]]


class IpvsKernel:
    """Every method raises OSError where the kernel has no IPVS, or tells what cannot be read."""

    def __init__(self, connect: Callable[[int], NetlinkSocket]) -> None:
        self._connect = connect
        self._open: tuple[NetlinkSocket, Codec] | None = None

    @property
    def codec(self) -> Codec:
        """For requests of this boot."""
        return self._opened()[1]

    def batch(self, requests: Iterable[Request]) -> dict[int, Refusal]:
        """See ``NetlinkSocket.batch``."""
        return self._opened()[0].batch(requests)

    def services(self) -> dict[ServiceKey, VirtualServer]:
        """All virtual servers, of both families."""
        netlink, codec = self._opened()
        try:
            return codec.services(netlink.dump(codec.list_services()))
        except Malformed as error:
            raise OSError(errno.EBADMSG, str(error)) from error

    def destinations(self, key: ServiceKey) -> Destinations:
        """Those of one virtual server; one that is gone has none."""
        netlink, codec = self._opened()
        try:
            return codec.destinations(netlink.dump(codec.list_destinations(key)))
        except Malformed as error:
            raise OSError(errno.EBADMSG, str(error)) from error
        except KernelRefused as error:
            if error.errno in GONE:
                return {}
            raise

    def timeouts(self) -> Timeouts:
        """Of the namespace."""
        netlink, codec = self._opened()
        try:
            (answer,) = netlink.request(codec.get_timeouts())
            return codec.timeouts(answer)
        except (Malformed, ValueError) as error:
            raise OSError(errno.EBADMSG, f"timeouts that cannot be read: {error}") from error

    def close(self) -> None:
        """Give the socket back; what is in the kernel stays. Safe to call twice."""
        if self._open is not None:
            self._open[0].close()
            self._open = None

    def _opened(self) -> tuple[NetlinkSocket, Codec]:
        if self._open is None:
            netlink = self._connect(GENERIC)
            try:
                (answer,) = netlink.request(find_family(FAMILY))
                self._open = netlink, Codec(parse_family(answer, FAMILY))
            except BaseException:
                netlink.close()
                raise
        return self._open
