"""Where this process is: own addresses, dialable families, node and zone (decision D3), and whether a mesh is there."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath

from meshlib.model.eligibility import learn_vantage
from meshlib.model.slices import EndpointSlice
from meshlib.model.vantage import VantagePoint

#: Documentation addresses (RFC 5737, RFC 3849): connecting a UDP socket to them sends nothing, it only asks the routing
#: table which source address would be used.
_PROBES = ((socket.AF_INET, "192.0.2.1", 4), (socket.AF_INET6, "2001:db8::1", 6))
#: Health ports that a sidecar opens on the pod's own loopback: Istio's agent, Linkerd's admin server.
SIDECARS = ((15021, "/healthz/ready", "an Istio sidecar"), (4191, "/ready", "a Linkerd sidecar"))
#: A sidecar answers on loopback within a few milliseconds, or it is not there.
SIDECAR_TIMEOUT = 0.3
#: Where the downward API conventionally mounts pod annotations; an ambient mesh marks the pod there.
POD_ANNOTATIONS = "/etc/podinfo/annotations"


def own_addresses(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Source addresses this host would use, and ``POD_IP`` when the downward API gives it. Sends no packet."""
    found = [environ["POD_IP"]] if environ.get("POD_IP") else []
    for kind, probe, _ in _PROBES:
        try:
            with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.connect((probe, 9))
                found.append(sock.getsockname()[0])
        except OSError:
            continue  # no route in this family: it has no address to offer
    return tuple(dict.fromkeys(found))


def dialable_families(addresses: Iterable[str]) -> tuple[int, ...]:
    """The families of own addresses; both when there is none (no route at all, as on an isolated test host)."""
    families = {6 if ":" in address else 4 for address in addresses}
    return tuple(sorted(families)) or (4, 6)


class Place:
    """The vantage point, learned once from data when configuration does not tell it. Control thread only."""

    def __init__(self, node: str, zone: str, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses
        self.vantage = VantagePoint(node=node, zone=zone, families=dialable_families(addresses))

    def learn(self, slices: Iterable[EndpointSlice]) -> None:
        """Look for our own pod in the slices, unless both node and zone are known already."""
        if self.vantage.node and self.vantage.zone:
            return
        found = learn_vantage(slices, self._addresses)
        if found is not None:
            self.vantage = VantagePoint(
                node=self.vantage.node or found.node,
                zone=self.vantage.zone or found.zone,
                families=self.vantage.families,
            )


def sidecar(environ: Mapping[str, str], annotations_file: str = POD_ANNOTATIONS) -> str:
    """What mesh already handles this pod's traffic, in words; empty when none is seen. Blocks up to a second.

    Only asked inside a cluster: elsewhere a server on one of those ports means nothing.
    """
    if not environ.get("KUBERNETES_SERVICE_HOST"):
        return ""
    try:
        text = FilePath(annotations_file).read_text(errors="replace")
    except OSError:
        text = ""  # not mounted: nothing to learn from it
    if 'ambient.istio.io/redirection="enabled"' in text:
        return "an Istio ambient mesh"
    for port, path, name in SIDECARS:
        if _answers(port, path):
            return name
    return ""


def _answers(port: int, path: str) -> bool:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection(("127.0.0.1", port), SIDECAR_TIMEOUT) as sock:
            sock.sendall(request)
            return sock.recv(12).startswith(b"HTTP/1.")
    except OSError:
        return False  # nothing listens there, or it does not speak HTTP
