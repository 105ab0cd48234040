"""loadBalancerSourceRanges of one family. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import NamedTuple


class SourceRanges(NamedTuple):
    """``allowed`` None: no restriction; (): nobody. ``bad``: texts that are no networks."""

    allowed: tuple[str, ...] | None
    bad: tuple[str, ...] = ()
    only_other_family: bool = False


def source_ranges(texts: tuple[str, ...], family: int, strict: bool) -> SourceRanges:
    """What a list of CIDRs means for one family: sorted, without overlaps (interval sets of nftables refuse them).

    Networks of the other family only restrict nobody in this one, as with kube-proxy, unless ``strict``. A list with
    nothing readable in it lets nobody in: it was written to keep somebody out.
    """
    if not texts:
        return SourceRanges(None)
    four: list[IPv4Network] = []
    six: list[IPv6Network] = []
    bad: list[str] = []
    for text in texts:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            bad.append(text)
            continue
        if isinstance(network, IPv4Network):
            four.append(network)
        else:
            six.append(network)
    own: list[str] = (
        [str(net) for net in collapse_addresses(four)]
        if family == 4
        else [str(net) for net in collapse_addresses(six)]
    )
    if own:
        everybody = "0.0.0.0/0" if family == 4 else "::/0"
        return SourceRanges(None if own == [everybody] else tuple(own), tuple(bad))
    other = bool(four or six)
    return SourceRanges(None if other and not strict else (), tuple(bad), other)
