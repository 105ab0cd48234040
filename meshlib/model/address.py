"""Address policy: which addresses from a control plane may ever be dialled or programmed.

Whoever may write an EndpointSlice, a DNS record or a file may put any address into it, and Kubernetes does
not stop all of them (CVE-2021-25737, CVE-2021-25740). So every address passes ``AddressPolicy.check`` before
it enters the model, and only the canonical text that ``check`` returns goes further: C libraries read
``127.1``, ``0x7f.1`` and ``010.0.0.1`` as other addresses than people do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshlib.errors import DataError

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

#: Cloud metadata services outside the link-local ranges: they hand credentials to whoever reaches them (AWS
#: over IPv6, Google over IPv6, Alibaba, Azure's wire server), plus the well-known link-local one, so that
#: ``allow_link_local`` alone does not open it.
METADATA: tuple[Network, ...] = (
    IPv4Network("169.254.169.254/32"),
    IPv4Network("100.100.100.200/32"),
    IPv4Network("168.63.129.16/32"),
    IPv6Network("fd00:ec2::254/128"),
    IPv6Network("fd20:ce::254/128"),
)

_LOOPBACK = "loopback"
_LINK_LOCAL = "link-local"
_NEVER = frozenset({"unspecified", "multicast", "broadcast"})

# The first match names the kind, so a narrower range stands before the wider one that holds it.
_SPECIAL_4: tuple[tuple[IPv4Network, str], ...] = (
    (IPv4Network("0.0.0.0/8"), "unspecified"),  # RFC 791; Linux connects 0.0.0.0 to the host itself
    (IPv4Network("127.0.0.0/8"), _LOOPBACK),
    (IPv4Network("169.254.0.0/16"), _LINK_LOCAL),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("255.255.255.255/32"), "broadcast"),
    (
        IPv4Network("240.0.0.0/4"),
        "class E",
    ),  # RFC 1112; a few clusters do use it for pods: opt in through ``allow``
)
_SPECIAL_6: tuple[tuple[IPv6Network, str], ...] = (
    (IPv6Network("::/128"), "unspecified"),
    (IPv6Network("::1/128"), _LOOPBACK),
    (IPv6Network("::ffff:0:0/96"), "IPv4-mapped"),  # RFC 4291 2.5.5.2
    (IPv6Network("::ffff:0:0:0/96"), "IPv4-translated"),  # RFC 2765
    (IPv6Network("::/96"), "IPv4-compatible"),  # RFC 4291 2.5.5.1
    (IPv6Network("64:ff9b::/96"), "NAT64"),  # RFC 6052
    (IPv6Network("64:ff9b:1::/48"), "NAT64"),  # RFC 8215
    (IPv6Network("2002::/16"), "6to4"),  # RFC 3056
    (IPv6Network("2001::/32"), "Teredo"),  # RFC 4380
    (IPv6Network("fe80::/10"), _LINK_LOCAL),
    (IPv6Network("fec0::/10"), "site-local"),  # RFC 3879
    (IPv6Network("ff00::/8"), "multicast"),
)
_EMBEDDING = frozenset({"IPv4-mapped", "IPv4-translated", "IPv4-compatible", "NAT64"})

_OCTETS = frozenset(str(n) for n in range(256))  # canonical spelling only: no leading zeros, ASCII digits
_LONGEST = 45  # the longest spelling of an IPv6 address, with a dotted quad at the end


def family(address: str) -> int:
    """4 or 6 for the canonical text of an address."""
    return 6 if ":" in address else 4


def _parse(text: str) -> Address:
    shown = repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
    where = f"address {shown}"
    if not text:
        raise DataError(where, "is empty")
    if "%" in text:
        raise DataError(where, "has a zone id, which has no meaning on another host")
    if len(text) > _LONGEST or not text.isascii():
        raise DataError(where, "is not an IP address")
    try:
        return IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        raise DataError(
            where,
            "is not an IP address in its ordinary form (four decimal numbers without leading zeros, or IPv6)",
        ) from None


def canonical(text: str) -> str:
    """The canonical text of an IP address of any kind, for what is shown, not dialled; raises DataError."""
    octets = text.split(".", 4)
    if len(octets) == 4:
        a, b, c, d = octets
        if a in _OCTETS and b in _OCTETS and c in _OCTETS and d in _OCTETS:
            return text
    return str(_parse(text))


def _special(address: Address) -> tuple[Network, str] | None:
    """The special range that holds the address, and its kind."""
    if isinstance(address, IPv4Address):
        return next((entry for entry in _SPECIAL_4 if address in entry[0]), None)
    return next((entry for entry in _SPECIAL_6 if address in entry[0]), None)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _subnet(network: Network, of: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(of, IPv4Network) and network.subnet_of(of)
    return isinstance(of, IPv6Network) and network.subnet_of(of)


_Blocks = tuple[tuple[int, int], ...]  # network number and mask


def _blocks(networks: Iterable[Network], version: int) -> _Blocks:
    return tuple((int(n.network_address), int(n.netmask)) for n in networks if n.version == version)


def _held(number: int, blocks: _Blocks) -> bool:
    return any(number & mask == network for network, mask in blocks)


def _first_octets(network: Network) -> range:
    """The first octets of the IPv4 addresses in a network; none for an IPv6 network."""
    if isinstance(network, IPv6Network):
        return range(0)
    return range(int(network.network_address) >> 24, (int(network.broadcast_address) >> 24) + 1)


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Decides whether an address may be dialled or programmed. Immutable, so any thread may use it.

    Refused by default: unspecified, loopback, link-local, multicast, broadcast, class E, every form that
    embeds an IPv4 address in IPv6 (mapped, compatible, translated, NAT64, 6to4, Teredo), zone ids, cloud
    metadata services, and every spelling that is not the ordinary one.

    ``allow``: when not empty, only addresses in these networks pass (pod CIDRs are the strongest policy). A
    network that lies wholly inside a special range (``240.0.0.0/4``, ``64:ff9b::/96``) also opts in to that
    range; ``0.0.0.0/0`` does not. Unspecified, multicast and broadcast never pass. ``deny`` wins over
    everything; its default is METADATA.
    """

    allow_loopback: bool = False
    allow_link_local: bool = False
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = METADATA
    # What follows only makes the ordinary answer cheap: a first list holds ten thousand addresses, and network
    # objects take microseconds for each question. First octets of which every address passes:
    _plain: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())
    # ... and per family the ranges that need a closer look, and those one of which must hold the address.
    _suspect: dict[int, _Blocks] = field(init=False, repr=False, compare=False, default_factory=dict)
    _wanted: dict[int, _Blocks] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        special: list[Network] = [network for network, _ in _SPECIAL_4]
        special += [network for network, _ in _SPECIAL_6]
        self._suspect.update({version: _blocks((*special, *self.deny), version) for version in (4, 6)})
        self._wanted.update({version: _blocks(self.allow, version) for version in (4, 6)})
        if not self.allow:
            taken = {octet for network in (*special, *self.deny) for octet in _first_octets(network)}
            object.__setattr__(self, "_plain", frozenset(map(str, set(range(256)) - taken)))

    def check(self, text: str) -> str:
        """The canonical text of ``text``; raises DataError with the reason when the policy refuses it."""
        octets = text.split(".", 4)
        if len(octets) == 4:
            a, b, c, d = octets
            if a in self._plain and b in _OCTETS and c in _OCTETS and d in _OCTETS:
                return text
        address = _parse(text)
        number, version = int(address), address.version
        if _held(number, self._suspect[version]) or (self.allow and not _held(number, self._wanted[version])):
            reason = self._refusal(address)
            if reason:
                raise DataError(f"address {str(address)!r}", f"{reason}: refused by the address policy")
        return str(address)

    def _refusal(self, address: Address) -> str:
        if _within(address, self.deny):
            return "is on the deny list (cloud metadata services by default)"
        special = _special(address)
        kind = special[1] if special else ""
        inner = _embedded(address, kind)
        if special and not self._permits(special, address):
            return f"is {kind}" + (f" (of {inner})" if inner else "")
        if inner:  # opted in to the form, not to what it may hide
            hidden = _special(inner)
            if _within(inner, self.deny):
                return f"is {kind} of {inner}, which is on the deny list"
            if hidden and not self._permits(hidden, inner):
                return f"is {kind} of {inner}, which is {hidden[1]}"
        if self.allow and not _within(address, self.allow):
            return "is outside the allowed networks"
        return ""

    def _permits(self, special: tuple[Network, str], address: Address) -> bool:
        block, kind = special
        if kind in _NEVER:
            return False
        if (kind == _LOOPBACK and self.allow_loopback) or (kind == _LINK_LOCAL and self.allow_link_local):
            return True
        return _within(address, (network for network in self.allow if _subnet(network, block)))


def _embedded(address: Address, kind: str) -> IPv4Address | None:
    if kind in _EMBEDDING:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if kind == "6to4":
        return IPv4Address((int(address) >> 80) & 0xFFFFFFFF)
    return None


#: For what a person wrote on this machine (static targets, manifest files, tests): loopback and link-local
#: addresses mean what they say there, so those sources opt in by what they are.
RELAXED = AddressPolicy(allow_loopback=True, allow_link_local=True, deny=())
