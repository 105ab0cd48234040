"""Private addresses: where sources on this node find what is different for them (``Frontend.inside``). No I/O.

IPVS knows one set of destinations for an address and port, so a frontend with an ``inside`` of its own has a second,
private virtual server, to which the companion table leads those on this node. The address of it never leaves the node.

An IPv4 frontend has 32 bits and the block has 28, so no rule without a memory can keep all frontends apart; and two
Services that shared one would answer for each other. Each address therefore gets its first choice, which follows from
it alone, unless another one has that already.
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import count

from meshlib.agent.desired import FrontendKey

#: Reserved for ever and routed nowhere (RFC 1112 section 4); Linux takes its addresses like any others.
BLOCK_V4 = "240.0.0.0/4"
#: A Unique Local prefix with a random global id (RFC 4193 section 3.2).
BLOCK_V6 = "fd6d:6573:686c::/64"


class PrivateAddresses:
    """The private addresses of one backend, which its companion shares. Belongs to one thread.

    An address keeps its private one for as long as this object lives: what is asked twice is answered alike. After a
    restart only addresses whose first choices are the same can be given others than before.
    """

    def __init__(self, block: str = BLOCK_V4) -> None:
        """``block``: of IPv4, /8 or larger (see ``AgentSettings.private_cidr``)."""
        self._blocks: dict[int, IPv4Network | IPv6Network] = {4: ip_network(block), 6: ip_network(BLOCK_V6)}
        self._given: dict[tuple[str, int], str] = {}
        self._taken: set[str] = set()

    def key(self, key: FrontendKey, family: int) -> FrontendKey:
        """The private address and the port that stand for a frontend. A node port, whose address is "", has one too."""
        given = self._given.get((key.address, family))
        if given is None:
            given = self._given[key.address, family] = self._choose(key.address, family)
            self._taken.add(given)
        return key._replace(address=given)

    def _choose(self, address: str, family: int) -> str:
        block = self._blocks[family]
        for attempt in count():
            number = _number(address, family, attempt) % block.num_addresses
            found = str(block[number])
            # The first and the last one of a block may mean more than a host (the last of 240.0.0.0/4 is everybody).
            edge = number in (0, block.num_addresses - 1)
            if not edge and found != address and found not in self._taken:
                return found
        raise AssertionError("count() has no end")


def _number(address: str, family: int, attempt: int) -> int:
    """The choices of an address, one after the other. The first of IPv4 is the address itself as far as the block
    goes, so that people recognize it."""
    if family == 4 and address and attempt == 0:
        return int(ip_address(address))
    return int.from_bytes(blake2b(f"{address} {attempt}".encode(), digest_size=8).digest(), "big")
