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

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}" + (f";weight={self.weight}" if self.weight != 1 else "")


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target. Equal targets share one set of state.

    ``scheme``: ``k8s``, ``dns``, ``dns+srv``, ``static``, ``file`` or a plugin's. ``port``: a number, a name,
    or None where the scheme allows it. ``hostname``: one endpoint of a headless Service
    (``HOST.NAME.NS.svc``). ``port_is_verbatim`` (headless Services by host name, decision D2) is decided when
    the Service is known, not here.

    ``str(target)`` is the canonical text: ``Target.parse(str(target)) == target`` whatever the defaults are.
    """

    scheme: str
    name: str = ""
    namespace: str = ""
    port: int | str | None = None
    hostname: str = ""
    server: str = ""  #: ``ip:port`` of ``dns://server:port/…``: ask this server instead of resolv.conf's
    path: str = ""  #: ``file``: file or folder; a plugin's scheme: everything after ``scheme://``
    addresses: tuple[StaticAddress, ...] = ()
    by_host: bool = (
        False  #: came from a host name in a URL, not from an explicit target (decision D2's headless rule)
    )
    authority: str = (
        ""  #: the logical host that TLS and Host use when the user typed none (k8s: ``NAME.NS.svc``)
    )

    @classmethod
    def parse(cls, text: str, defaults: TargetDefaults = TargetDefaults()) -> Target:
        """Parse a target string; raises TargetError pointing at the offending part.

        ``k8s:///NAME[.NAMESPACE]:PORT`` (``kubernetes:`` means the same), ``NAME.NS.svc[.DOMAIN]:PORT`` and
        ``HOST.NAME.NS.svc[.DOMAIN]:PORT``, ``dns://[SERVER[:PORT]]/HOST:PORT``,
        ``dns+srv:///_NAME._PROTO.HOST``, ``static:///IP:PORT[;weight=N],…``, ``file:///PATH#NS/NAME:PORT``,
        and ``SCHEME://ANYTHING`` for plugins. PORT is a number or, in the Kubernetes forms, the name of a
        Service port.
        """
        from meshlib.model.target_grammar import parse

        return parse(text, defaults)

    @classmethod
    def kubernetes(
        cls, name: str, namespace: str, port: int | str | None, *, hostname: str = "", by_host: bool = False
    ) -> Target:
        """A target of a Kubernetes Service from parts that are already checked."""
        host = f"{hostname}." if hostname else ""
        return cls(
            scheme="k8s",
            name=name,
            namespace=namespace,
            port=port,
            hostname=hostname,
            by_host=by_host,
            authority=f"{host}{name}.{namespace}.svc",
        )

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        match self.scheme:
            case "k8s" if self.by_host:
                return self.authority + port
            case "k8s":
                return f"k8s:///{self.name}.{self.namespace}{port}"
            case "dns" | "dns+srv":
                host = f"[{self.name}]" if ":" in self.name else self.name
                return f"{self.scheme}://{self.server}/{host}{port}"
            case "static":
                return "static:///" + ",".join(map(str, self.addresses))
            case "file":
                return f"file://{self.path}#{self.namespace}/{self.name}{port}"
            case _:
                return f"{self.scheme}://{self.path}"
