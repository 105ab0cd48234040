"""Whose host is this? Decision D1 as a pure function: which hosts of URLs are Services, and why the others are not."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from meshlib.model.names import MAX_PORT, ends_in_number, is_host_name
from meshlib.model.target import Target, TargetDefaults
from meshlib.model.target_grammar import cluster_host

_DEFAULT_PORTS = {"http": 80, "https": 443}  # decision D2; RFC 9110 4.2


class HostKind(enum.Enum):
    """What a host of a URL is to us."""

    ALIAS = "alias"  #: named in the configuration
    CLUSTER = "cluster"  #: ``NAME.NS.svc…``: a Service by its full form
    SHORT = "short"  #: perhaps a Service: candidates to be confirmed by what is known
    NOT_OURS = "not-ours"  #: the bare path, without any look-up


@dataclass(frozen=True, slots=True)
class HostMatch:
    """``targets``: one for ALIAS and CLUSTER, the candidates in resolver order for SHORT, none for NOT_OURS.

    ``reason`` says why in words, for ``meshlib check-url``.
    """

    kind: HostKind
    targets: tuple[Target, ...]
    reason: str

    @property
    def target(self) -> Target | None:
        """The one target of ALIAS and CLUSTER; None for the other kinds."""
        return self.targets[0] if self.kind in (HostKind.ALIAS, HostKind.CLUSTER) else None


def cluster_domain_of(search: tuple[str, ...]) -> str:
    """The cluster domain that a pod's search list tells (its ``svc.DOMAIN`` entry); "" when there is no such entry."""
    for entry in search:
        name = entry.lower().strip(".")
        if name.startswith("svc.") and len(name) > len("svc."):
            return name.removeprefix("svc.")
    return ""


def _not_ours(reason: str) -> HostMatch:
    return HostMatch(HostKind.NOT_OURS, (), reason)


def match_host(
    scheme: str,
    host: str,
    port: int | None,
    defaults: TargetDefaults,
    aliases: Mapping[str, Target],
    short_names: bool = True,
) -> HostMatch:
    """Say whether the host of a URL is ours (decision D1). Never raises: what we cannot read takes the bare path.

    ``port`` None takes 80 for http and 443 for https. ``aliases``: ``host`` or ``host:port`` in lower case to
    target; the form with a port wins. SHORT candidates are confirmed by the caller, in order: a Service of
    that name is known (and, for a candidate with ``hostname``, an endpoint of that host name); until then the
    bare path is right.
    """
    number = _DEFAULT_PORTS.get(scheme.lower()) if port is None else port
    if number is None:
        return _not_ours(f"no port is given and {scheme!r} has no default port")
    if not 1 <= number <= MAX_PORT:
        return _not_ours(f"{number} is not a port")
    name = host.lower()
    absolute = name.endswith(".")
    bare = name.removesuffix(".")
    for key in (f"{bare}:{number}", bare):
        alias = aliases.get(key)
        if alias is not None:
            return HostMatch(HostKind.ALIAS, (alias,), f"{key!r} is an alias of {alias}")
    if ":" in bare or bare.startswith("["):
        return _not_ours("an IPv6 address is dialled as it is")
    if bare and ends_in_number(bare):
        return _not_ours("an IPv4 address (in any spelling) is dialled as it is")
    if bare == "localhost" or bare.endswith(".localhost"):
        return _not_ours("localhost is this machine (RFC 6761)")
    if not is_host_name(bare):
        return _not_ours("not a host name that a Service can have")
    found = cluster_host(bare, number, defaults)
    if found is not None:
        what = f"endpoint {found.hostname!r} of Service" if found.hostname else "Service"
        return HostMatch(
            HostKind.CLUSTER,
            (found,),
            f"cluster host name: {what} {found.name!r} in namespace {found.namespace!r}",
        )
    return _short(bare, number, absolute, defaults, short_names)


def _short(name: str, port: int, absolute: bool, defaults: TargetDefaults, short_names: bool) -> HostMatch:
    if absolute:
        return _not_ours(
            "it ends in a dot, so the search list does not apply, and it is not a cluster host name"
        )
    dots = name.count(".")
    if dots >= defaults.ndots:
        return _not_ours(
            f"not a cluster host name, and with {dots} dots (ndots is {defaults.ndots}) it is asked for as it is first"
        )
    if not short_names:
        return _not_ours("short names are switched off (short_names = false)")
    domain = defaults.cluster_domain.lower().strip(".")
    candidates: list[Target] = []
    foreign = ""
    for entry in defaults.search:
        suffix = entry.lower().strip(".")
        if suffix != domain and not suffix.endswith("." + domain):
            # Names below a foreign domain may exist, and then the resolver stops there: what comes later is
            # not certain.
            foreign = f"; search entry {suffix!r} is outside the cluster, so later entries do not count"
            break
        found = cluster_host(f"{name}.{suffix}", port, defaults)
        if found is not None and found not in candidates:
            candidates.append(found)
    if not candidates:
        why = (
            "the search list is empty" if not defaults.search else "the search list leads to no Service name"
        )
        return _not_ours(f"{why}{foreign}")
    tried = ", ".join(candidate.authority for candidate in candidates)
    return HostMatch(
        HostKind.SHORT, tuple(candidates), f"short name: ours if one of these exists: {tried}{foreign}"
    )
