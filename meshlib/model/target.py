"""Target: what a caller wants to reach, parsed strictly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TargetDefaults:
    """What the environment contributes to a target; the runtime reads it, the parser receives it."""

    namespace: str = "default"
    cluster_domain: str = "cluster.local"
    search: tuple[str, ...] = ()  #: resolv.conf's search list
    ndots: int = 1


@dataclass(frozen=True, slots=True)
class StaticAddress:
    """One ``ip:port[;weight=N]`` of a static target; ``address`` is canonical text."""

    address: str
    port: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target. Equal targets share one set of state.

    ``scheme``: ``k8s``, ``dns``, ``dns+srv``, ``static``, ``file`` or a plugin's. ``port``: a number, a name, or None
    where the scheme allows it. ``hostname``: one endpoint of a headless Service (``HOST.NAME.NS.svc``).
    ``port_is_verbatim`` (headless Services by host name, decision D2) is decided when the Service is known, not here.
    """

    scheme: str
    name: str = ""
    namespace: str = ""
    port: int | str | None = None
    hostname: str = ""
    server: str = ""  #: ``dns://server:port/…``: ask this server instead of resolv.conf's
    path: str = ""  #: ``file``: file or folder
    addresses: tuple[StaticAddress, ...] = ()
    by_host: bool = False  #: came from a host name in a URL, not from an explicit target (decision D2's headless rule)
    authority: str = ""  #: the logical host that TLS and Host use when the user typed none (k8s: ``NAME.NS.svc``)

    @classmethod
    def parse(cls, text: str, defaults: TargetDefaults = TargetDefaults()) -> Target:
        """Parse a target string; raises TargetError pointing at the offending part."""
        raise NotImplementedError
