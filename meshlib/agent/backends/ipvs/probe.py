"""Whether the ipvs backend works here, found by trying.

IPVS is separate in each network namespace, so the attempt is made in a new one where that is permitted, and cannot
disturb anything. Where it is not (the agent's pod may not make namespaces), it is made in our own, on documentation
addresses.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from meshlib.agent.backends.base import Probe
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import FAMILY, Codec, ServiceKey, VirtualServer
from meshlib.agent.netlink.messages import Malformed
from meshlib.agent.netlink.socket import GENERIC, NetlinkSocket

_CLONE_NEWNET = 0x40000000
#: Documentation addresses (RFC 5737, RFC 3849), and a port that nobody serves there.
_KEYS = {4: ServiceKey("TCP", "198.51.100.254", 9), 6: ServiceKey("TCP", "2001:db8::fffe", 9)}
_WAYS_OUT = {
    errno.ENOENT: "load its modules (modprobe ip_vs ip_vs_rr; `meshlib agent prepare` does it), or use mode nftables",
    errno.EPERM: "give the agent the capability CAP_NET_ADMIN",
    errno.EPROTONOSUPPORT: "use mode nftables: this kernel has no generic netlink",
}


def probe(connect: Callable[[int], NetlinkSocket] = NetlinkSocket) -> Probe:
    """Make, read back and remove a virtual server of each family. Raises nothing that the kernel says."""
    doing = "opening a netlink socket"
    try:
        with _elsewhere(connect) as netlink:
            doing = "looking for IPVS in the kernel"
            (answer,) = netlink.request(find_family(FAMILY))
            codec = Codec(parse_family(answer, FAMILY))
            (answer,) = netlink.request(codec.get_info())
            version, size = codec.info(answer)
            doing = "making a virtual server"
            _try(netlink, codec, 4)
            families: tuple[int, ...] = (4, 6)
            try:
                _try(netlink, codec, 6)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EINVAL):
                    raise
                families = (4,)
    except OSError as error:
        number = error.errno or 0
        hint = _WAYS_OUT.get(number, "")
        what = errno.errorcode.get(number, str(number))
        return Probe(False, f"ipvs: {doing}: {what}" + (f"; {hint}" if hint else f" ({error})"), ())
    except Malformed as error:
        return Probe(False, f"ipvs: {doing}: an answer that is not understood: {error}", ())
    return Probe(True, f"ipvs {version}, {size} connection buckets", families)


def _try(netlink: NetlinkSocket, codec: Codec, family: int) -> None:
    key, value = _KEYS[family], VirtualServer(prefix=32 if family == 4 else 128)
    made = True
    try:
        netlink.request(codec.add_service(key, value))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        made = False  # another's, or left by a probe that was killed: it shows as well that this works
    try:
        found = codec.services(netlink.request(codec.get_service(key)))
        if key not in found:
            raise Malformed(f"{key} was made, and is not told")
    finally:
        if made:
            netlink.request(codec.remove_service(key))


def _elsewhere(connect: Callable[[int], NetlinkSocket]) -> NetlinkSocket:
    """A socket in a new network namespace, which lasts as long as it does; in our own where that is not permitted.

    A socket keeps the namespace in which it was made, so this thread is back in its own before anything is sent.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            return connect(GENERIC)
        try:
            return connect(GENERIC)
        finally:
            if libc.setns(here, _CLONE_NEWNET) != 0:
                # Going on in an empty namespace would look like a host without any address.
                os.abort()
    finally:
        os.close(here)
