"""Name qualification as pure functions: resolv.conf, the hosts file, and the search walk. Reference R2.

The semantics are glibc's (resolv.conf(5), ``res_search``): a name with at least ``ndots`` dots is tried as it is first,
then with each search suffix; a name with fewer dots the other way round; a trailing dot means "as it is, only".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshlib.discovery.dns.records import Kind
from meshlib.errors import DataError

#: glibc's own bounds (resolv.h): three servers, RES_MAXNDOTS, RES_MAXRETRANS and RES_MAXRETRY.
MAX_SERVERS, MAX_NDOTS, MAX_TIMEOUT, MAX_ATTEMPTS = 3, 15, 30, 5
#: RFC 1035 3.1: a label has at most 63 octets, and 255 octets on the wire are 253 characters of text.
MAX_LABEL, MAX_NAME = 63, 253


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What this room uses of resolv.conf. Defaults are resolv.conf(5)'s."""

    servers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: int = 5
    attempts: int = 2
    rotate: bool = False
    use_tcp: bool = False  #: ``use-vc``
    no_aaaa: bool = False


def parse_resolv_conf(text: str) -> ResolvConf:
    """Parse resolv.conf as glibc does: unknown lines and options are ignored, the last of domain and search wins."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    numbers = {"ndots": 1, "timeout": 5, "attempts": 2}
    bounds = {"ndots": (0, MAX_NDOTS), "timeout": (1, MAX_TIMEOUT), "attempts": (1, MAX_ATTEMPTS)}
    flags: set[str] = set()
    for line in text.splitlines():
        if line.startswith(("#", ";")):
            continue
        words = line.split()
        if len(words) < 2:
            continue
        keyword, rest = words[0], words[1:]
        if keyword == "nameserver" and len(servers) < MAX_SERVERS:
            address = _server_address(rest[0])
            if address is not None:
                servers.append(address)
        elif keyword == "domain":
            search = (rest[0],)
        elif keyword == "search":
            search = tuple(rest)
        elif keyword == "options":
            for option in rest:
                name, _, value = option.partition(":")
                if name in numbers and value.isascii() and value.isdigit():
                    low, high = bounds[name]
                    numbers[name] = min(high, max(low, int(value[:4])))
                else:
                    flags.add(name)
    suffixes = tuple(dict.fromkeys(entry.rstrip(".").lower() for entry in search))
    return ResolvConf(
        servers=tuple(servers) or ("127.0.0.1",),
        search=tuple(entry for entry in suffixes if entry == "" or _problem(entry) is None),
        ndots=numbers["ndots"],
        timeout=numbers["timeout"],
        attempts=numbers["attempts"],
        rotate="rotate" in flags,
        use_tcp="use-vc" in flags,
        no_aaaa="no-aaaa" in flags,
    )


def _server_address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """The hosts file: lower-case name -> canonical addresses in file order. Unreadable lines are ignored."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        address = _server_address(words[0])
        if address is None:
            continue
        for name in words[1:]:
            addresses = found.setdefault(name.rstrip(".").lower(), [])
            if address not in addresses:
                addresses.append(address)
    return {name: tuple(addresses) for name, addresses in found.items()}


def local_addresses(name: str, hosts: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Addresses known without DNS: the hosts file's, else RFC 6761's for ``localhost`` and names below it."""
    plain = name.rstrip(".").lower()
    if plain in hosts:
        return hosts[plain]
    if plain == "localhost" or plain.endswith(".localhost"):
        return ("127.0.0.1", "::1")
    return ()


def _problem(name: str) -> str | None:
    if not name:
        return "the name is empty"
    if not name.isascii() or not name.isprintable() or " " in name:
        return "only printable ASCII may appear in a DNS name (write the IDNA form)"
    if len(name) > MAX_NAME:
        return f"the name has {len(name)} characters; DNS allows {MAX_NAME}"
    for label in name.split("."):
        if not label:
            return "an empty label (two dots in a row, or a leading dot)"
        if len(label) > MAX_LABEL:
            return f"the label {label[:20]!r}... has {len(label)} characters; DNS allows {MAX_LABEL}"
    return None


def candidates(name: str, conf: ResolvConf) -> tuple[str, ...]:
    """Absolute names to try, in glibc's order, without the final dot. Raises DataError for what is no DNS name."""
    absolute = name.endswith(".")
    plain = name[:-1].lower() if absolute else name.lower()
    problem = _problem(plain)
    if problem is not None:
        raise DataError(f"name {name[:80]!r}", problem)
    if absolute:
        return (plain,)
    searched = [f"{plain}.{suffix}" if suffix else plain for suffix in conf.search]
    order = [plain, *searched] if plain.count(".") >= conf.ndots else [*searched, plain]
    return tuple(dict.fromkeys(entry for entry in order if _problem(entry) is None))


@dataclass(slots=True)
class Walk:
    """One pass over the candidates: feed the combined Kind of each, until ``done``.

    As glibc: NXDOMAIN and NODATA go on; SERVFAIL goes on but is remembered; any other unusable reply (timeout,
    unreachable) ends the walk, because the server that would know the rest is not there.
    """

    names: tuple[str, ...]
    position: int = 0
    found: str = ""
    nodata: str = ""  #: the first name that exists without usable records
    failed: str = ""  #: the first name whose reply was unusable
    done: bool = False
    tried: list[str] = field(default_factory=list)

    @property
    def current(self) -> str:
        """The name to ask about now; only while not ``done``."""
        return self.names[self.position]

    def feed(self, kind: Kind, servfail: bool = False) -> None:
        """The combined reply (all record types) for ``current``. ``servfail``: of the unusable kind, rcode SERVFAIL."""
        name = self.current
        self.tried.append(f"{name} {kind.value}")
        if kind is Kind.RECORDS:
            self.found = name
            self.done = True
            return
        if kind is Kind.NODATA:
            self.nodata = self.nodata or name
        elif kind is Kind.UNKNOWN:
            self.failed = self.failed or name
            if not servfail:
                self.done = True
                return
        self.position += 1
        self.done = self.position >= len(self.names)

    @property
    def outcome(self) -> Kind:
        """RECORDS (``found``), UNKNOWN (something failed, so absence is not proven), NODATA or NXDOMAIN."""
        if self.found:
            return Kind.RECORDS
        if self.failed:
            return Kind.UNKNOWN
        return Kind.NODATA if self.nodata else Kind.NXDOMAIN


def combine(kinds: tuple[Kind, ...]) -> Kind:
    """The kinds of all record types of one name as one: the most telling wins, and failure forbids a negative."""
    for kind in (Kind.RECORDS, Kind.UNKNOWN, Kind.NODATA):
        if kind in kinds:
            return kind
    return Kind.NXDOMAIN
