"""Silence: no answer to ARP for virtual addresses. A table of nf_tables beside the routes. One thread; IPv4 alone.

A virtual address is local on every node, and Linux answers ARP for whatever is local on whatever device: in the network
of a load balancer's address every node would claim it, and whoever is to announce it (MetalLB, kube-vip) has no chance.
kube-proxy's remedy (arp_ignore for the whole host) breaks container networks. Here only requests for our own addresses
are not heard. Announcers that answer from user space are not affected; one that gives the address to a device of this
node has it answered from there. IPv6 needs none of this: its neighbour discovery answers for addresses of devices only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence

from meshlib.agent.backends.ipvs.translate import addresses
from meshlib.agent.backends.nftables import expressions as x
from meshlib.agent.backends.nftables import messages
from meshlib.agent.backends.nftables.messages import ADDRESS, ARP, Element, Hook, SetSpec
from meshlib.agent.backends.nftables.rules import digest
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.messages import Request
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb

ARP_TABLE, SILENT = "arp_table", "silent"
TABLE = "meshlib"
_MARK = "meshlib agent"
_KEY = ObjectKey(ARP_TABLE, "")
_SET = SetSpec("virtual", (ADDRESS[4],))
_CHAIN = "in"
#: The input hook of the ARP family, where it has the number that prerouting has elsewhere.
_HOOK = Hook("filter", 0, 0)
#: Ethernet, IPv4, their sizes of 6 and 4 bytes, and a request; the address that is asked for follows 16 bytes on.
_REQUEST = bytes((0, 1, 8, 0, 6, 4, 0, 1))
_TARGET = 24
_RULE = (
    x.payload(x.NETWORK, 0, len(_REQUEST), 0),
    x.equal(0, _REQUEST),
    x.payload(x.NETWORK, _TARGET, 4, 0),
    x.found(_SET.name, 0),
    x.verdict(x.DROP),
)
#: The value of the table: it is whole, and does what it should.
_WHOLE = (_MARK, (digest(b"".join(_RULE)),))


class Silence:
    """Objects: the kind ``arp_table``, one, and the kind ``silent``, name the address, value True.

    ``elsewhere``: the addresses that devices of this node have. For them ARP is answered, whatever is wanted here.
    """

    kinds = (ARP_TABLE, SILENT)

    def __init__(
        self, connect: Callable[[], TransactionSocket], elsewhere: Callable[[], Collection[str]]
    ) -> None:
        self._connect = connect
        self._elsewhere = elsewhere
        self._connection: TransactionSocket | None = None
        self._spared: set[str] = set()  # counted as programmed, and not in the table: a device has them

    def fixed(self, place: Place) -> Objects:
        """The table."""
        return {_KEY: _WHOLE}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """Its addresses, but for the node's own."""
        own = (place.source, *place.node_addresses)
        return {
            ObjectKey(SILENT, address): True
            for address in addresses(frontend, place, None)
            if address not in own
        }

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Nothing."""
        return {}

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """None: the table bears our mark."""
        return None

    def dump(self, family: int) -> Objects:
        """The table and what is in it. An address that is there although a device has it is told as False, one that is
        spared as True. Raises OSError, with EEXIST for somebody else's table."""
        whole = self._table()
        if whole is None:
            self._spared.clear()
            return {}
        found: dict[ObjectKey, object] = {_KEY: whole}
        if whole != _WHOLE:
            self._spared.clear()
            return found
        elsewhere = self._elsewhere()
        self._spared &= set(elsewhere)
        for message in self._socket().dump(messages.get_elements(ARP, TABLE, _SET.name)):
            for element in messages.parse_elements(message, _SET):
                address = ".".join(map(str, element.key))
                self._spared.discard(address)
                found[ObjectKey(SILENT, address)] = address not in elsewhere
        for address in self._spared:
            found[ObjectKey(SILENT, address)] = True
        return found

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """One transaction: where anything is refused, everything is, and is planned anew after a look."""
        requests = [request for each in plan if each.key == _KEY for request in _table(each.verb)]
        gone = any(each.key == _KEY and each.verb is Verb.REMOVE for each in plan)
        spared = self._spared.copy()
        into, out = [], []
        for verb, key, _, _ in plan:
            if key.kind != SILENT:
                continue
            address = str(key.name)
            if verb is Verb.REMOVE and address in spared:
                spared.discard(address)
            elif verb is Verb.REMOVE:
                out.append(_element(address))
            elif address in self._elsewhere():
                spared.add(address)
                out += [_element(address)] if verb is Verb.SET else []
            else:
                into.append(_element(address))
        if not gone:
            requests += messages.delete_elements(ARP, TABLE, _SET, out)
            requests += messages.new_elements(ARP, TABLE, _SET, into)
        try:
            refusals = self._socket().commit(requests)
        except OSError as error:
            self.close()
            refusals = {-1: Refusal(error.errno or errno.EIO, str(error))}
        if refusals:
            first = refusals[min(refusals)]
            return [Failed(each, first.errno, f"{first}") for each in plan]
        self._spared = spared
        return []

    def lacking(self) -> str:
        """Why this kernel cannot do it, "" when it can: tried in a transaction that has no effect."""
        name = f"{TABLE}-probe"
        try:
            refusals = self._socket().commit([*_made(name), messages.delete_table(ARP, name)])
        except OSError as error:
            self.close()
            return str(error)
        return f"nf_tables without ARP: {refusals[min(refusals)]}" if refusals else ""

    def close(self) -> None:
        """Give the socket back; the table stays. Safe to call twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _table(self) -> tuple[str, tuple[str, ...]] | None:
        """What our table says; None: there is none."""
        netlink = self._socket()
        tables = dict(map(messages.parse_table, netlink.dump(messages.get_tables(ARP))))
        if TABLE not in tables:
            return None
        if not tables[TABLE].startswith(_MARK):
            raise OSError(errno.EEXIST, f"an ARP table {TABLE} of somebody else's is there")
        hooked = any(
            (table, chain, hook) == (TABLE, _CHAIN, _HOOK)
            for table, chain, hook in map(messages.parse_chain, netlink.dump(messages.get_chains(ARP)))
        )
        rules = map(messages.parse_rule, netlink.dump(messages.get_rules(ARP, TABLE)))
        digests = tuple(digest(said) for table, chain, said in rules if (table, chain) == (TABLE, _CHAIN))
        return tables[TABLE], digests if hooked else ()

    def _socket(self) -> TransactionSocket:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection


def _table(verb: Verb) -> list[Request]:
    """A new table in the place of whatever is there, or none. Removing what may not be there is refused: so it is made
    first."""
    anew = [messages.new_table(ARP, TABLE, _MARK), messages.delete_table(ARP, TABLE)]
    if verb is Verb.REMOVE:
        return anew
    return [*(anew if verb is Verb.SET else ()), *_made(TABLE)]


def _made(table: str) -> list[Request]:
    return [
        messages.new_table(ARP, table, _MARK),
        messages.new_set(ARP, table, _SET, 1),
        messages.new_chain(ARP, table, _CHAIN, _HOOK),
        messages.new_rule(ARP, table, _CHAIN, _RULE, "virtual addresses are nobody's on this wire"),
    ]


def _element(address: str) -> Element:
    return Element(bytes(map(int, address.split("."))))
