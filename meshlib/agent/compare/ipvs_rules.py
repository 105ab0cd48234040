"""kube-proxy's virtual servers (ipvs mode), projected. A destination with weight 0 drains: it gets nothing new."""

from __future__ import annotations

from meshlib.agent.compare.projection import Projection
from meshlib.agent.desired import FrontendKey
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import FAMILY, Codec, ServiceKey, family_of
from meshlib.agent.netlink.socket import NetlinkSocket


def read(netlink: NetlinkSocket, family: int) -> Projection:
    """Every virtual server of a family, whoever made it. Raises OSError: no IPVS in this kernel, not permitted."""
    (answer,) = netlink.request(find_family(FAMILY))
    codec = Codec(parse_family(answer, FAMILY))
    found: Projection = {}
    for key in codec.services(netlink.dump(codec.list_services())):
        if family_of(key.address) != family:
            continue
        found[_frontend(key)] = frozenset(
            (real.address, real.port)
            for real, (server, _) in codec.destinations(netlink.dump(codec.list_destinations(key))).items()
            if server.weight
        )
    return found


def _frontend(key: ServiceKey) -> FrontendKey:
    return FrontendKey(key.protocol, key.address, key.port)
